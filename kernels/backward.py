"""The compiled backward pass of a plan (plans.py), from the gradients of the outputs to those of x, the weights of the
sums and the parameters.

Batch norm is linear in the gradient d of its output (Ioffe, Szegedy 2015, section 3). With M values a channel

    df = c0 * d + c1 * f + c2,  c0 = gamma / std,  c1 = -c0 * sum(d * (f - mean)) / (std^2 * M),
    c2 = -c0 * sum(d) / M - c1 * mean

so one pass over the gradients takes both sums, and the backward pass of the convolution applies c0, c1 and c2 while it
reads d and f. In evaluation mode c1 = c2 = 0.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import floats, inner, jit, pasted, shared
from kernels.depthwise import add_correlations, convolve, spread_gradient
from kernels.forward import array_of, memory_of, multiply_windows, place_of, read_input, row_step
from kernels.images import (
    LOWEST,
    NO,
    NO_FLOOR,
    ONE,
    YES,
    ZERO,
    Place,
    address,
    collect,
    copy_to_line,
    fill,
    from_line,
    give_to_largest,
    nchw,
    one_row,
    spread,
    two_sums,
)
from kernels.products import multiply, multiply_weight, offsets_of, starts_of
from kernels.threads import wait_at
from kernels.units import AVERAGE, DENSE, ONE_TAP, POINTWISE, SEPARABLE
from kernels.vectors import combine_rows
from kernels.weights import add_parts, turn_weights
from kernels.windows import unpack


class Gradients(NamedTuple):
    """Arrays of the backward pass.

    outs: addresses of the gradients of the outputs, NCHW. sums [parts, norms, C, 2]: of the gradient d of what a norm
    gives and of d * (f - mean). coefficients [norms, C, 3]: c0, c1, c2, with the strength of a term in c0. strengths
    [terms]: the gradients of the weights of the sums. partial [parts, weights]: sums of the convolutions' gradients;
    turned [weights]: their weights as the backward pass reads them. weights_wanted: whether these gradients are.
    """

    outs: np.ndarray
    sums: np.ndarray
    coefficients: np.ndarray
    strengths: np.ndarray
    partial: np.ndarray
    turned: np.ndarray
    weights_wanted: bool


@jit
def backward_pass(tables, call, gradients, barrier, begin, end):
    """Compute the gradients. For threads.with_barrier."""
    parts, groups, levels = tables.parts, tables.groups, len(tables.levels) - 1
    threads = parts if end - begin < parts else 1
    outputs = len(gradients.outs)
    for part in range(begin, end):
        fill(gradients.partial[part], ZERO)
        for number in range(part, len(call.steps), parts):
            turn_weights(tables, call, gradients, number)
        for job in range(outputs * groups * part // parts, outputs * groups * (part + 1) // parts):
            sum_gradients(tables, call, gradients, job % outputs, job // outputs, part)
    wait_at(barrier, threads, 1)
    for level in range(levels, 0, -1):  # of the values; the steps that have computed them are those of level - 1
        for part in range(begin, end):
            for number in range(part, len(call.norms), parts):
                if call.norms[number].used == level:
                    find_coefficients(tables, call, gradients, number)
        wait_at(barrier, threads, 2 * (levels - level) + 2)
        for part in range(begin, end):
            memory = memory_of(tables, call, part)
            for group in range(groups * part // parts, groups * (part + 1) // parts):
                if level == 1 and call.values[0].gradient != 0:
                    identities_back(tables, call, gradients, group)
                for number in range(tables.levels[level - 1], tables.levels[level]):
                    if call.values[call.steps[number].source].gradient == 0 and not gradients.weights_wanted:
                        continue
                    if call.steps[number].kind >= AVERAGE:
                        if call.values[0].gradient != 0:
                            pool_back(tables, call, gradients, number, group, part, memory)
                    elif call.steps[number].kind == DENSE:
                        dense_back(tables, call, gradients, number, group, part, memory)
                    else:
                        product_back(tables, call, gradients, number, group, part, memory)
        wait_at(barrier, threads, 2 * (levels - level) + 3)
    for part in range(begin, end):
        for number in range(len(call.steps) if gradients.weights_wanted else 0):
            add_parts(tables, call, gradients, number, part)


@pasted
def sum_gradients(tables, call, gradients, output, group, part):
    """The sums for the norms of an output's terms, of a group of images."""
    first = group * tables.group
    count = min(tables.group, tables.images - first)
    for term in range(tables.outputs[output], tables.outputs[output + 1]):
        number = tables.terms[term].norm
        norm = call.norms[number]
        value = call.values[norm.value]
        d, f = floats(gradients.outs[output], tables.images * value.channels * value.pixels), array_of(tables, value)
        for c in range(value.channels if norm.summed else 0):
            two_sums(gradients.sums[part, number, c], d, nchw(first, count, c, value.channels, value.pixels), f,
                     place_of(value, first, count, c), value.pixels, call.mean[number, c])


