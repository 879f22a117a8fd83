"""An accelerated network computes what the plain network computes: also after whatever a user changes."""
import copy
import functools
import logging
import random

import numpy as np
import paddle
import pytest
from conftest import needs_numba, relative_error

import model
import model_search
import operations
from examples import nasbench201
from kernels import blocks
from model_search import Network
from nas import acceleration, changes, fused
from nas.acceleration import accelerate
from nas.architect import weight_parameters
from nas.methods import DARTS, METHODS


class PartialDARTS(DARTS):
    """Partial channels without edge weights."""

    name, partial = 'PartialDARTS', 2


def is_fused(network):
    """For each cell whether it can be computed by source state at the moment."""
    return [cell._acceleration.edges is not None for cell in network.cells]


def twins(method='DARTS', size=8, channels=8, batch=4, layers=3, change=lambda network: None, **options):
    """A plain network and an accelerated one of the same state, and a batch. change: applied to both, before
    acceleration."""
    paddle.seed(0)
    plain, fast = Network(channels, 5, layers, method, **options), Network(channels, 5, layers, method, **options)
    change(plain)
    change(fast)
    accelerate(fast)
    rng = np.random.default_rng(0)
    for p in plain.arch_parameters():
        p.set_value(rng.normal(size=p.shape).astype(str(p.numpy().dtype)))
    fast.set_state_dict(plain.state_dict())
    image = paddle.to_tensor(rng.normal(size=(batch, 3, size, size)), paddle.get_default_dtype())
    return plain, fast, image, paddle.to_tensor(rng.integers(0, 5, (batch, 1)))


def everything(network, image, label):
    """Loss, all gradients, running statistics, logits in evaluation mode."""
    paddle.seed(1)  # for methods that draw
    network.train()
    parameters = [p for p in network.arch_parameters() + weight_parameters(network) if not p.stop_gradient]
    loss = network._loss(image, label)
    gradients = paddle.grad(loss, parameters, allow_unused=True)
    network.eval()
    logits = network(image)
    network.train()
    statistics = [p for p in network.parameters() if not p.trainable]
    return [None if value is None else value.numpy() for value in [loss, *gradients, *statistics, logits]]


def assert_equal(plain, fast, image, label, tolerance):
    """The largest error of each quantity, relative to the largest value of all gradients where its own are rounding
    errors."""
    expected, found = everything(plain, image, label), everything(fast, image, label)
    scale = max(np.abs(value).max() for value in expected if value is not None)
    for a, b in zip(expected, found):
        assert (a is None) == (b is None)
        if a is not None:
            assert np.isfinite(b).all() and np.abs(a - b).max() <= tolerance * max(np.abs(a).max(), 1e-3 * scale)


@pytest.mark.parametrize('method', [*METHODS, PartialDARTS()], ids=lambda method: getattr(method, 'name', method))
@pytest.mark.parametrize('size', [8, 7])
def test_every_method_in_double_precision(float64, method, size):
    """Loss, gradients, running statistics, evaluation; the state dict keeps its names."""
    plain, fast, image, label = twins(method, size, channels=12)
    assert all(is_fused(fast))
    assert_equal(plain, fast, image, label, 1e-10)
    assert list(plain.state_dict()) == list(fast.state_dict())
    plain.set_state_dict(fast.state_dict())


@needs_numba
@pytest.mark.parametrize('method, channels', [('DARTS', 6), ('PC-DARTS', 12), ('PC-DARTS', 4), ('DARTS-', 7)])
@pytest.mark.parametrize('size, batch', [(8, 5), (7, 2), (32, 3)])
def test_compiled_passes_in_single_precision(method, channels, size, batch, passes):
    plain, fast, image, label = twins(method, size, channels, batch, layers=1 if channels == 4 else 3)
    before = len(passes)
    fast(image)
    assert len(passes) - before == len(fast.cells)  # each cell is one block
    fast.set_state_dict(plain.state_dict())
    assert_equal(plain, fast, image, label, 1e-2)


@pytest.fixture
def passes(monkeypatch):
    """A list that grows with each cell, or state of a cell, whose edges are computed in compiled passes."""
    passes, prepare = [], blocks.BlockOperation.prepare

    def count(self, *inputs):
        passes.extend([self] * self.weighted)
        return prepare(self, *inputs)
    monkeypatch.setattr(blocks.BlockOperation, 'prepare', count)
    return passes


