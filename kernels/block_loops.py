"""The compiled passes of blocks.py over images [N, C, H, W], which windows.py arranges in memory, group of images by
group: what they need of a group stays in a core's own cache.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import inner, jit
from kernels.depthwise import add_correlations, convolve, spread_gradient
from kernels.images import ZERO, collect, fill, from_line, moments_of, nchw, spread, to_line, two_sums
from kernels.products import product, product_of_rows


@inner
def offsets_of(taps, channels, block, multiple):
    """Where the product reads tap by tap of each channel; filled up to a multiple."""
    count = channels * len(taps)
    result = np.zeros(-(-count // multiple) * multiple, np.int64)
    for channel in range(channels):
        for tap in range(len(taps)):
            result[channel * len(taps) + tap] = channel * block + taps[tap]
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions
# ---------------------------------------------------------------------------------------------------------------------


class Forward(NamedTuple):
    """Flattened arrays: x, the depthwise weight [C, taps] or nothing, the weight [groups, filters of a group filled up
    to a multiple of 4, k] with k = channels of a group (* taps), the output [N, total, H, W]; scale and shift of x,
    [C, 2], and of the output, [total, 2]; the moments [jobs, filters, 2] of the output, or [0, 0, 0]."""

    x: np.ndarray
    depthwise: np.ndarray
    weight: np.ndarray
    out: np.ndarray
    before: np.ndarray
    after: np.ndarray
    moments: np.ndarray


@jit
def forward_pass(arrays, floor, arrangement, begin, end):
    """out = after_0 * f + after_1 with f = convolution(max(floor, before_0 * x + before_1)), a dense convolution, or a
    depthwise one with a pointwise one behind it. arrays: a Forward."""
    w, tables, s = arrangement
    inside, outside, separable = w.height * w.width, w.out_height * w.out_width, len(arrays.depthwise) > 0
    filters, inputs = s.filters // s.groups, s.channels // s.groups  # of a group
    planes = np.zeros(w.block * (1 if separable else s.channels), np.float32)
    between = np.empty(w.line * (s.channels if separable else 0), np.float32)
    lines = np.empty(w.line * (filters + 3), np.float32)
    source, step, taps = (between, w.line, tables.taps[:1] * 0) if separable else (planes, w.block, tables.taps)
    offsets = offsets_of(taps, inputs, step, 1)
    for job in range(begin, end):
        first = job * s.group
        count = min(s.group, s.images - first)
        for c in range(s.channels):
            spread(planes if separable else planes[c * w.block:], arrays.x, nchw(first, count, c, s.channels, inside),
                   w, tables.places, arrays.before[c, 0], arrays.before[c, 1], floor)
            if separable:
                convolve(between[c * w.line:], arrays.depthwise[c * len(tables.taps):], planes, tables, w)
        for group in range(s.groups):
            product(lines, w.line, arrays.weight[group * multiple_of_4(filters) * len(offsets):],
                    source[group * inputs * step:], offsets, filters, w.length)
            for filter_ in range(filters):
                c = group * filters + filter_
                place = nchw(first, count, s.first + c, s.total, outside)
                from_line(arrays.out, place, lines[filter_ * w.line:], w, arrays.after[s.first + c, 0],
                          arrays.after[s.first + c, 1])
                if len(arrays.moments):
                    moments_of(arrays.moments[job, c], arrays.out, place, outside)


@inner
def multiple_of_4(count):
    return (count + 3) // 4 * 4


class Backward(NamedTuple):
    """Flattened arrays: x, the depthwise weight, f, the gradient d behind it and that of x; [C, 2] scale and shift of
    x, [total, 3] coefficients of df, [C] means of x.

    backwards: the weight as the way back to the pixels needs it: for each group, for each plane, [channels of the group
    filled up to a multiple of 4, filters of the group * taps of the plane]; the depthwise one as [C, taps] in the order
    of Tables.order.
    """

    x: np.ndarray
    depthwise: np.ndarray
    depthwise_backwards: np.ndarray
    backwards: np.ndarray
    f: np.ndarray
    d: np.ndarray
    dx: np.ndarray
    before: np.ndarray
    coefficients: np.ndarray
    mean: np.ndarray


class Wanted(NamedTuple):
    """x: whether dx is wanted; add: to what is there. moments: whether sums [parts, C, 2] of dx and of dx * (x - mean)
    are. weights: whether partial sums of the weights' gradients are, `depthwise` and `weight`, [parts, size of the
    Layout of each]."""

    x: bool
    add: bool
    moments: bool
    weights: bool
    sums: np.ndarray
    depthwise: np.ndarray
    weight: np.ndarray


@jit
def backward_pass(arrays, floor, arrangement, wanted, begin, end):
    """The way back through forward_pass, from df = c0 * d + c1 * f + c2. arrays: a Backward.

    The gradient dx is that of before_0 * x + before_1. A job is a part of the groups of images; there are as many as
    partial sums.
    """
    w, tables, s = arrangement
    outside, separable = w.out_height * w.out_width, len(arrays.depthwise) > 0
    filters, inputs = s.filters // s.groups, s.channels // s.groups  # of a group
    lines = np.zeros(w.line * s.groups * multiple_of_4(filters), np.float32)  # of df, and rows of zeros
    planes = np.zeros(w.block * (1 if separable else s.channels), np.float32)
    gradient = np.empty(w.block * (1 if separable else inputs + 3), np.float32)
    between = np.zeros(w.line * (s.channels if separable else 0), np.float32)  # what the depthwise convolution gives
    upstream = np.zeros(w.line * (s.channels + 3 if separable else 0), np.float32)  # and its gradient
    source, step = (between, w.line) if separable else (planes, w.block)
    offsets = offsets_of(tables.taps[:1] * 0 if separable else tables.taps, inputs, step, 3)
    image_groups, parts = -(-s.images // s.group), len(wanted.sums)
    for part in range(begin, end):
        fill(wanted.depthwise[part], ZERO)
        fill(wanted.weight[part], ZERO)
        for number in range(image_groups * part // parts, image_groups * (part + 1) // parts):
            first = number * s.group
            count = min(s.group, s.images - first)
            if count < s.group:
                fill(lines, ZERO)
            for c in range(s.filters):
                row = c // filters * multiple_of_4(filters) + c % filters
                to_line(lines[row * w.line + w.front:], arrays.d, arrays.f,
                        nchw(first, count, s.first + c, s.total, outside), w, arrays.coefficients[s.first + c])
            if separable:
                depthwise_backward(arrays, floor, arrangement, wanted, first, part, (planes, gradient, between,
                                                                                    upstream, lines))
            else:
                dense_backward(arrays, floor, arrangement, wanted, first, part, (planes, gradient, lines))
            for group in range(s.groups if wanted.weights else 0):
                product_of_rows(wanted.weight[part, group * multiple_of_4(filters) * len(offsets):],
                                lines[group * multiple_of_4(filters) * w.line + w.front:], w.line,
                                source[group * inputs * step:], offsets, filters, w.length)


@inner
def depthwise_backward(arrays, floor, arrangement, wanted, first, part, memory):
    """For a group of images, the first one's number: from the gradient of the pointwise convolution behind it; fills
    `between`, its input."""
    w, tables, s = arrangement
    planes, gradient, between, upstream, lines = memory
    inside, taps = w.height * w.width, len(tables.taps)
    product(upstream[w.front:], w.line, arrays.backwards, lines[w.front:],
            offsets_of(tables.taps[:1] * 0, s.filters, w.line, 1), s.channels, w.length)
    for c in range(s.channels):
        place = nchw(first, min(s.group, s.images - first), c, s.channels, inside)
        spread(planes, arrays.x, place, w, tables.places, arrays.before[c, 0], arrays.before[c, 1], floor)
        if wanted.weights:
            convolve(between[c * w.line:], arrays.depthwise[c * taps:], planes, tables, w)
            add_correlations(wanted.depthwise[part, c * taps:], upstream[c * w.line + w.front:], planes, tables, w)
        if wanted.x:
            spread_gradient(gradient, arrays.depthwise_backwards[c * taps:], upstream[c * w.line:], tables, w)
            give_to_input(arrays, floor, arrangement, wanted, part, place, (c, gradient, planes))


@inner
def dense_backward(arrays, floor, arrangement, wanted, first, part, memory):
    """For a group of images, the first one's number; fills `planes`, the input of the convolution."""
    w, tables, s = arrangement
    planes, gradient, lines = memory
    inside, taps = w.height * w.width, len(tables.taps)
    filters, inputs = s.filters // s.groups, s.channels // s.groups  # of a group
    count = min(s.group, s.images - first)
    for c in range(s.channels):
        spread(planes[c * w.block:], arrays.x, nchw(first, count, c, s.channels, inside), w, tables.places,
               arrays.before[c, 0], arrays.before[c, 1], floor)
    for group in range(s.groups if wanted.x else 0):
        at = group * multiple_of_4(inputs) * filters * taps
        for k in range(len(tables.planes)):
            some = tables.backwards[tables.starts[k]:tables.starts[k + 1]]
            product(gradient[tables.planes[k]:], w.block, arrays.backwards[at:],
                    lines[group * multiple_of_4(filters) * w.line:], offsets_of(some, filters, w.line, 1), inputs,
                    w.span)
            at += multiple_of_4(inputs) * filters * len(some)
        for k in range(inputs):
            c = group * inputs + k
            give_to_input(arrays, floor, arrangement, wanted, part, nchw(first, count, c, s.channels, inside),
                          (c, gradient[k * w.block:], planes[c * w.block:]))


