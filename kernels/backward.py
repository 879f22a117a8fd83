"""The compiled backward pass of a plan (plans.py), from the gradients of the outputs to those of the inputs, the
weights of the sums and the parameters.

Batch norm is linear in the gradient d of its output (Ioffe, Szegedy 2015, section 3). With M values a channel

    df = c0 * d + c1 * f + c2,  c0 = gamma / std,  c1 = -c0 * sum(d * (f - mean)) / (std^2 * M),
    c2 = -c0 * sum(d) / M - c1 * mean

so one pass over the gradients takes both sums, and the backward pass of the convolution applies c0, c1 and c2 while it
reads d and f. In evaluation mode c1 = c2 = 0. In each level, from the last one to the first, the gradients of the
nodes are complete; the sums over them are taken, all threads wait for each other, compute c0, c1 and c2, wait again,
and go back through the steps. A thread has the same chunks of images in all levels.
"""
import numpy as np

from kernels.call import (
    array_of,
    bias_of,
    chunk_images,
    gradient_of,
    memory_of,
    place_of,
    row_step,
    tile_images,
    upstream_of,
)
from kernels.compiled import floats, jit, pasted, shared
from kernels.depthwise import add_correlations, convolve, spread_gradient
from kernels.forward import multiply_windows, read_input
from kernels.images import (
    LOWEST,
    NO_FLOOR,
    ONE,
    YES,
    ZERO,
    Place,
    add_norm_sums,
    address,
    collect,
    copy_to_line,
    fill,
    from_line,
    give_to_largest,
    one_row,
    spread,
)
from kernels.nodes import add_scaled, copy_outputs, identities_back, sum_gradients, zero_unwritten
from kernels.products import multiply, multiply_weight, offsets_of, starts_of
from kernels.threads import wait_at
from kernels.units import AVERAGE, DENSE, DEPTHWISE, ONE_TAP, POINTWISE, SEPARABLE
from kernels.vectors import combine_rows
from kernels.weights import add_parts, arrange_weights
from kernels.windows import unpack


