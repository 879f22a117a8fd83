"""Reading pickles of numpy arrays in plain containers without calling anything that they name.

pickletools takes a file apart into its operations, and a small machine of our own carries out those that such a file
needs. What a pickle calls stands for one of the functions below; numpy's own ways of restoring an array, which trust
the file with sizes and pointers, are never called. Time and memory are proportional to the size of the file.
"""
import collections
import math
import pickletools
from types import FunctionType

import numpy as np

MAX_BYTES = 1 << 30
MAX_OPERATIONS = 2 * 10**6  # of up to 100 bytes each; a batch of CIFAR-100 has 200,000
NUMBERS = 'b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8'.split()
SCALARS = (type(None), bool, int, float, str, bytes, np.generic)


def load_arrays(file, encoding='ASCII', max_bytes=MAX_BYTES):
    """Unpickle an open file of numbers, texts and numpy arrays in dictionaries, lists and tuples, protocols 2 to 5.

    encoding: of the texts of Python 2; 'bytes' leaves them as bytes. Arrays may be read-only.
    Raises ValueError with what is wrong in one line, also for a file of more than max_bytes.
    """
    try:
        begin = file.tell()
        size = file.seek(0, 2) - begin
        file.seek(begin)
        if size > max_bytes:
            raise ValueError(f'it has more than the {max_bytes:,} bytes that are allowed')
        return _Machine(file, size, encoding).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError((str(error) or type(error).__name__).splitlines()[0])


class _Bounded:
    """A file whose read() allocates no more than the file holds, whatever length a pickle claims."""

    def __init__(self, file, size):
        self.file, self.size, self.readline = file, size, file.readline

    def read(self, size):
        return self.file.read(min(size, self.size))


class _Unbuilt:
    """A type (with its code) or an array between the call that makes it and the state that completes it; it is
    replaced in the memo, at `places`, then."""

    def __init__(self, code=None):
        self.code, self.places = code, []


class _Machine:
    """Carries out the operations of a pickle: a stack, the marks in it, and the memo."""

    def __init__(self, file, size, encoding):
        self.operations = pickletools.genops(_Bounded(file, size))
        self.encoding = encoding
        self.uncopied = size  # the bytes that may still be made of texts, each of which the memo can give many times
        self.stack, self.marks, self.memo = [], [], {}

    def load(self):
        for count, (operation, argument, _) in enumerate(self.operations):
            if count == MAX_OPERATIONS:
                raise ValueError(f'it has more than {MAX_OPERATIONS:,} operations')
            if operation.name == 'STOP':
                return self.stack.pop()
            if operation.name in _VALUES:
                self.stack.append(argument)
            elif operation.name in _STEPS:
                _STEPS[operation.name](self, argument)
            elif operation.name not in ('PROTO', 'FRAME'):
                raise ValueError(f'it has the pickle operation {operation.name}, which no file of this kind needs')

    def since_mark(self):
        return self.last(len(self.stack) - self.marks.pop())

    def last(self, count):
        """Take the last values from the stack, a tuple."""
        return tuple([self.stack.pop() for _ in range(count)][::-1])

    def put(self, place):
        place = len(self.memo) if place is None else place
        self.memo[place] = self.stack[-1]
        if isinstance(self.stack[-1], _Unbuilt):
            self.stack[-1].places.append(place)

    def text(self, text):
        raw = text.encode('latin-1')  # pickletools decodes with it
        self.stack.append(raw if self.encoding == 'bytes' else raw.decode(self.encoding))

    def append(self, values):
        if not all(isinstance(value, SCALARS) for value in values):
            raise ValueError('a list in it holds more than numbers and texts')
        _checked(list, self.stack[-1]).extend(values)

    def set_items(self, values):
        keys = [_checked((str, bytes), key) for key in values[::2]]
        _checked(dict, self.stack[-1]).update(zip(keys, values[1::2]))

    def find(self, name):
        if name not in _FUNCTIONS:
            raise ValueError(f'it asks for {name.replace(" ", "."):.80}, which no file of this kind needs: refused')
        self.stack.append(_FUNCTIONS[name])

    def call(self, _):
        arguments, function = _checked(tuple, self.stack.pop()), _checked(FunctionType, self.stack.pop())
        self.stack.append(function(self, *arguments))

    def build(self, _):
        state, unbuilt = _checked(tuple, self.stack.pop()), _checked(_Unbuilt, self.stack.pop())
        if unbuilt.code is None:
            _, shape, dtype, fortran, data = state
            value = _array(data, dtype, shape, 'F' if fortran else 'C')
        else:
            version, order, *rest = state
            if version != 3 or _text(order) not in ('<', '>', '|', '=') or rest != [None] * 3 + [-1, -1, 0]:
                raise ValueError('it describes a type of numbers that is not allowed')
            value = np.dtype(unbuilt.code).newbyteorder(_text(order))
        for place in unbuilt.places:
            self.memo[place] = value
        self.stack.append(value)

    # What a pickle may call, with its arguments:

    def dtype(self, code, align=False, copy=False):
        if _text(code) not in NUMBERS:
            raise ValueError(f'it holds values of the type {_text(code)!r:.40}, which is not allowed')
        return _Unbuilt(_text(code))

    def reconstruct(self, kind, shape, code):
        return _Unbuilt()  # always an array, whatever the class

    def frombuffer(self, data, dtype, shape, order):
        return _array(data, dtype, shape, _text(order))

    def scalar(self, dtype, data):
        return _array(data, dtype, (), 'C')[()]

    def encode(self, text, encoding):
        self.uncopied -= len(_checked(str, text))
        if encoding not in ('latin1', 'latin-1') or self.uncopied < 0:
            raise ValueError('it encodes text in another way than latin1, or more of it than it holds')
        return text.encode('latin-1')


