"""Depthwise convolution on a CPU, on all cores: what most of a search step's time goes into.

Paddle's own kernel runs on one core. Here the loops are compiled by numba, an optional package; the numbers agree with Paddle's to rounding.
Without numba, on a GPU, in double precision and under to_static Paddle's operation runs.
"""
import contextlib
import sys

numba, why_not = None, 'numba is not installed (pip install numba)'
if 'llvmlite' not in sys.modules and getattr(sys.modules.get('paddle'), '__version__', '').startswith('2.'):
    why_not = 'Paddle 2 has a zlib of its own, which ends numba with a segmentation fault unless numba is imported first'
else:
    with contextlib.suppress(ImportError):
        import numba
        import numba.extending
        # numba's own pool of threads: another OpenMP beside Paddle's makes both slow when OMP_NUM_THREADS is set.
        numba.config.THREADING_LAYER = 'workqueue'

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402

from utility import logger  # noqa: E402

_said = []


def _say_once(text):
    if not _said:
        _said.append(text)
        logger.info(text)


def available(x):
    """Whether the compiled loops can take a tensor."""
    if not (paddle.in_dynamic_mode() and x.dtype == paddle.float32 and x.place.is_cpu_place()):
        return False
    if numba is None:
        _say_once('depthwise convolutions run on one core: ' + why_not)
        return False
    if not _said:
        _say_once('depthwise convolutions run on {} cores, compiled by numba'.format(numba.get_num_threads()))
    return True


class DepthwiseConv2D(nn.Conv2D):
    """paddle.nn.Conv2D with groups = in_channels and as many filters, without bias; weight [C, 1, kernel, kernel]."""

    def forward(self, x):
        return depthwise([x], [self])[0] if available(x) else super().forward(x)


def depthwise(inputs, layers):
    """The outputs of several DepthwiseConv2D of the same geometry, in one go: of one input each, or all of the same input.

    inputs: as many tensors [N, C, H, W] as layers, or one. Returns a list of tensors.
    """
    geometry = layers[0]._stride[0], layers[0]._updated_padding[0], layers[0]._dilation[0]
    if not available(inputs[0]):
        return [layer(inputs[i % len(inputs)]) for i, layer in enumerate(layers)]
    out = _Depthwise.apply(geometry, len(inputs), *inputs, *[layer.weight for layer in layers])
    return list(out) if isinstance(out, (tuple, list)) else [out]


class _Depthwise(paddle.autograd.PyLayer):

    @staticmethod
    def forward(ctx, geometry, inputs, *tensors):
        tensors = [tensor.contiguous() for tensor in tensors]
        xs, weights = tensors[:inputs], tensors[inputs:]
        stride, padding, dilation = geometry
        n, c, h, w = xs[0].shape
        kernel = weights[0].shape[2]
        reach = dilation * (kernel - 1)
        shape = [n, c, (h + 2 * padding - reach - 1) // stride + 1, (w + 2 * padding - reach - 1) // stride + 1]
        outs = [paddle.empty(shape) for _ in weights]
        ctx.sizes = (n * c, c, h, w, shape[2], shape[3], kernel, stride, padding, dilation)
        _forward(_addresses(xs), _addresses(weights), _addresses(outs), numba.get_num_threads(), *ctx.sizes)
        ctx.save_for_backward(*tensors)
        ctx.inputs, ctx.wanted = inputs, [not tensor.stop_gradient for tensor in tensors]
        return tuple(outs) if len(outs) > 1 else outs[0]

    @staticmethod
    def backward(ctx, *gradients):
        gradients = [gradient.contiguous() for gradient in gradients]
        tensors, inputs = ctx.saved_tensor(), ctx.inputs
        xs, weights = tensors[:inputs], tensors[inputs:]
        results = [None] * len(tensors)
        if any(ctx.wanted[:inputs]):
            results[:inputs] = [paddle.empty(x.shape) for x in xs]
            _backward_input(_addresses(gradients), _addresses(weights), _addresses(results[:inputs]), numba.get_num_threads(), *ctx.sizes)
        if any(ctx.wanted[inputs:]):
            planes = paddle.empty([len(weights), xs[0].shape[0]] + weights[0].shape)
            _backward_weight(_addresses(gradients), _addresses(xs), planes.data_ptr(), numba.get_num_threads(), *ctx.sizes)
            results[inputs:] = planes.sum(1).unbind()
        return tuple(result if wanted else None for result, wanted in zip(results, ctx.wanted))


def _addresses(tensors):
    return np.array([tensor.data_ptr() for tensor in tensors])


def _compiled(function):
    """Compiled when it is first called; fastmath lets sums be reordered, which vector registers need."""
    return function if numba is None else numba.njit(parallel=True, fastmath=True, cache=True)(function)


if numba is not None:
    from numba.core import cgutils, types

    @numba.extending.intrinsic
    def _pointer(context, address):
        """An integer as a pointer: a tensor's memory, without the 20 microseconds that wrapping it in a numpy array takes."""
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)
        return types.voidptr(address), generate

    @numba.njit(inline='always')
    def _array(address, shape):
        return numba.carray(_pointer(address), shape, np.float32)

