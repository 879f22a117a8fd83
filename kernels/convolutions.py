"""Depthwise and pointwise convolutions on a CPU, on all cores. The numbers agree with Paddle's to rounding.

Paddle's own depthwise kernel runs on one core; for a pointwise convolution, which is a product of matrices, it copies
every image first.
"""
from typing import NamedTuple

import numpy as np
import paddle

from kernels import compiled
from kernels.compiled import EMPTY, addresses, floats, jit, new_tensor, view
from kernels.depthwise import add_correlations, convolve, in_order, spread_gradient
from kernels.images import NO, NO_FLOOR, ONE, ZERO, collect, copy_to_line, from_line, nchw, spread
from kernels.operation import Operation
from kernels.products import multiply, multiply_weight, starts_of, transpose
from kernels.threads import on_all_cores
from kernels.windows import Tables, Window, output_size, square


def conv2d(x, layer):
    """The output of a paddle.nn.Conv2D layer for x [N, C, H, W], or None where these loops do not cover the case.

    Covered are, in single precision on a CPU, depthwise convolutions without bias of a geometry that is the same in
    both directions (weight [C, 1, k, k]) and pointwise ones (weight [out, in, 1, 1], stride 1).
    """
    weight, bias = layer.weight, layer.bias
    if not (compiled.available(x) and compiled.available(weight) and x.ndim == weight.ndim == 4 and x.size
            and weight.size and layer._data_format == 'NCHW' and layer._padding_mode == 'zeros'):
        return None
    if bias is not None and not (compiled.available(bias) and list(bias.shape) == [weight.shape[0]]):
        return None
    if x.shape[1] != weight.shape[1] * layer._groups or weight.shape[0] % layer._groups:
        return None  # Paddle says what is wrong
    if layer._groups == 1 and is_pointwise(layer):
        return _Pointwise()(x, weight) if bias is None else _Pointwise()(x, weight, bias)
    if bias is None and layer._groups == x.shape[1] == weight.shape[0] and is_square(layer):
        geometry = square_geometry(layer)
        if min(output_size(side, *geometry) for side in x.shape[2:]) > 0:
            return _Depthwise(*geometry)(x, weight)
    return None


def is_pointwise(layer):
    """Whether a Conv2D layer is a product of matrices: kernel 1x1, stride 1, no padding."""
    return (list(layer._stride) == [1, 1] and layer._updated_padding in (0, [0, 0]) and min(layer._dilation) > 0
            and layer._padding_algorithm == 'EXPLICIT' and list(layer.weight.shape[2:]) == [1, 1])


def is_square(layer):
    """Whether kernel, stride, padding and dilation are the same in both directions and the output is no larger than
    the input."""
    padding, stride, dilation, kernel = layer._updated_padding, layer._stride, layer._dilation, layer.weight.shape[2:]
    return (isinstance(padding, list) and len(padding) == 2 and padding[0] == padding[1] and len(kernel) == 2
            and kernel[0] == kernel[1] and stride[0] == stride[1] and stride[0] in (1, 2)
            and dilation[0] == dilation[1] > 0 and layer._padding_algorithm == 'EXPLICIT'
            and 0 <= 2 * padding[0] <= dilation[0] * (kernel[0] - 1))


def square_geometry(layer):
    """(kernel, stride, padding, dilation) of such a layer."""
    return layer.weight.shape[2], layer._stride[0], layer._updated_padding[0], layer._dilation[0]


class Shape(NamedTuple):
    """Of a depthwise convolution."""

    images: int
    group: int  # images of a job
    channels: int


class Arrangement(NamedTuple):
    """How the loops go through a depthwise convolution."""

    window: Window
    tables: Tables
    shape: Shape


