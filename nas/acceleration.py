"""accelerate(network): compute a network faster, attached from outside; its definition knows nothing of it.

Two things are replaced, each by an attribute `forward` of the one layer concerned, so that the layer's class stays as
it is:

    single layers   depthwise and pointwise convolutions (kernels/convolutions.py), and FactorizedReduce
    cells           of the supernet in model_search.py: all edges that leave a state at once (nas/fused.py)

What is computed must be what the network's author wrote. So a cell is computed together only while its code is the
code that nas/fused.py reproduces, and that is checked at every forward pass: classes and their `forward` and `mix`,
attributes of that name, hooks, the identity of all operations and parameters, the settings of convolutions, poolings
and batch norms. An operation that is not known or was changed runs as it is written beside the others; a cell that was
changed runs as it is written altogether. The log says so once, by name.
"""
import hashlib
import inspect
import io
import operator
import tokenize
import types

import paddle
import paddle.nn as nn

from kernels import compiled, convolutions
from nas import fused
from operations import FactorizedReduce, Zero
from runtime.log import logger
from runtime.parallel import cpu_threads

# The code that nas/fused.py reproduces. After a change of one of these functions that keeps the numbers, or that
# fused.py follows, write the fingerprint that tests/test_acceleration.py prints here; until then the changed code runs
# as it is written.
FINGERPRINTS = {
    'Cell.forward': '0276371a5382aec7',
    'MixedOp.forward': '80225719fe3e19af',
    'MixedOp.mix': 'c36e881e2d1972e6',
    'SepConv.forward': 'cfb5c60473912449',
    'DilConv.forward': 'cfb5c60473912449',
    'Identity.forward': '2ad28df564e48978',
    'Zero.forward': '422c15c9d64f2f13',
    'FactorizedReduce.forward': '25008990db38e1c4',
}

# Paddle's own layers as they are when this module is imported.
PADDLE_FORWARDS = {kind: kind.forward for kind in (nn.Conv2D, nn.BatchNorm2D, nn.ReLU, nn.Sequential, nn.MaxPool2D,
                                                   nn.AvgPool2D)}

# The attributes on which the result of a layer depends.
SETTINGS = {
    nn.Conv2D: ('forward', '_stride', '_updated_padding', '_padding_algorithm', '_dilation', '_groups', '_padding_mode',
                '_data_format', 'bias'),
    nn.BatchNorm2D: ('forward', '_momentum', '_epsilon', '_use_global_stats', '_data_format', 'weight', 'bias'),
    nn.MaxPool2D: ('forward', 'ksize', 'stride', 'padding', 'ceil_mode', 'return_mask', 'data_format'),
    nn.AvgPool2D: ('forward', 'ksize', 'stride', 'padding', 'ceil_mode', 'exclusive', 'divisor', 'data_format'),
    nn.ReLU: ('forward',),
    Zero: ('forward', 'stride'),
}
CELL_SETTINGS = ('forward', 'mix', 'method', '_steps', '_multiplier', 'mp', 'auxiliary_op')  # of all other layers


def accelerate(network):
    """Speed up a network in place and return it. Calling it again after a change of the network takes in what is new.

    network: any paddle.nn.Layer. On a CPU in single precision compiled loops are used; elsewhere fewer, larger
    operations of Paddle. The numbers are those of the plain network up to rounding. The log says what is accelerated
    and what is not.
    """
    counts = {'convolutions': 0, 'reductions': 0, 'cells': 0}
    for layer in network.sublayers(include_self=True):
        if 'forward' in vars(layer):
            continue
        if type(layer) is nn.Conv2D and _is_compiled_convolution(layer):
            layer.forward = types.MethodType(_convolution_forward, layer)
            counts['convolutions'] += 1
        elif type(layer) is FactorizedReduce:
            layer.forward = types.MethodType(_reduction_forward, layer)
            counts['reductions'] += 1
        elif _looks_like_a_cell(layer):
            layer.forward = types.MethodType(_cell_forward, layer)
            counts['cells'] += 1
    if any(counts.values()):
        logger.info('acceleration: %d cells by source state, %d depthwise and pointwise convolutions, '
                    '%d strided skip connections; %s',
                    counts['cells'], counts['convolutions'], counts['reductions'], compiled.why_not
                    if compiled.numba is None
                    else f'compiled loops on {cpu_threads()} cores where the device is a CPU and the precision float32')
    said = set()
    for name, layer in network.named_sublayers(include_self=True):
        if _looks_like_a_cell(layer):
            layer._acceleration = CellAcceleration(name, said)
            layer._acceleration.update(layer)
    return network


# ---------------------------------------------------------------------------------------------------------------------
# Single layers
# ---------------------------------------------------------------------------------------------------------------------


def _is_compiled_convolution(layer):
    depthwise = list(layer.weight.shape[:2]) == [layer._groups, 1] and convolutions.is_square(layer)
    return depthwise or layer._groups == 1 and convolutions.is_pointwise(layer)


def _convolution_forward(self, x):
    out = convolutions.conv2d(x, self) if type(self).forward is PADDLE_FORWARDS[nn.Conv2D] else None
    return type(self).forward(self, x) if out is None else out


