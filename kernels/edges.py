"""All edges that leave a state of a cell, as one compiled operation: on a CPU most of a search step is spent here.

For every edge t it computes the weighted sum of its convolutions, its poolings and its identity,

    out_t = sum_k w_tk * operation_tk(x)

as model_search.MixedOp does, but in a few passes over the images, each of which reads and writes memory once:

    1   of every convolution: ReLU, depthwise, pointwise; the mean and variance of what comes out, channel by channel
    2   of the SepConvs: batch norm (a mean and a scale by then) and ReLU, depthwise, pointwise; mean and variance
    3   the sum, with batch norm and w_tk as one scale of f - mean

The passes are separate because a batch norm needs the mean and variance of all images before the next one can begin. A
pass goes through the images in groups, that stay in a core's own cache; what lies between ReLU and pointwise
convolution is never written to memory, the backward pass computes it again where the weights' gradient needs it. Batch
norm is linear in the gradient d of its output f_hat = (f - mean) / std, of M values a channel (Ioffe, Szegedy 2015,
section 3):

    df = w / std * (d - sum(d) / M - f_hat * sum(d * f_hat) / M),    dw = sum(d * f_hat)

so one pass over the upstream gradients takes both sums, of all operations of an edge, and the next one uses df as a
scale of d, a scale of f and a shift.

In evaluation mode mean and variance are the running statistics; gradients are left to Paddle's operations then.
"""
import numpy as np
import paddle
import paddle.nn as nn

from kernels.batch_norm import update_statistics
from kernels.compiled import addresses, available
from kernels.edge_loops import (
    GROUPED,
    NCHW,
    Backward,
    Forward,
    Terms,
    Way,
    add_up,
    backward_pass,
    forward_pass,
    gradient_sums,
    sum_groups,
)
from kernels.edge_pools import PoolBackward, pool_backward, pool_forward
from kernels.edge_sizes import FIRST, SECOND, Ends, Sizes, is_repeated, window_of
from kernels.operation import Operation
from kernels.threads import on_all_cores

POOLINGS = (nn.MaxPool2D, nn.AvgPool2D)


