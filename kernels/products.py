"""Matrix products whose factors lie in memory as rows of pixels: what dense, pointwise and depthwise convolutions and
all their gradients come down to.

A row of the second factor may begin anywhere. For a pointwise convolution the rows are the channels of an image; for
any other one each tap of the kernel is a row too, the channel's pixels from another place on (windows.py), so that
nothing is copied per tap:

    result[r, p] = sum_k weight[r, k] * source[offsets[k] + p]              `product`
    result[r, k] += sum_p rows[r, p] * source[offsets[k] + p]               `product_of_rows`

Both keep a small block of the result in vector registers while they run along k or p, so that a number that is loaded
is used several times. LLVM does not find this in a loop, therefore the innermost loops are written in LLVM IR.

`.ctypes.data` keeps no array alive: numba frees an array of a function's own after its last use, even if its address is
used later. Addresses are therefore taken of arguments only.
"""
import numpy as np

from kernels.compiled import inner, numba
from kernels.vectors import LANES, REGISTERS

VECTORS = 4 if REGISTERS == 32 else 3  # registers along the pixels of a block of 4 rows
WIDE = 8  # registers of a single row
# The blocks of weights' gradients: of how many rows if they have 4 columns, of how many columns if they have 4 rows.
WEIGHT_ROWS, WEIGHT_COLUMNS = (4, 6) if REGISTERS == 32 else (2, 3)

