"""A search within limits on what the network of the derived cell costs: multiply-adds, parameters, latency.

Two things keep to the limits. During the search the loss of the architecture step has a further term for each limit,

    Lagrange multiplier * expected cost / limit,

where the expected cost is that of a cell whose edges and operations are drawn in proportion to the method's strengths.
The multiplier begins with 0 and rises in each step by RATE * learning rate of the architecture * (cost of the present
cell / limit - 1), down to 0 again where that is negative: the differentiable cost gives the direction, the cost of the
cell itself the weight (Cotter et al.: Two-Player Games for Efficient Non-Convex Constrained Optimization, ALT 2019).
While the cell stays within the limits, the search is to the bit one without them.

And the cell that is derived is the strongest one within the limits (nas/feasible.py).
"""
import math

import numpy as np
import paddle

from genotypes import connected_states
from nas.budget_flags import LIMITS, shown
from nas.cost import count_costs
from nas.feasible import smallest, strongest
from nas.latency import latency_costs
from runtime.errors import UserError
from runtime.log import logger
from training.summary import count_macs, count_parameters


class Budget:
    """Limits on costs.

    costs: {name: CellCosts}, names as in nas.budget_flags.LIMITS. limits: {name: number} for those that are limited.
    """

    RATE = 8  # steps of the multipliers, as a multiple of the architecture's learning rate

    def __init__(self, costs, limits):
        self.costs, self.limits = costs, limits
        self.last = None, None  # strengths as bytes, the cell derived from them

    def check(self, method, steps, concatenated):
        """Raise UserError for limits that no cell of a method meets; it names the smallest possible.

        steps, concatenated: nodes of a cell, and how many of the last ones its output concatenates.
        """
        for name, limit in self.limits.items():
            flag, unit, _ = LIMITS[name]
            low = smallest(method, self.costs[name], steps, concatenated)
            if limit < low:
                raise UserError(f'--{flag}: {shown(name, limit)} is not allowed: the smallest cell of '
                                f'{method.name} gives a network of {shown(name, low, math.ceil)} {unit}; give '
                                f'at least that')
        ones = {kind: np.ones(values.shape) for kind, values in self._any_cost().operation.items()}
        if self._strongest(method, concatenated, ones, any_strength=True) is None:
            raise UserError(' and '.join(f'--{LIMITS[name].flag}={shown(name, limit)}'
                                         for name, limit in self.limits.items())
                            + ': no cell meets them together; give a larger limit')

    # ------------------------------------------------------------------------------------------------------------------
    # During the search
    # ------------------------------------------------------------------------------------------------------------------

    def penalty(self, model, multipliers):
        """The term of the architecture's loss, a scalar; None where all multipliers are 0. multipliers: {name: float}.
        """
        terms = [value * self.expected(name, model) / self._unit(name)
                 for name, value in multipliers.items() if value > 0]
        return sum(terms) if terms else None

    def expected(self, name, model):
        """The mean cost if a node had two edges, drawn with their operations in proportion to the strengths.

        model: the supernet. `none` is never drawn. Returns a scalar tensor.
        """
        cost, constant, total = self.costs[name], self.costs[name].fixed, 0.0
        strengths = model.strengths()
        real = paddle.to_tensor([float(primitive != 'none') for primitive in cost.primitives], strengths[0].dtype)
        for kind, scores in zip(('normal', 'reduce'), strengths):
            enters = paddle.to_tensor(_nodes(len(scores)), scores.dtype)
            scores = scores * real
            prices = paddle.to_tensor(cost.operation[kind] / self._unit(name), scores.dtype)
            mean = enters.matmul((scores * prices).sum(-1)) / enters.matmul(scores.sum(-1))
            constant += model._multiplier * cost.node[kind]
            total = total + 2 * mean.sum()
        # Tensors: Paddle 2 takes Python's numbers in single precision.
        unit, constant = (paddle.to_tensor(float(value), total.dtype) for value in (self._unit(name), constant))
        return total * unit + constant

    def adjusted(self, multipliers, genotype, learning_rate):
        """The multipliers after a step of the architecture.

        genotype: the cell of the strengths alone, limits or not. learning_rate: of the architecture.
        """
        rate = self.RATE * learning_rate
        costs = {name: self.costs[name].of(genotype) for name in self.limits}
        return {name: max(0.0, multipliers.get(name, 0.0) + rate * (costs[name] / limit - 1))
                if costs[name] is not None else multipliers.get(name, 0.0) for name, limit in self.limits.items()}

    def figures(self, genotype, model, multipliers):
        """For metrics.jsonl: the costs of a genotype, those expected of the supernet, limits and multipliers."""
        found = {name: cost.of(genotype) for name, cost in self.costs.items()}
        found = {name: value for name, value in found.items() if value is not None}
        found.update({'expected_' + name: float(self.expected(name, model)) for name in self.costs})
        found.update({'max_' + name: limit for name, limit in self.limits.items()})
        found.update({f'{name}_multiplier': multipliers.get(name, 0.0) for name in self.limits})
        return found

    # ------------------------------------------------------------------------------------------------------------------
    # The cell
    # ------------------------------------------------------------------------------------------------------------------

    def genotype(self, model):
        """The Genotype that a supernet stands for at present: its own where that is within the limits, otherwise the
        strongest one that is. The log says in one line what that changes."""
        strengths = {kind: scores.numpy().astype('float64')
                     for kind, scores in zip(('normal', 'reduce'), model.strengths())}
        key = b''.join(scores.tobytes() for scores in strengths.values())
        last_key, genotype = self.last
        if last_key != key:
            own = model.genotype()
            found = own if self.is_within(own) else self._within(model, strengths)
            if found is not own:
                logger.info('%s', self._difference(own, found))
            genotype, self.last = found, (key, found)
        return genotype

    def is_within(self, genotype):
        """Whether a genotype meets the limits, or is that of no network."""
        costs = {name: self.costs[name].of(genotype) for name in self.limits}
        return all(costs[name] is None or costs[name] <= limit for name, limit in self.limits.items())

    def _within(self, model, strengths):
        found = self._strongest(model.method, model._multiplier, strengths)
        if found is None:  # a threshold of the method leaves none: the strongest edges below it
            found = self._strongest(model.method, model._multiplier, strengths, any_strength=True)
        return found

    def _strongest(self, method, concatenated, strengths, any_strength=False):
        return strongest(method, strengths, [self.costs[name] for name in self.limits],
                         list(self.limits.values()), concatenated, any_strength)

    def _difference(self, own, found):
        """The line of the log where the cell is not the one that the strengths alone give."""
        changes = []
        for kind in ('normal', 'reduce'):
            before, after = getattr(own, kind), getattr(found, kind)
            for start in range(0, len(before), 2):
                gone, new = (sorted(set(a[start:start + 2]) - set(b[start:start + 2]))
                             for a, b in ((before, after), (after, before)))
                if gone:
                    gone, new = (' and '.join(f'{name} from {state}' for name, state in edges) for edges in (gone, new))
                    changes.append(f'{kind} node {start // 2}: {new} in place of {gone}')
        sizes = ', '.join(f'{shown(name, self.costs[name].of(own))} {LIMITS[name].unit} before, '
                          f'{shown(name, self.costs[name].of(found))} now, --{LIMITS[name].flag}={shown(name, limit)}'
                          for name, limit in self.limits.items())
        return f'derived within the limits: {"; ".join(changes)}: {sizes}'

    def _any_cost(self):
        return next(iter(self.costs.values()))

    def _unit(self, name):
        """What costs are divided by, so that single precision holds them."""
        return self.limits.get(name, 10**6)


