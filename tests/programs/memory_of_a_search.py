"""search.py; prints the number of steps and the peak of the resident pages in their second and in their last quarter.

    python memory_of_a_search.py ROOT [the flags of search.py]
"""
import os
import sys

root = sys.argv[1]
sys.path.insert(0, root)
sys.argv = [os.path.join(root, 'search.py'), *sys.argv[2:]]
import search  # noqa: E402
from nas.searcher import DARTSearch  # noqa: E402

pages, train_step = [], DARTSearch.train_step


def measured(self, *arguments, **options):
    result = train_step(self, *arguments, **options)
    with open('/proc/self/statm') as f:
        pages.append(int(f.read().split()[1]))
    return result


DARTSearch.train_step = measured
search.main()
quarter = len(pages) // 4
print('peaks', len(pages), max(pages[quarter:2 * quarter]), max(pages[3 * quarter:]))
