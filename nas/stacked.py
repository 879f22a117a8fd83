"""Layers of several operations computed side by side as one: the numbers are those that they give one by one."""
import numpy as np
import paddle
import paddle.nn.functional as F


def is_pointwise(layer):
    """Whether a Conv2D layer is a product of matrices: kernel 1x1, stride 1, no padding."""
    return (list(layer._stride) == [1, 1] and layer._updated_padding in (0, [0, 0]) and min(layer._dilation) > 0
            and layer._padding_algorithm == 'EXPLICIT' and list(layer.weight.shape[2:]) == [1, 1])


def is_square(layer):
    """Whether kernel, stride, padding and dilation are the same in both directions and the output is no larger than
    the input."""
    padding, stride, dilation, kernel = layer._updated_padding, layer._stride, layer._dilation, layer.weight.shape[2:]
    return (isinstance(padding, list) and len(padding) == 2 and padding[0] == padding[1] and len(kernel) == 2
            and kernel[0] == kernel[1] and stride[0] == stride[1] and stride[0] in (1, 2)
            and dilation[0] == dilation[1] > 0 and layer._padding_algorithm == 'EXPLICIT'
            and 0 <= 2 * padding[0] <= dilation[0] * (kernel[0] - 1))


def square_geometry(layer):
    """(kernel, stride, padding, dilation) of such a layer."""
    return layer.weight.shape[2], layer._stride[0], layer._updated_padding[0], layer._dilation[0]


class SeparableUnits:
    """Depthwise convolution, pointwise convolution and batch norm of several operations and edges; layers
    [operation][edge] of the three."""

    def __init__(self, layers):
        self.operations = len(layers)
        self.depthwise = [[edge[0] for edge in edges] for edges in layers]
        self.pointwise = [edge[1] for edges in layers for edge in edges]
        self.norms = StackedNorms([edge[2] for edges in layers for edge in edges])

    def __call__(self, xs, scale, bias):
        """xs: for each operation [N, edges * C, H, W] -> [N, operations * edges * C, H', W']."""
        ys = []
        for x, layers in zip(xs, self.depthwise):
            _, stride, padding, dilation = square_geometry(layers[0])
            weight = join([layer.weight for layer in layers], 0)
            ys.append(F.conv2d(x, weight, None, stride, padding, dilation, groups=x.shape[1]))
        y = F.conv2d(join(ys), join([layer.weight for layer in self.pointwise], 0), join_biases(self.pointwise),
                     groups=len(self.pointwise))
        return self.norms(y, scale, bias)


class StackedNorms:
    """Batch norms side by side as one. Its running statistics are one tensor, of which each batch norm's own are a
    piece of memory."""

    def __init__(self, norms):
        self.norms, self.mean, self.variance = norms, None, None

    def __call__(self, y, scale, bias):
        """scale * batch_norm(y) + bias; y [N, C of all, H, W], scale and bias [C of all]."""
        self._stack_statistics()
        first = self.norms[0]
        return F.batch_norm(y, self.mean, self.variance, scale, bias, first.training, first._momentum, first._epsilon)

    def _stack_statistics(self):
        """Take over the running statistics that are new, copied or replaced."""
        means, variances = [norm._mean for norm in self.norms], [norm._variance for norm in self.norms]
        if self.mean is None or not (is_stack(self.mean, means) and is_stack(self.variance, variances)):
            self.mean, self.variance = stack_memory(means), stack_memory(variances)


class StackedReductions:
    """FactorizedReduce of several edges."""

    def __init__(self, layers):
        self.layers, self.norms = layers, StackedNorms([layer.bn for layer in layers])

    def __call__(self, x, scale, bias):
        """x [N, C, H, W], scale and bias [edges * C] of the batch norms -> for each edge [N, C, H', W']."""
        return split(self.norms(reduce_together(self.layers, F.relu(x)), scale, bias), len(self.layers))


def stack_memory(tensors):
    """The tensors side by side as one tensor, whose memory they share from then on."""
    if len(tensors) == 1:
        return tensors[0]
    with paddle.no_grad():
        stack = paddle.concat(tensors)
        start = 0
        for tensor in tensors:
            piece = stack[start:start + tensor.shape[0]]
            tensor.value().get_tensor()._share_data_with(piece.value().get_tensor())
            start += tensor.shape[0]
    return stack


def is_stack(stack, tensors):
    """Whether the tensors are the pieces of the stack's memory."""
    address, size = stack.data_ptr(), stack.element_size()
    for tensor in tensors:
        if tensor.data_ptr() != address or tensor.dtype != stack.dtype:
            return False
        address += tensor.shape[0] * size
    return True


def join(tensors, axis=1):
    return paddle.concat(tensors, axis) if len(tensors) > 1 else tensors[0]


def join_biases(layers):
    """The biases of convolutions that are computed as one; zeros for those without, None if no layer has one."""
    if all(layer.bias is None for layer in layers):
        return None
    return join([paddle.zeros(layer.weight.shape[:1], layer.weight.dtype) if layer.bias is None else layer.bias
                 for layer in layers], 0)


def split(tensor, parts):
    return tensor.split(parts, axis=1) if parts > 1 else [tensor]


def reduce_together(layers, x):
    """The convolutions of several FactorizedReduce side by side, as one 2x2 convolution of stride 2, for x after the
    ReLU: the first half of a layer's filters has its weights at the upper left pixel, the second half at the lower
    right one, and zeros elsewhere."""
    convolutions = [conv for layer in layers for conv in (layer.conv_1, layer.conv_2)]
    halves = [conv.weight for conv in convolutions]
    corners = np.concatenate([np.tile(corner, (half.shape[0], 1))
                              for half, corner in zip(halves, ([1, 0, 0, 0], [0, 0, 0, 1]) * len(layers))])
    odd_h, odd_w = x.shape[2] % 2, x.shape[3] % 2
    if odd_h or odd_w:
        x = F.pad(x, [0, odd_w, 0, odd_h])
    return F.conv2d(x, paddle.concat(halves) * paddle.to_tensor(corners.reshape(-1, 1, 2, 2), x.dtype),
                    join_biases(convolutions), stride=2)
