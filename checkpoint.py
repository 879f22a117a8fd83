"""Files that are whole or not there, and files that are read without trusting them.

What a run leaves is written beside its place and then renamed into it. Parameter files are pickles; they are read by an unpickler
that can make numpy arrays and plain containers and call nothing else.
"""
import contextlib
import json
import os
import pickle

import numpy as np

from utility import UserError


@contextlib.contextmanager
def atomic_write(path):
    """Give a temporary path in the folder of `path`; when the block ends well, what it wrote there becomes `path`.

    A reader sees the old file or the new one, never a part, also when the machine loses power in between. Folders are made.
    Raises UserError (status 1) when the disk refuses; the old file then stays and the temporary one is removed.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # The ending is kept, for writers that look at it; the process number keeps two writers apart.
    temporary = os.path.join(folder, '.{}.{}'.format(os.getpid(), name))
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
        with open(temporary, 'rb+') as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except OSError as error:
        raise UserError('cannot write {}: {}'.format(path, error.strerror or error), status=1)
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


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays in plain containers: a pickle can't call anything else."""

    ALLOWED = {(module, name) for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
               for name in ('_reconstruct', 'scalar')} | {
                   ('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode'), ('collections', 'OrderedDict')}

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError('it asks for {}.{}, which no file of this kind needs: refused'.format(module, name))
        return super().find_class(module, name)


def load_arrays(file, encoding='ASCII'):
    """Unpickle an open file of numpy arrays in plain containers. Raises ValueError with what is wrong in one line."""
    try:
        return _ArrayUnpickler(file, encoding=encoding).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError((str(error) or type(error).__name__).splitlines()[0])


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
        raise UserError('--pretrained: {} cannot be read: {}'.format(description_path, error))
    return state, description


def set_state(model, state, path):
    """Load arrays into a layer. Raises UserError that lists the names and shapes that don't fit."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: value.shape for name, value in state.items()}
    wrong = (['{} is missing'.format(name) for name in wanted if name not in given]
             + ['{} is unknown'.format(name) for name in given if name not in wanted]
             + ['{} is {}, not {}'.format(name, given[name], wanted[name]) for name in wanted
                if name in given and given[name] != wanted[name]])
    if wrong:
        raise UserError('--pretrained: {} does not fit this network: {}{}'.format(
            path, '; '.join(wrong[:5]), '' if len(wrong) <= 5 else '; and {} more'.format(len(wrong) - 5)))
    model.set_state_dict(state)


def _description_path(path):
    return os.path.splitext(path)[0] + '.json'
