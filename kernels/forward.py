"""The compiled forward pass of a plan (plans.py); windows.py describes how images are convolved.

The kinds of steps, for a group of images:

    SEPARABLE   each channel is convolved by itself (depthwise.py); of what comes out a product of matrices makes f
    POINTWISE   the same product, of the pixels themselves
    ONE_TAP     the same product, of every second pixel: 1x1 kernels with a stride or padding, FactorizedReduce
    DENSE       a product whose rows are the channels once for each tap of the kernel
    AVERAGE, LARGEST   poolings

What lies between ReLU and product is never written to a tensor; the backward pass computes it again where the weights'
gradient needs it. A batch norm needs the mean and variance of all images before the next step can begin: at the end of
each level all threads wait for each other, compute them, and wait again.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import floats, inner, jit, pasted, shared
from kernels.depthwise import convolve
from kernels.images import (
    LOWEST,
    NO_FLOOR,
    ONE,
    ZERO,
    Place,
    address,
    fill,
    from_line,
    largest,
    nchw,
    spread,
    take_moments,
)
from kernels.plans import NCHW
from kernels.products import multiply, offsets_of, starts_of
from kernels.threads import wait_at
from kernels.units import AVERAGE, DENSE, POINTWISE, SEPARABLE
from kernels.vectors import scale_row
from kernels.windows import unpack


class Call(NamedTuple):
    """What is new in each call: the tables of plans.py with their addresses, and arrays.

    outs: addresses of the outputs. strengths [terms]: the weights. mean, inverse (1 / standard deviation), scale, shift
    [norms, C]: scale * f + shift is what the norm gives. moments [values, groups, C, 2]: mean and sum of squared
    deviations of each group of images, of the values that need them. memory [parts, elements].
    """

    values: np.ndarray
    norms: np.ndarray
    steps: np.ndarray
    outs: np.ndarray
    strengths: np.ndarray
    mean: np.ndarray
    inverse: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    moments: np.ndarray
    memory: np.ndarray


class Memory(NamedTuple):
    """Arrays that a thread uses for a group of images in one step. rows: what the product gives, or its gradient, and
    upstream, between: of its other factor, the channels one behind the other, [C, images * pixels] or in lines; planes,
    gradient: of all channels or of one, and their gradient; line: of one channel."""

    rows: np.ndarray
    upstream: np.ndarray
    between: np.ndarray
    planes: np.ndarray
    gradient: np.ndarray
    line: np.ndarray


@inner
def row_step(size):
    """From one row of Memory's rows, upstream and between to the next, for rows of so many elements: steps of 4,096
    bytes would let all rows compete for the same few lines of the cache."""
    return (size + 15) // 16 * 16 + 16


@inner
def memory_of(tables, call, part):
    memory, at = call.memory[part], tables.sections
    return Memory(memory[at[0]:at[1]], memory[at[1]:at[2]], memory[at[2]:at[3]], memory[at[3]:at[4]],
                  memory[at[4]:at[5]], memory[at[5]:at[6]])


@jit
def forward_pass(tables, call, barrier, begin, end):
    """Compute the outputs. For threads.with_barrier."""
    parts, groups = tables.parts, tables.groups
    threads = parts if end - begin < parts else 1
    for part in range(begin, end):
        for number in range(part, len(call.norms), parts):
            if not call.norms[number].trains:
                take_statistics(tables, call, number)
    wait_at(barrier, threads, 1)
    for level in range(len(tables.levels) - 1):
        first, steps = tables.levels[level], tables.levels[level + 1] - tables.levels[level]
        for part in range(begin, end):
            memory = memory_of(tables, call, part)
            for job in range(steps * groups * part // parts, steps * groups * (part + 1) // parts):
                number, group = first + job % steps, job // steps
                if call.steps[number].kind < AVERAGE:
                    convolve_group(tables, call, number, group, memory)
                else:
                    pool_group(tables, call, number, group, memory)
        wait_at(barrier, threads, 2 * level + 2)
        for part in range(begin, end):
            for number in range(part, len(call.norms), parts):
                if call.norms[number].trains and call.norms[number].made == level:
                    take_statistics(tables, call, number)
        wait_at(barrier, threads, 2 * level + 3)
    outputs = len(call.outs)
    for part in range(begin, end):
        for job in range(outputs * groups * part // parts, outputs * groups * (part + 1) // parts):
            add_terms(tables, call, job % outputs, job // outputs)


@inner
def place_of(value, first, count, channel):
    """The Place of a channel of the `count` images from `first` on, which form a group."""
    if value.order == NCHW:
        return nchw(first, count, channel, value.channels, value.pixels)
    return Place((first * value.channels + channel * count) * value.pixels, value.pixels, count)


@inner
def array_of(tables, value):
    return floats(value.data, tables.images * value.channels * value.pixels)


@pasted
def convolve_group(tables, call, number, group, memory):
    """f of a group of images; where the value is the output itself (NCHW), batch norm included."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    result, first = call.values[step.result], group * tables.group
    count = min(tables.group, tables.images - first)
    f, size, dense = array_of(tables, result), count * result.pixels, step.kind == DENSE
    pitch = row_step(size)
    read_input(tables, call, number, first, memory)
    inputs, filters = step.channels // step.groups, step.filters // step.groups  # of a group of the convolution
    columns = inputs * len(t.taps) if dense else inputs
    weight = floats(step.weight, step.filters * columns)
    offsets = offsets_of(t.taps, inputs, w.block) if dense else starts_of(inputs, pitch)
    for k in range(step.groups):
        to = step.first + k * filters
        if dense:
            multiply(memory.rows, w.line, weight[k * filters * columns:], memory.planes[k * inputs * w.block:],
                     offsets, filters, w.length)
        else:
            target, from_row = memory.rows, pitch
            if result.order != NCHW:
                target, from_row = f[(first * result.channels + to * count) * result.pixels:], size
            multiply(target, from_row, weight[k * filters * columns:], memory.between[k * inputs * pitch:],
                     offsets, filters, size)
        for row in range(filters if dense or result.order == NCHW else 0):
            place, scale, shift = place_of(result, first, count, to + row), ONE, ZERO
            if result.order == NCHW:
                scale, shift = call.scale[step.result_norm, to + row], call.shift[step.result_norm, to + row]
            if dense:
                from_line(f, place, memory.rows[row * w.line:], w, scale, shift)
                continue
            for image in range(count):
                scale_row(address(f, place.start + image * place.step),
                          address(memory.rows, row * pitch + image * result.pixels), result.pixels, scale, shift,
                          NO_FLOOR)
    for c in range(step.first, step.first + step.filters if result.trains else step.first):
        take_moments(call.moments[step.result, group, c], f, place_of(result, first, count, c).start, size)


