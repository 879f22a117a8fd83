"""The strongest pair of cells whose costs stay within limits, found exactly.

The strength of a genotype is the sum of those of its edges. Which edges a node may have is up to the method: an option
of a node is a set of at most two (operation, state) that `method.derive` gives when only these have a strength. So the
nodes with one edge or none of FairDARTS are options of that method and of no other.

Dynamic programming over the nodes of both cells. After each node it keeps the combinations that still fit within the
limits with the cheapest options of the other nodes, and that no other combination beats in strength and in every cost.
"""
import itertools
from collections import namedtuple

import numpy as np

from genotypes import Genotype, edge_number

# One choice for a node. edges: its two (operation, state) in the genotype; strength; costs: a number for each kind of
# cost; needs: the states of other nodes that its edges leave; is_empty: whether it has no edge.
Option = namedtuple('Option', 'edges strength costs needs is_empty')

# Choices for the nodes so far. strength [choices], costs [choices, kinds of cost], picks [choices, nodes]: the numbers
# of the options.
Choices = namedtuple('Choices', 'strength costs picks')


def node_options(method, strengths, costs, *, kind, node, concat, any_strength=False):
    """The options of a node.

    method: an object of nas/methods.py. strengths: of one kind of cell, [edges, operations]. costs: [CellCosts].
    kind: 'normal' or 'reduce'. concat: the states that the cell concatenates.
    any_strength: options are valid also where the method has a threshold that their strengths do not reach.
    """
    steps = _steps(len(strengths))
    entries = [(source, column) for source in range(2 + node) for column, name in enumerate(method.primitives)
               if name != 'none']
    options = []
    for chosen in itertools.chain([()], itertools.combinations(entries, 1), itertools.combinations(entries, 2)):
        places = [(edge_number(node, source), column) for source, column in chosen]
        only = np.full(strengths.shape, -1.0)
        for place in places:
            only[place] = strengths[place] + any_strength
        edges = method.derive(only.tolist(), steps)[2 * node:2 * node + 2]
        if sorted((name, source) for name, source in edges if name != 'none') != sorted(
                (method.primitives[column], source) for source, column in chosen):
            continue
        adds_node = bool(chosen) and 2 + node in concat
        options.append(Option(edges, sum(strengths[place] for place in places),
                              [cost.node[kind] * adds_node + sum(cost.operation[kind][place] for place in places)
                               for cost in costs],
                              frozenset(source for source, _ in chosen if source >= 2), not chosen))
    return options


def _steps(edges):
    """The number of nodes of a supernet's cell with so many edges."""
    steps = 0
    while edge_number(steps) < edges:
        steps += 1
    return steps


def strongest(method, strengths, costs, limits, concatenated, any_strength=False):
    """The strongest Genotype within limits; None where there is none.

    strengths: {kind of cell: array [edges, operations]}. costs: a list of CellCosts. limits: a number for each of them.
    concatenated: how many of a cell's last nodes its output concatenates.
    """
    steps = _steps(len(strengths['normal']))
    concat = range(2 + steps - concatenated, 2 + steps)
    nodes = [node_options(method, strengths[kind], costs, kind=kind, node=node, concat=concat,
                          any_strength=any_strength)
             for kind in ('normal', 'reduce') for node in range(steps)]
    picks = _search(nodes, np.array(limits, 'float64') - [cost.fixed for cost in costs], steps, concat)
    if picks is None:
        return None
    edges = [options[pick].edges for options, pick in zip(nodes, picks)]
    cells, concats = [], []
    for chosen, options in ((picks[:steps], nodes[:steps]), (picks[steps:], nodes[steps:])):
        empty = {2 + node for node, pick in enumerate(chosen) if options[node][pick].is_empty}
        concats.append([state for state in concat if state not in empty] if empty else concat)
    cells = [sum(edges[:steps], []), sum(edges[steps:], [])]
    return Genotype(cells[0], concats[0], cells[1], concats[1])


