"""The checkpoints of a run, and trained networks: best_model.pdparams with best_model.json, which says what made it."""
import contextlib
import io
import json
import os
import re

import numpy as np

from runtime.errors import UserError
from runtime.files import atomic_write, save_params, write_text
from runtime.log import logger
from runtime.unpickle import load_arrays


class Checkpoints:
    """The checkpoints in a folder, of which the last `keep` stay: epoch-0012-step-000300.npz, the state before step
    300 of epoch 12.

    A file is numpy's archive of arrays; its member `info` is a JSON object. Each member carries a CRC-32, and nothing
    is unpickled.
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
        """The newest checkpoint that is whole -> (path, {name: array}, info), (None, None, None) where there is
        none."""
        for path in self.paths():
            try:
                with np.load(path, allow_pickle=False) as archive:
                    broken = archive.zip.testzip()
                    if broken:
                        raise ValueError(f'the checksum of {broken} is wrong')
                    arrays = dict(archive)
                info = json.loads(arrays.pop('info').tobytes().decode('utf-8'))
            except Exception as error:  # a damaged archive can raise nearly anything
                logger.warning('%s is not whole, the one before it is taken: %s', path, str(error)
                               or type(error).__name__)
                continue
            self.own = [other for other in self.paths()[::-1] if other <= path][-self.keep:]
            return path, arrays, info
        return None, None, None


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
    """Load arrays into a layer. Raises UserError that lists the names and shapes that don't fit; it begins with
    `what`."""
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
