"""Nodes of a plan, the sums of their terms, and what their gradients give to the terms, for a chunk of images."""
from kernels.call import array_of, channel_in, chunk_images, gradient_of, norm_output_gradient, place_of
from kernels.compiled import floats, inlined, not_inlined, pasted
from kernels.images import NO, YES, ZERO, Place, add_norm_sums, fill


@pasted
def add_terms(call, number, chunk):
    """A node for a chunk of images. The mean is taken off first: this keeps digits that a shift would lose."""
    node, images = call.plan.nodes[number], chunk_images(call, chunk)
    value = call.values[node.value]
    out, pixels = array_of(call, value), value.pixels
    for channel in range(value.channels):
        to, added = place_of(value, images, channel), NO
        for k in range(node.begin, node.end):
            term, norm = call.terms[k], call.norms[call.terms[k].norm]
            c = channel_in(term, channel)
            if not term.active or c < 0 or c >= term.channels:
                continue
            source, scale, mean = call.values[norm.value], call.scale[term.norm, c], call.mean[term.norm, c]
            f, place = array_of(call, source), place_of(source, images, term.from_channel + c)
            beta, weight = floats(norm.beta, term.channels)[c] if norm.beta else ZERO, call.term_weights[k]
            for image in range(images.count):
                factor = weight * call.factors[k, images.first + image]
                add_difference(out[to.start + image * to.image_stride:][:pixels], factor * scale,
                               f[place.start + image * place.image_stride:][:pixels], mean, factor * beta, added)
            added = YES
        for image in range(0 if added else images.count):
            fill(out[to.start + image * to.image_stride:][:pixels], ZERO)


@inlined
def add_difference(row, scale, values, mean, shift, add):
    """row (+)= scale * (values - mean) + shift."""
    if add:
        for p in range(len(row)):
            row[p] += scale * (values[p] - mean) + shift
    else:
        for p in range(len(row)):
            row[p] = scale * (values[p] - mean) + shift


@not_inlined
def zero_unwritten(call, gradients, number, chunk):
    """Set the channels of a value's gradient to zero to which nothing was given."""
    value, images = call.values[number], chunk_images(call, chunk)
    if value.gradient == 0:
        return
    row = gradient_of(call, value)
    for c in range(value.channels):
        if not gradients.written[number, chunk, c]:
            place = place_of(value, images, c)
            for image in range(images.count):
                fill(row[place.start + image * place.image_stride:][:value.pixels], ZERO)


@pasted
def sum_gradients(call, gradients, number, chunk, thread):
    """The sums for the norms of a node's terms, of a chunk of images."""
    images = chunk_images(call, chunk)
    for k in range(call.plan.nodes[number].begin, call.plan.nodes[number].end):
        term, norm = call.terms[k], call.norms[call.terms[k].norm]
        value, sums = call.values[norm.value], gradients.sums[thread, term.norm]
        f = array_of(call, value)
        for c in range(term.channels if term.active and norm.summed else 0):
            d, place_d = norm_output_gradient(call, term.norm, images, c)
            place_f, mean = place_of(value, images, term.from_channel + c), call.mean[term.norm, c]
            for image in range(images.count):
                factor, sum_d, sum_df = call.factors[k, images.first + image], sums[c, 0], sums[c, 1]
                add_norm_sums(sums[c], d, Place(place_d.start + image * place_d.image_stride, 0, 1), f,
                              Place(place_f.start + image * place_f.image_stride, 0, 1), value.pixels, mean)
                sums[c, 0] = sum_d + factor * (sums[c, 0] - sum_d)
                sums[c, 1] = sum_df + factor * (sums[c, 1] - sum_df)


@pasted
def identities_back(call, gradients, number, chunk):
    """What other states get from a node that contains them."""
    images = chunk_images(call, chunk)
    for k in range(call.plan.nodes[number].begin, call.plan.nodes[number].end):
        term = call.terms[k]
        state = call.norms[term.norm].value
        value = call.values[state]
        if not term.active or value.gradient == 0:  # only states have one
            continue
        row = gradient_of(call, value)
        for c in range(term.channels):
            weight = gradients.coefficients[term.norm, c, 0]
            d, place_d = norm_output_gradient(call, term.norm, images, c)
            place = place_of(value, images, term.from_channel + c)
            added = gradients.written[state, chunk, term.from_channel + c] == 1
            for image in range(images.count):
                factor = weight * call.factors[k, images.first + image]
                add_difference(row[place.start + image * place.image_stride:][:value.pixels], factor,
                               d[place_d.start + image * place_d.image_stride:][:value.pixels], ZERO, ZERO, added)
            gradients.written[state, chunk, term.from_channel + c] = 1
