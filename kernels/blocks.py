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
import numpy as np
import paddle

from kernels.compiled import available, view
from kernels.operation import Operation
from kernels.pool_loops import Pool, add_up, gradient_sums, pool_backward, pool_forward
from kernels.threads import on_all_cores
from kernels.unit_pass import UnitPass, addresses_of, unchanged
from kernels.units import Pooling, Unit

IDENTITY, NOTHING = 'identity', 'nothing'  # operations of a Block


class Block:
    """sum_k w_k * operation_k(x), or one operation without a weight.

    operations: for each k a list of Unit (a chain), a Pooling, IDENTITY or NOTHING: zeros. smallest: the block applies
    only if its units take at least so many multiply-adds. Parameters must not be changed in place between the way there
    and the way back, which reads them again.
    """

    def __init__(self, operations, smallest=0):
        self.operations, self.smallest = operations, smallest
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
                and all(available(tensor) for unit in self.units for tensor in unit.parameters() + unit.statistics())
                and all(tensor.is_contiguous() for unit in self.units for tensor in unit.statistics()))

    def _output_shape(self, shape):
        found, multiply_adds = set(), 0
        for operation in self.operations:
            out = shape
            for step in operation if isinstance(operation, list) else [operation]:
                before, out = out, out if out is None or step in (IDENTITY, NOTHING) else step.output_shape(out)
                if out is not None and isinstance(step, Unit):
                    multiply_adds += step.multiply_adds(before)
            if operation != NOTHING:
                found.add(out)
        return found.pop() if len(found) == 1 and multiply_adds >= self.smallest else None

    def __call__(self, x, weights=None):
        """x [N, C, H, W], to which the block applies; weights: a tensor [operations] or None."""
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
        terms = []  # (array, scale and shift of it)
        for k, operation in enumerate(block.operations):
            strength = np.float32(1 if self.strength is None else self.strength[k])
            if operation == IDENTITY:
                terms.append((source, strength * unchanged(self.shape[1])))
            elif isinstance(operation, list):
                direct = flat if self.strength is None and (not keep or operation[-1].norm is None) else None
                units = self.chains[k] = self._chain(operation, source, direct)
                if direct is not None:
                    return out
                terms.append((units[-1].f, strength * units[-1].affine))
        started = bool(terms)
        if started:
            arrays, affine = zip(*terms)
            on_all_cores(add_up, self.shape[0], addresses_of(arrays), np.array(affine), flat, False, self.shape[0])
        for k, operation in enumerate(block.operations):
            if isinstance(operation, Pooling):
                self._pool(operation, source, flat, self.strength[k], started)
                started = True
        return out

    def _pool(self, pooling, source, out, weight, add):
        arrangement, divisors, _ = pooling.arrangement(self.shape)
        on_all_cores(pool_forward, _channels_of_groups(arrangement.shape), source, out,
                     Pool(pooling.average, divisors, np.float32(weight), add), arrangement)

    def _chain(self, units, source, direct):
        """A UnitPass for each unit; direct: where the output of the last one goes, batch norm included, or None."""
        passes, shape, before = [], self.shape, unchanged(self.shape[1])
        for unit in units:
            passes.append(UnitPass(unit, self.parameters[id(unit)], shape, source, before))
            passes[-1].forward(direct if unit is units[-1] else None)
            source, before, shape = passes[-1].f, passes[-1].affine, passes[-1].shape
        return passes

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
        wanted, gradients = iter(parameters_wanted), []
        for (k, last), sums in zip(terms, self._sums(flat, terms, weights_wanted)):
            if last is None:
                dstrength[k] = sums[:, 1].sum()
                if x_wanted:
                    scale = strength[k] * unchanged(self.shape[1])[None]
                    on_all_cores(add_up, self.shape[0], addresses_of([flat]), scale, target, written, self.shape[0])
                    written = True
                continue
            dstrength[k] = last.strength_gradient(sums)
            wanted_here = [[next(wanted) for _ in self.parameters[id(unit)]] for unit in block.operations[k]]
            gradients += self._chain_backward(self.chains[k], flat, strength[k] * sums, strength[k],
                                              target if x_wanted else None, written, wanted_here)
            written = written or x_wanted
        return (dx if x_wanted else None, paddle.to_tensor(dstrength) if weights_wanted else None, gradients)

    def _sums(self, d, terms, weights_wanted):
        """For each term the sums over a channel of d and of d * (f - mean), [C, 2] each; zeros where nobody needs
        them."""
        c = self.block.shapes[self.shape][1]
        needed = [weights_wanted or last is not None and last.unit.norm is not None for _, last in terms]
        some = [last for (_, last), use in zip(terms, needed) if use]
        parts = min(self.shape[0], 16)
        sums = np.zeros((parts, len(some), c, 2))
        if some:
            means = np.array([np.zeros(c, np.float32) if last is None else last.mean for last in some])
            addresses = addresses_of([view(self.x) if last is None else last.f for last in some])
            on_all_cores(gradient_sums, parts, addresses, means, d, self.shape[0], sums)
        found = iter(sums.sum(0))
        return [next(found) if use else np.zeros((c, 2)) for use in needed]

    def _pool_backward(self, pooling, d, dx, weight, add):
        arrangement, divisors, _ = pooling.arrangement(self.shape)
        products = np.zeros(_channels_of_groups(arrangement.shape), np.float32)
        on_all_cores(pool_backward, len(products), view(self.x), d, dx,
                     Pool(pooling.average, divisors, np.float32(weight), add), arrangement, products)
        return products.sum(dtype=np.float64)

    @staticmethod
    def _chain_backward(units, d, sums, strength, dx, add, wanted):
        """The gradients of a chain's parameters; add what reaches x to dx. The gradient of the chain's output is
        strength * d; sums [C, 2]: of this gradient and of its products with f - mean."""
        gradients = [[None] * len(some) for some in wanted]
        for position in range(len(units) - 1, -1, -1):
            unit, previous = units[position], units[position - 1] if position else None
            more = any(any(some) for some in wanted[:position]) or dx is not None  # than this unit's own gradients
            if not more and not any(wanted[position]):
                break
            target = (dx if previous is None else np.empty(len(previous.f), np.float32)) if more else None
            mean = np.zeros(unit.x_shape[1], np.float32) if previous is None else previous.mean
            found = unit.norm_gradients(sums)
            weights, sums = unit.backward(d, unit.coefficients(sums, strength), target, previous is None and add, mean,
                                          more and previous is not None, wanted[position])
            gradients[position] = [gradient if want else None
                                   for gradient, want in zip(weights + found, wanted[position])]
            if not more:
                break
            d, strength = target, np.float32(1)
        return [gradient for of_unit in gradients for gradient in of_unit]


def _channels_of_groups(shape):
    return -(-shape.images // shape.group) * shape.channels
