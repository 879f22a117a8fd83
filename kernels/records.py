"""A plan (plans.py) as compiled code reads it: arrays of records, and what is the same in all calls."""
from typing import NamedTuple

import numpy as np

CHUNKED, NCHW = 0, 1  # how values lie in memory, see plans.py


def _record(*names, **others):
    return np.dtype([(name, np.int64) for name in names] + list(others.items()))


# Fields called after a tensor are its address, filled in at each call, 0 where there is none; `active` is 0 for what a
# call leaves out.
VALUE = _record('channels', 'pixels', 'order',
                'tensor_channels',  # of the tensor of which an NCHW value is a part
                'tile_size',  # images of a tile of the step that computes it
                'trains',  # whether a batch norm behind it needs its moments
                'data', 'gradient')
# Norm 0 stands for none: no value, scale 1 and shift 0. A step that reads a value as it is has norm 0.
NORM = _record('value', 'level', 'gradient_level',  # the level that computes the value, and that at which the backward
               # pass knows all of the gradient of what the norm gives
               'term', 'active',  # its term or -1
               'trains', 'summed',  # whether mean and variance are those of the batch; whether the backward pass needs
               # the sums over this gradient
               'second',  # the channel from which on second_bias is the bias, that of the second convolution of a unit
               'gamma', 'beta', 'bias', 'second_bias',
               'gamma_gradient', 'beta_gradient', 'bias_gradient', 'second_bias_gradient',
               'running_mean', 'running_variance', momentum=np.float64, epsilon=np.float64)
STEP = _record('kind', 'active', 'tile_size', 'source', 'from_channel', 'channels', 'norm', 'relu',  # what it reads
               'result', 'result_norm', 'first_filter', 'filters', 'groups',  # first_filter: in the result
               'depthwise_at', 'weight_at',  # where the weights begin among all weights' gradients
               'divisors_at', 'depthwise', 'weight', 'depthwise_gradient', 'weight_gradient')
NODE = _record('value', 'begin', 'end', 'level')  # its terms are those from begin to end
TERM = _record('node', 'norm', 'active', 'from_channel',  # the first channel that it reads
               'first_channel', 'channels', 'mixed', 'partial')  # see call.channel_of


class PlanConstants(NamedTuple):
    """What is the same in all calls.

    images: of the batch. inputs: how many values are inputs, the first ones. chunk: images of a chunk. threads: among
    which the work is divided; a thread that runs alone does the work of all. channels: most of a value behind a norm.
    tiles: of all chunks, at most. weights: elements of all weights. geometry: a packed (Window, WindowTables) for each
    step. levels: where the steps of each begin, and the end. nodes: records of NODE. sections: where the sections of a
    thread's memory begin, see call.Memory. divisors: 1 / pixels of all windows of poolings.
    """

    images: int
    inputs: int
    chunk: int
    chunks: int
    threads: int
    channels: int
    tiles: int
    weights: int
    geometry: np.ndarray
    levels: np.ndarray
    nodes: np.ndarray
    sections: np.ndarray
    divisors: np.ndarray
