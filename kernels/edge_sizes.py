"""What the passes of edges.py need to know of a state's shape before they see a state."""
import numpy as np
import paddle.nn as nn

from kernels.compiled import group_size
from kernels.edge_pools import AVERAGE, IDENTITY, LARGEST
from kernels.layout import OUT_HEIGHT, OUT_WIDTH, geometry


class Sizes:
    """What follows from the shape of a state: groups of images, the tables of geometries of passes 1 and 2 and of the
    poolings, output pixels.

    fit: whether all operations have an output for images of this size, and outputs of one size; if not, that is all
    there is.
    """

    def __init__(self, edges, n, c, height, width):
        self.n, self.c = n, c
        outs = {_output_size(height, width, layer)
                for layer in [depthwise for depthwise, _ in edges.convolutions[0]] + edges.pools}
        self.fit = (len(outs) == 1 and min(min(outs)) > 0 and (edges.final.min() >= 0 or outs == {(height, width)})
                    and all(_output_size(*min(outs), depthwise) in outs for depthwise, _ in edges.convolutions[1]))
        if not self.fit:
            return
        self.group = group_size(n, height * width)
        self.groups = -(-n // self.group)
        first = self.table([depthwise for depthwise, _ in edges.convolutions[0]], height, width)
        pools = self.table(edges.pools, height, width)
        self.out = [int(side) for side in (first if len(first) else pools)[0, [OUT_HEIGHT, OUT_WIDTH]]]
        self.tables = first, self.table([depthwise for depthwise, _ in edges.convolutions[1]], *self.out), pools
        self.pixels = self.out[0] * self.out[1]
        self.kinds = np.array([AVERAGE if isinstance(pool, nn.AvgPool2D) else LARGEST for pool in edges.pools]
                              + [IDENTITY] * (len(edges.others) - len(pools)), np.int64)
        self.inverse_counts = np.ones((len(edges.others), self.pixels), np.float32)
        for row, pool in zip(self.inverse_counts, edges.pools):
            row[:] = _inverse_counts(height, width, *window_of(pool)[:3])
        # Of an identity only the pixels count, which are those of any other geometry of stride 1.
        base = pools if len(pools) else first
        self.others = np.concatenate([base[:len(pools)], np.repeat(base[:1], len(edges.others) - len(pools), axis=0)])

    def table(self, layers, height, width):
        rows = [geometry(height, width, *window_of(layer), self.group) for layer in layers]
        table = np.zeros((len(rows), max(map(len, rows), default=12)), np.int64)
        for line, row in zip(table, rows):
            line[:len(row)] = row
        return table


def window_of(layer):
    """(kernel, stride, padding, dilation) of a depthwise convolution or a pooling."""
    if isinstance(layer, nn.Conv2D):
        return layer.weight.shape[2], layer._stride[0], layer._updated_padding[0], layer._dilation[0]
    return layer.ksize, layer.stride, layer.padding, 1


def _output_size(height, width, layer):
    kernel, stride, padding, dilation = window_of(layer)
    return tuple((length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for length in (height, width))


def _inverse_counts(height, width, kernel, stride, padding):
    """1 / how many pixels each window of an average pooling has, without the padding, as a row."""
    def along(length):
        starts = np.arange(0, length + 2 * padding - kernel + 1, stride) - padding
        return np.minimum(starts + kernel, length) - np.maximum(starts, 0)
    return (1 / np.outer(along(height), along(width))).ravel()
