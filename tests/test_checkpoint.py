"""Checkpoints: whole or damaged, nothing between; only files that a run in the folder wrote are removed."""
import io
import json
import logging
import lzma
import os
import random
import zipfile

import numpy as np
import pytest
from conftest import ROOT

import search
from runtime.checkpoint import INFO, LIST, Checkpoints, read_checkpoint, set_state
from runtime.errors import UserError

ARRAYS = {'model/a': np.arange(6, dtype='f4').reshape(2, 3), 'optimizer0/0/velocity_0': np.full((2,), 0.5),
          'rank0/0': np.array(7, 'i8'), 'half': np.zeros((0, 3), 'f2')}


def info(**changes):
    return dict({name: kind() for name, kind in INFO.items()}, **changes)


def save(folder, epoch, step=0, keep=2, checkpoints=None):
    checkpoints = checkpoints or Checkpoints(str(folder), keep)
    return checkpoints.save(epoch, step, ARRAYS, info(epoch=epoch, step=step))


def as_bytes(found):
    return {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in found.items()}


@pytest.fixture
def whole(tmp_path):
    """(path, content) of a checkpoint, the only one in its folder."""
    path = save(tmp_path, 1)
    with open(path, 'rb') as file:
        return path, file.read()


def check_same_or_damaged(path, content):
    """Whether the content counts as damaged; otherwise it must give the same values."""
    with open(path, 'r+b') as file:
        file.write(content)
        file.truncate()
    try:
        arrays, what = read_checkpoint(path)
    except Exception:  # newest() takes the one before, whatever it is
        return True
    assert as_bytes(arrays) == as_bytes(ARRAYS) and what == info(epoch=1)
    return False


def test_what_was_saved_is_read(whole):
    assert not check_same_or_damaged(*whole)
    assert check_same_or_damaged(whole[0], b'')


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_a_checkpoint_without_one_of_its_members_is_damaged(whole):
    """As when the zip archive's directory loses an entry: the others are whole."""
    path, content = whole
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    assert len(members) == len(ARRAYS) + 1
    twice = [members + members[1:2]]
    other_type = [[(name, value.replace(b"'<f4'", b"'<i4'")) for name, value in members]]
    other_name = [[(name.replace('half', 'hald'), value) for name, value in members]]
    for changed in [members[:i] + members[i + 1:] for i in range(len(members))] + twice + other_type + other_name:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, 'w') as file:
            for name, value in changed:
                file.writestr(name, value)
        assert check_same_or_damaged(path, archive.getvalue())


def test_a_flipped_bit_is_noticed_or_does_not_matter(whole):
    """Every bit of the zip archive's directory, and 300 elsewhere."""
    path, content = whole
    directory = content.index(b'PK\x01\x02')
    bits = [*range(8 * directory, 8 * len(content)), *random.Random(0).sample(range(8 * directory), 300)]
    damaged = 0
    for bit in bits:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        damaged += check_same_or_damaged(path, changed)
    assert len(bits) / 2 < damaged < len(bits)


def test_a_truncated_checkpoint_is_damaged(whole):
    path, content = whole
    for length in random.Random(0).sample(range(len(content)), 50):
        assert check_same_or_damaged(path, content[:length])


def archive_of(text, **arrays):
    file = io.BytesIO()
    np.savez(file, info=np.frombuffer(text.encode('utf-8'), 'uint8'), **arrays)
    return file.getvalue()


def compressed():
    file = io.BytesIO()
    np.savez_compressed(file, info=np.frombuffer(json.dumps(info()).encode('utf-8'), 'uint8'), a=np.zeros(10**6))
    return file.getvalue()


@pytest.mark.parametrize('content', [
    archive_of('[]'), archive_of('{}'), archive_of('null'), archive_of('{'), archive_of('[' * 100000),
    archive_of(json.dumps(info(metrics={}))), archive_of(json.dumps(info(members=[]))),
    archive_of(json.dumps(info(epoch='1'))), compressed(), b'PK\x05\x06' + bytes(18), b'\x93NUMPY', b'text'],
    ids=lambda content: str(len(content)))
def test_a_file_of_another_form_is_damaged(tmp_path, caplog, monkeypatch, content):
    monkeypatch.setattr(logging.getLogger('darts'), 'propagate', True)
    path = save(tmp_path, 1)
    other = save(tmp_path, 2, checkpoints=resumed(tmp_path))
    with open(other, 'wb') as file:
        file.write(content)
    assert Checkpoints(str(tmp_path), 2).newest()[0] == path
    assert f'{other} is not whole, the one before it is taken: ' in caplog.text
    assert 'Traceback' not in caplog.text


def test_a_checkpoint_that_is_a_pipe_does_not_wait(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('darts'), 'propagate', True)
    path = save(tmp_path, 1)
    os.remove(path)
    os.mkfifo(path)
    assert Checkpoints(str(tmp_path), 2).newest() == (None, None, None)
    assert f'{path} is not whole: ' in caplog.text  # and there is none before it


@pytest.mark.parametrize('name', ['search/epoch-0002-step-000000.npz', 'train/epoch-0001-step-000000.npz'])
def test_a_checkpoint_of_an_earlier_version(tmp_path, name):
    """It lists no members, and its folder has no list."""
    path = tmp_path / os.path.basename(name)
    with lzma.open(os.path.join(ROOT, 'tests', 'data', 'old_run', name + '.xz')) as file:
        path.write_bytes(file.read())
    checkpoints = Checkpoints(str(tmp_path), 1)
    found, arrays, what = checkpoints.newest()
    assert found == str(path) and len(arrays) > 50 and what['epoch'] > 0
    new = save(tmp_path, 3, checkpoints=checkpoints)
    assert npz(tmp_path) == [os.path.basename(new)]