@shared
def read_input(tables, call, number, first, memory):
    """The input of a step's product for the group of images from `first` on: into memory.planes of a dense convolution,
    else into memory.between."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    source, pixels = call.values[step.source], call.values[step.result].pixels
    count, dense = min(tables.group, tables.images - first), step.kind == DENSE
    x, floor = array_of(tables, source), ZERO if step.relu else NO_FLOOR
    depthwise = floats(step.depthwise, step.channels * len(t.taps))
    if step.kind != POINTWISE:
        fill(memory.planes[:w.block * (step.channels if dense else 1)], ZERO)
    for c in range(step.channels):
        start = c * row_step(count * pixels)
        target = memory.planes[c * w.block:] if dense else memory.planes
        if step.kind == POINTWISE:
            target = memory.between[start:]
        spread(target, x, place_of(source, first, count, c), w, t.places, call.scale[step.norm, c],
               call.shift[step.norm, c], floor)
        if step.kind == SEPARABLE:
            convolve(memory.line, depthwise[c * len(t.taps):], memory.planes, t, w)
            from_line(memory.between, Place(start, pixels, count), memory.line, w, ONE, ZERO)
        elif not dense and step.kind != POINTWISE:
            from_line(memory.between, Place(start, pixels, count), memory.planes[t.taps[0]:], w, ONE, ZERO)


@pasted
def pool_group(tables, call, number, group, memory):
    """f of a group of images."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    source, result = call.values[step.source], call.values[step.result]
    first = group * tables.group
    count = min(tables.group, tables.images - first)
    x, f, size = array_of(tables, source), array_of(tables, result), count * result.pixels
    divisors, ones = tables.divisors[step.divisors_at:][:result.pixels], np.ones(len(t.taps), np.float32)
    average = step.kind == AVERAGE
    fill(memory.planes[:w.block], ZERO if average else LOWEST)
    for c in range(step.channels):
        spread(memory.planes, x, place_of(source, first, count, c), w, t.places, ONE, ZERO,
               NO_FLOOR if average else LOWEST)
        if average:
            convolve(memory.line, ones, memory.planes, t, w)
        else:
            largest(memory.line, memory.planes, t.taps, w.length)
        place = place_of(result, first, count, c)
        from_line(f, place, memory.line, w, ONE, ZERO)
        if average:
            multiply_windows(f[place.start:][:size], divisors)
        if result.trains:
            take_moments(call.moments[step.result, group, c], f, place.start, size)


