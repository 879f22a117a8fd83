"""Archives that others made: where the CIFAR archives come from, and reading them without trusting them.

Members are read in place, never unpacked, and only numpy arrays are unpickled. What an archive may cost is bounded: its
unpacked size, its number of members and the size of each.
"""
import bz2
import gzip
import hashlib
import http.client
import io
import os
import tarfile
import urllib.request

import numpy as np

from runtime.errors import UserError
from runtime.files import UnreadableFile, atomic_write, open_regular
from runtime.log import logger
from runtime.parallel import first_rank_first
from runtime.unpickle import load_arrays

CIFAR10_URL = 'https://dataset.bj.bcebos.com/cifar%2Fcifar-10-python.tar.gz'
CIFAR10_MD5 = 'c58f30108f718f92721af3b95e74349a'
CIFAR100_URL = 'https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz'
CIFAR100_MD5 = 'eb9058c3a382ffc7106e4002c42a8d85'
CIFAR = {'cifar10': (CIFAR10_URL, CIFAR10_MD5, 'cifar-10-python.tar.gz'),
         'cifar100': (CIFAR100_URL, CIFAR100_MD5, 'cifar-100-python.tar.gz')}
# The members that hold the images, by the beginning that cifar10_reader is asked for, and the number of classes.
MEMBERS = {'data_batch': ([f'data_batch_{number}' for number in range(1, 6)], 10), 'test_batch': (['test_batch'], 10),
           'train': (['train'], 100), 'test': (['test'], 100)}
# The member that names the classes, beside those of the training images, and its key.
CLASS_NAMES = {'data_batch': ('batches.meta', 'label_names'), 'train': ('meta', 'fine_label_names')}
# The official archives unpack to less than 200 MB, their largest member has 156 MB.
MAX_UNPACKED, MAX_MEMBER, MAX_MEMBERS = 300 << 20, 200 << 20, 1000
DATASET_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'dataset')
DEFAULT_DATA = 'dataset/cifar10'  # --data of train.py: CIFAR-10, if it is there


def cifar_archive(name, data):
    """The path of the archive of 'cifar10' or 'cifar100': what --data gave, whatever its md5, or else the one in
    dataset/, which is downloaded when it isn't there; of several processes one a machine does that."""
    with first_rank_first():
        return _cifar_archive(name, data)


def _cifar_archive(name, data):
    url, md5, file_name = CIFAR[name]
    if data is not None and (data != DEFAULT_DATA or name == 'cifar10' and os.path.exists(data)):
        if not os.path.isdir(data):
            with _open(data, f'--data: {data}', MAX_UNPACKED,
                           '; give the CIFAR archive or the folder it unpacks to') as file:
                if _md5(file) != md5:
                    logger.info('--data: %s is not the official %s (another md5); taken since it was asked for', data,
                                file_name)
        return data
    path = os.path.join(DATASET_FOLDER, file_name)
    if os.path.isfile(path):
        with open(path, 'rb') as file:
            if _md5(file) == md5:
                return path
    download(url, path, md5)
    return path


def download(url, path, md5):
    """Download url to path, whole or not at all. Raises UserError (status 1) that names what to do without a
    network."""
    def failure(reason):
        return UserError(f'cannot download {url} ({reason}): give --data PATH with an archive you have, or '
                         '--dataset=digits, which needs no download', status=1)

    def chunks():
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                yield from iter(lambda: response.read(1 << 20), b'')
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            raise failure(getattr(error, 'reason', None) or error)

    logger.info('downloading %s to %s', url, path)
    digest = hashlib.md5()
    with atomic_write(path) as temporary:
        with open(temporary, 'wb') as f:
            for chunk in chunks():
                f.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != md5:
            raise failure(f'what arrived has another md5 than {md5}')


def _md5(file):
    digest = hashlib.md5()
    for chunk in iter(lambda: file.read(1 << 20), b''):
        digest.update(chunk)
    return digest.hexdigest()


def _open(path, name, max_bytes, advice=''):
    """Open a regular file of at most max_bytes for reading bytes.

    name, advice: the beginning and the end of the message. Raises UserError for anything else.
    """
    try:
        return open_regular(path, max_bytes)
    except UnreadableFile as error:
        absent = isinstance(error.__context__, FileNotFoundError)
        raise UserError(f'{name} does not exist{advice}' if absent else f'{name} cannot be read: {error}{advice}')


# ---------------------------------------------------------------------------------------------------------------------
# Members
# ---------------------------------------------------------------------------------------------------------------------


