"""Compile the loops of a search in two processes: numba compiles one function at a time in each.

precompile() compiles the backward pass of a block, which takes longest, while a second process puts the forward pass
into numba's cache.
"""
import contextlib
import gc
import os
import subprocess
import sys

from kernels import compiled  # isort: skip  numba must be imported before Paddle 2
import paddle

from kernels.backward import backward_pass
from kernels.blocks import Block, BlockOperation, Term
from kernels.forward import forward_pass
from nas.layers import operation_of
from operations import SepConv
from runtime.parallel import cpu_threads, world_size

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMPILE_FORWARD = ('import sys; sys.path.insert(0, sys.argv[1]); from nas.precompile import compile_forward; '
                   'compile_forward()')


def precompile():
    """Compile what a search on a CPU uses, in this process and another one, unless numba's cache has it or there is
    only one core. Random numbers are drawn as if nothing had happened."""
    if (compiled.numba is None or all(map(compiled.is_cached, (forward_pass, backward_pass))) or cpu_threads() == 1
            or world_size() > 1 or paddle.get_device() != 'cpu' or paddle.get_default_dtype() != 'float32'):
        return
    other = subprocess.Popen([sys.executable, '-c', COMPILE_FORWARD, ROOT], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = paddle.get_rng_state()
    try:
        with _without_garbage_collection():
            _compile_backward()
        other.wait()
    finally:
        paddle.set_rng_state(state)
        if other.poll() is None:
            other.kill()
            other.wait()


@contextlib.contextmanager
def _without_garbage_collection():
    """Keep Python from looking for cycles in numba's millions of small objects, an eighth of the time to compile."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _images():
    images = paddle.ones([2, 4, 8, 8])
    images.stop_gradient = False
    return images


def _compile_backward():
    """The backward pass of a block without its forward pass: the numbers are meaningless."""
    block, images = Block([[Term(0, operation_of(SepConv(4, 4, 3, 1, 1)))]]), _images()
    selection = block.select()
    operation = BlockOperation(block.plan_of([images]), False, selection)
    operation.wanted = [True] * (1 + len(selection.stacks))
    with paddle.no_grad():
        operation.prepare(images, *[tensors[0] for tensors in selection.stacks])
        operation.backward(paddle.ones(images.shape))


def compile_forward():
    """The forward pass of a block."""
    paddle.set_device('cpu')
    block = Block([[Term(0, operation_of(SepConv(4, 4, 3, 1, 1)))]])
    with _without_garbage_collection(), paddle.no_grad():
        block([_images()])
