"""The compiled poolings and weighted sums of blocks.py."""
from typing import NamedTuple

import numpy as np

from kernels.compiled import floats, jit
from kernels.depthwise import convolve, spread_gradient
from kernels.images import (
    LOWEST,
    NO_FLOOR,
    ONE,
    ZERO,
    collect,
    fill,
    give_to_largest,
    largest,
    nchw,
    one_row,
    spread,
    two_sums,
)

# ---------------------------------------------------------------------------------------------------------------------
# Poolings: a job is a channel of a group of images
# ---------------------------------------------------------------------------------------------------------------------


class Pool(NamedTuple):
    """average: True for an average, False for a maximum. divisors [output pixels]: 1 / pixels of each window of an
    average, 1 for a maximum. weight: the result is multiplied by it. add: to what is there."""

    average: bool
    divisors: np.ndarray
    weight: np.float32
    add: bool


@jit
def pool_forward(x, out, pool, arrangement, begin, end):
    """out (+)= weight * pool(x)."""
    w, tables, s = arrangement
    inside, outside = w.height * w.width, w.out_height * w.out_width
    planes, line = np.empty(w.block, np.float32), np.empty(w.line, np.float32)
    fill(planes, ZERO if pool.average else LOWEST)
    floor = NO_FLOOR if pool.average else LOWEST
    ones = np.ones(len(tables.taps), np.float32)
    for job in range(begin, end):
        first, c = job // s.channels * s.group, job % s.channels
        count = min(s.group, s.images - first)
        spread(planes, x, nchw(first, count, c, s.channels, inside), w, tables.places, ONE, ZERO, floor)
        if pool.average:
            convolve(line, ones, planes, tables, w)
        else:
            largest(line, planes, tables.taps, w.length)
        place = nchw(first, count, c, s.channels, outside)
        for image in range(count):
            for row in range(w.out_height):
                at, pixel = image * w.image + row * w.pitch, row * w.out_width
                some, to = line[at:at + w.out_width], out[place.start + image * place.step + pixel:][:w.out_width]
                factors = pool.divisors[pixel:][:w.out_width]
                if pool.add:
                    for k in range(w.out_width):
                        to[k] += pool.weight * factors[k] * some[k]
                else:
                    for k in range(w.out_width):
                        to[k] = pool.weight * factors[k] * some[k]


@jit
def pool_backward(x, d, dx, pool, arrangement, products, begin, end):
    """dx (+)= weight * g with g the gradient of x behind pool(x); products [jobs] = sum(g * x)."""
    w, tables, s = arrangement
    inside, outside = w.height * w.width, w.out_height * w.out_width
    planes, gradient = np.empty(w.block, np.float32), np.zeros(w.block, np.float32)
    line, values = np.zeros(w.line, np.float32), np.empty(w.line, np.float32)
    ones = np.ones(len(tables.taps), np.float32)
    fill(planes, ZERO if pool.average else LOWEST)
    floor = NO_FLOOR if pool.average else LOWEST
    for job in range(begin, end):
        first, c = job // s.channels * s.group, job % s.channels
        count = min(s.group, s.images - first)
        fill(line, ZERO)
        place = nchw(first, count, c, s.channels, outside)
        for image in range(count):
            for row in range(w.out_height):
                at, pixel = image * w.image + row * w.pitch + w.front, row * w.out_width
                some, to = d[place.start + image * place.step + pixel:][:w.out_width], line[at:at + w.out_width]
                factors = pool.divisors[pixel:][:w.out_width]
                for k in range(w.out_width):
                    to[k] = factors[k] * some[k]
        place = nchw(first, count, c, s.channels, inside)
        spread(planes, x, place, w, tables.places, ONE, ZERO, floor)
        if pool.average:
            spread_gradient(gradient, ones, line, tables, w)
        else:
            largest(values, planes, tables.taps, w.length)
            give_to_largest(gradient, line[w.front:], values, planes, tables.taps, w.length)
        total = ZERO
        for plane in range(len(tables.planes)):
            given, some = gradient[tables.planes[plane]:][:w.span], planes[tables.planes[plane]:][:w.span]
            for p in range(w.span):
                total += given[p] * some[p]
                given[p] *= pool.weight
        products[job] = total
        collect(dx, place, w, tables.places, gradient, planes, False, pool.add)


# ---------------------------------------------------------------------------------------------------------------------
# Weighted sums of tensors [N, C, pixels]; a job is an image, or a part of the images
# ---------------------------------------------------------------------------------------------------------------------


@jit
def add_up(addresses, affine, out, add, images, begin, end):
    """out (+)= sum_t affine_t0 * term_t + affine_t1; addresses of the terms, affine [terms, C, 2]."""
    channels = affine.shape[1]
    pixels = len(out) // (images * channels)
    for row in range(begin * channels, end * channels):
        to, c = out[row * pixels:][:pixels], row % channels
        for t in range(len(addresses)):
            some = floats(addresses[t], len(out))[row * pixels:][:pixels]
            scale, shift = affine[t, c, 0], affine[t, c, 1]
            if add or t > 0:
                for p in range(pixels):
                    to[p] += scale * some[p] + shift
            else:
                for p in range(pixels):
                    to[p] = scale * some[p] + shift


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
                    two_sums(sums[part, t, c], d, term, one_row((image * channels + c) * pixels), pixels, mean[t, c])
