"""The results of benchmarks/search_quality.py: which runs there are, its tables, its picture."""
import json
import math
import os
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, ROOT)

from benchmarks import quality_tables, search_quality  # noqa: E402
from genotypes import DARTS_V2, PC_DARTS, get_genotype, to_json  # noqa: E402
from pictures.accuracies import read_results  # noqa: E402
from runtime.errors import UserError  # noqa: E402

RESULTS = os.path.join(ROOT, 'benchmarks', 'results', 'nasbench201.jsonl')


def test_searches_without_a_training_are_named():
    searched = [{'name': f'DARTS, seed {seed}', 'script': 'search.py'} for seed in range(2)]
    found = quality_tables.darts_tables(searched)
    assert found == 'darts: searched DARTS, seed 0, DARTS, seed 1; no network is trained'


def test_a_training_finds_the_cell_of_a_search_on_another_machine(tmp_path):
    line = {'name': 'DARTS, seed 1', 'script': 'search.py', 'flags': {'method': 'DARTS'},
            'epochs': [{'genotype': to_json(PC_DARTS)}, {'genotype': to_json(DARTS_V2)}]}
    search_quality.restore_cells([line, dict(line, script='train.py', name='a training')], str(tmp_path))
    assert get_genotype(str(tmp_path / 'darts' / 'DARTS, seed 1' / 'genotype.json')) == DARTS_V2
    assert os.listdir(str(tmp_path / 'darts')) == ['DARTS, seed 1']


def run_line(name, accuracies, **more):
    return dict({'name': name, 'seconds': 60, 'script': 'examples/nasbench201.py', 'epochs': [
        {'epoch': number, 'test_acc_cifar10': accuracy, 'skip_connects': number} for number, accuracy
        in enumerate(accuracies)]}, **more)


def write(path, lines):
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return str(path)


ALL_CELLS = {'name': 'random cells', 'cells': 15625, 'mean': 87.06, 'deviation': 12.9, 'lowest': 10.0,
             'quartiles': [87.62, 90.74, 92.18], 'highest': 94.37}


def test_the_table_counts_seeds_and_those_above_the_median(tmp_path):
    write(tmp_path / 'nasbench201.jsonl', [ALL_CELLS, run_line('GDAS, seed 0', [0.5, 0.93]),
                                           run_line('GDAS, seed 1', [0.9, 0.89])])
    table = quality_tables.tables(str(tmp_path), 'nasbench201')
    # mean of 93 and 89 is 91, their standard deviation 4 / sqrt(2)
    assert f'| GDAS | 2 | 91.00 ± {4 / math.sqrt(2):.2f} | 89.00 to 93.00 | 1 of 2 | 1.0 | 60 |' in table


def test_early_stopping_is_the_rule_applied_to_the_eigenvalues_of_a_run(tmp_path):
    """Measured every second epoch: constant until epoch 19, ten times as large after it. The rule compares the means
    of five measurements with those four before; the first that has the large ones and an earlier mean of epoch 10 or
    later is that of epoch 22."""
    line = run_line('DARTS, seed 0', [0.9 - 0.01 * number for number in range(30)])
    for epoch in line['epochs'][::2]:
        epoch['eigenvalue'] = 1.0 if epoch['epoch'] < 20 else 10.0
    write(tmp_path / 'nasbench201.jsonl', [ALL_CELLS, line])
    # at epoch 22 the newest mean is that of epochs 14 to 22, the earlier one that of 6 to 14, counted for epoch 10
    assert '| DARTS, seed 0 | 22 | 10 | 80.00 | 61.00 |' in quality_tables.tables(str(tmp_path), 'nasbench201')


def test_the_interval_of_paired_differences(tmp_path):
    """Differences 1, 2, 3: mean 2, standard deviation 1, t(2) = 4.303: 2 ± 2.48."""
    line = quality_tables.difference_line([1.0, 2.0, 3.0])
    assert '+2.00 points' in line and '-0.48 to +4.48' in line and 'not distinguishable' in line
    assert 'different from random cells' in quality_tables.difference_line([2.0, 2.1, 1.9])


def test_every_method_has_three_seeds_and_the_same_sizes():
    runs = list(search_quality.nasbench201_runs({}, search_quality.SEEDS, ''))
    assert len(runs) == len({run.name for run in runs}) == 7 * 3
    assert {tuple(run.flags[name] for name in ('C', 'N', 'epochs', 'batch_size')) for run in runs} == {(8, 1, 30, 64)}
    rests = {run.flags['method']: run.flags['epochs_no_archopt'] for run in runs}
    assert rests['PC-DARTS'] == 30 * 15 // 50 and rests['DrNAS'] == 30 * 10 // 50 and rests['DARTS'] == 0