@needs_numba
@pytest.mark.parametrize('size', [8, 7])
def test_drawn_operations_in_single_precision(size, passes):
    """GDAS: one operation of each edge, pointwise convolutions with a bias, poolings without a batch norm."""
    plain, fast, image, label = twins('GDAS', size, steps=2, multiplier=2)
    drawn = [[0, 1, 2, 3, 4], [5, 6, 7, 6, 2], [2, 1, 7, 6, 1], [1, 1, 1, 0, 0], [3, 7, 7, 5, 4]]
    for network in (plain, fast):
        for layer in network.sublayers():
            if isinstance(layer, paddle.nn.Conv2D) and layer.bias is not None:
                layer.bias.set_value(paddle.arange(len(layer.bias), dtype='float32') / 4)
    states = []
    for columns in drawn:
        noise = 100 * paddle.nn.functional.one_hot(paddle.to_tensor(columns), 8)
        for network in (plain, fast):
            network.method.draw_gumbel = lambda alphas: noise
        passes.clear()
        assert_equal(plain, fast, image, label, 1e-3)
        states.append(len(passes))
        fast.eval()
        plain.eval()
        with paddle.no_grad():
            assert relative_error(fast(image).numpy(), plain(image).numpy()) < 1e-5
    assert states == [2 * 3] * 5  # in training and in evaluation mode, 3 cells


@needs_numba
def test_weights_of_more_edges_than_a_cell_has():
    """Allowed by Cell.forward: the rows behind the last edge are not used."""
    plain, fast, image, _ = twins('PC-DARTS', layers=1, steps=3, multiplier=3)
    states = [paddle.randn([3, 24, 8, 8]) for _ in range(2)]
    weights, edge_weights = paddle.rand([14, 8]), paddle.rand([14])
    a, b = [network.cells[0](*states, weights, edge_weights).numpy() for network in (plain, fast)]
    assert relative_error(b, a) < 1e-5


@needs_numba
@pytest.mark.parametrize('method, size', [('DARTS', 7), ('PC-DARTS', 8), ('DARTS-', 8)])
def test_compiled_passes_in_evaluation_mode(method, size, passes):
    """Each batch norm uses its own running statistics, none of which changes; gradients take them for constants."""
    plain, fast, image, _ = twins(method, size, steps=2, multiplier=2)
    rng = np.random.default_rng(1)
    for norm in fast.sublayers():
        if isinstance(norm, paddle.nn.BatchNorm2D):
            norm._mean.set_value(rng.normal(size=norm._mean.shape).astype('float32'))
            norm._variance.set_value(rng.uniform(0.5, 2, size=norm._mean.shape).astype('float32'))
    plain.set_state_dict(fast.state_dict())
    plain.eval()
    fast.eval()
    before = {name: value.numpy() for name, value in fast.state_dict().items()}
    with paddle.no_grad():
        assert relative_error(fast(image).numpy(), plain(image).numpy()) < 1e-6
    assert len(passes) == 3
    assert all(np.array_equal(before[name], value.numpy()) for name, value in fast.state_dict().items())
    outs = [network(image) for network in (plain, fast)]
    assert len(passes) == 2 * 3
    assert relative_error(outs[1].numpy(), outs[0].numpy()) < 1e-6
    gradients = [paddle.grad(out.square().sum(), network.arch_parameters() + weight_parameters(network),
                             allow_unused=True) for out, network in zip(outs, (plain, fast))]
    scale = max(np.abs(gradient.numpy()).max() for gradient in gradients[0] if gradient is not None)
    for theirs, ours in zip(*gradients):
        assert (theirs is None) == (ours is None)
        assert theirs is None or np.abs(theirs.numpy() - ours.numpy()).max() < 1e-5 * scale


