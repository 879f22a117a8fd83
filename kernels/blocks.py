"""Chains of ReLU, convolution and batch norm, and weighted sums of such chains and poolings, as one operation each: on
a CPU the layers of a cell that nas/acceleration.py does not compute by source state are computed by these.

    unit            ReLU (or not), a dense convolution or a depthwise and a pointwise one, batch norm (or not)
    chain           units one after the other: ReLUConvBN, SepConv, a stem
    weighted sum    sum_k w_k * operation_k(x) of chains, poolings and the identity: a mixed operation

Each convolution is one pass over the images (block_loops.py). The batch norm behind it needs the mean and variance of
all of its output f first; then it is a scale and a shift, that the next pass applies while it reads f. So of a unit
only f is written to memory. Batch norm is linear in the gradient d of its output (Ioffe, Szegedy 2015, section 3): with
M values a channel

    df = c0 * d + c1 * f + c2,  c0 = gamma / std,  c1 = -c0 * sum(d * (f - mean)) / (std^2 * M),
    c2 = -c0 * sum(d) / M - c1 * mean

which the way back through the convolution applies while it reads d and f. In evaluation mode c1 = c2 = 0.
"""
import ctypes
import math

import numpy as np
import paddle
import paddle.nn as nn

from kernels.block_loops import (
    NO_FLOOR,
    ZERO,
    Backward,
    Forward,
    Shape,
    Wanted,
    add_up,
    backward_pass,
    forward_pass,
    gradient_sums,
    pool_backward,
    pool_forward,
    window,
)
from kernels.compiled import available, on_all_cores
from kernels.operation import Operation
from runtime.parallel import cpu_threads

EMPTY = np.zeros(0, np.float32)
IDENTITY, NOTHING = 'identity', 'nothing'  # operations of a Block


def view(tensor):
    """The memory of a tensor on the CPU as a flat array; the tensor must be contiguous and outlive it."""
    size = math.prod(tensor.shape)
    return np.frombuffer((ctypes.c_float * size).from_address(tensor.data_ptr()), np.float32) if size else EMPTY


