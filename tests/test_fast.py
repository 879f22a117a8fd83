"""What is computed fast is what is written: the supernet by source state, the compiled depthwise convolution."""
import copy
import os
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import ROOT, relative_error

import model_search
from kernels import compiled, convolutions
from model_search import Network
from nas import acceleration as fast
from nas.architect import weight_parameters

needs_numba = pytest.mark.skipif(compiled.numba is None, reason='numba is not installed')


def close(a, b):
    return np.abs(a - b).max() <= 1e-11 * np.abs(b).max() + 1e-14


def twins(method, size, channels=8, batch=4, layers=4):
    """A network as it is written and one by source state with the same state, and a batch for them."""
    paddle.seed(0)
    plain = Network(channels, 5, layers, method, allow_fast=False)
    quick = Network(channels, 5, layers, method)
    assert all(cell.by_state for cell in quick.cells) and not any(cell.by_state for cell in plain.cells)
    rng = np.random.default_rng(0)
    for p in plain.arch_parameters():
        p.set_value(rng.normal(size=p.shape).astype(str(p.numpy().dtype)))
    quick.set_state_dict(plain.state_dict())
    dtype = paddle.get_default_dtype()
    return plain, quick, paddle.to_tensor(rng.normal(size=(batch, 3, size, size)), dtype), paddle.to_tensor(rng.integers(0, 5, (batch, 1)))


def everything(network, image, label):
    """Loss, all gradients, logits while scoring."""
    paddle.seed(1)  # DrNAS draws
    parameters = network.arch_parameters() + weight_parameters(network)
    loss = network._loss(image, label)
    gradients = paddle.grad(loss, parameters, allow_unused=True)
    network.eval()
    logits = network(image)
    network.train()
    return [value.numpy() for value in [loss, *gradients, logits]]


class PartialDARTS(model_search.DARTS):
    """Partial channels without weights of the edges."""

    name, partial = 'PartialDARTS', 2


@pytest.mark.parametrize('method', ['DARTS', 'PC-DARTS', 'DrNAS', 'FairDARTS', 'PartialDARTS'])
@pytest.mark.parametrize('size', [8, 7])
def test_by_source_state_the_supernet_is_the_same(float64, monkeypatch, method, size):
    """Logits, loss, all gradients, running statistics, in training and in scoring; from the plain network's state dict."""
    monkeypatch.setitem(model_search.METHODS, 'PartialDARTS', PartialDARTS)
    plain, quick, image, label = twins(method, size)
    for a, b in zip(everything(plain, image, label), everything(quick, image, label)):
        assert close(b, a)
    states = plain.state_dict(), quick.state_dict()
    assert list(states[0]) == list(states[1])
    for name in states[0]:
        assert close(states[1][name].numpy(), states[0][name].numpy()), name
    plain.set_state_dict(quick.state_dict())


@needs_numba
@pytest.mark.parametrize('method, channels', [('DARTS', 6), ('PC-DARTS', 12)])
@pytest.mark.parametrize('size, batch', [(8, 5), (7, 2), (32, 3)])
def test_compiled_edges_are_the_same_too(method, channels, size, batch):
    """In single precision against the plain network; a network of batch norms makes more of each rounding."""
    plain, quick, image, label = twins(method, size, channels, batch, layers=3)
    assert quick.cells[0].by_state.leaving[0].compiled.applies(image)
    single, compiled_ones = everything(plain, image, label), everything(quick, image, label)
    errors = [relative_error(b, a) for a, b in zip(single, compiled_ones)]
    assert max(errors) < 2e-3 and np.median(errors) < 1e-4


@needs_numba
@pytest.mark.parametrize('stride, size, images', [(1, (8, 8), 4), (1, (7, 9), 5), (2, (8, 8), 4), (2, (7, 9), 3), (1, (32, 32), 2), (1, (2, 2), 64)])
def test_the_edges_of_a_state_are_paddles_operations(stride, size, images):
    """Outputs, gradients of the input, of the weights and of the mixture's, running statistics; without the rest of a network, which amplifies."""
    paddle.seed(0)
    mixed = [model_search.MixedOp(6, stride, 1) for _ in range(3)]
    leaving = fast.Leaving([edge._ops for edge in mixed], [0, 1, 2])
    x, weights = paddle.randn([images, 6, *size]), paddle.rand([3, len(mixed[0]._ops)])
    x.stop_gradient = weights.stop_gradient = False
    parameters = [p for edge in mixed for p in edge.parameters() if p.trainable]
    statistics = [p for edge in mixed for p in edge.parameters() if not p.trainable]
    before, results = [s.numpy() for s in statistics], []
    upstream = None
    for compute in (lambda: [paddle.add_n(terms) for terms in leaving(x, weights, fast.Pieces(weights, 6, [leaving]))], lambda: [edge(x, w) for edge, w in zip(mixed, weights)]):
        for s, value in zip(statistics, before):
            s.set_value(value)
        outs = compute()
        upstream = upstream or [paddle.randn(out.shape) for out in outs]
        gradients = paddle.grad(sum((o * u).sum() for o, u in zip(outs, upstream)), [x, weights] + parameters)
        results.append([value.numpy() for value in outs + gradients])
    for a, b in zip(*results):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize('primitives', [['none', 'sep_conv_3x3'], ['dil_conv_5x5', 'none', 'dil_conv_3x3', 'sep_conv_7x7'], ['skip_connect', 'max_pool_3x3'],
                                        ['none', 'skip_connect'], ['avg_pool_3x3']])