# ---------------------------------------------------------------------------------------------------------------------
# What is removed
# ---------------------------------------------------------------------------------------------------------------------


def npz(folder):
    return sorted(name for name in os.listdir(str(folder)) if name.endswith('.npz'))


def resumed(folder):
    checkpoints = Checkpoints(str(folder), 2)
    checkpoints.newest()
    return checkpoints


@pytest.mark.parametrize('kind', ['float16', 'float64', 'bfloat16'])
def test_numbers_of_another_precision_are_converted(kind):
    """numpy has no bfloat16: Paddle writes the upper half of each float32, as uint16."""
    import paddle
    values = np.array([[1.5, -0.25, 3.0]], 'float32')  # exact in each of them
    given = (values.view('uint32') >> 16).astype('uint16') if kind == 'bfloat16' else values.astype(kind)
    layer = paddle.nn.Linear(1, 3)
    set_state(layer, {'weight': given, 'bias': np.zeros(3, 'float32')}, 'it')
    assert layer.weight.dtype == paddle.float32 and (layer.weight.numpy() == values).all()
    with pytest.raises(UserError, match='it does not fit this network: weight holds int64 instead of float32'):
        set_state(layer, {'weight': values.astype('int64'), 'bias': np.zeros(3, 'float32')}, 'it')
    with pytest.raises(UserError, match=f'it does not fit this network: weight holds {kind} instead of float32'):
        set_state(layer, {'weight': given, 'bias': np.zeros(3, 'float32')}, 'it', exact=True)


def test_a_longer_search_keeps_the_number_of_epochs_without_architecture_steps(tmp_path):
    """The recipe of PC-DARTS has 1 such epoch of 4 and 2 of 8."""
    words = ['--method=PC-DARTS', f'--model_save_dir={tmp_path}']
    assert search.parse_arguments([*words, '--epochs=8', '--resume']).epochs_no_archopt == 2
    Checkpoints(str(tmp_path / 'checkpoints'), 2).save(4, 0, ARRAYS, info(epoch=4, arguments={'epochs_no_archopt': 1}))
    assert search.parse_arguments([*words, '--epochs=8', '--resume']).epochs_no_archopt == 1
    assert search.parse_arguments([*words, '--epochs=8']).epochs_no_archopt == 2
    assert search.parse_arguments([*words, '--epochs=8', '--resume', '--epochs_no_archopt=3']).epochs_no_archopt == 3
    for other in ([1], '1', -1, True):  # of a file that somebody changed
        Checkpoints(str(tmp_path / 'checkpoints'), 2).save(4, 0, ARRAYS, info(epoch=4,
                                                                              arguments={'epochs_no_archopt': other}))
        assert search.parse_arguments([*words, '--epochs=8', '--resume']).epochs_no_archopt == 2


def test_the_last_ones_are_kept(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), 2)
    for epoch in (9998, 9999, 10000, 10001):
        save(tmp_path, epoch, checkpoints=checkpoints)
    assert npz(tmp_path) == ['epoch-10000-step-000000.npz', 'epoch-10001-step-000000.npz']
    save(tmp_path, 10002, checkpoints=resumed(tmp_path))
    assert npz(tmp_path) == ['epoch-10001-step-000000.npz', 'epoch-10002-step-000000.npz']


def test_those_of_an_earlier_run_stay_until_the_first_epoch_is_complete(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), 2)
    for epoch in (1, 2):
        save(tmp_path, epoch, checkpoints=checkpoints)
    earlier = npz(tmp_path)
    again = Checkpoints(str(tmp_path), 2)
    for step in (1, 2, 3):
        save(tmp_path, 0, step, checkpoints=again)
    own = ['epoch-0000-step-000002.npz', 'epoch-0000-step-000003.npz']
    assert npz(tmp_path) == own + earlier
    found = resumed(tmp_path)  # goes on from the run that was started last
    assert [os.path.basename(path) for path in found.paths()] == own[::-1]
    save(tmp_path, 1, checkpoints=found)
    assert npz(tmp_path) == [own[1], 'epoch-0001-step-000000.npz']


def test_files_that_no_run_in_the_folder_wrote_are_left_alone(tmp_path):
    others = ['epoch-0000-step-000009.npz', 'epoch-0099-step-000000.npz']
    for name in others:
        (tmp_path / name).write_bytes(b'mine')
    checkpoints = Checkpoints(str(tmp_path), 1)
    for epoch in (1, 2):
        path = save(tmp_path, epoch, checkpoints=checkpoints)
    assert npz(tmp_path) == [others[0], os.path.basename(path), others[1]]
    assert Checkpoints(str(tmp_path), 1).newest()[0] == path
    assert all((tmp_path / name).read_bytes() == b'mine' for name in others)
    (tmp_path / 'epoch-0003-step-000000.npz').write_bytes(b'mine')
    with pytest.raises(UserError, match='no run in this folder wrote the file of that name'):
        save(tmp_path, 3, checkpoints=checkpoints)
    assert (tmp_path / 'epoch-0003-step-000000.npz').read_bytes() == b'mine' and os.path.exists(path)


@pytest.mark.parametrize('text', ['', '[]', '{"files": 3}', '{"files": ["../a", 5], "earlier": []}', '{'])
def test_a_list_of_another_form_takes_nothing_away(tmp_path, text):
    path = save(tmp_path, 1)
    (tmp_path / LIST).write_text(text)
    (tmp_path / 'a').write_text('mine')
    save(tmp_path, 2)
    assert (tmp_path / 'a').read_text() == 'mine' and read_checkpoint(path.replace('0001', '0002'))