def _nodes(edges):
    """The edges that enter each node of a supernet's cell: [nodes, edges] of 0 and 1."""
    rows, start = [], 0
    while start < edges:
        row = np.zeros(edges)
        row[start:start + 2 + len(rows)] = 1
        start += 2 + len(rows)
        rows.append(row)
    return np.stack(rows)


def make_budget(method, make_network, *, limits, image_shape, nodes, latency_options):
    """The Budget of a search; None without a limit.

    method: an object of nas/methods.py. make_network: Genotype -> the network that is trained after the search.
    limits: {name of a cost: number}. image_shape: [3, H, W] of the images of that network. nodes: of the supernet's
    cell, all of them concatenated. latency_options: path, batch_size and size of latency.latency_costs. Raises
    UserError for limits that no cell meets.
    """
    if not limits:
        return None
    space = dict(primitives=method.primitives, steps=nodes)
    random_state = paddle.get_rng_state()  # the networks that are counted draw weights; the search must not notice
    costs = count_costs(make_network, image_shape, **space)
    if 'latency_ns' in limits:
        costs['latency_ns'] = latency_costs(make_network, image_shape, **space, **latency_options)
    paddle.set_rng_state(random_state)
    budget = Budget(costs, limits)
    budget.check(method, steps=nodes, concatenated=nodes)
    return budget


def has_network(genotype):
    """Whether an edge leads to the output of each cell. FairDARTS may not have one yet."""
    return all(set(getattr(genotype, kind + '_concat')) & set(connected_states(getattr(genotype, kind)))
               for kind in ('normal', 'reduce'))


def size_line(genotype, make_network, *, image_shape, size, latency_options, budget=None):
    """A line for the log: how large the network of a genotype is that is trained after the search.

    size: its init_channels and layers. budget: the Budget of the search or None. The other arguments are those of
    make_budget.
    """
    if not has_network(genotype):
        return ('a cell without an edge to its output gives no network: search for more epochs or with a larger '
                '--arch_learning_rate')
    network, latency = make_network(genotype), ''
    if budget is not None and 'latency_ns' in budget.limits:
        predicted = shown('latency_ns', budget.costs['latency_ns'].of(genotype))
        latency = f', {predicted} ms for a batch of {latency_options["batch_size"]} by {latency_options["path"]}'
    return (f'the network of this cell ({size["init_channels"]} channels, {size["layers"]} cells, '
            f'{network.classifier.weight.shape[1]} classes): {count_macs(network, image_shape):,} multiply-adds for an '
            f'image of {image_shape[1]}x{image_shape[2]}, {count_parameters(network, auxiliary=False):,} parameters '
            f'without auxiliary classifier{latency}')