@inner
def give_to_input(arrays, floor, arrangement, wanted, part, place, channel):
    """Write the gradient of a channel's planes to dx, and sum it; channel: its number, the gradient, the planes."""
    w, tables, _ = arrangement
    c, gradient, planes = channel
    collect(arrays.dx, place, w, tables.places, gradient, planes, floor == 0, wanted.add)
    if wanted.moments:
        two_sums(wanted.sums[part, c], arrays.dx, arrays.x, place, w.height * w.width, arrays.mean[c])


# ---------------------------------------------------------------------------------------------------------------------
# Gradients of weights
# ---------------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Where the rows of a weight's gradient lie in a partial sum, whose rows and columns are filled up."""

    groups: int
    rows: int  # of a group
    columns: int
    filled_rows: int  # of a group
    filled_columns: int

    @property
    def size(self):
        """Elements of a partial sum."""
        return self.groups * self.filled_rows * self.filled_columns


@jit
def add_parts(parts, layout, out, begin, end):
    """out [groups * rows, columns] = the sum of the parts [parts, size], of a Layout; a job is a row."""
    rows, columns = layout.rows, layout.columns
    for row in range(begin, end):
        at = (row // rows * layout.filled_rows + row % rows) * layout.filled_columns
        to = out[row * columns:][:columns]
        for part in range(len(parts)):
            some = parts[part, at:][:columns]
            for k in range(columns):
                to[k] = some[k] if part == 0 else to[k] + some[k]
