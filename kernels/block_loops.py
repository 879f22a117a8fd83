"""The compiled passes of blocks.py over images [N, C, H, W], which windows.py arranges in memory. A job is a group of
images; its memory stays in a core's own cache.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import inner, jit
from kernels.depthwise import spread_gradient, up_to_multiple
from kernels.images import ZERO, collect, fill, from_line, moments_of, spread, to_line, two_sums
from kernels.products import correlate, correlate_rows, product, product_of_rows


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
    multiple of 3, [parts, groups * filters of a group * k], both rounded up to multiples of 4 and 3."""

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
    filled_up = up_to_multiple(tables.taps)
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
                    correlate_rows(wanted.depthwise[part, c * len(filled_up):], upstream[c * w.line + w.front:],
                                   planes, filled_up, w.length)
                if wanted.x:
                    spread_gradient(gradient, depthwise_backwards[c * taps:], upstream[c * w.line:], tables, w)
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
