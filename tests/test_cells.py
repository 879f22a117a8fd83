"""Whole cells as one block: against the cells as they are written, and against numpy, in double precision."""
import copy
import json
import random

import numpy as np
import paddle
import pytest
from conftest import needs_numba, relative_error

import genotypes
from examples import own_space
from examples.nasbench201 import Edge, make_method
from genotypes import Genotype, random_genotype
from kernels.blocks import Block, Term
from kernels.plans import IDENTITY, KEPT, MIXED
from model import Cell
from model_search import Cell as SearchCell
from model_search import GraphCell, MixedOp
from nas import accelerate
from nas.layers import operation_of
from nas.methods import METHODS
from operations import ReLUConvBN, SepConv, WeightedSum, Zero
from runtime.errors import UserError

pytestmark = needs_numba


def is_whole(cell):
    """Whether all forward passes of a cell of model.py were those of a block."""
    plans = cell._acceleration.cell.block.plans.values() if cell._acceleration.is_whole() else ()
    return len(plans) > 0 and all(plan.fit for plan in plans)


def results(cell, inputs, drop_prob, precision):
    """Output, gradients of the inputs and of all trained parameters as one vector each, running statistics."""
    paddle.seed(5)  # for drop path
    inputs = [paddle.to_tensor(x, precision, stop_gradient=False) for x in inputs]
    out = cell(*inputs, drop_prob)
    upstream = paddle.to_tensor(np.random.default_rng(1).normal(size=out.shape), precision)
    trained = [p for p in cell.parameters() if not p.stop_gradient]
    gradients = paddle.grad((out * upstream).sum(), inputs + trained)
    statistics = [p for p in cell.parameters() if p.stop_gradient]

    def joined(tensors):
        return np.concatenate([tensor.numpy().ravel() for tensor in tensors])
    return [joined([out]), joined(gradients[:2]), joined(gradients[2:]), joined(statistics)]


def distance(a, b):
    """In the mean: where a ReLU is almost at 0 or two pixels are almost equal, single gradients jump."""
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('reduction, reduction_prev', [(False, False), (True, False), (False, True)])
def test_cells_of_model_py(seed, reduction, reduction_prev):
    """Random genotypes with all operations, training with and without drop path, evaluation, odd sizes."""
    draw = random.Random(seed)
    genotype = random_genotype(draw)
    if seed == 0:  # nodes that are no output, one of them without an edge
        genotype = Genotype([('none', 0), ('none', 1), ('skip_connect', 0), ('sep_conv_3x3', 2), ('conv_7x1_1x7', 3),
                             ('max_pool_3x3', 1)], [4], [('none', 0), ('none', 1), ('skip_connect', 0),
                                                         ('sep_conv_7x7', 1), ('max_pool_3x3', 3),
                                                         ('dil_conv_3x3', 3)], [4])
    n, height, width = draw.choice([(6, 8, 8), (3, 16, 16), (5, 7, 9), (9, 4, 4)])
    plain = Cell(genotype, 6, 5, 4, reduction, reduction_prev)
    fast, exact = accelerate(copy.deepcopy(plain), quiet=True), copy.deepcopy(plain)
    exact.to(dtype='float64')
    rng, scale = np.random.default_rng(seed), 2 if reduction_prev else 1
    inputs = [rng.normal(size=(n, 6, scale * height, scale * width)), rng.normal(size=(n, 5, height, width))]
    if reduction_prev and height % 2:
        inputs[0] = inputs[0][:, :, 1:, 1:]  # rounded up when halved
    for training, drop_prob in ((True, 0.0), (True, 0.4), (False, 0.4)):
        for cell in (fast, exact):
            cell.train() if training else cell.eval()
        for ours, theirs in zip(results(fast, inputs, drop_prob, 'float32'),
                                results(exact, inputs, drop_prob, 'float64')):
            assert distance(ours, theirs) < 2e-3
        assert is_whole(fast)