def images_of_a_job(images, channels, pixels):
    """How many images a pass takes at a time: rows of about 1,000 pixels, as many as half of a core's own cache can
    hold, and work for every core."""
    return max(1, min(min(1024, 2 ** 15 // channels) // pixels, -(-images // cpu_threads())))


class Convolution:
    """A dense convolution of a unit, or a depthwise one with a pointwise one behind it.

    layer: paddle.nn.Conv2D without bias, the dense or the pointwise one. depthwise: a Conv2D or None. corner: None, or
    for one of the two halves of FactorizedReduce the pixel, 0 or 1, of each 2x2 pixels that its 1x1 convolution reads.
    """

    def __init__(self, layer, depthwise=None, corner=None):
        self.layers = [depthwise, layer] if depthwise is not None else [layer]
        self.separable, self.corner = depthwise is not None, corner
        self.filters, self.groups = layer.weight.shape[0], layer._groups
        self.channels = self.layers[0].weight.shape[0 if self.separable else 1] * (1 if self.separable else self.groups)
        self.shapes = {}

    def arrangement(self, x_shape):
        """(Window, Tables, images of a job, height and width of the output) for an input of this shape, None
        if nothing comes out."""
        if x_shape not in self.shapes:
            n, _, *sides = x_shape
            layer = self.layers[0]
            stride, dilation = tuple(layer._stride), layer._dilation
            padding, kernel = tuple(layer._updated_padding or (0, 0)), layer.weight.shape[2:]
            taps = [(i * dilation[0], j * dilation[1]) for i in range(kernel[0]) for j in range(kernel[1])]
            out = [(side + 2 * p - d * (k - 1) - 1) // s + 1
                   for side, p, d, k, s in zip(sides, padding, dilation, kernel, stride)]
            if self.corner is not None:
                taps, out = [(self.corner, self.corner)], [-(-side // 2) for side in sides]
            group = images_of_a_job(n, max(self.filters, self.channels), max(1, out[0] * out[1]))
            self.shapes[x_shape] = (*window(*sides, tuple(taps), stride, padding, tuple(out), group), group,
                                    tuple(out)) if min(out) > 0 else None
        return self.shapes[x_shape]

    def weights(self, tensors):
        """The weights as the forward pass reads them."""
        depthwise = view(tensors[0]) if self.separable else EMPTY
        return depthwise, _filled_up(view(tensors[-1]).reshape(self.groups, self.filters // self.groups, -1)).ravel()

    def weights_backwards(self, tensors, tables):
        """The weights as the way back to the pixels reads them."""
        ours, theirs = self.filters // self.groups, self.channels // self.groups
        weight = view(tensors[-1]).reshape(self.groups, ours, theirs, -1)
        if self.separable:
            by_order = view(tensors[0]).reshape(self.channels, -1)[:, tables.order]
            return by_order.ravel(), _filled_up(weight[..., 0].transpose(0, 2, 1)).ravel()
        weight = weight[..., tables.order].transpose(0, 2, 1, 3)
        planes = [_filled_up(weight[..., begin:end].reshape(self.groups, theirs, -1)).reshape(self.groups, -1)
                  for begin, end in zip(tables.starts, tables.starts[1:])]
        return EMPTY, np.concatenate(planes, axis=1).ravel()


def _filled_up(weight):
    """[groups, rows, columns] contiguous, with rows of zeros up to a multiple of 4."""
    missing = -weight.shape[1] % 4
    return np.pad(weight, ((0, 0), (0, missing), (0, 0))) if missing else np.ascontiguousarray(weight)


class Unit:
    """relu: whether there is one in front; norm: BatchNorm2D behind or None; convolutions: side by side, their outputs
    concatenated."""

    def __init__(self, relu, convolutions, norm):
        self.relu, self.convolutions, self.norm = relu, convolutions, norm
        self.filters = sum(convolution.filters for convolution in convolutions)
        layers = [layer for convolution in convolutions for layer in convolution.layers]
        self.layers = layers + ([norm] if norm is not None and norm.weight is not None else [])

    def statistics(self):
        return [] if self.norm is None else [self.norm._mean, self.norm._variance]

    def parameters(self):
        return [tensor for layer in self.layers
                for tensor in ([layer.weight] if isinstance(layer, nn.Conv2D) else [layer.weight, layer.bias])]

    def output_shape(self, x_shape):
        """[N, C, H, W] of the output, or None where the unit does not apply."""
        if any(convolution.channels != x_shape[1] for convolution in self.convolutions):
            return None
        found = self.convolutions[0].arrangement(x_shape)
        if found is None:
            return None
        out = (x_shape[0], self.filters, *found[-1])
        if self.norm is not None and (self.norm._mean.shape[0] != self.filters or out[0] * out[2] * out[3] == 1):
            return None  # of a single value per channel Paddle's batch norm returns its input
        return out


class Pooling:
    """An AvgPool2D without the padding's zeros, or a MaxPool2D, of a square window."""

    def __init__(self, layer):
        self.layer, self.average, self.shapes = layer, isinstance(layer, nn.AvgPool2D), {}

    def arrangement(self, x_shape):
        """(Window, Tables, Shape, divisors, height and width of the output) for an input of this shape, None if
        nothing comes out."""
        if x_shape not in self.shapes:
            n, c, *sides = x_shape
            kernel, stride, padding = self.layer.ksize, self.layer.stride, self.layer.padding
            up = stride - 1 if self.layer.ceil_mode else 0
            starts = [np.arange((side + 2 * padding - kernel + up) // stride + 1) * stride - padding for side in sides]
            found = None
            if all(len(start) and start[-1] < side for start, side in zip(starts, sides)):
                taps = tuple((i, j) for i in range(kernel) for j in range(kernel))
                out = tuple(len(start) for start in starts)
                group = images_of_a_job(n, 1, out[0] * out[1])
                counts = [np.minimum(start + kernel, side) - np.maximum(start, 0) for start, side in zip(starts, sides)]
                divisors = (1 / np.outer(*counts) if self.average else np.ones(out)).astype(np.float32).ravel()
                found = (*window(*sides, taps, (stride, stride), (padding, padding), out, group),
                         Shape(n, group, c, c, 1, 0, c), divisors, out)
            self.shapes[x_shape] = found
        return self.shapes[x_shape]

    def output_shape(self, x_shape):
        found = self.arrangement(x_shape)
        return None if found is None else (*x_shape[:2], *found[-1])


class Block:
    """sum_k w_k * operation_k(x), or one operation without a weight.

    operations: for each k a list of Unit (a chain), a Pooling, IDENTITY or NOTHING: zeros.
    """

    def __init__(self, operations):
        self.operations = operations
        self.units = [unit for operation in operations if isinstance(operation, list) for unit in operation]
        self.shapes = {}

    def applies(self, x, weights=None):
        """Whether the compiled passes cover an input: single precision on a CPU, the channels of the layers."""
        if not available(x) or x.ndim != 4 or not x.size:
            return False
        shape = tuple(x.shape)
        if shape not in self.shapes:
            self.shapes[shape] = self._output_shape(shape)
        return (self.shapes[shape] is not None
                and (weights is None or available(weights) and weights.shape == [len(self.operations)])
                and all(available(tensor) for unit in self.units for tensor in unit.parameters() + unit.statistics()))

    def _output_shape(self, shape):
        found = set()
        for operation in self.operations:
            out = shape
            for step in operation if isinstance(operation, list) else [operation]:
                out = out if out is None or step in (IDENTITY, NOTHING) else step.output_shape(out)
            if operation != NOTHING:
                found.add(out)
        return found.pop() if len(found) == 1 else None

    def __call__(self, x, weights=None):
        """x [N, C, H, W]; weights: a tensor [operations] or None."""
        parameters = [tensor for unit in self.units for tensor in unit.parameters()]
        return _BlockOperation(self, weights is not None)(x, *[weights] * (weights is not None), *parameters)


class _BlockOperation(Operation):
    """A block for x, the weights if there are any, and the parameters."""

    def __init__(self, block, weighted):
        self.block, self.weighted = block, weighted

    def forward(self, x, *tensors):
        weights = tensors[0] if self.weighted else None
        parameters = [tensor.contiguous() for tensor in tensors[self.weighted:]]
        run = Pass(self.block, x.contiguous(), weights, parameters)
        if any(self.wanted):
            self.run = run
        return run.forward(keep=any(self.wanted))

    def backward(self, d):
        dx, dweights, dparameters = self.run.backward(d.contiguous(), self.wanted[0], self.weighted and self.wanted[1],
                                                      self.wanted[1 + self.weighted:])
        return [dx, *[dweights] * self.weighted, *dparameters]


class Pass:
    """One way through a block and back.

    x, parameters: contiguous tensors; weights: a tensor [operations] or None.
    """

    def __init__(self, block, x, weights, parameters):
        self.block, self.x, self.shape = block, x, tuple(x.shape)
        self.strength = None if weights is None else weights.numpy()
        self.chains = {}
        parameters = iter(parameters)
        self.parameters = {id(unit): [next(parameters) for _ in unit.parameters()] for unit in block.units}

    def forward(self, keep=True):
        """The output; keep: what the way back needs."""
        block = self.block
        out = paddle.empty(block.shapes[self.shape], 'float32')
        flat, source = view(out), view(self.x)
        if self.strength is None and isinstance(block.operations[0], Pooling):
            self._pool(block.operations[0], source, flat, 1, False)
            return out
        terms, shifts = [], []
        for k, operation in enumerate(block.operations):
            strength = np.float32(1 if self.strength is None else self.strength[k])
            if operation == IDENTITY:
                terms.append((source, np.full(self.shape[1], strength)))
            elif isinstance(operation, list):
                direct = flat if self.strength is None and (not keep or operation[-1].norm is None) else None
                stages = self.chains[k] = self._chain(operation, source, direct)
                if direct is not None:
                    return out
                terms.append((stages[-1].f, strength * stages[-1].scale))
                shifts.append(strength * stages[-1].shift)
        started = bool(terms)
        if started:
            shift = np.asarray(sum(shifts, np.zeros(out.shape[1])), np.float32)
            on_all_cores(add_up, self.shape[0], _addresses(terms), _stack(scale for _, scale in terms), shift, flat,
                         False, self.shape[0])
        for k, operation in enumerate(block.operations):
            if isinstance(operation, Pooling):
                self._pool(operation, source, flat, self.strength[k], started)
                started = True
        return out

    def _pool(self, pooling, source, out, weight, add):
        w, tables, shape, divisors, _ = pooling.arrangement(self.shape)
        on_all_cores(pool_forward, -(-shape.images // shape.group) * shape.channels, source, out, divisors,
                     pooling.average, np.float32(weight), add, w, tables, shape)

    def _chain(self, units, source, direct):
        """A Stage for each unit; direct: where the output of the last one goes, batch norm included, or None."""
        stages, shape = [], self.shape
        before = np.tile(np.float32([1, 0]), (shape[1], 1))
        for unit in units:
            stage = Stage(unit, self.parameters[id(unit)], shape, source, before)
            stage.forward(direct if unit is units[-1] else None)
            stages.append(stage)
            source, before, shape = stage.f, np.stack([stage.scale, stage.shift], 1), stage.shape
        return stages

    def backward(self, d, x_wanted, weights_wanted, parameters_wanted):
        """The gradients of x, of the weights and of the parameters, each or None."""
        block, flat = self.block, view(d)
        dx = paddle.empty(self.shape, 'float32') if x_wanted or any(isinstance(operation, Pooling)
                                                                    for operation in block.operations) else None
        target, written = None if dx is None else view(dx), False
        strength = np.ones(1, np.float32) if self.strength is None else self.strength
        dstrength = np.zeros(len(block.operations), np.float32)
        for k, operation in enumerate(block.operations):
            if isinstance(operation, Pooling):
                dstrength[k] = self._pool_backward(operation, flat, target, strength[k], written)
                written = True
        terms = [(k, self.chains.get(k, [None])[-1]) for k, operation in enumerate(block.operations)
                 if operation == IDENTITY or isinstance(operation, list)]
        sums = self._sums(flat, terms, weights_wanted)
        wanted, gradients = iter(parameters_wanted), []
        for (k, stage), (total, product) in zip(terms, sums):
            if stage is None:
                dstrength[k] = product.sum()
                if x_wanted:
                    on_all_cores(add_up, self.shape[0], _addresses([(flat, None)]),
                                 np.full((1, self.shape[1]), strength[k], np.float32),
                                 np.zeros(self.shape[1], np.float32), target, written, self.shape[0])
                    written = True
                continue
            dstrength[k] = stage.strength_gradient(total, product)
            wanted_here = [[next(wanted) for _ in self.parameters[id(unit)]] for unit in block.operations[k]]
            gradients += self._chain_backward(self.chains[k], flat, strength[k] * total, strength[k] * product,
                                              strength[k], target if x_wanted else None, written, wanted_here)
            written = written or x_wanted
        return (dx if x_wanted else None, paddle.to_tensor(dstrength) if weights_wanted else None, gradients)

    def _sums(self, d, terms, weights_wanted):
        """For each term the sums over a channel of d and of d * (f - mean), [C] each; zeros where nobody needs them."""
        c = self.block.shapes[self.shape][1]
        needed = [weights_wanted or stage is not None and stage.unit.norm is not None for _, stage in terms]
        some = [stage for (_, stage), use in zip(terms, needed) if use]
        parts = min(self.shape[0], 16)
        sums = np.zeros((parts, len(some), c, 2))
        if some:
            means = _stack(np.zeros(c, np.float32) if stage is None else stage.mean for stage in some)
            addresses = _addresses([(view(self.x) if stage is None else stage.f, None) for stage in some])
            on_all_cores(gradient_sums, parts, addresses, means, d, self.shape[0], sums)
        found = iter(sums.sum(0).transpose(0, 2, 1))
        return [next(found) if use else np.zeros((2, c)) for use in needed]

    def _pool_backward(self, pooling, d, dx, weight, add):
        w, tables, shape, divisors, _ = pooling.arrangement(self.shape)
        products = np.zeros(-(-shape.images // shape.group) * shape.channels, np.float32)
        on_all_cores(pool_backward, len(products), view(self.x), d, dx, divisors, pooling.average, np.float32(weight),
                     add, w, tables, shape, products)
        return products.sum(dtype=np.float64)

    @staticmethod
    def _chain_backward(stages, d, total, product, strength, dx, add, wanted):
        """The gradients of a chain's parameters; add what reaches x to dx. total, product: sums of the gradient of the
        chain's output, of which d is the strength-th part."""
        gradients = []
        for position in range(len(stages) - 1, -1, -1):
            stage = stages[position]
            coefficients = stage.coefficients(total, product, strength)
            found = stage.norm_gradients(total, product)
            previous = stages[position - 1] if position else None
            target = dx if previous is None else np.empty(len(previous.f), np.float32)
            if target is None and not any(any(some) for some in wanted[:position + 1]):
                weights, sums = [None] * (len(wanted[position]) - len(found)), None
            else:
                mean = np.zeros(stage.x_shape[1], np.float32) if previous is None else previous.mean
                weights, sums = stage.backward(d, coefficients, target, previous is None and add, mean,
                                               previous is not None, wanted[position])
            gradients = [gradient if want else None
                         for gradient, want in zip(weights + found, wanted[position])] + gradients
            if previous is not None:
                d, strength, (total, product) = target, np.float32(1), sums
        return gradients


class Stage:
    """A unit in one way through a block: what comes in, f before the batch norm, and scale and shift of the batch norm
    by then.

    before [C, 2]: scale and shift of what comes in.
    """

    def __init__(self, unit, tensors, x_shape, x, before):
        self.unit, self.tensors, self.x_shape, self.x, self.before = unit, tensors, x_shape, x, before
        self.shape = unit.output_shape(x_shape)
        self.floor = ZERO if unit.relu else NO_FLOOR
        count = sum(len(convolution.layers) for convolution in unit.convolutions)
        self.affine = [view(tensor) for tensor in tensors[count:]]
        tensors = iter(tensors)
        self.weights = [[next(tensors) for _ in convolution.layers] for convolution in unit.convolutions]

    def _convolutions(self):
        """For each convolution its tensors, Window, Tables and Shape."""
        first = 0
        for convolution, tensors in zip(self.unit.convolutions, self.weights):
            w, tables, group, _ = convolution.arrangement(self.x_shape)
            yield convolution, tensors, w, tables, Shape(self.x_shape[0], group, convolution.channels,
                                                         convolution.filters, convolution.groups, first, self.shape[1])
            first += convolution.filters

    def forward(self, direct):
        """Compute f, scale and shift, or write scale * f + shift to `direct`."""
        n, c, norm = self.shape[0], self.shape[1], self.unit.norm
        self.mean, self.inverse = np.zeros(c, np.float32), np.ones(c, np.float32)
        self.trains = norm is not None and norm.training
        if norm is not None and not self.trains:
            self._use(view(norm._mean), view(norm._variance))
        self.scale, self.shift = self._affine()
        f = self.f = direct if direct is not None and not self.trains else np.empty(int(np.prod(self.shape)),
                                                                                    np.float32)
        after = np.stack([self.scale, self.shift], 1) if f is direct else np.tile(np.float32([1, 0]), (c, 1))
        pixels = self.shape[2] * self.shape[3]
        means, squares = [], []
        for convolution, tensors, w, tables, shape in self._convolutions():
            jobs = -(-n // shape.group)
            moments = np.empty((jobs if self.trains else 0, shape.filters, 2), np.float32)
            on_all_cores(forward_pass, jobs, Forward(self.x, *convolution.weights(tensors), f), self.before, self.floor,
                         after[shape.first:shape.first + shape.filters], w, tables, shape, moments)
            if self.trains:  # of all groups together, see Chan, Golub, LeVeque 1979
                counts = np.minimum(shape.group, n - np.arange(jobs) * shape.group)[:, None] / n
                of_groups = moments.astype(np.float64)
                mean = (counts * of_groups[..., 0]).sum(0)
                means.append(mean)
                squares.append(of_groups[..., 1].sum(0) / (n * pixels)
                               + (counts * (of_groups[..., 0] - mean) ** 2).sum(0))
        if f is direct:
            self.f = None  # the memory of a tensor that nobody keeps
        if self.trains:
            mean, variance = np.concatenate(means), np.concatenate(squares)
            self._use(mean, variance)
            for running, new in ((norm._mean, mean), (norm._variance, variance)):
                some = view(running)
                some[:] = some * norm._momentum + new * (1 - norm._momentum)
            self.scale, self.shift = self._affine()
            if direct is not None:
                on_all_cores(add_up, n, _addresses([(f, None)]), self.scale[None], self.shift, direct, False, n)

    def _use(self, mean, variance):
        self.mean = np.array(mean, np.float32)
        self.inverse = (1 / np.sqrt(variance + self.unit.norm._epsilon)).astype(np.float32)

    def _affine(self):
        """Batch norm as scale and shift."""
        if not self.affine:
            return self.inverse, -self.mean * self.inverse
        scale = self.affine[0] * self.inverse
        return scale, self.affine[1] - self.mean * scale

    def strength_gradient(self, total, product):
        """sum(d * output) from the sums of d and d * (f - mean)."""
        gamma, beta = self.affine or (1, 0)
        return (gamma * self.inverse * product + beta * total).sum()

    def norm_gradients(self, total, product):
        if not self.affine:
            return []
        return [paddle.to_tensor(gradient.astype(np.float32)) for gradient in (self.inverse * product, total)]

    def coefficients(self, total, product, strength):
        """[C, 3] with df = c0 * d + c1 * f + c2."""
        c0 = strength * self.scale.astype(np.float64)
        c1, c2 = np.zeros_like(c0), np.zeros_like(c0)
        if self.trains:
            count = self.shape[0] * self.shape[2] * self.shape[3]
            c1 = -self.scale * self.inverse.astype(np.float64) ** 2 * product / count
            c2 = -self.scale * total / count - c1 * self.mean
        return np.stack([c0, c1, c2], 1).astype(np.float32)

    def backward(self, d, coefficients, dx, add, mean, moments, wanted):
        """(the weights' gradients, the sums of dx and dx * (x - mean))."""
        weights, wanted = [], iter(wanted)
        for convolution, tensors, w, tables, shape in self._convolutions():
            weights_wanted = any([next(wanted) for _ in tensors])
            is_last = convolution is self.unit.convolutions[-1]
            parts = min(cpu_threads(), -(-shape.images // shape.group))
            ours, theirs = shape.filters // shape.groups, shape.channels // shape.groups
            taps = len(tables.taps)
            k = theirs if convolution.separable else theirs * taps
            rows, columns = -(-ours // 4) * 4, -(-k // 3) * 3
            per_channel = -(-taps // 6) * 6
            depthwise = np.zeros((parts, shape.channels * per_channel if convolution.separable else 0), np.float32)
            weight = np.zeros((parts, shape.groups * rows * columns if weights_wanted else 0), np.float32)
            sums = np.zeros((parts, shape.channels, 2), np.float32)
            arrays = Backward(self.x, convolution.weights(tensors)[0], *convolution.weights_backwards(tensors, tables),
                              self.f if self.trains else d, d, EMPTY if dx is None else dx)
            on_all_cores(backward_pass, parts, arrays, self.before, self.floor,
                         coefficients[shape.first:shape.first + shape.filters], mean, w, tables, shape,
                         Wanted(dx is not None, add, moments and is_last, weights_wanted, sums, depthwise, weight))
            add = True
            if convolution.separable:
                weights.append(paddle.to_tensor(depthwise.sum(0).reshape(shape.channels, -1)[:, :taps].reshape(
                    tensors[0].shape)) if weights_wanted else None)
            weights.append(paddle.to_tensor(np.ascontiguousarray(
                weight.sum(0).reshape(shape.groups, rows, columns)[:, :ours, :k]).reshape(tensors[-1].shape))
                if weights_wanted else None)
        return weights, sums.sum(0, dtype=np.float64).T


def _addresses(terms):
    return np.array([array.ctypes.data for array, _ in terms], np.int64)


def _stack(rows):
    return np.stack([np.asarray(row, np.float32) for row in rows])
