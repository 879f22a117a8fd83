"""The same supernet, computed in fewer and larger pieces. model_search.py is the definition; nothing here changes a number beyond rounding.

A cell's edges that leave the same state do much of the same work. Here a cell is computed by source state:

    none             adds zeros, whatever its weight: left out
    pooling          max and average pooling and the batch norm behind them have no weights: once a state, not once an edge. The running
                     statistics of such batch norms are equal on all edges of a state, so they are one tensor under several names
    ReLU             the convolutions of all edges start with the ReLU of the same state: once a state
    convolutions     the depthwise convolutions of a state's edges go into one call, which shares the work of bringing their input into form
    weighted sums    w * batch_norm(y) is batch_norm(y) with the scale w: the weights of convolutions go into their last batch norm, which has no
                     trainable part of its own
    reduction        two strided convolutions and a shifted copy become one convolution
    partial channels (PC-DARTS) channel shuffle and the sum over a node's edges can be exchanged: the kept channels of a state are pooled once, and
                     each node is concatenated and shuffled once; an edge's weight beta goes into the weights of its operations

It needs to know the operations: `applies` says whether a cell is made of those of operations.py. Others, such as those of a changed MixedOp or a
method that samples, are computed as they are written.
"""
import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from depthwise import DepthwiseConv2D, depthwise
from operations import DilConv, FactorizedReduce, Identity, SepConv, Zero

POOLS = (nn.MaxPool2D, nn.AvgPool2D)


def applies(mixed_operations, method):
    """Whether every edge is a plain sum of operations that are known here."""
    known = (Zero, Identity, SepConv, DilConv, FactorizedReduce)
    return not method.sampled and not method.auxiliary_skip and all(
        type(op) in known or is_pool(op) for mixed in mixed_operations for op in mixed._ops)


def is_pool(op):
    """Whether an operation is a pooling with a batch norm behind it."""
    return type(op) is nn.Sequential and len(op) == 2 and type(op[0]) in POOLS and type(op[1]) is nn.BatchNorm2D


def share_statistics(mixed_operations, sources):
    """Make the running statistics of the poolings that leave a state one tensor; sources: the state that each edge leaves."""
    first = {}
    for mixed, source in zip(mixed_operations, sources):
        for k, op in enumerate(mixed._ops):
            if is_pool(op):
                owner = first.setdefault((source, k), op[1])
                op[1]._mean, op[1]._variance = owner._mean, owner._variance


class State:
    """A state of a cell, with what its edges share: each is computed when the first edge asks for it.

    edges: the numbers of the edges that leave it.
    """

    def __init__(self, x, partial, edges):
        self.whole, self.partial, self.edges = x, partial, edges
        self.x = x if partial == 1 else x[:, :x.shape[1] // partial]
        self.shared = {}

    def get(self, key, compute):
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]

    def relu(self):
        return self.get('relu', lambda: F.relu(self.x))

    def kept(self, pool):
        """The channels that pass no operation; pool: of a strided edge, or None."""
        kept = self.whole[:, self.whole.shape[1] // self.partial:]
        return self.get('kept', lambda: kept if pool is None else pool(kept))


def cell_states(cell, states, weights, scalars, edge_weights):
    """All states of a cell, from its two inputs.

    weights: [edges, operations], with the weights of the edges multiplied in; scalars: the same as lists of scalar tensors.
    edge_weights: for each edge a scalar tensor, or None.
    """
    partial = cell._ops[0].partial
    leaving = [[sum(range(2, 2 + i)) + j for i in range(max(0, j - 1), cell._steps)] for j in range(2 + cell._steps)]
    states, edge = [State(x, partial, leaving[j]) for j, x in enumerate(states)], 0
    scales = weights.unsqueeze(-1).expand(weights.shape + [states[1].x.shape[1]])
    # Zeros, but made of the scales: where Paddle needs no gradient of a batch norm's bias, it leaves out that of the scale.
    biases = [row.unbind() for row in (scales * 0).unbind()]
    scales = [row.unbind() for row in scales.unbind()]
    for _ in range(cell._steps):
        mixed, kept = [], []
        for state in states:
            mixed += _terms(cell, edge, state, scalars[edge], scales, biases)
            if partial > 1:
                kept.append(edge_weights[edge] * state.kept(cell._ops[edge].mp))
            edge += 1
        node = paddle.add_n(mixed)
        if partial > 1:
            node = F.channel_shuffle(paddle.concat([node, paddle.add_n(kept)], axis=1), partial)
        states.append(State(node, partial, leaving[len(states)]))
    return [state.whole for state in states]


def _terms(cell, edge, state, weights, scales, biases):
    """What an edge adds to its node: a list of tensors."""
    terms = []
    for k, op in enumerate(cell._ops[edge]._ops):
        if type(op) is Identity:
            terms.append(weights[k] * state.x)
        elif is_pool(op):
            terms.append(weights[k] * state.get(k, lambda: op(state.x)))
        elif type(op) is FactorizedReduce:
            terms.append(scaled_batch_norm(op.bn, factorized(op, state.relu()), scales[edge][k], biases[edge][k]))
        elif type(op) is not Zero:
            terms.append(state.get(k, lambda: _convolutions(cell, k, state, scales, biases))[edge])
    return terms


def _convolutions(cell, k, state, scales, biases):
    """The weighted outputs of operation k, a SepConv or a DilConv, on all edges that leave a state: {edge: tensor}.

    Layer by layer: the depthwise convolutions of all edges in one go, the others one by one.
    """
    layers = list(zip(*[cell._ops[edge]._ops[k].op for edge in state.edges]))  # [layer][edge]
    xs = [state.relu()]
    for parts in layers[1:-1]:
        if type(parts[0]) is DepthwiseConv2D:
            xs = depthwise(xs, parts)
        else:
            xs = [part(xs[i % len(xs)]) for i, part in enumerate(parts)]
    return {edge: scaled_batch_norm(bn, x, scales[edge][k], biases[edge][k]) for edge, bn, x in zip(state.edges, layers[-1], xs)}


def preprocess(layer, x):
    """A cell's preprocess0 or preprocess1."""
    return layer.bn(factorized(layer, layer.relu(x))) if type(layer) is FactorizedReduce else layer(x)


def factorized(op, x):
    """FactorizedReduce.convolve as one 2x2 convolution of stride 2: the first half of the filters has its weights at the upper left
    pixel, the second half at the lower right one, and zeros elsewhere. It cuts no shifted copy of x."""
    kernel = paddle.concat([F.pad(op.conv_1.weight, [0, 1, 0, 1]), F.pad(op.conv_2.weight, [1, 0, 1, 0])])
    odd_h, odd_w = x.shape[2] % 2, x.shape[3] % 2
    if odd_h or odd_w:
        x = F.pad(x, [0, odd_w, 0, odd_h])
    return F.conv2d(x, kernel, stride=2)


def scaled_batch_norm(bn, y, scale, bias):
    """scale * bn(y) + bias for a batch norm without trainable parts; scale, bias [C]."""
    return F.batch_norm(y, bn._mean, bn._variance, scale, bias, bn.training, bn._momentum, bn._epsilon)
