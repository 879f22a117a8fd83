"""Accelerate a supernet and take a step with it. Prints JSON: the functions of kernels/ that were compiled for each of
the two in this process, and whether accelerating left the random numbers as they were.

Arguments: the project's folder, the method.
"""
import json
import sys

sys.path[:0] = [sys.argv[1]]
from kernels import compiled  # noqa: E402, I001  before Paddle
import paddle  # noqa: E402
from numba.core import event  # noqa: E402

from model_search import Network  # noqa: E402
from nas.searcher import DARTSearch  # noqa: E402
from runtime.parallel import configure_cpu  # noqa: E402

found = []


class Listener(event.Listener):

    def on_start(self, event):
        found.append(event.data['dispatcher'].py_func)

    def on_end(self, event):
        pass


def compiled_since(start):
    return sorted({f'{function.__module__}.{function.__name__}' for function in found[start:]
                   if function.__module__.startswith('kernels.')})


assert compiled.numba is not None
paddle.set_device('cpu')
configure_cpu()
event.register('numba:compile', Listener())
network = Network(4, 10, 3, sys.argv[2])
paddle.seed(1)
expected = paddle.rand([4]).tolist()
paddle.seed(1)
search = DARTSearch(network, lambda: [], lambda: [], paddle.CPUPlace())
drawn = paddle.rand([4]).tolist()
before = len(found)
batch = paddle.ones([4, 3, 8, 8]), paddle.zeros([4, 1], 'int64')
search.train_step(*batch, *batch, arch_step=True)
print(json.dumps({'accelerating': compiled_since(0), 'step': compiled_since(before),
                  'same_numbers': drawn == expected}))
