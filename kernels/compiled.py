"""Loops over images that numba, an optional package, compiles for the CPU: what convolutions.py and edges.py are built
of.

A depthwise convolution is computed tap by tap, each a shift along a row in which the images lie: see layout.py.

Without numba, on a GPU, in double precision and under to_static Paddle's operations run instead.
"""
import concurrent.futures
import contextlib
import functools
import os
import pathlib
import sys
import zlib

numba, why_not = None, 'numba is not installed (pip install numba)'
if 'llvmlite' not in sys.modules and getattr(sys.modules.get('paddle'), '__version__', '').startswith('2.'):
    why_not = 'Paddle 2 contains a zlib that makes numba end in a segmentation fault unless numba is imported first'
else:
    with contextlib.suppress(ImportError):
        import numba
        import numba.extending

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from kernels.layout import (  # noqa: E402
    FIRST_PASS,
    FRONT,
    HEIGHT,
    OUT_HEIGHT,
    OUT_WIDTH,
    PADDING,
    PASS_LENGTH,
    PASSES,
    PITCH,
    PLANE,
    ROWS,
    STRIDE,
    TAPS,
    WIDTH,
)
from runtime.parallel import cpu_threads  # noqa: E402


def available(x):
    """Whether the compiled loops cover a tensor: single precision on a CPU, outside of to_static, and numba is
    installed."""
    return numba is not None and paddle.in_dynamic_mode() and x.dtype == paddle.float32 and x.place.is_cpu_place()


def addresses(tensors):
    return np.array([tensor.data_ptr() for tensor in tensors], np.int64)


