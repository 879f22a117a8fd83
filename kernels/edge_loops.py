"""The compiled passes of edges.py, over images in groups.

Each is called by compiled.on_all_cores with a part of its jobs, range(begin, end): a job is a group of images, or a
group for one of the rows of `memory`. Tensors are given by their addresses. They lie as [N, C, pixels], `nchw`, or,
what only these passes read, group after group as [C, images of the group, pixels], so that a channel of a group is one
row. `tables` holds for each job a layout (layout.py).
"""
import numpy as np

from kernels.compiled import (
    FIRST,
    NO,
    YES,
    collect,
    convolve,
    convolve_backward,
    convolve_weight,
    fill,
    floats,
    inner,
    jit,
    line_to_pixels,
    pixels_to_line,
    spread,
)
from kernels.layout import (
    FRONT,
    HEIGHT,
    KERNEL,
    OUT_HEIGHT,
    OUT_WIDTH,
    PLANE,
    STRIDE,
    WIDTH,
)
from kernels.products import multiply, multiply_weight, transposed

ZERO, ONE, LOWEST = np.float32(0), np.float32(1), np.float32(-3.4e38)
GROUPED, NCHW = np.int64(0), np.int64(1)  # how a tensor lies in memory


@inner
def where(nchw, first, count, channel, channels, pixels):
    """Where a channel of the group that begins with image `first` starts, and how far it is from one image to the
    next."""
    if nchw:
        return (first * channels + channel) * pixels, channels * pixels
    return first * channels * pixels + channel * count * pixels, pixels


@inner
def gather(row, source, nchw, first, count, channel, channels, pixels, scale, add):
    """row (+)= scale * a channel of a group."""
    start, stride_image = where(nchw, first, count, channel, channels, pixels)
    for image in range(count):
        some, to = source[start + image * stride_image:][:pixels], row[image * pixels:][:pixels]
        if add:
            for p in range(pixels):
                to[p] += scale * some[p]
        else:
            for p in range(pixels):
                to[p] = scale * some[p]


@inner
def moments_of(row, result):
    """result = mean and sum of squared deviations of a row."""
    total = ZERO
    for p in range(len(row)):
        total += row[p]
    mean, squares, rest = total / np.float32(len(row)), ZERO, ZERO
    for p in range(len(row)):
        squares += (row[p] - mean) * (row[p] - mean)
        rest += row[p] - mean  # what rounding has left
    result[0], result[1] = mean + rest / np.float32(len(row)), squares


@jit
def update_statistics(moments, images, group, pixels, epsilon, momentum, running, biases, mean, inverse):
    """From the moments [rows, groups, C, 2] of the groups: mean and 1 / sqrt(variance + epsilon), [rows, C]; the
    running statistics, whose addresses are running [rows, 2], follow as Paddle's do (Chan, Golub, LeVeque 1979 for
    putting groups together). biases [rows, C] are added to the running means only. Without groups mean and variance
    are the running ones."""
    rows, groups, channels, _ = moments.shape
    for r in range(rows):
        old_mean, old_variance = floats(running[r, 0], channels), floats(running[r, 1], channels)
        for c in range(channels):
            n, m, squares = 0.0, 0.0, 0.0
            for k in range(groups):
                more = float(min(group, images - k * group) * pixels)
                delta = moments[r, k, c, 0] - m
                squares += moments[r, k, c, 1] + delta * delta * n * more / (n + more)
                n += more
                m += delta * more / n
            if groups:
                mean[r, c], inverse[r, c] = m, 1 / np.sqrt(squares / n + epsilon)
                old_mean[c] = old_mean[c] * momentum + (m + biases[r, c]) * (1 - momentum)
                old_variance[c] = old_variance[c] * momentum + squares / n * (1 - momentum)
            else:
                mean[r, c], inverse[r, c] = old_mean[c] - biases[r, c], 1 / np.sqrt(old_variance[c] + epsilon)


