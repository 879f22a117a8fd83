"""Archives that others made: where the CIFAR-10 archive comes from, and reading it without trusting it.

Members are read in place, never unpacked, and only numpy arrays are unpickled.
"""
import hashlib
import http.client
import lzma
import os
import tarfile
import urllib.request
import zlib

import numpy as np

from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.log import logger
from runtime.parallel import first_rank_first
from runtime.unpickle import load_arrays

CIFAR10_URL = 'https://dataset.bj.bcebos.com/cifar%2Fcifar-10-python.tar.gz'
CIFAR10_MD5 = 'c58f30108f718f92721af3b95e74349a'
CIFAR100_URL = 'https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz'
CIFAR100_MD5 = 'eb9058c3a382ffc7106e4002c42a8d85'
CIFAR = {'cifar10': (CIFAR10_URL, CIFAR10_MD5, 'cifar-10-python.tar.gz'),
         'cifar100': (CIFAR100_URL, CIFAR100_MD5, 'cifar-100-python.tar.gz')}
DATASET_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'dataset')
DEFAULT_DATA = os.path.join('dataset', 'cifar10')  # --data of train.py: CIFAR-10, if it is there


def cifar_archive(name, data):
    """The path of the archive of 'cifar10' or 'cifar100': what --data gave, whatever its md5, or else the one in
    dataset/, which is downloaded when it isn't there; of several processes one a machine does that."""
    with first_rank_first():
        return _cifar_archive(name, data)


def _cifar_archive(name, data):
    url, md5, file_name = CIFAR[name]
    if data is not None and (data != DEFAULT_DATA or name == 'cifar10' and os.path.exists(data)):
        if not os.path.exists(data):
            raise UserError(f'--data: {data} does not exist; give the CIFAR archive or the folder it unpacks to')
        if os.path.isfile(data) and _md5(data) != md5:
            logger.info('--data: %s is not the official %s (another md5); taken since it was asked for', data,
                        file_name)
        return data
    path = os.path.join(DATASET_FOLDER, file_name)
    if not (os.path.isfile(path) and _md5(path) == md5):
        download(url, path, md5)
    return path


def download(url, path, md5):
    """Download url to path, whole or not at all. Raises UserError (status 1) that names what to do without a
    network."""
    def failure(reason):
        return UserError(f'cannot download {url} ({reason}): give --data PATH with an archive you have, or '
                         '--dataset=digits, which needs '
                         'no download', status=1)

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


def _md5(path):
    digest = hashlib.md5()
    with open(path, 'rb') as f:
        for chunk in iter(lambda: f.read(1 << 20), b''):
            digest.update(chunk)
    return digest.hexdigest()


def members(file_name, data_name):
    """Yield (name, open file) of the files in an archive or a folder whose names begin with data_name, in the names'
    order."""
    try:
        if os.path.isdir(file_name):
            for folder, _, names in sorted(os.walk(file_name)):
                for name in sorted(names):
                    if name.startswith(data_name):
                        with open(os.path.join(folder, name), 'rb') as f:
                            yield name, f
            return
        with tarfile.open(file_name) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and os.path.basename(m.name).startswith(data_name)]
            for member in sorted(members, key=lambda m: m.name):
                yield member.name, archive.extractfile(member)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f'--data: {file_name} cannot be read, it may be truncated or no archive: {error}')


def cifar_batch(where, file):
    """Unpickle a CIFAR batch -> images uint8 [N, 3, 32, 32], labels int64 [N]."""
    try:
        batch = load_arrays(file, encoding='bytes')
        data = batch[b'data']
        labels = np.asarray(batch.get(b'labels', batch.get(b'fine_labels')))
        if (data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072 or labels.shape != data.shape[:1]
                or labels.dtype.kind not in 'iu'):
            raise ValueError('it must hold data [N, 3072] of uint8 and N labels')
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f'--data: {where} is not a CIFAR batch: {str(error) or type(error).__name__}')
    return data.reshape(-1, 3, 32, 32), labels.astype('int64')
