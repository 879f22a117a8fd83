"""A unit of blocks.py in one way through a block and back: its convolutions, and batch norm as a scale and a shift."""
import numpy as np
import paddle

from kernels.block_loops import Backward, Forward, Wanted, backward_pass, forward_pass
from kernels.compiled import EMPTY, on_all_cores, view
from kernels.images import NO_FLOOR, ZERO
from kernels.pool_loops import add_up
from kernels.windows import Arrangement, Shape
from runtime.parallel import cpu_threads


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
        """For each convolution its tensors and its Arrangement."""
        first = 0
        for convolution, tensors in zip(self.unit.convolutions, self.weights):
            w, tables, group, _ = convolution.arrangement(self.x_shape)
            shape = Shape(self.x_shape[0], group, convolution.channels, convolution.filters, convolution.groups, first,
                          self.shape[1])
            yield convolution, tensors, Arrangement(w, tables, shape)
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
        for convolution, tensors, arrangement in self._convolutions():
            shape = arrangement.shape
            jobs = -(-n // shape.group)
            moments = np.empty((jobs if self.trains else 0, shape.filters, 2), np.float32)
            arrays = Forward(self.x, *convolution.weights(tensors), f, self.before,
                             after[shape.first:shape.first + shape.filters], moments)
            on_all_cores(forward_pass, jobs, arrays, self.floor, arrangement)
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
                on_all_cores(add_up, n, addresses_of([(f, None)]), self.scale[None], self.shift, direct, False, n)

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
        for convolution, tensors, arrangement in self._convolutions():
            tables, shape = arrangement[1:]
            weights_wanted = any([next(wanted) for _ in tensors])
            is_last = convolution is self.unit.convolutions[-1]
            parts = min(cpu_threads(), -(-shape.images // shape.group))
            filters, inputs = shape.filters // shape.groups, shape.channels // shape.groups
            taps = len(tables.taps)
            k = inputs if convolution.separable else inputs * taps
            rows, columns = -(-filters // 4) * 4, -(-k // 3) * 3
            per_channel = -(-taps // 3) * 3
            depthwise = np.zeros((parts, shape.channels * per_channel if convolution.separable else 0), np.float32)
            weight = np.zeros((parts, shape.groups * rows * columns if weights_wanted else 0), np.float32)
            sums = np.zeros((parts, shape.channels, 2), np.float32)
            arrays = Backward(self.x, convolution.weights(tensors)[0], *convolution.weights_backwards(tensors, tables),
                              self.f if self.trains else d, d, EMPTY if dx is None else dx, self.before,
                              coefficients[shape.first:shape.first + shape.filters], mean)
            on_all_cores(backward_pass, parts, arrays, self.floor, arrangement,
                         Wanted(dx is not None, add, moments and is_last, weights_wanted, sums, depthwise, weight))
            add = True
            if convolution.separable:
                weights.append(paddle.to_tensor(depthwise.sum(0).reshape(shape.channels, -1)[:, :taps].reshape(
                    tensors[0].shape)) if weights_wanted else None)
            weights.append(paddle.to_tensor(np.ascontiguousarray(
                weight.sum(0).reshape(shape.groups, rows, columns)[:, :filters, :k]).reshape(tensors[-1].shape))
                if weights_wanted else None)
        return weights, sums.sum(0, dtype=np.float64).T


def addresses_of(terms):
    return np.array([array.ctypes.data for array, _ in terms], np.int64)


def stack(rows):
    return np.stack([np.asarray(row, np.float32) for row in rows])