def _reduction_forward(self, x):
    if (paddle.in_dynamic_mode() and _is_known_code(FactorizedReduce, 'forward') and type(self) is FactorizedReduce
            and x.ndim == 4 and x.shape[1] == self.conv_1.weight.shape[1] and _is_plain_reduction(self)):
        return self.bn(fused.reduce_together([self], self.relu(x)))
    return type(self).forward(self, x)


def _is_plain_reduction(layer):
    """Whether both convolutions of a FactorizedReduce are unchanged: reduce_together reads only weights and biases."""
    return all(type(conv) is nn.Conv2D and type(conv).forward is PADDLE_FORWARDS[nn.Conv2D] and not _has_hooks(conv)
               and vars(conv).get('forward') is None and list(conv._stride) == [2, 2]
               and conv._groups == 1 and conv._updated_padding in (0, [0, 0]) and list(conv.weight.shape[2:]) == [1, 1]
               and conv._padding_mode == 'zeros' and conv._data_format == 'NCHW'
               for conv in (layer.conv_1, layer.conv_2))


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------


def _looks_like_a_cell(layer):
    """Whether a layer has the parts of model_search.Cell. What it computes is looked at later."""
    edges = getattr(layer, '_ops', None)
    parts = ('preprocess0', 'preprocess1', '_steps', '_multiplier')
    if not isinstance(edges, nn.LayerList) or not len(edges) or not all(hasattr(layer, name) for name in parts):
        return False
    return all(isinstance(getattr(edge, '_ops', None), nn.LayerList) and hasattr(edge, 'method') for edge in edges)


def _cell_forward(self, *args, **kwargs):
    acceleration = vars(self).get('_acceleration')
    edges = None
    if acceleration is not None and paddle.in_dynamic_mode():
        edges = acceleration.fused_edges(self, args, kwargs)
    if edges is None:
        return type(self).forward(self, *args, **kwargs)
    return _fused_forward(self, edges, *args, **kwargs)


def _fused_forward(self, fused_edges, s0, s1, weights, edge_weights=None, active=None):
    """Cell.forward of model_search.py, by source state."""
    nodes = fused_edges.nodes(self.preprocess0(s0), self.preprocess1(s1), weights, edge_weights, active)
    return paddle.concat(nodes[-self._multiplier:], axis=1)


class CellAcceleration:
    """Decides for one cell, at every forward pass, whether and how it is computed by source state.

    name: of the cell, for the log. said: the lines that were logged for the network, shared by its cells.
    """

    def __init__(self, name, said):
        self.name, self.said = name, said
        self.edges, self.record = None, None

    def __deepcopy__(self, memo):
        return CellAcceleration(self.name, self.said)  # the copy looks at the copied cell

    def fused_edges(self, cell, args, kwargs):
        """The FusedCell to use for this call, or None to run the cell as it is written."""
        if len(args) < 3:
            return None
        if self.record is None or not self.record.is_current():
            self.update(cell)
        if self.edges is None or not self._one_mode() or _normalises_single_values(cell, args[1]):
            return None
        return self.edges

    def _one_mode(self):
        """Whether all batch norms that are computed together are in one mode, training or evaluation."""
        modes = {norm.training for norm in self.norms}
        if len(modes) > 1:
            self._say(f'{self.name}: its batch norms are partly in evaluation mode: run as written')
        return len(modes) <= 1

    def update(self, cell):
        """Look at the cell as it is now."""
        self.edges = None
        self.record = Record(_layers_without_inputs(cell))
        reason = _reason_against(cell)
        if reason:
            self._say(f'{reason}: run as written')
            return
        unknown = {}
        names = list(cell._ops[0].method.primitives) + ['auxiliary skip connection']

        def is_known(op):
            why = _reason_against_operation(op)
            if why:
                unknown[id(op)] = why
            return not why
        self.edges = fused.FusedCell(list(cell._ops), cell._steps, is_known)
        if not any(edges.norm_places[kind] for edges in self.edges.outgoing for kind in range(4)):
            self.edges = None  # nothing that is computed faster together
            return
        self.norms = [norm for op in _operations(cell) if id(op) not in unknown for norm in op.sublayers()
                      if isinstance(norm, nn.BatchNorm2D)]
        for column in sorted({column for edges in self.edges.outgoing for _, column, _ in edges.others}):
            why = sorted({unknown.get(id(op), 'differs from edge to edge') for edges in self.edges.outgoing
                          for _, other, op in edges.others if other == column})
            states = sum(any(other == column for _, other, _ in edges.others) for edges in self.edges.outgoing)
            name = names[column] if column < len(names) else column
            self._say(f'{name} {", ".join(why)}: on the edges of {states} states it '
                      'runs as written beside the other operations')

    def _say(self, text):
        if text not in self.said:
            self.said.add(text)
            logger.info('acceleration: %s', text)


