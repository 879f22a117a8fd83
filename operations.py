"""The operations a cell may use and the small blocks they are made of (DARTS, Liu et al. 2019, section 3.1).

All take and give [N, C, H, W]; `stride` 2 halves H and W. Convolution operations run ReLU, convolution, batch norm in
this order. Attributes are named and created as in the authors' code (`op`, `conv_1`, …), so weights of the one load
into the other by their order.
"""
import math

import paddle
import paddle.nn as nn
from paddle.nn.initializer import KaimingUniform, Uniform

from runtime.errors import UserError


class Operations(dict):
    """{name: function of (channels, stride, affine) that makes a layer}."""

    def __missing__(self, name):
        raise UserError(f'{name} is a candidate operation, but OPS of operations.py does not have it: add it there')


OPS = Operations({
    'none': lambda c, stride, affine: Zero(stride),
    'avg_pool_3x3': lambda c, stride, affine: nn.AvgPool2D(3, stride, padding=1, exclusive=True),
    'max_pool_3x3': lambda c, stride, affine: nn.MaxPool2D(3, stride, padding=1),
    'skip_connect': lambda c, stride, affine: Identity() if stride == 1 else FactorizedReduce(c, c, affine),
    'sep_conv_3x3': lambda c, stride, affine: SepConv(c, c, 3, stride, 1, affine),
    'sep_conv_5x5': lambda c, stride, affine: SepConv(c, c, 5, stride, 2, affine),
    'sep_conv_7x7': lambda c, stride, affine: SepConv(c, c, 7, stride, 3, affine),
    'dil_conv_3x3': lambda c, stride, affine: DilConv(c, c, 3, stride, 2, 2, affine),
    'dil_conv_5x5': lambda c, stride, affine: DilConv(c, c, 5, stride, 4, 2, affine),
    'conv_7x1_1x7': lambda c, stride, affine: Conv7x1(c, stride, affine),
    'conv_3x1_1x3': lambda c, stride, affine: Conv7x1(c, stride, affine, size=3),
})


def conv2d(c_in, c_out, kernel_size, stride=1, padding=0, dilation=1, groups=1):
    """A convolution without bias, its weights drawn from U(-b, b) with b = 1 / sqrt(fan_in).

    This is PyTorch's default, with which the authors' results were made; Paddle's own default is a wider normal
    distribution.
    """
    return nn.Conv2D(c_in, c_out, kernel_size, stride, padding, dilation, groups, bias_attr=False,
                     weight_attr=KaimingUniform(negative_slope=math.sqrt(5), nonlinearity='leaky_relu'))


def linear(c_in, c_out):
    """A linear layer; weights and bias are drawn from U(-b, b) with b = 1 / sqrt(c_in), as in the authors' code."""
    bound = 1 / math.sqrt(c_in)
    return nn.Linear(c_in, c_out, weight_attr=Uniform(-bound, bound), bias_attr=Uniform(-bound, bound))


def batch_norm(c, affine=True):
    """Batch norm with eps 1e-5. Without `affine` it has no trainable part: the search network needs none, since alphas
    would only rescale it (DARTS, appendix A.1.1)."""
    attr = None if affine else False
    return nn.BatchNorm2D(c, weight_attr=attr, bias_attr=attr)


class ReLUConvBN(nn.Layer):
    """ReLU, a convolution, batch norm."""

    def __init__(self, c_in, c_out, kernel_size, stride, padding, affine=True):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            conv2d(c_in, c_out, kernel_size, stride, padding),
            batch_norm(c_out, affine))

    def forward(self, x):
        return self.op(x)


class DilConv(nn.Layer):
    """ReLU, a dilated depthwise convolution, a pointwise one, batch norm."""

    def __init__(self, c_in, c_out, kernel_size, stride, padding, dilation, affine=True):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            conv2d(c_in, c_in, kernel_size, stride, padding, dilation, groups=c_in),
            conv2d(c_in, c_out, 1),
            batch_norm(c_out, affine))

    def forward(self, x):
        return self.op(x)


class SepConv(nn.Layer):
    """A depthwise separable convolution, applied twice; the first one strides."""

    def __init__(self, c_in, c_out, kernel_size, stride, padding, affine=True):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            conv2d(c_in, c_in, kernel_size, stride, padding, groups=c_in),
            conv2d(c_in, c_in, 1),
            batch_norm(c_in, affine),
            nn.ReLU(),
            conv2d(c_in, c_in, kernel_size, 1, padding, groups=c_in),
            conv2d(c_in, c_out, 1),
            batch_norm(c_out, affine))

    def forward(self, x):
        return self.op(x)


class Conv7x1(nn.Layer):
    """ReLU, a 1x7 and then a 7x1 convolution, batch norm (an operation of NASNet and AmoebaNet); size: another one
    than 7."""

    def __init__(self, c, stride, affine=True, size=7):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            conv2d(c, c, (1, size), (1, stride), (0, size // 2)),
            conv2d(c, c, (size, 1), (stride, 1), (size // 2, 0)),
            batch_norm(c, affine))

    def forward(self, x):
        return self.op(x)


class Identity(nn.Layer):
    """The input itself. model.Cell asks for this class: an identity edge is exempt from drop path."""

    def forward(self, x):
        return x


class WeightedSum(nn.LayerList):
    """The weighted sum of operations on one input, sum_k w_k * operation_k(x).

    operations: layers, which all give the same shape. Those of this module, poolings and nn.Sequential of ReLU,
    convolutions and batch norm are computed together by nas.accelerate, others one by one.
    """

    def forward(self, x, weights):
        """weights: a tensor [operations]."""
        if len(weights) != len(self):
            raise ValueError(f'{len(weights)} weights for {len(self)} operations')
        return sum(w * op(x) for w, op in zip(weights.unbind(), self))


class Zero(nn.Layer):
    """No connection: zeros of the output's shape."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        if self.stride > 1:
            x = x[:, :, ::self.stride, ::self.stride]
        return paddle.zeros_like(x)


class DropPath(nn.Layer):
    """Set x [N, C, H, W] to zero for a sample with probability `prob` and divide the others by 1 - prob, which keeps
    the mean (Larsson et al. 2017)."""

    def forward(self, x, prob):
        return x * self.factors(x, prob)

    def factors(self, x, prob):
        """0 or 1 / (1 - prob) for each sample, [N, 1, 1, 1]."""
        keep = paddle.full([x.shape[0], 1, 1, 1], 1 - prob, dtype=x.dtype)
        return paddle.bernoulli(keep) / (1 - prob)


class FactorizedReduce(nn.Layer):
    """Halve H and W without losing pixels: two strided 1x1 convolutions, the second one shifted by a pixel, side by
    side."""

    def __init__(self, c_in, c_out, affine=True):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = conv2d(c_in, c_out // 2, 1, stride=2)
        self.conv_2 = conv2d(c_in, c_out - c_out // 2, 1, stride=2)
        self.bn = batch_norm(c_out, affine)

    def forward(self, x):
        x = self.relu(x)
        shifted = x[:, :, 1:, 1:]
        odd_h, odd_w = x.shape[2] % 2, x.shape[3] % 2
        if odd_h or odd_w:  # the shifted half would come out a pixel smaller; the authors' code fails here
            shifted = nn.functional.pad(shifted, [0, odd_w, 0, odd_h])
        return self.bn(paddle.concat([self.conv_1(x), self.conv_2(shifted)], axis=1))
