"""The compiled passes of blocks.py over images [N, C, H, W].

How an image lies in memory while it is convolved, here 3x3 with padding 1: each row behind its left padding, the rows
of a plane and the planes of a group of images one after the other. The zeros that end a row begin the next one, and
those below an image are those above the next:

    0 0 0 0 | 0 a b c | 0 d e f | 0 0 0 0 | 0 g h i | ...            pitch 4, rows 3

so each tap of the kernel is a shift along one long row: the product of the weights and the shifted rows (products.py)
gives the outputs in the same arrangement, a `line`, with numbers between its rows that nobody reads. For a stride s the
plane is cut into s * s planes, by row and column modulo s, of which a tap reads one.

A job is a group of images. Its memory stays in a core's own cache.
"""
import functools
from typing import NamedTuple

import numpy as np

from kernels.compiled import fill, floats, jit
from kernels.products import (
    SLACK,
    add_masked_row,
    combine_rows,
    correlate,
    correlate_rows,
    masked_row,
    product,
    product_of_rows,
    scale_row,
)

ZERO, ONE, LOWEST, NO_FLOOR = np.float32(0), np.float32(1), np.float32(-3.4e38), np.float32(-np.inf)


class Window(NamedTuple):
    """The arrangement of a group of images for one convolution or pooling, in elements."""

    height: int
    width: int
    out_height: int
    out_width: int
    pitch: int  # from one row of a plane to the next
    rows: int  # of an image in a plane
    column_stride: int
    length: int  # of a line: to the end of the last output of the group
    span: int  # of a plane: to the end of the last pixel of the group
    plane: int  # from one plane to the next
    block: int  # from one channel's planes to the next one's
    front: int  # zeros in front of a line that is read backwards
    line: int  # from one line to the next


class Tables(NamedTuple):
    """places: where the pixels column, column + column_stride, ... of a row of the first image begin in the planes,
    [row * column_stride + column], -1 where no tap reads them. taps: where each tap reads in a channel's planes.

    Backwards a plane is the product of the lines with the taps that read it: planes[i] begins there and has the taps
    order[starts[i]:starts[i + 1]], which read a line, behind its front, at backwards[starts[i]:starts[i + 1]].
    """

    places: np.ndarray
    taps: np.ndarray
    planes: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    backwards: np.ndarray


class Shape(NamedTuple):
    """Of a convolution; `first`: the place of its filters among those of the tensor [N, total, H, W] they go to."""

    images: int
    group: int  # images of a job
    channels: int
    filters: int
    groups: int
    first: int
    total: int


