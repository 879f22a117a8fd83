"""search.py that gets a SIGTERM in its first step and a second one while it writes the checkpoint, which never ends.

    python signal_during_save.py ROOT [the flags of search.py]
"""
import os
import signal
import sys
import threading

root = sys.argv[1]
sys.path.insert(0, root)
sys.argv = [os.path.join(root, 'search.py'), *sys.argv[2:]]
import search  # noqa: E402
from runtime.run import Run  # noqa: E402
from runtime.script import run_script  # noqa: E402

end_step = Run.end_step


def save(self):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()


def signal_and_end_step(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    end_step(self, *arguments)


Run.save, Run.end_step = save, signal_and_end_step
run_script(search.main)