@pasted
def find_coefficients(tables, call, gradients, number):
    """c0, c1 and c2 of a norm from its sums, and the gradients of its parameters and of the weight of its term."""
    norm = call.norms[number]
    value = call.values[norm.value]
    channels, count = value.channels, tables.images * value.pixels
    strength, gradient = np.float64(call.strengths[norm.term]) if norm.term >= 0 else 1.0, 0.0
    for c in range(channels):
        total = both = c1 = c2 = 0.0  # the sums of d and of d * (f - mean)
        for part in range(tables.parts):
            total += gradients.sums[part, number, c, 0]
            both += gradients.sums[part, number, c, 1]
        scale, inverse = strength * call.scale[number, c], np.float64(call.inverse[number, c])
        if norm.trains:
            c1 = -scale * inverse * inverse * both / count
            c2 = -scale * total / count - c1 * call.mean[number, c]
        gradients.coefficients[number, c, 0] = scale
        gradients.coefficients[number, c, 1], gradients.coefficients[number, c, 2] = c1, c2
        gradient += call.scale[number, c] * both
        if norm.beta:
            gradient += floats(norm.beta, channels)[c] * total
        if norm.gamma_gradient:
            floats(norm.gamma_gradient, channels)[c] = strength * inverse * both
            floats(norm.beta_gradient, channels)[c] = strength * total
        if norm.bias_gradient:  # the mean of a batch takes away what a bias adds
            floats(norm.bias_gradient, channels)[c] = 0.0 if norm.trains else scale * total
    if norm.term >= 0:
        gradients.strengths[norm.term] = gradient


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions, for a group of images
# ---------------------------------------------------------------------------------------------------------------------


@shared
def read_gradient(tables, call, gradients, number, first, memory):
    """df of a convolution's filters into memory.rows: for a dense one in lines, with zeros between the pixels' rows."""
    step, (w, _) = call.steps[number], unpack(tables.geometry[number])
    result, norm = call.values[step.result], call.norms[step.result_norm]
    count, height, width, start = min(tables.group, tables.images - first), 1, result.pixels, 0
    from_row, from_image, from_filter = 0, result.pixels, row_step(count * result.pixels)
    if step.kind == DENSE:
        height, width, start, from_row, from_image, from_filter = (w.out_height, w.out_width, w.front, w.pitch, w.image,
                                                                   w.line)
        fill(memory.rows[:step.filters * w.line], ZERO)
    elements = tables.images * result.channels * result.pixels
    d = floats(gradients.outs[tables.terms[norm.term].output] if norm.term >= 0 else result.gradient, elements)
    f = floats(result.data, elements) if norm.trains else d  # where it does not count it may be infinite
    for filter_ in range(step.filters):
        c = step.first + filter_
        of_d = of_f = place_of(result, first, count, c)
        if norm.term >= 0:
            of_d = nchw(first, count, c, result.channels, result.pixels)
        if not norm.trains:
            of_f = of_d
        c0, c1, c2 = gradients.coefficients[step.result_norm, c]
        for image in range(count):
            for row in range(height):
                to = start + filter_ * from_filter + image * from_image + row * from_row
                combine_rows(address(memory.rows, to), address(d, of_d.start + image * of_d.step + row * width),
                             address(f, of_f.start + image * of_f.step + row * width), width, c0, c1, c2)


