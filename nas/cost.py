"""What the network of a genotype costs, as a sum over the parts of its cells.

Multiply-adds and parameters are exactly, and latencies nearly (nas/latency.py)

    fixed + sum over both kinds of cells (node * concatenated nodes + sum over edges of their operation's cost)

    fixed       stem, classifier's bias, batch norms of the preprocessing
    node        what a concatenated node adds: channels of the cells' outputs, which the preprocessing of the cells
                after them and the classifier take
    operation   an operation on an edge, in all cells of its kind together: their channels and image sizes, stride 2
                from an input of a reduction cell

An operation costs what its layer costs at the shapes that occur; `fixed` and `node` are what random genotypes cost in
the network itself beyond their operations, so a change of model.py or operations.py is counted too.
"""
from collections import namedtuple

import numpy as np
import paddle.nn as nn

from genotypes import Genotype, connected_states, edge_number
from operations import OPS
from training.summary import count_macs, count_parameters, trace

# Functions of a layer, its input's shape [C, H, W] and a name for it.
COUNTS = {'macs': lambda layer, shape, name: count_macs(nn.Sequential(layer), shape),
          'params': lambda layer, shape, name: count_parameters(layer)}

# A cell of a network: 'normal' or 'reduce'; the shape [C, H, W] of its states 0 and 1 and that of its nodes.
CellShape = namedtuple('CellShape', 'kind inputs nodes')


class CellCosts:
    """One kind of cost of a network as a function of its genotype.

    fixed: a number. node: {kind of cell: cost of a concatenated node}. operation: {kind of cell: [edges, operations]},
    in the order of the supernet's edges and of `primitives`.
    """

    def __init__(self, fixed, node, operation, primitives):
        self.fixed, self.node, self.operation, self.primitives = fixed, node, operation, list(primitives)

    def of(self, genotype):
        """The cost of the network of a Genotype; None where a cell has no edge, so that there is no network."""
        total = self.fixed
        for kind in ('normal', 'reduce'):
            cell, connected = getattr(genotype, kind), connected_states(getattr(genotype, kind))
            concatenated = [state for state in getattr(genotype, kind + '_concat') if state in connected]
            if not concatenated:
                return None
            total += self.node[kind] * len(concatenated)
            for position, (name, source) in enumerate(cell):
                if name != 'none' and source in connected:
                    total += self.operation[kind][edge_number(position // 2, source), self.primitives.index(name)]
        return total.item() if isinstance(total, np.generic) else total


def count_costs(make_network, image_shape, *, primitives, steps, measures=COUNTS, probes=1):
    """{name: CellCosts} of the network that make_network(genotype) builds, for images [3, H, W].

    primitives: the operations an edge may have, keys of operations.OPS. steps: the nodes of a cell. measures: {name:
    function of a layer, its input's shape and a name for both}, whole numbers that add up over the parts of a network.
    probes: random cells that `fixed` and `node` are means of; one will do for costs that add up exactly.
    """
    pairs = [(steps, steps), (1, steps), (steps, 1)] * probes  # so that a measured cost is interpolated
    genotypes = [_probe(primitives, steps, number // 3, *pair) for number, pair in enumerate(pairs)]
    networks = [make_network(genotype) for genotype in genotypes]
    cells = cell_shapes(networks[0], image_shape)
    layers = {}

    def operation_cost(measure, name, shape, stride):
        key = name, tuple(shape), stride
        if key not in layers:
            layers[key] = OPS[name](shape[0], stride, True)
        return measure(layers[key], shape, f'{name} on {"x".join(map(str, shape))}, stride {stride}')

    costs = {}
    for label, measure in measures.items():
        operation = {kind: np.array([[sum(operation_cost(measure, name, *_edge_shape(cell, source))
                                          for cell in cells if cell.kind == kind) for name in primitives]
                                     for node in range(steps) for source in range(2 + node)])
                     for kind in ('normal', 'reduce')}
        parts = CellCosts(0, {'normal': 0, 'reduce': 0}, operation, primitives)
        rest = [measure(network, image_shape, f'network {number // 3}, {pair[0]} and {pair[1]} nodes concatenated')
                - parts.of(genotype)
                for number, (network, genotype, pair) in enumerate(zip(networks, genotypes, pairs))]
        rest = [sum(rest[pair::3]) // probes for pair in range(3)]
        node = {kind: (rest[0] - with_one) // max(1, steps - 1)
                for kind, with_one in zip(('normal', 'reduce'), rest[1:])}
        costs[label] = CellCosts(rest[0] - steps * sum(node.values()), node, operation, primitives)
    return costs


def _probe(primitives, steps, seed, normal_nodes, reduce_nodes):
    """A random genotype whose cells concatenate so many nodes."""
    generator = np.random.default_rng(seed)
    names = [name for name in primitives if name != 'none']
    cells = [[(str(generator.choice(names)), int(source)) for node in range(steps)
              for source in generator.choice(2 + node, 2, replace=False)] for _ in range(2)]
    last = range(2 + steps)
    return Genotype(cells[0], last[-normal_nodes:], cells[1], last[-reduce_nodes:])


def cell_shapes(network, image_shape):
    """The CellShape of each cell of a network of model.py, in order."""
    calls = trace(network, image_shape)
    shapes = []
    for number, cell in enumerate(network.cells):
        kind = 'reduce' if cell.reduction else 'normal'
        inputs = [call.shape[1:] for call in calls if call.name.startswith(f'cells.{number}.preprocess1.')][-1]
        output = next(call.shape[1:] for call in calls if call.name == f'cells.{number}')
        shapes.append(CellShape(kind, inputs, [inputs[0], *output[1:]]))
    return shapes


def _edge_shape(cell, source):
    """(shape of the input, stride) of an edge that leaves a state of a cell."""
    return (cell.inputs, 2 if cell.kind == 'reduce' else 1) if source < 2 else (cell.nodes, 1)