class Edges:
    """What is known of the edges that leave a state before the state is.

    operations [edge][k]: SepConv, DilConv, poolings with or without a batch norm, Identity. Poolings of one kind see
    the same images and are computed once for all edges.
    rows, columns: where their weights lie in the matrix of a cell, that of operations[t][k] in [rows[t],
    columns[t][k]].

    Every tensor that the passes compute has a number, its index in all arrays below: first the convolutions of pass 1,
    then those of pass 2, then the poolings. The identity has the last one, -1.
    """

    def __init__(self, operations, rows, columns):
        self.place = np.array(rows)[:, None], np.array(columns)
        convolutions = [op.op for ops in operations for op in ops if hasattr(op, 'op')]
        again = [layers for layers in convolutions if is_repeated(layers)]
        triples = [[list(layers)[FIRST] for layers in convolutions], [list(layers)[SECOND] for layers in again]]
        self.convolutions = [[(depthwise, pointwise) for depthwise, pointwise, _ in of_pass] for of_pass in triples]
        self._place_weights([pair for pairs in self.convolutions for pair in pairs])
        self.taps = np.array([depthwise.weight.shape[2] ** 2 for pairs in self.convolutions for depthwise, _ in pairs],
                             np.int64)
        self.norms = [norm for of_pass in triples for _, _, norm in of_pass]
        # what pass 2 goes on with
        self.twice = np.array([j for j, layers in enumerate(convolutions) if is_repeated(layers)], np.int64)

        self.final = np.zeros((len(operations), len(operations[0])), np.int64)  # the number of what an edge's sum takes
        second = {id(layers): len(convolutions) + i for i, layers in enumerate(again)}
        first, pools, pool_norms = iter(range(len(convolutions))), {}, []
        for t, ops in enumerate(operations):
            for k, op in enumerate(ops):
                if hasattr(op, 'op'):
                    self.final[t, k] = second.get(id(op.op), next(first))
                elif type(op) not in (nn.Sequential, *POOLINGS):
                    self.final[t, k] = -1
                else:
                    pool = op[0] if type(op) is nn.Sequential else op
                    key = type(pool), *window_of(pool), pool is op
                    pools.setdefault(key, (len(self.norms) + len(pools), pool))
                    self.final[t, k] = pools[key][0]
                    pool_norms += [] if pool is op else [(t, k, op[1])]
        self.pools = [pool for _, pool in pools.values()]
        self.ends = Ends(*np.cumsum([len(convolutions), len(again), len(pools)]).tolist())
        self.edge_of = {int(number): t for t, numbers in enumerate(self.final) for number in numbers}
        # The numbers that are no convolutions, the identity last, and which of them an edge takes: [edges, k, others].
        self.others = np.array([number for number, _ in pools.values()] + [-1] * int((self.final < 0).any()), np.int64)
        self.takes = (self.final[..., None] == self.others).astype(np.float32)
        self.normed = np.array([not key[-1] for key in pools] + [False] * int((self.final < 0).any()), bool)

        # The batch norms of poolings, of each edge its own, and where they stand.
        self.pool_places = np.array([place[:2] for place in pool_norms], np.int64).reshape(-1, 2).T
        self.pool_norms = [norm for _, _, norm in pool_norms]
        # Whoever makes this object notices when a layer gets other tensors (nas/acceleration.py), so they are kept: an
        # attribute of a layer takes Paddle a microsecond to find.
        self.running = [(norm._mean, norm._variance) for norm in self.norms]
        self.pool_running = [(norm._mean, norm._variance) for norm in self.pool_norms]
        self.statistics = [tensor for pair in self.running + self.pool_running for tensor in pair]
        self.tensors = sum(self.weights, []) + self.statistics + self.biases
        self.sizes = {}

    def _place_weights(self, convolutions):
        """Collect the weights of (depthwise, pointwise) layers by their shapes, and the biases of the pointwise
        ones."""
        layers = [layer for pair in convolutions for layer in pair]
        by_shape = {}
        for layer in layers:
            by_shape.setdefault(tuple(layer.weight.shape[1:]), []).append(layer)
        self.weights = [[layer.weight for layer in members] for members in by_shape.values()]
        # For each layer the stack of its weight, and where it begins there, in elements.
        place_of = {id(layer): (stack, position * layer.weight.size)
                    for stack, members in enumerate(by_shape.values()) for position, layer in enumerate(members)}
        self.weight_places = np.array([place_of[id(layer)] for layer in layers], np.int64).reshape(-1, 2)
        biased = [(number, pointwise.bias) for number, (_, pointwise) in enumerate(convolutions)
                  if pointwise.bias is not None]
        self.biased, self.biases = [number for number, _ in biased], [bias for _, bias in biased]

    def weight_addresses(self, stacks):
        """The addresses of [depthwise, pointwise] weights of passes 1 and 2, from a tensor for those of each shape."""
        starts = addresses(stacks)
        if not len(starts):
            return starts.reshape(-1, 2)
        return (starts[self.weight_places[:, 0]] + 4 * self.weight_places[:, 1]).reshape(-1, 2)

    def applies(self, x, matrix):
        """Whether the compiled passes cover a state x and a matrix of weights: single precision on a CPU, shapes that
        the layers allow, training mode or evaluation without gradients. Paddle says what is wrong with the others."""
        if not (available(x) and x.ndim == 4 and x.size and matrix.dtype == paddle.float32):
            return False
        modes = {norm.training for norm in self.norms + self.pool_norms}
        return (len(modes) < 2 and (False not in modes or not paddle.is_grad_enabled())
                and all(tensor.dtype == paddle.float32 for tensor in self.tensors)
                and all(tensor.shape[0] == x.shape[1] and tensor.is_contiguous()
                        for tensor in self.statistics + self.biases)
                and self.sizes_of(x).fit)

    def sizes_of(self, x):
        shape = tuple(x.shape)
        if shape not in self.sizes:
            self.sizes[shape] = Sizes(self, *shape)
        return self.sizes[shape]

    def __call__(self, x, matrix):
        """x [N, C, H, W], matrix [edges of the cell, operations] -> for each edge that leaves x a tensor."""
        # Weights of one shape as one tensor: few inputs, each of which costs Python's time.
        stacks = [paddle.concat(weights) for weights in self.weights + [self.biases] * bool(self.biases)]
        out = _Edges(self, self.sizes_of(x))(x, matrix, *stacks)
        return list(out) if isinstance(out, (tuple, list)) else [out]


