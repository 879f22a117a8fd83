"""Hostile and incomplete CIFAR archives and folders: a line for each, whatever they ask for."""
import gzip
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT, WAIT, arguments, read
from test_reader import batch, cifar10_members, write_archive

import reader
from pipeline import archives
from runtime.errors import UserError


def refused(path, message, data_name='data_batch'):
    with pytest.raises(UserError) as error:
        reader.cifar10_reader(archives.cifar_archive('cifar10', str(path)), data_name, False, arguments())
    text = str(error.value)
    assert message in text and str(path) in text and '\n' not in text, text


def write_folder(folder, members):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Which members
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('more', ['data_batch_1 (copy)', 'data_batch_1.bak', 'data_batch_6', 'data_batch_10',
                                  'old_data_batch_1', 'test_batch~', 'train.log', 'batches.meta'])
def test_only_files_of_the_exact_names_are_read(tmp_path, more):
    """A copy would put an image into both halves of a search."""
    members = dict(cifar10_members(2), **{f'x/{more}': batch(3)})
    for path in (write_folder(tmp_path / 'folder', members) / 'x', write_archive(tmp_path / 'a.tar.gz', members)):
        assert len(reader.cifar10_reader(str(path), 'data_batch', False, arguments())) == 10
        assert len(reader.cifar10_reader(str(path), 'test_batch', False, arguments())) == 2


def test_cifar100_beside_a_log(tmp_path):
    fine = batch(2, labels=None, fine_labels=[99, 0])
    folder = write_folder(tmp_path, {'train': fine, 'test': fine, 'train.log': b'text', 'train (1)': fine, 'meta': b''})
    args = arguments(dataset='cifar100', data=str(folder))
    assert len(read(reader.train_valid(2, True, True, args))[1]) == 2
    (folder / 'train').write_bytes(batch(2, labels=None, fine_labels=[100, 0]))
    with pytest.raises(UserError, match='train is not a CIFAR batch: it holds the label 100; labels are 0 to 99'):
        reader.train_valid(2, True, True, args)


def test_missing_and_repeated_batches(tmp_path):
    members = cifar10_members()
    del members['x/data_batch_3'], members['x/data_batch_5']
    for path in (write_folder(tmp_path / 'folder', members), write_archive(tmp_path / 'a.tar.gz', members)):
        refused(path, 'holds data_batch_1, data_batch_2, data_batch_4, but no data_batch_3, data_batch_5')
    members = dict(cifar10_members(), **{'y/data_batch_2': batch(3)})
    for path in (write_folder(tmp_path / 'twice', members), write_archive(tmp_path / 'b.tar.gz', members)):
        refused(path, 'holds data_batch_2 twice, the second time as y/data_batch_2')