@pasted
def product_back(tables, call, gradients, number, group, part, memory):
    """Of a pointwise product and what comes before it."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    source, pixels = call.values[step.source], call.values[step.result].pixels
    first, taps = group * tables.group, len(t.taps)
    count = min(tables.group, tables.images - first)
    inputs, filters, size = step.channels // step.groups, step.filters // step.groups, count * pixels
    pitch = row_step(size)
    x, floor = array_of(tables, source), ZERO if step.relu else NO_FLOOR
    read_gradient(tables, call, gradients, number, first, memory)
    for k in range(step.groups if source.gradient or step.kind == SEPARABLE else 0):
        multiply(memory.upstream[k * inputs * pitch:], pitch,
                 gradients.turned[step.weight_at + k * inputs * filters:], memory.rows[k * filters * pitch:],
                 starts_of(filters, pitch), inputs, size)
    if step.kind != POINTWISE:
        fill(memory.planes[:w.block], ZERO)
        fill(memory.line[:w.line], ZERO)
    if step.kind == ONE_TAP:
        fill(memory.gradient[:w.block], ZERO)  # pixels that no tap reads
    depthwise = floats(step.depthwise, step.channels * taps)
    for c in range(step.channels):
        place, in_rows = place_of(source, first, count, c), Place(c * pitch, pixels, count)
        planes = memory.between[c * pitch:] if step.kind == POINTWISE else memory.planes
        gradient = memory.upstream[c * pitch:] if step.kind == POINTWISE else memory.gradient
        spread(planes, x, place, w, t.places, call.scale[step.norm, c], call.shift[step.norm, c], floor)
        if step.kind == SEPARABLE:
            if gradients.weights_wanted:
                convolve(gradient, depthwise[c * taps:], planes, t, w)
                from_line(memory.between, in_rows, gradient, w, ONE, ZERO)
            copy_to_line(memory.line[w.front:], memory.upstream, in_rows, w)
            if gradients.weights_wanted:
                add_correlations(gradients.partial[part, step.depthwise_at + c * taps:], memory.line[w.front:], planes,
                                 t, w)
            if source.gradient:
                spread_gradient(gradient, gradients.turned[step.depthwise_at + c * taps:], memory.line, t, w)
        elif step.kind == ONE_TAP:
            from_line(memory.between, in_rows, planes[t.taps[0]:], w, ONE, ZERO)
            copy_to_line(gradient[t.taps[0]:], memory.upstream, in_rows, w)
        give_to_source(tables, call, gradients, number, first, part, (c, gradient, planes))
    for k in range(step.groups if gradients.weights_wanted else 0):
        multiply_weight(gradients.partial[part, step.weight_at + k * filters * inputs:],
                        memory.rows[k * filters * pitch:], pitch, memory.between[k * inputs * pitch:],
                        starts_of(inputs, pitch), filters, size)


@pasted
def dense_back(tables, call, gradients, number, group, part, memory):
    """Of a dense convolution."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    first, taps = group * tables.group, len(t.taps)
    inputs, filters = step.channels // step.groups, step.filters // step.groups
    read_gradient(tables, call, gradients, number, first, memory)
    read_input(tables, call, number, first, memory)
    for k in range(step.groups if call.values[step.source].gradient else 0):
        at = step.weight_at + k * filters * inputs * taps
        for plane in range(len(t.planes)):
            some = t.backwards[t.starts[plane]:t.starts[plane + 1]]
            multiply(memory.gradient[k * inputs * w.block + t.planes[plane]:], w.block, gradients.turned[at:],
                     memory.rows[k * filters * w.line:], offsets_of(some, filters, w.line), inputs, w.span)
            at += inputs * filters * len(some)
    for c in range(step.channels):
        give_to_source(tables, call, gradients, number, first, part,
                       (c, memory.gradient[c * w.block:], memory.planes[c * w.block:]))
    for k in range(step.groups if gradients.weights_wanted else 0):
        multiply_weight(gradients.partial[part, step.weight_at + k * filters * inputs * taps:],
                        memory.rows[k * filters * w.line + w.front:], w.line, memory.planes[k * inputs * w.block:],
                        offsets_of(t.taps, inputs, w.block), filters, w.length)