@inner
def multiply_windows(row, divisors):
    for image in range(len(row) // len(divisors)):
        some = row[image * len(divisors):][:len(divisors)]
        for p in range(len(divisors)):
            some[p] *= divisors[p]


@shared
def take_statistics(tables, call, number):
    """A batch norm's mean, 1 / standard deviation, scale and shift: of the batch, from the moments of the groups (Chan,
    Golub, LeVeque 1979 for putting groups together), which the running statistics follow as Paddle's do; or the running
    ones. The bias of a convolution in front of it is part of the running mean only."""
    norm = call.norms[number]
    value = call.values[norm.value]
    if norm.running_mean == 0:
        return
    channels = value.channels
    running_mean, running_variance = floats(norm.running_mean, channels), floats(norm.running_variance, channels)
    for c in range(channels):
        bias = np.float64(floats(norm.bias, channels)[c]) if norm.bias else 0.0
        mean, variance, n = running_mean[c] - bias, np.float64(running_variance[c]), 0.0
        if norm.trains:
            mean = variance = 0.0
            for group in range(tables.groups):
                more = float(min(tables.group, tables.images - group * tables.group) * value.pixels)
                delta = call.moments[norm.value, group, c, 0] - mean
                variance += call.moments[norm.value, group, c, 1] + delta * delta * n * more / (n + more)
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


@pasted
def add_terms(tables, call, output, group):
    """An output for a group of images. The mean is taken off first: this keeps digits that a shift would lose."""
    first = group * tables.group
    count = min(tables.group, tables.images - first)
    shape = call.values[call.norms[tables.terms[0].norm].value]  # all terms have one
    channels, pixels = shape.channels, shape.pixels
    out = floats(call.outs[output], tables.images * channels * pixels)
    begin, end = tables.outputs[output], tables.outputs[output + 1]
    for c in range(channels):
        if begin == end:
            for image in range(first, first + count):
                fill(out[(image * channels + c) * pixels:][:pixels], ZERO)
        for term in range(begin, end):
            number = tables.terms[term].norm
            norm = call.norms[number]
            value = call.values[norm.value]
            f, place = array_of(tables, value), place_of(value, first, count, c)
            scale, mean = call.strengths[term] * call.scale[number, c], call.mean[number, c]
            shift = call.strengths[term] * floats(norm.beta, channels)[c] if norm.beta else ZERO
            for image in range(count):
                some = f[place.start + image * place.step:][:pixels]
                add_difference(out[((first + image) * channels + c) * pixels:][:pixels], scale, some, mean, shift,
                               term > begin)


@inner
def add_difference(row, scale, values, mean, shift, add):
    """row (+)= scale * (values - mean) + shift."""
    if add:
        for p in range(len(row)):
            row[p] += scale * (values[p] - mean) + shift
    else:
        for p in range(len(row)):
            row[p] = scale * (values[p] - mean) + shift