def test_an_archive_in_any_order_reads_as_in_order(tmp_path):
    members = {f'x/data_batch_{n}': batch(n + 1, data=np.full((n + 1, 3072), n, 'uint8')) for n in range(1, 6)}
    names = sorted(members)
    for number, order in enumerate((names, names[::-1], random.Random(0).sample(names, 5))):
        path = write_archive(tmp_path / f'{number}.tar.gz', {name: members[name] for name in order})
        pairs = reader.cifar10_reader(path, 'data_batch', False, arguments())
        assert [int(image[0, 0, 0]) for image, _ in pairs] == [n for n in range(1, 6) for _ in range(n + 1)]
        assert [label for _, label in pairs] == [label for n in range(1, 6) for label in range(n + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# What a member holds
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('changes, message', [
    ({'labels': [0, -1, 2, 3]}, 'the label -1; labels are 0 to 9'), ({'labels': [0, 10, 2, 3]}, 'the label 10'),
    ({'labels': [0, 2**40, 2, 3]}, 'the label 1099511627776'), ({'labels': [0, 2**80, 2, 3]}, 'N labels'),
    ({'labels': [0, 0.7, 2, 3]}, 'N labels'), ({'labels': [[0], [1], [2], [3]]}, 'is not a CIFAR batch'),
    ({'labels': np.zeros((4, 10), 'int64')}, 'N labels'), ({'labels': 3}, 'N labels'),
    ({'data': np.zeros((4, 3, 32, 32), 'uint8')}, 'data [N, 3072]'), ({'data': np.zeros((4, 784), 'uint8')}, 'N, 3072'),
    ({'data': np.zeros((4, 3072), 'float32')}, 'of uint8'), ({'data': [[0] * 3072] * 4}, 'is not a CIFAR batch'),
    ({'data': np.zeros((0, 3072), 'uint8'), 'labels': []}, 'is not a CIFAR batch'), ({'data': None}, 'data [N, 3072]'),
    ({'data': b'text'}, 'data [N, 3072]')])
def test_records_of_another_form(tmp_path, changes, message):
    members = dict(cifar10_members(), **{'x/data_batch_4': batch(4, **changes)})
    refused(write_archive(tmp_path / 'a.tar.gz', members), message)


@pytest.mark.parametrize('convert', [lambda key: key, lambda key: key.encode()])
def test_keys_as_text_or_bytes(tmp_path, convert):
    """Python 3, writing a batch again, makes the keys texts."""
    content = {convert('data'): np.full((1, 3072), 7, 'uint8'), convert('labels'): np.asarray([3])}
    path = write_archive(tmp_path / 'a.tar.gz', {'test_batch': pickle.dumps(content, protocol=4)})
    (image, label), = reader.cifar10_reader(path, 'test_batch', False, arguments())
    assert (image == 7).all() and label == 3


# ---------------------------------------------------------------------------------------------------------------------
# Hostile archives
# ---------------------------------------------------------------------------------------------------------------------


def tar_with(path, name='data_batch_1', **attributes):
    """An archive of one member whose header says what `attributes` say."""
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    with tarfile.open(str(path), 'w:gz') as archive:
        archive.addfile(info)
    return path


def old_gnu_sparse(size):
    """The header of a sparse member of the old GNU form that holds nothing and says it has `size` bytes."""
    info = tarfile.TarInfo('data_batch_1')
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:386 + 24] = b'%011o\0%011o\0' % (size, 0)
    header[483:495] = b'%011o\0' % size
    header[148:156] = b'        '
    header[148:156] = b'%06o\0 ' % sum(header)
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize('attributes', [
    {'type': tarfile.FIFOTYPE}, {'type': tarfile.CHRTYPE, 'devmajor': 1, 'devminor': 5}, {'type': tarfile.BLKTYPE},
    {'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}, {'type': tarfile.LNKTYPE, 'linkname': '../secret'},
    {'type': tarfile.DIRTYPE}])
def test_members_that_are_no_files(tmp_path, attributes):
    refused(tar_with(tmp_path / 'a.tar.gz', **attributes),
            'holds no data_batch file: its member data_batch_1 is no plain file')


@pytest.mark.parametrize('name', ['/data_batch_1', '../data_batch_1', 'x/../../data_batch_1'])
def test_names_that_lead_out_of_the_archive(tmp_path, name):
    refused(tar_with(tmp_path / 'a.tar.gz', name), f'the name of its member {name} leads out of the archive')


def test_sizes_that_only_a_header_says(tmp_path):
    path = tmp_path / 'a.tar'
    path.write_bytes(old_gnu_sparse(5 << 30))
    refused(path, 'its member data_batch_1 is no plain file')
    info = tarfile.TarInfo('data_batch_1')
    info.size = 5 << 30
    path.write_bytes(info.tobuf() + bytes(1024))
    refused(path, 'its member data_batch_1 has 5368709120 bytes')
    info.name, info.size = 'other', 1 << 60
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(path, 'its member other has 1152921504606846976 bytes')


def bomb(path, content, times):
    """A gzip file of `content` followed by `times` MB of zeros, in about a thousandth of that."""
    zeros = gzip.compress(bytes(1 << 20), 9)
    path.write_bytes(gzip.compress(content) + zeros * times)


def test_archives_that_unpack_to_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'MAX_UNPACKED', 8 << 20)
    other = tarfile.TarInfo('other')
    other.size = 1 << 30
    for kind, content in (('a member', other.tobuf()), ('a name', None), ('a header', None)):
        if content is None:
            info = tarfile.TarInfo()
            info.type, info.size = tarfile.GNUTYPE_LONGNAME if kind == 'a name' else tarfile.XHDTYPE, 1 << 30
            content = info.tobuf()
        bomb(tmp_path / 'a.tar.gz', content, 64)
        refused(tmp_path / 'a.tar.gz',
                'its member other has 1073741824 bytes' if kind == 'a member' else 'it unpacks to more than 8 MB')
    empty = tarfile.TarInfo('x').tobuf()
    bomb(tmp_path / 'a.tar.gz', empty * (archives.MAX_MEMBERS + 1), 0)
    refused(tmp_path / 'a.tar.gz', f'it has more than {archives.MAX_MEMBERS} members')
    inner = io.BytesIO(write_bytes_of(tmp_path, cifar10_members()))
    refused(write_archive(tmp_path / 'nested.tar.gz', {'inner.tar.gz': inner.getvalue()}), 'holds no data_batch file')


def write_bytes_of(tmp_path, members):
    with open(write_archive(tmp_path / 'inner.tar.gz', members), 'rb') as f:
        return f.read()


BOMB = """
import resource, sys
sys.path.insert(0, {root!r})
from pipeline import archives
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(archives.cifar_batches({path!r}, 'data_batch'))
except Exception as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10, error)
"""


def test_a_header_of_gigabytes_takes_bounded_memory(tmp_path):
    info = tarfile.TarInfo()
    info.type, info.size = tarfile.XHDTYPE, 4 << 30
    bomb(tmp_path / 'a.tar.gz', info.tobuf(), 700)
    result = subprocess.run([sys.executable, '-c', BOMB.format(root=ROOT, path=str(tmp_path / 'a.tar.gz'))], text=True,
                            stdout=subprocess.PIPE, timeout=WAIT)
    megabytes, message = result.stdout.split(' ', 1)
    assert 'it unpacks to more than 300 MB' in message and float(megabytes) < 800


NOISE = random.Random(0).randbytes(2000)


@pytest.mark.parametrize('content', [b'', b'\x1f\x8b', b'BZh9', bytes(5000), b'text' * 500, NOISE,
                                     b'\x1f\x8b\x08\x00' + NOISE, struct.pack('512s', b'x' * 512) * 3],
                         ids=['empty', 'gzip', 'bzip2', 'zeros', 'text', 'noise', 'gzip of noise', 'no tar'])
def test_files_that_are_no_archives(tmp_path, content):
    (tmp_path / 'a.tar.gz').write_bytes(content)
    with pytest.raises(UserError, match='cannot be read, it may be truncated or no archive|holds no data_batch file'):
        reader.cifar10_reader(str(tmp_path / 'a.tar.gz'), 'data_batch', False, arguments())


# ---------------------------------------------------------------------------------------------------------------------
# Paths that are no files
# ---------------------------------------------------------------------------------------------------------------------


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(str(tmp_path / 'fifo'))
    (tmp_path / 'loop').symlink_to('loop')
    with open(str(tmp_path / 'huge'), 'wb') as f:
        f.truncate(1 << 40)
    for name, message in (('fifo', 'it is not a regular file'), ('loop', 'Too many levels of symbolic links'),
                          ('x' * 300, 'File name too long'), ('a\0b', 'null'), ('absent', 'does not exist'),
                          ('huge', 'it has 1099511627776 bytes, more than')):
        refused(tmp_path / name, message)
    for path in ('/dev/zero', '/dev/stdin', '/dev/null'):
        if os.path.exists(path) and not os.path.isfile(path):
            refused(path, 'it is not a regular file')
    folder = tmp_path / 'folder'
    folder.mkdir()
    os.mkfifo(str(folder / 'data_batch_1'))
    refused(folder, 'data_batch_1 cannot be read: it is not a regular file')
    os.remove(str(folder / 'data_batch_1'))
    os.symlink('/dev/zero', str(folder / 'data_batch_1'))
    refused(folder, 'data_batch_1 cannot be read: it is not a regular file')
