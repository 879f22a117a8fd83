"""How the pixels of one channel of several images lie in a row, for depthwise convolutions and poolings.

A window that moves over an image becomes shifts along a row if zeros lie between the rows of the image. One margin of
zeros serves two rows, being the end of one and the start of the next. Two images of 2x3 pixels, a kernel of 3x3 with
padding 1; the pitch is 4, `a` and `b` are the pixels of the images:

    . . . .                    the padding above the first image
    . a a a                    pitch: its padding at the left and its width
    . a a a                    rows: its padding above and its height
    . . . .                    between two images, the padding of both
    . b b b
    . b b b
    . . . . .                  what the windows of the last pixels reach

An output lies where the upper left corner of its window does. The pixel under tap (i, j) of the window is i * pitch + j
behind that, for all outputs alike: `offset`. With stride 2 there are four planes one after the other, of the even and
the odd rows and columns; each tap reads one of them without gaps:

    plane 0: even rows, even columns    plane 1: even rows, odd columns    plane 2, plane 3: odd rows
"""
import functools

import numpy as np

TAPS = 5  # that are added in one pass: a 5x5 kernel takes five, a 3x3 kernel two

# A layout is a row of integers, at these places: of the images; of the planes (pixels from a row to the next, rows from
# an image to the next); of the outputs; the size of a plane, the largest offset; the taps of the kernel, the passes.
HEIGHT, WIDTH, PADDING, STRIDE, PITCH, ROWS, OUT_HEIGHT, OUT_WIDTH, PLANE, FRONT, KERNEL, PASSES = range(12)
# Behind them lie the passes: the number of the plane, then TAPS pairs of a tap, -1 for none, and its offset.
FIRST_PASS, PASS_LENGTH = 12, 1 + 2 * TAPS


@functools.lru_cache(None)
def geometry(height, width, kernel, stride, padding, dilation, images):
    """The layout for a convolution or pooling of `images` images."""
    pitch, rows = -(-(width + padding) // stride), -(-(height + padding) // stride)
    reach = dilation * (kernel - 1)
    out_height = (height + 2 * padding - reach - 1) // stride + 1
    out_width = (width + 2 * padding - reach - 1) // stride + 1
    plane = (images * rows + reach // stride + padding + 2) * pitch
    by_plane = {}
    for i in range(kernel):
        for j in range(kernel):
            row, column = i * dilation, j * dilation
            number = row % stride * stride + column % stride
            by_plane.setdefault(number, []).append((i * kernel + j, row // stride * pitch + column // stride))
    passes = []
    for number, taps in sorted(by_plane.items()):
        for start in range(0, len(taps), TAPS):
            some = taps[start:start + TAPS]
            passes.append([number] + [value for tap in some + [(-1, some[0][1])] * (TAPS - len(some)) for value in tap])
    front = max(offset for taps in by_plane.values() for _, offset in taps)
    head = [height, width, padding, stride, pitch, rows, out_height, out_width, plane, front, kernel * kernel,
            len(passes)]
    return np.array(head + sum(passes, []), np.int64)