def smallest(method, cost, steps, concatenated):
    """The lowest cost of any genotype that the method can give."""
    shape = cost.operation['normal'].shape
    concat, total = range(2 + steps - concatenated, 2 + steps), cost.fixed
    for kind in ('normal', 'reduce'):
        reached = {frozenset(): 0}  # {states that have a value: the lowest cost with these}
        for node in range(steps):
            found = {}
            for option in node_options(method, np.ones(shape), [cost], kind=kind, node=node, concat=concat):
                for connected, before in reached.items():
                    if option.needs <= connected:
                        now = connected if option.is_empty else connected | {2 + node}
                        found[now] = min(found.get(now, np.inf), before + option.costs[0])
            reached = found
        total += min(value for connected, value in reached.items() if connected & set(concat))
    return total.item() if isinstance(total, np.generic) else total


def _search(nodes, room, steps, concat):
    """The numbers of the options of the strongest choice whose costs fit into `room`, or None.

    nodes: for each node of the normal and then of the reduction cell its options.
    """
    arrays = [Choices(np.array([option.strength for option in options]),
                      np.array([option.costs for option in options], 'float64'),
                      np.arange(len(options))[:, None]) for options in nodes]
    # the lowest costs of all nodes from each one on
    lowest = np.cumsum([own.costs.min(0) for own in arrays][::-1], 0)[::-1]
    lowest = [*lowest, np.zeros(len(room))]
    groups = {frozenset(): Choices(np.zeros(1), np.zeros((1, len(room))), np.zeros((1, 0), int))}
    for number, (options, own) in enumerate(zip(nodes, arrays)):
        found = {}
        for connected, choices in groups.items():
            for is_empty in (False, True):
                usable = [option.is_empty == is_empty and option.needs <= connected for option in options]
                now = connected if is_empty else connected | {2 + number % steps}
                found.setdefault(now, []).append(_all_pairs(choices, _undominated(_select(own, np.array(usable)))))
        groups = {}
        for connected, parts in found.items():
            choices = _concatenate(parts)
            groups[connected] = _undominated(_select(choices, (choices.costs + lowest[number + 1] <= room).all(1)))
        if number % steps == steps - 1:  # a cell is complete; without a concatenated node it would be none
            groups = {frozenset(): _undominated(_concatenate([choices for connected, choices in groups.items()
                                                              if connected & set(concat)]))}
    strength, _, picks = groups[frozenset()]
    return picks[strength.argmax()].tolist() if len(strength) else None


def _all_pairs(choices, own):
    """Each of the choices with each option of the next node, as Choices."""
    count, options = len(choices.strength), len(own.strength)
    return Choices((choices.strength[:, None] + own.strength).ravel(),
                   (choices.costs[:, None] + own.costs).reshape(count * options, own.costs.shape[1]),
                   np.concatenate([np.repeat(choices.picks, options, 0), np.tile(own.picks, (count, 1))], 1))


def _concatenate(parts):
    return Choices(*(np.concatenate(arrays) for arrays in zip(*parts)))


def _select(choices, which):
    return Choices(choices.strength[which], choices.costs[which], choices.picks[which])


def _undominated(choices):
    """Without the choices that another one equals or beats in strength and in every cost."""
    choices = _select(choices, np.lexsort([*choices.costs.T[::-1], -choices.strength]))
    if choices.costs.shape[1] == 1:
        before = np.minimum.accumulate(np.concatenate([[np.inf], choices.costs[:-1, 0]]))
        return _select(choices, choices.costs[:, 0] < before)
    kept = np.zeros(len(choices.strength), bool)
    while not kept.all():
        place = kept.argmin()  # the strongest one that is not yet known to stay
        kept[place] = True
        stays = kept | (choices.costs < choices.costs[place]).any(1)
        choices, kept = _select(choices, stays), kept[stays]
    return choices
