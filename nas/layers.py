"""Layers that are computed by the compiled blocks of kernels/blocks.py: nn.Sequential with convolutions in it, a
convolution or a pooling that is called by itself, FactorizedReduce, WeightedSum.

Each gets a forward function of its own, which looks at every call whether the layer is still what its blocks were made
of. What the blocks do not cover, or has hooks, runs as it is written, and so do all where they do not apply: in double
precision, on a GPU, under to_static.
"""
import types

import paddle
import paddle.nn as nn

from kernels import compiled
from kernels.blocks import Block, Term
from kernels.plans import IDENTITY, NOTHING
from kernels.units import Convolution, Pooling, Unit
from nas.changes import PADDLE_FORWARDS, Record, has_hooks, is_known_code
from nas.stacked import is_pointwise, reduce_together
from operations import FactorizedReduce, Identity, WeightedSum, Zero

# Multiply-adds of a single dense convolution from which on its block is as fast as Paddle's operations, forward and
# backward. Measured on 2 cores, with ReLU and batch norm: at 1.6 million 0.72 times as fast (1x1, 8x8 pixels), at 4.2
# million 0.9 to 1.0, at 9.4 million (3x3, 16x16 pixels) 1.7, at 12.6 million (1x1, 32x32 pixels) 1.5.
SMALLEST = 4e6
POOLINGS = (nn.MaxPool2D, nn.AvgPool2D)


def attach(layer):
    """Give a layer its forward function, if it is one of those above and there is something to gain. Returns
    whether it did."""
    forward = None
    if type(layer) is FactorizedReduce:
        forward = _reduction_forward
    elif compiled.numba is not None and any(isinstance(part, Block) for part in parts_of(layer)):
        forward = _forward
    if forward is None:
        return False
    layer._compiled = CompiledLayer()
    layer.forward = types.MethodType(forward, layer)
    return True


def is_ours(forward):
    return getattr(forward, '__func__', None) in (_forward, _reduction_forward)


def _forward(self, *inputs, **more):
    out = None if more else self._compiled(self, *inputs)
    return type(self).forward(self, *inputs, **more) if out is None else out


def _reduction_forward(self, x):
    out = self._compiled(self, x)
    if out is None and (paddle.in_dynamic_mode() and is_known_code(FactorizedReduce, 'forward')
                        and type(self) is FactorizedReduce and x.ndim == 4
                        and x.shape[1] == self.conv_1.weight.shape[1] and is_plain_reduction(self)):
        return self.bn(reduce_together([self], self.relu(x)))
    return type(self).forward(self, x) if out is None else out


class CompiledLayer:
    """The blocks of one layer as it was when they were made."""

    def __init__(self):
        self.record = None

    def __deepcopy__(self, memo):
        return CompiledLayer()  # the copy looks at the copied layer

    def __call__(self, layer, x, *weights):
        """The output, or None where the layer must run as it is written."""
        if not compiled.available(x) or (type(layer) is WeightedSum) != (len(weights) == 1):
            return None
        if self.record is None or not self.record.is_current():
            record = Record([layer, *layer.sublayers()])
            self.parts = parts_of(layer)
            self.record = record  # last, for other threads
        if type(layer) is nn.Sequential:
            if nn.Sequential.forward is not PADDLE_FORWARDS[nn.Sequential]:
                return None
            for part in self.parts:
                if not isinstance(part, Block):
                    x = part(x)
                else:
                    x = part([x]) if part.applies([x]) else _one_by_one(part.layers, x)
            return x
        block, *others = self.parts
        if weights and weights[0].shape != [len(layer)]:
            return None
        if not isinstance(block, Block) or not block.applies([x], *weights):
            return None
        return sum([weights[0][k] * layer[k](x) for k in others], block([x], *weights))


