"""Cells that are computed as a whole, by one Block of kernels/blocks.py: from the inputs over all edges and nodes to
the output. nas/acceleration.py decides when.

A block is made of the layers of a cell as it is at that time. There is none for a cell with an operation that blocks do
not cover.
"""
import numpy as np
import paddle

from kernels.blocks import Block, Term
from kernels.plans import KEPT, MIXED, NOTHING, WHOLE
from nas.layers import operation_of
from operations import Identity

INPUTS = 2  # of a Cell: the outputs of the two cells before it; the first two nodes are the preprocessed ones


class SearchCell:
    """A Cell or a GraphCell of model_search.py. auxiliary: whether each edge has the method's auxiliary skip
    connection, which is one more operation.

    block: its Block, or None if an operation is not known; unknown: {column: class name} of those on edges. A term's
    weight is that of an operation on an edge, for kept channels that of the edge.
    """

    def __init__(self, cell):
        self.unknown = {}
        if is_graph(cell):
            nodes, graph, outputs, self.inputs = [], cell.graph, 1, 1
        else:
            nodes, outputs, self.inputs = _preprocessing(cell), cell._multiplier, INPUTS
            graph = [(2 + node, source) for node in range(cell._steps) for source in range(2 + node)]
        before = len(nodes)  # states of the block before state 0 of the graph
        mixed_operations = mixed_operations_of(cell)
        self.method, self.edges = mixed_operations[0].method, len(mixed_operations)
        self.auxiliary = mixed_operations[0].auxiliary_op is not None
        self.columns = [None] * before  # (edge, column) of each term, or None
        for edge, (node, source) in enumerate(graph):
            if before + node == self.inputs + len(nodes):
                nodes.append([])
            nodes[-1] += self._terms(mixed_operations[edge], edge, before + source)
        states = self.inputs + len(nodes)
        self.block = _block(nodes, range(states - outputs, states), self.inputs, self.method.partial)

    def _terms(self, mixed, edge, source):
        operations = list(mixed._ops) + [mixed.auxiliary_op] * self.auxiliary
        partial, terms = self.method.partial > 1, []
        for column, op in enumerate(operations):
            terms.append(Term(source, operation_of(op, stride=mixed.stride), edge * len(operations) + column,
                              MIXED if partial else WHOLE))
            if terms[-1].operation is None:
                self.unknown[column] = type(op).__name__
            self.columns += [(edge, column)] * (terms[-1].operation != NOTHING)
        if partial:
            kept = Identity() if mixed.mp is None else mixed.mp
            terms.append(Term(source, operation_of(kept), self.edges * len(operations) + edge, KEPT))
            self.columns.append(None)
        return terms

    def __call__(self, inputs, weights, edge_weights=None, active=None):
        """The output of the cell, or None where the block does not apply; inputs: a list of tensors, the other
        arguments as of Cell.forward."""
        operations = len(self.method.primitives)
        if (self.block is None or weights.shape != [self.edges, operations]
                or edge_weights is not None and edge_weights.shape != [self.edges]):
            return None
        if self.auxiliary:
            skip_weight = paddle.ones([weights.shape[0], 1], weights.dtype) * self.method.skip_weight
            active = active and [[*columns, weights.shape[1]] for columns in active]
            weights = paddle.concat([weights, skip_weight], axis=1)
        if edge_weights is not None:
            weights = weights * edge_weights.unsqueeze(-1)
        if self.method.partial > 1:
            kept = paddle.ones([self.edges], weights.dtype) if edge_weights is None else edge_weights
            weights = paddle.concat([weights.flatten(), kept])
        if not self.block.applies(inputs, weights):
            return None
        if active is not None:
            active = np.array([place is None or place[1] in active[place[0]] for place in self.columns])
        return self.block(inputs, weights, active=active)


class TrainedCell:
    """A cell of model.py. block: its Block, or None if an operation is not known."""

    def __init__(self, cell):
        nodes, self.dropped = _preprocessing(cell), []  # dropped: to which terms drop path applies, -1: to none
        state_of, terms = {0: INPUTS, 1: INPUTS + 1}, 2
        for first in range(0, len(cell._ops), 2):
            edges = [edge for edge in (first, first + 1) if cell._is_edge[edge]]
            if edges:
                state_of[2 + first // 2] = INPUTS + len(nodes)
                nodes.append([Term(state_of[cell._indices[edge]], operation_of(cell._ops[edge])) for edge in edges])
                for edge, term in zip(edges, nodes[-1]):
                    is_term = term.operation != NOTHING
                    self.dropped += [terms if is_term else -1] * (not isinstance(cell._ops[edge], Identity))
                    terms += is_term
        self.terms, self.block = terms, _block(nodes, [state_of[state] for state in cell._concat], INPUTS)

    def __call__(self, cell, s0, s1, drop_prob):
        """The output of the cell, or None where the block does not apply."""
        if self.block is None or not self.block.applies([s0, s1]):
            return None
        factors = None
        if cell.training and drop_prob > 0:
            factors = np.ones([self.terms + 1, s0.shape[0]], np.float32)  # the last row is of no term
            for term in self.dropped:  # in the order in which Cell.forward draws them
                factors[term] = cell.drop_path.factors(s0, drop_prob).numpy().ravel()
        return self.block([s0, s1], factors=factors)


def is_graph(cell):
    """Whether a cell is a GraphCell rather than a Cell."""
    return hasattr(cell, 'graph')


def mixed_operations_of(cell):
    """The MixedOps of a Cell or a GraphCell, by edge."""
    return list(cell.edges if is_graph(cell) else cell._ops)


def _preprocessing(cell):
    return [[Term(0, operation_of(cell.preprocess0))], [Term(1, operation_of(cell.preprocess1))]]


def _block(nodes, output, inputs, partial=1):
    if any(term.operation is None for terms in nodes for term in terms):
        return None
    return Block(nodes, output, inputs, partial)