def test_random_small_configurations(float64):
    """Steps 1 to 7, layers 1 to 4, odd image sizes, batch 1, channels 1 to 33."""
    draw = random.Random(0)
    for _ in range(12):
        method = draw.choice(['DARTS', 'PC-DARTS', 'DARTS-', 'FairDARTS', 'DrNAS'])
        channels = draw.randint(1, 3) * 12 if method in ('PC-DARTS', 'DrNAS') else draw.randint(1, 33)
        steps = draw.choice([1, 2, 3, 3, 4, 7])
        plain, fast, image, label = twins(method, draw.randint(4, 11), min(channels, 12 if steps > 3 else 36),
                                          draw.randint(1, 3),
                                          draw.randint(1, 4 if steps < 4 else 2), steps=steps,
                                          multiplier=draw.randint(1, steps))
        assert_equal(plain, fast, image, label, 1e-7)


@pytest.mark.parametrize('primitives', [['none', 'sep_conv_3x3'],
                                        ['dil_conv_5x5', 'none', 'dil_conv_3x3', 'sep_conv_7x7'],
                                        ['skip_connect', 'max_pool_3x3'], ['avg_pool_3x3'], ['none', 'skip_connect'],
                                        ['max_pool_3x3', 'bare', 'sep_conv_3x3', 'skip_connect', 'avg_pool_3x3']])
@pytest.mark.parametrize('precision', ['float32', 'float64'])
def test_other_lists_of_operations(primitives, precision):
    """bare: poolings without batch norm, and pointwise convolutions with a bias."""
    class Method(DARTS):
        pass
    Method.primitives = [name for name in primitives if name != 'bare']
    Method.pool_norm, Method.pointwise_bias = 'bare' not in primitives, 'bare' in primitives
    default = paddle.get_default_dtype()
    paddle.set_default_dtype(precision)
    try:
        assert_equal(*twins(Method()), 1e-2 if precision == 'float32' else 1e-10)
    finally:
        paddle.set_default_dtype(default)


# ---------------------------------------------------------------------------------------------------------------------
# A user's own code
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch, caplog):
    monkeypatch.setattr(acceleration.logger, 'propagate', True)
    caplog.set_level(logging.INFO)
    return caplog


def test_one_more_operation_does_not_slow_down_the_others(float64, monkeypatch, log):
    """What is known is computed together, the rest beside it, and the log names it."""
    monkeypatch.setitem(operations.OPS, 'conv_1x1', lambda c, stride,
                        affine: operations.ReLUConvBN(c, c, 1, stride, 0, affine))

    class Method(DARTS):
        primitives = DARTS.primitives + ['conv_1x1']
    plain, fast, image, label = twins(Method())
    assert all(is_fused(fast))
    assert fast.cells[0]._acceleration.edges.outgoing[0].first.operations == 4
    assert_equal(plain, fast, image, label, 1e-10)
    assert any('conv_1x1 (ReLUConvBN) is not known: on the edges of 5 states' in message for message in log.messages)
    assert sum('conv_1x1' in message for message in log.messages) == 1


class GrowingDropout(model_search.MixedOp):
    """A mixed operation with dropout on skip connections, of a rate that changes during the search, as P-DARTS has
    it."""

    rate, calls = 0.0, 0

    def mix(self, x, weights, active):
        GrowingDropout.calls += 1
        outputs = [op(x) for op in self._ops]
        outputs[3] = outputs[3] * (1 - self.rate)  # its expected value, so that two networks can be compared
        return sum(w * y for w, y in zip(weights.unbind(), outputs))


def test_a_changed_mixed_operation_is_called(float64, monkeypatch, log):
    monkeypatch.setattr(model_search, 'MixedOp', GrowingDropout)
    plain, fast, image, label = twins()
    assert not any(is_fused(fast))
    assert any('GrowingDropout.mix differs from the definition' in message for message in log.messages)
    for rate in (0.0, 0.7):
        monkeypatch.setattr(GrowingDropout, 'rate', rate)
        before = GrowingDropout.calls
        fast(image)
        assert GrowingDropout.calls - before == 14 * 3
        plain(image)
        assert_equal(plain, fast, image, label, 1e-10)


class Doubled(paddle.nn.Layer):
    """An operation of a user, that counts its calls."""

    calls = 0

    def forward(self, x):
        Doubled.calls += 1
        return 2 * x


def replace_operation(network):
    network.cells[0]._ops[3]._ops[4] = Doubled()


