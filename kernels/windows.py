"""How images lie in memory while they are convolved. One channel of the padded images of a tile is a `plane`, here of
two images of 3x3 pixels, a to i and A to I, with padding 1: the images side by side, each row behind its left padding.
The zeros to the right of an image are those to the left of the next one, or of the next row:

    0 0 0 0 0 0 0 0 | 0 a b c 0 A B C | 0 d e f 0 D E F | 0 g h i 0 G H I | 0 0 0 0 ...       image 4, pitch 8

so each tap of the kernel is a shift along one long row: the product of the weights and the shifted rows (products.py)
gives the outputs in the same arrangement, a `line`. Its elements between the rows of an image are not read after a
forward pass, and are zero in gradients. For a stride s the plane is cut into s * s planes, by row and column modulo s,
of which a tap reads one.
"""
import functools
from typing import NamedTuple

import numpy as np

from kernels.compiled import inlined
from kernels.products import SLACK


class Window(NamedTuple):
    """The arrangement of a tile of images for one convolution or pooling, in elements."""

    height: int
    width: int
    out_height: int
    out_width: int
    pitch: int  # from one row of a plane to the next
    image: int  # from one image to the next, in the same row
    column_stride: int  # the stride along a row, or the width where that is less
    tap_stride: int  # from one row of taps to the next, where depthwise.py computes several rows at once, else 0
    length: int  # of a line: to the end of the last output of the tile
    span: int  # of a plane: to the end of the last pixel of the tile
    plane: int  # from one plane to the next, and from one line to the next
    channel: int  # from one channel's planes to the next one's
    front: int  # zeros in front of a line that is read backwards


class WindowTables(NamedTuple):
    """row_starts: where the pixels column, column + column_stride, ... of a row of the first image begin in the planes,
    [row * column_stride + column], -1 where no tap reads them. taps: where each tap reads in a channel's planes.

    Backwards a plane is the product of the lines with the taps that read it: those of plane i are
    tap_order[begin:end] with begin, end = plane_starts[i:i + 2], and they read a line, behind its front, at
    backward_offsets[begin:end].
    """

    row_starts: np.ndarray
    taps: np.ndarray
    plane_starts: np.ndarray
    tap_order: np.ndarray
    backward_offsets: np.ndarray


@functools.lru_cache(1024)
def make_window(height, width, taps, stride, padding, out, images):
    """(Window, WindowTables) of a tile of `images` images; taps: (row, column) of each, in padded pixels, where the
    window of the first output begins at (0, 0); out: height and width of the output."""
    if (taps, stride, padding) == (((0, 0),), (1, 1), (0, 0)):  # a pointwise convolution: the image is one row
        height, width = 1, height * width
        out = height, width
    last = [(out[k] - 1) * stride[k] + max(tap[k] for tap in taps) for k in (0, 1)]  # that is read
    rows = max(height + padding[0] - 1, last[0]) // stride[0] + 1
    # What lies to the right of an image is the padding of the next one, or of the next row.
    image = max(-(-(width + padding[1]) // stride[1]), out[1], (last[1] - padding[1]) // stride[1] + 1)
    pitch = images * image

    def place(row, column):  # (plane, position in it) of a padded pixel
        return row % stride[0] * stride[1] + column % stride[1], row // stride[0] * pitch + column // stride[1]
    read = [place(*tap) for tap in taps]
    front = max(shift for _, shift in read)
    tap_stride = _distance_of_taps(taps, stride) * pitch
    length, span = (out[0] - 1) * pitch + (images - 1) * image + out[1], rows * pitch
    plane = front + max(length, span) + 4 * tap_stride + 2 * SLACK
    used = sorted({number for number, _ in read})
    places = [place(row + padding[0], column + padding[1])
              for row in range(height) for column in range(min(stride[1], width))]
    order = sorted(range(len(taps)), key=lambda tap: (read[tap][0], -read[tap][1]))
    counts = [[number for number, _ in read].count(number) for number in used]
    tables = WindowTables(*[np.array(values, np.int64) for values in (
        [used.index(number) * plane + shift if number in used else -1 for number, shift in places],
        [used.index(number) * plane + shift for number, shift in read],
        np.cumsum([0] + counts), order,
        [front - read[tap][1] for tap in order])])
    return Window(height, width, *out, pitch, image, min(stride[1], width), tap_stride, length, span, plane,
                  len(used) * plane, front), tables


def _distance_of_taps(taps, stride):
    """From one row of taps to the next, in rows, where they are a square of 3x3 or 5x5 at stride 1; else 0."""
    kernel = {9: 3, 25: 5}.get(len(taps), 0)
    distance = taps[-1][0] // (kernel - 1) if kernel else 0
    square = tuple((i * distance, j * distance) for i in range(kernel) for j in range(kernel))
    return distance if kernel and taps == square and stride == (1, 1) else 0


FIELDS = len(Window._fields)


def pack(arrangements):
    """A matrix [steps, ...] with a (Window, WindowTables) in each row, for `unpack`: a tuple of them would be another
    type, and compiled anew, for each number of steps."""
    rows = [np.concatenate([window, [len(tables.row_starts), len(tables.taps), len(tables.plane_starts)], *tables])
            for window, tables in arrangements]
    packed = np.zeros((len(rows), max(map(len, rows), default=FIELDS + 3)), np.int64)
    for line, row in zip(packed, rows):
        line[:len(row)] = row
    return packed


@inlined
def is_pointwise(w, t, images):
    """Whether the one tap reads every pixel of so many images: planes and lines are rows of pixels, without zeros."""
    return (len(t.taps) == 1 and w.height == w.out_height == 1 and w.width == w.out_width
            and w.length == images * w.width)


@inlined
def unpack(row):
    """The (Window, WindowTables) of a row of pack."""
    taps, taps_at = row[FIELDS + 1], FIELDS + 3 + row[FIELDS]
    order_at = taps_at + taps + row[FIELDS + 2]
    tables = WindowTables(row[FIELDS + 3:taps_at], row[taps_at:taps_at + taps], row[taps_at + taps:order_at],
                          row[order_at:order_at + taps], row[order_at + taps:order_at + 2 * taps])
    # numba builds no tuple from an array whose length it does not know
    return Window(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11],
                  row[12]), tables
