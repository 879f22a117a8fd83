"""Gradients through the compiled loops, asked for in every way that Paddle offers."""
import numpy as np
import paddle
import pytest
from conftest import needs_numba, relative_error
from test_acceleration import twins

import genotypes
from kernels import operation
from kernels.blocks import Block, Term
from model import NetworkCIFAR
from nas.acceleration import accelerate
from nas.architect import weight_parameters
from nas.layers import operation_of


@pytest.fixture(params=[True, False], ids=['lists', 'slots'])
def both_ways(request, monkeypatch):
    """The two ways in which an operation gives its gradients to Paddle, of which Paddle 2 has only the second one."""
    if request.param and not operation.LISTS_HAVE_GRADIENTS:
        pytest.skip('not in Paddle 2')
    monkeypatch.setattr(operation, 'LISTS_HAVE_GRADIENTS', request.param)


class Product(operation.Operation):
    """The product of three tensors."""

    def forward(self, a, b, c):
        self.tensors = a, b, c
        return a * b * c

    def backward(self, upstream):
        a, b, c = self.tensors
        gradients = [upstream * b * c, upstream * a * c, upstream * a * b]
        return [gradient if wanted else None for gradient, wanted in zip(gradients, self.wanted)]


def leaves(frozen=()):
    tensors = [paddle.to_tensor([value]) for value in (2.0, 3.0, 5.0)]
    for i, tensor in enumerate(tensors):
        tensor.stop_gradient = i in frozen
    return tensors


@pytest.mark.parametrize('frozen', [(), (0,), (1,), (0, 2)])
@pytest.mark.parametrize('inputs', ['leaves', 'results'])
def test_the_gradient_of_some_inputs(both_ways, frozen, inputs):
    """Of one input and of all, where others are frozen or not."""
    expected = [15.0, 10.0, 6.0]
    wanted = [i for i in range(3) if i not in frozen]
    for some in [[i] for i in wanted] + [wanted]:
        tensors = leaves(frozen)
        out = Product()(*(tensors if inputs == 'leaves' else [tensor * 1 for tensor in tensors]))
        assert [g.item() for g in paddle.grad(out, [tensors[i] for i in some])] == [expected[i] for i in some]
    tensors = leaves(frozen)
    Product()(*tensors).backward()
    assert [None if t.grad is None else t.grad.item() for t in tensors] == [expected[i] if i in wanted else None
                                                                            for i in range(3)]


def test_without_gradients_nothing_is_recorded(both_ways):
    assert Product()(*leaves((0, 1, 2))).stop_gradient
    with paddle.no_grad():
        assert Product()(*leaves()).stop_gradient


@needs_numba
def test_second_derivatives_are_refused(both_ways):
    """Without the refusal they would be missing in silence."""
    layer = paddle.nn.Conv2D(4, 4, 3, 1, 1, groups=4, bias_attr=False)
    x = paddle.randn([1, 4, 5, 5])
    for inputs in ([layer.weight], [x]):
        x.stop_gradient = False
        with pytest.raises(Exception, match='NotImplementedError: the compiled loops have no second derivatives'):
            paddle.grad(accelerate(layer)(x).square().sum(), inputs, create_graph=True)


def compare_gradients(plain, fast, losses, parameters):
    """paddle.grad of each of the parameters' lists, of two networks that compute the same."""
    for names in zip(parameters(plain), parameters(fast)):
        ours, theirs = [paddle.grad(loss, some, allow_unused=True) for loss, some in zip(losses(), names[::-1])]
        scale = max(np.abs(g.numpy()).max() for g in theirs if g is not None)
        for a, b in zip(ours, theirs):
            if b is None and a is not None and a.ndim == 1:
                continue  # Paddle leaves out that of a batch norm's scale where that of its bias isn't asked for
            assert (a is None) == (b is None)
            assert a is None or np.abs(a.numpy() - b.numpy()).max() < 1e-4 * scale


@needs_numba
@pytest.mark.parametrize('method, multiplier', [('DARTS', 4), ('PC-DARTS', 2)])
def test_gradients_of_a_supernet_by_some_parameters(method, multiplier):
    """With multiplier 2 the outputs of some edges are not used."""
    plain, fast, image, label = twins(method, multiplier=multiplier)
    image.stop_gradient = False
    compare_gradients(
        plain, fast, lambda: [network._loss(image, label) for network in (fast, plain)],
        lambda network: [network.arch_parameters(), [image], weight_parameters(network)[::2]])


@needs_numba
def test_gradients_of_a_derived_network_by_some_parameters():
    paddle.seed(0)
    plain, fast = [NetworkCIFAR(4, 5, 3, False, genotypes.DARTS_V2) for _ in range(2)]
    fast.set_state_dict(plain.state_dict())
    accelerate(fast)
    image = paddle.randn([4, 3, 8, 8])
    image.stop_gradient = False
    compare_gradients(plain, fast, lambda: [network(image)[0].square().mean() for network in (fast, plain)],
                      lambda network: [[image], network.parameters()[::2], network.parameters()[1::3]])


@needs_numba
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(8, 8), (7, 5), (2, 3)])
def test_equal_pixels_in_a_window_of_max_pooling(stride, size):
    """The gradient goes to the first of the largest pixels in the order of rows."""
    paddle.seed(0)
    pools = paddle.nn.Sequential(paddle.nn.MaxPool2D(3, stride, 1), paddle.nn.BatchNorm2D(3, weight_attr=False,
                                                                                          bias_attr=False))
    block = Block([[Term(0, operation_of(pools), 0)]])
    x = paddle.randint(0, 3, [5, 3, *size]).astype('float32')  # many are equal
    x.stop_gradient = False
    ours, theirs = block([x], paddle.to_tensor([1.5])), 1.5 * pools(x)
    upstream = paddle.randn(ours.shape)
    a, b = [paddle.grad((out * upstream).sum(), [x])[0].numpy() for out in (ours, theirs)]
    assert relative_error(a, b) < 1e-5
