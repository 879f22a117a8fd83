"""What is computed fast is what is written: the supernet by source state, the compiled depthwise convolution."""
import os
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import ROOT, relative_error

import depthwise
from architect import weight_parameters
from model_search import Network

compiled = pytest.mark.skipif(depthwise.numba is None, reason='numba is not installed')


def close(a, b):
    return np.abs(a - b).max() <= 1e-11 * np.abs(b).max() + 1e-14


@pytest.mark.parametrize('method', ['DARTS', 'PC-DARTS', 'DrNAS', 'FairDARTS'])
@pytest.mark.parametrize('size', [8, 7])
def test_by_source_state_the_supernet_is_the_same(float64, method, size):
    """Logits, loss, all gradients, running statistics, in training and in scoring; from the plain network's state dict."""
    paddle.seed(0)
    plain = Network(8, 5, 4, method, allow_fast=False)
    fast = Network(8, 5, 4, method)
    assert all(cell.fast for cell in fast.cells) and not any(cell.fast for cell in plain.cells)
    rng = np.random.default_rng(0)
    for p in plain.arch_parameters():
        p.set_value(rng.normal(size=p.shape))
    fast.set_state_dict(plain.state_dict())
    image, label = paddle.to_tensor(rng.normal(size=(4, 3, size, size))), paddle.to_tensor(rng.integers(0, 5, (4, 1)))
    results = []
    for network in (plain, fast):
        paddle.seed(1)  # DrNAS draws
        parameters = network.arch_parameters() + weight_parameters(network)
        loss = network._loss(image, label)
        gradients = paddle.grad(loss, parameters, allow_unused=True)
        network.eval()
        results.append([loss.numpy()] + [g.numpy() for g in gradients] + [network(image).numpy()])
        network.train()
    for a, b in zip(*results):
        assert close(b, a)
    states = plain.state_dict(), fast.state_dict()
    assert list(states[0]) == list(states[1])
    for name in states[0]:
        assert close(states[1][name].numpy(), states[0][name].numpy()), name
    plain.set_state_dict(fast.state_dict())


def test_what_it_does_not_know_is_computed_as_it_is_written():
    class Mine(paddle.nn.Layer):
        pass
    network = Network(4, 5, 1, 'DARTS')
    import fast
    assert fast.applies(network.cells[0]._ops, network.method)
    network.cells[0]._ops[3]._ops[4] = Mine()
    assert not fast.applies(network.cells[0]._ops, network.method)
    for method in ('GDAS', 'DARTS-'):
        assert not any(cell.fast for cell in Network(4, 5, 1, method).cells)


@compiled
@pytest.mark.parametrize('kernel, padding, dilation', [(3, 1, 1), (5, 2, 1), (7, 3, 1), (3, 2, 2), (5, 4, 2)])
@pytest.mark.parametrize('stride', [1, 2])
def test_the_compiled_convolution_is_paddles(kernel, padding, dilation, stride):
    """Outputs and the gradients of inputs and weights, one layer or three of one input or of three, odd and tiny images."""
    paddle.seed(0)
    for height, width in ((32, 32), (8, 8), (7, 9), (2, 2), (1, 1)):
        layers = [depthwise.DepthwiseConv2D(6, 6, kernel, stride, padding, dilation, groups=6, bias_attr=False) for _ in range(3)]
        weights = [layer.weight for layer in layers]
        inputs = [paddle.randn([2, 6, height, width]) for _ in range(3)]
        for x in inputs:
            x.stop_gradient = False
        for xs, used in ((inputs[:1], layers[:1]), (inputs[:1], layers), (inputs, layers)):
            outs = depthwise.depthwise(xs, used)
            expected = [F.conv2d(xs[i % len(xs)], layer.weight, None, stride, padding, dilation, 6) for i, layer in enumerate(used)]
            upstream = [paddle.randn(out.shape) for out in outs]
            wanted = list(xs) + weights[:len(used)]
            mine, theirs = [paddle.grad(sum((o * u).sum() for o, u in zip(values, upstream)), wanted) for values in (outs, expected)]
            for a, b in zip(outs + mine, expected + theirs):
                # a weight's gradient is a sum over all pixels, of which single precision keeps 7 digits
                assert relative_error(a.numpy(), b.numpy()) < 2e-6


@compiled
def test_weights_out_of_the_way_of_the_gradient_get_none():
    layer = depthwise.DepthwiseConv2D(4, 4, 3, 1, 1, groups=4, bias_attr=False)
    x = paddle.randn([1, 4, 5, 5])
    x.stop_gradient = False
    layer.weight.stop_gradient = True
    (layer(x) * 2).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@compiled
def test_paddle_2_imported_first_goes_without_numba():
    """There the two end in a segmentation fault."""
    source = ('import sys; sys.path.insert(0, {!r}); import paddle, depthwise\n'
              'l = depthwise.DepthwiseConv2D(8, 8, 5, 1, 2, groups=8, bias_attr=False); l(paddle.randn([4, 8, 9, 9]))\n'
              'print(paddle.__version__, depthwise.numba is not None)').format(ROOT)
    result = subprocess.run([sys.executable, '-c', source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    version, used = result.stdout.splitlines()[-1].split()
    assert used == str(not version.startswith('2.'))


@compiled
@pytest.mark.parametrize('threads', [None, '1', '2'])
def test_numba_and_openmp_get_along(threads):
    """Results are the same with OMP_NUM_THREADS set and unset, and double precision goes to Paddle."""
    source = ('import sys; sys.path.insert(0, {!r}); import depthwise, paddle; paddle.seed(0)\n'
              'l = depthwise.DepthwiseConv2D(8, 8, 5, 1, 2, groups=8, bias_attr=False); x = paddle.randn([4, 8, 9, 9])\n'
              'print(repr(float(l(x).sum() + paddle.matmul(x, x).sum())))').format(ROOT)
    environment = dict(os.environ)
    environment.pop('OMP_NUM_THREADS', None)
    if threads:
        environment['OMP_NUM_THREADS'] = threads
    values = {subprocess.run([sys.executable, '-c', source], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                             check=True).stdout for _ in range(2)}
    assert len(values) == 1
    paddle.seed(0)
    layer = depthwise.DepthwiseConv2D(8, 8, 5, 1, 2, groups=8, bias_attr=False)
    x = paddle.randn([4, 8, 9, 9])
    assert float(values.pop()) == pytest.approx(float(layer(x).sum() + paddle.matmul(x, x).sum()), rel=1e-4)
