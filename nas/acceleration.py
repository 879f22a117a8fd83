"""The same supernet, computed in fewer and larger pieces. model_search.py is the definition; nothing here changes a number beyond rounding.

The edges of a cell that leave the same state do much of the same work, and none of them needs more than that state. So a cell is computed by
source state, all edges that leave one at once:

    none             adds zeros, whatever its weight: left out
    pooling          max and average pooling and the batch norm behind them have no weights: once a state, not once an edge. The running statistics of
                     such batch norms are equal on all edges of a state, so they are one tensor under several names
    convolutions     start with the ReLU of the same state: once a state. Those of all edges and operations are stacked along the channels: a depthwise
                     convolution of more channels, a pointwise one of as many groups, a batch norm of more channels are what they were apart
    weighted sums    w * batch_norm(y) is batch_norm(y) with the scale w: the weights of convolutions go into their last batch norm, which has no
                     trainable part of its own. The others are a product of matrices
    reduction        two strided convolutions and a shifted copy become one convolution
    partial channels (PC-DARTS) channel shuffle and the sum over a node's edges can be exchanged: the kept channels of a state are pooled once, and
                     each node is concatenated and shuffled once; an edge's weight beta goes into the weights of its operations

On a CPU, in single precision, edges.py does the stacked part in compiled passes; everywhere else it is done by Paddle's operations, which are few.

It needs to know the operations. `applies` says whether a cell is made of those of operations.py; `agrees` compares, once, what comes out with
model_search.Cell. Other cells, such as those of a changed MixedOp or of a method that samples, are computed as they are written.
"""
import numpy as np
import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from kernels.convolutions import DepthwiseConv2D, PointwiseConv2D
from kernels.edges import Edges
from operations import DilConv, FactorizedReduce, Identity, SepConv, Zero
from runtime.log import logger

POOLS = (nn.MaxPool2D, nn.AvgPool2D)


def applies(mixed_operations, method):
    """Whether every edge is a plain sum of operations that are known here."""
    if method.sampled or method.auxiliary_skip or all(type(op) is Zero for op in mixed_operations[0]._ops):
        return False
    return all(type(op) in (Zero, Identity, FactorizedReduce) or is_pool(op) or is_separable(op) for mixed in mixed_operations for op in mixed._ops)


def is_pool(op):
    """Whether an operation is a pooling with a batch norm behind it."""
    if not (type(op) is nn.Sequential and len(op) == 2 and type(op[0]) in POOLS and type(op[1]) is nn.BatchNorm2D):
        return False
    size, stride, padding = op[0].ksize, op[0].stride, op[0].padding
    return (all(type(n) is int for n in (size, stride, padding)) and stride in (1, 2) and 2 * padding < size and not op[0].ceil_mode
            and getattr(op[0], 'exclusive', True) and op[1].weight is None)


def is_separable(op):
    """Whether an operation is a SepConv or a DilConv without trainable batch norms."""
    unit = [nn.ReLU, DepthwiseConv2D, PointwiseConv2D, nn.BatchNorm2D]
    return (type(op) in (SepConv, DilConv) and [type(layer) for layer in op.op] == unit * (1 + (type(op) is SepConv))
            and all(op.op[k].square() and op.op[k + 2].weight is None for k in range(1, len(op.op), 4)))


