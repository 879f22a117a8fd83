"""The checkpoints of a run, and trained networks: best_model.pdparams with best_model.json, which says what made it."""
import contextlib
import io
import json
import os
import re
import zipfile

import numpy as np

from runtime.errors import UserError
from runtime.files import (
    MAX_JSON_BYTES,
    UnreadableFile,
    atomic_write,
    open_regular,
    read_json,
    reason,
    save_params,
    write_text,
)
from runtime.log import logger
from runtime.unpickle import load_arrays

NAME = r'epoch-\d{4,9}-step-\d{6,12}\.npz'
LIST = 'darts-files.json'  # in the folder of the checkpoints: those that runs wrote there

# What the member `info` must hold.
INFO = {'epoch': int, 'step': int, 'results': dict, 'metrics': list, 'seed': int, 'schedule': dict, 'ranks': list,
        'arguments': dict, 'paddle': str}


class Checkpoints:
    """The checkpoints in a folder, of which the last `keep` stay: epoch-0012-step-000300.npz, the state before step
    300 of epoch 12.

    A file is numpy's archive of arrays; its member `info` is a JSON object that also lists the types and the shapes of
    all others. Each member carries a CRC-32, and nothing is unpickled.
    A list in the folder says which files this run wrote (`files`) and which an earlier one did (`earlier`), which stay
    until this run's first epoch is complete. No other file is ever overwritten or removed.
    """

    def __init__(self, folder, keep):
        self.folder, self.keep = folder, keep
        self.files = self.earlier = None  # names, the oldest first, from begin() or newest() on

    def paths(self):
        """The checkpoints that --resume can take, the newest first: those of the last run in the folder."""
        if self.files is None:
            files, earlier = self._listed()
            files = files or earlier
        else:
            files = self.files
        return [os.path.join(self.folder, name) for name in sorted(files, key=_place, reverse=True)]

    def begin(self):
        """Start over: what is there is of an earlier run."""
        files, earlier = self._listed()
        self.files, self.earlier = [], sorted({*files, *earlier}, key=_place)

    def save(self, epoch, step, arrays, info):
        """Write one, whole or not at all, then remove those that are too many. Returns its path.

        Raises UserError (status 1) where it cannot be written.
        """
        name = f'epoch-{epoch:04d}-step-{step:06d}.npz'
        path = os.path.join(self.folder, name)
        if self.files is None:
            self.begin()
        if name not in [*self.files, *self.earlier] and os.path.lexists(path):
            raise UserError(f'cannot write {path}: no run in this folder wrote the file of that name; move it away',
                            status=1)
        self.earlier = [other for other in self.earlier if other != name]
        self.files = [other for other in self.files if other != name] + [name]
        members = {member: [value.dtype.str, list(value.shape)] for member, value in arrays.items()}
        text = json.dumps(dict(info, members=members))
        archive = io.BytesIO()  # first whole in memory: a zip file that meets a full disk prints tracebacks of its own
        np.savez(archive, info=np.frombuffer(text.encode('utf-8'), 'uint8'), **arrays)
        # Before the file, so that none is ever there without being listed.
        write_text(os.path.join(self.folder, LIST), json.dumps({'files': self.files, 'earlier': self.earlier}) + '\n')
        with atomic_write(path) as temporary:
            with open(temporary, 'wb') as f:
                f.write(archive.getbuffer())
        superfluous, self.files = self.files[:-self.keep], self.files[-self.keep:]
        if epoch:  # the first epoch of this run is complete
            superfluous, self.earlier = superfluous + self.earlier, []
        for other in superfluous:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(self.folder, other))
        return path

    def newest(self):
        """The newest checkpoint that is whole -> (path, {name: array}, info), (None, None, None) where there is
        none."""
        paths = self.paths()
        for path in paths:
            try:
                arrays, info = read_checkpoint(path)
            except Exception as error:  # a damaged archive can raise nearly anything
                instead = '' if path == paths[-1] else ', the one before it is taken'
                logger.warning('%s is not whole%s: %s', path, instead, reason(error))
                continue
            files, earlier = self._listed()
            # Newer ones, which are damaged, are not of use to any run.
            self.files = [name for name in files or earlier if _place(name) <= _place(os.path.basename(path))]
            self.earlier = [name for name in files + earlier if name not in self.files]
            return path, arrays, info
        return None, None, None

    def _listed(self):
        """The names in the folder that runs wrote, the oldest first: (of the last run, of those before it)."""
        if not os.path.isdir(self.folder):
            return [], []
        there = {name for name in os.listdir(self.folder) if re.fullmatch(NAME, name)}
        try:
            listed = read_json(os.path.join(self.folder, LIST), MAX_JSON_BYTES)
            files, earlier = ([name for name in listed[key] if name in there] for key in ('files', 'earlier'))
            return files, earlier
        except (UnreadableFile, LookupError, TypeError):  # of a version without a list: those that are checkpoints
            return [name for name in sorted(there, key=_place) if _is_checkpoint(os.path.join(self.folder, name))], []