@pytest.mark.parametrize('precision', ['float32', 'float64'])
def test_other_spaces(monkeypatch, primitives, precision):
    """Any choice of the operations, compiled or not; a cell of nothing but `none` is left as it is written."""
    monkeypatch.setattr(model_search, 'PRIMITIVES', primitives)
    default = paddle.get_default_dtype()
    paddle.set_default_dtype(precision)
    try:
        plain, quick, image, label = twins('DARTS', 8)
        for a, b in zip(everything(plain, image, label), everything(quick, image, label)):
            assert relative_error(b, a) < (1e-3 if precision == 'float32' else 1e-11)
        monkeypatch.setattr(model_search, 'PRIMITIVES', ['none'])
        assert not any(cell.by_state for cell in Network(4, 5, 1, 'DARTS').cells)
    finally:
        paddle.set_default_dtype(default)


def test_what_it_does_not_know_is_computed_as_it_is_written(monkeypatch):
    class Mine(paddle.nn.Layer):
        pass
    network = Network(4, 5, 1, 'DARTS')
    assert fast.applies(network.cells[0]._ops, network.method)
    network.cells[0]._ops[3]._ops[4] = Mine()
    assert not fast.applies(network.cells[0]._ops, network.method)
    for method in ('GDAS', 'DARTS-'):
        assert not any(cell.by_state for cell in Network(4, 5, 1, method).cells)
    # a mixed operation that was changed where it stands
    monkeypatch.setattr(model_search.MixedOp, 'mix', lambda self, x, weights, *_: 1.1 * sum(w * op(x) for w, op in zip(weights.unbind(), self._ops)))
    assert not any(cell.by_state for cell in Network(4, 5, 3, 'DARTS').cells)


def test_stacked_running_statistics_stay_one_with_their_layers(float64):
    """After a state dict is loaded, and in a copy, the stacked batch norms still read and write the layers' own."""
    plain, quick, image, label = twins('DARTS', 8, channels=4, layers=3)
    everything(quick, image, label)
    everything(plain, image, label)
    for network in (quick, copy.deepcopy(quick)):
        network.set_state_dict({name: value * 1.5 for name, value in plain.state_dict().items()})
        network.eval()
        expected = Network(4, 5, 3, 'DARTS', allow_fast=False)
        expected.set_state_dict(network.state_dict())
        expected.eval()
        assert close(network(image).numpy(), expected(image).numpy())


@needs_numba
@pytest.mark.parametrize('kernel, padding, dilation', [(3, 1, 1), (5, 2, 1), (7, 3, 1), (3, 2, 2), (5, 4, 2)])
@pytest.mark.parametrize('stride', [1, 2])
def test_the_compiled_convolution_is_paddles(kernel, padding, dilation, stride):
    """Outputs and the gradients of inputs and weights, odd and tiny images, several of which share a row."""
    paddle.seed(0)
    for height, width in ((32, 32), (8, 8), (7, 9), (2, 2), (1, 1), (5, 1)):
        for images in (1, 2, 5, 33):
            layer = convolutions.DepthwiseConv2D(3, 3, kernel, stride, padding, dilation, groups=3, bias_attr=False)
            x = paddle.randn([images, 3, height, width])
            x.stop_gradient = False
            out, expected = layer(x), F.conv2d(x, layer.weight, None, stride, padding, dilation, 3)
            upstream = paddle.randn(out.shape)
            mine, theirs = [[value] + paddle.grad((value * upstream).sum(), [x, layer.weight]) for value in (out, expected)]
            for a, b in zip(mine, theirs):
                # a weight's gradient is a sum over all pixels, of which single precision keeps 7 digits
                assert relative_error(a.numpy(), b.numpy()) < 3e-6