def _array(data, dtype, shape, order):
    """The array of a buffer, which it shares. Raises ValueError for a buffer of another size."""
    if (any(type(side) is not int or not 0 <= side < 1 << 40 for side in _checked(tuple, shape)) or len(shape) > 32
            or order not in ('C', 'F')):
        raise ValueError('the shape or the order of an array in it is none')
    if len(_checked((bytes, bytearray), data)) != math.prod(shape) * _checked(np.dtype, dtype).itemsize:
        raise ValueError(f'it holds an array {list(shape)} of {dtype} in {len(data):,} bytes')
    return np.ndarray(shape, dtype, buffer=data, order=order)


def _checked(types, value):
    """The value, of one of the types. Others are never compared or printed: that of nested tuples can take ages."""
    if not isinstance(value, types):
        raise ValueError(f'a {type(value).__name__} stands in it where none can be')
    return value


def _text(value):
    value = _checked((str, bytes), value)
    return value.decode('latin-1') if isinstance(value, bytes) else value


# The operations by the names of pickletools: those that put their argument on the stack, and those that do more.
_VALUES = {'BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT', 'SHORT_BINUNICODE', 'BINUNICODE',
           'BINUNICODE8', 'SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8'}
_STEPS = {
    **{name: lambda machine, _, kind=kind: machine.stack.append(kind()) for name, kind in (
        ('NONE', lambda: None), ('NEWTRUE', lambda: True), ('NEWFALSE', lambda: False), ('EMPTY_TUPLE', tuple),
        ('EMPTY_LIST', list), ('EMPTY_DICT', dict))},
    'MARK': lambda machine, _: machine.marks.append(len(machine.stack)),
    **dict.fromkeys(('BINPUT', 'LONG_BINPUT', 'MEMOIZE'), _Machine.put),
    **dict.fromkeys(('BINGET', 'LONG_BINGET'), lambda machine, place: machine.stack.append(machine.memo[place])),
    **dict.fromkeys(('SHORT_BINSTRING', 'BINSTRING'), _Machine.text),
    'TUPLE': lambda machine, _: machine.stack.append(machine.since_mark()),
    **{f'TUPLE{n}': lambda machine, _, n=n: machine.stack.append(machine.last(n)) for n in (1, 2, 3)},
    'APPEND': lambda machine, _: machine.append(machine.last(1)),
    'APPENDS': lambda machine, _: machine.append(machine.since_mark()),
    'SETITEM': lambda machine, _: machine.set_items(machine.last(2)),
    'SETITEMS': lambda machine, _: machine.set_items(machine.since_mark()),
    'GLOBAL': _Machine.find, 'STACK_GLOBAL': lambda machine, _: machine.find(' '.join(map(_text, machine.last(2)))),
    'REDUCE': _Machine.call, 'BUILD': _Machine.build,
}

# 'module name' of what a pickle may name, as Python 2 and 3 and numpy 1 and 2 write it.
_FUNCTIONS = {
    **{f'numpy.{core}.{name}': function for core in ('core', '_core') for name, function in (
        ('multiarray _reconstruct', _Machine.reconstruct), ('multiarray scalar', _Machine.scalar),
        ('numeric _frombuffer', _Machine.frombuffer))},
    'numpy dtype': _Machine.dtype, 'numpy ndarray': None, '_codecs encode': _Machine.encode,
    **dict.fromkeys(('builtins bytes', '__builtin__ bytes'), lambda machine: b''),
    'collections OrderedDict': lambda machine: collections.OrderedDict(),
}