def read_checkpoint(path):
    """Read a checkpoint -> ({name: array}, info). A file that is damaged or something else can raise nearly
    anything."""
    arrays = {}
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if (any(member.compress_type != zipfile.ZIP_STORED for member in members)
                or sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size):
            raise ValueError('its members are larger than the file')
        for member in members:
            content = io.BytesIO(archive.read(member))  # checks the CRC-32
            arrays[member.filename.removesuffix('.npy')] = np.lib.format.read_array(content, allow_pickle=False)
    info = json.loads(arrays.pop('info').tobytes().decode('utf-8'))
    if not isinstance(info, dict) or not all(isinstance(info.get(key), kind) for key, kind in INFO.items()):
        raise ValueError('it is not a checkpoint of this program')
    listed = info.pop('members', None)  # earlier versions listed none
    found = {name: [value.dtype.str, list(value.shape)] for name, value in arrays.items()}
    if listed not in (None, found) or len(members) != len(arrays) + 1:
        raise ValueError('it does not hold the members that it lists')
    return arrays, info


def newest_info(folder):
    """The info of the newest checkpoint in a run's folder that is whole, None without one. What it holds beyond the
    types of INFO is not checked."""
    _, _, info = Checkpoints(os.path.join(folder, 'checkpoints'), 1).newest()
    return info


def _is_checkpoint(path):
    try:
        return bool(read_checkpoint(path))
    except Exception:  # see read_checkpoint
        return False


def _place(name):
    """(epoch, step) of a file name."""
    return [int(number) for number in re.findall(r'\d+', name)]


def save_model(path, state_dict, description):
    """Write a state dict to path (.pdparams) and the JSON object `description` beside it (.json)."""
    write_text(_description_path(path), json.dumps(description) + '\n')
    save_params(path, state_dict)


def load_model(path, flag='--pretrained'):
    """Read what save_model wrote. Returns ({name: numpy array}, description), description None where there is no file.

    Raises UserError for files that can't be read or hold something else.
    """
    try:
        with open_regular(path) as f:
            state = load_arrays(f)
        if isinstance(state, dict):
            state.pop('StructuredToParameterName@@', None)  # a table that paddle.save adds in some cases
        if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, np.ndarray)
                                                  for name, value in state.items()):
            raise ValueError('it must hold a dictionary of arrays with texts as names')
    except (OSError, ValueError) as error:  # UnreadableFile is a ValueError
        raise UserError(f'{flag}: {path} cannot be loaded: {reason(error)}; give a .pdparams file that a training or a '
                        'search wrote')
    description_path = _description_path(path)
    if not os.path.lexists(description_path):
        return state, None
    try:
        description = read_json(description_path, MAX_JSON_BYTES)
        if not isinstance(description, dict):
            raise ValueError('it must hold an object')
    except (OSError, ValueError) as error:
        raise UserError(f'{flag}: {description_path} cannot be read: {reason(error)}')
    return state, description


def set_state(model, state, what, exact=False):
    """Load arrays into a layer, unless it must be exact also floating-point numbers of another precision, such as those
    of a network that was saved in float16. Raises UserError that lists the names, shapes and types that don't fit; it
    begins with `what`."""
    tensors = model.state_dict()
    wanted = {name: tuple(value.shape) for name, value in tensors.items()}
    given = {name: value.shape for name, value in state.items()}
    both = [name for name in wanted if name in given]
    wrong = ([f'{name} is missing' for name in wanted if name not in given]
             + [f'{name} is unknown' for name in given if name not in wanted]
             + [f'{name} is {given[name]}, not {wanted[name]}' for name in both if given[name] != wanted[name]]
             + [f'{name} holds {_type_name(state[name])} instead of {_type_name(tensors[name])}' for name in both
                if _type_name(state[name]) != _type_name(tensors[name])
                and (exact or not all('float' in _type_name(values) for values in (state[name], tensors[name])))])
    if wrong:
        raise UserError('{} does not fit this network: {}{}'.format(
            what, '; '.join(wrong[:5]), '' if len(wrong) <= 5 else f'; and {len(wrong) - 5} more'))
    model.set_state_dict({name: _converted(state[name], tensors[name]) for name in state})


def _type_name(values):
    """The type of an array's or a tensor's numbers. numpy has no bfloat16: Paddle gives it as uint16."""
    name = str(values.dtype).rpartition('.')[2]
    return 'bfloat16' if name == 'uint16' else name


def _converted(array, tensor):
    """An array with the type of a tensor."""
    if _type_name(array) == _type_name(tensor):
        return array
    import paddle  # takes seconds, which `search.py --derive` does not need to refuse a folder
    if array.dtype == np.uint16:  # a bfloat16 is the first half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return paddle.to_tensor(array).astype(tensor.dtype)


def _description_path(path):
    return os.path.splitext(path)[0] + '.json'
