"""The compiled blocks of single layers compute what the layers compute: outputs, all gradients, running statistics."""
import copy
import random

import numpy as np
import paddle
import paddle.nn as nn
import pytest
from conftest import needs_numba, relative_error

from kernels.blocks import Block, Term
from kernels.plans import IDENTITY, NOTHING
from kernels.windows import make_window
from nas import accelerate
from nas.layers import CompiledLayer
from operations import Conv7x1, DilConv, FactorizedReduce, Identity, ReLUConvBN, SepConv, WeightedSum, Zero

pytestmark = needs_numba


def everything(layer, image, *weights):
    """Output, gradients of the inputs and of all parameters, running statistics."""
    inputs = [paddle.to_tensor(value.numpy(), stop_gradient=False) for value in (image, *weights)]
    out = layer(*inputs)
    rng = np.random.default_rng(0)
    upstream = paddle.to_tensor(rng.normal(size=out.shape).astype(str(out.numpy().dtype)))
    trained = [p for p in layer.parameters() if not p.stop_gradient]
    gradients = paddle.grad((out * upstream).sum(), inputs + trained, allow_unused=True)
    statistics = [buffer for buffer in layer.state_dict().values() if buffer.stop_gradient]
    return [None if value is None else value.numpy() for value in [out, *gradients, *statistics]]


def compare(layer, shape, weights=None, calls=1):
    """A layer against its accelerated copy, and both against double precision. calls: of the accelerated layer, how
    many must be computed by blocks."""
    shake(layer)
    plain, fast = copy.deepcopy(layer), accelerate(copy.deepcopy(layer))
    exact = copy.deepcopy(layer)
    exact.to(dtype='float64')
    inputs = [paddle.randn(shape)] + ([] if weights is None else [paddle.to_tensor(weights, 'float32')])
    before = len(Counted.calls)
    found = everything(fast, *inputs)
    assert len(Counted.calls) - before == calls
    expected, truth = everything(plain, *inputs), everything(exact, *[x.astype('float64') for x in inputs])
    assert len(found) == len(expected) == len(truth)
    for a, b, c in zip(found, expected, truth):
        if b is None:
            assert a is None
        elif np.abs(c).max() > 1e-5:
            assert relative_error(a, b) < 1e-5 and relative_error(a, c) < 1e-5
        else:  # zero but for rounding, as behind a batch norm
            assert np.abs(a).max() < 1e-3


def shake(layer):
    """Batch norms as they are in the middle of a training."""
    for norm in layer.sublayers(include_self=True):
        if isinstance(norm, nn.BatchNorm2D):
            for tensor in [norm._mean, norm._variance] + [norm.weight, norm.bias] * (norm.weight is not None):
                tensor.set_value(paddle.rand(tensor.shape) + 0.5)


class Counted:
    """The calls of blocks."""

    calls = []


@pytest.fixture(autouse=True)
def count(monkeypatch):
    from kernels import blocks
    from nas import layers
    call = blocks.Block.__call__

    def counted(block, *arguments):
        Counted.calls.append(block)
        return call(block, *arguments)
    monkeypatch.setattr(blocks.Block, '__call__', counted)
    monkeypatch.setattr(layers, 'SMALLEST', 0)
    paddle.seed(0)


