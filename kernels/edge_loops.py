"""The compiled passes of edges.py, over images in groups.

Those with the arguments begin and end are called by threads.on_all_cores with a part of their jobs, range(begin, end):
a job is a group of images, mostly for one convolution or one edge. Tensors are given by their addresses. They lie as
[N, C, pixels], NCHW, or, what only these passes read, GROUPED: group after group as [C, images of the group, pixels],
so that a channel of a group is one row.
`tables` holds a (Window, Tables) for each convolution, see windows.pack.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import floats, inner, jit
from kernels.depthwise import add_correlations, convolve, in_order, spread_gradient
from kernels.images import (
    NO,
    ONE,
    YES,
    ZERO,
    Place,
    address,
    collect,
    copy_to_line,
    fill,
    from_line,
    moments_of,
    nchw,
    one_row,
    spread,
    two_sums,
)
from kernels.products import multiply, multiply_weight, transposed
from kernels.vectors import combine_rows
from kernels.windows import unpack

GROUPED, NCHW = np.int64(0), np.int64(1)  # how a tensor lies in memory


class Images(NamedTuple):
    """What the tensors have in common."""

    images: int
    channels: int
    group: int  # images of a group


@inner
def where(order, first, count, channel, channels, pixels):
    """The Place of a channel of the group of images that begins with image `first`."""
    if order == NCHW:
        return nchw(first, count, channel, channels, pixels)
    return Place(first * channels * pixels + channel * count * pixels, pixels, count)


@inner
def gather(row, source, place, pixels, scale, add):
    """row (+)= scale * a channel of a group."""
    for image in range(place.images):
        some, to = source[place.start + image * place.step:][:pixels], row[image * pixels:][:pixels]
        if add:
            for p in range(pixels):
                to[p] += scale * some[p]
        else:
            for p in range(pixels):
                to[p] = scale * some[p]


class Forward(NamedTuple):
    """Addresses of tensors, an array [convolutions] of each kind."""

    x: np.ndarray
    depthwise: np.ndarray
    pointwise: np.ndarray
    out: np.ndarray


@jit
def forward_pass(tensors, order, before, tables, s, moments, begin, end):
    """out = pointwise(depthwise(ReLU(before_0 * x + before_1))).

    tensors: a Forward. order: NCHW or GROUPED, of x. before [convolutions, C, 2]. s: Images. moments: of what comes
    out, [convolutions, groups, C, 2] or, where they are not wanted, [convolutions, 0, C, 2].
    """
    convolutions, channels = len(tensors.x), s.channels
    for job in range(begin, end):
        j, k = job % convolutions, job // convolutions
        (w, t), first = unpack(tables[j]), k * s.group
        count, inside, outside = min(s.group, s.images - first), w.height * w.width, w.out_height * w.out_width
        size, taps = count * outside, len(t.taps)
        x, depthwise = floats(tensors.x[j], s.images * channels * inside), floats(tensors.depthwise[j], channels * taps)
        pointwise = floats(tensors.pointwise[j], channels * channels)
        out = floats(tensors.out[j], s.images * channels * outside)
        planes, line = np.zeros(w.block, np.float32), np.empty(w.line, np.float32)
        between = np.empty(channels * size, np.float32)
        for c in range(channels):
            place = where(order, first, count, c, channels, inside)
            spread(planes, x, place, w, t.places, before[j, c, 0], before[j, c, 1], ZERO)
            convolve(line, depthwise[c * taps:], planes, t, w)
            from_line(between, Place(c * size, outside, count), line, w, ONE, ZERO)
        result = out[first * channels * outside:][:channels * size]
        multiply(result, pointwise, between, channels, channels, size)
        for c in range(channels if moments.shape[1] else 0):
            moments_of(moments[j, k, c], result, one_row(c * size), size)


class Terms(NamedTuple):
    """What is added up on each edge, arrays [edges, operations]."""

    addresses: np.ndarray
    order: np.ndarray


@jit
def add_up(terms, scale, mean, outs, s, pixels, begin, end):
    """out_t = sum_k scale_tk * (f_tk - mean_tk), NCHW; scale, mean [edges, operations, C]; outs [edges]: addresses."""
    edges, operations = terms.addresses.shape
    for job in range(begin, end):
        t, first = job % edges, job // edges * s.group
        count = min(s.group, s.images - first)
        out = floats(outs[t], s.images * s.channels * pixels)
        for c in range(s.channels):
            for k in range(operations):
                place = where(terms.order[t, k], first, count, c, s.channels, pixels)
                source = floats(terms.addresses[t, k], s.images * s.channels * pixels)
                for image in range(count):
                    some = source[place.start + image * place.step:][:pixels]
                    row = out[((first + image) * s.channels + c) * pixels:][:pixels]
                    add_difference(row, scale[t, k, c], some, mean[t, k, c], k > 0)


@inner
def add_difference(row, scale, values, mean, add):
    """row (+)= scale * (values - mean): taking a mean away first keeps digits that a shift would lose."""
    if add:
        for p in range(len(row)):
            row[p] += scale * (values[p] - mean)
    else:
        for p in range(len(row)):
            row[p] = scale * (values[p] - mean)


@jit
def gradient_sums(terms, mean, upstream, s, pixels, sums, begin, end):
    """Add to sums [edges, operations, groups, C, 2] those of d and of d * (f - mean); mean [edges, operations, C];
    upstream [edges]: addresses of d, NCHW."""
    edges, operations = terms.addresses.shape
    for job in range(begin, end):
        t, k = job % edges, job // edges
        first = k * s.group
        count = min(s.group, s.images - first)
        d, f = np.empty(count * pixels, np.float32), np.empty(count * pixels, np.float32)
        total = s.images * s.channels * pixels
        for c in range(s.channels):
            gather(d, floats(upstream[t], total), nchw(first, count, c, s.channels, pixels), pixels, ONE, NO)
            for o in range(operations):
                place = where(terms.order[t, o], first, count, c, s.channels, pixels)
                values = floats(terms.addresses[t, o], total)[place.start:]
                if terms.order[t, o] == NCHW:
                    gather(f, values, Place(0, place.step, count), pixels, ONE, NO)
                    values = f
                two_sums(sums[t, o, k, c], d, values, one_row(0), count * pixels, mean[t, o, c])


class Backward(NamedTuple):
    """Addresses of tensors, an array [convolutions] of each kind; f is the output, d its gradient, before the batch
    norm between them is differentiated. Where x is NCHW all add to the same dx, which is zero before."""

    x: np.ndarray
    depthwise: np.ndarray
    pointwise: np.ndarray
    f: np.ndarray
    d: np.ndarray
    dx: np.ndarray


class Way(NamedTuple):
    """x_order: of x and dx, NCHW or GROUPED; d_order [convolutions]. before [convolutions, C, 2]: scale and shift of x;
    mean [convolutions, C]: of x. coefficients [convolutions, C, 3]: df = c0 * d + c1 * f + c2. x_wanted,
    weights_wanted: which gradients are."""

    x_order: int
    d_order: np.ndarray
    before: np.ndarray
    mean: np.ndarray
    coefficients: np.ndarray
    x_wanted: bool
    weights_wanted: bool


@jit
def backward_pass(tensors, way, tables, s, dweights, sums, begin, end):
    """The way back through forward_pass.

    tensors: a Backward. dweights [groups, convolutions, C * taps + C * C]: for each convolution both gradients. sums
    [convolutions, groups, C, 2]: of the gradient of before_0 * x + before_1, and its product with x - mean; unchanged
    where x is NCHW.
    """
    channels = s.channels
    for k in range(begin, end):
        first = k * s.group
        count = min(s.group, s.images - first)
        for j in range(len(tensors.x)):
            w, t = unpack(tables[j])
            inside, outside, taps = w.height * w.width, w.out_height * w.out_width, len(t.taps)
            size, total = count * outside, s.images * channels
            x, dx = floats(tensors.x[j], total * inside), floats(tensors.dx[j], total * inside)
            f, d = floats(tensors.f[j], total * outside), floats(tensors.d[j], total * outside)
            depthwise = floats(tensors.depthwise[j], channels * taps)
            pointwise = floats(tensors.pointwise[j], channels * channels)
            df, upstream = np.empty(channels * size, np.float32), np.empty(channels * size, np.float32)
            for c in range(channels):
                of_f = where(GROUPED, first, count, c, channels, outside)
                of_d = where(way.d_order[j], first, count, c, channels, outside)
                c0, c1, c2 = way.coefficients[j, c]
                for image in range(count):
                    combine_rows(address(df, c * size + image * outside), address(d, of_d.start + image * of_d.step),
                                 address(f, of_f.start + image * of_f.step), outside, c0, c1, c2)
            multiply(upstream, transposed(pointwise, channels, channels), df, channels, channels, size)
            planes, gradient = np.zeros(w.block, np.float32), np.empty(w.block, np.float32)
            line = np.zeros(w.line, np.float32)
            between = np.empty(channels * size if way.weights_wanted else 0, np.float32)
            backwards = in_order(depthwise, t.order, channels)
            for c in range(channels):
                place = where(way.x_order, first, count, c, channels, inside)
                in_rows = Place(c * size, outside, count)
                spread(planes, x, place, w, t.places, way.before[j, c, 0], way.before[j, c, 1], ZERO)
                if way.weights_wanted:
                    convolve(gradient, depthwise[c * taps:], planes, t, w)
                    from_line(between, in_rows, gradient, w, ONE, ZERO)
                copy_to_line(line[w.front:], upstream, in_rows, w)
                if way.weights_wanted:
                    add_correlations(dweights[k, j, c * taps:], line[w.front:], planes, t, w)
                if way.x_wanted:
                    spread_gradient(gradient, backwards[c * taps:], line, t, w)
                    collect(dx, place, w, t.places, gradient, planes, YES, way.x_order == NCHW)
                    if way.x_order != NCHW:
                        two_sums(sums[j, k, c], dx, x, place, inside, way.mean[j, c])
            if way.weights_wanted:
                multiply_weight(dweights[k, j, channels * taps:], df, between, channels, channels, size)


@jit
def sum_groups(dweights, starts, memory, begin, end):
    """Put the sum over the groups of dweights [groups, convolutions, …] from starts [convolutions, 3] on into the
    tensors at memory [convolutions, 2]."""
    for j in range(begin, end):
        for part in range(2):
            size = starts[j, part + 1] - starts[j, part]
            out = floats(memory[j, part], size)
            fill(out, ZERO)
            for k in range(len(dweights)):
                some = dweights[k, j, starts[j, part]:][:size]
                for i in range(size):
                    out[i] += some[i]