@functools.lru_cache(1024)
def window(height, width, taps, stride, padding, out, images):
    """(Window, Tables) of a group of `images` images; taps: (row, column) of each, in padded pixels, where the window
    of the first output begins at (0, 0); out: height and width of the output."""
    if taps == ((0, 0),) and (height, width) == out:  # a pointwise convolution: the image is one row
        height, width = 1, height * width
        out = height, width
    sides = []
    for k, size in enumerate((height, width)):
        last = (out[k] - 1) * stride[k] + max(tap[k] for tap in taps)  # that is read, must be a zero if it is outside
        sides.append(max(-(-(size + padding[k]) // stride[k]), out[k], (last - padding[k]) // stride[k] + 1))
    rows, pitch = sides

    def place(row, column):  # (plane, position in it) of a padded pixel
        return row % stride[0] * stride[1] + column % stride[1], row // stride[0] * pitch + column // stride[1]
    read = [place(*tap) for tap in taps]
    front = max(shift for _, shift in read)
    length, span = ((images - 1) * rows + out[0]) * pitch, images * rows * pitch
    plane = max(length, span) + front + 2 * SLACK
    used = sorted({number for number, _ in read})
    places = [place(row + padding[0], column + padding[1])
              for row in range(height) for column in range(min(stride[1], width))]
    order = sorted(range(len(taps)), key=lambda tap: read[tap][0])
    found = [[number for number, _ in read].count(number) for number in used]
    tables = Tables(*[np.array(values, np.int64) for values in (
        [used.index(number) * plane + shift if number in used else -1 for number, shift in places],
        [used.index(number) * plane + shift for number, shift in read],
        [used.index(number) * plane for number in used], np.cumsum([0] + found), order,
        [front - read[tap][1] for tap in order])])
    return Window(height, width, *out, pitch, rows, min(stride[1], width), length, span, plane, len(used) * plane,
                  front, front + max(length, span) + 2 * SLACK), tables


# ---------------------------------------------------------------------------------------------------------------------
# Between images and planes or lines. `start`: of a channel of the first image, `step`: from an image to the next
# ---------------------------------------------------------------------------------------------------------------------


@jit
def address(array, position):
    """Of array[position]; a slice would take numba longer than a short row."""
    return array.ctypes.data + 4 * position


@jit
def spread(planes, x, start, step, count, w, places, scale, shift, floor):
    """planes = max(floor, scale * x + shift)."""
    stride = w.column_stride
    for image in range(count):
        for row in range(w.height):
            for column in range(stride):
                at = places[row * stride + column]
                if at >= 0:
                    first, at = start + image * step + row * w.width, at + image * w.rows * w.pitch
                    if stride == 1:
                        scale_row(address(planes, at), address(x, first), w.width, scale, shift, floor)
                    else:
                        size = (w.width - column + stride - 1) // stride
                        some, to = x[first + column:first + w.width], planes[at:at + size]
                        for k in range(size):
                            value = scale * some[k * stride] + shift
                            to[k] = floor if value < floor else value


@jit
def collect(dx, start, step, count, w, places, gradient, values, masked, add):
    """dx (+)= the gradient of the planes, where their values are above 0 if it is masked; the way back of spread."""
    stride = w.column_stride
    for image in range(count):
        for row in range(w.height):
            for column in range(stride):
                at = places[row * stride + column]
                first, size = start + image * step + row * w.width, (w.width - column + stride - 1) // stride
                to = dx[first + column:first + w.width]
                if at < 0:
                    for k in range(0 if add else size):
                        to[k * stride] = 0
                    continue
                at += image * w.rows * w.pitch
                lowest = ZERO if masked else LOWEST
                if stride == 1 and add:
                    add_masked_row(address(dx, first), address(gradient, at), address(values, at), address(dx, first),
                                   w.width, lowest)
                elif stride == 1:
                    masked_row(address(dx, first), address(gradient, at), address(values, at), w.width, lowest)
                else:
                    some, value = gradient[at:at + size], values[at:at + size]
                    for k in range(size):
                        given = some[k] if value[k] > lowest else ZERO
                        to[k * stride] = to[k * stride] + given if add else given


@jit
def from_line(out, start, step, line, count, w, scale, shift):
    """out = scale * line + shift."""
    for image in range(count):
        for row in range(w.out_height):
            at, to = (image * w.rows + row) * w.pitch, start + image * step + row * w.out_width
            scale_row(address(out, to), address(line, at), w.out_width, scale, shift, NO_FLOOR)


@jit
def to_line(line, d, f, start, step, count, w, c0, c1, c2):
    """line = c0 * d + c1 * f + c2, with what lies between the rows as it was."""
    for image in range(count):
        for row in range(w.out_height):
            at, first = (image * w.rows + row) * w.pitch, start + image * step + row * w.out_width
            combine_rows(address(line, at), address(d, first), address(f, first), w.out_width, c0, c1, c2)


@jit
def moments_of(result, x, start, step, count, pixels):
    """result = mean and sum of squared deviations of a channel."""
    total = ZERO
    for image in range(count):
        some = x[start + image * step:][:pixels]
        for p in range(pixels):
            total += some[p]
    mean, squares = total / np.float32(count * pixels), ZERO
    for image in range(count):
        some = x[start + image * step:][:pixels]
        for p in range(pixels):
            squares += (some[p] - mean) * (some[p] - mean)
    result[0], result[1] = mean, squares


@jit
def two_sums(result, d, f, start, step, count, pixels, mean):
    """Add the sums of d and of d * (f - mean) of a channel to result."""
    total = both = ZERO
    for image in range(count):
        one, other = d[start + image * step:][:pixels], f[start + image * step:][:pixels]
        for p in range(pixels):
            total += one[p]
            both += one[p] * (other[p] - mean)
    result[0] += total
    result[1] += both


@jit
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
    to a multiple of 4, k] with k = channels of a group (* taps), the output."""

    x: np.ndarray
    depthwise: np.ndarray
    weight: np.ndarray
    out: np.ndarray


@jit
def forward_pass(arrays, before, floor, after, w, tables, s, moments, begin, end):
    """out = after_0 * f + after_1 with f = convolution(max(floor, before_0 * x + before_1)).

    The convolution: a dense one, or a depthwise one with a pointwise one behind it. before [C, 2], after [filters, 2];
    moments: [jobs, filters, 2], of the output, or [0, 0, 0].
    """
    x, depthwise, weight, out = arrays
    inside, outside, separable = w.height * w.width, w.out_height * w.out_width, len(depthwise) > 0
    ours, theirs = s.filters // s.groups, s.channels // s.groups
    planes = np.zeros(w.block * (1 if separable else s.channels), np.float32)
    between = np.empty(w.line * (s.channels if separable else 0), np.float32)
    lines = np.empty(w.line * (ours + 3), np.float32)
    source, step, taps = (between, w.line, tables.taps[:1] * 0) if separable else (planes, w.block, tables.taps)
    offsets = offsets_of(taps, theirs, step, 1)
    for job in range(begin, end):
        first = job * s.group
        count = min(s.group, s.images - first)
        for c in range(s.channels):
            some = planes if separable else planes[c * w.block:]
            spread(some, x, (first * s.channels + c) * inside, s.channels * inside, count, w, tables.places,
                   before[c, 0], before[c, 1], floor)
            if separable:
                correlate(between[c * w.line:], depthwise[c * len(tables.taps):], planes, tables.taps, w.length)
        for group in range(s.groups):
            product(lines, w.line, weight[group * ((ours + 3) // 4 * 4) * len(offsets):],
                    source[group * theirs * step:], offsets, ours, w.length)
            for o in range(ours):
                c = group * ours + o
                start, to_next = (first * s.total + s.first + c) * outside, s.total * outside
                from_line(out, start, to_next, lines[o * w.line:], count, w, after[c, 0], after[c, 1])
                if len(moments):
                    moments_of(moments[job, c], out, start, to_next, count, outside)


class Backward(NamedTuple):
    """Flattened arrays: x, both weights, f, the gradient d behind it and that of x.

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


class Wanted(NamedTuple):
    """x: whether dx is wanted; add: to what is there. moments: whether sums [parts, C, 2] of dx and of dx * (x - mean)
    are. weights: whether partial sums of the weights' gradients are, [parts, C * taps] with the taps rounded up to a
    multiple of 6, [parts, groups * filters of a group * k], both rounded up to multiples of 4 and 3."""

    x: bool
    add: bool
    moments: bool
    weights: bool
    sums: np.ndarray
    depthwise: np.ndarray
    weight: np.ndarray


@jit
def backward_pass(arrays, before, floor, coefficients, mean, w, tables, s, wanted, begin, end):
    """The way back through forward_pass, from df = c0 * d + c1 * f + c2, coefficients [filters, 3].

    The gradient dx is that of before_0 * x + before_1. A job is a part of the groups of images, as many as there are
    partial sums.
    """
    x, depthwise, depthwise_backwards, backwards, f, d, dx = arrays
    inside, outside, separable = w.height * w.width, w.out_height * w.out_width, len(depthwise) > 0
    ours, theirs, taps = s.filters // s.groups, s.channels // s.groups, len(tables.taps)
    # of the filters, with rows of zeros up to a multiple of 4
    lines = np.zeros(w.line * s.groups * ((ours + 3) // 4 * 4), np.float32)
    planes = np.zeros(w.block * (1 if separable else s.channels), np.float32)
    gradient = np.empty(w.block * (1 if separable else theirs + 3), np.float32)
    between = np.zeros(w.line * (s.channels if separable else 0), np.float32)  # what the depthwise convolution gives
    upstream = np.zeros(w.line * (s.channels + 3 if separable else 0), np.float32)  # and its gradient
    source, step = (between, w.line) if separable else (planes, w.block)
    offsets = offsets_of(tables.taps[:1] * 0 if separable else tables.taps, theirs, step, 3)
    per_channel = offsets_of(tables.taps, 1, 0, 6)
    for part in range(begin, end):
        jobs = -(-s.images // s.group)
        parts = len(wanted.sums)
        for job in range(jobs * part // parts, jobs * (part + 1) // parts):
            first = job * s.group
            count = min(s.group, s.images - first)
            if count < s.group:
                fill(lines, ZERO)
            for c in range(s.filters):
                row = c // ours * ((ours + 3) // 4 * 4) + c % ours
                to_line(lines[row * w.line + w.front:], d, f, (first * s.total + s.first + c) * outside,
                        s.total * outside, count, w, coefficients[c, 0], coefficients[c, 1], coefficients[c, 2])
            for c in range(0 if separable else s.channels):
                spread(planes[c * w.block:], x, (first * s.channels + c) * inside, s.channels * inside, count, w,
                       tables.places, before[c, 0], before[c, 1], floor)
            if separable:
                product(upstream[w.front:], w.line, backwards, lines[w.front:],
                        offsets_of(tables.taps[:1] * 0, s.filters, w.line, 1), s.channels, w.length)
            for c in range(s.channels if separable else 0):
                start, to_next = (first * s.channels + c) * inside, s.channels * inside
                spread(planes, x, start, to_next, count, w, tables.places, before[c, 0], before[c, 1], floor)
                if wanted.weights:
                    correlate(between[c * w.line:], depthwise[c * taps:], planes, tables.taps, w.length)
                    correlate_rows(wanted.depthwise[part, c * len(per_channel):], upstream[c * w.line + w.front:],
                                   planes, per_channel, w.length)
                if wanted.x:
                    for k in range(len(tables.planes)):
                        correlate(gradient[tables.planes[k]:], depthwise_backwards[c * taps + tables.starts[k]:],
                                  upstream[c * w.line:], tables.backwards[tables.starts[k]:tables.starts[k + 1]],
                                  w.span)
                    collect(dx, start, to_next, count, w, tables.places, gradient, planes, floor == 0, wanted.add)
                    if wanted.moments:
                        two_sums(wanted.sums[part, c], dx, x, start, to_next, count, inside, mean[c])
            for group in range(s.groups):
                theirs_lines = lines[group * ((ours + 3) // 4 * 4) * w.line:]
                if wanted.weights:
                    product_of_rows(wanted.weight[part, group * ((ours + 3) // 4 * 4) * len(offsets):],
                                    theirs_lines[w.front:], w.line, source[group * theirs * step:], offsets, ours,
                                    w.length)
                if separable or not wanted.x:
                    continue
                at = group * ((theirs + 3) // 4 * 4) * ours * taps
                for k in range(len(tables.planes)):
                    some = tables.backwards[tables.starts[k]:tables.starts[k + 1]]
                    product(gradient[tables.planes[k]:], w.block, backwards[at:], theirs_lines,
                            offsets_of(some, ours, w.line, 1), theirs, w.span)
                    at += ((theirs + 3) // 4 * 4) * ours * len(some)
                for k in range(theirs):
                    c = group * theirs + k
                    start, to_next = (first * s.channels + c) * inside, s.channels * inside
                    collect(dx, start, to_next, count, w, tables.places, gradient[k * w.block:],
                            planes[c * w.block:], floor == 0, wanted.add)
                    if wanted.moments:
                        two_sums(wanted.sums[part, c], dx, x, start, to_next, count, inside, mean[c])


# ---------------------------------------------------------------------------------------------------------------------
# Poolings: a job is a channel of a group of images
# ---------------------------------------------------------------------------------------------------------------------


@jit
def pool_forward(x, out, divisors, average, weight, add, w, tables, s, begin, end):
    """out (+)= weight * pool(x); divisors [output pixels]: 1 / pixels of each window of an average, 1 for a
    maximum."""
    inside, outside = w.height * w.width, w.out_height * w.out_width
    planes, line = np.empty(w.block, np.float32), np.empty(w.line, np.float32)
    fill(planes, ZERO if average else LOWEST)
    ones = np.ones(len(tables.taps), np.float32)
    for job in range(begin, end):
        first, c = job // s.channels * s.group, job % s.channels
        count = min(s.group, s.images - first)
        spread(planes, x, (first * s.channels + c) * inside, s.channels * inside, count, w, tables.places,
               ONE, ZERO, LOWEST)
        if average:
            correlate(line, ones, planes, tables.taps, w.length)
        else:
            largest(line, planes, tables.taps, w.length)
        for image in range(count):
            for row in range(w.out_height):
                at, to = (image * w.rows + row) * w.pitch, ((first + image) * s.channels + c) * outside
                some, target = line[at:at + w.out_width], out[to + row * w.out_width:][:w.out_width]
                factors = divisors[row * w.out_width:][:w.out_width]
                if add:
                    for k in range(w.out_width):
                        target[k] += weight * factors[k] * some[k]
                else:
                    for k in range(w.out_width):
                        target[k] = weight * factors[k] * some[k]


@jit
def largest(line, planes, taps, length):
    """line = the largest pixel of each window."""
    to, last = line[:length], len(taps) - 1
    fill(to, LOWEST)
    for k in range(0, len(taps), 3):  # of three at once LLVM makes vector operations, of one it does not
        x, y = planes[taps[k]:][:length], planes[taps[min(k + 1, last)]:][:length]
        z = planes[taps[min(k + 2, last)]:][:length]
        for p in range(length):
            value, other = to[p], x[p]
            value = value if value > other else other
            other = y[p]
            value = value if value > other else other
            other = z[p]
            to[p] = value if value > other else other


@jit
def give_to_largest(gradient, left, line, planes, taps, length):
    """Give what is left of each output's gradient to the first pixel of its window that is as large."""
    fill(gradient, ZERO)
    for k in range(len(taps)):
        some, to = planes[taps[k]:][:length], gradient[taps[k]:][:length]
        for p in range(length):
            given = left[p] if some[p] == line[p] else ZERO
            to[p] += given
            left[p] -= given


@jit
def pool_backward(x, d, dx, divisors, average, weight, add, w, tables, s, products, begin, end):
    """dx (+)= weight * g with g the gradient of x behind pool(x); products [jobs] = sum(g * x)."""
    inside, outside = w.height * w.width, w.out_height * w.out_width
    planes, gradient = np.empty(w.block, np.float32), np.zeros(w.block, np.float32)
    line, values, ones = np.zeros(w.line, np.float32), np.empty(w.line, np.float32), np.ones(len(tables.taps),
                                                                                             np.float32)
    fill(planes, ZERO if average else LOWEST)
    for job in range(begin, end):
        first, c = job // s.channels * s.group, job % s.channels
        count = min(s.group, s.images - first)
        start, step = (first * s.channels + c) * inside, s.channels * inside
        fill(line, ZERO)
        for image in range(count):
            for row in range(w.out_height):
                at, to = (image * w.rows + row) * w.pitch + w.front, ((first + image) * s.channels + c) * outside
                some, target = d[to + row * w.out_width:][:w.out_width], line[at:at + w.out_width]
                factors = divisors[row * w.out_width:][:w.out_width]
                for k in range(w.out_width):
                    target[k] = factors[k] * some[k]
        spread(planes, x, start, step, count, w, tables.places, ONE, ZERO, LOWEST)
        if average:
            for k in range(len(tables.planes)):
                correlate(gradient[tables.planes[k]:], ones, line,
                          tables.backwards[tables.starts[k]:tables.starts[k + 1]], w.span)
        else:
            largest(values, planes, tables.taps, w.length)
            give_to_largest(gradient, line[w.front:], values, planes, tables.taps, w.length)
        total = ZERO
        for k in range(len(tables.planes)):
            given, some = gradient[tables.planes[k]:][:w.span], planes[tables.planes[k]:][:w.span]
            for p in range(w.span):
                total += given[p] * some[p]
                given[p] *= weight
        products[job] = total
        collect(dx, start, step, count, w, tables.places, gradient, planes, False, add)


# ---------------------------------------------------------------------------------------------------------------------
# Weighted sums of tensors [N, C, pixels]; a job is an image, or a part of the images
# ---------------------------------------------------------------------------------------------------------------------


@jit
def add_up(addresses, scale, shift, out, add, images, begin, end):
    """out (+)= sum_t scale_t * term_t + shift; addresses of the terms, scale [terms, C], shift [C]."""
    channels = len(shift)
    pixels = len(out) // (images * channels)
    for row in range(begin * channels, end * channels):
        to, c = out[row * pixels:][:pixels], row % channels
        if not add:
            fill(to, shift[c])
        for t in range(len(addresses)):
            some, factor = floats(addresses[t], len(out))[row * pixels:][:pixels], scale[t, c]
            for p in range(pixels):
                to[p] += factor * some[p]


@jit
def gradient_sums(addresses, mean, d, images, sums, begin, end):
    """sums [parts, terms, C, 2] of d and of d * (term - mean); mean [terms, C]."""
    channels, parts = mean.shape[1], len(sums)
    pixels = len(d) // (images * channels)
    for part in range(begin, end):
        for t in range(len(addresses)):
            term = floats(addresses[t], len(d))
            for image in range(images * part // parts, images * (part + 1) // parts):
                for c in range(channels):
                    two_sums(sums[part, t, c], d, term, (image * channels + c) * pixels, 0, 1, pixels, mean[t, c])
