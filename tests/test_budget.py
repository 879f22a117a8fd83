"""Limits on the derived cell: exact costs, the strongest cell within limits, the expected cost."""
import itertools
import random

import numpy as np
import paddle
import pytest

import train
import train_imagenet
from genotypes import DARTS_V2, PRIMITIVES, Genotype, connected_states, random_genotype
from model import NetworkCIFAR, NetworkImageNet
from model_search import Network
from nas.architect import Architect
from nas.budget import Budget
from nas.budget_flags import evaluation_of
from nas.cost import CellCosts, count_costs
from nas.feasible import smallest, strongest
from nas.methods import METHODS
from runtime.flags import amount
from training.summary import count_macs, count_parameters

# ---------------------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------------------

SIZES = {  # class, channels, classes, cells, image
    'cifar': (NetworkCIFAR, 6, 10, 5, [3, 32, 32]),
    'odd sizes': (NetworkCIFAR, 5, 7, 7, [3, 13, 13]),
    'imagenet': (NetworkImageNet, 6, 11, 6, [3, 64, 64]),
}


def with_gaps(genotype, generator):
    """A genotype in which some edges are `none` and some nodes are not concatenated, as FairDARTS's."""
    cells = [[(name if generator.random() < 0.7 or i == 0 else 'none', source) for i, (name, source) in enumerate(cell)]
             for cell in (genotype.normal, genotype.reduce)]
    return Genotype(cells[0], [2, 4, 5], cells[1], [2, 3])


@pytest.mark.parametrize('size, nodes', [*((size, 4) for size in SIZES), ('odd sizes', 5)])
def test_the_costs_of_random_cells_are_those_of_their_networks(size, nodes):
    kind, channels, classes, layers, shape = SIZES[size]

    def network(genotype):
        return kind(channels, classes, layers, False, genotype)
    costs = count_costs(network, shape, primitives=PRIMITIVES, steps=nodes)
    generator = random.Random(0)
    for number in range(30):
        genotype = random_genotype(generator, nodes)
        if number % 3 == 0:
            genotype = with_gaps(genotype, generator)
        built = network(genotype)
        assert costs['macs'].of(genotype) == count_macs(built, shape)
        assert costs['params'].of(genotype) == count_parameters(built)
    empty = Genotype([('none', 0)] * 2 * nodes, [], genotype.reduce, range(2, 2 + nodes))
    assert costs['macs'].of(empty) is None


def test_costs_of_the_papers_network():
    costs = count_costs(lambda genotype: NetworkCIFAR(36, 10, 20, False, genotype), [3, 32, 32], primitives=PRIMITIVES,
                        steps=4)
    assert costs['params'].of(DARTS_V2) == 3767302 and costs['macs'].of(DARTS_V2) == 589101696


def test_the_sizes_that_limits_are_for_are_the_defaults_of_the_training_scripts():
    for module, dataset in ((train, 'cifar10'), (train, 'cifar100'), (train, 'folder'), (train_imagenet, 'imagenet')):
        defaults, evaluation = module.parse_arguments([]), evaluation_of(dataset)
        assert (evaluation.init_channels, evaluation.layers) == (defaults.init_channels, defaults.layers)
    assert evaluation_of('imagenet').image_size == train_imagenet.parse_arguments([]).image_size


@pytest.mark.parametrize('text, value', [('600M', 600 * 10**6), ('3.5m', 3500000), ('2G', 2 * 10**9), ('17', 17),
                                         ('1e3', 1000), ('0.5K', 500)])
def test_amounts(text, value):
    assert amount(text) == value and type(amount(text)) is int


# ---------------------------------------------------------------------------------------------------------------------
# The strongest cell within limits
# ---------------------------------------------------------------------------------------------------------------------

FEW = ['none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3']


def small_method(name):
    """A method with few operations, so that all cells can be listed."""
    method = METHODS[name]()
    method.primitives = [operation for operation in FEW if operation in METHODS[name].primitives]
    return method


def random_costs(generator, primitives, steps=2):
    edges = sum(range(2, 2 + steps))

    def draw():
        values = {kind: generator.integers(1, 30, [edges, len(primitives)]) for kind in ('normal', 'reduce')}
        return CellCosts(100, {'normal': int(generator.integers(0, 9)), 'reduce': 3}, values, primitives)
    return [draw(), draw()]


