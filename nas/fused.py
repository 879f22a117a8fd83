"""A cell of the supernet computed by source state, all edges that leave one state at once: in double precision, on a
GPU, without numba, and where the cell has an operation that nas/cells.py does not cover. nas/acceleration.py decides.

The edges that leave a state share much of their work, and none of them needs more than that state:

    none             adds zeros, whatever its weight: left out
    pooling          max and average pooling have no weights: computed once a state instead of once an edge
    convolutions     begin with the ReLU of the same state: once a state. Those of all edges are stacked along the
                     channels: a depthwise convolution of more channels, a pointwise one of as many groups, a batch
                     norm of more channels give the same numbers as they do one by one
    weighted sums    w * batch_norm(y) is batch_norm(y) with the scale w: the weights become scales of batch norms,
                     which have no trainable part of their own
    skip connections at stride 2 are two strided convolutions of shifted images: together one convolution
    partial channels (PC-DARTS) the channel shuffle and the sum over a node's edges can be exchanged: the kept channels
                     of a state are pooled once, each node is concatenated and shuffled once

On a CPU and in single precision kernels/blocks.py computes the edges of a state in compiled passes; everywhere else
Paddle's operations do, fewer and larger ones. An operation that is none of these is computed by calling it, beside the
others.
"""
import functools
from typing import NamedTuple

import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from genotypes import edge_number
from kernels.blocks import Block, Term
from nas.layers import POOLINGS, operation_of
from nas.stacked import (
    SeparableUnits,
    StackedNorms,
    StackedReductions,
    is_pointwise,
    is_square,
    join,
    split,
    square_geometry,
)
from operations import DilConv, FactorizedReduce, Identity, SepConv, Zero

# Where the depthwise convolution, the pointwise one and the batch norm are in `op` of a SepConv; a DilConv has only the
# first three.
FIRST, SECOND = slice(1, 4), slice(5, 8)