@jit
def forward_pass(memory, nchw, affine, tables, images, channels, group, moments, begin, end):
    """ReLU(scale * (x - mean)), depthwise, pointwise; memory [jobs, 4]: x, both weights, the output; affine [jobs, C,
    2]: scale and mean; moments [jobs, groups, C, 2] or, where they are not wanted, [jobs, 0, C, 2]."""
    jobs = len(memory)
    for number in range(begin, end):
        j, k = number % jobs, number // jobs
        g, first = tables[j], k * group
        count, inside, outside = min(group, images - first), g[HEIGHT] * g[WIDTH], g[OUT_HEIGHT] * g[OUT_WIDTH]
        size = count * outside
        x, depth = floats(memory[j, 0], images * channels * inside), floats(memory[j, 1], channels * g[KERNEL])
        point, out = floats(memory[j, 2], channels * channels), floats(memory[j, 3], images * channels * outside)
        buffer, line = np.zeros(g[STRIDE] * g[STRIDE] * g[PLANE], np.float32), np.empty(g[PLANE], np.float32)
        between = np.empty(channels * size, np.float32)
        for c in range(channels):
            start, stride_image = where(nchw, first, count, c, channels, inside)
            spread(buffer, x, start, stride_image, count, g, affine[j, c, 0], affine[j, c, 1], ZERO)
            convolve(line, buffer, count, g, depth, c * g[KERNEL])
            line_to_pixels(between, c * size, outside, line, FIRST, count, g)
        result = out[first * channels * outside:][:channels * size]
        multiply(result, point, between, channels, channels, size)
        for c in range(channels if moments.shape[1] else 0):
            moments_of(result[c * size:][:size], moments[j, k, c])


@jit
def add_up(memory, nchw, scale, mean, outs, images, channels, group, pixels, begin, end):
    """out_t = sum_k scale_tk * (f_tk - mean_tk), nchw; memory, nchw [edges, operations]: f; scale, mean [edges,
    operations, C]."""
    edges = len(memory)
    for number in range(begin, end):
        t, first = number % edges, number // edges * group
        count = min(group, images - first)
        out = floats(outs[t], images * channels * pixels)
        for c in range(channels):
            for k in range(memory.shape[1]):
                start, stride_image = where(nchw[t, k], first, count, c, channels, pixels)
                source = floats(memory[t, k], images * channels * pixels)
                for image in range(count):
                    some = source[start + image * stride_image:][:pixels]
                    row = out[((first + image) * channels + c) * pixels:][:pixels]
                    add_difference(row, scale[t, k, c], some, mean[t, k, c], k > 0)


@inner
def add_difference(row, scale, values, mean, add):
    """row (+)= scale * (values - mean): taking a mean away first keeps digits that a shift would lose."""
    if add:
        for p in range(len(row)):
            row[p] += scale * (values[p] - mean)
    else:
        for p in range(len(row)):
            row[p] = scale * (values[p] - mean)


@jit
def gradient_sums(memory, nchw, mean, inverse, ups, images, channels, group, pixels, sums, begin, end):
    """sums [edges, operations, groups, C, 2] of d and of d * (f - mean) * inverse; ups [edges]: d, nchw; memory
    [edges, operations]: f."""
    edges = len(memory)
    for number in range(begin, end):
        t, k = number % edges, number // edges
        first = k * group
        count = min(group, images - first)
        d, f = np.empty(count * pixels, np.float32), np.empty(count * pixels, np.float32)
        for c in range(channels):
            gather(d, floats(ups[t], images * channels * pixels), NCHW, first, count, c, channels, pixels, ONE, NO)
            for o in range(memory.shape[1]):
                gather(f, floats(memory[t, o], images * channels * pixels), nchw[t, o], first, count, c, channels,
                       pixels, ONE, NO)
                two_sums(d, f, mean[t, o, c], inverse[t, o, c], sums[t, o, k, c])


@inner
def two_sums(d, f, mean, inverse, result):
    total = product = ZERO
    for p in range(len(d)):
        total += d[p]
        product += d[p] * (f[p] - mean)
    result[0], result[1] = total, product * inverse


