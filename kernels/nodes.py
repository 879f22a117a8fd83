"""Nodes of a plan, the sums of their terms, and what their gradients give to the terms, for a chunk of images."""
from kernels.call import array_of, channel_in, chunk_images, gradient_of, place_of, upstream_of
from kernels.compiled import floats, inner, pasted, shared
from kernels.images import NO, ONE, YES, ZERO, add_norm_sums, fill, one_row


@pasted
def add_terms(tables, call, number, chunk):
    """A node for a chunk of images. The mean is taken off first: this keeps digits that a shift would lose."""
    node, images = tables.nodes[number], chunk_images(tables, chunk)
    value = call.values[node.value]
    out, pixels, dropped = array_of(tables, value), value.pixels, len(call.factors) > 0
    for channel in range(value.channels):
        to, added = place_of(tables, value, images, channel), NO
        for k in range(node.begin, node.end):
            term, norm = call.terms[k], call.norms[call.terms[k].norm]
            c = channel_in(term, channel)
            if not term.active or c < 0 or c >= term.channels:
                continue
            source, scale, mean = call.values[norm.value], call.scale[term.norm, c], call.mean[term.norm, c]
            f, place = array_of(tables, source), place_of(tables, source, images, term.from_channel + c)
            beta, weight = floats(norm.beta, term.channels)[c] if norm.beta else ZERO, call.strengths[k]
            for image in range(images.count):
                factor = weight * call.factors[k, images.first + image] if dropped else weight
                add_difference(out[to.start + image * to.step:][:pixels], factor * scale,
                               f[place.start + image * place.step:][:pixels], mean, factor * beta, added)
            added = YES
        for image in range(0 if added else images.count):
            fill(out[to.start + image * to.step:][:pixels], ZERO)


@inner
def add_difference(row, scale, values, mean, shift, add):
    """row (+)= scale * (values - mean) + shift."""
    if add:
        for p in range(len(row)):
            row[p] += scale * (values[p] - mean) + shift
    else:
        for p in range(len(row)):
            row[p] = scale * (values[p] - mean) + shift


@inner
def copy_outputs(tables, gradients, chunk):
    """Copy the gradients of outputs whose nodes later nodes read: the pass adds to the copies."""
    images = chunk_images(tables, chunk)
    for number in range(len(gradients.copies)):
        given, to, size = gradients.copies[number]
        if to != 0:
            begin, end = images.first * size, (images.first + images.count) * size
            source, row = floats(given, tables.images * size)[begin:end], floats(to, tables.images * size)[begin:end]
            add_scaled(row, ONE, source, NO)


@shared
def zero_unwritten(tables, call, gradients, number, chunk):
    """Set the channels of a value's gradient to zero to which nothing was given."""
    value, images = call.values[number], chunk_images(tables, chunk)
    if value.gradient == 0:
        return
    row = gradient_of(tables, value)
    for c in range(value.channels):
        if not gradients.written[value.written_row, chunk, c]:
            place = place_of(tables, value, images, c)
            for image in range(images.count):
                fill(row[place.start + image * place.step:][:value.pixels], ZERO)


@pasted
def sum_gradients(tables, call, gradients, number, chunk, part):
    """The sums for the norms of a node's terms, of a chunk of images."""
    images = chunk_images(tables, chunk)
    for k in range(tables.nodes[number].begin, tables.nodes[number].end):
        term, norm = call.terms[k], call.norms[call.terms[k].norm]
        value, sums = call.values[norm.value], gradients.sums[part, term.norm]
        f = array_of(tables, value)
        for c in range(term.channels if term.active and norm.summed else 0):
            d, of_d = upstream_of(tables, call, term.norm, images, c)
            of_f, mean = place_of(tables, value, images, term.from_channel + c), call.mean[term.norm, c]
            if len(call.factors) == 0:
                add_norm_sums(sums[c], d, of_d, f, of_f, value.pixels, mean)
                continue
            for image in range(images.count):
                factor, sum_d, sum_df = call.factors[k, images.first + image], sums[c, 0], sums[c, 1]
                add_norm_sums(sums[c], d, one_row(of_d.start + image * of_d.step), f,
                         one_row(of_f.start + image * of_f.step), value.pixels, mean)
                sums[c, 0] = sum_d + factor * (sums[c, 0] - sum_d)
                sums[c, 1] = sum_df + factor * (sums[c, 1] - sum_df)


@pasted
def identities_back(tables, call, gradients, number, chunk):
    """What other states get from a node that contains them."""
    images = chunk_images(tables, chunk)
    for k in range(tables.nodes[number].begin, tables.nodes[number].end):
        term = call.terms[k]
        value = call.values[call.norms[term.norm].value]
        if not term.active or value.gradient == 0 or value.written_row < 0:  # only a state has both
            continue
        row = gradient_of(tables, value)
        dropped = len(call.factors) > 0
        for c in range(term.channels):
            weight = gradients.coefficients[term.norm, c, 0]
            d, of_d = upstream_of(tables, call, term.norm, images, c)
            place = place_of(tables, value, images, term.from_channel + c)
            added = gradients.written[value.written_row, chunk, term.from_channel + c] == 1
            for image in range(images.count):
                factor = weight * call.factors[k, images.first + image] if dropped else weight
                add_scaled(row[place.start + image * place.step:][:value.pixels], factor,
                             d[of_d.start + image * of_d.step:][:value.pixels], added)
            gradients.written[value.written_row, chunk, term.from_channel + c] = 1


@inner
def add_scaled(row, scale, values, add):
    """row (+)= scale * values."""
    if add:
        for p in range(len(row)):
            row[p] += scale * values[p]
    else:
        for p in range(len(row)):
            row[p] = scale * values[p]