@jit
def backward_pass(tables, call, gradients, barrier, begin, end):
    """Compute the gradients. For threads.with_barrier."""
    parts, chunks, waits = tables.parts, tables.chunks, 1
    threads = parts if end - begin < parts else 1
    for part in range(begin, end):
        fill(gradients.weight_sums[part], ZERO)
        for number in range(part, len(call.steps), parts):
            arrange_weights(tables, call, gradients, number)
        for chunk in range(chunks * part // parts, chunks * (part + 1) // parts):
            copy_outputs(tables, gradients, chunk)
    for level in range(len(tables.levels) - 2, -1, -1):
        for part in range(begin, end):
            for chunk in range(chunks * part // parts, chunks * (part + 1) // parts):
                for number in range(len(tables.nodes)):
                    node = tables.nodes[number]
                    if node.level == level and call.values[node.value].gradient != 0:
                        zero_unwritten(tables, call, gradients, node.value, chunk)
                        sum_gradients(tables, call, gradients, number, chunk, part)
        wait_at(barrier, threads, waits)
        for part in range(begin, end):
            for number in range(part, len(call.norms), parts):
                if call.norms[number].gradient_level == level and call.norms[number].active:
                    find_coefficients(tables, call, gradients, number)
        wait_at(barrier, threads, waits + 1)
        waits += 2
        for part in range(begin, end):
            memory = memory_of(tables, call, part)
            for chunk in range(chunks * part // parts, chunks * (part + 1) // parts):
                for number in range(len(tables.nodes)):
                    if tables.nodes[number].level == level:
                        identities_back(tables, call, gradients, number, chunk)
                for number in range(tables.levels[level], tables.levels[level + 1]):
                    step_back(tables, call, gradients, number, chunk, part, memory)
    wait_at(barrier, threads, waits)
    for part in range(begin, end):
        for chunk in range(chunks * part // parts, chunks * (part + 1) // parts):
            for number in range(tables.inputs):
                zero_unwritten(tables, call, gradients, number, chunk)
        for number in range(len(call.steps) if gradients.weights_wanted else 0):
            add_parts(tables, call, gradients, number, part)


@pasted
def step_back(tables, call, gradients, number, chunk, part, memory):
    """The backward pass of a step, tile by tile."""
    step, all_images = call.steps[number], chunk_images(tables, chunk)
    source = call.values[step.source]
    if not step.active or source.gradient == 0 and (step.kind >= AVERAGE or not gradients.weights_wanted):
        return
    for start in range(0, all_images.count, step.at_once):
        images = tile_images(all_images, start, step.at_once)
        if step.kind >= AVERAGE:
            pool_back(tables, call, gradients, number, images, part, memory)
        elif step.kind == DENSE:
            dense_back(tables, call, gradients, number, images, part, memory)
        else:
            product_back(tables, call, gradients, number, images, part, memory)
    if source.written_row >= 0:
        for c in range(step.from_channel, step.from_channel + step.channels):
            gradients.written[source.written_row, chunk, c] = 1


@pasted
def find_coefficients(tables, call, gradients, number):
    """c0, c1 and c2 of a norm from its sums, and the gradients of its parameters and of the weight of its term."""
    norm = call.norms[number]
    value = call.values[norm.value]
    channels, count = value.channels, tables.images * value.pixels
    strength, of_strength = np.float64(call.strengths[norm.term]) if norm.term >= 0 else 1.0, 0.0
    for c in range(channels):
        sum_d = sum_df = c1 = c2 = 0.0  # of d and of d * (f - mean)
        for part in range(tables.parts):
            sum_d += gradients.sums[part, number, c, 0]
            sum_df += gradients.sums[part, number, c, 1]
        scale, inverse = strength * call.scale[number, c], np.float64(call.inverse[number, c])
        if norm.trains:
            c1 = -scale * inverse * inverse * sum_df / count
            c2 = -scale * sum_d / count - c1 * call.mean[number, c]
        gradients.coefficients[number, c, 0] = scale
        gradients.coefficients[number, c, 1], gradients.coefficients[number, c, 2] = c1, c2
        of_strength += call.scale[number, c] * sum_df
        if norm.beta:
            of_strength += floats(norm.beta, channels)[c] * sum_d
        if norm.gamma_gradient:
            floats(norm.gamma_gradient, channels)[c] = strength * inverse * sum_df
            floats(norm.beta_gradient, channels)[c] = strength * sum_d
        if norm.bias_gradient:  # the mean of a batch takes away what a bias adds
            bias = bias_of(norm.bias_gradient, norm.second_bias_gradient, norm.second, c)
            bias[0] = 0.0 if norm.trains else scale * sum_d
    if norm.term >= 0:
        gradients.strengths[norm.term] = of_strength


# ---------------------------------------------------------------------------------------------------------------------
# Steps, for a tile of images
# ---------------------------------------------------------------------------------------------------------------------


@shared
def read_gradient(tables, call, gradients, number, images, memory):
    """df of a convolution's filters into memory.rows: for a dense one in lines, with zeros between the pixels' rows."""
    step, (w, _) = call.steps[number], unpack(tables.geometry[number])
    result, norm = call.values[step.result], call.norms[step.result_norm]
    height, width, start, dropped = 1, result.pixels, 0, norm.term >= 0 and len(call.factors) > 0
    from_row, from_image, from_filter = 0, result.pixels, row_step(images.count * result.pixels)
    if step.kind == DENSE:
        height, width, start, from_row, from_image, from_filter = (w.out_height, w.out_width, w.front, w.pitch, w.image,
                                                                   w.line)
        fill(memory.rows[:step.filters * w.line], ZERO)
    for filter_ in range(step.filters):
        c = step.first + filter_
        d, of_d = upstream_of(tables, call, step.result_norm, images, c)
        f, of_f = array_of(tables, result), place_of(tables, result, images, c)
        if not norm.trains:  # where f does not count it may be infinite
            f, of_f = d, of_d
        c0, c1, c2 = gradients.coefficients[step.result_norm, c]
        for image in range(images.count):
            factor = c0 * call.factors[norm.term, images.first + image] if dropped else c0
            for row in range(height):
                to = start + filter_ * from_filter + image * from_image + row * from_row
                combine_rows(address(memory.rows, to), address(d, of_d.start + image * of_d.step + row * width),
                             address(f, of_f.start + image * of_f.step + row * width), width, factor, c1, c2)


@pasted
def product_back(tables, call, gradients, number, images, part, memory):
    """The backward pass of a pointwise product and of what comes before it, or of a depthwise convolution alone."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    source, pixels, taps = call.values[step.source], call.values[step.result].pixels, len(t.taps)
    inputs, filters, size = step.channels // step.groups, step.filters // step.groups, images.count * pixels
    pitch = row_step(size)
    x, floor, scale, shift = array_of(tables, source), ZERO if step.relu else NO_FLOOR, ONE, ZERO
    read_gradient(tables, call, gradients, number, images, memory)
    upstream = memory.rows if step.kind == DEPTHWISE else memory.upstream
    for k in range(step.groups if step.kind == SEPARABLE or source.gradient and step.kind != DEPTHWISE else 0):
        multiply(upstream[k * inputs * pitch:], pitch,
                 gradients.backward_weights[step.weight_at + k * inputs * filters:], memory.rows[k * filters * pitch:],
                 starts_of(filters, pitch), inputs, size)
    if step.kind != POINTWISE:
        fill(memory.planes[:w.channel], ZERO)
        fill(memory.line[:w.line], ZERO)
    if step.kind == ONE_TAP:
        fill(memory.gradient[:w.channel], ZERO)  # pixels that no tap reads
    depthwise = floats(step.depthwise, step.channels * taps)
    for c in range(step.channels):
        place, in_rows = place_of(tables, source, images, step.from_channel + c), Place(c * pitch, pixels, images.count)
        planes = memory.between[c * pitch:] if step.kind == POINTWISE else memory.planes
        gradient = upstream[c * pitch:] if step.kind == POINTWISE else memory.gradient
        if step.norm:
            scale, shift = call.scale[step.norm, c], call.shift[step.norm, c]
        spread(planes, x, place, w, t.places, scale, shift, floor)
        if step.kind == SEPARABLE or step.kind == DEPTHWISE:
            if gradients.weights_wanted and step.kind == SEPARABLE:
                convolve(gradient, depthwise[c * taps:], planes, t, w)
                from_line(memory.between, in_rows, gradient, w, ONE, ZERO)
            copy_to_line(memory.line[w.front:], upstream, in_rows, w)
            if gradients.weights_wanted:
                add_correlations(gradients.weight_sums[part, step.depthwise_at + c * taps:], memory.line[w.front:],
                                 planes, t, w)
            if source.gradient:
                spread_gradient(gradient, gradients.backward_weights[step.depthwise_at + c * taps:], memory.line, t, w)
        elif step.kind == ONE_TAP:
            from_line(memory.between, in_rows, planes[t.taps[0]:], w, ONE, ZERO)
            copy_to_line(gradient[t.taps[0]:], upstream, in_rows, w)
        give_to_source(tables, call, gradients, number, images, part, (c, gradient, planes))
    for k in range(step.groups if gradients.weights_wanted and step.kind != DEPTHWISE else 0):
        multiply_weight(gradients.weight_sums[part, step.weight_at + k * filters * inputs:],
                        memory.rows[k * filters * pitch:], pitch, memory.between[k * inputs * pitch:],
                        starts_of(inputs, pitch), filters, size)


@pasted
def dense_back(tables, call, gradients, number, images, part, memory):
    """The backward pass of a dense convolution."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    inputs, filters, taps = step.channels // step.groups, step.filters // step.groups, len(t.taps)
    read_gradient(tables, call, gradients, number, images, memory)
    read_input(tables, call, number, images, memory)
    for k in range(step.groups if call.values[step.source].gradient else 0):
        at = step.weight_at + k * filters * inputs * taps
        for plane in range(len(t.planes)):
            taps_of_plane = t.backwards[t.starts[plane]:t.starts[plane + 1]]
            multiply(memory.gradient[k * inputs * w.channel + t.planes[plane]:], w.channel,
                     gradients.backward_weights[at:], memory.rows[k * filters * w.line:],
                     offsets_of(taps_of_plane, filters, w.line), inputs, w.span)
            at += inputs * filters * len(taps_of_plane)
    for c in range(step.channels):
        give_to_source(tables, call, gradients, number, images, part,
                       (c, memory.gradient[c * w.channel:], memory.planes[c * w.channel:]))
    for k in range(step.groups if gradients.weights_wanted else 0):
        multiply_weight(gradients.weight_sums[part, step.weight_at + k * filters * inputs * taps:],
                        memory.rows[k * filters * w.line + w.front:], w.line, memory.planes[k * inputs * w.channel:],
                        offsets_of(t.taps, inputs, w.channel), filters, w.length)


@shared
def give_to_source(tables, call, gradients, number, images, part, channel):
    """Add the gradient of a channel's planes to that of the source, if it is wanted, and sum this for the batch norm in
    front; channel: its number among those that the step reads, the gradient, the planes."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    source, (c, gradient, planes) = call.values[step.source], channel
    if source.gradient == 0:
        return
    place = place_of(tables, source, images, step.from_channel + c)
    dx = gradient_of(tables, source)
    chunk = images.chunk_first // tables.chunk
    added = source.written_row >= 0 and gradients.written[source.written_row, chunk, step.from_channel + c] == 1
    collect(dx, place, w, t.places, gradient, planes, step.relu == 1, added)
    if step.last and call.norms[step.norm].summed:
        whole = one_row(place.start)
        add_norm_sums(gradients.sums[part, step.norm, c], dx, whole, array_of(tables, source), whole,
                 images.count * source.pixels, call.mean[step.norm, c])


@pasted
def pool_back(tables, call, gradients, number, images, part, memory):
    """The backward pass of a pooling; each term that reads it has a norm of its own."""
    step, (w, t) = call.steps[number], unpack(tables.geometry[number])
    result, source, average = call.values[step.result], call.values[step.source], step.kind == AVERAGE
    pixels, ones, f = result.pixels, np.ones(len(t.taps), np.float32), array_of(tables, result)
    divisors, dropped = tables.divisors[step.divisors_at:][:pixels], len(call.factors) > 0
    fill(memory.planes[:w.channel], LOWEST)  # of an average nothing is masked
    fill(memory.line[:w.line], ZERO)
    for c in range(step.channels):
        of_f = place_of(tables, result, images, c)
        fill(memory.rows[:images.count * pixels], ZERO)
        k = step.term
        while k >= 0:
            norm = call.terms[k].norm
            d, of_d = upstream_of(tables, call, norm, images, c)
            c0, c1, c2 = gradients.coefficients[norm, c]
            for image in range(images.count if call.terms[k].active else 0):
                row, given = memory.rows[image * pixels:][:pixels], d[of_d.start + image * of_d.step:][:pixels]
                add_scaled(row, c0 * call.factors[k, images.first + image] if dropped else c0, given, YES)
                if call.norms[norm].trains:
                    f_row = f[of_f.start + image * of_f.step:][:pixels]
                    for p in range(pixels):
                        row[p] += c1 * f_row[p] + c2
            k = call.terms[k].next
        if average:
            multiply_windows(memory.rows[:images.count * pixels], divisors)
        copy_to_line(memory.line[w.front:], memory.rows, Place(0, pixels, images.count), w)
        if average:
            spread_gradient(memory.gradient, ones, memory.line, t, w)
        else:
            place = place_of(tables, source, images, step.from_channel + c)
            spread(memory.planes, array_of(tables, source), place, w, t.places, ONE, ZERO, LOWEST)
            copy_to_line(memory.between, f, of_f, w)
            give_to_largest(memory.gradient[:w.channel], memory.line[w.front:], memory.between, memory.planes, t.taps,
                            w.length)
        give_to_source(tables, call, gradients, number, images, part, (c, memory.gradient, memory.planes))
