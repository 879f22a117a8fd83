"""What the compiled passes get in a call, and where values lie in memory."""
from typing import NamedTuple

import numpy as np

from kernels.compiled import floats, inlined
from kernels.images import Place
from kernels.records import NCHW, PlanConstants


class Call(NamedTuple):
    """What a compiled pass works with: the plan, its records with the addresses of this call, and arrays.

    term_weights [terms]: the weights of the sums; factors [terms, N]: of drop path. mean, inverse (1 / standard
    deviation), scale, shift [norms, C]: scale * f + shift is what the norm gives. moments [values, tiles, C, 2]:
    mean and sum of squared deviations of the images of each tile, of the values that need them. memory [threads,
    elements].
    """

    plan: PlanConstants
    values: np.ndarray
    norms: np.ndarray
    steps: np.ndarray
    terms: np.ndarray
    term_weights: np.ndarray
    factors: np.ndarray
    mean: np.ndarray
    inverse: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    moments: np.ndarray
    memory: np.ndarray


class Gradients(NamedTuple):
    """Arrays of the backward pass.

    written [values, chunks, C]: whether a channel of a value's gradient has been written, so that more is added to it.
    sums [threads, norms, C, 2]: of the gradient d of what a norm gives and of d * (f - mean). coefficients [norms, C,
    3]: c0, c1, c2, with the weight of a term as a factor. term_weights [terms]: the gradients of the weights of the
    sums. weight_sums [threads, weights]: the gradients of the convolutions' weights, summed up by each thread;
    backward_weights [weights]: the weights as the backward pass reads them. weights_wanted: whether gradients of
    weights are.
    """

    written: np.ndarray
    sums: np.ndarray
    coefficients: np.ndarray
    term_weights: np.ndarray
    weight_sums: np.ndarray
    backward_weights: np.ndarray
    weights_wanted: bool


class Images(NamedTuple):
    """A chunk, the images that lie together in memory, or a tile, those of a chunk that a step computes at once."""

    first: int
    count: int
    chunk_first: int  # of the chunk
    chunk_count: int


class Memory(NamedTuple):
    """Arrays that a thread uses for a tile of images in one step.

    f_or_df [filters]: f, the outputs of the product, in the backward pass their gradient df; inputs [channels]: of the
    product; inputs_gradient. All three are rows of images * pixels, or lines of windows.py. planes: the padded pixels
    of the source, of all channels of a dense convolution, else of one; planes_gradient; line: of one channel. A pooling
    has df in f_or_df and f, as a line, in inputs.
    """

    f_or_df: np.ndarray
    inputs_gradient: np.ndarray
    inputs: np.ndarray
    planes: np.ndarray
    planes_gradient: np.ndarray
    line: np.ndarray


@inlined
def row_pitch(size):
    """From one row of Memory's f_or_df, inputs_gradient and inputs to the next, for rows of so many elements: steps of
    4,096 bytes would let all rows compete for the same few lines of the cache."""
    return (size + 15) // 16 * 16 + 16


@inlined
def memory_of(call, thread):
    memory, at = call.memory[thread], call.plan.sections
    return Memory(memory[at[0]:at[1]], memory[at[1]:at[2]], memory[at[2]:at[3]], memory[at[3]:at[4]],
                  memory[at[4]:at[5]], memory[at[5]:at[6]])


@inlined
def chunk_images(call, chunk):
    first = chunk * call.plan.chunk
    count = min(call.plan.chunk, call.plan.images - first)
    return Images(first, count, first, count)


@inlined
def tile_images(chunk, start, tile_size):
    """The images of a chunk from its image `start` on, at most so many."""
    return Images(chunk.first + start, min(tile_size, chunk.count - start), chunk.first, chunk.count)


@inlined
def place_of(value, images, channel):
    """The Place of a channel of images, which belong to one chunk."""
    if value.order == NCHW:
        channels = value.tensor_channels
        return Place((images.first * channels + channel) * value.pixels, channels * value.pixels, images.count)
    start = images.chunk_first * value.channels + channel * images.chunk_count + images.first - images.chunk_first
    return Place(start * value.pixels, value.pixels, images.count)


@inlined
def array_of(call, value):
    return floats(value.data, call.plan.images * value.tensor_channels * value.pixels)


@inlined
def gradient_of(call, value):
    return floats(value.gradient, call.plan.images * value.tensor_channels * value.pixels)


@inlined
def bias_of(first, second, begin, c):
    """An array that begins with the bias of channel c: those of two convolutions begin at two addresses, the second
    ones for the channels from `begin` on."""
    return floats(first + 4 * c, 1) if c < begin else floats(second + 4 * (c - begin), 1)


@inlined
def channel_of(term, channel):
    """The channel of the node to which a channel of the term is added. With partial channels a node is the mixed
    channels, then the kept ones, shuffled: the first ones of `partial` equal parts become the first channels."""
    channel += term.first_channel
    return channel % term.mixed * term.partial + channel // term.mixed


@inlined
def channel_in(term, channel):
    """The channel of a term that is added to a channel of the node; not one of its channels if there is none."""
    return channel % term.partial * term.mixed + channel // term.partial - term.first_channel


@inlined
def tiles_of(call, value):
    """How many tiles a chunk makes."""
    return (call.plan.chunk + value.tile_size - 1) // value.tile_size


@inlined
def norm_output_gradient(call, number, images, c):
    """(the gradient of what a norm gives as an array, the Place of its channel c)."""
    norm, channel = call.norms[number], c
    value = norm.value
    if norm.term >= 0:
        value, channel = call.plan.nodes[call.terms[norm.term].node].value, channel_of(call.terms[norm.term], c)
    output = call.values[value]
    return gradient_of(call, output), place_of(output, images, channel)
