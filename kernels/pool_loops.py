"""The compiled poolings and weighted sums of blocks.py."""
import numpy as np

from kernels.compiled import floats, jit
from kernels.depthwise import spread_gradient
from kernels.images import LOWEST, ONE, ZERO, collect, fill, give_to_largest, largest, spread, two_sums
from kernels.products import correlate

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
            spread_gradient(gradient, ones, line, tables, w)
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
