"""search.py after a change of NODES, the number of nodes of a cell.

Arguments: the project's folder; the number; the flags of search.py.
"""
import sys

sys.path.insert(0, sys.argv[1])
import search  # noqa: E402
from runtime.script import run_script  # noqa: E402

search.NODES = int(sys.argv[2])
sys.argv = ['search.py', *sys.argv[3:]]
run_script(search.main)