class FusedCell:
    """The edges of a cell, grouped by the state that they leave.

    mixed_operations: the cell's MixedOps, node by node. is_known(op): whether an operation may be computed here.
    """

    def __init__(self, mixed_operations, steps, is_known):
        self.steps = steps
        self.method = mixed_operations[0].method
        self.auxiliary = mixed_operations[0].auxiliary_op is not None
        operations = [list(mixed._ops) + [mixed.auxiliary_op] * self.auxiliary for mixed in mixed_operations]
        # rows[state]: the rows, in the cell's weights, of the edges that leave the state
        self.rows = [[edge_number(node, state) for node in range(max(0, state - 1), steps)]
                     for state in range(1 + steps)]
        self.kept_poolings = [mixed_operations[rows[0]].mp for rows in self.rows]
        self.outgoing = [OutgoingEdges([operations[row] for row in rows], rows, is_known) for rows in self.rows]

    def nodes(self, s0, s1, weights, edge_weights, active=None):
        """The intermediate nodes of a cell for its two preprocessed inputs [N, C, H, W]; weights [edges, operations],
        edge_weights [edges] or None; active: for each edge the columns of the operations to compute, None for all."""
        partial = self.method.partial
        if self.auxiliary:  # one more operation, of the same weight on every edge
            skip_weight = paddle.ones([weights.shape[0], 1], weights.dtype) * self.method.skip_weight
            active = active and [[*columns, weights.shape[1]] for columns in active]
            weights = paddle.concat([weights, skip_weight], axis=1)
        if edge_weights is not None:
            weights = weights * edge_weights.unsqueeze(-1)
        scales = Scales(weights, s0.shape[1] // partial, self.outgoing)
        states, mixed, kept = [s0, s1], [[] for _ in range(self.steps)], [[] for _ in range(self.steps)]
        for number, (edges, rows, pooling) in enumerate(zip(self.outgoing, self.rows, self.kept_poolings)):
            x = states[number]
            if partial > 1:
                c = x.shape[1] // partial
                x, rest = x.split([c, x.shape[1] - c], axis=1)
                rest = rest if pooling is None else pooling(rest)
                for node in kept[-len(rows):]:
                    node.append(rest)
            parts = (edges(x, weights, scales) if active is None
                     else edges.drawn(x, weights, [active[row] for row in rows]))
            for node, terms in zip(mixed[-len(rows):], parts):
                node += terms
            if number > 0:
                node = paddle.add_n(mixed[number - 1])
                if partial > 1:
                    first = edge_number(number - 1)  # of the node's edges
                    terms = kept[number - 1]
                    if edge_weights is not None:
                        terms = [weight * term for weight, term in zip(edge_weights[first:first + 1 + number].unbind(),
                                                                       terms)]
                    node = F.channel_shuffle(paddle.concat([node, paddle.add_n(terms)], axis=1), partial)
                states.append(node)
        return states[2:]


class OfNorms(NamedTuple):
    """What belongs to the batch norms of each kind: the first and the second ones of the separable convolutions, those
    of FactorizedReduce, those of poolings."""

    first: list
    second: list
    reductions: list
    poolings: list


class OutgoingEdges:
    """The edges that leave one state.

    operations: for each edge its operations; rows: the edges' rows in the weights of the cell.
    """

    def __init__(self, operations, rows, is_known):
        kinds = _kinds(operations, is_known)

        def columns(kind):
            return [column for column, found in enumerate(kinds) if found == kind]

        def units(columns, triple):
            return SeparableUnits([[ops[column].op[triple] for ops in operations] for column in columns])

        def places(columns):  # of their weights in the flattened weights of the cell, which a 1 precedes
            return [1 + row * len(kinds) + column for column in columns for row in rows]
        self.operations, self.rows, self.kinds = operations, rows, kinds
        separable, dilated, poolings = columns(SepConv), columns(DilConv), columns('pooling')
        self.bare_poolings = columns('bare pooling')
        identities, reductions = columns(Identity), columns(FactorizedReduce)
        self.edges, self.separable, self.dilated = len(rows), len(separable), len(dilated)
        self.first, self.second = units(separable + dilated, FIRST), units(separable, SECOND)
        # The scales of the stacked batch norms: 1 for the first one of a SepConv, else the weight of the operation on
        # the edge.
        self.norm_places = OfNorms([0] * len(places(separable)) + places(dilated), places(separable),
                                   places(reductions), places(poolings))
        self.identity_places = places(identities)
        self.poolings = [operations[0][column][0] for column in poolings]
        self.pooling_norms = StackedNorms([ops[column][1] for column in poolings for ops in operations])
        self.reductions = [ops[column] for column in reductions for ops in operations]
        self.stacked_reductions = StackedReductions(self.reductions)
        self.others = [(row, column, edge[column]) for row, edge in zip(rows, operations) for column in columns(None)]
        self.reduces = all(operation_of(op) for op in self.reductions)  # whether the compiled passes cover them
        columns = sorted(separable + dilated + poolings + self.bare_poolings + identities + reductions * self.reduces)
        self.compiled_columns = [] if columns == identities else columns

    def __call__(self, x, weights, scales):
        """x [N, C, H, W], weights [edges of the cell, operations], Scales of them -> for each edge the tensors that it
        adds to its node."""
        parts = []
        compiled = self.compiled is not None and self.compiled.applies([x], weights)
        if compiled:
            parts += split(self.compiled([x], weights), self.edges)
        else:
            parts += self.stacked(x, scales.of(self))
            parts += [weights[row, column] * ops[column](x) for column in self.bare_poolings
                      for row, ops in zip(self.rows, self.operations)]
        if self.reductions and not (compiled and self.reduces):
            parts += self.stacked_reductions(x, *scales.of(self)[0].reductions)
        parts += [weights[row, column] * op(x) for row, column, op in self._others_by_edge()]
        return [parts[edge::self.edges] for edge in range(self.edges)]

    def drawn(self, x, weights, active):
        """As a call, but of each edge only the operations in the columns active [edge][…] are computed, as GDAS draws
        them."""
        return [[weights[row, column] * operations[column](x) for column in columns]
                for row, operations, columns in zip(self.rows, self.operations, active)]

    @functools.cached_property
    def compiled(self):
        """A Block of the known operations of all edges; None if it does not cover all of them. Most cells are computed
        as a whole and need none."""
        if not self.compiled_columns:
            return None
        nodes = [[Term(0, operation_of(operations[column]), row * len(self.kinds) + column)
                  for column in self.compiled_columns] for row, operations in zip(self.rows, self.operations)]
        return None if any(term.operation is None for terms in nodes for term in terms) else Block(nodes)

    def _others_by_edge(self):
        """The operations that are not known here, all edges of one column after the other."""
        return sorted(self.others, key=lambda other: (other[1], other[0]))

    def stacked(self, x, scales):
        """The known operations but FactorizedReduce, by Paddle's operations; along the channels lie the edges of the
        first operation, then those of the second, and so on."""
        ((first_scale, first_bias), (second_scale, second_bias), _,
         (pooling_scale, pooling_bias)), identity_weights = scales
        terms = []
        if self.first.operations:
            y = self.first([join([F.relu(x)] * self.edges)] * self.first.operations, first_scale, first_bias)
            separable, dilated = y if self.separable else None, y
            if self.separable and self.dilated:
                sizes = [count * x.shape[1] * self.edges for count in (self.separable, self.dilated)]
                separable, dilated = y.split(sizes, axis=1)
            if self.separable:
                terms += split(self.second(split(F.relu(separable), self.separable), second_scale, second_bias),
                               self.separable)
            terms += split(dilated, self.dilated) if self.dilated else []
        if self.poolings:
            pooled = join([y for pooling in self.poolings for y in [pooling(x)] * self.edges])
            terms += split(self.pooling_norms(pooled, pooling_scale, pooling_bias), len(self.poolings))
        if identity_weights is not None:  # [identities, edges]
            scaled = x.unsqueeze(1) * identity_weights.sum(0).reshape([1, -1, 1, 1, 1])
            terms.append(scaled.flatten(1, 2))
        return split(paddle.add_n(terms), self.edges) if terms else []


def _kinds(operations, is_known):
    """For each column of operations the kind by which it is computed here, or None if its operations are called one by
    one.

    Stacked batch norms must have one epsilon and one momentum: those of the first column that has any.
    """
    kinds, norm_settings = [], None
    for column in zip(*operations):
        kind = {nn.Sequential: 'pooling', **dict.fromkeys(POOLINGS, 'bare pooling')}.get(type(column[0]),
                                                                                         type(column[0]))
        known = all([is_known(op) for op in column])  # of all, so that each can say why not
        same = known and all(type(op) is type(column[0]) and _settings(op) == _settings(column[0]) for op in column)
        settings = {(norm._epsilon, norm._momentum) for op in column for norm in op.sublayers()
                    if isinstance(norm, nn.BatchNorm2D)}
        if same and settings:
            norm_settings = norm_settings or settings
            same = len(settings) == 1 and settings == norm_settings
        kinds.append(kind if same else None)
    return kinds


def _settings(op):
    """What two operations of one type must have alike to be computed together."""
    if type(op) is nn.Sequential:
        return [type(op[0]), op[0].ksize, op[0].stride, op[0].padding]
    if type(op) in POOLINGS:
        return [op.ksize, op.stride, op.padding]
    if type(op) in (SepConv, DilConv):
        return [(*square_geometry(op.op[layer]), op.op[layer + 1].bias is None) for layer in range(1, len(op.op), 4)]
    return None


class Scales:
    """The weights [edges, operations] of a cell with C channels, cut up for the stacked batch norms of its states: all
    at once, and only when the first state asks for its own, since compiled passes do not need them."""

    def __init__(self, weights, channels, outgoing):
        self.weights, self.channels, self.outgoing, self.pieces = weights, channels, outgoing, None

    def of(self, edges):
        """(OfNorms of a (scale, bias) each, the weights [identities, edges] of the identities or None)."""
        if self.pieces is None:
            flat = paddle.concat([paddle.ones([1], self.weights.dtype), self.weights.flatten()])
            groups = [places for each in self.outgoing for places in each.norm_places]
            scale = None
            if any(groups):
                scale = _take(flat, groups).unsqueeze(-1).expand([-1, self.channels]).flatten()
            # A bias of zeros, but computed from the scale: where Paddle needs no gradient of the bias, it leaves out
            # that of the scale.
            norms = list(zip(_cut(scale, groups, self.channels),
                             _cut(scale if scale is None else scale * 0, groups, self.channels)))
            groups, kinds = [each.identity_places for each in self.outgoing], len(OfNorms._fields)
            identities = _cut(_take(flat, groups) if any(groups) else None, groups, 1)
            self.pieces = {id(each): (OfNorms(*norms[kinds * state:kinds * (state + 1)]), None if piece is None
                                      else piece.reshape([-1, each.edges]))
                           for state, (each, piece) in enumerate(zip(self.outgoing, identities))}
        return self.pieces[id(edges)]


def _take(flat, groups):
    return paddle.gather(flat, paddle.to_tensor(sum(groups, []), 'int64'))


def _cut(tensor, groups, channels):
    """For each list of places its piece of the tensor, None for an empty list."""
    sizes = [len(places) * channels for places in groups]
    pieces = iter(tensor.split([size for size in sizes if size]) if any(sizes) else [])
    return [next(pieces) if size else None for size in sizes]


def is_supported(op):
    """Whether the structure of an operation is one that is computed here; nas/acceleration.py looks at code, hooks and
    parameters."""
    if type(op) is nn.Sequential:
        return len(op) == 2 and type(op[0]) in POOLINGS and type(op[1]) is nn.BatchNorm2D and _is_plain_pooling(op[0])
    if type(op) in POOLINGS:
        return _is_plain_pooling(op)
    if type(op) in (SepConv, DilConv):
        return _is_separable(op)
    return type(op) in (Zero, Identity, FactorizedReduce)


def _is_plain_pooling(pooling):
    size, stride, padding = pooling.ksize, pooling.stride, pooling.padding
    return (all(type(value) is int for value in (size, stride, padding)) and stride in (1, 2) and 2 * padding < size
            and not pooling.ceil_mode and getattr(pooling, 'exclusive', True)
            and not getattr(pooling, 'return_mask', False)
            and getattr(pooling, 'divisor', None) is None and pooling.data_format == 'NCHW')


def _is_separable(op):
    unit = [nn.ReLU, nn.Conv2D, nn.Conv2D, nn.BatchNorm2D]
    layers = list(op.op)
    if [type(layer) for layer in layers] != unit * (1 + (type(op) is SepConv)):
        return False
    channels = layers[1].weight.shape[0]
    if any(layer.weight.shape[:2] != [channels, channels] for layer in layers[2::4]) or any(
            norm._mean.shape[0] != channels for norm in layers[3::4]):
        return False
    return all(depthwise._groups == depthwise.weight.shape[0] and depthwise.weight.shape[1] == 1
               and is_square(depthwise)
               and pointwise._groups == 1 and is_pointwise(pointwise)
               and depthwise.bias is None
               and all(conv._padding_mode == 'zeros' and conv._data_format == 'NCHW'
                       for conv in (depthwise, pointwise))
               for depthwise, pointwise in zip(layers[1::4], layers[2::4]))