class _Depthwise(Operation):

    def __init__(self, *geometry):
        self.geometry = geometry  # kernel, stride, padding, dilation

    def forward(self, x, weight):
        self.x, self.weight = x, weight = x.contiguous(), weight.contiguous()
        n, c, h, w = x.shape
        shape = Shape(n, compiled.group_size(n, compiled.ROW // (h * w)), c)
        self.arrangement = Arrangement(*square(h, w, *self.geometry, shape.group), shape)
        out = new_tensor([n, c, *[output_size(side, *self.geometry) for side in (h, w)]])
        on_all_cores(_forward, c * -(-n // self.arrangement.shape.group), view(x), view(weight), view(out),
                     self.arrangement)
        return out

    def backward(self, gradient):
        x, weight = self.x, self.weight
        gradient = gradient.contiguous()
        c, groups = x.shape[1], -(-x.shape[0] // self.arrangement.shape.group)
        dx = new_tensor(x.shape) if self.wanted[0] else None
        dweight = np.zeros((groups if self.wanted[1] else 0, weight.size), np.float32)
        on_all_cores(_backward, c * groups, (view(x), view(weight), view(gradient)), EMPTY if dx is None else view(dx),
                     dweight, self.arrangement)
        return [dx, paddle.to_tensor(dweight.sum(0)).reshape(weight.shape) if self.wanted[1] else None]


@jit
def _forward(x, weight, out, arrangement, begin, end):
    """x [N, C, H, W], weight [C, 1, k, k], flattened; a job is a channel of a group of images."""
    w, tables, s = arrangement
    inside, outside, taps = w.height * w.width, w.out_height * w.out_width, len(tables.taps)
    planes, line = np.zeros(w.block, np.float32), np.empty(w.line, np.float32)
    for job in range(begin, end):
        c, first = job % s.channels, job // s.channels * s.group
        count = min(s.group, s.images - first)
        spread(planes, x, nchw(first, count, c, s.channels, inside), w, tables.places, ONE, ZERO, NO_FLOOR)
        convolve(line, weight[c * taps:], planes, tables, w)
        from_line(out, nchw(first, count, c, s.channels, outside), line, w, ONE, ZERO)


@jit
def _backward(arrays, dx, dweight, arrangement, begin, end):
    """arrays: x, weight, the gradient of the output; dx or nothing; dweight [groups, C * taps] or [0, C * taps]."""
    x, weight, d = arrays
    w, tables, s = arrangement
    inside, outside, taps = w.height * w.width, w.out_height * w.out_width, len(tables.taps)
    planes, gradient = np.zeros(w.block, np.float32), np.empty(w.block, np.float32)
    backwards = np.empty(len(weight), np.float32)
    in_order(backwards, weight, tables.order, s.channels)
    for job in range(begin, end):
        c, group = job % s.channels, job // s.channels
        first, line = group * s.group, np.zeros(w.line, np.float32)
        count = min(s.group, s.images - first)
        place = nchw(first, count, c, s.channels, inside)
        copy_to_line(line[w.front:], d, nchw(first, count, c, s.channels, outside), w)
        if len(dweight):
            spread(planes, x, place, w, tables.places, ONE, ZERO, NO_FLOOR)
            add_correlations(dweight[group, c * taps:], line[w.front:], planes, tables, w)
        if len(dx):
            spread_gradient(gradient, backwards[c * taps:], line, tables, w)
            collect(dx, place, w, tables.places, gradient, planes, NO, NO)


class _Pointwise(Operation):
    """With a weight [filters, C, 1, 1] and, if there is one, a bias [filters]."""

    def forward(self, x, weight, *bias):
        self.x, self.weight, *bias = [tensor.contiguous() for tensor in (x, weight, *bias)]
        n, c, h, w = x.shape
        out = new_tensor([n, weight.shape[0], h, w])
        on_all_cores(_multiply, n, addresses([self.x, self.weight, out, *bias]), n, c, weight.shape[0], h * w, False)
        return out

    def backward(self, gradient):
        x, weight = self.x, self.weight
        gradient = gradient.contiguous()
        (n, c, h, w), filters = x.shape, weight.shape[0]
        gradients = [None] * len(self.wanted)
        if self.wanted[0]:
            gradients[0] = new_tensor(x.shape)
            on_all_cores(_multiply, n, addresses([gradient, weight, gradients[0]]), n, filters, c, h * w, True)
        if any(self.wanted[1:]):
            parts = min(n, 64)  # whose sums are put together afterwards, in the same order on any number of cores
            sums = np.zeros((parts, filters * c + filters * (len(self.wanted) > 2)), np.float32)
            on_all_cores(_multiply_weight, parts, addresses([x, gradient]), n, c, filters, h * w, sums)
            both = paddle.to_tensor(sums.sum(0))
            gradients[1:] = [both[:filters * c].reshape(weight.shape), both[filters * c:]][:len(self.wanted) - 1]
        return [gradient if wanted else None for gradient, wanted in zip(gradients, self.wanted)]


@jit
def _multiply(memory, images, channels, filters, pixels, backwards, begin, end):
    """memory: the addresses of x [N, C, pixels], the weight [filters, C] or, backwards, [C, filters], the output
    [N, filters, pixels] and, if there is one, the bias [filters]."""
    x, weight = floats(memory[0], images * channels * pixels), floats(memory[1], filters * channels)
    out = floats(memory[2], images * filters * pixels)
    matrix = np.empty(filters * channels, np.float32)
    if backwards:
        transpose(matrix, weight, channels, filters)
    else:
        matrix[:] = weight
    for image in range(begin, end):
        result = out[image * filters * pixels:][:filters * pixels]
        multiply(result, pixels, matrix, x[image * channels * pixels:], starts_of(channels, pixels), filters, pixels)
        if len(memory) > 3:
            bias = floats(memory[3], filters)
            for o in range(filters):
                row = result[o * pixels:][:pixels]
                for p in range(pixels):
                    row[p] += bias[o]


@jit
def _multiply_weight(memory, images, channels, filters, pixels, sums, begin, end):
    """memory: the addresses of x and of the gradient of the output; a job is a part of the images, sums [parts,
    filters * C] or, with those of a bias behind, [parts, filters * C + filters]."""
    x, gradient = floats(memory[0], images * channels * pixels), floats(memory[1], images * filters * pixels)
    for part in range(begin, end):
        for image in range(images * part // len(sums), images * (part + 1) // len(sums)):
            upstream = gradient[image * filters * pixels:][:filters * pixels]
            multiply_weight(sums[part], upstream, pixels, x[image * channels * pixels:], starts_of(channels, pixels),
                            filters, pixels)
            for o in range(sums.shape[1] - filters * channels):
                row, total = upstream[o * pixels:][:pixels], np.float32(0)
                for p in range(pixels):
                    total += row[p]
                sums[part, filters * channels + o] += total
