"""The compiled forward pass of a plan (plans.py); windows.py describes how images are convolved.

The kinds of steps, for a tile, images of a chunk that are computed at once:

    DENSE       a product of matrices whose rows are the channels once for each tap of the kernel makes f
    SEPARABLE   each channel is convolved by itself (depthwise.py); what comes out are the rows of the product
    AVERAGE, LARGEST   poolings

What lies between ReLU and product is never written to a tensor; the backward pass computes it again where the weights'
gradient needs it. A batch norm needs the mean and variance of all images before the next step can begin: at the end of
each level all threads wait for each other, compute them, wait again, sum up the nodes that are complete, and wait.
"""
import numpy as np

from kernels.call import array_of, bias_of, chunk_images, memory_of, place_of, row_pitch, tile_images, tiles_of
from kernels.compiled import floats, inlined, jit, not_inlined, pasted
from kernels.depthwise import convolve
from kernels.images import (
    LOWEST,
    NO_FLOOR,
    ONE,
    ZERO,
    Place,
    fill,
    image_to_planes,
    line_to_image,
    max_pool,
    take_moments,
)
from kernels.nodes import add_terms
from kernels.products import NO_SHIFT, multiply, offsets_of
from kernels.threads import wait_at
from kernels.units import AVERAGE, DENSE
from kernels.windows import is_pointwise, unpack


