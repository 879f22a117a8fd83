"""Mistyped and hostile command lines and files: each row of data/hostile_inputs.tsv ends in one line and the right
status.

The scripts run in this process, one row after the other, in a folder of prepared files, of which none may change.
"""
import json
import os
import pickle
import shlex

import numpy as np
import pytest
from conftest import ROOT, check_refusal, run_here
from hostile_data import write_data
from test_reader import Hostile
from test_unpickle import CRAFTED

from genotypes import DARTS_V2, to_dict

FIRST_CHANGES = {  # genotype files that differ from DARTS_V2 in the first edge of the normal cell
    'op.json': ['rm -rf', 0], 'state.json': ['skip_connect', 9], 'huge_state.json': ['skip_connect', 10**30],
    'float.json': ['skip_connect', 0.0], 'true.json': ['skip_connect', True], 'text_state.json': ['skip_connect', '0'],
    'escape.json': ['\x1b[2Jskip', 0],
}


def table():
    """The rows (name, words, status, message)."""
    with open(os.path.join(ROOT, 'tests', 'data', 'hostile_inputs.tsv'), encoding='utf-8') as f:
        lines = [line.rstrip('\n').split('\t') for line in f if not line.startswith('#')]
    return [(script, [word.replace('%00', '\0') for word in shlex.split(arguments)], int(status), message)
            for script, arguments, status, message in lines]


def genotype_file(**changes):
    return json.dumps(dict(to_dict(DARTS_V2), **changes))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The files that the rows name."""
    folder = tmp_path_factory.mktemp('hostile')
    edges = to_dict(DARTS_V2)['normal']
    texts = {'empty.json': '', 'text.json': 'text', 'deep.json': '[' * 100000, 'list.json': '[]',
             'null.json': genotype_file(normal=None),
             'large.json': ' ' * (1 << 20) + '{}', 'nodes.json': genotype_file(normal=[['skip_connect', 0]] * 4000),
             'nine.json': genotype_file(normal=edges + edges[:1]), 'concat.json': genotype_file(normal_concat=[2, 99]),
             'empty_concat.json': genotype_file(normal_concat=[]), 'networks/text.json': '{"network": "os.system"}',
             'networks/broken.json': '{', 'networks/array.json': '[]'}
    texts.update((name, genotype_file(normal=[edge] + edges[1:])) for name, edge in FIRST_CHANGES.items())
    for name in ('folder', 'lists', 'empty_lists', 'networks'):
        (folder / name).mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding='utf-8')
    (folder / 'bytes.json').write_bytes(b'\xff\xfe\x00')
    (folder / 'loop').symlink_to('loop')
    os.mkfifo(str(folder / 'fifo'))
    for name in ('train_list.txt', 'val_list.txt'):
        (folder / 'lists' / name).write_text('a.jpg 1\nb.jpg\n')
        (folder / 'empty_lists' / name).write_text('\n')
    arrays = {'stem.0.weight': np.zeros((1, 2), 'float32')}
    pickles = {'call': Hostile(str(folder / 'made')), 'list': [1, 2], 'names': arrays,
               'bytes': {b'stem.0.weight': np.zeros(3)}, 'networks/text': arrays,
               'networks/broken': arrays, 'networks/array': arrays}
    for name, value in pickles.items():
        (folder / f'{name}.pdparams').write_bytes(pickle.dumps(value))
    for name, kind in (('fields', 'a state of a type with fields'), ('shape', 'a shape beyond the data'),
                       ('encodes', 'nested encodes'), ('key', 'nested tuples as a key')):
        (folder / f'{name}.pdparams').write_bytes(CRAFTED[kind][0])
    write_data(folder)
    return folder


def contents(folder):
    """Every file below a folder with its bytes; pipes and links by name."""
    paths = list(folder.rglob('*'))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths if not path.is_symlink()}


def test_the_table_is_large_enough():
    rows = table()
    assert len(rows) >= 450 and {row[0] for row in rows} == {'search.py', 'train.py', 'train_imagenet.py',
                                                             'visualize.py'}


@pytest.mark.parametrize('name, words, status, message', table(), ids=lambda value: str(value)[:60])
def test_a_hostile_input_is_one_line(folder, tmp_path, name, words, status, message):
    save = [] if name == 'visualize.py' or any('model_save_dir' in word
                                               for word in words) else [f'--model_save_dir={tmp_path}/run']
    before = contents(folder)
    result = run_here(folder, name, *words, *save)
    check_refusal(result, message, status)
    last = result.stderr.splitlines()[-1]
    assert f'{name}: error: ' in last and last.isprintable() and len(last) < 6000
    assert contents(folder) == before, 'it changed a file, or ran what a file told it to'
    assert {name for _, _, names in os.walk(str(tmp_path)) for name in names} <= {'train.log', 'metrics.jsonl'}
