"""Files that are whole or not there, and files that are read without trusting them.

What a run leaves is written beside its place and then renamed into it. Parameter files are pickles; they are read by an unpickler
that can make numpy arrays and plain containers and call nothing else.
"""
import contextlib
import io
import json
import os
import pickle
import re

import numpy as np

from runtime.errors import UserError
from runtime.log import logger


@contextlib.contextmanager
def atomic_write(path):
    """Give a temporary path in the folder of `path`; when the block ends well, what it wrote there becomes `path`.

    A reader sees the old file or the new one, never a part, also when the machine loses power in between. Folders are made.
    Raises UserError (status 1) when the disk refuses; the old file then stays and the temporary one is removed.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # The ending is kept, for writers that look at it; the process number keeps two writers apart.
    temporary = os.path.join(folder, f'.{os.getpid()}.{name}')
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
        with open(temporary, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}', status=1)
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def _sync_folder(folder):
    """Make a rename durable: the folder's own entry reaches the disk. Only POSIX opens folders."""
    if os.name == 'posix':
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path, text):
    """Write a small text file atomically."""
    with atomic_write(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as f:
            f.write(text)


def save_params(path, state_dict):
    """Write a plain Paddle state dict (.pdparams) atomically."""
    import paddle
    with atomic_write(path) as temporary:
        paddle.save(state_dict, temporary)


def remove_numbered(folder, first, kinds=('epoch', 'sample')):
    """Remove what an earlier, longer search left in a folder: <n>/genotype.json and <n>/params.pdparams for n >= first.

    Only where that genotype.json says itself that a search wrote it as its epoch or sample n; anything else is the user's and stays.
    """
    for name in os.listdir(folder or '.'):
        path = os.path.join(folder, name)
        if not re.fullmatch('0|[1-9][0-9]{0,8}', name) or int(name) < first or os.path.islink(path):
            continue
        with contextlib.suppress(OSError, ValueError, RecursionError):
            with open(os.path.join(path, 'genotype.json'), encoding='utf-8') as f:
                found = json.load(f)
            search = found.get('search') if isinstance(found, dict) else None
            if isinstance(search, dict) and any(search.get(kind) == int(name) for kind in kinds):
                for written in ('params.pdparams', 'genotype.json'):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(os.path.join(path, written))
                os.rmdir(path)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays in plain containers: a pickle can't call anything else."""

    ALLOWED = {(module, name) for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
               for name in ('_reconstruct', 'scalar')} | {
                   ('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode'), ('collections', 'OrderedDict')}

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no file of this kind needs: refused')
        return super().find_class(module, name)


def load_arrays(file, encoding='ASCII'):
    """Unpickle an open file of numpy arrays in plain containers. Raises ValueError with what is wrong in one line."""
    try:
        return _ArrayUnpickler(file, encoding=encoding).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError((str(error) or type(error).__name__).splitlines()[0])


# ---------------------------------------------------------------------------------------------------------------------
# The checkpoints of a run
# ---------------------------------------------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints in a folder, of which the last `keep` stay: epoch-0012-step-000300.npz, the state before step 300 of epoch 12.

    A file is numpy's archive of arrays; its member `info` is a JSON object. Each member carries a CRC-32, and nothing is unpickled.
    """

    def __init__(self, folder, keep):
        self.folder, self.keep, self.own = folder, keep, []

    def paths(self):
        """The checkpoints in the folder, the newest first."""
        if not os.path.isdir(self.folder):
            return []
        names = [name for name in os.listdir(self.folder) if re.fullmatch(r'epoch-\d{4,}-step-\d{6,}\.npz', name)]
        return [os.path.join(self.folder, name) for name in sorted(
            names, key=lambda name: [int(n) for n in re.findall(r'\d+', name)], reverse=True)]

    def save(self, epoch, step, arrays, info):
        """Write one, whole or not at all, then remove those that are too many. Returns its path."""
        path = os.path.join(self.folder, f'epoch-{epoch:04d}-step-{step:06d}.npz')
        archive = io.BytesIO()  # first whole in memory: a zip file that meets a full disk prints tracebacks of its own
        np.savez(archive, info=np.frombuffer(json.dumps(info).encode('utf-8'), 'uint8'), **arrays)
        with atomic_write(path) as temporary:
            with open(temporary, 'wb') as f:
                f.write(archive.getbuffer())
        if path not in self.own:
            self.own.append(path)
        self.own = self.own[-self.keep:]
        for other in self.paths():  # also those of an earlier run, and those found broken
            if other not in self.own:
                with contextlib.suppress(OSError):
                    os.remove(other)
        return path

    def newest(self):
        """The newest checkpoint that is whole -> (path, {name: array}, info), (None, None, None) where there is none."""
        for path in self.paths():
            try:
                with np.load(path, allow_pickle=False) as archive:
                    broken = archive.zip.testzip()
                    if broken:
                        raise ValueError(f'the checksum of {broken} is wrong')
                    arrays = dict(archive)
                info = json.loads(arrays.pop('info').tobytes().decode('utf-8'))
            except Exception as error:  # a damaged archive can raise nearly anything
                logger.warning('%s is not whole, the one before it is taken: %s', path, str(error) or type(error).__name__)
                continue
            self.own = [other for other in self.paths()[::-1] if other <= path][-self.keep:]
            return path, arrays, info
        return None, None, None


# ---------------------------------------------------------------------------------------------------------------------
# A trained network: best_model.pdparams and, beside it, best_model.json with what made it
# ---------------------------------------------------------------------------------------------------------------------


def save_model(path, state_dict, description):
    """Write a state dict to path (.pdparams) and the JSON object `description` beside it (.json)."""
    write_text(_description_path(path), json.dumps(description) + '\n')
    save_params(path, state_dict)


def load_model(path):
    """Read what save_model wrote. Returns ({name: numpy array}, description), description None where there is no file.

    Raises UserError for files that can't be read or hold something else.
    """
    try:
        with open(path, 'rb') as f:
            state = load_arrays(f)
        if isinstance(state, dict):
            state.pop('StructuredToParameterName@@', None)  # a table that paddle.save adds in some cases
        if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
            raise ValueError('it must hold a dictionary of arrays')
    except (OSError, ValueError) as error:
        raise UserError('--pretrained: {} cannot be loaded: {}'.format(path, getattr(error, 'strerror', None) or error))
    description_path = _description_path(path)
    if not os.path.exists(description_path):
        return state, None
    try:
        with open(description_path, encoding='utf-8') as f:
            description = json.load(f)
        if not isinstance(description, dict):
            raise ValueError('it must hold an object')
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'--pretrained: {description_path} cannot be read: {error}')
    return state, description


def set_state(model, state, what):
    """Load arrays into a layer. Raises UserError that lists the names and shapes that don't fit; it begins with `what`."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: value.shape for name, value in state.items()}
    wrong = ([f'{name} is missing' for name in wanted if name not in given]
             + [f'{name} is unknown' for name in given if name not in wanted]
             + [f'{name} is {given[name]}, not {wanted[name]}' for name in wanted
                if name in given and given[name] != wanted[name]])
    if wrong:
        raise UserError('{} does not fit this network: {}{}'.format(
            what, '; '.join(wrong[:5]), '' if len(wrong) <= 5 else f'; and {len(wrong) - 5} more'))
    model.set_state_dict(state)


def _description_path(path):
    return os.path.splitext(path)[0] + '.json'