@pytest.mark.parametrize('seed', range(12))
def test_convolutions_of_random_geometries(seed):
    """Kernels 1 to 7, rectangular ones too, strides, padding, dilation, groups, batch norm or not, ReLU or not."""
    draw = random.Random(seed)
    groups = draw.choice([1, 1, 2, 3])
    kernel = draw.choice([1, 2, 3, 3, 5, 7, (1, 7), (7, 1), (3, 2)])
    dilation = draw.choice([1, 1, 2])
    sides = [dilation * (k - 1) + 1 for k in (kernel if isinstance(kernel, tuple) else (kernel, kernel))]
    padding = [draw.randint(0, side // 2) for side in sides]
    height, width = [draw.randint(max(1, side - 2 * p), 12) for side, p in zip(sides, padding)]
    c_in, c_out = 2 * groups + groups * draw.randint(0, 3), groups * draw.randint(2, 6)
    layers = [nn.ReLU()] * draw.randint(0, 1) + [
        nn.Conv2D(c_in, c_out, kernel, draw.choice([1, 1, 2, (1, 2), 3]), padding, dilation, groups, bias_attr=False)]
    if draw.random() < 0.7:
        layers.append(nn.BatchNorm2D(c_out, **draw.choice([{}, dict(weight_attr=False, bias_attr=False)])))
    compare(nn.Sequential(*layers), [draw.randint(2, 40), c_in, height, width])


@pytest.mark.parametrize('stride, padding, sides', [(2, 1, (2, 2)), ((2, 1), (1, 0), (2, 5)), ((1, 2), 0, (5, 1)),
                                                    (1, 0, (4, 3)), (2, 0, (5, 5))])
def test_convolutions_of_one_pixel(stride, padding, sides):
    """At stride 1 without padding an image is one row for them, elsewhere not, even if the output is as large."""
    compare(nn.Sequential(nn.ReLU(), nn.Conv2D(4, 6, 1, stride, padding, bias_attr=False), nn.BatchNorm2D(6)),
            [3, 4, *sides])


@pytest.mark.parametrize('make', [
    lambda: ReLUConvBN(6, 9, 1, 1, 0), lambda: ReLUConvBN(8, 8, 3, 1, 1, False), lambda: SepConv(6, 5, 3, 2, 1),
    lambda: SepConv(4, 4, 5, 1, 2, False), lambda: DilConv(5, 6, 5, 2, 4, 2), lambda: Conv7x1(4, 2),
    lambda: Conv7x1(5, 1, size=3), lambda: FactorizedReduce(5, 7), lambda: FactorizedReduce(4, 8, False)],
    ids=['pointwise', 'dense', 'sep3', 'sep5', 'dil5', 'conv7x1', 'conv3x1', 'reduce', 'reduce without affine'])
@pytest.mark.parametrize('shape', [(3, 8, 8), (5, 7, 9), (33, 4, 4), (1, 33, 32)])
def test_operations(make, shape):
    layer = make()
    n, height, width = shape
    c = next(p for p in layer.parameters() if p.ndim == 4).shape
    c = c[0] if c[1] == 1 else c[1]
    compare(layer, [n, c, height, width])
    layer.eval()
    compare(layer, [n, c, height, width])
    plain, fast = copy.deepcopy(layer), accelerate(copy.deepcopy(layer))
    x = paddle.randn([n, c, height, width])
    with paddle.no_grad():
        assert relative_error(fast(x).numpy(), plain(x).numpy()) < 1e-5


@pytest.mark.parametrize('kind', [nn.AvgPool2D, nn.MaxPool2D])
@pytest.mark.parametrize('arguments', [(3, 1, 1), (3, 2, 1), (5, 3, 0), (2, 2, 0)])
@pytest.mark.parametrize('ceil_mode', [False, True])
@pytest.mark.parametrize('shape', [(2, 3, 8, 8), (40, 2, 9, 7), (1, 1, 33, 34)])
def test_poolings(kind, arguments, ceil_mode, shape):
    compare(kind(*arguments, ceil_mode=ceil_mode), shape)


def test_a_layer_that_is_used_twice():
    """Its gradient is the sum of two: the layers are computed one by one."""
    convolution = nn.Conv2D(4, 4, 3, 1, 1, bias_attr=False)
    compare(nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2D(4), nn.ReLU(), convolution, nn.BatchNorm2D(4)),
            [3, 4, 8, 8], calls=2)
    operation = ReLUConvBN(4, 4, 1, 1, 0)
    compare(WeightedSum([operation, operation]), [3, 4, 8, 8], [0.5, 2], calls=2)


@pytest.mark.parametrize('change', ['scale', 'pointwise', 'bias'])
def test_tensors_of_other_sizes_are_refused_as_by_paddle(change):
    """The loops would read beyond them."""
    layer = nn.Sequential(nn.ReLU(), nn.Conv2D(8, 8, 3, 1, 1, groups=8, bias_attr=False),
                          nn.Conv2D(4 if change == 'pointwise' else 8, 6, 1, bias_attr=None if change == 'bias' else
                                    False), nn.BatchNorm2D(6))
    if change == 'scale':
        layer[3].weight = paddle.create_parameter([3], 'float32')
    if change == 'bias':
        layer[2].bias = paddle.create_parameter([3], 'float32')
    for network in (layer, accelerate(copy.deepcopy(layer))):
        with pytest.raises(Exception, match=r'(?i)channel|shape|size|dim'):
            network(paddle.randn([2, 8, 6, 6]))


def test_a_bias_in_front_of_a_batch_norm():
    compare(nn.Sequential(nn.Conv2D(4, 6, 3, 1, 1), nn.BatchNorm2D(6), nn.ReLU(), nn.Conv2D(6, 5, 1),
                          nn.BatchNorm2D(5)), [3, 4, 8, 8])


def test_a_pooling_with_a_batch_norm_of_one_value_per_channel():
    """Paddle's batch norm returns its input then."""
    layer = WeightedSum([nn.Sequential(nn.AvgPool2D(2, 2), nn.BatchNorm2D(3)), nn.MaxPool2D(2, 2)])
    compare(layer, [1, 3, 2, 2], [0.5, 2], calls=2)
    compare(layer, [2, 3, 2, 2], [0.5, 2])


def test_weights_of_another_shape_mean_what_is_written():
    layer = WeightedSum([ReLUConvBN(4, 4, 1, 1, 0), nn.MaxPool2D(3, 1, 1)])
    compare(layer, [2, 4, 5, 5], np.ones((2, 5)), calls=2)


def test_identities_alone():
    block = Block([[Term(0, IDENTITY, 0), Term(0, NOTHING, 1)], [Term(0, NOTHING, 2), Term(0, IDENTITY, 3)]])
    x, weights = paddle.randn([3, 2, 4, 4]), paddle.arange(4, dtype='float32')
    x.stop_gradient = weights.stop_gradient = False
    assert block.applies([x], weights) and not Block([[Term(0, NOTHING, 0)]]).applies([x], weights)
    outs = block([x], weights).split(2, axis=1)
    assert [float((out - factor * x).abs().max()) for out, factor in zip(outs, (0, 3))] == [0, 0]
    dx, dweights = paddle.grad(outs[0].sum() + outs[1].sum(), [x, weights])
    assert (dx == 3).all() and relative_error(dweights.numpy()[[0, 3]], [float(x.sum())] * 2) < 1e-5


class Doubled(nn.Layer):

    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize('extra, calls', [([], 1), ([Doubled()], 1), ([SepConv(4, 4, 3, 1, 1), Zero(1)], 1)])
def test_weighted_sums(extra, calls):
    """Known operations together, unknown ones beside them; the gradient of the weights."""
    layer = WeightedSum([Zero(1), Identity(), ReLUConvBN(4, 4, 1, 1, 0, False), ReLUConvBN(4, 4, 3, 1, 1),
                         nn.AvgPool2D(3, 1, 1), nn.MaxPool2D(3, 1, 1), *extra])
    weights = np.linspace(-0.5, 1, len(layer))
    for shape in ([3, 4, 8, 8], [37, 4, 5, 6]):
        compare(layer, shape, weights, calls)


def test_a_single_convolution_on_small_images_is_left_to_paddle(monkeypatch):
    monkeypatch.setattr('nas.layers.SMALLEST', 4 * 4 * 8 * 8 * 2)  # of the second input
    layer, chain = accelerate(ReLUConvBN(4, 4, 1, 1, 0)), accelerate(SepConv(4, 4, 3, 1, 1))
    for side, calls in ((7, 0), (8, 1)):
        before = len(Counted.calls)
        layer(paddle.randn([2, 4, side, side]))
        assert len(Counted.calls) - before == calls
        chain(paddle.randn([2, 4, side, side]))
        assert len(Counted.calls) - before == calls + 1


def test_the_same_bits_on_every_run():
    layer, x = accelerate(SepConv(8, 8, 3, 1, 1)), paddle.randn([9, 8, 16, 16])
    start = copy.deepcopy(layer.state_dict())
    runs = []
    for _ in range(3):
        layer.set_state_dict(start)
        runs.append(everything(layer, x))
    assert all((a == b).all() for run in runs[1:] for a, b in zip(run, runs[0]))


def test_gradients_of_some_inputs_and_second_derivatives():
    layer, x = accelerate(ReLUConvBN(4, 4, 3, 1, 1)), paddle.randn([2, 4, 6, 6])
    x.stop_gradient = False
    full = everything(layer, x)
    weight = layer.op[1].weight
    gradient, = paddle.grad(layer(x).sum(), [weight])
    assert gradient.shape == weight.shape and len(full) == 7
    layer.op[2].weight.stop_gradient = True
    layer(x).sum().backward()
    assert layer.op[2].weight.grad is None and weight.grad is not None
    with pytest.raises(Exception, match='NotImplementedError: the compiled loops have no second derivatives'):
        paddle.grad(layer(x).sum(), [x], create_graph=True)


def double_output(layer, inputs, output):
    return 2 * output


def replace_norm(op):
    op[2] = nn.BatchNorm2D(4, momentum=0.5, epsilon=0.1)


def replace_by_unknown(op):
    op[0] = nn.Sigmoid()


def change_forward(op):
    op[1].forward = lambda x: 3 * x


CHANGES = [replace_norm, replace_by_unknown, change_forward,
           lambda op: op[1].register_forward_post_hook(double_output),
           lambda op: op.register_forward_post_hook(double_output),
           lambda op: op.add_sublayer('3', nn.ReLU()),
           lambda op: setattr(op[2], '_momentum', 0.3),
           lambda op: setattr(op[2], '_use_global_stats', True),
           lambda op: (setattr(op[1], '_stride', [2, 2])),
           lambda op: op[2].eval(),
           lambda op: op[2]._buffers.update(_mean=paddle.ones([4])),
           lambda op: setattr(op[1], 'bias', op.create_parameter([4], default_initializer=nn.initializer.Constant(2.))),
           lambda op: op[1].weight.set_value(op[1].weight * 2)]


@pytest.mark.parametrize('number', range(len(CHANGES)))
@pytest.mark.parametrize('when', ['before', 'between', 'after'])
def test_changes_are_noticed(number, when):
    """Made before the layer is accelerated, before its first forward pass or after it."""
    plain, x = ReLUConvBN(4, 4, 3, 1, 1), paddle.randn([3, 4, 6, 6])
    fast = copy.deepcopy(plain)
    for layer in (plain, fast):
        if when == 'before':
            CHANGES[number](layer.op)
        if layer is fast:
            accelerate(layer)
        if when == 'after':
            layer(x)
        if when != 'before':
            CHANGES[number](layer.op)
    expected, found = everything(plain, x), everything(fast, x)
    for a, b in zip(found, expected):
        assert (a is None) == (b is None)
        if b is not None:
            assert relative_error(a, b) < 1e-5 if np.abs(b).max() > 1e-4 else np.abs(a).max() < 1e-3


def test_what_is_not_covered_is_left_to_paddle():
    """Double precision, other layouts, a bias, zeros that count in an average, a single value per channel."""
    for layer, shape in [(nn.Sequential(nn.Conv2D(4, 4, 3)), [2, 4, 6, 6]),
                         (nn.Sequential(nn.Conv2D(4, 4, 3, bias_attr=False, data_format='NHWC')), [2, 6, 6, 4]),
                         (nn.Sequential(nn.Conv2D(4, 4, 3, padding=1, padding_mode='reflect', bias_attr=False)),
                          [2, 4, 6, 6]),
                         (nn.Conv2D(4, 4, 3, padding='same', bias_attr=False), [2, 4, 6, 6]),
                         (nn.AvgPool2D(3, 1, 1, exclusive=False), [2, 4, 6, 6]),
                         (nn.Sequential(nn.ReLU(), nn.BatchNorm2D(4)), [2, 4, 6, 6])]:
        compare(layer, shape, calls=0)
    compare(ReLUConvBN(4, 4, 3, 1, 1), [1, 4, 1, 1])  # the convolution alone: a batch norm gives back a single value
    layer = accelerate(ReLUConvBN(4, 4, 3, 1, 1))
    for shape in ([2, 5, 6, 6], [4, 6, 6]):
        with pytest.raises(ValueError):
            layer(paddle.zeros(shape))
    layer.to(dtype='float64')
    before = len(Counted.calls)
    assert layer(paddle.zeros([2, 4, 6, 6], 'float64')).dtype == paddle.float64 and len(Counted.calls) == before


def test_a_copy_has_its_own_blocks():
    layer, x = accelerate(ReLUConvBN(4, 4, 3, 1, 1)), paddle.randn([3, 4, 6, 6])
    layer.eval()
    before = layer(x).numpy()
    other = copy.deepcopy(layer)
    other.op[1].weight.set_value(paddle.zeros_like(other.op[1].weight))
    assert isinstance(other.op._compiled, CompiledLayer) and other.op._compiled is not layer.op._compiled
    assert float((other(x) - other.op[2].bias.reshape([1, 4, 1, 1])).abs().max()) < 1e-5
    assert (layer(x).numpy() == before).all()


def test_no_tap_reads_a_pixel_of_another_row_or_image():
    """The arrangement of images in memory, against a convolution by hand with one tap at a time."""
    for height, width, taps, stride, padding, out in [(3, 3, ((0, 0), (2, 2)), (1, 1), (1, 1), (3, 3)),
                                                      (5, 4, ((0, 0), (2, 4)), (2, 1), (2, 2), (4, 4)),
                                                      (5, 5, ((1, 1),), (2, 2), (0, 0), (3, 3))]:
        w, tables = make_window(height, width, taps, stride, padding, out, 2)
        planes = np.zeros(w.channel)
        padded = np.zeros((2, height + 20, width + 20))
        for image in range(2):
            for row in range(height):
                for column in range(width):
                    at = tables.row_starts[row * w.column_stride + column % stride[1]]
                    value = 1 + (image * height + row) * width + column
                    padded[image, row + padding[0], column + padding[1]] = value
                    if at >= 0:
                        planes[at + image * w.image + column // stride[1]] = value
        for tap, offset in zip(taps, tables.taps):
            for image in range(2):
                for row in range(out[0]):
                    for column in range(out[1]):
                        found = planes[offset + image * w.image + row * w.pitch + column]
                        assert found == padded[image, row * stride[0] + tap[0], column * stride[1] + tap[1]]
