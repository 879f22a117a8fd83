"""Pickles: what Paddle, numpy and the CIFAR archives hold is read; what was crafted is refused and reaches nothing."""
import collections
import io
import os
import pickle
import struct
import tracemalloc

import numpy as np
import paddle
import pytest
from conftest import ROOT

from runtime.unpickle import load_arrays

ARRAYS = {
    'float32': np.arange(6, dtype='f4').reshape(2, 3), 'Fortran': np.asfortranarray(np.arange(6.).reshape(2, 3)),
    'nothing': np.zeros((0, 3)), 'number': np.float32(3), 'no axis': np.array(5),
    'big-endian': np.arange(3, dtype='>i4'),
    'bool': np.array([True, False]), 'half': np.ones(3, 'f2'), 'strided': np.arange(10, dtype='u1')[::2],
    'list': [1, 2.5, 'x', b'y', None, True, 2**70, -5], 'one': [1], 'no bytes': b'', 'tuple': (1, (2, 'x')),
    'names': {'weight': 'linear_0.w_0'},
}
ARRAYS['the same'] = ARRAYS['float32']


def check_equal(found, expected):
    assert list(found) == list(expected) and type(found) is type(expected)
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        if isinstance(value, (np.ndarray, np.generic)):
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            assert found[name].tobytes() == value.tobytes()
        else:
            assert found[name] == value