def replace_convolution(network):
    old = network.cells[0]._ops[3]._ops[4].op[1]
    new = paddle.nn.Conv2D(8, 8, 3, padding=1, groups=8)  # with a bias
    new.weight.set_value(old.weight)
    new.bias.set_value(paddle.arange(8, dtype='float64'))
    network.cells[0]._ops[3]._ops[4].op[1] = new


def change_method_of_class(network):
    network.cells[0].__class__ = type('MyCell', (model_search.Cell,), {
        'forward': lambda self, *inputs: 1.5 * model_search.Cell.forward(self, *inputs)})


def change_method_of_instance(network):
    mixed = network.cells[0]._ops[0]
    mixed.mix = lambda x, weights, active: 3 * model_search.MixedOp.mix(mixed, x, weights, active)


def change_forward_of_operation(network):
    op = network.cells[0]._ops[4]._ops[6]
    op.forward = lambda x: x * 0.5


def add_hook(network):
    network.cells[0]._ops[2]._ops[4].op[2].register_forward_post_hook(lambda layer, inputs, output: output * 2)


def add_hook_to_edge(network):
    network.cells[0]._ops[2].register_forward_post_hook(lambda layer, inputs, output: output * 2)


def add_hook_to_reduction(network):
    cell = network.cells[1]
    cell._ops[0]._ops[3].conv_1.register_forward_post_hook(lambda layer, inputs, output: output * 2)


def change_momentum(network):
    network.cells[0]._ops[1]._ops[4].op[3]._momentum = 0.5


def change_epsilon(network):
    for op in network.cells[0].sublayers():
        if isinstance(op, paddle.nn.BatchNorm2D):
            op._epsilon = 0.1


def rebind_statistics(network):
    first, other = network.cells[0]._ops[1]._ops[4].op[3], network.cells[0]._ops[2]._ops[4].op[3]
    other._mean = paddle.create_parameter(first._mean.shape, first._mean.dtype)
    other._mean.set_value(paddle.zeros_like(first._mean))
    other._mean.stop_gradient, other._mean.trainable = True, False


def change_padding(network):
    network.cells[0]._ops[0]._ops[1][0].ksize, network.cells[0]._ops[0]._ops[1][0].padding = 5, 2


def freeze_some(network):
    for op in (network.cells[0]._ops[0]._ops[4], network.cells[0]._ops[4]._ops[7]):
        for p in op.parameters():
            p.stop_gradient = True


def monkeypatch_operation(network):
    network.cells[0]._ops[0]._ops[5].__class__ = type('MySepConv', (operations.SepConv,),
                                                      {'forward': lambda self, x: self.op(x) + 1})


CHANGES = [replace_operation, replace_convolution, change_method_of_class, change_method_of_instance,
           change_forward_of_operation, add_hook,
           add_hook_to_edge, add_hook_to_reduction, change_momentum, change_epsilon, rebind_statistics, change_padding,
           freeze_some,
           monkeypatch_operation]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize('when', ['before', 'after'])
def test_changes_are_noticed_at_the_forward_pass(float64, change, when):
    """Made before the network is accelerated, or after a first forward pass."""
    plain, fast, image, label = twins(change=change if when == 'before' else lambda network: None, steps=2,
                                      multiplier=2)
    if when == 'after':
        fast(image)
        plain(image)
        change(plain)
        change(fast)
    assert_equal(plain, fast, image, label, 1e-10)
    assert is_fused(fast)[2]  # the change is in cell 0 or 1: the others stay as fast as they were


def test_a_replaced_operation_is_called(float64):
    _, fast, image, _ = twins()
    fast(image)
    replace_operation(fast)
    before = Doubled.calls
    fast(image)
    assert Doubled.calls == before + 1 and all(is_fused(fast))


def test_partly_frozen_batch_norms_run_as_written(float64, log):
    plain, fast, image, _ = twins()
    for network in (plain, fast):
        network.cells[0]._ops[3]._ops[4].op[3].eval()
    for _ in range(2):
        assert relative_error(fast(image).numpy(), plain(image).numpy()) < 1e-10
    assert any('batch norms are partly in evaluation mode' in message for message in log.messages)