if numba is not None:
    from numba.core import types

    from kernels.vectors import INTEGER, ZEROS, add_total, broadcast, load, loop, multiply_add, pointer_of, store

    def _block_of_product(rows, vectors):
        """result[r, p] for `rows` rows and `vectors` registers of pixels.

        Arguments: addresses of result, weight, source and offsets, from one row of result and of weight to the next,
        the number of k.
        """
        @numba.extending.intrinsic
        def block(context, result, weight, source, offsets, result_step, weight_step, count):
            def generate(context, builder, signature, arguments):
                result, weight, source, offsets, result_step, weight_step, count = arguments
                result, weight, source = [pointer_of(builder, address) for address in (result, weight, source)]
                offsets = pointer_of(builder, offsets, INTEGER)

                def body(k, sums):
                    start = builder.load(builder.gep(offsets, [k]))
                    pixels = [load(builder, source, builder.add(start, INTEGER(v * LANES)))
                              for v in range(vectors)]
                    results = []
                    for r in range(rows):
                        place = builder.add(k, builder.mul(INTEGER(r), weight_step))
                        factor = broadcast(builder, builder.load(builder.gep(weight, [place])))
                        results += [multiply_add(builder, factor, pixels[v], sums[r * vectors + v])
                                    for v in range(vectors)]
                    return results
                for number, value in enumerate(loop(builder, [ZEROS] * (rows * vectors), count, 1, body)):
                    place = builder.add(builder.mul(INTEGER(number // vectors), result_step),
                                        INTEGER(number % vectors * LANES))
                    store(builder, value, result, place)
                return context.get_dummy_value()
            return types.void(*[types.int64] * 7), generate
        return block

    def _block_of_product_of_rows(rows, columns):
        """result[r, k] for `rows` rows and `columns` values of k.

        Arguments: addresses of result, rows, source and offsets, from one row of result and of rows to the next, the
        number of pixels, a multiple of LANES.
        """
        @numba.extending.intrinsic
        def block(context, result, upstream, source, offsets, result_step, upstream_step, count):
            def generate(context, builder, signature, arguments):
                result, upstream, source, offsets, result_step, upstream_step, count = arguments
                result, upstream, source = [pointer_of(builder, address) for address in (result, upstream, source)]
                offsets = pointer_of(builder, offsets, INTEGER)
                starts = [builder.load(builder.gep(offsets, [INTEGER(k)])) for k in range(columns)]

                def body(p, sums):
                    values, results = [load(builder, source, builder.add(p, start)) for start in starts], []
                    for r in range(rows):  # one after the other: there are registers for one of them only
                        gradient = load(builder, upstream, builder.add(p, builder.mul(INTEGER(r), upstream_step)))
                        results += [multiply_add(builder, gradient, values[k], sums[r * columns + k])
                                    for k in range(columns)]
                    return results
                for number, value in enumerate(loop(builder, [ZEROS] * (rows * columns), count, LANES, body)):
                    place = builder.add(builder.mul(INTEGER(number // columns), result_step),
                                        INTEGER(number % columns))
                    add_total(builder, builder.gep(result, [place]), value)
                return context.get_dummy_value()
            return types.void(*[types.int64] * 7), generate
        return block

    _four_rows, _one_row = _block_of_product(4, VECTORS), _block_of_product(1, WIDE)
    _one_narrow_row, _some_by_four = _block_of_product(1, VECTORS), _block_of_product_of_rows(WEIGHT_ROWS, 4)
    _four_by_many, _four_by_three = _block_of_product_of_rows(4, WEIGHT_COLUMNS), _block_of_product_of_rows(4, 3)
    _one_by_six, _one_by_three = _block_of_product_of_rows(1, 6), _block_of_product_of_rows(1, 3)

SLACK = LANES * WIDE  # elements that may be read and written beyond the end of a row


@inner
def product(result, result_step, weight, source, offsets, rows, length):
    """result[r * result_step + p] for r < rows, p < length, and up to SLACK elements more.

    weight: [4 * ceil(rows / 4), len(offsets)] flattened; the rows of the result are written up to a multiple of 4 too.
    All arrays have one dimension.
    """
    count = len(offsets)
    a, b, c, d = result.ctypes.data, weight.ctypes.data, source.ctypes.data, offsets.ctypes.data
    for p in range(0, length, LANES * VECTORS):
        for r in range(0, rows, 4):
            _four_rows(a + 4 * (r * result_step + p), b + 4 * r * count, c + 4 * p, d, result_step, count, count)


@inner
def correlate(result, weight, source, offsets, length):
    """product of a single row: a depthwise convolution of a channel."""
    a, b, c, d = result.ctypes.data, weight.ctypes.data, source.ctypes.data, offsets.ctypes.data
    for p in range(0, length, LANES * WIDE):
        _one_row(a + 4 * p, b, c + 4 * p, d, 0, 0, len(offsets))


@inner
def product_of_rows(result, upstream, upstream_step, source, offsets, rows, length):
    """Add to result [4 * ceil(rows / 4), len(offsets)], flattened, the products of upstream[r * upstream_step:] and
    source[offsets[k]:].

    len(offsets) is a multiple of 3; upstream has rows of zeros up to a multiple of 4, and zeros from `length` on up
    to a multiple of LANES, where source is finite.
    """
    count = len(offsets)
    whole = count // WEIGHT_COLUMNS * WEIGHT_COLUMNS
    a, b, c, d = result.ctypes.data, upstream.ctypes.data, source.ctypes.data, offsets.ctypes.data
    for p in range(0, length, 1024):  # so that what is read again and again stays in the nearest cache
        size = min(1024, length - p)
        for r in range(0, rows, 4):
            for k in range(0, whole, WEIGHT_COLUMNS):
                _four_by_many(a + 4 * (r * count + k), b + 4 * (r * upstream_step + p), c + 4 * p, d + 8 * k, count,
                              upstream_step, size)
            for k in range(whole, count, 3):
                _four_by_three(a + 4 * (r * count + k), b + 4 * (r * upstream_step + p), c + 4 * p, d + 8 * k, count,
                               upstream_step, size)


@inner
def correlate_rows(result, upstream, source, offsets, length):
    """product_of_rows of a single row; len(offsets) is a multiple of 3."""
    a, b, c, d = result.ctypes.data, upstream.ctypes.data, source.ctypes.data, offsets.ctypes.data
    whole = len(offsets) // 6 * 6
    for k in range(0, whole, 6):
        _one_by_six(a + 4 * k, b, c, d + 8 * k, 0, 0, length)
    for k in range(whole, len(offsets), 3):
        _one_by_three(a + 4 * k, b, c, d + 8 * k, 0, 0, length)


# ---------------------------------------------------------------------------------------------------------------------
# Pointwise convolutions: matrices of any size, contiguous and flattened. Nothing is read or written beyond them
# ---------------------------------------------------------------------------------------------------------------------


@inner
def multiply(result, weight, source, rows, columns, size):
    """result [rows, size] = weight [rows, columns] source [columns, size]."""
    _multiply(result, weight, source, _row_starts(columns, size), rows, columns, size)


@inner
def _multiply(result, weight, source, offsets, rows, columns, size):
    block = LANES * VECTORS
    a, b, c, d = result.ctypes.data, weight.ctypes.data, source.ctypes.data, offsets.ctypes.data
    for start in range(0, size if size >= block else 0, block):
        p = min(start, size - block)  # the last block overlaps the one before, whose numbers come out the same
        for r in range(0, rows - 3, 4):
            _four_rows(a + 4 * (r * size + p), b + 4 * r * columns, c + 4 * p, d, size, columns, columns)
        for r in range(rows // 4 * 4, rows):
            _one_narrow_row(a + 4 * (r * size + p), b + 4 * r * columns, c + 4 * p, d, size, columns, columns)
    for r in range(rows if size < block else 0):
        row = result[r * size:][:size]
        for p in range(size):
            row[p] = 0
        for k in range(columns):
            factor, some = weight[r * columns + k], source[k * size:][:size]
            for p in range(size):
                row[p] += factor * some[p]


@inner
def multiply_weight(result, gradient, source, rows, columns, size):
    """Add to result [rows, columns] the product of gradient [rows, size] and the transposed source [columns, size]."""
    _multiply_weight(result, gradient, source, _row_starts(columns, size), rows, columns, size)


@inner
def _multiply_weight(result, gradient, source, offsets, rows, columns, size):
    a, b, c, d = result.ctypes.data, gradient.ctypes.data, source.ctypes.data, offsets.ctypes.data
    for start in range(0, size, 1024):  # so that what is read again and again stays in the nearest cache
        end = min(start + 1024, size)
        whole = (end - start) // LANES * LANES
        for r in range(0, rows - WEIGHT_ROWS + 1 if whole else 0, WEIGHT_ROWS):
            for k in range(0, columns - 3, 4):
                _some_by_four(a + 4 * (r * columns + k), b + 4 * (r * size + start), c + 4 * start, d + 8 * k, columns,
                              size, whole)
        for r in range(rows):  # what the blocks leave out
            for k in range(columns):
                first = start + whole if r < rows // WEIGHT_ROWS * WEIGHT_ROWS and k < columns // 4 * 4 else start
                total = np.float32(0)
                for p in range(first, end):
                    total += gradient[r * size + p] * source[k * size + p]
                result[r * columns + k] += total


@inner
def _row_starts(rows, size):
    starts = np.empty(rows, np.int64)
    for row in range(rows):
        starts[row] = row * size
    return starts


@inner
def transposed(matrix, rows, columns):
    """A matrix [rows, columns] as [columns, rows]."""
    result = np.empty(rows * columns, np.float32)
    for row in range(rows):
        for column in range(columns):
            result[column * rows + row] = matrix[row * columns + column]
    return result