def group_size(images, pixels):
    """How many images share a row: rows of about 1,000 pixels, and work for every core."""
    return max(1, min(1024 // pixels, -(-images // cpu_threads())))


REORDER = {'reassoc', 'contract', 'nsz', 'arcp'}  # sums may be reordered, which vector registers need; NaN stays NaN


@functools.lru_cache(None)
def _cache_folder():
    """Where numba keeps what it compiled of this package: a folder named after the state of all its sources, since
    numba itself looks at the age of a function's own file only, and a compiled function contains those that it
    calls."""
    here = pathlib.Path(__file__).parent
    state = zlib.crc32(b''.join(path.read_bytes() for path in sorted(here.glob('*.py'))))
    return str(pathlib.Path(numba.config.CACHE_DIR or here / '__pycache__') / f'loops-{state:08x}')


def jit(function, **options):
    """Compile a function when it is first called; it runs without Python's lock."""
    if numba is None:
        return function
    folder, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _cache_folder()  # read when the function is decorated
    try:
        return numba.njit(nogil=True, fastmath=REORDER, error_model='numpy', cache=True, no_cfunc_wrapper=True,
                          **options)(function)
    finally:
        numba.config.CACHE_DIR = folder


def inner(function):
    """As jit, for a function that only compiled ones call. What Python needs to call it is left out, which takes longer
    to compile than a short loop.

    It is inlined always: a process that compiles would else run the machine code of the function itself, and one that
    finds its caller in the cache the copy that was optimised with the caller, which adds up in another order.
    """
    return jit(function, no_cpython_wrapper=True, forceinline=True)


@functools.lru_cache(None)
def on_first_compilation(say):
    """Call say(folder) when numba compiles a function of this package, rather than finding it in that folder, for the
    first time in this process."""
    from numba.core import event

    class Listener(event.Listener):

        def on_start(self, event):
            if event.data['dispatcher'].py_func.__module__.split('.')[0] == __package__ and not said:
                said.append(True)
                say(_cache_folder())

        def on_end(self, event):
            pass
    said = []
    event.register('numba:compile', Listener())


@functools.lru_cache(None)
def _pool():
    return concurrent.futures.ThreadPoolExecutor(max(1, cpu_threads() - 1))


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def on_all_cores(function, jobs, *arguments):
    """Call function(*arguments, begin, end) on all cores, each with its part of range(jobs). Python's threads will do:
    numba's own take twice as long to compile, and another OpenMP beside Paddle's makes both slow."""
    parts = min(cpu_threads(), jobs)
    bounds = [jobs * part // max(parts, 1) for part in range(parts + 1)]
    others = [_pool().submit(function, *arguments, *bounds[part:part + 2]) for part in range(1, parts)]
    if parts:
        function(*arguments, *bounds[:2])
    for other in others:
        other.result()


# Passed in place of literals, for each of which numba would compile the called function once more.
FIRST, YES, NO = np.int64(0), np.bool_(True), np.bool_(False)

floats = None
if numba is not None:
    from numba.core import cgutils, types

    @numba.extending.intrinsic
    def _pointer(context, address):
        """An integer as a pointer: a tensor's memory, without the 20 microseconds that wrapping it in a numpy array
        takes."""
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)
        return types.voidptr(address), generate

    @numba.njit(inline='always')
    def floats(address, size):
        """The memory at an address as an array."""
        return numba.carray(_pointer(address), (size,), np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Depthwise: layout g, a row of planes `buffer`, a row of output positions `line`
# ---------------------------------------------------------------------------------------------------------------------


@inner
def fill(row, value):
    """row[:] = value, which takes numba longer to compile each time."""
    for p in range(len(row)):
        row[p] = value


@inner
def _row_in_planes(row, column, image, g):
    """Where the pixels column, column + stride, … of an image's row begin in the planes; the stride is 1 or 2, so
    halves are shifts."""
    half, line, place = g[STRIDE] - 1, row + g[PADDING], column + g[PADDING]
    plane = (line & half) * g[STRIDE] + (place & half)
    return plane * g[PLANE] + (image * g[ROWS] + (line >> half)) * g[PITCH] + (place >> half)


@inner
def spread(buffer, source, start, stride_image, images, g, scale, mean, floor):
    """Write max(floor, scale * (image - mean)) into the planes; source[start + image * stride_image + pixel]."""
    height, width, stride = g[HEIGHT], g[WIDTH], g[STRIDE]
    for image in range(images):
        for row in range(height):
            first = start + image * stride_image + row * width
            if stride == 1:
                pixels, target = source[first:first + width], buffer[_row_in_planes(row, FIRST, image, g):][:width]
                for k in range(width):
                    value = scale * (pixels[k] - mean)
                    target[k] = floor if value < floor else value
            else:
                for column in range(min(2, width)):
                    count = (width - column + 1) >> 1
                    pixels = source[first + column:first + width]
                    target = buffer[_row_in_planes(row, column, image, g):][:count]
                    for k in range(count):
                        value = scale * (pixels[2 * k] - mean)
                        target[k] = floor if value < floor else value


@inner
def collect(result, start, stride_image, images, g, gradient, buffer, masked):
    """Add to `result` what lies in the planes `gradient` where the image was above 0 (or everywhere, if not masked):
    spread backwards."""
    height, width, stride = g[HEIGHT], g[WIDTH], g[STRIDE]
    for image in range(images):
        for row in range(height):
            first = start + image * stride_image + row * width
            for column in range(min(stride, width)):
                at, count = _row_in_planes(row, column, image, g), (width - column + stride - 1) >> (stride - 1)
                pixels = result[first + column:first + width]
                values, inputs = gradient[at:at + count], buffer[at:at + count]
                if stride == 1:
                    for k in range(count):
                        pixels[k] += values[k] if inputs[k] > 0 or not masked else np.float32(0)
                else:
                    for k in range(count):
                        pixels[2 * k] += values[k] if inputs[k] > 0 or not masked else np.float32(0)


@inner
def line_to_pixels(pixels, start, stride_image, line, front, images, g):
    """The outputs without what lies between the image rows."""
    pitch, rows, height, width = g[PITCH], g[ROWS], g[OUT_HEIGHT], g[OUT_WIDTH]
    for image in range(images):
        for row in range(height):
            at, to = front + (image * rows + row) * pitch, start + image * stride_image + row * width
            some, target = line[at:at + width], pixels[to:to + width]
            for k in range(width):  # an assignment of slices would take three times as long
                target[k] = some[k]


@inner
def pixels_to_line(line, front, pixels, start, stride_image, images, g):
    pitch, rows, height, width = g[PITCH], g[ROWS], g[OUT_HEIGHT], g[OUT_WIDTH]
    for image in range(images):
        for row in range(height):
            at, to = front + (image * rows + row) * pitch, start + image * stride_image + row * width
            some, target = pixels[to:to + width], line[at:at + width]
            for k in range(width):
                target[k] = some[k]


@inner
def _tap(weight, first, tap):
    return weight[first + tap] if tap >= 0 else np.float32(0)


@inner
def convolve(line, buffer, images, g, weight, first):
    """line = the depthwise convolution of the planes with the kernel weight[first:]."""
    length = ((images - 1) * g[ROWS] + g[OUT_HEIGHT]) * g[PITCH]
    total = line[:length]
    for k in range(g[PASSES]):
        t = FIRST_PASS + k * PASS_LENGTH
        base = g[t] * g[PLANE]
        a, b, c = _tap(weight, first, g[t + 1]), _tap(weight, first, g[t + 3]), _tap(weight, first, g[t + 5])
        d, e = _tap(weight, first, g[t + 7]), _tap(weight, first, g[t + 9])
        v, w = buffer[base + g[t + 2]:][:length], buffer[base + g[t + 4]:][:length]
        x = buffer[base + g[t + 6]:][:length]
        y, z = buffer[base + g[t + 8]:][:length], buffer[base + g[t + 10]:][:length]
        if k == 0:
            for p in range(length):
                total[p] = a * v[p] + b * w[p] + c * x[p] + d * y[p] + e * z[p]
        else:
            for p in range(length):
                total[p] += a * v[p] + b * w[p] + c * x[p] + d * y[p] + e * z[p]


@inner
def convolve_backward(gradient, line, images, g, weight, first):
    """The gradient of the planes, from that of the outputs, which lies behind line[front]; zeros lie around and
    between its rows."""
    plane, front, done = g[PLANE], g[FRONT], -1
    length = plane
    for k in range(g[PASSES]):
        t = FIRST_PASS + k * PASS_LENGTH
        number = g[t]
        a, b, c = _tap(weight, first, g[t + 1]), _tap(weight, first, g[t + 3]), _tap(weight, first, g[t + 5])
        d, e = _tap(weight, first, g[t + 7]), _tap(weight, first, g[t + 9])
        v, w, x = line[front - g[t + 2]:][:length], line[front - g[t + 4]:][:length], line[front - g[t + 6]:][:length]
        y, z = line[front - g[t + 8]:][:length], line[front - g[t + 10]:][:length]
        total = gradient[number * plane:][:length]
        if number != done:
            for p in range(length):
                total[p] = a * v[p] + b * w[p] + c * x[p] + d * y[p] + e * z[p]
        else:
            for p in range(length):
                total[p] += a * v[p] + b * w[p] + c * x[p] + d * y[p] + e * z[p]
        done = number


@inner
def convolve_weight(result, first, line, buffer, images, g):
    """Add the gradient of the kernel to result[first:], from the planes and the gradient of the outputs behind
    line[front]."""
    length = ((images - 1) * g[ROWS] + g[OUT_HEIGHT]) * g[PITCH]
    upstream = line[g[FRONT]:][:length]
    sums = np.zeros(TAPS, np.float32)
    for k in range(g[PASSES]):
        t = FIRST_PASS + k * PASS_LENGTH
        base = g[t] * g[PLANE]
        v, w = buffer[base + g[t + 2]:][:length], buffer[base + g[t + 4]:][:length]
        x = buffer[base + g[t + 6]:][:length]
        y, z = buffer[base + g[t + 8]:][:length], buffer[base + g[t + 10]:][:length]
        a = b = c = d = e = np.float32(0)
        for p in range(length):
            u = upstream[p]
            a += u * v[p]
            b += u * w[p]
            c += u * x[p]
            d += u * y[p]
            e += u * z[p]
        sums[0], sums[1], sums[2], sums[3], sums[4] = a, b, c, d, e
        for i in range(TAPS):
            if g[t + 1 + 2 * i] >= 0:
                result[first + g[t + 1 + 2 * i]] += sums[i]