def test_an_edited_definition_is_not_accelerated(monkeypatch):
    """FINGERPRINTS are those of the shipped code; another code has another one, comments and docstrings do not
    count."""
    classes = {'Cell': model_search.Cell, 'MixedOp': model_search.MixedOp, 'GraphCell': model_search.GraphCell,
               'Edge': nasbench201.Edge, 'TrainedCell': model.Cell}
    found = {}
    for name in changes.FINGERPRINTS:
        kind, function = name.split('.')
        found[name] = changes.fingerprint(getattr(classes.get(kind) or getattr(operations, kind), function))
    assert found == changes.FINGERPRINTS, f'if nas/fused.py and nas/cells.py follow the change, write: {found}'

    def original(x):
        return x + 1

    def commented(x):
        """A docstring."""
        return x + 1  # a comment

    def edited(x):
        return x + 2
    prints = [changes.fingerprint(function) for function in (original, commented, edited)]
    assert prints[0] is not None and len({*prints}) == 3  # the names differ
    assert changes.fingerprint(functools.wraps(original)(edited)) is None

    def loop(x):
        for _ in range(2):
            x = x + 1
            x = x * 2
        return x
    inner = changes.fingerprint(loop)

    def loop(x):
        for _ in range(2):
            x = x + 1
        x = x * 2
        return x
    assert changes.fingerprint(loop) not in (None, inner)

    def loop(x):
        """A docstring."""
        for _ in range(2):  # a comment
            x = x + 1

            x = x * 2
        return x
    assert changes.fingerprint(loop) == inner
    monkeypatch.setitem(changes.FINGERPRINTS, 'MixedOp.mix', 'another')
    monkeypatch.setattr(changes, '_known_code', {})
    assert not any(is_fused(accelerate(Network(4, 5, 3, 'DARTS'))))


# ---------------------------------------------------------------------------------------------------------------------
# The life of a network
# ---------------------------------------------------------------------------------------------------------------------


def test_copies_states_and_types(float64):
    """Two networks in one process, a deep copy, a state dict, another precision and back, evaluation and training."""
    plain, fast, image, label = twins()
    other = accelerate(Network(8, 5, 3, 'DARTS'))
    for network in (fast, copy.deepcopy(fast), other):
        other(image)
        everything(plain, image, label)
        network.set_state_dict({name: value * 1.5 for name, value in plain.state_dict().items()})
        reference = Network(8, 5, 3, 'DARTS')
        reference.set_state_dict(network.state_dict())
        assert_equal(reference, network, image, label, 1e-10)
        network.to(dtype='float32')
        network(image.astype('float32'))
        network.to(dtype='float64')
        reference.set_state_dict(network.state_dict())
        assert_equal(reference, network, image, label, 1e-10)


class Failing(operations.Identity):
    """An operation that raises once."""

    fails = False

    def forward(self, x):
        if Failing.fails:
            raise RuntimeError('a fault in the middle of a forward pass')
        return x


def test_an_exception_in_the_middle_of_a_forward_pass_leaves_a_working_network(float64):
    def change(network):
        network.cells[1]._ops[7]._ops[3] = Failing()
    plain, fast, image, label = twins(change=change)
    fast(image)
    plain(image)
    for network in (plain, fast):
        Failing.fails = True
        with pytest.raises(RuntimeError):
            network(image)
        Failing.fails = False
    # what a broken pass has updated so far depends on the order of the operations
    fast.set_state_dict(plain.state_dict())
    assert_equal(plain, fast, image, label, 1e-10)


def test_accelerating_twice_changes_nothing(float64):
    plain, fast, image, label = twins()
    assert accelerate(accelerate(fast)) is fast
    assert_equal(plain, fast, image, label, 1e-10)


def test_the_stem_for_photos(float64):
    plain, fast, image, label = twins(size=64, layers=3, stem='imagenet')
    assert_equal(plain, fast, image, label, 1e-10)
    assert plain.stem0(image).shape[2:] == [16, 16] and plain.stem1(plain.stem0(image)).shape[2:] == [8, 8]


def test_fused_parts_say_what_they_support():
    assert fused.is_supported(operations.OPS['sep_conv_5x5'](4, 1, False))
    assert not fused.is_supported(operations.OPS['conv_7x1_1x7'](4, 1, False))
    assert not fused.is_supported(paddle.nn.Sequential(paddle.nn.MaxPool2D(3, 1, 1, ceil_mode=True),
                                                       paddle.nn.BatchNorm2D(4)))
