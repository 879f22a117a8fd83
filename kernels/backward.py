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
    norm_output_gradient,
    place_of,
    row_pitch,
    tile_images,
)
from kernels.compiled import floats, jit, not_inlined, pasted
from kernels.depthwise import add_weight_gradient, convolve, convolve_back
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
    fill,
    image_to_line,
    image_to_planes,
    line_to_image,
    max_pool_back,
    planes_to_image,
)
from kernels.nodes import add_difference, identities_back, sum_gradients, zero_unwritten
from kernels.products import NO_SHIFT, multiply, multiply_weight, offsets_of
from kernels.threads import wait_at
from kernels.units import AVERAGE, DENSE
from kernels.vectors import combine_rows
from kernels.weights import arrange_weights, sum_over_threads
from kernels.windows import is_pointwise, unpack


@jit
def backward_pass(call, gradients, barrier, begin, end):
    """Compute the gradients. For threads.with_barrier."""
    threads, chunks, waits = call.plan.threads, call.plan.chunks, 1
    waiting = threads if end - begin < threads else 1
    for thread in range(begin, end):
        fill(gradients.weight_sums[thread], ZERO)
        for number in range(thread, len(call.steps), threads):
            arrange_weights(call, gradients, number)
    for level in range(len(call.plan.levels) - 2, -1, -1):
        for thread in range(begin, end):
            for chunk in range(chunks * thread // threads, chunks * (thread + 1) // threads):
                for number in range(len(call.plan.nodes)):
                    node = call.plan.nodes[number]
                    if node.level == level and call.values[node.value].gradient != 0:
                        zero_unwritten(call, gradients, node.value, chunk)
                        sum_gradients(call, gradients, number, chunk, thread)
        wait_at(barrier, waiting, waits)
        for thread in range(begin, end):
            for number in range(thread, len(call.norms), threads):
                if call.norms[number].gradient_level == level and call.norms[number].active:
                    find_coefficients(call, gradients, number)
        wait_at(barrier, waiting, waits + 1)
        waits += 2
        for thread in range(begin, end):
            memory = memory_of(call, thread)
            for chunk in range(chunks * thread // threads, chunks * (thread + 1) // threads):
                for number in range(len(call.plan.nodes)):
                    if call.plan.nodes[number].level == level:
                        identities_back(call, gradients, number, chunk)
                for number in range(call.plan.levels[level], call.plan.levels[level + 1]):
                    step_back(call, gradients, number, chunk, thread, memory)
    wait_at(barrier, waiting, waits)
    for thread in range(begin, end):
        for chunk in range(chunks * thread // threads, chunks * (thread + 1) // threads):
            for number in range(call.plan.inputs):
                zero_unwritten(call, gradients, number, chunk)
        for number in range(len(call.steps) if gradients.weights_wanted else 0):
            sum_over_threads(call, gradients, number, thread)


@pasted
def step_back(call, gradients, number, chunk, thread, memory):
    """The backward pass of a step, tile by tile."""
    step, all_images = call.steps[number], chunk_images(call, chunk)
    source = call.values[step.source]
    if not step.active or source.gradient == 0 and (step.kind >= AVERAGE or not gradients.weights_wanted):
        return
    for start in range(0, all_images.count, step.tile_size):
        images = tile_images(all_images, start, step.tile_size)
        if step.kind >= AVERAGE:
            pool_back(call, gradients, number, images, thread, memory)
        elif step.kind == DENSE:
            dense_back(call, gradients, number, images, thread, memory)
        else:
            product_back(call, gradients, number, images, thread, memory)
    gradients.written[step.source, chunk, step.from_channel:step.from_channel + step.channels] = 1


@pasted
def find_coefficients(call, gradients, number):
    """c0, c1 and c2 of a norm from its sums, and the gradients of its parameters and of the weight of its term."""
    norm = call.norms[number]
    value = call.values[norm.value]
    channels, count = value.channels, call.plan.images * value.pixels
    term_weight, term_weight_gradient = np.float64(call.term_weights[norm.term]) if norm.term >= 0 else 1.0, 0.0
    for c in range(channels):
        sum_d = sum_df = c1 = c2 = 0.0  # of d and of d * (f - mean)
        for thread in range(call.plan.threads):
            sum_d += gradients.sums[thread, number, c, 0]
            sum_df += gradients.sums[thread, number, c, 1]
        scale, inverse = term_weight * call.scale[number, c], np.float64(call.inverse[number, c])
        if norm.trains:
            c1 = -scale * inverse * inverse * sum_df / count
            c2 = -scale * sum_d / count - c1 * call.mean[number, c]
        gradients.coefficients[number, c, 0] = scale
        gradients.coefficients[number, c, 1], gradients.coefficients[number, c, 2] = c1, c2
        term_weight_gradient += call.scale[number, c] * sum_df
        if norm.beta:
            term_weight_gradient += floats(norm.beta, channels)[c] * sum_d
        if norm.gamma_gradient:
            floats(norm.gamma_gradient, channels)[c] = term_weight * inverse * sum_df
            floats(norm.beta_gradient, channels)[c] = term_weight * sum_d
        if norm.bias_gradient:  # the mean of a batch takes away what a bias adds
            bias = bias_of(norm.bias_gradient, norm.second_bias_gradient, norm.second, c)
            bias[0] = 0.0 if norm.trains else scale * sum_d
    if norm.term >= 0:
        gradients.term_weights[norm.term] = term_weight_gradient


# ---------------------------------------------------------------------------------------------------------------------
# Steps, for a tile of images
# ---------------------------------------------------------------------------------------------------------------------


@not_inlined
def read_gradient(call, gradients, number, images, memory):
    """Write df of a convolution's filters to memory.f_or_df, of a dense one as lines with zeros between the rows of an
    image."""
    step, (w, t) = call.steps[number], unpack(call.plan.geometry[number])
    result, norm = call.values[step.result], call.norms[step.result_norm]
    height, width, start = 1, result.pixels, 0
    row_stride, image_stride, filter_stride = 0, result.pixels, row_pitch(images.count * result.pixels)
    if step.kind == DENSE:
        height, width, start = w.out_height, w.out_width, w.front
        row_stride, image_stride, filter_stride = w.pitch, w.image, w.plane
        if not is_pointwise(w, t, images.count):
            fill(memory.f_or_df[:step.filters * w.plane], ZERO)
    for filter_ in range(step.filters):
        c = step.first_filter + filter_
        d, place_d = norm_output_gradient(call, step.result_norm, images, c)
        f, place_f = array_of(call, result), place_of(result, images, c)
        if not norm.trains:  # where f does not count it may be infinite
            f, place_f = d, place_d
        c0, c1, c2 = gradients.coefficients[step.result_norm, c]
        for image in range(images.count):
            factor = c0 * call.factors[norm.term, images.first + image] if norm.term >= 0 else c0
            for row in range(height):
                to = start + filter_ * filter_stride + image * image_stride + row * row_stride
                at_d, at_f = place_d.start + image * place_d.image_stride, place_f.start + image * place_f.image_stride
                combine_rows(address(memory.f_or_df, to), address(d, at_d + row * width),
                             address(f, at_f + row * width), width, factor, c1, c2)


@pasted
def product_back(call, gradients, number, images, thread, memory):
    """The backward pass of a depthwise convolution and the product behind it."""
    step, (w, t) = call.steps[number], unpack(call.plan.geometry[number])
    source, pixels, taps = call.values[step.source], call.values[step.result].pixels, len(t.taps)
    size = images.count * pixels
    pitch = row_pitch(size)
    x, floor, scale, shift = array_of(call, source), ZERO if step.relu else NO_FLOOR, ONE, ZERO
    read_gradient(call, gradients, number, images, memory)
    multiply(memory.inputs_gradient, pitch, gradients.backward_weights[step.weight_at:], memory.f_or_df,
             offsets_of(NO_SHIFT, step.filters, pitch), step.channels, size)
    fill(memory.planes[:w.channel], ZERO)
    fill(memory.line[:w.plane], ZERO)
    depthwise = floats(step.depthwise, step.channels * taps)
    for c in range(step.channels):
        place, in_rows = place_of(source, images, step.from_channel + c), Place(c * pitch, pixels, images.count)
        planes, gradient = memory.planes, memory.planes_gradient
        if step.norm:
            scale, shift = call.scale[step.norm, c], call.shift[step.norm, c]
        image_to_planes(planes, x, place, w, t.row_starts, scale, shift, floor)
        if gradients.weights_wanted:
            convolve(gradient, depthwise[c * taps:], planes, t, w)  # until convolve_back this array is free
            line_to_image(memory.inputs, in_rows, gradient, w)
        image_to_line(memory.line[w.front:], memory.inputs_gradient, in_rows, w)
        if gradients.weights_wanted:
            add_weight_gradient(gradients.weight_sums[thread, step.depthwise_at + c * taps:], memory.line[w.front:],
                                planes, t, w)
        if source.gradient:
            convolve_back(gradient, gradients.backward_weights[step.depthwise_at + c * taps:], memory.line, t, w)
        add_source_gradient(call, gradients, number, images, thread, (c, gradient, planes))
    if gradients.weights_wanted:
        multiply_weight(gradients.weight_sums[thread, step.weight_at:], memory.f_or_df, pitch, memory.inputs,
                        offsets_of(NO_SHIFT, step.channels, pitch), step.filters, size)


@pasted
def dense_back(call, gradients, number, images, thread, memory):
    """The backward pass of a dense convolution."""
    step, (w, t) = call.steps[number], unpack(call.plan.geometry[number])
    read_gradient(call, gradients, number, images, memory)
    read_input(call, number, images, memory)
    inputs, filters = step.channels // step.groups, step.filters // step.groups  # of a group of the convolution
    size = inputs * filters * len(t.taps)
    for k in range(step.groups if call.values[step.source].gradient else 0):
        for plane in range(len(t.plane_starts) - 1):
            begin, end = t.plane_starts[plane], t.plane_starts[plane + 1]
            multiply(memory.planes_gradient[k * inputs * w.channel + plane * w.plane:], w.channel,
                     gradients.backward_weights[step.weight_at + k * size + inputs * filters * begin:],
                     memory.f_or_df[k * filters * w.plane:],
                     offsets_of(t.backward_offsets[begin:end], filters, w.plane), inputs, w.span)
    for c in range(step.channels):
        add_source_gradient(call, gradients, number, images, thread,
                            (c, memory.planes_gradient[c * w.channel:], memory.planes[c * w.channel:]))
    for k in range(step.groups if gradients.weights_wanted else 0):
        multiply_weight(gradients.weight_sums[thread, step.weight_at + k * size:],
                        memory.f_or_df[k * filters * w.plane + w.front:], w.plane,
                        memory.planes[k * inputs * w.channel:], offsets_of(t.taps, inputs, w.channel), filters,
                        w.length)


@not_inlined
def add_source_gradient(call, gradients, number, images, thread, channel):
    """Add the gradient of a channel's planes to that of the source, if it is wanted, and sum this for the batch norm in
    front; channel: its number among those that the step reads, the gradient, the planes."""
    step, (w, t) = call.steps[number], unpack(call.plan.geometry[number])
    source, (c, gradient, planes) = call.values[step.source], channel
    if source.gradient == 0:
        return
    place = place_of(source, images, step.from_channel + c)
    dx = gradient_of(call, source)
    chunk = images.chunk_first // call.plan.chunk
    added = ONE if gradients.written[step.source, chunk, step.from_channel + c] else ZERO
    planes_to_image(dx, place, w, t.row_starts, gradient, planes, step.relu == 1, added)
    if call.norms[step.norm].summed:
        whole = Place(place.start, 0, 1)
        add_norm_sums(gradients.sums[thread, step.norm, c], dx, whole, array_of(call, source), whole,
                      images.count * source.pixels, call.mean[step.norm, c])


@pasted
def pool_back(call, gradients, number, images, thread, memory):
    """The backward pass of a pooling; each term that reads it has a norm of its own."""
    step, (w, t) = call.steps[number], unpack(call.plan.geometry[number])
    result, source, average = call.values[step.result], call.values[step.source], step.kind == AVERAGE
    pixels, ones, f = result.pixels, np.ones(len(t.taps), np.float32), array_of(call, result)
    divisors = call.plan.divisors[step.divisors_at:][:pixels]
    fill(memory.planes[:w.channel], LOWEST)  # of an average nothing is masked
    fill(memory.line[:w.plane], ZERO)
    for c in range(step.channels):
        place_f, slope, shift = place_of(result, images, c), ZERO, ZERO  # df = the sum of c0 * d, + slope * f + shift
        df = memory.f_or_df[:images.count * pixels]
        fill(df, ZERO)
        for k in range(len(call.terms)):
            norm = call.terms[k].norm
            if call.norms[norm].value != step.result or not call.terms[k].active:
                continue
            d, place_d = norm_output_gradient(call, norm, images, c)
            c0, c1, c2 = gradients.coefficients[norm, c]
            slope, shift = slope + c1, shift + c2
            for image in range(images.count):
                factor = c0 * call.factors[k, images.first + image]
                add_difference(df[image * pixels:][:pixels], factor,
                               d[place_d.start + image * place_d.image_stride:][:pixels], ZERO, ZERO, YES)
        if result.trains:  # else f may be infinite
            add_difference(df, slope, f[place_f.start:][:len(df)], ZERO, shift, YES)
        if average:
            multiply_windows(df, divisors)
        image_to_line(memory.line[w.front:], df, Place(0, pixels, images.count), w)
        if average:
            convolve_back(memory.planes_gradient, ones, memory.line, t, w)
        else:
            place = place_of(source, images, step.from_channel + c)
            image_to_planes(memory.planes, array_of(call, source), place, w, t.row_starts, ONE, ZERO, LOWEST)
            image_to_line(memory.inputs, f, place_f, w)
            max_pool_back(memory.planes_gradient[:w.channel], memory.line[w.front:], memory.inputs, memory.planes,
                          t.taps, w.length)
        add_source_gradient(call, gradients, number, images, thread, (c, memory.planes_gradient, memory.planes))