@jit
def forward_pass(call, barrier, begin, end):
    """Compute the outputs. For threads.with_barrier."""
    threads, chunks, waits = call.plan.threads, call.plan.chunks, 0
    waiting = threads if end - begin < threads else 1
    for level in range(len(call.plan.levels) - 1):
        first, steps = call.plan.levels[level], call.plan.levels[level + 1] - call.plan.levels[level]
        for thread in range(begin, end):
            memory = memory_of(call, thread)
            for job in range(steps * chunks * thread // threads, steps * chunks * (thread + 1) // threads):
                if call.steps[first + job % steps].active:
                    compute_step(call, first + job % steps, job // steps, memory)
        wait_at(barrier, waiting, waits + 1)
        for thread in range(begin, end):
            for number in range(thread, len(call.norms), threads):
                if call.norms[number].active and call.norms[number].level == level:
                    take_statistics(call, number)
        wait_at(barrier, waiting, waits + 2)
        for thread in range(begin, end):
            for chunk in range(chunks * thread // threads, chunks * (thread + 1) // threads):
                for number in range(len(call.plan.nodes)):
                    if call.plan.nodes[number].level == level:
                        add_terms(call, number, chunk)
        wait_at(barrier, waiting, waits + 3)
        waits += 3


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


@pasted
def compute_step(call, number, chunk, memory):
    """f of a chunk of images, tile by tile."""
    step, all_images = call.steps[number], chunk_images(call, chunk)
    for start in range(0, all_images.count, step.tile_size):
        images = tile_images(all_images, start, step.tile_size)
        tile = chunk * tiles_of(call, call.values[step.result]) + start // step.tile_size
        if step.kind < AVERAGE:
            convolve_images(call, number, images, tile, memory)
        else:
            pool_images(call, number, images, tile, memory)


@pasted
def convolve_images(call, number, images, tile, memory):
    """f of a convolution."""
    step, (w, t) = call.steps[number], unpack(call.plan.geometry[number])
    result, size = call.values[step.result], images.count * call.values[step.result].pixels
    f, pitch, chunk_stride = array_of(call, result), row_pitch(size), images.chunk_count * result.pixels
    read_input(call, number, images, memory)
    inputs, filters = step.channels // step.groups, step.filters // step.groups  # of a group of the convolution
    source, group_stride, offsets = memory.inputs, 0, offsets_of(NO_SHIFT, inputs, pitch)
    if step.kind == DENSE:
        source, group_stride, offsets = memory.planes, inputs * w.channel, offsets_of(t.taps, inputs, w.channel)
    weight = floats(step.weight, step.filters * len(offsets))
    for k in range(step.groups):
        first, group_weight = step.first_filter + k * filters, weight[k * filters * len(offsets):]
        if step.kind == DENSE and (w.out_height > 1 or w.length > size):
            multiply(memory.f_or_df, w.plane, group_weight, source[k * group_stride:], offsets, filters, w.length)
            for row in range(filters):
                line_to_image(f, place_of(result, images, first + row), memory.f_or_df[row * w.plane:], w)
        else:
            multiply(f[place_of(result, images, first).start:], chunk_stride, group_weight, source[k * group_stride:],
                     offsets, filters, size)
    for c in range(step.first_filter, step.first_filter + step.filters if result.trains else step.first_filter):
        take_moments(call.moments[step.result, tile, c], f, place_of(result, images, c).start, size)


@not_inlined
def read_input(call, number, images, memory):
    """The input of a step's product for images: into memory.planes of a dense convolution, else into memory.inputs.
    """
    step, (w, t) = call.steps[number], unpack(call.plan.geometry[number])
    source, pixels, dense = call.values[step.source], call.values[step.result].pixels, step.kind == DENSE
    x, floor, scale, shift = array_of(call, source), ZERO if step.relu else NO_FLOOR, ONE, ZERO
    depthwise = floats(step.depthwise, step.channels * len(t.taps))
    if not is_pointwise(w, t, images.count):
        fill(memory.planes[:w.channel * (step.channels if dense else 1)], ZERO)
    for c in range(step.channels):
        target = memory.planes[c * w.channel:] if dense else memory.planes
        if step.norm:
            scale, shift = call.scale[step.norm, c], call.shift[step.norm, c]
        place = place_of(source, images, step.from_channel + c)
        image_to_planes(target, x, place, w, t.row_starts, scale, shift, floor)
        if not dense:
            convolve(memory.line, depthwise[c * len(t.taps):], memory.planes, t, w)
            in_rows = Place(c * row_pitch(images.count * pixels), pixels, images.count)
            line_to_image(memory.inputs, in_rows, memory.line, w)


@pasted
def pool_images(call, number, images, tile, memory):
    """f of a pooling."""
    step, (w, t) = call.steps[number], unpack(call.plan.geometry[number])
    source, result = call.values[step.source], call.values[step.result]
    x, f, size = array_of(call, source), array_of(call, result), images.count * result.pixels
    divisors, ones = call.plan.divisors[step.divisors_at:][:result.pixels], np.ones(len(t.taps), np.float32)
    average = step.kind == AVERAGE
    fill(memory.planes[:w.channel], ZERO if average else LOWEST)
    for c in range(step.channels):
        image_to_planes(memory.planes, x, place_of(source, images, step.from_channel + c), w, t.row_starts, ONE, ZERO,
                        NO_FLOOR if average else LOWEST)
        if average:
            convolve(memory.line, ones, memory.planes, t, w)
        else:
            max_pool(memory.line, memory.planes, t.taps, w.length)
        place = place_of(result, images, c)
        line_to_image(f, place, memory.line, w)
        if average:
            multiply_windows(f[place.start:][:size], divisors)
        if result.trains:
            take_moments(call.moments[step.result, tile, c], f, place.start, size)


@inlined
def multiply_windows(row, divisors):
    for image in range(len(row) // len(divisors)):
        pixels = row[image * len(divisors):][:len(divisors)]
        for p in range(len(divisors)):
            pixels[p] *= divisors[p]


@not_inlined
def take_statistics(call, number):
    """A batch norm's mean, 1 / standard deviation, scale and shift: of the batch, from the moments of the tiles (Chan,
    Golub, LeVeque 1979 for putting them together), which the running statistics follow as Paddle's do; or the running
    ones. The biases of convolutions in front of it are part of the running mean only."""
    norm = call.norms[number]
    value = call.values[norm.value]
    if norm.running_mean == 0:
        return
    channels, tiles = value.channels, tiles_of(call, value)
    running_mean, running_variance = floats(norm.running_mean, channels), floats(norm.running_variance, channels)
    for c in range(channels):
        bias = np.float64(bias_of(norm.bias, norm.second_bias, norm.second, c)[0]) if norm.bias else 0.0
        mean, variance, n = running_mean[c] - bias, np.float64(running_variance[c]), 0.0
        if norm.trains:
            mean = variance = 0.0
            for tile in range(call.plan.chunks * tiles):
                start = tile % tiles * value.tile_size
                images = min(value.tile_size, chunk_images(call, tile // tiles).count - start)
                if images <= 0:  # the last chunk may be smaller
                    continue
                more, delta = float(images * value.pixels), call.moments[norm.value, tile, c, 0] - mean
                variance += call.moments[norm.value, tile, c, 1] + delta * delta * n * more / (n + more)
                n += more
                mean += delta * more / n
            variance /= n
            running_mean[c] = running_mean[c] * norm.momentum + (mean + bias) * (1 - norm.momentum)
            running_variance[c] = running_variance[c] * norm.momentum + variance * (1 - norm.momentum)
        inverse = np.float32(1 / np.sqrt(variance + norm.epsilon))
        scale = floats(norm.gamma, channels)[c] * inverse if norm.gamma else inverse
        shift = floats(norm.beta, channels)[c] if norm.beta else ZERO
        call.mean[number, c], call.inverse[number, c], call.scale[number, c] = mean, inverse, scale
        call.shift[number, c] = shift - np.float32(mean) * scale
