"""Which layers and images the passes of edges.py go through: known before they see a state."""
from typing import NamedTuple

import numpy as np
import paddle.nn as nn

from kernels.compiled import ROW, group_size
from kernels.edge_loops import Images
from kernels.edge_pools import AVERAGE, IDENTITY, LARGEST, Pools
from kernels.windows import output_size, pack, square

# Where the depthwise convolution, the pointwise one and the batch norm are in `op` of a SepConv; a DilConv has only the
# first three.
FIRST, SECOND = slice(1, 4), slice(5, 8)


def is_repeated(layers):
    """Whether the layers of an operation have the second three."""
    return len(layers) > SECOND.start


class Ends(NamedTuple):
    """One more than the last number of the convolutions of passes 1 and 2 and of the poolings, see edges.Edges."""

    first: int
    second: int
    pools: int


class Sizes:
    """What follows from the shape of a state: groups of images, the tables of passes 1 and 2, poolings, output pixels.

    fit: whether all operations have an output for images of this size, and outputs of one size; if not, that is all
    there is.
    """

    def __init__(self, edges, n, c, height, width):
        outs = {_output_size(height, width, layer)
                for layer in [depthwise for depthwise, _ in edges.convolutions[0]] + edges.pools}
        self.fit = (len(outs) == 1 and min(min(outs)) > 0 and (edges.final.min() >= 0 or outs == {(height, width)})
                    and all(_output_size(*min(outs), depthwise) in outs for depthwise, _ in edges.convolutions[1]))
        if not self.fit:
            return
        self.images = Images(n, c, group_size(n, ROW // (height * width)))
        self.groups = -(-n // self.images.group)
        self.out = list(outs.pop())
        self.pixels = self.out[0] * self.out[1]
        self.tables = [self._tables([depthwise for depthwise, _ in pass_], *sides)
                       for pass_, sides in zip(edges.convolutions, [(height, width), self.out])]
        identities = len(edges.others) - len(edges.pools)
        kinds = [AVERAGE if isinstance(pool, nn.AvgPool2D) else LARGEST for pool in edges.pools]
        divisors = np.ones((len(edges.others), self.pixels), np.float32)
        for row, pool in zip(divisors, edges.pools):
            row[:] = _inverse_counts(height, width, *window_of(pool)[:3])
        # Of an identity only the pixels count, which are those of any window of stride 1.
        pools = self._tables(edges.pools, height, width)
        any_window = (pools if len(pools) else self.tables[0])[:1]
        length = max(pools.shape[1], any_window.shape[1])
        tables = np.concatenate([np.pad(table, ((0, 0), (0, length - table.shape[1])))
                                 for table in [pools] + [any_window] * identities])
        self.pools = Pools(np.array(kinds + [IDENTITY] * identities, np.int64), tables, divisors)

    def _tables(self, layers, height, width):
        return pack([square(height, width, *window_of(layer), self.images.group) for layer in layers])


def window_of(layer):
    """(kernel, stride, padding, dilation) of a depthwise convolution or a pooling."""
    if isinstance(layer, nn.Conv2D):
        return layer.weight.shape[2], layer._stride[0], layer._updated_padding[0], layer._dilation[0]
    return layer.ksize, layer.stride, layer.padding, 1


def _output_size(height, width, layer):
    return tuple(output_size(side, *window_of(layer)) for side in (height, width))


def _inverse_counts(height, width, kernel, stride, padding):
    """1 / how many pixels each window of an average pooling has, without the padding, as a row."""
    def along(length):
        starts = np.arange(0, length + 2 * padding - kernel + 1, stride) - padding
        return np.minimum(starts + kernel, length) - np.maximum(starts, 0)
    return (1 / np.outer(along(height), along(width))).ravel()