def test_a_node_that_nothing_reads_leaves_the_cell_as_it_is_written():
    """Its parameters get no gradient, which an optimizer treats otherwise than zeros."""
    edges = [('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1)]
    cell = accelerate(Cell(Genotype(edges, [3], edges, [3]), 4, 4, 4, False, False))
    cell(paddle.randn([2, 4, 6, 6]), paddle.randn([2, 4, 6, 6]), 0.0).sum().backward()
    assert cell._ops[0].op[1].weight.grad is None and cell._ops[3].op[1].weight.grad is not None


def add_edge(cell):
    cell._concat = [2, 3, 4]


def change_factors(cell):
    cell.drop_path.factors = lambda x, prob: paddle.full([x.shape[0], 1, 1, 1], 0.25)


def replace_edge(cell):
    cell._ops[1] = paddle.nn.Sigmoid()


def replace_edge_by_nothing(cell):
    cell._ops[2] = Zero(1)


def replace_edge_before_an_identity_by_nothing(cell):
    cell._ops[5] = Zero(1)


def replace_last_edge_by_nothing(cell):
    cell._ops[7] = Zero(1)


def change_edge(cell):
    type(cell)._edge = lambda self, i, states, drop_prob: 2 * self._ops[i](states[self._indices[i]])


def change_edge_of_instance(cell):
    cell._edge = lambda i, states, drop_prob: 2 * cell._ops[i](states[cell._indices[i]])


def normalise_by_the_batch_always(cell):
    for layer in cell.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._use_global_stats = False  # in evaluation mode too
    cell.eval()


def add_a_bias(cell):
    cell.eval()  # the mean of a batch would take it away
    cell.preprocess1.op[1].bias = paddle.full([4], 0.5)  # a buffer, since it is no parameter


def replace_a_weight_by_a_buffer(cell):
    convolution = cell._ops[3].op[1]
    weight = convolution.weight.numpy()
    for factor in (1, 3):  # the second time the layer has the same names as before
        del convolution.weight
        convolution.weight = paddle.to_tensor(factor * weight)
        cell(*[paddle.ones([3, 4, 6, 6])] * 2, 0.0)


STILL_WHOLE = [replace_edge_by_nothing, replace_edge_before_an_identity_by_nothing, replace_last_edge_by_nothing,
               add_a_bias, replace_a_weight_by_a_buffer]


@pytest.mark.parametrize('change', [add_edge, change_factors, replace_edge, change_edge,
                                    change_edge_of_instance, normalise_by_the_batch_always, *STILL_WHOLE],
                         ids=lambda f: f.__name__)
def test_changes_of_a_cell_are_noticed(change, monkeypatch):
    monkeypatch.setattr(Cell, '_edge', Cell._edge)  # restored afterwards
    plain = Cell(genotypes.DARTS_V2, 4, 4, 4, False, False)
    fast = accelerate(copy.deepcopy(plain))
    inputs = [paddle.randn([3, 4, 6, 6]) for _ in range(2)]
    fast(*inputs, 0.3)
    plain(*inputs, 0.3)
    for cell in (plain, fast):
        change(cell)
    paddle.seed(1)
    expected = plain(*inputs, 0.3)
    paddle.seed(1)
    assert relative_error(fast(*inputs, 0.3).numpy(), expected.numpy()) < 1e-5
    assert is_whole(fast) == (change in STILL_WHOLE)


def test_weights_of_a_search_cell_may_be_lists():
    method = METHODS['PC-DARTS']()
    plain = SearchCell(2, 2, 4, 4, 4, False, False, method)
    fast = accelerate(copy.deepcopy(plain), quiet=True)
    inputs = [paddle.randn([2, 4, 6, 6]) for _ in range(2)]
    weights, edge_weights = paddle.rand([5, len(method.primitives)]), paddle.rand([5])
    expected = plain(*inputs, weights, edge_weights).numpy()
    for rows, numbers in ((weights, edge_weights), (list(weights), list(edge_weights)), (weights, list(edge_weights))):
        assert relative_error(fast(*inputs, rows, numbers).numpy(), expected) < 1e-5


def test_calls_by_keyword():
    cell = accelerate(Cell(genotypes.DARTS_V2, 4, 4, 4, False, False))
    inputs = [paddle.randn([3, 4, 6, 6]) for _ in range(2)]
    assert relative_error(cell(*inputs, drop_prob=0.0).numpy(), cell(*inputs, 0.0).numpy()) < 1e-5
    mixed = accelerate(WeightedSum([SepConv(4, 4, 3, 1, 1)]))
    assert relative_error(mixed(inputs[0], weights=paddle.ones([1])).numpy(),
                          mixed(inputs[0], paddle.ones([1])).numpy()) < 1e-5
    with pytest.raises(TypeError):
        mixed(inputs[0])


@pytest.mark.parametrize('partial, weighted', [(4, True), (2, True), (4, False)])
def test_a_node_of_partial_channels_equals_its_definition(partial, weighted):
    """Against numpy in double precision: channel c of part g of the concatenation goes to c * partial + g."""
    paddle.seed(0)
    n, c, sides, edges = 3, 4, (5, 6), 3
    states = [paddle.randn([n, c * partial, *sides]) for _ in range(edges)]
    weights, upstream = paddle.randn([2 * edges]), paddle.randn([n, c * partial, *sides])
    terms = [Term(edge, IDENTITY, edge, MIXED) for edge in range(edges)]
    terms += [Term(edge, IDENTITY, edges + edge if weighted else -1, KEPT) for edge in range(edges)]
    for tensor in [*states, weights]:
        tensor.stop_gradient = False
    block = Block([terms], inputs=edges, partial=partial)
    assert block.applies(states, weights)
    out = block(states, weights)
    gradients = paddle.grad((out * upstream).sum(), [*states, weights])
    exact, strengths, d = np.float64([state.numpy() for state in states]), weights.numpy(), np.float64(upstream.numpy())
    mixed, kept = strengths[:edges], strengths[edges:] if weighted else np.ones(edges)
    order = [channel % c * partial + channel // c for channel in range(c * partial)]
    factors = np.concatenate([np.tile(mixed[:, None], c), np.tile(kept[:, None], c * (partial - 1))], axis=1)
    assert relative_error(out.numpy()[:, order], np.einsum('ec,enchw->nchw', factors, exact)) < 1e-6
    d = d[:, order]
    for edge in range(edges):
        assert relative_error(gradients[edge].numpy(), d * factors[edge][:, None, None]) < 1e-6
    of_mixed = np.einsum('nchw,enchw->e', d[:, :c], exact[:, :, :c])
    of_kept = np.einsum('nchw,enchw->e', d[:, c:], exact[:, :, c:]) if weighted else np.zeros(edges)
    assert relative_error(gradients[-1].numpy(), np.concatenate([of_mixed, of_kept])) < 1e-5


def test_a_pooling_of_all_channels_and_of_some():
    """One layer and one state, but not one value."""
    pooling, x = paddle.nn.MaxPool2D(3, 1, 1), paddle.randn([2, 4, 6, 6])
    block = Block([[Term(0, operation_of(pooling))], [Term(0, operation_of(pooling), -1, MIXED),
                                                      Term(0, IDENTITY, -1, KEPT)]], partial=2)
    assert block.applies([x])
    whole, partial = block([x]).split(2, axis=1)
    assert (whole.numpy() == pooling(x).numpy()).all()
    expected = paddle.nn.functional.channel_shuffle(paddle.concat([pooling(x[:, :2]), x[:, 2:]], axis=1), 2)
    assert (partial.numpy() == expected.numpy()).all()


def test_terms_that_a_call_leaves_out():
    """Their parameters get no gradient, their batch norms keep their statistics; a node without a term is zero."""
    layers = [SepConv(4, 4, 3, 1, 1), ReLUConvBN(4, 4, 1, 1, 0)]
    block = Block([[Term(0, operation_of(layers[0]), 0), Term(0, operation_of(layers[1]), 1)],
                   [Term(1, IDENTITY, 2)]], output=[1, 2])
    x, weights = paddle.randn([3, 4, 6, 6]), paddle.to_tensor([0.5, 2.0, 3.0], stop_gradient=False)
    x.stop_gradient = False
    before = [norm._mean.numpy() for norm in (layers[0].op[3], layers[0].op[7])]
    out = block([x], weights, active=np.array([False, True, True]))
    node = 2 * copy.deepcopy(layers[1])(x)
    assert relative_error(out.numpy(), paddle.concat([node, 3 * node], axis=1).numpy()) < 1e-5
    out.sum().backward()
    assert all(p.grad is None for p in layers[0].parameters()) and layers[1].op[1].weight.grad is not None
    assert all((norm._mean.numpy() == old).all() for norm, old in zip((layers[0].op[3], layers[0].op[7]), before))
    out = block([x], weights, active=np.array([False, False, True]))
    assert (out.numpy() == 0).all()
    gradient, = paddle.grad(out.sum(), [x])
    assert (gradient.numpy() == 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Cells of a search space of one's own
# ---------------------------------------------------------------------------------------------------------------------


def random_graph(draw, nodes):
    """Edges of a cell in which every node is read: (node, source), ordered by node, now and then two of the same."""
    graph = [(node, draw.randrange(node)) for node in range(1, nodes + 1) for _ in range(draw.randint(1, 3))]
    unread = set(range(nodes)) - {source for _, source in graph}
    return sorted(graph + [(nodes, source) for source in unread], key=lambda edge: edge[0])


def graph_results(cell, x, weights, edge_weights, active, precision):
    """Output, gradients of the input, of the weights and of all trained parameters, running statistics."""
    x, weights, edge_weights = [None if array is None else paddle.to_tensor(array, precision, stop_gradient=False)
                                for array in (x, weights, edge_weights)]
    out = cell(x, weights, edge_weights, active)
    upstream = paddle.to_tensor(np.random.default_rng(1).normal(size=out.shape), precision)
    trained = [p for p in cell.parameters() if not p.stop_gradient]
    inputs = [x, weights] + ([] if edge_weights is None else [edge_weights])
    gradients = paddle.grad((out * upstream).sum(), inputs + trained, allow_unused=True)
    of_parameters = [paddle.zeros_like(p) if g is None else g for p, g in zip(trained, gradients[len(inputs):])]

    def joined(tensors):
        return np.concatenate([tensor.numpy().ravel() for tensor in tensors])
    return [joined([out]), *[gradient.numpy().ravel() for gradient in gradients[:len(inputs)]], joined(of_parameters),
            joined([p for p in cell.parameters() if p.stop_gradient])]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('method', ['DARTS', 'PC-DARTS', 'GDAS', 'DARTS-', 'DrNAS'])
@pytest.mark.parametrize('space', ['nasbench201', 'darts'])
def test_cells_of_any_graph(space, method, seed):
    """Random graphs of the edges of NAS-Bench-201 and of those of DARTS."""
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    paddle.seed(seed)
    method = make_method(method) if space == 'nasbench201' else METHODS[method]()
    graph, operations = random_graph(draw, draw.randint(1, 4)), len(method.primitives)
    channels = 4 if method.partial == 1 else 2 * method.partial
    plain = GraphCell(graph, lambda: Edge(channels, method) if space == 'nasbench201' else MixedOp(channels, 1, method))
    fast, exact = accelerate(copy.deepcopy(plain), quiet=True), copy.deepcopy(plain)
    exact.to(dtype='float64')
    active = [[draw.randrange(operations)] for _ in graph] if method.name == 'GDAS' else None
    weights = rng.random((len(graph), operations))
    if active is not None:
        weights *= [[column in columns for column in range(operations)] for columns in active]
    arguments = (rng.normal(size=(5, channels, 6, 7)), weights, rng.random(len(graph)) if method.with_betas else None,
                 active)
    for training in (True, False):
        for cell in (fast, exact):
            cell.train() if training else cell.eval()
        for ours, theirs in zip(graph_results(fast, *arguments, 'float32'),
                                graph_results(exact, *arguments, 'float64')):
            assert distance(ours, theirs) < 2e-3
    plans = fast._acceleration.whole.block.plans.values()
    assert all(plan.fit for plan in plans) and len(plans) == (0 if active and space == 'nasbench201' else 1)


def exchange_two_nodes(cell):
    cell.graph[2:4] = [(2, 1), (2, 0)]


def change_the_sum(cell):
    cell.edges[1]._ops.forward = lambda x, weights: 3 * x


def change_the_mix(cell):
    cell.edges[1].mix = lambda x, weights, active: 3 * x


def replace_an_operation(cell):
    cell.edges[1]._ops[2] = paddle.nn.Sigmoid()


def hook_the_sum(cell):
    cell.edges[1]._ops.register_forward_post_hook(lambda layer, inputs, out: 2 * out)


@pytest.mark.parametrize('change', [exchange_two_nodes, change_the_sum, change_the_mix, replace_an_operation,
                                    hook_the_sum], ids=lambda f: f.__name__)
def test_changes_of_a_graph_cell_are_noticed(change):
    method = make_method('DARTS')
    plain = GraphCell([(1, 0), (1, 0), (2, 0), (2, 1)], lambda: Edge(4, method))
    fast = accelerate(copy.deepcopy(plain), quiet=True)
    x, weights = paddle.randn([3, 4, 6, 6]), paddle.rand([4, 5])
    fast(x, weights)
    plain(x, weights)
    for cell in (plain, fast):
        change(cell)
    assert relative_error(fast(x, weights).numpy(), plain(x, weights).numpy()) < 1e-5


@pytest.mark.parametrize('graph', [[(1, 1)], [(2, 0)], [(1, 0), (3, 1)], [(1, 0), (2, 0), (1, 0)], [(1, -1)], [],
                                   [(1, 0), (2, 0)]])
@pytest.mark.parametrize('fast', [False, True])
def test_graphs_that_are_refused(graph, fast):
    """When the cell is made, and when its graph is changed later."""
    with pytest.raises(ValueError, match='give .node, source. of each edge'):
        GraphCell(graph, paddle.nn.Identity)
    method = make_method('DARTS')
    cell = GraphCell([(1, 0), (2, 0), (2, 1)], lambda: Edge(4, method))
    cell = accelerate(cell, quiet=True) if fast else cell
    cell.graph = graph
    with pytest.raises(ValueError, match='give .node, source. of each edge'):
        cell(paddle.randn([2, 4, 6, 6]), paddle.rand([3, 5]))


def test_a_class_that_only_calls_op_is_known_and_another_is_named(caplog):
    class Known(paddle.nn.Layer):
        def __init__(self, c):
            super().__init__()
            self.op = paddle.nn.Sequential(paddle.nn.ReLU(), paddle.nn.Conv2D(c, c, 3, padding=1, bias_attr=False),
                                           paddle.nn.BatchNorm2D(c))

        def forward(self, x):
            return self.op(x)

    class Unknown(Known):
        def forward(self, x):
            return 2 * self.op(x)

    for kind in (Known, Unknown):
        class OwnEdge(Edge):
            def operation(self, primitive, c):
                return kind(c) if primitive == 'nor_conv_1x1' else super().operation(primitive, c)
        method = make_method('DARTS')
        plain = GraphCell([(1, 0), (2, 0), (2, 1)], lambda: OwnEdge(4, method))
        fast, exact = accelerate(copy.deepcopy(plain)), copy.deepcopy(plain)
        exact.to(dtype='float64')
        assert fast._acceleration.is_whole() == (kind is Known)
        arguments = (np.random.default_rng(0).normal(size=(3, 4, 6, 6)), np.random.default_rng(1).random((3, 5)), None,
                     None)
        for ours, theirs in zip(graph_results(fast, *arguments, 'float32'),
                                graph_results(exact, *arguments, 'float64')):
            assert distance(ours, theirs) < 2e-3
    said = [record.getMessage() for record in caplog.records]
    assert sum('1 of 1 cells as a whole' in text for text in said) == 1
    assert sum('nor_conv_1x1 (Unknown) is not known: cells that contain it are computed edge by edge' in text
               for text in said) == 1


def test_another_number_of_weights_is_refused():
    method = make_method('DARTS')
    cell = accelerate(GraphCell([(1, 0), (2, 0), (2, 1)], lambda: Edge(4, method)), quiet=True)
    x = paddle.randn([2, 4, 6, 6])
    with pytest.raises(ValueError, match='4 rows of weights for 3 edges'):
        cell(x, paddle.rand([4, 5]))
    with pytest.raises(ValueError, match='6 weights for 5 operations'):
        cell(x, paddle.rand([3, 6]))
    with pytest.raises(UserError, match='6 is not allowed: PC-DARTS passes 1/4'):
        Edge(6, make_method('PC-DARTS', partial=4))


@pytest.mark.parametrize('method', list(METHODS))
def test_the_smallest_own_space_is_computed_as_a_whole(method):
    """examples/own_space.py, whose `squeeze` is an operation of its own; betas by node, 1, 2 and 2 edges."""
    paddle.seed(0)
    plain = own_space.Network(12 if METHODS[method].partial == 6 else 8, 10, method)
    plain.method.set_epoch(0, 2)
    fast, exact = accelerate(copy.deepcopy(plain), quiet=True), copy.deepcopy(plain)
    exact.to(dtype='float64')
    image, label = np.random.default_rng(0).normal(size=(6, 1, 8, 8)), paddle.to_tensor([0, 1, 2, 3, 4, 5])
    gradients = []
    for network, precision in ((fast, 'float32'), (exact, 'float64')):
        paddle.seed(1)  # GDAS and DrNAS draw
        gradients.append(paddle.grad(network._loss(paddle.to_tensor(image, precision), label),
                                     network.arch_parameters()))
    assert [plan.fit for plan in fast.cell._acceleration.whole.block.plans.values()] == [True]
    if method not in ('GDAS', 'DrNAS'):  # whose draws depend on the precision
        for ours, theirs in zip(*gradients):
            assert distance(ours.numpy(), theirs.numpy()) < 1e-3
    if plain.betas is not None:
        weights = plain.method.edge_weights(plain.betas, [1, 2, 2]).numpy()
        assert np.allclose([weights[0], weights[1:3].sum(), weights[3:].sum()], 1, atol=1e-6)


def test_the_script_of_the_smallest_own_space(script, tmp_path):
    run = script('examples/own_space.py', '--epochs=1', '--model_save_dir=run')
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / 'run' / 'genotype.json').read_text())['architecture']
    assert run.stdout.strip() == str(found) and len(found) == 5 and set(found) <= set(own_space.OPS)