def cifar_batches(path, data_name, class_names=None):
    """Yield (name, images, labels) of the batches of a CIFAR archive or of the folder that it unpacks to, in any order.

    data_name: a key of MEMBERS, which says which files there must be. class_names: a list that gets the names of the
    classes, in the order of the labels, where the archive holds them (CLASS_NAMES); it is read once for both.
    Images uint8 [N, 3, 32, 32], labels int64 [N].
    Raises UserError where one is missing, there twice, or something else.
    """
    expected, num_classes = MEMBERS[data_name]
    names_member, names_key = CLASS_NAMES.get(data_name, (None, None))
    wanted = expected if class_names is None or names_member is None else [*expected, names_member]
    found = []
    for name, content in (_folder_members if os.path.isdir(path) else _archive_members)(path, wanted):
        base = os.path.basename(name)
        if base == names_member:
            class_names[:] = _class_names(content, names_key, num_classes)
            if not class_names:
                logger.info('%s: %s does not hold the names of the classes: they are numbers', path, name)
            continue
        if content is None:
            raise UserError(f'--data: {path} holds no {data_name} file: its member {name} is no plain file')
        if base in found:
            raise UserError(f'--data: {path} holds {base} twice, the second time as {name}')
        found.append(base)
        try:
            batch = _cifar_batch(content, num_classes)
        except ValueError as error:
            raise UserError(f'--data: {path}: {name} is not a CIFAR batch: {error}')
        del content
        yield (base, *batch)
        del batch  # before the next one is read
    missing = [name for name in expected if name not in found]
    if missing and found:
        raise UserError(f'--data: {path} holds {", ".join(sorted(found))}, but no {", ".join(missing)}; give the whole '
                        'CIFAR archive for Python or the folder it unpacks to')
    if missing:
        raise UserError(f'--data: {path} holds no {data_name} file; give the CIFAR archive for Python or the folder it '
                        'unpacks to')


def _class_names(content, key, count):
    """The `count` names that a pickled dictionary has under a key; an empty list for anything else."""
    try:
        names = [text.decode() if isinstance(text, bytes) else text for text in _dictionary(content or b'')[key]]
    except (KeyError, TypeError, ValueError):
        return []
    return names if len(names) == count and all(isinstance(text, str) for text in names) else []


def _unreadable(path, error):
    return UserError(f'--data: {path} cannot be read, it may be truncated or no archive: {error}')


def _folder_members(path, names):
    """Yield (name, content) for the files with these names in a folder or in one of its subfolders."""
    try:
        subfolders = sorted(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        raise UserError(f'--data: {path} cannot be read: {error.strerror}')
    for folder in [path] + subfolders:
        for name in names:
            member = os.path.join(folder, name)
            if os.path.lexists(member) and not os.path.isdir(member):
                with _open(member, f'--data: {member}', MAX_MEMBER) as file:
                    yield os.path.relpath(member, path), file.read()


def _archive_members(path, names):
    """Yield (name, content) for the members with these names in a tar archive, in the archive's order; (name, None) for
    a link, a device or another that is no plain file."""
    with _open(path, f'--data: {path}', MAX_UNPACKED) as file:
        try:
            with tarfile.open(fileobj=_Bounded(_unpacked(file)), mode='r|') as archive:  # read once, in its order
                for number, member in enumerate(archive):
                    if number >= MAX_MEMBERS:
                        raise tarfile.TarError(f'it has more than {MAX_MEMBERS} members')
                    if os.path.basename(member.name) in names:
                        plain = member.isreg() and not member.issparse()
                        if plain:
                            _check_member(member)
                        yield member.name, archive.extractfile(member).read() if plain else None
                    if member.size > MAX_UNPACKED:  # tarfile would pass over it block by block, even after the end
                        raise tarfile.TarError(f'its member {member.name} has {member.size} bytes')
        except Exception as error:  # a damaged archive can raise nearly anything
            raise _unreadable(path, error)


def _unpacked(file):
    """The content of a .tar, .tar.gz or .tar.bz2 file as a stream."""
    beginning = file.read(3)
    file.seek(0)
    if beginning[:2] == b'\x1f\x8b':
        return gzip.GzipFile(fileobj=file)
    return bz2.BZ2File(file) if beginning == b'BZh' else file


class _Bounded(io.RawIOBase):
    """A stream that ends with an error after MAX_UNPACKED bytes: a small file may unpack to any size."""

    def __init__(self, file):
        self.file, self.rest = file, MAX_UNPACKED

    def readable(self):
        return True

    def readinto(self, buffer):
        count = self.file.readinto(buffer)
        self.rest -= count
        if self.rest < 0:
            raise tarfile.TarError(f'it unpacks to more than {MAX_UNPACKED >> 20} MB')
        return count


def _check_member(member):
    """Raise TarError for a file that is too large or lies outside of the archive."""
    if member.name.startswith('/') or '..' in member.name.split('/'):
        raise tarfile.TarError(f'the name of its member {member.name} leads out of the archive')
    if member.size > MAX_MEMBER:
        raise tarfile.TarError(f'its member {member.name} has {member.size} bytes, more than {MAX_MEMBER}')


def _cifar_batch(content, num_classes):
    """Unpickle a CIFAR batch -> images uint8 [N, 3, 32, 32], labels int64 [N]. Raises ValueError for anything else."""
    batch = _dictionary(content)
    data, labels = batch.get('data'), np.asarray(batch.get('labels', batch.get('fine_labels')))
    if (not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072
            or labels.shape != data.shape[:1] or labels.dtype.kind not in 'iu' or not len(labels)):
        raise ValueError('it must hold data [N, 3072] of uint8 and N labels')
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f'it holds the label {wrong[0]}; labels are 0 to {num_classes - 1}')
    return data.reshape(-1, 3, 32, 32), labels.astype('int64')


def _dictionary(content):
    """Unpickle a dictionary of arrays and lists, its keys as texts. Raises ValueError for anything else."""
    found = load_arrays(io.BytesIO(content), encoding='bytes')
    if not isinstance(found, dict):
        raise ValueError(f'it holds a {type(found).__name__}')
    # An archive that was pickled anew by Python 3 has texts as keys.
    return {key.decode('latin1') if isinstance(key, bytes) else key: value for key, value in found.items()}