def test_a_random_cell_has_as_many_parameters(tmp_path):
    from genotypes import PC_DARTS, get_genotype, to_dict
    from model import NetworkCIFAR
    (tmp_path / 'genotype.json').write_text(json.dumps(to_dict(PC_DARTS)))
    text = search_quality.random_cell(str(tmp_path / 'genotype.json'), seed=3)
    sizes = [sum(parameter.size for parameter in NetworkCIFAR(16, 10, 8, False, genotype).parameters())
             for genotype in (PC_DARTS, get_genotype(text))]
    assert sizes[0] != sizes[1] and abs(sizes[1] / sizes[0] - 1) < 0.02


def test_the_picture_reads_seeds_by_method(tmp_path):
    path = write(tmp_path / 'r.jsonl', [ALL_CELLS, run_line('DARTS-, seed 0', [0.5, 0.25]),
                                        run_line('GDAS, seed 0', [1.0]), run_line('DARTS-, seed 1', [0.75])])
    methods, quartiles = read_results(path, '--results')
    assert methods == {'DARTS-': [[(0, 50.0), (1, 25.0)], [(0, 75.0)]], 'GDAS': [[(0, 100.0)]]}
    assert quartiles == [87.62, 90.74, 92.18]


@pytest.mark.parametrize('line, words', [
    ({'name': 'GDAS, seed 0'}, "line 1: the key 'epochs' is missing"),
    ({'name': 'GDAS', 'epochs': []}, 'line 1: the name must be'),
    (run_line('GDAS, seed 0', [1.5]), 'line 1: 1.5 is not a number from 0 to 1'),
    (run_line('GDAS, seed 0', []), 'line 1: it has 0 epochs'),
    ({'name': 'GDAS, seed 0', 'epochs': 5}, "line 1: 'int' object is not iterable"),
    ({'quartiles': ['x']}, "line 1: 'x' is not a number from 0 to 100"),
])
def test_a_wrong_results_file_is_named_with_its_line(tmp_path, line, words):
    path = write(tmp_path / 'r.jsonl', [line])
    with pytest.raises(UserError) as error:
        read_results(path, '--results')
    assert words in str(error.value)


@pytest.mark.skipif(not os.path.exists(RESULTS), reason='benchmarks/results/nasbench201.jsonl: not run yet')
def test_committed_accuracies_are_those_of_the_public_table():
    shared = os.path.join(ROOT, '..', 'shared', 'data', 'nasbench201.csv')
    if not os.path.exists(shared):
        pytest.skip('../shared/data/nasbench201.csv is not here')
    table = quality_tables.Table(shared)
    for result in quality_tables.read_lines(RESULTS):
        for epoch in result.get('epochs', []):
            assert abs(100 * epoch['test_acc_cifar10'] - table[epoch['genotype']].accuracy['cifar10']) < 1e-4


@pytest.mark.skipif(not os.path.exists(RESULTS), reason='benchmarks/results/nasbench201.jsonl: not run yet')
@pytest.mark.parametrize('page', ['README.md', 'README_en.md'])
def test_the_readme_has_the_means_of_the_results(page):
    accuracies = {}
    for result in quality_tables.read_lines(RESULTS):
        if result['name'] != quality_tables.RANDOM:
            method = result['name'].split(', seed')[0]
            accuracies.setdefault(method, []).append(100 * result['epochs'][-1]['test_acc_cifar10'])
    with open(os.path.join(ROOT, page), encoding='utf-8') as file:
        lines = file.read().splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith('| 90.75 % |'))
    names = [name.strip().replace('，二阶', ' second order').replace(', second order', ' second order')
             for name in lines[row - 2].split('|')[2:-2]]
    shown = dict(zip(names, [float(value.strip(' %')) for value in lines[row].split('|')[2:-2]]))
    assert set(shown) == set(accuracies) and all(len(values) == 3 for values in accuracies.values())
    for method, values in accuracies.items():
        assert shown[method] == pytest.approx(sum(values) / 3, abs=0.0051), method


def test_wall_seconds_leave_out_the_time_between_two_processes(tmp_path):
    (tmp_path / 'train.log').write_text('2026-01-01 23:59:50 arguments: --epochs=2\nsecond line of a text\n'
                                        '2026-01-02 00:00:20 Train Epoch 0\n'
                                        '2026-01-03 10:00:00 arguments: --epochs=2\n2026-01-03 10:01:05 written\n')
    assert search_quality.wall_seconds(tmp_path) == 30 + 65
