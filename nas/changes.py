"""Noticing what a user changes in a network: layers, their settings, their code.

Accelerated code must notice when the layer that it reproduces was changed. A Record says whether it is still
as it was, is_known_code whether a class's function is the one that is reproduced.
"""
import hashlib
import inspect
import io
import itertools
import operator
import tokenize

import paddle.nn as nn

from operations import DilConv, DropPath, FactorizedReduce, Identity, ReLUConvBN, SepConv, Zero

# The code that nas/cells.py, nas/fused.py and nas/layers.py reproduce; TrainedCell is model.Cell. After a change of one
# of these functions that keeps the numbers, or that you made in these files too, write the new fingerprint here:
# `pytest tests/test_acceleration.py -k edited_definition` fails then and prints it. Until then the changed code runs as
# it is written.
FINGERPRINTS = {
    'Cell.forward': 'da648bef31d3a90c',
    'MixedOp.forward': '8a258ceb15fc7ce5',
    'MixedOp.mix': '64435eb3f096096f',
    'GraphCell.forward': '64ced92689621d21',
    'Edge.mix': '97c477cd210d6b44',
    'SepConv.forward': '328d051d57914cbf',
    'DilConv.forward': '328d051d57914cbf',
    'ReLUConvBN.forward': '328d051d57914cbf',
    'Conv7x1.forward': '328d051d57914cbf',
    'WeightedSum.forward': '21ee5cbd7fd555f8',
    'Identity.forward': 'fb8a02517829d9de',
    'Zero.forward': 'ae3d4f4e76974782',
    'FactorizedReduce.forward': '0a3858cbb8f3dc12',
    'DropPath.forward': '484a885168307213',
    'DropPath.factors': 'e0a4d0be1cd58c53',
    'TrainedCell.forward': '39dfbc3a30fc8d5d',
    'TrainedCell._edge': '035353fd8e2faad9',
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
    Zero: ('forward', 'stride'),
    DropPath: ('forward', 'factors'),
    **dict.fromkeys((nn.ReLU, nn.Sequential, nn.LayerList, SepConv, DilConv, ReLUConvBN, FactorizedReduce, Identity),
                    ('forward',)),
}
OTHER_SETTINGS = ('forward', 'mix', '_edge', 'method', '_steps', '_multiplier', 'mp', 'auxiliary_op', '_concat',
                 '_indices', '_is_edge', 'graph')  # of all other layers

FUNCTIONS = 'forward', 'mix', '_edge', 'factors'  # of a class, likewise


def has_hooks(layer):
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


class Record:
    """What the result of a cell depends on, as it was when the record was made: classes and their functions, hooks,
    parts, parameters and settings of all layers."""

    def __init__(self, layers):
        self.layers, self.functions = layers, [(kind, name) for kind in set(map(type, layers)) for name in FUNCTIONS]
        self.attributes = [vars(layer) for layer in layers]
        pairs = [(values, key) for layer, values in zip(layers, self.attributes)
                 for key in SETTINGS.get(type(layer), OTHER_SETTINGS)]
        self.settings = [values for values, _ in pairs], [key for _, key in pairs]
        self.state = self._state()
        self.state[0] = [list(value) if isinstance(value, list) else value for value in self.state[0]]

    def _state(self):
        """Lists of everything that must stay as it is: what is compared by value, what must be the same object. Called
        at every forward pass, for hundreds of layers, therefore without loops in Python."""
        parts, parameters, buffers, *hooks = [list(map(operator.itemgetter(name), self.attributes)) for name in (
            '_sub_layers', '_parameters', '_buffers', '_forward_pre_hooks', '_forward_post_hooks')]
        members = parts + parameters + buffers
        return [list(map(dict.get, *self.settings)) + list(map(len, sum(hooks, members))),
                [*map(type, self.layers), *[getattr(kind, name, None) for kind, name in self.functions],
                 *itertools.chain.from_iterable(map(dict.values, members))]]

    def is_current(self):
        """Whether nothing has changed."""
        (values, objects), (old_values, old_objects) = self._state(), self.state
        return values == old_values and all(map(operator.is_, objects, old_objects))


_known_code = {}


def is_known_code(kind, name, role=None):
    """Whether a class's function is the one of the fingerprint."""
    function = getattr(kind, name, None)
    key = function, role or kind.__name__, name
    if key not in _known_code:
        _known_code[key] = fingerprint(function) == FINGERPRINTS.get(f'{key[1]}.{name}', '')
    return _known_code[key]


def fingerprint(function):
    """A digest of a function's code without comments, docstring and spaces; None where there is no source, and for what
    functools.wraps has made."""
    if hasattr(function, '__wrapped__'):  # of which inspect would give the source
        return None
    try:
        source = inspect.getsource(function)
        tokens = list(tokenize.generate_tokens(io.StringIO(inspect.cleandoc('\n' + source)).readline))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return None
    words, line_begins = [], False
    for token, following in zip(tokens, tokens[1:]):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            words += [] if token.type == tokenize.NEWLINE else [tokenize.tok_name[token.type]]
            line_begins = True
            continue
        if not (token.type == tokenize.STRING and line_begins and following.type in (tokenize.NEWLINE,
                                                                                     tokenize.COMMENT)):
            words.append(token.string)  # a string that is a statement is a docstring
        line_begins = False
    return hashlib.sha256(' '.join(words).encode()).hexdigest()[:16]
