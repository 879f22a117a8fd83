"""How an image lies in memory while it is convolved, here 3x3 with padding 1: each row behind its left padding, the
rows of a plane and the planes of a group of images one after the other. The zeros that end a row begin the next one,
and those below an image are those above the next:

    0 0 0 0 | 0 a b c | 0 d e f | 0 0 0 0 | 0 g h i | ...            pitch 4, rows 3

so each tap of the kernel is a shift along one long row: the product of the weights and the shifted rows (products.py)
gives the outputs in the same arrangement, a `line`, with numbers between its rows that nobody reads. For a stride s the
plane is cut into s * s planes, by row and column modulo s, of which a tap reads one.
"""
import functools
from typing import NamedTuple

import numpy as np

from kernels.compiled import inner
from kernels.products import SLACK


class Window(NamedTuple):
    """The arrangement of a group of images for one convolution or pooling, in elements."""

    height: int
    width: int
    out_height: int
    out_width: int
    pitch: int  # from one row of a plane to the next
    rows: int  # of an image in a plane
    column_stride: int  # the stride along a row, or the width where that is less
    length: int  # of a line: to the end of the last output of the group
    span: int  # of a plane: to the end of the last pixel of the group
    plane: int  # from one plane to the next
    block: int  # from one channel's planes to the next one's
    front: int  # zeros in front of a line that is read backwards
    line: int  # from one line to the next


class Tables(NamedTuple):
    """places: where the pixels column, column + column_stride, ... of a row of the first image begin in the planes,
    [row * column_stride + column], -1 where no tap reads them. taps: where each tap reads in a channel's planes.

    planes: where each plane begins. Backwards a plane is the product of the lines with the taps that read it: those of
    plane i are order[starts[i]:starts[i + 1]], and they read a line, behind its front, at
    backwards[starts[i]:starts[i + 1]].
    """

    places: np.ndarray
    taps: np.ndarray
    planes: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    backwards: np.ndarray


class Shape(NamedTuple):
    """Of a convolution or pooling; `first`: the place of its filters among those of the tensor [N, total, H, W] they
    go to."""

    images: int
    group: int  # images of a job
    channels: int
    filters: int
    groups: int
    first: int
    total: int


class Arrangement(NamedTuple):
    """How the loops go through one convolution or pooling."""

    window: Window
    tables: Tables
    shape: Shape


@functools.lru_cache(1024)
def make_window(height, width, taps, stride, padding, out, images):
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


def square(height, width, kernel, stride, padding, dilation, images):
    """(Window, Tables) where kernel, stride, padding and dilation are the same in both directions."""
    taps = tuple((i * dilation, j * dilation) for i in range(kernel) for j in range(kernel))
    out = tuple(output_size(side, kernel, stride, padding, dilation) for side in (height, width))
    return make_window(height, width, taps, (stride, stride), (padding, padding), out, images)


def output_size(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


FIELDS = len(Window._fields)


def pack(arrangements):
    """A matrix [jobs, ...] with a (Window, Tables) in each row, for `unpack`: a tuple of them would be another type,
    and compiled anew, for each number of jobs."""
    rows = [np.concatenate([window, [len(tables.places), len(tables.taps), len(tables.planes)], *tables])
            for window, tables in arrangements]
    packed = np.zeros((len(rows), max(map(len, rows), default=FIELDS + 3)), np.int64)
    for line, row in zip(packed, rows):
        line[:len(row)] = row
    return packed


@inner
def unpack(row):
    """The (Window, Tables) of a row of pack."""
    places, taps, planes = row[FIELDS], row[FIELDS + 1], row[FIELDS + 2]
    begin = FIELDS + 3
    end = begin + places + taps + planes
    tables = Tables(row[begin:begin + places], row[begin + places:begin + places + taps],
                    row[begin + places + taps:end],
                    row[end:end + planes + 1], row[end + planes + 1:end + planes + 1 + taps],
                    row[end + planes + 1 + taps:end + planes + 1 + 2 * taps])
    # numba builds no tuple from an array whose length it does not know
    return Window(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11],
                  row[12]), tables