@pytest.mark.parametrize('container', [dict, collections.OrderedDict])
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_arrays_in_plain_containers(protocol, container):
    found = load_arrays(io.BytesIO(pickle.dumps(container(ARRAYS), protocol)))
    check_equal(found, container(ARRAYS))
    assert found['the same'] is found['float32']


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_what_paddle_saves(tmp_path, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
    paddle.save(layer.state_dict(), str(tmp_path / 'a.pdparams'), protocol=protocol)
    with open(str(tmp_path / 'a.pdparams'), 'rb') as file:
        found = load_arrays(file)
    assert found.pop('StructuredToParameterName@@').keys() == layer.state_dict().keys()
    check_equal(found, {name: value.numpy() for name, value in layer.state_dict().items()})
    layer.set_state_dict(found)  # takes read-only arrays


def test_what_an_earlier_version_saved():
    path = os.path.join(ROOT, 'tests', 'data', 'old_run', 'train', 'best_model.pdparams')
    with open(path, 'rb') as file:
        check_equal(load_arrays(file), pickle.loads(open(path, 'rb').read()))


def text2(text):
    """A text as Python 2 writes it."""
    return b'U' + bytes([len(text)]) + text


def test_a_cifar_batch_of_python_2():
    dtype = (b'cnumpy\ndtype\n' + text2(b'u1') + b'K\x00K\x01\x87R(K\x03' + text2(b'|') + b'NNNJ\xff\xff\xff\xff'
             b'J\xff\xff\xff\xffK\x00tb')
    array = (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' + text2(b'b') + b'\x87Rq\x01('
             b'K\x01K\x02K\x02\x86' + dtype + b'\x89' + text2(b'\x00\x7f\x80\xff') + b'tb')
    batch = b'\x80\x02}(' + text2(b'data') + array + text2(b'labels') + b'](K\x01K\x02eu.'
    found = load_arrays(io.BytesIO(batch), encoding='bytes')
    assert found[b'data'].tolist() == [[0, 127], [128, 255]] and found[b'labels'] == [1, 2]


# ---------------------------------------------------------------------------------------------------------------------
# Crafted files
# ---------------------------------------------------------------------------------------------------------------------


class Call:
    """Pickled as a call of a function, and a state that is built onto what it gives."""

    def __init__(self, function, *arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (self.function, self.arguments) if self.state is None else (self.function, self.arguments, self.state)


def array_of(shape=(2,), dtype=np.dtype('f4'), data=bytes(8), fortran=False):
    return Call(np.core.multiarray._reconstruct, np.ndarray, (0,), b'b', state=(1, shape, dtype, fortran, data))


def encoded(depth):
    import _codecs
    value = 'a' * 100
    for _ in range(depth):
        value = Call(_codecs.encode, value, 'unicode_escape')
    return value


NESTED = b'\x80\x02K\x01q\x00' + b'h\x00h\x00\x86q\x00' * 60  # (t, t) of (t, t) ...: looking at it would take ages
CRAFTED = {
    'a call of os.system': (pickle.dumps({'w': Call(os.system, 'touch made')}), 'system'),
    'eval': (b'\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.', 'eval'),
    'an attribute of a module': (b'\x80\x04\x8c\x05numpy\x8c\x0aload.__init__\x93.', ''),
    'objects': (pickle.dumps({'w': np.array([print, 1], dtype=object)}), "type 'O8'"),
    'records': (pickle.dumps({'w': np.zeros(2, 'i4,f4')}), "type 'V8'"),
    'texts': (pickle.dumps({'w': np.array(['abc'])}), "type 'U3'"),
    'a state of a type with fields': (pickle.dumps({'w': array_of(dtype=Call(
        np.dtype, 'f4', False, True, state=(3, '<', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 0)))}),
        'not allowed'),
    'a state of a type of another size': (pickle.dumps({'w': array_of(dtype=Call(
        np.dtype, 'f4', False, True, state=(3, '<', None, None, None, 1 << 40, 1, 0)))}), 'not allowed'),
    'a state of a type with flags': (pickle.dumps({'w': array_of(dtype=Call(
        np.dtype, 'f4', False, True, state=(3, '<', None, None, None, -1, -1, 63)))}), 'not allowed'),
    'a type without a state': (pickle.dumps({'w': array_of(dtype=Call(np.dtype, 'f4', False, True))}),
                               'a _Unbuilt stands'),
    'a type of the type of a type': (pickle.dumps({'w': Call(np.dtype, Call(np.dtype, 'f4'))}), 'a _Unbuilt stands'),
    'a shape beyond the data': (pickle.dumps(array_of((1 << 30,))), 'in 8 bytes'),
    'a shape that overflows': (pickle.dumps(array_of((1 << 62, 4))), 'shape'),
    'a negative side': (pickle.dumps(array_of((-1, -2))), 'shape'),
    'a side that is a truth value': (pickle.dumps(array_of((True, 2))), 'shape'),
    'a thousand axes': (pickle.dumps(array_of((1,) * 1000)), 'shape'),
    'data that is a list': (pickle.dumps(array_of(data=[1, 2])), 'a list stands'),
    'data that is a text': (pickle.dumps(array_of(data='12345678')), 'a str stands'),
    'a state of an array built twice': (pickle.dumps(Call(
        np.core.multiarray.scalar, np.dtype('f4'), bytes(4), state=(1, (2,), np.dtype('f4'), False, bytes(8)))),
        'a float32 stands'),
    'a buffer of another size': (pickle.dumps(Call(
        np.core.numeric._frombuffer, bytearray(8), np.dtype('f4'), (3,), 'C'), 5), 'in 8 bytes'),
    'an array in no order': (pickle.dumps(Call(
        np.core.numeric._frombuffer, bytearray(8), np.dtype('f4'), (2,), 'K'), 5), 'order'),
    'a number of another size': (pickle.dumps(Call(np.core.multiarray.scalar, np.dtype('f8'), bytes(4))), 'in 4 bytes'),
    'nested encodes': (pickle.dumps(encoded(20)), 'latin1'),
    'a text encoded again and again': (  # 1,000 characters, 500 times
        b'\x80\x02X\xe8\x03\x00\x00' + b'a' * 1000 + b'q\x00X\x06\x00\x00\x00latin1q\x01c_codecs\nencode\nq\x02('
        + b'h\x02h\x00h\x01\x86R' * 500 + b't.', 'more of it'),
    'nested tuples as a key': (NESTED + b'}h\x00K\x01s.', 'a tuple stands'),
    'nested tuples as a name': (NESTED + b'h\x00\x93.', 'a tuple stands'),
    'nested tuples as a type': (NESTED + b'cnumpy\ndtype\nh\x00\x85R.', 'a tuple stands'),
    'nested lists': (b'\x80\x02' + b']' * 100000 + b'a' * 99999 + b'.', 'a list in it'),
    'a list in itself': (b'\x80\x02]q\x00h\x00a.', 'a list in it'),
    'numbers as keys': (pickle.dumps({i * (2**61 - 1): 0 for i in range(10)}), 'a int stands'),
    'a large place in the memo': (b'\x80\x02K\x01r\xff\xff\xff\xff.', None),
    'a length of 2^62': (b'\x80\x04\x8e' + struct.pack('<Q', 1 << 62) + b'x.', ''),
    'a text of 4 GB': (b'\x80\x04X\xff\xff\xff\xfex.', ''),
    'a frame of 2^63': (b'\x80\x04\x95' + struct.pack('<Q', 1 << 63) + b'K\x01.', None),
    'an operation that does not exist': (b'\x80\x02\xff.', ''),
    'a persistent name': (b'\x80\x02U\x01aQ.', 'BINPERSID'),
    'an extension': (b'\x80\x02\x82\x01.', 'EXT1'),
    'an instance': (b'\x80\x02(ios\nsystem\n.', 'INST'),
    'an object of a class': (b'\x80\x02cnumpy\ndtype\n)\x81.', 'NEWOBJ'),
    'a state of a function': (b'\x80\x02cnumpy\ndtype\n}b.', 'a dict stands'),
    'a call of a number': (b'\x80\x02K\x01)R.', 'a int stands'),
    'no arguments': (b'\x80\x02cnumpy\ndtype\n)R.', 'argument'),
    'an empty stack': (b'\x80\x02.', ''),
    'no mark': (b'\x80\x02}u.', ''),
    'an unknown place': (b'\x80\x02h\x07.', ''),
    'nothing': (b'', ''),
}


@pytest.mark.parametrize('name', sorted(CRAFTED))
def test_crafted_pickles_are_refused(tmp_path, monkeypatch, name):
    """Or read as what they are where the message is None; within time and memory proportional to the file."""
    content, message = CRAFTED[name]
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        if message is None:
            assert load_arrays(io.BytesIO(content)) == 1
        else:
            with pytest.raises(ValueError) as error:
                load_arrays(io.BytesIO(content))
            assert message in str(error.value) and len(str(error.value).splitlines()) == 1
            assert 0 < len(str(error.value)) < 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6 + 100 * len(content)
    assert os.listdir(str(tmp_path)) == []


def test_damaged_pickles_are_one_line():
    """Cut at every byte, and with every byte changed: an array or a ValueError, never anything else."""
    whole = pickle.dumps({'w': np.arange(4, dtype='f4'), 'n': np.int64(3)}, 2)
    refused = 0
    for place in range(len(whole)):
        changed = [whole[:place]] + [whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1:]
                                     for bit in (1, 2, 32, 128)]
        for content in changed:
            try:
                load_arrays(io.BytesIO(content))
            except ValueError as error:
                refused += 1
                assert len(str(error).splitlines()) == 1
    assert refused > len(whole)


def test_too_many_bytes_and_too_many_operations(monkeypatch):
    whole = pickle.dumps([1] * 100)
    with pytest.raises(ValueError, match='it has more than the 50 bytes that are allowed'):
        load_arrays(io.BytesIO(whole), max_bytes=50)
    monkeypatch.setattr('runtime.unpickle.MAX_OPERATIONS', 50)
    with pytest.raises(ValueError, match='it has more than 50 operations'):
        load_arrays(io.BytesIO(whole))
