"""What a run shows of itself beside train.log: the VisualDL log, the table of --summary."""
import json
import os

import numpy as np
import pytest

SMALL = ['--dataset=digits', '--init_channels=4', '--layers=3', '--trainset_num=64', '--batch_size=16']


def test_visualdl_reads_back_what_a_search_logged(script, tmp_path):
    reader = pytest.importorskip('visualdl').LogReader
    result = script('search.py', *SMALL, '--epochs=2', '--method=PC-DARTS', '--use_vdl=True',
                    '--arch_learning_rate=0.1')
    assert result.returncode == 0, result.stderr
    metrics = [json.loads(line) for line in (tmp_path / 'search_cifar' / 'metrics.jsonl').read_text().splitlines()]
    names = [name for name in os.listdir(str(tmp_path / 'search_cifar' / 'vdl')) if name.startswith('vdlrecords.')]
    assert len(names) == 1
    log = reader(file_path=str(tmp_path / 'search_cifar' / 'vdl' / names[0]))
    tags = log.get_tags()
    for tag, name in (('train/train_loss', 'train_loss'), ('valid/valid_acc', 'valid_acc'), ('train/lr', 'lr'),
                      ('cost/images_per_second', 'images_per_second')):
        assert tag in tags['scalar']
        data = log.get_data('scalar', tag)
        assert [record.id for record in data] == [0, 1]
        np.testing.assert_allclose([record.value for record in data], [m[name] for m in metrics], rtol=1e-6)
    histogram = log.get_data('histogram', 'architecture/alphas_normal')[1].histogram
    counts, edges = np.histogram(np.ravel(metrics[1]['alphas'][0]), bins=len(histogram.hist))
    assert list(histogram.hist) == list(counts)
    np.testing.assert_allclose(histogram.bin_edges, edges, rtol=1e-5)
    assert {'architecture/betas_normal', 'architecture/betas_reduce',
            'architecture/alphas_reduce'} <= set(tags['histogram'])
    assert log.get_data('image', 'cells')[0].image.encoded_image_string[:4] == b'\x89PNG'


def test_without_visualdl_one_line_says_what_to_install(monkeypatch, tmp_path):
    import sys

    from pictures.vdl import VisualLog
    from runtime.errors import UserError
    monkeypatch.setitem(sys.modules, 'visualdl', None)
    with pytest.raises(UserError, match='--use_vdl: VisualDL is not installed: pip install visualdl'):
        VisualLog(str(tmp_path))


def by_hand(c, classes):
    """Parameters and multiply-adds of the stem (3x3, 3 -> 3 C, 8x8 pixels, batch norm) and of the classifier."""
    return [f'{27 * 3 * c + 6 * c:,}', f'{27 * 3 * c * 64:,}'], [f'{16 * c * classes + classes:,}',
                                                                                f'{16 * c * classes:,}']


@pytest.mark.parametrize('name', ['search.py', 'train.py'])
def test_the_summary_counts_and_ends(script, tmp_path, name):
    flags = ['--summary', '--class_num=7'] + (['--auxiliary=False', '--arch=PC_DARTS'] if name == 'train.py' else [])
    result = script(name, *SMALL, *flags)
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert {'stem', 'cells.0', 'cells.1', 'cells.2', 'classifier', 'all'} <= set(rows)
    stem, classifier = by_hand(4, 7)
    assert rows['stem'].split('[16, 12, 8, 8]')[1].split()[:2] == stem
    assert rows['classifier'].split('[16, 7]')[1].split()[:2] == classifier
    assert '[16, 16, 8, 8]' in rows['cells.0'] and '[16, 64, 2, 2]' in rows['cells.2']
    parts = [int(line.split(']')[1].split()[0].replace(',', '')) for part, line in rows.items() if ']' in line]
    assert int(rows['all'].split()[1].replace(',', '')) == sum(parts)
    assert ('224 of the architecture' in result.stdout) == (name == 'search.py')
    assert list(tmp_path.iterdir()) == []


def test_the_summary_of_the_papers_network(script):
    """4,243,728 parameters, 589,101,696 multiply-adds: the sizes that test_parity_network.py holds against the
    authors' code."""
    result = script('train.py', '--arch=DARTS_V2', '--summary', '--batch_size=1')
    assert result.stdout.split('\nall')[1].split()[:2] == ['4,243,728', '589,101,696']
