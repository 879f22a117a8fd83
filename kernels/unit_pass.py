"""A unit of blocks.py in one way through a block and back: its convolutions, and batch norm as a scale and a shift."""
import functools

import numpy as np
import paddle

from kernels.batch_norm import gradient_coefficients, update_statistics
from kernels.block_loops import Backward, Forward, Wanted, add_parts, backward_pass, forward_pass
from kernels.compiled import EMPTY, view
from kernels.images import NO_FLOOR, ZERO
from kernels.pool_loops import add_up
from kernels.threads import on_all_cores
from runtime.parallel import cpu_threads

LARGE = 2 ** 15  # elements from which on adding the partial sums is worth a second core


class UnitPass:
    """What comes into the unit, what its convolutions make of it, f, and the batch norm behind as scale and shift,
    `affine` [C, 2].

    tensors: of unit.parameters(), contiguous. before [C, 2]: scale and shift of what comes in.
    """

    def __init__(self, unit, tensors, x_shape, x, before):
        self.unit, self.x_shape, self.x, self.before = unit, x_shape, x, before
        self.shape = unit.output_shape(x_shape)
        self.floor = ZERO if unit.relu else NO_FLOOR
        arrays = iter([view(tensor) for tensor in tensors])
        weights = [[next(arrays) for _ in convolution.layers] for convolution in unit.convolutions]
        self.convolutions = list(zip(unit.convolutions, weights, unit.arrangements(x_shape)))
        self.norm_parameters = list(arrays)  # none, or weight and bias

    def forward(self, direct):
        """Compute f and its scale and shift, or write scale * f + shift to `direct`."""
        n, c, norm = self.shape[0], self.shape[1], self.unit.norm
        self.mean, self.inverse = np.zeros(c, np.float32), np.ones(c, np.float32)
        self.trains = norm is not None and norm.training
        if norm is not None and not self.trains:
            self._take_statistics(np.empty((0, c, 2), np.float32), self.convolutions[0][2].shape)
        self.affine = None if self.trains else self._scale_and_shift()
        at_once = direct is not None and not self.trains
        f = direct if at_once else np.empty(int(np.prod(self.shape)), np.float32)
        after = self.affine if at_once else unchanged(c)
        for convolution, weights, arrangement in self.convolutions:
            shape = arrangement.shape
            jobs = -(-n // shape.group)
            moments = np.empty((jobs if self.trains else 0, shape.filters, 2), np.float32)
            on_all_cores(forward_pass, jobs, Forward(self.x, *convolution.weights(weights), f, self.before, after,
                                                     moments), self.floor, arrangement)
            if self.trains:
                self._take_statistics(moments, shape)
        if self.trains:
            self.affine = self._scale_and_shift()
            if direct is not None:
                on_all_cores(add_up, n, addresses_of([f]), self.affine[None], direct, False, n)
        self.f = None if at_once else f  # `direct` is the output itself, which the way back does not need

    def _take_statistics(self, moments, shape):
        """Mean and 1 / standard deviation from the moments [jobs, filters, 2] of a batch, or the running ones."""
        norm, first, last = self.unit.norm, shape.first, shape.first + moments.shape[1]
        running = np.array([[tensor.data_ptr() + 4 * first for tensor in (norm._mean, norm._variance)]], np.int64)
        update_statistics(moments[None], shape, self.shape[2] * self.shape[3], (norm._epsilon, norm._momentum), running,
                          np.zeros((1, last - first), np.float32), self.mean[None, first:last],
                          self.inverse[None, first:last])

    def _scale_and_shift(self):
        weight, bias = self.norm_parameters or (np.float32(1), np.float32(0))
        affine = np.empty((len(self.mean), 2), np.float32)
        scale = np.multiply(weight, self.inverse, out=affine[:, 0])
        np.subtract(bias, self.mean * scale, out=affine[:, 1])
        return affine

    def strength_gradient(self, sums):
        """sum(d * output) from the sums [C, 2] of d and d * (f - mean)."""
        weight, bias = self.norm_parameters or (1, 0)
        return (weight * self.inverse * sums[:, 1] + bias * sums[:, 0]).sum()

    def norm_gradients(self, sums):
        """Of weight and bias, if the batch norm has them."""
        if not self.norm_parameters:
            return []
        dweight, dbias = [paddle.empty([len(sums)], 'float32') for _ in range(2)]
        view(dweight)[:] = self.inverse * sums[:, 1]
        view(dbias)[:] = sums[:, 0]
        return [dweight, dbias]

    def coefficients(self, sums, strength):
        """[C, 3] with df = c0 * d + c1 * f + c2; sums and strength as in Pass._chain_backward of blocks.py."""
        count = self.shape[0] * self.shape[2] * self.shape[3] if self.trains else 0
        result = np.empty((len(sums), 3), np.float32)
        gradient_coefficients(sums, strength, count, self.affine, self.mean, self.inverse, result)
        return result

    def backward(self, d, coefficients, dx, add, mean, moments, wanted):
        """(the weights' gradients, the sums [C, 2] of dx and of dx * (x - mean), if moments is true).

        d: the gradient of what comes behind the batch norm, from which the coefficients give that of f. dx: where the
        gradient of scale * x + shift goes, or None; add: to what is there. wanted: for each weight whether its gradient
        is.
        """
        gradients, wanted = [], iter(wanted)
        for convolution, weights, arrangement in self.convolutions:
            weights_wanted = any([next(wanted) for _ in weights])
            parts = min(cpu_threads(), -(-self.x_shape[0] // arrangement.shape.group))
            layouts = convolution.gradient_layouts(arrangement.tables)
            partial = [np.empty((parts, layout.size if weights_wanted else 0), np.float32) for layout in layouts]
            sums = np.zeros((parts, self.x_shape[1], 2), np.float32)
            arrays = Backward(self.x, convolution.weights(weights)[0],
                              *convolution.weights_backwards(weights, arrangement.tables),
                              self.f if self.trains else d, d, EMPTY if dx is None else dx, self.before, coefficients,
                              mean)
            is_last = convolution is self.unit.convolutions[-1]
            on_all_cores(backward_pass, parts, arrays, self.floor, arrangement,
                         Wanted(dx is not None, add, moments and is_last, weights_wanted, sums,
                                partial[0] if convolution.separable else partial[0][:, :0], partial[-1]))
            add = True
            gradients += [_sum_of(some, layout, layer.weight.shape) if weights_wanted else None
                          for some, layout, layer in zip(partial, layouts, convolution.layers)]
        return gradients, sums.sum(0, dtype=np.float64)


def _sum_of(parts, layout, shape):
    """A tensor of this shape from the partial sums of a weight's gradient."""
    gradient = paddle.empty(shape, 'float32')
    jobs = layout.groups * layout.rows
    if layout.size < LARGE:
        add_parts(parts, layout, view(gradient), 0, jobs)
    else:
        on_all_cores(add_parts, jobs, parts, layout, view(gradient))
    return gradient


@functools.lru_cache(None)
def unchanged(channels):
    """The scale 1 and the shift 0 of each channel, [C, 2]; nobody writes to it."""
    return np.tile(np.float32([1, 0]), (channels, 1))


def addresses_of(arrays):
    return np.array([array.ctypes.data for array in arrays], np.int64)
