"""The VisualDL log: one file holds all epochs of a run, and only files that a run wrote are removed."""
import json
import os

import pytest

from genotypes import DARTS_V1, DARTS_V2, to_dict
from runtime.errors import UserError

LogReader = pytest.importorskip('visualdl').LogReader


def end_epoch(folder, log, epoch, genotype=to_dict(DARTS_V2)):
    """Write metrics.jsonl with one more line and call the log, as runtime.run.Run does after an epoch."""
    path = folder / 'metrics.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = [line for line in lines if line['epoch'] < epoch]
    lines.append({'epoch': epoch, 'train_acc': 0.1 * epoch, 'genotype': genotype,
                  'alphas': [[[0.0, 1.0]], [[1.0, 0.0]]]})
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    log(lines[-1])


def new_log(folder):
    from pictures.vdl import VisualLog
    return VisualLog(str(folder))


def records(folder):
    return sorted(name for name in os.listdir(folder / 'vdl') if name.startswith('vdlrecords.'))


def scalars(folder, tag):
    """[(epoch, value)] of the file that VisualDL shows: that of the latest name."""
    log = LogReader(file_path=str(folder / 'vdl' / records(folder)[-1]))
    return [(record.id, round(record.value, 6)) for record in log.get_data('scalar', tag)]


def test_a_new_run_replaces_the_file_of_the_run_before_after_its_first_epoch(tmp_path):
    first = new_log(tmp_path)
    assert not (tmp_path / 'vdl').exists()
    end_epoch(tmp_path, first, 0)
    end_epoch(tmp_path, first, 1)
    before = records(tmp_path)
    assert len(before) == 1 and scalars(tmp_path, 'train/train_acc') == [(0, 0), (1, 0.1)]
    second = new_log(tmp_path)
    assert records(tmp_path) == before
    os.remove(tmp_path / 'metrics.jsonl')
    end_epoch(tmp_path, second, 0)
    assert len(records(tmp_path)) == 1 and records(tmp_path) != before
    assert scalars(tmp_path, 'train/train_acc') == [(0, 0)]


def test_a_resumed_run_has_all_epochs_in_one_file(tmp_path):
    first = new_log(tmp_path)
    for epoch in range(3):
        end_epoch(tmp_path, first, epoch)
    second = new_log(tmp_path)  # from a checkpoint after epoch 1
    end_epoch(tmp_path, second, 2)
    end_epoch(tmp_path, second, 3)
    assert len(records(tmp_path)) == 1
    assert scalars(tmp_path, 'train/train_acc') == [(0, 0), (1, 0.1), (2, 0.2), (3, 0.3)]


def test_files_of_others_stay(tmp_path):
    """Whatever their names are, and whatever the list of own files says."""
    first = new_log(tmp_path)
    end_epoch(tmp_path, first, 0)
    own, = records(tmp_path)
    others = ['vdlrecords.1587375595.log', 'vdlrecords.9999999999.darts-0123456789abcdef.log', 'vdlrecords.x',
              'notes.txt']
    for name in others:
        (tmp_path / 'vdl' / name).write_text('mine')
    (tmp_path / 'victim').write_text('mine')
    listed = json.loads((tmp_path / 'vdl' / 'darts-files.json').read_text())
    assert listed == [own]
    (tmp_path / 'vdl' / 'darts-files.json').write_text(json.dumps(
        listed + ['../victim', 'notes.txt', others[0], str(tmp_path / 'victim'), 5, None]))
    os.remove(tmp_path / 'metrics.jsonl')
    end_epoch(tmp_path, new_log(tmp_path), 0)
    assert not (tmp_path / 'vdl' / own).exists()
    assert all((tmp_path / 'vdl' / name).read_text() == 'mine' for name in others)
    assert (tmp_path / 'victim').read_text() == 'mine'


@pytest.mark.parametrize('content', ['', '{}', '[', 'null', '[[]]', '[' * 100000])
def test_without_a_readable_list_nothing_is_removed(tmp_path, content):
    end_epoch(tmp_path, new_log(tmp_path), 0)
    own, = records(tmp_path)
    (tmp_path / 'vdl' / 'darts-files.json').write_text(content)
    end_epoch(tmp_path, new_log(tmp_path), 1)
    assert own in records(tmp_path) and len(records(tmp_path)) == 2


def test_cells_are_drawn_when_they_change_and_other_results_are_text(tmp_path):
    log = new_log(tmp_path)
    for epoch, genotype in enumerate([DARTS_V1, DARTS_V1, DARTS_V2]):
        end_epoch(tmp_path, log, epoch, to_dict(genotype))
    for epoch, text in ((3, '|a~0|'), (4, '|a~0|'), (5, '|b~0|')):
        end_epoch(tmp_path, log, epoch, text)
    reader = LogReader(file_path=str(tmp_path / 'vdl' / records(tmp_path)[0]))
    assert [record.id for record in reader.get_data('image', 'cells')] == [0, 2]
    assert [(record.id, record.text.encoded_text_string) for record in reader.get_data('text', 'genotype')] == [
        (3, '|a~0|'), (5, '|b~0|')]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / 'vdl').write_text('a file')
    with pytest.raises(UserError, match='--use_vdl: cannot write to .*vdl: File exists') as error:
        end_epoch(tmp_path, new_log(tmp_path), 0)
    assert error.value.status == 1 and (tmp_path / 'vdl').read_text() == 'a file'