def _normalises_single_values(cell, s1):
    """Whether a batch norm of the cell sees one value per channel: Paddle then returns its input, which a weight must
    still scale."""
    n, _, h, w = s1.shape
    halved = any(mixed.mp is not None for mixed in cell._ops)
    return n * (-(-h // 2) * -(-w // 2) if halved else h * w) <= 1


def _operations(cell):
    return [op for mixed in cell._ops for op in [*mixed._ops, mixed.auxiliary_op] if op is not None]


def _layers_without_inputs(cell):
    """The cell and all its layers but those of the preprocessing, which are called as layers."""
    return [cell, cell._ops, *cell._ops.sublayers()]


def _reason_against(cell):
    """Why a cell cannot be computed by source state, or None."""
    edges = sum(2 + node for node in range(cell._steps))
    mixed_types = {type(mixed) for mixed in cell._ops}
    for kind, names in [(type(cell), ['forward'])] + [(kind, ['forward', 'mix']) for kind in mixed_types]:
        for name in names:
            role = 'Cell' if kind is type(cell) else 'MixedOp'
            if not _is_known_code(kind, name, role):
                return f'{kind.__name__}.{name} differs from the definition that is known here'
    for layer in cell._ops:
        if _has_hooks(layer) or 'forward' in vars(layer) or 'mix' in vars(layer):
            return f'{type(layer).__name__} has hooks or functions of its own'
    if len(cell._ops) != edges or len({(len(mixed._ops), mixed.auxiliary_op is None) for mixed in cell._ops}) != 1:
        return f'{type(cell).__name__} has another number of edges or operations than the definition'
    if len({id(mixed.method) for mixed in cell._ops}) != 1:
        return 'the edges have different methods'
    return None


def _reason_against_operation(op):
    """Why one operation cannot be computed with the others, or None."""
    if not fused.is_supported(op):
        return f'({type(op).__name__}) is not known'
    for layer in op.sublayers(include_self=True):
        if _has_hooks(layer) or vars(layer).get('forward') is not None and not _is_ours(vars(layer)['forward']):
            return 'has hooks or a forward function of its own'
        known = PADDLE_FORWARDS.get(type(layer))
        if known is None and not _is_known_code(type(layer),
                                                'forward') or known is not None and type(layer).forward is not known:
            return f'{type(layer).__name__}.forward differs from the definition that is known here'
        if isinstance(layer, nn.BatchNorm2D) and (layer._use_global_stats or layer.weight is not None
                                                  or layer.bias is not None
                                                  or layer._data_format != 'NCHW'):
            return 'has a batch norm with trainable parts or global statistics'
    if type(op) is FactorizedReduce and not _is_plain_reduction(op):
        return 'has other convolutions'
    return None


def _is_ours(forward):
    return getattr(forward, '__func__', None) in (_convolution_forward, _reduction_forward)


def _has_hooks(layer):
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


# ---------------------------------------------------------------------------------------------------------------------
# Noticing changes
# ---------------------------------------------------------------------------------------------------------------------


class Record:
    """What the result of a cell depends on, as it was when the record was made: classes and their functions, hooks,
    parts, parameters and settings of all layers."""

    def __init__(self, layers):
        self.functions = {(kind, name): getattr(kind, name, None)
                          for kind in map(type, layers) for name in ('forward', 'mix')}
        self.layers = []
        for layer in layers:
            values, keys = vars(layer), SETTINGS.get(type(layer), CELL_SETTINGS)
            settings = tuple(list(value) if isinstance(value, list) else value for value in map(values.get, keys))
            self.layers.append((layer, type(layer), values, list(values['_sub_layers'].values()),
                                list(values['_parameters'].values()), keys, settings, _has_hooks(layer)))

    def is_current(self):
        """Whether nothing has changed. Called at every forward pass, for hundreds of layers."""
        for (kind, name), function in self.functions.items():
            if getattr(kind, name, None) is not function:
                return False
        for layer, kind, values, parts, parameters, keys, settings, hooks in self.layers:
            if (layer.__class__ is not kind or tuple(map(values.get, keys)) != settings
                    or (values['_sub_layers'] or parts) and list(values['_sub_layers'].values()) != parts
                    or bool(values['_forward_pre_hooks'] or values['_forward_post_hooks']) is not hooks):
                return False
            if parameters or values['_parameters']:
                present = values['_parameters'].values()
                if len(present) != len(parameters) or not all(map(operator.is_, present, parameters)):
                    return False
        return True


_known_code = {}


def _is_known_code(kind, name, role=None):
    """Whether a class's function is the one of the fingerprint."""
    function = getattr(kind, name, None)
    key = function, role or kind.__name__, name
    if key not in _known_code:
        _known_code[key] = fingerprint(function) == FINGERPRINTS.get(f'{key[1]}.{name}', '')
    return _known_code[key]


def fingerprint(function):
    """A digest of a function's code without comments, docstring and spaces; None where there is no source."""
    try:
        source = inspect.getsource(function)
        tokens = list(tokenize.generate_tokens(io.StringIO(inspect.cleandoc('\n' + source)).readline))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return None
    words, after_colon = [], False
    for token in tokens:
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        if token.type == tokenize.STRING and after_colon:
            continue  # a docstring, or another string that is a statement
        words.append(token.string)
        after_colon = token.string == ':'
    return hashlib.sha256(' '.join(words).encode()).hexdigest()[:16]