@needs_numba
def test_geometries_that_the_loops_do_not_know_are_paddles():
    for arguments in (dict(kernel_size=(1, 7), padding=(0, 3)), dict(kernel_size=1, padding=1), dict(kernel_size=3, stride=(1, 2), padding=1),
                      dict(kernel_size=3, padding=1, padding_mode='reflect')):
        layer = convolutions.DepthwiseConv2D(4, 4, groups=4, bias_attr=False, **arguments)
        x = paddle.randn([2, 4, 8, 8])
        assert not layer.square()
        assert np.array_equal(layer(x).numpy(), paddle.nn.Conv2D.forward(layer, x).numpy())


@needs_numba
@pytest.mark.parametrize('channels, filters', [(1, 3), (8, 8), (5, 13), (24, 16), (16, 64)])
@pytest.mark.parametrize('images, size', [(1, (32, 32)), (70, (3, 3)), (3, (7, 9))])
def test_the_compiled_pointwise_convolution_is_paddles(channels, filters, images, size):
    paddle.seed(0)
    layer = convolutions.PointwiseConv2D(channels, filters, 1, bias_attr=False)
    x = paddle.randn([images, channels, *size])
    x.stop_gradient = False
    out, expected = layer(x), F.conv2d(x, layer.weight)
    upstream = paddle.randn(out.shape)
    mine, theirs = [[value] + paddle.grad((value * upstream).sum(), [x, layer.weight]) for value in (out, expected)]
    for a, b in zip(mine, theirs):
        assert relative_error(a.numpy(), b.numpy()) < 3e-6


@needs_numba
def test_weights_out_of_the_way_of_the_gradient_get_none():
    layer = convolutions.DepthwiseConv2D(4, 4, 3, 1, 1, groups=4, bias_attr=False)
    x = paddle.randn([1, 4, 5, 5])
    x.stop_gradient = False
    layer.weight.stop_gradient = True
    (layer(x) * 2).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


def test_without_numba_all_is_paddles(tmp_path):
    """The modules can be imported, and a network gives the numbers of its definition."""
    source = (f'import sys; sys.path.insert(0, {ROOT!r}); sys.modules["numba"] = None; import compiled, paddle\n'
              'from model_search import Network\n'
              'nets = [Network(8, 4, 3, "DARTS", allow_fast=allow) for allow in (True, False)]; nets[1].set_state_dict(nets[0].state_dict())\n'
              'x = paddle.randn([4, 3, 8, 8]); a, b = [net(x) for net in nets]; a.sum().backward()\n'
              'print(compiled.numba, float((a - b).abs().max() / b.abs().max()) < 1e-4, all(bool(cell.by_state) for cell in nets[0].cells))')
    result = subprocess.run([sys.executable, '-c', source], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == 'None True True', result.stderr


@needs_numba
def test_paddle_2_imported_first_goes_without_numba():
    """There the two end in a segmentation fault."""
    source = (f'import sys; sys.path.insert(0, {ROOT!r}); import paddle, convolutions, compiled\n'
              'l = convolutions.DepthwiseConv2D(8, 8, 5, 1, 2, groups=8, bias_attr=False); l(paddle.randn([4, 8, 9, 9]))\n'
              'print(paddle.__version__, compiled.numba is not None)')
    result = subprocess.run([sys.executable, '-c', source], capture_output=True, text=True)
    version, used = result.stdout.splitlines()[-1].split()
    assert used == str(not version.startswith('2.'))


@needs_numba
@pytest.mark.parametrize('threads', [None, '1', '2'])
def test_numba_and_openmp_get_along(threads):
    """Results are the same with OMP_NUM_THREADS set and unset, and double precision goes to Paddle."""
    source = (f'import sys; sys.path.insert(0, {ROOT!r}); import compiled, convolutions, paddle; paddle.seed(0)\n'
              'l = convolutions.DepthwiseConv2D(8, 8, 5, 1, 2, groups=8, bias_attr=False); x = paddle.randn([4, 8, 9, 9])\n'
              'print(repr(float(l(x).sum() + paddle.matmul(x, x).sum())))')
    environment = dict(os.environ)
    environment.pop('OMP_NUM_THREADS', None)
    if threads:
        environment['OMP_NUM_THREADS'] = threads
    values = {subprocess.run([sys.executable, '-c', source], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                             check=True).stdout for _ in range(2)}
    assert len(values) == 1
    paddle.seed(0)
    layer = convolutions.DepthwiseConv2D(8, 8, 5, 1, 2, groups=8, bias_attr=False)
    x = paddle.randn([4, 8, 9, 9])
    assert float(values.pop()) == pytest.approx(float(layer(x).sum() + paddle.matmul(x, x).sum()), rel=1e-4)