prange = range if numba is None else numba.prange


@_compiled
def _forward(xs, weights, outs, threads, planes, channels, height, width, out_height, out_width, kernel, stride, padding, dilation):
    """xs, weights, outs: addresses of tensors [N * C, H, W], [C, k, k] and [N * C, H', W'].

    Tap by tap over a whole plane: with the zeros of the padding between them, the rows of a plane are one long row, and a tap is a shift
    along it.
    """
    pitch, reach = width + 2 * padding, dilation * (kernel - 1)
    rows = height + 2 * padding - reach
    jobs = len(weights) * planes
    for thread in prange(threads):
        padded, total = np.zeros((height + 2 * padding) * pitch + reach, np.float32), np.empty(rows * pitch, np.float32)
        for job in range(jobs * thread // threads, jobs * (thread + 1) // threads):
            edge, plane = job // planes, job % planes
            x, out = _array(xs[edge % len(xs)], (planes, height, width)), _array(outs[edge], (planes, out_height, out_width))
            weight = _array(weights[edge], (channels, kernel, kernel))
            for row in range(height):
                for column in range(width):
                    padded[(row + padding) * pitch + padding + column] = x[plane, row, column]
            total[:] = 0
            for i in range(kernel):
                for j in range(kernel):
                    tap, shift = weight[plane % channels, i, j], i * dilation * pitch + j * dilation
                    shifted = padded[shift:shift + rows * pitch]
                    for position in range(rows * pitch):
                        total[position] += tap * shifted[position]
            for row in range(out_height):
                for column in range(out_width):
                    out[plane, row, column] = total[row * stride * pitch + column * stride]


@_compiled
def _backward_input(gradients, weights, outs, threads, planes, channels, height, width, out_height, out_width, kernel, stride, padding, dilation):
    """The gradients of the inputs, `outs`, from those of the outputs: every tap backwards; where there is one input, their sum."""
    pitch, reach = width + 2 * padding, dilation * (kernel - 1)
    rows = height + 2 * padding - reach
    jobs = len(outs) * planes
    together = len(weights) // len(outs)
    for thread in prange(threads):
        spread, total = np.zeros(rows * pitch, np.float32), np.empty((height + 2 * padding) * pitch + reach, np.float32)
        for job in range(jobs * thread // threads, jobs * (thread + 1) // threads):
            target, plane = job // planes, job % planes
            total[:] = 0
            for edge in range(target * together, (target + 1) * together):
                gradient = _array(gradients[edge], (planes, out_height, out_width))
                weight = _array(weights[edge], (channels, kernel, kernel))
                for row in range(out_height):
                    for column in range(out_width):
                        spread[row * stride * pitch + column * stride] = gradient[plane, row, column]
                for i in range(kernel):
                    for j in range(kernel):
                        tap, shift = weight[plane % channels, i, j], i * dilation * pitch + j * dilation
                        shifted = total[shift:shift + rows * pitch]
                        for position in range(rows * pitch):
                            shifted[position] += tap * spread[position]
            out = _array(outs[target], (planes, height, width))
            for row in range(height):
                for column in range(width):
                    out[plane, row, column] = total[(row + padding) * pitch + padding + column]


@_compiled
def _backward_weight(gradients, xs, out, threads, planes, channels, height, width, out_height, out_width, kernel, stride, padding, dilation):
    """The gradients of the weights, plane by plane, out [edges, N * C, k, k]; the caller adds up the images."""
    pitch, reach = width + 2 * padding, dilation * (kernel - 1)
    rows = height + 2 * padding - reach
    jobs = len(gradients) * planes
    for thread in prange(threads):
        padded, spread = np.zeros((height + 2 * padding) * pitch + reach, np.float32), np.zeros(rows * pitch, np.float32)
        result = _array(out, (jobs, kernel, kernel))
        for job in range(jobs * thread // threads, jobs * (thread + 1) // threads):
            edge, plane = job // planes, job % planes
            x = _array(xs[edge % len(xs)], (planes, height, width))
            gradient = _array(gradients[edge], (planes, out_height, out_width))
            for row in range(height):
                for column in range(width):
                    padded[(row + padding) * pitch + padding + column] = x[plane, row, column]
            for row in range(out_height):
                for column in range(out_width):
                    spread[row * stride * pitch + column * stride] = gradient[plane, row, column]
            for i in range(kernel):
                for j in range(kernel):
                    shift = i * dilation * pitch + j * dilation
                    shifted, total = padded[shift:shift + rows * pitch], np.float32(0)
                    for position in range(rows * pitch):
                        total += spread[position] * shifted[position]
                    result[job, i, j] = total