def cells_by_hand(name, method, strengths):
    """[(edges, strength)] of all cells of two nodes that a method's rule allows, written out from the papers."""
    names = [operation for operation in method.primitives if operation != 'none']
    nodes = []
    for node, first in ((0, 0), (1, 2)):
        edges = [((operation, source), strengths[first + source][method.primitives.index(operation)])
                 for source in range(2 + node) for operation in names]
        if name == 'FairDARTS':
            edges = [edge for edge in edges if edge[1] >= 0.85]
        pairs = [pair for pair in itertools.combinations(edges, 2)
                 if name == 'GDAS' or pair[0][0][1] != pair[1][0][1]]
        if name == 'FairDARTS':
            pairs += [(edge,) for edge in edges] + [()]
        nodes.append(pairs)
    for pair in itertools.product(*nodes):
        cell = [edge for node in pair for edge, _ in (*node, *[(('none', 0), 0)] * (2 - len(node)))]
        # an edge from a node without edges is none
        if all(operation == 'none' or source in connected_states(cell) for operation, source in cell):
            yield cell, sum(strength for node in pair for _, strength in node)


@pytest.mark.parametrize('name', ['DARTS', 'GDAS', 'FairDARTS'])
def test_the_strongest_cell_within_limits_against_all_cells(name):
    generator, found = np.random.default_rng(0), 0
    method = small_method(name)
    for _ in range(6):
        costs = random_costs(generator, method.primitives)
        low = 0.8 if name == 'FairDARTS' else 0.0
        strengths = {kind: generator.uniform(low, 1, [5, len(method.primitives)]) for kind in ('normal', 'reduce')}
        choices = [[(cell, strength, Genotype(cell, range(2, 4), cell, range(2, 4)))
                    for cell, strength in cells_by_hand(name, method, strengths[kind].tolist())]
                   for kind in ('normal', 'reduce')]
        # costs of both cells add up: those of one cell with the other one's own cost taken off
        table = []
        for kind, cells in zip(('normal', 'reduce'), choices):
            half = [CellCosts(0, dict.fromkeys(cost.node, 0) | {kind: cost.node[kind]},
                              {other: cost.operation[other] * (other == kind) for other in cost.operation},
                              cost.primitives) for cost in costs]
            rows = [(strength, *[cost.of(genotype) for cost in half]) for _, strength, genotype in cells
                    if half[0].of(genotype) is not None]
            table.append(np.array(rows, 'float64'))
        strength, first, second = (np.add.outer(table[0][:, i], table[1][:, i]) for i in range(3))
        first, second = first + costs[0].fixed, second + costs[1].fixed
        assert smallest(method, costs[0], 2, 2) <= first.min()
        if name != 'FairDARTS':
            assert smallest(method, costs[0], 2, 2) == first.min()
        for share in (0.0, 0.1, 0.3, 0.7, 1.0):
            limits = [np.quantile(first, share), np.quantile(second, 1 - share / 2)]
            for count in (1, 2):
                inside = (first <= limits[0]) & (second <= limits[1] if count == 2 else True)
                genotype = strongest(method, strengths, costs[:count], limits[:count], 2)
                if not inside.any():
                    assert genotype is None
                    continue
                found += 1
                assert all(cost.of(genotype) <= limit for cost, limit in zip(costs[:count], limits[:count]))
                own = sum(strengths[kind][sum(range(2, 2 + i // 2)) + source][method.primitives.index(operation)]
                          for kind in ('normal', 'reduce') for i, (operation, source)
                          in enumerate(getattr(genotype, kind)) if operation != 'none')
                assert own == pytest.approx(strength[inside].max(), rel=1e-12)
    assert found > 40


@pytest.mark.parametrize('name', ['DARTS', 'PC-DARTS', 'GDAS', 'DrNAS', 'DARTS-', 'FairDARTS'])
def test_without_a_limit_that_matters_the_strongest_cell_is_the_derived_one(name):
    model = Network(12, 10, 3, name)
    generator = np.random.default_rng(1)
    for parameter in model.arch_parameters():
        parameter.set_value(generator.normal(2 if name == 'FairDARTS' else 0, 1, parameter.shape).astype('float32'))
    costs = count_costs(lambda genotype: NetworkCIFAR(4, 10, 3, False, genotype), [3, 8, 8],
                        primitives=model.method.primitives, steps=4)
    strengths = dict(zip(('normal', 'reduce'), (scores.numpy().astype('float64') for scores in model.strengths())))
    found = strongest(model.method, strengths, [costs['macs'], costs['params']], [1e12, 1e12], 4)
    own = model.genotype()
    for kind in ('normal', 'reduce'):
        for node in range(4):
            edges = [set(edge for edge in getattr(genotype, kind)[2 * node:2 * node + 2] if edge[0] != 'none')
                     for genotype in (found, own)]
            assert edges[0] == edges[1]


# ---------------------------------------------------------------------------------------------------------------------
# The expected cost
# ---------------------------------------------------------------------------------------------------------------------


def small_budget(model, **limits):
    costs = count_costs(lambda genotype: NetworkCIFAR(4, 4, 3, False, genotype), [3, 8, 8],
                        primitives=model.method.primitives, steps=model._steps)
    return Budget(costs, limits)


def test_the_expected_cost_is_the_mean_over_all_cells(float64):
    """With one node: all pairs of draws with their probabilities, each counted as a genotype."""
    model = Network(4, 4, 3, 'DARTS', steps=1, multiplier=1)
    generator = np.random.default_rng(0)
    for parameter in model.arch_parameters():
        parameter.set_value(generator.normal(size=parameter.shape))
    cost = small_budget(model).costs['macs']
    halves = []
    for alphas in model.arch_parameters():
        weights = np.exp(alphas.numpy()) / np.exp(alphas.numpy()).sum(-1, keepdims=True)
        weights[:, 0] = 0  # none
        weights /= weights.sum()
        halves.append([((PRIMITIVES[column], source), weights[source, column]) for source in (0, 1)
                       for column in range(1, 8)])
    mean = 0.0
    for (a, p), (b, q) in itertools.product(halves[0], repeat=2):
        for (c, r), (d, s) in itertools.product(halves[1], repeat=2):
            mean += p * q * r * s * cost.of(Genotype([a, b], [2], [c, d], [2]))
    budget = Budget({'macs': cost}, {'macs': 12345})
    assert float(budget.expected('macs', model)) == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize('unrolled', [False, True])
@pytest.mark.parametrize('name', ['DARTS', 'PC-DARTS', 'FairDARTS', 'DARTS-'])
def test_the_gradient_of_the_step_has_that_of_the_expected_cost(float64, name, unrolled):
    """The difference between the gradients with and without the term, against finite differences."""
    def gradients(multipliers):
        paddle.seed(0)
        model = Network(4, 4, 1, name, steps=2, multiplier=2)
        budget = small_budget(model, macs=20000, params=1000)
        architect = Architect(model, paddle.optimizer.Momentum(0.1, parameters=model.parameters()), unrolled=unrolled,
                              penalty=lambda: budget.penalty(model, multipliers))
        generator = np.random.default_rng(0)
        for parameter in model.arch_parameters():
            parameter.set_value(generator.normal(size=parameter.shape))
        batch = paddle.to_tensor(generator.normal(size=[4, 3, 8, 8])), paddle.to_tensor([[0], [1], [2], [3]])
        before = [parameter.numpy() for parameter in model.arch_parameters()]
        architect.step(*batch, *batch)
        for parameter, value in zip(model.arch_parameters(), before):
            parameter.set_value(value)
        return model, budget, [gradient.numpy() for gradient in architect.last_gradient]

    def term():
        return sum(weight * float(budget.expected(cost, model)) / budget.limits[cost]
                   for cost, weight in (('macs', 0.7), ('params', 0.2)))
    _, _, without = gradients({'macs': 0.0})
    model, budget, with_term = gradients({'macs': 0.7, 'params': 0.2})
    for parameter, mine, plain in zip(model.arch_parameters(), with_term, without):
        value, numeric = parameter.numpy(), np.zeros(parameter.shape)
        for place in np.ndindex(*parameter.shape):
            for sign in (1, -1):
                moved = value.copy()
                moved[place] += sign * 1e-5
                parameter.set_value(moved)
                numeric[place] += sign * term() / 2e-5
        parameter.set_value(value)
        assert np.abs(numeric).max() > 1e-4
        np.testing.assert_allclose(mine - plain, numeric, atol=1e-8)


def test_a_multiplier_rises_above_the_limit_and_falls_to_zero_below(float64):
    model = Network(4, 4, 3, 'DARTS')
    budget = small_budget(model, macs=1)
    cost = budget.costs['macs'].of(DARTS_V2)
    budget.limits = {'macs': cost // 2}
    raised = budget.adjusted({}, DARTS_V2, 0.01)
    assert raised == {'macs': pytest.approx(0.08 * (cost / (cost // 2) - 1))}
    budget.limits = {'macs': cost * 2}
    assert budget.adjusted({'macs': 0.06}, DARTS_V2, 0.01) == {'macs': pytest.approx(0.02)}
    assert budget.adjusted({'macs': 0.03}, DARTS_V2, 0.01) == {'macs': 0.0}
    assert budget.penalty(model, {'macs': 0.0}) is None