@jit
def backward_pass(memory, nchw, affine, mean, inverse, coefficients, tables, images, channels, group, wanted, dweights,
                  sums, begin, end):
    """The way back through forward_pass, from d: df = c0 * d + c1 * f + c2.

    memory [jobs, 6]: x, both weights, f, d and the gradient of x, which jobs add to one tensor where x is nchw (zero
    before), and else have for themselves. nchw: of x, and [jobs] of d. coefficients [jobs, C, 3]. wanted: of x, of the
    weights. dweights [groups, jobs, C * k * k + C * C]: for each job both gradients. sums [jobs, groups, C, 2]: of the
    gradient of scale * (x - mean), and its product with (x - mean) * inverse.
    """
    x_nchw, d_nchw = nchw
    jobs = len(memory)
    for k in range(begin, end):
        first = k * group
        count = min(group, images - first)
        for j in range(jobs):
            g = tables[j]
            inside, outside = g[HEIGHT] * g[WIDTH], g[OUT_HEIGHT] * g[OUT_WIDTH]
            planes = g[STRIDE] * g[STRIDE] * g[PLANE]
            size = count * outside
            x, depth = floats(memory[j, 0], images * channels * inside), floats(memory[j, 1], channels * g[KERNEL])
            point, f = floats(memory[j, 2], channels * channels), floats(memory[j, 3], images * channels * outside)
            d, dx = floats(memory[j, 4], images * channels * outside), floats(memory[j, 5], images * channels * inside)
            df, between = np.empty(channels * size, np.float32), np.empty(channels * size, np.float32)
            for c in range(channels):
                row = df[c * size:][:size]
                fill(row, coefficients[j, c, 2])
                gather(row, f, GROUPED, first, count, c, channels, outside, coefficients[j, c, 1], YES)
                gather(row, d, d_nchw[j], first, count, c, channels, outside, coefficients[j, c, 0], YES)
            multiply(between, transposed(point, channels, channels), df, channels, channels, size)
            buffer, gradient = np.zeros(planes, np.float32), np.zeros(planes, np.float32)
            line = np.zeros(g[FRONT] + g[PLANE], np.float32)
            again = np.empty(channels * size if wanted[1] else 0, np.float32)
            for c in range(channels):
                start, stride_image = where(x_nchw, first, count, c, channels, inside)
                spread(buffer, x, start, stride_image, count, g, affine[j, c, 0], affine[j, c, 1], ZERO)
                if wanted[1]:
                    convolve(line, buffer, count, g, depth, c * g[KERNEL])
                    line_to_pixels(again, c * size, outside, line, FIRST, count, g)
                    fill(line, ZERO)
                pixels_to_line(line, g[FRONT], between, c * size, outside, count, g)
                if wanted[1]:
                    convolve_weight(dweights[k, j], c * g[KERNEL], line, buffer, count, g)
                if wanted[0]:
                    convolve_backward(gradient, line, count, g, depth, c * g[KERNEL])
                    if not x_nchw:
                        fill(dx[start:start + count * inside], ZERO)
                    collect(dx, start, stride_image, count, g, gradient, buffer, YES)
                    if not x_nchw:
                        two_sums(dx[start:][:count * inside], x[start:][:count * inside], mean[j, c], inverse[j, c],
                                 sums[j, k, c])
            if wanted[1]:
                multiply_weight(dweights[k, j, channels * g[KERNEL]:], df, again, channels, channels, size)


@jit
def sum_groups(dweights, starts, memory, begin, end):
    """Put the sum over the groups of dweights [groups, jobs, …] from starts [jobs, 3] on into the tensors at memory
    [jobs, 2]."""
    for j in range(begin, end):
        for part in range(2):
            size = starts[j, part + 1] - starts[j, part]
            out = floats(memory[j, part], size)
            fill(out, ZERO)
            for k in range(len(dweights)):
                some = dweights[k, j, starts[j, part]:][:size]
                for i in range(size):
                    out[i] += some[i]