@paddle.no_grad()
def agrees(cell, operations):
    """Whether cell.forward gives the same by source state as it gives as it is written, on a small batch; it leaves no trace.

    operations: how many an edge has. It costs some milliseconds and spares whoever changes model_search.py or operations.py to know this file.
    """
    rng, edges = np.random.default_rng(0), len(cell._ops)
    statistics = [(tensor, tensor.clone()) for tensor in cell.state_dict().values() if tensor.stop_gradient]
    dtype = statistics[0][0].dtype
    halves = type(cell.preprocess0) is FactorizedReduce
    inputs = [paddle.to_tensor(rng.normal(size=[2, _first_convolution(layer).weight.shape[1], size, size]), dtype)
              for layer, size in ((cell.preprocess0, 8 if halves else 4), (cell.preprocess1, 4))]
    weights = paddle.to_tensor(rng.uniform(size=[edges, operations]), dtype)
    edge_weights = paddle.to_tensor(rng.uniform(size=[edges]), dtype) if cell.method.with_betas else None
    results, by_state = [], cell.by_state
    for cell.by_state in (None, by_state):
        results.append(cell(*inputs, weights, edge_weights, [None] * edges))
        for tensor, value in statistics:
            paddle.assign(value, tensor)
    same = bool((results[1] - results[0]).abs().max() <= 1e-3 * results[0].abs().max())
    if not same:
        logger.info('this cell is not what fast.py knows: it is computed edge by edge, as it is written')
    return same


def _first_convolution(layer):
    return layer.conv_1 if type(layer) is FactorizedReduce else layer.op[1]


