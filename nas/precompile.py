"""Compile the loops of a search in two processes: numba compiles one function at a time in each.

The second process compiles those of edges into numba's cache; precompile() starts it.
"""
import os
import subprocess
import sys

from kernels import compiled  # isort: skip  numba must be imported before Paddle 2
import paddle
import paddle.nn as nn

from kernels import edge_loops
from kernels.channels import split_channels
from kernels.edges import Edges
from kernels.nodes import node_of
from nas.layers import attach
from operations import OPS, SepConv, conv2d
from runtime.parallel import cpu_threads, world_size

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMPILE_EDGES = 'import sys; sys.path.insert(0, sys.argv[1]); from nas.precompile import compile_edges; compile_edges()'
OPERATIONS = ('max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3')


def precompile():
    """Compile what the supernet of a search on a CPU uses, in this process and another one, unless numba's cache has it
    or there is one core only. Random numbers are drawn as if nothing had happened."""
    if (compiled.numba is None or compiled.is_cached(edge_loops.backward_pass) or cpu_threads() == 1
            or world_size() > 1 or paddle.get_device() != 'cpu' or paddle.get_default_dtype() != 'float32'):
        return
    other = subprocess.Popen([sys.executable, '-c', COMPILE_EDGES, ROOT], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = paddle.get_rng_state()
    try:
        _compile_layers()
        other.wait()
    finally:
        paddle.set_rng_state(state)
        if other.poll() is None:
            other.kill()
            other.wait()


def _images():
    images = paddle.ones([2, 4, 8, 8])
    images.stop_gradient = False
    return images


def _compile_layers():
    """All loops of a search but those of kernels/edges.py: forward and backward pass of small layers."""
    for layer in (SepConv(4, 4, 3, 1, 1).op, nn.MaxPool2D(2, 2), conv2d(4, 4, 1)):
        attach(layer)
        layer(_images()).sum().backward()
    mixed, kept = split_channels(_images(), [1, 3])
    node_of(mixed, [kept], paddle.ones([1]), 4).sum().backward()


def compile_edges():
    """The loops of kernels/edges.py."""
    paddle.set_device('cpu')
    columns = list(range(len(OPERATIONS)))
    edges = Edges([[OPS[name](4, 1, False) for name in OPERATIONS] for _ in range(2)], [0, 1], [columns] * 2)
    weights = paddle.ones([2, len(OPERATIONS)])
    weights.stop_gradient = False
    paddle.add_n(edges(_images(), weights)).sum().backward()
