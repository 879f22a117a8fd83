"""What blocks.py knows of its layers before there is an input: convolutions, units and poolings, their geometry and
their weights as the passes of block_loops.py read them."""

import numpy as np
import paddle.nn as nn

from kernels.block_loops import Layout
from kernels.compiled import EMPTY, ROW, group_size
from kernels.windows import Arrangement, Shape, make_window, output_size


def images_of_a_job(images, channels, pixels):
    """How many images a pass takes at a time: rows of about 1,000 pixels, or fewer where the channels of so many do not
    fit in 2**15 numbers, 128 KB, of a core's own cache."""
    return group_size(images, min(ROW, 2 ** 15 // channels) // pixels)


class Convolution:
    """A dense convolution of a unit, or a depthwise one with a pointwise one behind it.

    layer: paddle.nn.Conv2D without bias, the dense or the pointwise one. depthwise: a Conv2D or None. corner: None, or
    for one of the two halves of FactorizedReduce the pixel, 0 or 1, of each 2x2 pixels that its 1x1 convolution reads.
    """

    def __init__(self, layer, depthwise=None, corner=None):
        self.layers = [depthwise, layer] if depthwise is not None else [layer]
        self.separable, self.corner = depthwise is not None, corner
        self.filters, self.groups = layer.weight.shape[0], layer._groups
        self.channels = self.layers[0].weight.shape[0 if self.separable else 1] * (1 if self.separable else self.groups)
        self.shapes = {}

    def arrangement(self, x_shape):
        """(Window, Tables, images of a job, height and width of the output) for an input of this shape, None
        if nothing comes out."""
        if x_shape not in self.shapes:
            n, _, *sides = x_shape
            layer = self.layers[0]
            stride, dilation = tuple(layer._stride), layer._dilation
            padding, kernel = tuple(layer._updated_padding or (0, 0)), layer.weight.shape[2:]
            taps = [(i * dilation[0], j * dilation[1]) for i in range(kernel[0]) for j in range(kernel[1])]
            out = [output_size(*of_side) for of_side in zip(sides, kernel, stride, padding, dilation)]
            if self.corner is not None:
                taps, out = [(self.corner, self.corner)], [-(-side // 2) for side in sides]
            group = images_of_a_job(n, max(self.filters, self.channels), max(1, out[0] * out[1]))
            self.shapes[x_shape] = (*make_window(*sides, tuple(taps), stride, padding, tuple(out), group), group,
                                    tuple(out)) if min(out) > 0 else None
        return self.shapes[x_shape]

    def weights(self, arrays):
        """The weights, given as flat arrays, as the forward pass reads them."""
        depthwise = arrays[0] if self.separable else EMPTY
        return depthwise, _filled_up(arrays[-1].reshape(self.groups, self.filters // self.groups, -1)).ravel()

    def weights_backwards(self, arrays, tables):
        """The weights as the way back to the pixels reads them."""
        filters, inputs = self.filters // self.groups, self.channels // self.groups
        weight = arrays[-1].reshape(self.groups, filters, inputs, -1)
        if self.separable:
            by_order = arrays[0].reshape(self.channels, -1)[:, tables.order]
            return by_order.ravel(), _filled_up(weight[..., 0].transpose(0, 2, 1)).ravel()
        weight = weight[..., tables.order].transpose(0, 2, 1, 3)
        planes = [_filled_up(weight[..., begin:end].reshape(self.groups, inputs, -1)).reshape(self.groups, -1)
                  for begin, end in zip(tables.starts, tables.starts[1:])]
        return EMPTY, np.concatenate(planes, axis=1).ravel()

    def gradient_layouts(self, tables):
        """For each of the layers the Layout of its weight's gradient."""
        filters, inputs, taps = self.filters // self.groups, self.channels // self.groups, len(tables.taps)
        k = inputs if self.separable else inputs * taps
        dense = Layout(self.groups, filters, k, -(-filters // 4) * 4, -(-k // 3) * 3)
        return [Layout(1, self.channels, taps, self.channels, taps), dense] if self.separable else [dense]


def _filled_up(weight):
    """[groups, rows, columns] contiguous, with rows of zeros up to a multiple of 4."""
    missing = -weight.shape[1] % 4
    return np.pad(weight, ((0, 0), (0, missing), (0, 0))) if missing else np.ascontiguousarray(weight)


class Unit:
    """relu: whether there is one in front; norm: BatchNorm2D behind or None; convolutions: side by side, their outputs
    concatenated."""

    def __init__(self, relu, convolutions, norm):
        self.relu, self.convolutions, self.norm = relu, convolutions, norm
        self.filters = sum(convolution.filters for convolution in convolutions)
        layers = [layer for convolution in convolutions for layer in convolution.layers]
        self.layers = layers + ([norm] if norm is not None and norm.weight is not None else [])
        self.shapes = {}

    def statistics(self):
        return [] if self.norm is None else [self.norm._mean, self.norm._variance]

    def parameters(self):
        return [tensor for layer in self.layers
                for tensor in ([layer.weight] if isinstance(layer, nn.Conv2D) else [layer.weight, layer.bias])]

    def multiply_adds(self, x_shape):
        """Of all convolutions, where the unit applies."""
        n, _, height, width = self.output_shape(x_shape)
        return n * height * width * sum(layer.weight.size for convolution in self.convolutions
                                        for layer in convolution.layers)

    def arrangements(self, x_shape):
        """The Arrangement of each convolution, for an input where the unit applies."""
        if x_shape not in self.shapes:
            self.shapes[x_shape], first = [], 0
            for convolution in self.convolutions:
                window, tables, group, _ = convolution.arrangement(x_shape)
                shape = Shape(x_shape[0], group, convolution.channels, convolution.filters, convolution.groups, first,
                              self.filters)
                self.shapes[x_shape].append(Arrangement(window, tables, shape))
                first += convolution.filters
        return self.shapes[x_shape]

    def output_shape(self, x_shape):
        """[N, C, H, W] of the output, or None where the unit does not apply."""
        if any(convolution.channels != x_shape[1] for convolution in self.convolutions):
            return None
        found = self.convolutions[0].arrangement(x_shape)
        if found is None:
            return None
        out = (x_shape[0], self.filters, *found[-1])
        if self.norm is not None and (self.norm._mean.shape[0] != self.filters or out[0] * out[2] * out[3] == 1):
            return None  # of a single value per channel Paddle's batch norm returns its input
        return out


class Pooling:
    """An AvgPool2D without the padding's zeros, or a MaxPool2D, of a square window."""

    def __init__(self, layer):
        self.layer, self.average, self.shapes = layer, isinstance(layer, nn.AvgPool2D), {}

    def arrangement(self, x_shape):
        """(Arrangement, divisors, height and width of the output) for an input of this shape, None if nothing comes
        out."""
        if x_shape not in self.shapes:
            n, c, *sides = x_shape
            kernel, stride, padding = self.layer.ksize, self.layer.stride, self.layer.padding
            up = stride - 1 if self.layer.ceil_mode else 0
            starts = [np.arange((side + 2 * padding - kernel + up) // stride + 1) * stride - padding for side in sides]
            found = None
            if all(len(start) and start[-1] < side for start, side in zip(starts, sides)):
                taps = tuple((i, j) for i in range(kernel) for j in range(kernel))
                out = tuple(len(start) for start in starts)
                group = images_of_a_job(n, 1, out[0] * out[1])
                counts = [np.minimum(start + kernel, side) - np.maximum(start, 0) for start, side in zip(starts, sides)]
                divisors = (1 / np.outer(*counts) if self.average else np.ones(out)).astype(np.float32).ravel()
                found = (Arrangement(*make_window(*sides, taps, (stride, stride), (padding, padding), out, group),
                                     Shape(n, group, c, c, 1, 0, c)), divisors, out)
            self.shapes[x_shape] = found
        return self.shapes[x_shape]

    def output_shape(self, x_shape):
        found = self.arrangement(x_shape)
        return None if found is None else (*x_shape[:2], *found[-1])
