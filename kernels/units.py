"""What a Block (blocks.py) is made of, before there is an input: convolutions, units, poolings and their geometry."""
import numpy as np
import paddle.nn as nn

from kernels.windows import make_window

# How a step of a plan is computed, see forward.py.
SEPARABLE, DENSE, AVERAGE, LARGEST = range(4)


class Convolution:
    """A convolution of a unit, or a depthwise one with a pointwise one behind it.

    layer: paddle.nn.Conv2D, the last one. depthwise: the Conv2D in front of a pointwise one or None. corner: None, or
    for one of the two halves of FactorizedReduce k, if its 1x1 convolution reads pixel (k, k) of each 2x2 pixels.
    """

    def __init__(self, layer, depthwise=None, corner=None):
        self.depthwise = None if depthwise is None else depthwise.weight
        self.weight, self.bias = layer.weight, layer.bias
        self.filters, self.groups = layer.weight.shape[0], layer._groups
        self.corner, first = corner, layer if depthwise is None else depthwise
        self.channels = first.weight.shape[1] * first._groups
        self.kernel, self.stride, self.dilation = first.weight.shape[2:], tuple(first._stride), first._dilation
        self.padding = tuple(first._updated_padding or (0, 0))
        self.kind = DENSE if depthwise is None else SEPARABLE

    def fits(self):
        """Whether the sizes of the tensors agree."""
        return (self.weight.shape[1] * self.groups == self.channels
                and (self.bias is None or self.bias.shape == [self.filters]))

    def output_sides(self, sides):
        """Height and width of the output; less than 1 where there is none."""
        if self.corner is not None:
            return tuple(-(-side // 2) for side in sides)
        return tuple((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, padding,
                     dilation in zip(sides, self.kernel, self.stride, self.padding, self.dilation))

    def window(self, sides, images):
        """(Window, WindowTables) of so many images with these sides."""
        taps = [(i * self.dilation[0], j * self.dilation[1])
                for i in range(self.kernel[0]) for j in range(self.kernel[1])]
        if self.corner is not None:
            taps = [(self.corner, self.corner)]
        return make_window(*sides, tuple(taps), self.stride, self.padding, self.output_sides(sides), images)

    def multiply_adds(self, pixels):
        """Of so many pixels of the output."""
        return pixels * sum(weight.size for weight in (self.depthwise, self.weight) if weight is not None)


def _has_channels(norm, channels):
    """Whether all tensors of a batch norm, if there is one, are for so many channels."""
    return norm is None or all(tensor is None or tensor.shape == [channels]
                               for tensor in (norm._mean, norm._variance, norm.weight, norm.bias))


class Unit:
    """relu: whether there is one in front; norm: BatchNorm2D behind or None; convolutions: side by side, their outputs
    concatenated. A convolution has a bias only in front of a batch norm."""

    def __init__(self, relu, convolutions, norm):
        self.relu, self.convolutions, self.norm = relu, convolutions, norm
        self.filters = sum(convolution.filters for convolution in convolutions)

    def output_shape(self, shape):
        """(C, H, W) of the output for an input of one, or None where the unit does not apply."""
        if any(convolution.channels != shape[0] or not convolution.fits() for convolution in self.convolutions):
            return None
        sides = self.convolutions[0].output_sides(shape[1:])
        if min(sides) < 1 or not _has_channels(self.norm, self.filters):
            return None
        return (self.filters, *sides)


class Pooling:
    """An AvgPool2D without the padding's zeros, or a MaxPool2D, of a square window; norm: BatchNorm2D behind or
    None."""

    def __init__(self, layer, norm=None):
        self.norm, self.kind = norm, AVERAGE if isinstance(layer, nn.AvgPool2D) else LARGEST
        self.kernel, self.stride, self.padding = layer.ksize, layer.stride, layer.padding
        self.round_up = self.stride - 1 if layer.ceil_mode else 0

    def key(self):
        """Equal for poolings that give the same."""
        return self.kind, self.kernel, self.stride, self.padding, self.round_up

    def _starts(self, sides):
        """Where the windows begin, along both sides."""
        return [np.arange((side + 2 * self.padding - self.kernel + self.round_up) // self.stride + 1) * self.stride
                - self.padding for side in sides]

    def output_shape(self, shape):
        """(C, H, W) of the output for an input of one, or None where the pooling does not apply."""
        starts = self._starts(shape[1:])
        if not all(len(start) and start[-1] < side for start, side in zip(starts, shape[1:])):
            return None
        if not _has_channels(self.norm, shape[0]):
            return None
        return (shape[0], *map(len, starts))

    def window(self, sides, images):
        """(Window, WindowTables) of so many images with these sides."""
        taps = tuple((i, j) for i in range(self.kernel) for j in range(self.kernel))
        return make_window(*sides, taps, (self.stride,) * 2, (self.padding,) * 2, tuple(map(len, self._starts(sides))),
                           images)

    def divisors(self, sides):
        """1 / pixels of each window, without the padding, of an average; 1 for a maximum."""
        starts = self._starts(sides)
        if self.kind == LARGEST:
            return np.ones(len(starts[0]) * len(starts[1]), np.float32)
        counts = [np.minimum(start + self.kernel, side) - np.maximum(start, 0) for start, side in zip(starts, sides)]
        return (1 / np.outer(*counts)).astype(np.float32).ravel()
