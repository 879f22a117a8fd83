"""The poolings and skip connections among the compiled passes of edges.py; edge_loops.py says how jobs and tensors lie.
"""
import numpy as np

from kernels.compiled import (
    FIRST,
    NO,
    YES,
    collect,
    convolve,
    convolve_backward,
    fill,
    floats,
    inner,
    jit,
    line_to_pixels,
    pixels_to_line,
    spread,
)
from kernels.edge_loops import GROUPED, LOWEST, NCHW, ONE, ZERO, gather, moments_of, where
from kernels.layout import (
    FIRST_PASS,
    FRONT,
    HEIGHT,
    KERNEL,
    OUT_HEIGHT,
    OUT_WIDTH,
    PASS_LENGTH,
    PASSES,
    PITCH,
    PLANE,
    ROWS,
    STRIDE,
    TAPS,
    WIDTH,
)

LARGEST, AVERAGE, IDENTITY = 0, 1, 2  # kinds of what is no convolution


@jit
def pool_forward(memory, kinds, inverse_counts, tables, images, channels, group, moments, begin, end):
    """Poolings of x, nchw; memory [jobs, 2]: x and the output; kinds [jobs]; inverse_counts [jobs, pixels]: of the
    pixels of an average's windows."""
    jobs = len(memory)
    for number in range(begin, end):
        j, k = number % jobs, number // jobs
        g, first = tables[j], k * group
        count, inside, outside = min(group, images - first), g[HEIGHT] * g[WIDTH], g[OUT_HEIGHT] * g[OUT_WIDTH]
        size, ones = count * outside, np.ones(g[KERNEL], np.float32)
        x, out = floats(memory[j, 0], images * channels * inside), floats(memory[j, 1], images * channels * outside)
        buffer, line = np.empty(g[STRIDE] * g[STRIDE] * g[PLANE], np.float32), np.empty(g[PLANE], np.float32)
        fill(buffer, ZERO if kinds[j] == AVERAGE else LOWEST)
        for c in range(channels):
            start, stride_image = where(NCHW, first, count, c, channels, inside)
            spread(buffer, x, start, stride_image, count, g, ONE, ZERO, LOWEST)
            row = out[first * channels * outside + c * size:][:size]
            if kinds[j] == AVERAGE:
                convolve(line, buffer, count, g, ones, FIRST)
                line_to_pixels(row, FIRST, outside, line, FIRST, count, g)
                for i in range(size):
                    row[i] *= inverse_counts[j, i % outside]
            else:
                largest(line, buffer, count, g)
                line_to_pixels(row, FIRST, outside, line, FIRST, count, g)
            if moments.shape[1]:
                moments_of(row, moments[j, k, c])


@inner
def largest(line, buffer, images, g):
    """line = the largest pixel of each window."""
    total = line[:((images - 1) * g[ROWS] + g[OUT_HEIGHT]) * g[PITCH]]
    fill(total, LOWEST)
    for k in range(g[PASSES]):
        t = FIRST_PASS + k * PASS_LENGTH
        base = g[t] * g[PLANE]
        for i in range(TAPS):
            pixels = buffer[base + g[t + 2 + 2 * i]:][:len(total)]
            for p in range(len(total)):
                total[p] = total[p] if total[p] > pixels[p] else pixels[p]


@inner
def largest_backward(gradient, line, values, buffer, images, g):
    """Give the gradients `line` of the outputs `values`, both behind [front], to the first pixel of their window that
    is as large."""
    length = ((images - 1) * g[ROWS] + g[OUT_HEIGHT]) * g[PITCH]
    left, total = line[g[FRONT]:][:length], values[:length]
    fill(gradient, ZERO)
    for tap in range(g[KERNEL]):  # in the order of the window's rows, as Paddle does, not of the planes
        place = place_of_tap(g, tap)
        pixels, to = buffer[place:][:length], gradient[place:][:length]
        for p in range(length):
            given = left[p] if pixels[p] == total[p] else ZERO
            to[p] += given
            left[p] -= given


@inner
def place_of_tap(g, tap):
    """Where the pixels that a tap of the kernel meets begin in the planes."""
    for k in range(g[PASSES]):
        t = FIRST_PASS + k * PASS_LENGTH
        for i in range(TAPS):
            if g[t + 1 + 2 * i] == tap:
                return g[t] * g[PLANE] + g[t + 2 + 2 * i]
    return 0


@jit
def pool_backward(memory, kinds, inverse_counts, coefficients, scale, ups, tables, images, channels, group, begin, end):
    """Add to dx what comes back through the poolings, and through the identity as the last one.

    memory [jobs, 3]: x, the outputs f and dx; ups [edges]: d, nchw. df = sum_t scale_t * d_t + c1 * f + c2; scale
    [edges, jobs, C], coefficients [jobs, C, 3] with c1, c2 behind a number that isn't used.
    """
    jobs = len(memory)
    for k in range(begin, end):
        first = k * group
        count = min(group, images - first)
        for j in range(jobs):
            g = tables[j]
            inside, outside = g[HEIGHT] * g[WIDTH], g[OUT_HEIGHT] * g[OUT_WIDTH]
            planes = g[STRIDE] * g[STRIDE] * g[PLANE]
            size, ones = count * outside, np.ones(g[KERNEL], np.float32)
            x, dx = floats(memory[j, 0], images * channels * inside), floats(memory[j, 2], images * channels * inside)
            f = floats(memory[j, 1], images * channels * outside)
            buffer, gradient = np.empty(planes, np.float32), np.zeros(planes, np.float32)
            row = np.empty(size, np.float32)
            fill(buffer, LOWEST)
            line, values = np.zeros(g[FRONT] + g[PLANE], np.float32), np.zeros(g[PLANE], np.float32)
            for c in range(channels):
                fill(row, coefficients[j, c, 2])
                gather(row, f, GROUPED, first, count, c, channels, outside, coefficients[j, c, 1], YES)
                for t in range(len(ups)):
                    gather(row, floats(ups[t], images * channels * outside), NCHW, first, count, c, channels, outside,
                           scale[t, j, c], YES)
                start, stride_image = where(NCHW, first, count, c, channels, inside)
                if kinds[j] == IDENTITY:
                    for image in range(count):
                        to, some = dx[start + image * stride_image:][:inside], row[image * inside:][:inside]
                        for p in range(inside):
                            to[p] += some[p]
                    continue
                if kinds[j] == AVERAGE:
                    for i in range(size):
                        row[i] *= inverse_counts[j, i % outside]
                pixels_to_line(line, g[FRONT], row, FIRST, outside, count, g)
                if kinds[j] == AVERAGE:
                    convolve_backward(gradient, line, count, g, ones, FIRST)
                else:
                    spread(buffer, x, start, stride_image, count, g, ONE, ZERO, LOWEST)
                    pixels_to_line(values, FIRST, f, first * channels * outside + c * size, outside, count, g)
                    largest_backward(gradient, line, values, buffer, count, g)
                collect(dx, start, stride_image, count, g, gradient, buffer, NO)