class ByState:
    """A cell's edges, by the state that they leave.

    mixed_operations: of the cell, node by node; steps: its nodes.
    """

    def __init__(self, mixed_operations, steps):
        self.steps, self.partial = steps, mixed_operations[0].partial
        self.rows = [[sum(range(2, 2 + i)) + j for i in range(max(0, j - 1), steps)] for j in range(1 + steps)]
        self.kept = [mixed_operations[rows[0]].mp for rows in self.rows]
        self.leaving = [Leaving([mixed_operations[row]._ops for row in rows], rows) for rows in self.rows]

    def states(self, s0, s1, weights, edge_weights):
        """All states of a cell from its two inputs [N, C, H, W]; weights [edges, operations], edge_weights [edges] or None."""
        if edge_weights is not None:
            weights, edge_weights = weights * edge_weights.unsqueeze(-1), edge_weights.unbind()
        pieces = Pieces(weights, s0.shape[1] // self.partial, self.leaving)
        states, mixed, kept = [s0, s1], [[] for _ in range(self.steps)], [[] for _ in range(self.steps)]
        for j, (leaving, rows, pool) in enumerate(zip(self.leaving, self.rows, self.kept)):
            x = states[j]
            if self.partial > 1:
                c = x.shape[1] // self.partial
                x, rest = x.split([c, x.shape[1] - c], axis=1)
                rest = rest if pool is None else pool(rest)
                for node, row in zip(kept[-len(rows):], rows):
                    node.append(rest if edge_weights is None else edge_weights[row] * rest)
            for node, terms in zip(mixed[-len(rows):], leaving(x, weights, pieces)):
                node += terms
            if j > 0:
                states.append(self.join(mixed[j - 1], kept[j - 1]))
        return states

    def join(self, mixed, kept):
        node = paddle.add_n(mixed)
        return node if not kept else F.channel_shuffle(paddle.concat([node, paddle.add_n(kept)], axis=1), self.partial)


class Leaving:
    """The edges that leave one state.

    operations: for each edge its operations, in the same order; rows: the edges' rows in the weights of a cell.
    """

    def __init__(self, operations, rows):
        def columns(known):
            return [k for k, op in enumerate(operations[0]) if known(op)]

        def units(columns, layer):
            return Unit([[ops[k].op[layer:layer + 3] for ops in operations] for k in columns])

        def places(columns):  # in the flattened weights, behind a 1
            return [1 + row * len(operations[0]) + k for k in columns for row in rows]
        twice, once = columns(lambda op: type(op) is SepConv), columns(lambda op: type(op) is DilConv)
        pools, identities = columns(is_pool), columns(lambda op: type(op) is Identity)
        reductions = columns(lambda op: type(op) is FactorizedReduce)
        self.edges, self.twice, self.once = len(rows), len(twice), len(once)
        self.first, self.second = units(twice + once, 1), units(twice, 5)
        # The scales of the batch norms of first, second and reductions: 1 for the first one of a SepConv, else the edge's weight of the operation.
        self.scales = [[0] * len(places(twice)) + places(once), places(twice), places(reductions)]
        for k in pools:
            share_statistics([ops[k][1] for ops in operations])
        self.pools = [operations[0][k] for k in pools]
        self.identities, self.mixture = len(identities), places(pools + identities)
        self.reductions = [ops[k] for k in reductions for ops in operations]
        self.reduction_norms = Norms([op.bn for op in self.reductions])
        known = sorted(twice + once + pools + identities)
        self.compiled = Edges([[ops[k] for k in known] for ops in operations], rows, known) if twice + once + pools else None

    def __call__(self, x, weights, pieces):
        """x [N, C, H, W], weights [edges of the cell, operations], and Pieces of them -> for each edge the tensors that it adds to its node."""
        if self.compiled is not None and self.compiled.applies(x):
            parts = self.compiled(x, weights)
        else:
            parts = self.stacked(x, *pieces.of(self))
        if self.reductions:
            (_, _, scale_and_bias), _ = pieces.of(self)
            parts = parts + split(self.reduction_norms(factorized(self.reductions, F.relu(x)), *scale_and_bias), len(self.reductions))
        return [parts[t::self.edges] for t in range(self.edges)]

    def stacked(self, x, scales, mixture):
        """The sums of the edges, but for FactorizedReduce; along the channels lie the edges of the first operation, then those of the second."""
        terms = []
        if self.first.operations:
            y = self.first([join([F.relu(x)] * self.edges)] * self.first.operations, *scales[0])
            again, once = y if self.twice else None, y
            if self.twice and self.once:
                again, once = y.split([self.twice * x.shape[1] * self.edges, self.once * x.shape[1] * self.edges], axis=1)
            if self.twice:
                terms += split(self.second(split(F.relu(again), self.twice), *scales[1]), self.twice)
            terms += split(once, self.once) if self.once else []
        if self.mixture:
            values = paddle.stack([pool(x) for pool in self.pools] + [x] * self.identities, axis=1)  # [N, operations, C, H, W]
            n, _, c, h, w = values.shape
            terms.append(paddle.matmul(mixture, values.flatten(2), transpose_x=True).reshape([n, self.edges * c, h, w]))
        return split(paddle.add_n(terms), self.edges) if terms else []


class Pieces:
    """The weights [edges, operations] of a cell of C channels, cut up for its states: once for all of them, when one asks first."""

    def __init__(self, weights, channels, leaving):
        self.weights, self.channels, self.leaving, self.pieces = weights, channels, leaving, None

    def of(self, leaving):
        """[(scale, bias) for each of leaving.scales], and the weights [operations, edges] of poolings and identities."""
        if self.pieces is None:
            flat = paddle.concat([paddle.ones([1], self.weights.dtype), self.weights.flatten()])
            scales, c = [places for some in self.leaving for places in some.scales], self.channels
            scale = self.take(flat, scales).unsqueeze(-1).expand([-1, c]).flatten() if any(scales) else None
            # Zeros, but made of the scale: where Paddle needs no gradient of a batch norm's bias, it leaves out that of the scale.
            norms = list(zip(self.cut(scale, scales, c), self.cut(scale * 0 if any(scales) else None, scales, c)))
            places = [some.mixture for some in self.leaving]
            mixtures = self.cut(self.take(flat, places) if any(places) else None, places, 1)
            self.pieces = {id(some): (norms[3 * j:3 * j + 3], mixture if mixture is None else mixture.reshape([-1, some.edges]))
                           for j, (some, mixture) in enumerate(zip(self.leaving, mixtures))}
        return self.pieces[id(leaving)]

    @staticmethod
    def take(flat, places):
        return paddle.gather(flat, paddle.to_tensor(sum(places, []), 'int64'))

    @staticmethod
    def cut(tensor, places, channels):
        """For each list of places its piece of the tensor, None for an empty one."""
        sizes = [len(some) * channels for some in places]
        pieces = iter(tensor.split([size for size in sizes if size]) if any(sizes) else [])
        return [next(pieces) if size else None for size in sizes]


class Unit:
    """A depthwise convolution, a pointwise one and a batch norm, for several operations and edges; layers [operation][edge] of these three."""

    def __init__(self, layers):
        self.operations = len(layers)
        self.depthwise = [[edge[0] for edge in edges] for edges in layers]
        self.pointwise = [edge[1] for edges in layers for edge in edges]
        self.norms = Norms([edge[2] for edges in layers for edge in edges])

    def __call__(self, xs, scale, bias):
        """xs: for each operation [N, edges * C, H, W] -> [N, operations * edges * C, H', W']."""
        ys = []
        for x, layers in zip(xs, self.depthwise):
            weight, layer = join([layer.weight for layer in layers], 0), layers[0]
            ys.append(F.conv2d(x, weight, None, layer._stride, layer._updated_padding, layer._dilation, groups=x.shape[1]))
        y = F.conv2d(join(ys), join([layer.weight for layer in self.pointwise], 0), groups=len(self.pointwise))
        return self.norms(y, scale, bias)


class Norms:
    """Batch norms side by side as one. Its running statistics are one tensor, and each batch norm's own are the piece of its memory."""

    def __init__(self, norms):
        self.norms, self.mean, self.variance = norms, None, None

    def __len__(self):
        """How many channels there are."""
        return sum(bn._mean.shape[0] for bn in self.norms)

    def __call__(self, y, scale, bias):
        """scale * bn(y) + bias; y [N, C of all, H, W], scale and bias [C of all]."""
        first, last = self.norms[0], self.norms[-1]
        end = len(self) - last._mean.shape[0]
        if self.mean is None or not is_piece(first._mean, self.mean, 0) or not is_piece(last._variance, self.variance, end):  # new, or copied
            self.mean, self.variance = in_one_piece([bn._mean for bn in self.norms]), in_one_piece([bn._variance for bn in self.norms])
        return F.batch_norm(y, self.mean, self.variance, scale, bias, first.training, first._momentum, first._epsilon)


def in_one_piece(tensors):
    """The tensors side by side; from now on they lie in its memory."""
    with paddle.no_grad():
        whole = paddle.concat(tensors) if len(tensors) > 1 else tensors[0]
        start = 0
        for tensor in tensors if len(tensors) > 1 else []:
            piece = whole[start:start + tensor.shape[0]]
            tensor.value().get_tensor()._share_data_with(piece.value().get_tensor())
            start += tensor.shape[0]
    return whole


def is_piece(tensor, whole, start):
    return tensor.data_ptr() == whole.data_ptr() + start * whole.element_size()


def join(tensors, axis=1):
    return paddle.concat(tensors, axis) if len(tensors) > 1 else tensors[0]


def split(tensor, parts):
    return tensor.split(parts, axis=1) if parts > 1 else [tensor]


def share_statistics(norms):
    """Make the running statistics of batch norms that always see the same one tensor."""
    for bn in norms[1:]:
        bn._mean, bn._variance = norms[0]._mean, norms[0]._variance


def preprocess(layer, x):
    """A cell's preprocess0 or preprocess1."""
    return layer.bn(factorized([layer], layer.relu(x))) if type(layer) is FactorizedReduce else layer(x)


def factorized(layers, x):
    """FactorizedReduce.convolve, of several layers side by side, as one 2x2 convolution of stride 2: the first half of a layer's filters has its
    weights at the upper left pixel, the second half at the lower right one, and zeros elsewhere. It cuts no shifted copy of x."""
    halves = [conv.weight for layer in layers for conv in (layer.conv_1, layer.conv_2)]
    corners = np.concatenate([np.tile(corner, (half.shape[0], 1)) for half, corner in zip(halves, ([1, 0, 0, 0], [0, 0, 0, 1]) * len(layers))])
    odd_h, odd_w = x.shape[2] % 2, x.shape[3] % 2
    if odd_h or odd_w:
        x = F.pad(x, [0, odd_w, 0, odd_h])
    return F.conv2d(x, paddle.concat(halves) * paddle.to_tensor(corners.reshape(-1, 1, 2, 2), x.dtype), stride=2)
