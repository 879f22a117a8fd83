"""Matrix products whose factors lie in memory as rows of pixels: what dense, pointwise and depthwise convolutions and
all their gradients come down to.

A row of the second factor may begin anywhere. For a pointwise convolution the rows are the channels of an image; for
any other one each tap of the kernel is a row too, the channel's pixels from another place on (windows.py), so that
nothing is copied per tap:

    result[r, p] = sum_k weight[r, k] * source[offsets[k] + p]              `multiply`
    result[r, k] += sum_p gradient[r, p] * source[offsets[k] + p]           `multiply_weight`

Both keep a small block of the result in vector registers while they run along k or p, so that a number that is loaded
is used several times. LLVM does not find this in a loop, therefore the innermost loops are written in LLVM IR.

`.ctypes.data` keeps no array alive: numba frees an array of a function's own after its last use, even if its address is
used later. Addresses are therefore taken of arguments only.
"""
import numpy as np

from kernels.compiled import inlined, not_inlined, numba
from kernels.vectors import LANES, REGISTERS

VECTORS = 4 if REGISTERS == 32 else 3  # registers along the pixels of a block of 4 rows
WIDE = 8  # registers of a single row
WEIGHT_COLUMNS = 4 if REGISTERS == 32 else 3  # of a block of 4 rows of a weight's gradient