def _one_by_one(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def parts_of(layer):
    """Of a Sequential its parts in order, of which each is a Block, whose `layers` it stands for, or a layer. Of a
    WeightedSum a Block and the numbers of the operations that it leaves out. Of other layers a Block. A Block is None
    where nothing is known."""
    if type(layer) is nn.Sequential:
        return _parts_of_sequential(list(layer))
    if type(layer) is WeightedSum and is_known_code(WeightedSum, 'forward'):
        operations = [operation_of(op) for op in layer]
        block = Block([[Term(0, NOTHING if op is None else op, k) for k, op in enumerate(operations)]])
        if not any(isinstance(op, (list, Pooling)) for op in operations):
            return [None]
        return [block, *[k for k, op in enumerate(operations) if op is None]]
    known = type(layer) in (nn.Conv2D, FactorizedReduce, *POOLINGS)
    operation = operation_of(layer, alone=True) if known else None
    return [None if operation is None else _block(operation)]


def _block(operation):
    """The Block of an operation. That of a single convolution that is not depthwise, or of a FactorizedReduce, serves
    large inputs only."""
    smallest = 0
    if isinstance(operation, list) and len(operation) == 1:
        convolution = operation[0].convolutions[0]
        smallest = SMALLEST if convolution.depthwise is None and convolution.groups < convolution.channels else 0
    return Block([[Term(0, operation)]], smallest=smallest)


def _parts_of_sequential(layers):
    parts = []
    while layers:
        units, count = _chain(layers)
        if units:
            parts.append(_block(units))
            parts[-1].layers = layers[:count]
        else:
            parts.append(layers[0])
        layers = layers[count or 1:]
    return parts


def _chain(layers):
    """(the units at the beginning of a list of layers, how many layers they are)."""
    units, done = [], 0
    while True:
        position = done
        relu = position < len(layers) and _is_plain(layers[position], nn.ReLU)
        if relu:
            position += 1
        next_two = layers[position:position + 2]
        if len(next_two) == 2 and _is_depthwise(next_two[0]) and _is_pointwise(next_two[1], with_bias=True):
            convolution = Convolution(next_two[1], next_two[0])
            position += 2
        elif next_two and _is_convolution(next_two[0], with_bias=True):
            convolution = Convolution(next_two[0])
            position += 1
        else:
            return units, done
        norm = layers[position] if position < len(layers) and _is_norm(layers[position]) else None
        if norm is None and convolution.bias is not None:
            return units, done
        units.append(Unit(relu, [convolution], norm))
        done = position + (norm is not None)


def operation_of(op, alone=False, stride=1):
    """An operation as a Block takes it, or None where these do not cover it. stride: what that of a Zero must be.
    alone: called from the layer's replaced forward function: do not check the layer's own hooks and forward."""
    if not alone and (has_hooks(op) or vars(op).get('forward') is not None and not is_ours(vars(op)['forward'])):
        return None
    kind = type(op)
    if kind in PADDLE_FORWARDS:
        if kind.forward is not PADDLE_FORWARDS[kind]:
            return None
        if kind is nn.Sequential:
            if len(op) == 2 and type(op[0]) in POOLINGS and _is_plain(op[0], type(op[0])) and _is_norm(op[1]):
                return Pooling(*op) if _is_plain_pooling(op[0]) else None
            units, count = _chain(list(op))
            return units if units and count == len(op) else None
        if kind in POOLINGS:
            return Pooling(op) if _is_plain_pooling(op) else None
        return [Unit(False, [Convolution(op)], None)] if kind is nn.Conv2D and _is_convolution(op, alone) else None
    if _only_calls_op(op):
        return operation_of(op.op)
    if kind not in (Identity, Zero, FactorizedReduce) or not is_known_code(kind, 'forward'):
        return None
    if kind is FactorizedReduce:
        return _reduction(op)
    return IDENTITY if kind is Identity else NOTHING if op.stride == stride else None


def _only_calls_op(layer):
    """Whether forward(x) of a layer's class is `return self.op(x)`, as that of most classes in operations.py."""
    kind = type(layer)
    return (isinstance(getattr(layer, 'op', None), nn.Sequential) and is_known_code(kind, 'forward', 'ReLUConvBN')
            and kind.__call__ is nn.Layer.__call__)


def _reduction(op):
    if not (_is_plain(op.relu, nn.ReLU) and _is_norm(op.bn) and is_plain_reduction(op)
            and (op.conv_1.bias is None) == (op.conv_2.bias is None)):
        return None
    return [Unit(True, [Convolution(conv, corner=k) for k, conv in enumerate((op.conv_1, op.conv_2))], op.bn)]


def is_plain_reduction(op):
    """Whether both convolutions of a FactorizedReduce are unchanged: only weights and biases are read."""
    return all(_is_convolution(conv, with_bias=True) and list(conv.weight.shape[2:]) == [1, 1]
               and list(conv._stride) == [2, 2] and conv._updated_padding in (0, [0, 0]) and conv._groups == 1
               for conv in (op.conv_1, op.conv_2))


def _is_plain(layer, kind):
    """Whether a layer is of a class of Paddle's and computes what the class does."""
    own = vars(layer).get('forward')
    return (type(layer) is kind and kind.forward is PADDLE_FORWARDS[kind] and not has_hooks(layer)
            and (own is None or is_ours(own)))


def _is_convolution(layer, alone=False, with_bias=False):
    return (type(layer) is nn.Conv2D and (alone or _is_plain(layer, nn.Conv2D)) and layer.weight.ndim == 4
            and (with_bias or layer.bias is None) and layer._padding_mode == 'zeros' and layer._data_format == 'NCHW'
            and layer._padding_algorithm == 'EXPLICIT' and min(*layer._stride, *layer._dilation) > 0
            and layer.weight.shape[0] % layer._groups == 0 and all(layer.weight.shape)
            and (layer._updated_padding == 0 or len(layer._updated_padding) == 2
                 and all(type(p) is int and p >= 0 for p in layer._updated_padding)))


def _is_depthwise(layer):
    return _is_convolution(layer) and list(layer.weight.shape[:2]) == [layer._groups, 1]


def _is_pointwise(layer, with_bias=False):
    return _is_convolution(layer, with_bias=with_bias) and layer._groups == 1 and is_pointwise(layer)


def _is_norm(layer):
    return (_is_plain(layer, nn.BatchNorm2D) and layer._use_global_stats is None and layer._data_format == 'NCHW'
            and (layer.weight is None) == (layer.bias is None))


def _is_plain_pooling(layer):
    numbers = layer.ksize, layer.stride, layer.padding
    return (all(type(number) is int for number in numbers) and layer.data_format == 'NCHW'
            and 0 <= 2 * layer.padding <= layer.ksize and layer.stride > 0 and getattr(layer, 'exclusive', True)
            and not getattr(layer, 'return_mask', False) and getattr(layer, 'divisor', None) is None)
