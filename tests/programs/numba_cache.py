"""Call a compiled function of the project and one of a user, both cached. Prints JSON: cache folders, hits, misses.

Arguments: the folder that kernels/ is in (the project's or a copy), the project's folder.
"""
import json
import sys

sys.path[:0] = ['', *sys.argv[1:]]
from kernels import compiled  # noqa: E402, I001  before Paddle
import numpy as np  # noqa: E402
import users_module  # noqa: E402  in the working directory



@compiled.jit
def add_up(values):
    total = 0.0
    for value in values:
        total += value
    return total


def report(function):
    function(np.ones(3))
    stats = function.stats
    return {'folder': stats.cache_path,
            'hits': sum(stats.cache_hits.values()), 'misses': sum(stats.cache_misses.values())}


print(json.dumps({'ours': report(add_up), 'users': report(users_module.double)}))
