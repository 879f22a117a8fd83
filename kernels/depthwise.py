"""Depthwise convolutions of one channel of a tile of images, and their gradients; windows.py says how planes and lines
lie in memory and what w, a Window, and t, WindowTables, hold.

A tap of the kernel contributes its weight times the pixels from one place on (`multiply_row` of products.py). Where
these are fetched anew for each tap, fetching them is the slower part. Kernels of 3x3 and 5x5 at stride 1 therefore
compute several output rows at once, those that lie below each other at the distance of the taps: pixels that were
fetched serve all of them.

    pixels of row q   ->   output row q with the taps of the kernel's row 0, output row q - 1 with those of row 1, ...
"""
from kernels.compiled import inlined, not_inlined, numba
from kernels.images import address
from kernels.products import multiply_row, multiply_weight
from kernels.vectors import LANES, REGISTERS

ROWS = 4  # at once, or twice as many
COLUMNS = 5 if REGISTERS == 32 else 2  # of a 5x5 weight's gradient at once: as many as there are registers for

if numba is not None:
    from kernels.vectors import (
        FLOATS,
        INTEGER,
        INTEGERS,
        ZEROS,
        add_total,
        broadcast,
        first_lanes,
        instructions,
        load,
        loop,
        multiply_add,
        store,
    )

    def _block_of_convolution(kernel, rows):
        """A register of pixels of `rows` output rows.

        Arguments: addresses of the result, the weight [kernel, kernel], the source and the offsets at which the taps of
        the kernel's first row read it; from one row of the result, and of the source, to the next.
        """
        @instructions
        def block(builder, result: FLOATS, weight: FLOATS, source: FLOATS, offsets: INTEGERS, stride):

            def at_row(place, row):
                return builder.add(place, builder.mul(INTEGER(row), stride))

            def body(column, sums):
                start, sums = builder.load(builder.gep(offsets, [column])), list(sums)
                factors = [broadcast(builder, builder.load(builder.gep(weight, [builder.add(
                    column, INTEGER(i * kernel))]))) for i in range(kernel)]
                for q in range(rows + kernel - 1):
                    pixels = load(builder, source, at_row(start, q))
                    for i in range(max(0, q - rows + 1), min(kernel, q + 1)):
                        sums[q - i] = multiply_add(builder, factors[i], pixels, sums[q - i])
                return sums
            for row, value in enumerate(loop(builder, [ZEROS] * rows, INTEGER(kernel), 1, body)[1]):
                store(builder, value, result, at_row(INTEGER(0), row))
        return block

    def _block_of_gradient(kernel, columns):
        """Add to `columns` columns of the weight's gradient.

        Arguments: addresses of the gradient [kernel, kernel], from the first of the columns on, of the upstream
        gradient, the source and the offsets of the columns; from one row of the upstream gradient and of the source to
        the next, the number of rows, of which ROWS are read at once, and that of the pixels of a row.
        """
        @instructions
        def block(builder, result: FLOATS, upstream: FLOATS, source: FLOATS, offsets: INTEGERS, stride, rows, length):
            starts = [builder.load(builder.gep(offsets, [INTEGER(column)])) for column in range(columns)]

            def some_rows(first, sums):
                def some_pixels(pixel, sums):
                    def place(row):
                        return builder.add(pixel, builder.mul(builder.add(first, INTEGER(row)), stride))
                    sums, left = list(sums), builder.sub(length, pixel)
                    given = [first_lanes(builder, load(builder, upstream, place(row)), left)
                             for row in range(ROWS)]
                    for column, start in enumerate(starts):
                        for q in range(ROWS + kernel - 1):
                            pixels = load(builder, source, builder.add(start, place(q)))
                            for i in range(max(0, q - ROWS + 1), min(kernel, q + 1)):
                                number = i * columns + column
                                sums[number] = multiply_add(builder, given[q - i], pixels, sums[number])
                    return sums
                return loop(builder, sums, length, LANES, some_pixels)[1]
            _, sums = loop(builder, [ZEROS] * (kernel * columns), rows, ROWS, some_rows)
            for number, value in enumerate(sums):
                add_total(builder, builder.gep(result, [INTEGER(number // columns * kernel + number % columns)]),
                          value)
        return block

    _four_of_3x3, _eight_of_3x3 = _block_of_convolution(3, ROWS), _block_of_convolution(3, 2 * ROWS)
    _four_of_5x5, _eight_of_5x5 = _block_of_convolution(5, ROWS), _block_of_convolution(5, 2 * ROWS)
    _columns_of_3x3, _columns_of_5x5 = _block_of_gradient(3, 3), _block_of_gradient(5, COLUMNS)
    _column_of_5x5 = _block_of_gradient(5, 1)


@inlined
def row_length(w, width):
    """From the first pixel of the first image in a row to the last one of the last image, for images of that width."""
    return w.length - (w.out_height - 1) * w.pitch - w.out_width + width


@not_inlined
def convolve(line, weight, planes, t, w):
    """line = the convolution of the planes with a channel's weight."""
    if w.tap_stride:
        _convolve_rows(address(line, 0), address(weight, 0), address(planes, 0), t.taps, w.tap_stride, w.pitch,
                       w.out_height, row_length(w, w.out_width))
    else:
        multiply_row(line, weight, planes, t.taps, w.length)


@not_inlined
def convolve_back(gradient, weight, line, t, w):
    """The gradient of the pixels in the planes: the backward pass of `convolve`; weight: of a channel, in the order of
    t.tap_order."""
    if w.tap_stride:
        first = t.row_starts[0]
        _convolve_rows(address(gradient, first), address(weight, 0), address(line, first), t.backward_offsets,
                       w.tap_stride, w.pitch, w.height, row_length(w, w.width))
        return
    for plane in range(len(t.plane_starts) - 1):
        begin, end = t.plane_starts[plane], t.plane_starts[plane + 1]
        multiply_row(gradient[plane * w.plane:], weight[begin:], line, t.backward_offsets[begin:end], w.span)


@not_inlined
def _convolve_rows(result, weight, source, offsets, stride, pitch, height, length):
    """Rows 0, 1, ..., height - 1 of the result, of `length` pixels each, and up to 3 rows more at the distance of the
    taps' rows, `stride`; offsets: where each tap reads the source. All but these are addresses and numbers of elements.

    A register may reach beyond the end of a row: the next row has the same values there, since a value depends on its
    position only.
    """
    distance, taps = stride // pitch, offsets.ctypes.data
    for first in range(min(distance, height)):
        rows = (height - first + distance - 1) // distance
        for row in range(0, rows, 2 * ROWS):
            for p in range(0, length, LANES):
                at = 4 * ((first + row * distance) * pitch + p)
                if len(offsets) == 9:
                    if rows - row > ROWS:
                        _eight_of_3x3(result + at, weight, source + at, taps, stride)
                    else:
                        _four_of_3x3(result + at, weight, source + at, taps, stride)
                elif rows - row > ROWS:
                    _eight_of_5x5(result + at, weight, source + at, taps, stride)
                else:
                    _four_of_5x5(result + at, weight, source + at, taps, stride)


@not_inlined
def add_weight_gradient(result, upstream, planes, t, w):
    """Add the gradient of a channel's weight to result [taps]; upstream: a line behind its front, with zeros between
    the outputs and from its end to the next multiple of LANES, where the source is finite."""
    if w.tap_stride:
        _add_weight_gradient_of_rows(address(result, 0), address(upstream, 0), address(planes, 0), t.taps, w.tap_stride,
                                     w.pitch, w.out_height, row_length(w, w.out_width))
        return
    multiply_weight(result, upstream, 0, planes, t.taps, 1, (w.length + LANES - 1) // LANES * LANES)


@not_inlined
def _add_weight_gradient_of_rows(result, upstream, source, offsets, stride, pitch, height, length):
    """The arguments are those of _convolve_rows. Up to 3 rows more are read: zeros upstream, finite in the source."""
    distance, taps = stride // pitch, offsets.ctypes.data
    for first in range(min(distance, height)):
        rows, at = (height - first + distance - 1) // distance, 4 * first * pitch
        if len(offsets) == 9:
            _columns_of_3x3(result, upstream + at, source + at, taps, stride, rows, length)
            continue
        for column in range(0, 5 - COLUMNS + 1, COLUMNS):
            _columns_of_5x5(result + 4 * column, upstream + at, source + at, taps + 8 * column, stride, rows, length)
        if COLUMNS == 2:
            _column_of_5x5(result + 4 * 4, upstream + at, source + at, taps + 8 * 4, stride, rows, length)