@shared
def give_to_source(tables, call, gradients, number, first, part, channel):
    """Add the gradient of a channel's planes to that of the source, if it is wanted, and sum this for the batch norm in
    front; channel: its number, the gradient, the planes."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    source, (c, gradient, planes) = call.values[step.source], channel
    if source.gradient == 0:
        return
    count = min(tables.group, tables.images - first)
    place, dx = place_of(source, first, count, c), floats(source.gradient,
                                                          tables.images * source.channels * source.pixels)
    collect(dx, place, w, t.places, gradient, planes, step.relu == 1, step.adds == 1)
    if step.last and call.norms[step.norm].summed:
        whole = one_row(place.start)
        two_sums(gradients.sums[part, step.norm, c], dx, whole, array_of(tables, source), whole, count * source.pixels,
                 call.mean[step.norm, c])


# ---------------------------------------------------------------------------------------------------------------------
# What has no weights
# ---------------------------------------------------------------------------------------------------------------------


@pasted
def identities_back(tables, call, gradients, group):
    """What x gets from the outputs that contain it."""
    x, first = call.values[0], group * tables.group
    size, begin = tables.images * x.channels * x.pixels, first * x.channels * x.pixels
    count = min(tables.group, tables.images - first) * x.channels * x.pixels
    dx, added = floats(x.gradient, size)[begin:][:count], NO
    for term in range(len(tables.terms)):
        number, output = tables.terms[term].norm, tables.terms[term].output
        if call.norms[number].value == 0:
            d = floats(gradients.outs[output], size)[begin:][:count]
            scale_or_add(dx, gradients.coefficients[number, 0, 0], d, added)
            added = YES


@inner
def scale_or_add(row, scale, values, add):
    """row (+)= scale * values."""
    if add:
        for p in range(len(row)):
            row[p] += scale * values[p]
    else:
        for p in range(len(row)):
            row[p] = scale * values[p]


@pasted
def pool_back(tables, call, gradients, number, group, part, memory):
    """Of a pooling, which has a norm in each output that contains it."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    result, first = call.values[step.result], group * tables.group
    count, average = min(tables.group, tables.images - first), step.kind == AVERAGE
    pixels, ones = result.pixels, np.ones(len(t.taps), np.float32)
    f, size = array_of(tables, result), tables.images * result.channels * pixels
    divisors, source = tables.divisors[step.divisors_at:][:pixels], call.values[step.source]
    fill(memory.planes[:w.block], LOWEST)
    fill(memory.line[:w.line], ZERO)
    for c in range(step.channels):
        grouped, of_d = place_of(result, first, count, c), nchw(first, count, c, result.channels, pixels)
        fill(memory.rows[:count * pixels], ZERO)
        for term in range(len(tables.terms)):
            norm = tables.terms[term].norm
            if call.norms[norm].value != step.result:
                continue
            d, (c0, c1, c2) = floats(gradients.outs[tables.terms[term].output], size), gradients.coefficients[norm, c]
            for image in range(count):
                row, given = memory.rows[image * pixels:][:pixels], d[of_d.start + image * of_d.step:][:pixels]
                scale_or_add(row, c0, given, YES)
                if call.norms[norm].trains:
                    some = f[grouped.start + image * grouped.step:][:pixels]
                    for p in range(pixels):
                        row[p] += c1 * some[p] + c2
        if average:
            multiply_windows(memory.rows[:count * pixels], divisors)
        copy_to_line(memory.line[w.front:], memory.rows, Place(0, pixels, count), w)
        if average:
            spread_gradient(memory.gradient, ones, memory.line, t, w)
        else:
            place = place_of(source, first, count, c)
            spread(memory.planes, array_of(tables, source), place, w, t.places, ONE, ZERO, LOWEST)
            copy_to_line(memory.between, f, grouped, w)
            give_to_largest(memory.gradient[:w.block], memory.line[w.front:], memory.between, memory.planes, t.taps,
                            w.length)
        give_to_source(tables, call, gradients, number, first, part, (c, memory.gradient, memory.planes))