class _Edges(Operation):
    """The passes as one operation of Paddle's; gradients of x, the matrix and the weights, each if it is wanted."""

    def __init__(self, edges, sizes):
        self.edges, self.sizes = edges, sizes

    def forward(self, x, matrix, *weights):
        edges, sizes = self.edges, self.sizes
        self.x, self.weights, self.matrix_shape = x.contiguous(), [w.contiguous() for w in weights], matrix.shape
        # What is kept for the way back: a row for each number but the identity's.
        self.kept = paddle.empty([int(edges.ends.pools), sizes.images.images * sizes.images.channels * sizes.pixels],
                                 'float32')
        biases = np.zeros((edges.ends.second, sizes.images.channels), np.float32)
        if edges.biases:
            biases[edges.biased] = self.weights.pop().numpy().reshape([-1, sizes.images.channels])
        self.passes = Passes(edges, sizes, _rows(self.kept, self.x), edges.weight_addresses(self.weights),
                             matrix.numpy()[edges.place])
        self.passes.convolve_and_pool(self.x.data_ptr(), biases)
        outs = [paddle.empty([*sizes.images[:2], *sizes.out], 'float32') for _ in edges.final]
        self.passes.add_up(outs)
        return tuple(outs) if len(outs) > 1 else outs[0]

    def backward(self, *ds):
        x_wanted, matrix_wanted, *weights_wanted = self.wanted
        some_wanted = any(weights_wanted[:len(self.weights)])
        self.passes.sum_gradients([d.contiguous() for d in ds])
        dx = paddle.zeros(self.x.shape, 'float32') if x_wanted else None
        dmatrix = paddle.to_tensor(self.passes.matrix_gradient(self.matrix_shape)) if matrix_wanted else None
        dweights = [paddle.empty(weight.shape, 'float32') for weight in self.weights] if some_wanted else []
        if x_wanted or dweights:
            self.passes.convolve_backward(self.x.data_ptr(), dx, dweights)
        if x_wanted:
            self.passes.pool_backward(self.x.data_ptr(), dx)
        # A batch norm takes away what a bias in front of it adds.
        biases = self.edges.biases
        dbiases = [paddle.zeros([len(biases) * self.sizes.images.channels], 'float32')] * bool(biases)
        return [dx, dmatrix] + [dweight if wanted else None
                                for dweight, wanted in zip((dweights or self.weights) + dbiases, weights_wanted)]


def _rows(kept, x=None):
    """The addresses of the rows of a tensor, and that of x."""
    rows = kept.data_ptr() + 4 * kept.shape[1] * np.arange(kept.shape[0])
    return rows if x is None else np.append(rows, x.data_ptr())


