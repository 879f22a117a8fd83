"""Loops between images [N, C, H, W] and the planes and lines that windows.py describes, for one channel of a tile of
images; sums over a channel; loops of max pooling.

place: a Place, w: a Window, row_starts: of its WindowTables. Arrays are flattened.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import inlined, not_inlined
from kernels.vectors import (
    add_moments,
    add_products,
    masked_pairs,
    masked_row,
    scale_even,
    scale_odd,
    scale_pairs,
    scale_row,
)

ZERO, ONE = np.float32(0), np.float32(1)
LOWEST = np.float32(-3.4e38)  # of a max pooling: the padding, and what is lower
NO_FLOOR, HIGHEST = np.float32(-np.inf), np.float32(np.inf)  # limits that every value, or none, is above
YES, NO = np.bool_(True), np.bool_(False)  # in place of literals, for each of which numba would compile a function anew


class Place(NamedTuple):
    """Where a channel of a chunk or a tile of images lies in a tensor, in elements."""

    start: int  # of the channel in the first image
    image_stride: int  # from an image to the next
    images: int


@inlined
def fill(row, value):
    """row[:] = value, which takes numba longer to compile each time."""
    for p in range(len(row)):
        row[p] = value


@inlined
def address(array, position):
    """The address of array[position]; a slice would take numba longer than a short row."""
    return np.int64(array.ctypes.data) + 4 * position


@not_inlined
def image_to_planes(planes, x, place, w, row_starts, scale, shift, floor):
    """planes = max(floor, scale * x + shift)."""
    if w.column_stride > 1:
        _image_to_strided_planes(planes, x, place, w, row_starts, (scale, shift, floor))
        return
    for image in range(place.images):
        for row in range(w.height):
            at, first = row_starts[row], place.start + image * place.image_stride + row * w.width
            if at >= 0:
                scale_row(address(planes, at + image * w.image), address(x, first), w.width, scale, shift, floor)


@not_inlined
def _image_to_strided_planes(planes, x, place, w, row_starts, numbers):
    """image_to_planes into one plane for each column modulo the stride."""
    stride, (scale, shift, floor) = w.column_stride, numbers
    for image in range(place.images):
        for row in range(w.height):
            first, to = place.start + image * place.image_stride + row * w.width, image * w.image
            if stride == 2 and w.width % 2 == 0:
                at_even, at_odd = row_starts[2 * row], row_starts[2 * row + 1]
                even, odd, pixels = address(planes, to + at_even), address(planes, to + at_odd), address(x, first)
                if at_even >= 0 and at_odd >= 0:
                    scale_pairs(even, odd, pixels, w.width // 2, scale, shift, floor)
                elif at_even >= 0:
                    scale_even(even, odd, pixels, w.width // 2, scale, shift, floor)
                elif at_odd >= 0:
                    scale_odd(even, odd, pixels, w.width // 2, scale, shift, floor)
                continue
            for column in range(stride):
                at = row_starts[row * stride + column]
                for k in range((w.width - column + stride - 1) // stride if at >= 0 else 0):
                    value = scale * x[first + column + k * stride] + shift
                    planes[to + at + k] = floor if value < floor else value


@not_inlined
def planes_to_image(dx, place, w, row_starts, gradient, values, masked, add):
    """dx = the gradient of the planes, where their values are above 0 if it is masked, plus what was there before if
    add is 1; the backward pass of image_to_planes. Pixels that no plane has get
    zeros."""
    lowest = ZERO if masked else NO_FLOOR
    if w.column_stride > 1:
        _strided_planes_to_image(dx, place, w, row_starts, (gradient, values), lowest, add)
        return
    for image in range(place.images):
        for row in range(w.height):
            at, first = image * w.image + row_starts[row], place.start + image * place.image_stride + row * w.width
            given, value = address(gradient, max(0, at)), address(values, max(0, at))
            masked_row(address(dx, first), given, value, w.width, lowest if row_starts[row] >= 0 else HIGHEST, add)


@not_inlined
def _strided_planes_to_image(dx, place, w, row_starts, planes, lowest, add):
    """The backward pass of _image_to_strided_planes; planes: of the gradients and of the values."""
    stride, (gradient, values) = w.column_stride, planes
    for image in range(place.images):
        for row in range(w.height):
            first, image_start = place.start + image * place.image_stride + row * w.width, image * w.image
            if stride == 2 and w.width % 2 == 0:
                at_even, at_odd = row_starts[2 * row], row_starts[2 * row + 1]
                if add > 0 and at_even < 0 and at_odd < 0:  # no tap reads this row
                    continue
                even, odd, to = image_start + max(0, at_even), image_start + max(0, at_odd), address(dx, first)
                lowest_even, lowest_odd = lowest if at_even >= 0 else HIGHEST, lowest if at_odd >= 0 else HIGHEST
                masked_pairs(to, address(gradient, even), address(gradient, odd), address(values, even),
                             address(values, odd), w.width // 2, lowest_even, lowest_odd, add)
                continue
            for column in range(stride):
                at = row_starts[row * stride + column]
                for k in range((w.width - column + stride - 1) // stride):
                    given = ZERO
                    if at >= 0 and values[image_start + at + k] > lowest:
                        given = gradient[image_start + at + k]
                    to = first + column + k * stride
                    dx[to] = dx[to] + given if add > 0 else given


@not_inlined
def line_to_image(out, place, line, w):
    """out = line."""
    for image in range(place.images):
        for row in range(w.out_height):
            at, to = image * w.image + row * w.pitch, place.start + image * place.image_stride + row * w.out_width
            scale_row(address(out, to), address(line, at), w.out_width, ONE, ZERO, NO_FLOOR)


@not_inlined
def image_to_line(line, x, place, w):
    """line = x, with what lies between the rows as it was."""
    for image in range(place.images):
        for row in range(w.out_height):
            at, first = image * w.image + row * w.pitch, place.start + image * place.image_stride + row * w.out_width
            scale_row(address(line, at), address(x, first), w.out_width, ONE, ZERO, NO_FLOOR)


@inlined
def take_moments(result, x, start, size):
    """result = mean and sum of squared deviations of the `size` elements from x[start] on."""
    result[:] = 0
    add_moments(result.ctypes.data, address(x, start), size, ZERO)
    mean = np.float32(result[0] / size)
    result[:] = 0
    add_moments(result.ctypes.data, address(x, start), size, mean)
    result[0] = mean + result[0] / size  # what rounding has left


@inlined
def add_norm_sums(result, d, place_of_d, f, place_of_f, pixels, mean):
    """Add the sums of d and of d * (f - mean) of a channel to result."""
    for image in range(place_of_d.images):
        add_products(result.ctypes.data, address(d, place_of_d.start + image * place_of_d.image_stride),
                     address(f, place_of_f.start + image * place_of_f.image_stride), pixels, mean)


@not_inlined
def max_pool(line, planes, taps, length):
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


@not_inlined
def max_pool_back(gradient, left, line, planes, taps, length):
    """Give what is left of each output's gradient to the first pixel of its window that is as large."""
    fill(gradient, ZERO)
    for k in range(len(taps)):
        plane, to = planes[taps[k]:][:length], gradient[taps[k]:][:length]
        for p in range(length):
            given = left[p] if plane[p] == line[p] else ZERO
            to[p] += given
            left[p] -= given