if numba is not None:
    from kernels.vectors import (
        FLOATS,
        INTEGER,
        INTEGERS,
        ZEROS,
        add_total,
        broadcast,
        instructions,
        load,
        loop,
        multiply_add,
        store,
    )

    def _block_of_product(rows, vectors):
        """result[r, p] for `rows` rows and `vectors` registers of pixels.

        Arguments: addresses of result, weight, source and offsets, from one row of result and of weight to the next,
        the number of k.
        """
        @instructions
        def block(builder, result: FLOATS, weight: FLOATS, source: FLOATS, offsets: INTEGERS, result_stride,
                  weight_stride, count):

            def body(k, sums):
                start = builder.load(builder.gep(offsets, [k]))
                pixels = [load(builder, source, builder.add(start, INTEGER(v * LANES)))
                          for v in range(vectors)]
                results = []
                for r in range(rows):
                    place = builder.add(k, builder.mul(INTEGER(r), weight_stride))
                    factor = broadcast(builder, builder.load(builder.gep(weight, [place])))
                    results += [multiply_add(builder, factor, pixels[v], sums[r * vectors + v])
                                for v in range(vectors)]
                return results
            for number, value in enumerate(loop(builder, [ZEROS] * (rows * vectors), count, 1, body)[1]):
                place = builder.add(builder.mul(INTEGER(number // vectors), result_stride),
                                    INTEGER(number % vectors * LANES))
                store(builder, value, result, place)
        return block

    def _block_of_product_of_rows(rows, columns):
        """result[r, k] for `rows` rows and `columns` values of k.

        Arguments: addresses of result, rows, source and offsets, from one row of result and of rows to the next, the
        number of pixels, a multiple of LANES.
        """
        @instructions
        def block(builder, result: FLOATS, upstream: FLOATS, source: FLOATS, offsets: INTEGERS, result_stride,
                  upstream_stride, count):
            starts = [builder.load(builder.gep(offsets, [INTEGER(k)])) for k in range(columns)]

            def body(p, sums):
                values, results = [load(builder, source, builder.add(p, start)) for start in starts], []
                for r in range(rows):  # one after the other: there are registers for one of them only
                    gradient = load(builder, upstream, builder.add(p, builder.mul(INTEGER(r), upstream_stride)))
                    results += [multiply_add(builder, gradient, values[k], sums[r * columns + k])
                                for k in range(columns)]
                return results
            for number, value in enumerate(loop(builder, [ZEROS] * (rows * columns), count, LANES, body)[1]):
                place = builder.add(builder.mul(INTEGER(number // columns), result_stride),
                                    INTEGER(number % columns))
                add_total(builder, builder.gep(result, [place]), value)
        return block

    _four_rows, _one_row, _one_narrow_row = [_block_of_product(*sides) for sides in ((4, VECTORS), (1, WIDE),
                                                                                     (1, VECTORS))]
    _four_by_many, _four_by_one = _block_of_product_of_rows(4, WEIGHT_COLUMNS), _block_of_product_of_rows(4, 1)
    _one_by_three, _one_by_one = _block_of_product_of_rows(1, 3), _block_of_product_of_rows(1, 1)

NO_SHIFT = np.zeros(1, np.int64)  # for offsets_of: rows of pixels as they are
SLACK = LANES * WIDE  # elements beyond the end of a row that multiply_row may read and write


@not_inlined
def multiply(result, result_stride, weight, source, offsets, rows, size):
    """result[r * result_stride + p] = sum_k weight[r, k] * source[offsets[k] + p] for r < rows, p < size: the product
    of two matrices if offsets are the starts of rows, a dense convolution if they are those of shifted rows.

    weight: [rows, len(offsets)] flattened. Nothing is read or written beyond the matrices.
    """
    columns, block, stride = len(offsets), LANES * VECTORS, result_stride
    a, b, c, d = result.ctypes.data, weight.ctypes.data, source.ctypes.data, offsets.ctypes.data
    for start in range(0, size if size >= block else 0, block):
        p = min(start, size - block)  # the last block overlaps the one before, whose numbers come out the same
        for r in range(0, rows - 3, 4):
            _four_rows(a + 4 * (r * stride + p), b + 4 * r * columns, c + 4 * p, d, stride, columns, columns)
        for r in range(rows // 4 * 4, rows):
            _one_narrow_row(a + 4 * (r * stride + p), b + 4 * r * columns, c + 4 * p, d, stride, columns, columns)
    for r in range(rows if size < block else 0):
        row = result[r * stride:][:size]
        for p in range(size):
            row[p] = 0
        for k in range(columns):
            factor, row_of_source = weight[r * columns + k], source[offsets[k]:][:size]
            for p in range(size):
                row[p] += factor * row_of_source[p]


@not_inlined
def multiply_weight(result, gradient, gradient_stride, source, offsets, rows, size):
    """result[r, k] += sum_p gradient[r * gradient_stride + p] * source[offsets[k] + p]; result [rows, len(offsets)],
    flattened: the gradient of the weight of multiply."""
    columns, stride = len(offsets), gradient_stride
    whole_rows, whole_columns = rows // 4 * 4, columns // WEIGHT_COLUMNS * WEIGHT_COLUMNS
    a, b, c, d = result.ctypes.data, gradient.ctypes.data, source.ctypes.data, offsets.ctypes.data
    for start in range(0, size, 1024):  # so that what is read several times stays in the nearest cache
        count = min(1024, size - start)
        whole = count // LANES * LANES
        for r in range(0, whole_rows if whole else 0, 4):
            to, given = a + 4 * r * columns, b + 4 * (r * stride + start)
            for k in range(0, whole_columns, WEIGHT_COLUMNS):
                _four_by_many(to + 4 * k, given, c + 4 * start, d + 8 * k, columns, stride, whole)
            for k in range(whole_columns, columns):
                _four_by_one(to + 4 * k, given, c + 4 * start, d + 8 * k, columns, stride, whole)
        for r in range(whole_rows, rows if whole else 0):
            to, given = a + 4 * r * columns, b + 4 * (r * stride + start)
            for k in range(0, columns - 2, 3):
                _one_by_three(to + 4 * k, given, c + 4 * start, d + 8 * k, columns, stride, whole)
            for k in range(columns // 3 * 3, columns):
                _one_by_one(to + 4 * k, given, c + 4 * start, d + 8 * k, columns, stride, whole)
        for r in range(rows if whole < count else 0):
            for k in range(columns):
                for p in range(start + whole, start + count):
                    result[r * columns + k] += gradient[r * stride + p] * source[offsets[k] + p]


@inlined
def multiply_row(result, weight, source, offsets, length):
    """multiply of a single row, and up to SLACK elements more: a depthwise convolution of a channel."""
    a, b, c, d = result.ctypes.data, weight.ctypes.data, source.ctypes.data, offsets.ctypes.data
    for p in range(0, length, LANES * WIDE):
        _one_row(a + 4 * p, b, c + 4 * p, d, 0, 0, len(offsets))


@inlined
def offsets_of(taps, channels, step):
    """Where a product reads tap by tap of each channel; step: from one channel to the next."""
    result = np.empty(channels * len(taps), np.int64)
    for channel in range(channels):
        for tap in range(len(taps)):
            result[channel * len(taps) + tap] = channel * step + taps[tap]
    return result