class Passes:
    """One way there and back through the edges.

    at: the address of what each number makes, -1: x itself. weights: the addresses of [depthwise, pointwise] of passes
    1 and 2.
    strength: the weights w_tk, [edges, operations].
    """

    def __init__(self, edges, sizes, at, weights, strength):
        self.edges, self.sizes, self.at, self.weights, self.strength = edges, sizes, at, weights, strength
        # Of what each number makes; nothing is taken off the identity, and it is multiplied by 1.
        shape = len(at), sizes.images.channels
        self.mean, self.inverse = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        self.terms = Terms(self.at[edges.final], np.where(edges.final < 0, NCHW, GROUPED))

    def convolve_and_pool(self, x, biases):
        """Passes 1 and 2 and the poolings of x, an address, and what the batch norms make of them; biases [numbers of
        convolutions, C]: of the pointwise ones, which only the running means contain."""
        edges, sizes, (first, second, last) = self.edges, self.sizes, self.edges.ends
        channels = sizes.images.channels
        training = any(norm.training for norm in (edges.norms + edges.pool_norms)[:1])
        moments = np.empty((last, sizes.groups if training else 0, channels, 2), np.float32)
        relu_alone = np.tile(np.float32([1, 0]), (first, channels, 1))
        self._convolve(slice(first), np.full(first, x), NCHW, relu_alone, moments, biases)
        self._convolve(slice(first, second), self.at[edges.twice], GROUPED, self._batch_norm(edges.twice), moments,
                       biases)
        on_all_cores(pool_forward, (last - second) * sizes.groups, x, self.at[second:last], sizes.pools, sizes.images,
                     moments[second:])
        self.final_mean, self.final_inverse = self.mean[edges.final], self.inverse[edges.final]
        if edges.pool_norms:  # in evaluation mode those of the edges differ
            place = tuple(edges.pool_places)
            numbers = edges.final[place]
            found = self._statistics(edges.pool_running, moments[numbers],
                                     np.zeros((len(numbers), channels), np.float32))
            self.final_mean[place], self.final_inverse[place] = found
            self.mean[numbers], self.inverse[numbers] = found

    def _convolve(self, some, source, order, before, moments, biases):
        """Pass 1 or 2, with the numbers `some`, and its batch norms."""
        on_all_cores(forward_pass, len(source) * self.sizes.groups,
                     Forward(source, *self._weights(some), self.at[some]), order, before,
                     self._tables(some), self.sizes.images, moments[some])
        self.mean[some], self.inverse[some] = self._statistics(self.edges.running[some], moments[some], biases[some])

    def _tables(self, some):
        return self.sizes.tables[1 if some.start else 0]

    def _weights(self, some):
        return np.ascontiguousarray(self.weights[some].T)

    def _batch_norm(self, numbers):
        """Scale and shift [.., C, 2]."""
        inverse = self.inverse[numbers]
        return np.stack([inverse, -self.mean[numbers] * inverse], -1)

    def _statistics(self, running, moments, biases):
        """Mean and 1 / standard deviation, [rows, C]: from the moments [rows, groups, C, 2] of a batch, which the
        running statistics follow, or, without moments, these."""
        images, norm = self.sizes.images, (self.edges.norms + self.edges.pool_norms)[0] if running else None
        mean, inverse = np.empty((2, len(running), images.channels), np.float32)
        if running:
            update_statistics(moments, images, self.sizes.pixels, (norm._epsilon, norm._momentum),
                              np.array([addresses(pair) for pair in running], np.int64), biases, mean, inverse)
        return mean, inverse

    def add_up(self, outs):
        """Pass 3."""
        self.scale = self.strength[..., None] * self.final_inverse
        on_all_cores(add_up, len(outs) * self.sizes.groups, self.terms, self.scale, self.final_mean, addresses(outs),
                     self.sizes.images, self.sizes.pixels)

    def sum_gradients(self, ds):
        """Take both sums of the upstream gradients, of all that goes into the edges."""
        final, sizes = self.edges.final, self.sizes
        sums = np.zeros(final.shape + (sizes.groups, sizes.images.channels, 2), np.float32)
        self.ds, self.d_at = ds, addresses(ds)
        on_all_cores(gradient_sums, len(final) * sizes.groups, self.terms, self.mean[final], self.d_at, sizes.images,
                     sizes.pixels, sums)
        self.sums = self._of_groups(sums, final)

    def _of_groups(self, sums, numbers):
        """[..., C, 2]: the sums over the groups of d and of d * (f - mean), the latter times 1 / standard deviation."""
        sums = sums.sum(-3, dtype=np.float64)
        sums[..., 1] *= self.inverse[numbers]
        return sums

    def matrix_gradient(self, shape):
        gradient = np.zeros(shape, np.float32)
        gradient[self.edges.place] = self.sums[..., 1].sum(-1)
        return gradient

    def convolve_backward(self, x, dx, dweights):
        """The way back through passes 2 and 1: add what reaches x to dx, if there is one, and fill dweights, if there
        are any."""
        edges, images, (first, second, _) = self.edges, self.sizes.images, self.edges.ends
        # By number: where d lies, in which order, and how df follows from it; those of pass 1 that pass 2
        # goes on with come later.
        d = np.array([self.d_at[edges.edge_of.get(number, 0)] for number in range(second)], np.int64)
        order, coefficients = np.full(second, NCHW), np.zeros(self.inverse.shape + (3,), np.float32)
        coefficients[edges.final] = self._batch_norm_backward(edges.final, self.scale, self.sums)
        middle = paddle.empty([second - first, images.images * images.channels * self.sizes.pixels], 'float32')
        twice, some = edges.twice, slice(first, second)
        way = Way(GROUPED, order[some], self._batch_norm(twice), self.mean[twice], coefficients[some], True,
                  bool(dweights))
        sums = self._convolve_backward(some, self.at[twice], d, _rows(middle), way, dweights)
        coefficients[twice] = self._batch_norm_backward(twice, self.inverse[twice], self._of_groups(sums, twice))
        d[twice], order[twice] = _rows(middle), GROUPED
        some, relu_alone = slice(first), np.tile(np.float32([1, 0]), (first, images.channels, 1))
        way = Way(NCHW, order[some], relu_alone, np.zeros((first, images.channels), np.float32), coefficients[some],
                  dx is not None, bool(dweights))
        target = np.full(first, dx.data_ptr() if dx is not None else 0)
        self._convolve_backward(some, np.full(first, x), d, target, way, dweights)

    def _convolve_backward(self, some, source, d, target, way, dweights):
        """Of pass 1 or 2; returns the sums of the gradients of its inputs, [convolutions, groups, C, 2]."""
        table, channels, groups = self._tables(some), self.sizes.images.channels, self.sizes.groups
        kernels = channels * self.edges.taps[some]
        starts = np.stack([0 * kernels, kernels, kernels + channels * channels], -1)
        by_group = np.zeros((groups, len(table), starts.max() if way.weights_wanted and len(table) else 0), np.float32)
        sums = np.zeros((len(table), groups, channels, 2), np.float32)
        tensors = Backward(source, *self._weights(some), self.at[some], d[some], target)
        on_all_cores(backward_pass, groups if len(table) else 0, tensors, way, table, self.sizes.images, by_group, sums)
        if way.weights_wanted:
            on_all_cores(sum_groups, len(table), by_group, starts, self.edges.weight_addresses(dweights)[some])
        return sums

    def _batch_norm_backward(self, numbers, scale, sums):
        """df = c0 * d + c1 * f + c2 as [..., C, 3]; scale: of f in the output, sums [..., C, 2]: of d and of d * (f -
        mean) * inverse."""
        count = self.sizes.images.images * self.sizes.pixels
        c1 = -scale * self.inverse[numbers] * sums[..., 1] / count
        return np.stack([scale, c1, -scale * sums[..., 0] / count - c1 * self.mean[numbers]], -1).astype(np.float32)

    def pool_backward(self, x, dx):
        """Add the gradient of x through the poolings and the identities to dx."""
        edges, sizes, numbers = self.edges, self.sizes, self.edges.others
        # of each pooling, with the weights of all edges that take it
        together = np.einsum('tkj,tk,tkcs->jcs', edges.takes, self.strength, self.sums)
        coefficients = self._batch_norm_backward(numbers, self.inverse[numbers], together)
        coefficients[~edges.normed] = 0
        scale = np.einsum('tkj,tkc->tjc', edges.takes, self.scale)
        tensors = PoolBackward(x, dx.data_ptr(), self.at[numbers], self.d_at, scale,
                               np.ascontiguousarray(coefficients[..., 1:]))
        on_all_cores(pool_backward, sizes.groups if len(numbers) else 0, tensors, sizes.pools, sizes.images)
