"""Loops between images [N, C, H, W] and the planes and lines that windows.py describes, for one channel of a group of
images; sums over a channel; loops of max pooling.

place: a Place, w: a Window, places: those of its Tables. Arrays are flattened.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import inner
from kernels.products import add_masked_row, combine_rows, masked_row, scale_row

ZERO, ONE, LOWEST, NO_FLOOR = np.float32(0), np.float32(1), np.float32(-3.4e38), np.float32(-np.inf)
YES, NO = np.bool_(True), np.bool_(False)  # in place of literals, for each of which numba would compile a function anew


class Place(NamedTuple):
    """Where a channel of a group of images lies in a tensor, in elements."""

    start: int  # of the channel in the first image
    step: int  # from an image to the next
    images: int


@inner
def nchw(first, images, channel, channels, pixels):
    """The Place of a channel of the images [first, first + images) of a tensor [N, channels, pixels]."""
    return Place((first * channels + channel) * pixels, channels * pixels, images)


@inner
def one_row(start):
    """The Place of a channel of a group that lies in one row."""
    return Place(start, 0, 1)


@inner
def fill(row, value):
    """row[:] = value, which takes numba longer to compile each time."""
    for p in range(len(row)):
        row[p] = value


@inner
def address(array, position):
    """Of array[position]; a slice would take numba longer than a short row."""
    return array.ctypes.data + 4 * position


@inner
def spread(planes, x, place, w, places, scale, shift, floor):
    """planes = max(floor, scale * x + shift)."""
    stride = w.column_stride
    for image in range(place.images):
        for row in range(w.height):
            for column in range(stride):
                at = places[row * stride + column]
                if at >= 0:
                    first, at = place.start + image * place.step + row * w.width, at + image * w.rows * w.pitch
                    if stride == 1:
                        scale_row(address(planes, at), address(x, first), w.width, scale, shift, floor)
                    else:
                        size = (w.width - column + stride - 1) // stride
                        some, to = x[first + column:first + w.width], planes[at:at + size]
                        for k in range(size):
                            value = scale * some[k * stride] + shift
                            to[k] = floor if value < floor else value


@inner
def collect(dx, place, w, places, gradient, values, masked, add):
    """dx (+)= the gradient of the planes, where their values are above 0 if it is masked; the way back of spread."""
    stride = w.column_stride
    for image in range(place.images):
        for row in range(w.height):
            for column in range(stride):
                at = places[row * stride + column]
                first = place.start + image * place.step + row * w.width
                size = (w.width - column + stride - 1) // stride
                to = dx[first + column:first + w.width]
                if at < 0:
                    for k in range(0 if add else size):
                        to[k * stride] = 0
                    continue
                at += image * w.rows * w.pitch
                lowest = ZERO if masked else NO_FLOOR
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


@inner
def from_line(out, place, line, w, scale, shift):
    """out = scale * line + shift."""
    for image in range(place.images):
        for row in range(w.out_height):
            at, to = (image * w.rows + row) * w.pitch, place.start + image * place.step + row * w.out_width
            scale_row(address(out, to), address(line, at), w.out_width, scale, shift, NO_FLOOR)


@inner
def to_line(line, d, f, place, w, coefficients):
    """line = c0 * d + c1 * f + c2 of three coefficients, with what lies between the rows as it was."""
    for image in range(place.images):
        for row in range(w.out_height):
            at, first = (image * w.rows + row) * w.pitch, place.start + image * place.step + row * w.out_width
            combine_rows(address(line, at), address(d, first), address(f, first), w.out_width,
                         coefficients[0], coefficients[1], coefficients[2])


@inner
def copy_to_line(line, x, place, w):
    """line = x, with what lies between the rows as it was."""
    for image in range(place.images):
        for row in range(w.out_height):
            at, first = (image * w.rows + row) * w.pitch, place.start + image * place.step + row * w.out_width
            scale_row(address(line, at), address(x, first), w.out_width, ONE, ZERO, NO_FLOOR)


@inner
def moments_of(result, x, place, pixels):
    """result = mean and sum of squared deviations of a channel."""
    total = ZERO
    for image in range(place.images):
        some = x[place.start + image * place.step:][:pixels]
        for p in range(pixels):
            total += some[p]
    mean, squares, rest = total / np.float32(place.images * pixels), ZERO, ZERO
    for image in range(place.images):
        some = x[place.start + image * place.step:][:pixels]
        for p in range(pixels):
            squares += (some[p] - mean) * (some[p] - mean)
            rest += some[p] - mean  # what rounding has left
    result[0], result[1] = mean + rest / np.float32(place.images * pixels), squares


@inner
def two_sums(result, d, f, place, pixels, mean):
    """Add the sums of d and of d * (f - mean) of a channel to result."""
    total = both = ZERO
    for image in range(place.images):
        one, other = d[place.start + image * place.step:][:pixels], f[place.start + image * place.step:][:pixels]
        for p in range(pixels):
            total += one[p]
            both += one[p] * (other[p] - mean)
    result[0] += total
    result[1] += both


@inner
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


@inner
def give_to_largest(gradient, left, line, planes, taps, length):
    """Give what is left of each output's gradient to the first pixel of its window that is as large."""
    fill(gradient, ZERO)
    for k in range(len(taps)):
        some, to = planes[taps[k]:][:length], gradient[taps[k]:][:length]
        for p in range(length):
            given = left[p] if some[p] == line[p] else ZERO
            to[p] += given
            left[p] -= given
