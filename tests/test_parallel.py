"""Several processes compute what one computes, and fail together."""
import json
import os
import signal
import socket
import subprocess

import numpy as np
import pytest
from conftest import SMALL, WAIT, arguments, has_line, relative_error, run, run_ranks, start_ranks, wait_for

import reader

WORKER = 'parallel_worker.py'
FLAGS = [*SMALL, '--use_data_parallel', '1', '--epochs=1']


@pytest.mark.parametrize('method, unrolled', [('DARTS', False), ('DARTS', True), ('PC-DARTS', False)])
def test_two_ranks_compute_what_one_does_with_both_batches(tmp_path, method, unrolled):
    """Uneven shares, 3 and 5 images: without weighting by counts the gradients would be far off."""
    status, logs = run_ranks(tmp_path, WORKER, 'two', method, str(unrolled))
    assert status == 0, logs
    assert run(tmp_path, WORKER, 'one', method, str(unrolled)).returncode == 0
    one = np.load(str(tmp_path / 'one.rank0.npz'))
    ranks = [np.load(str(tmp_path / f'two.rank{r}.npz')) for r in (0, 1)]
    for name in one.files:
        if not name.startswith(('score', 'weights')):
            assert relative_error(ranks[0][name], one[name]) < 1e-6, name
        # the parameters that a rank's next step starts from are the same to the last bit
        assert (ranks[0][name] == ranks[1][name]).all(), name
    assert relative_error(ranks[0]['score'], one['score']) < 1e-6  # three numbers over all images, each counted once


def test_two_ranks_begin_the_second_stage_of_drnas_together(tmp_path):
    """A search ends with an error where the ranks' weights or architecture parameters differ in a bit."""
    status, logs = run_ranks(tmp_path, 'search.py', *FLAGS, '--method=DrNAS', '--init_channels=12', '--layers=1',
                             '--epochs=2', '--epochs_no_archopt=0', '--model_save_dir=run')
    assert status == 0, logs
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line)['stage'] for line in lines] == [1, 2]


@pytest.mark.parametrize('images', [pytest.param('all', marks=pytest.mark.long), 'split'])
def test_two_ranks_derive_the_same_cell_by_removals(tmp_path, images):
    """Where both ranks have all images, they derive to the bit what one process does; batch norm normalises with the
    images of its own process, so shares of 3 and 5 give other accuracies, but the same ones on both ranks."""
    status, logs = run_ranks(tmp_path, WORKER, 'two', 'derive', images)
    assert status == 0, logs
    ranks = [json.loads((tmp_path / f'two.rank{r}.json').read_text()) for r in (0, 1)]
    assert ranks[0] == ranks[1] and len(ranks[0]['decisions']) == 12
    lines = (tmp_path / 'two' / 'removals.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == ranks[0]['decisions']
    if images == 'all':
        assert run(tmp_path, WORKER, 'one', 'derive', images).returncode == 0
        assert json.loads((tmp_path / 'one.rank0.json').read_text()) == ranks[0]
    else:  # 3 batches of 8 images, each counted once
        accuracies = [accuracy for decision in ranks[0]['decisions'] for accuracy, _ in decision['without'].values()]
        assert all(abs(24 * accuracy - round(24 * accuracy)) < 1e-4 for accuracy in accuracies)


def test_two_ranks_have_the_latencies_that_the_first_one_measured(tmp_path):
    status, logs = run_ranks(tmp_path, WORKER, 'two', 'latency')
    assert status == 0, logs
    ranks = [json.loads((tmp_path / f'two.rank{r}.json').read_text()) for r in (0, 1)]
    assert [found['measured'] for found in ranks] == [1, 0] and ranks[0]['costs'] == ranks[1]['costs']
    (table,) = json.loads((tmp_path / 'two.latencies').read_text()).values()
    assert list(table.values()) == list(range(len(table)))


@pytest.mark.parametrize('batch_size', [8, 10])  # 101 images: three ranks' last batches hold 5 or 11 of them
def test_ranks_read_disjoint_images_and_together_all(monkeypatch, batch_size):
    """Three ranks with batch b read what one rank reads with batch 3 b, in training; the test set exactly once."""
    def passes(ranks, size):
        monkeypatch.setenv('PADDLE_TRAINERS_NUM', str(ranks))
        found = []
        for number in range(ranks):
            monkeypatch.setenv('PADDLE_TRAINER_ID', str(number))
            halves = reader.train_search(size, 0.5, True, arguments(trainset_num=202))
            test = reader.train_valid(size, False, False, arguments())
            found.append([[image.numpy() for image, _ in loader] for loader in (*halves, test)])
        return found

    whole = passes(1, 3 * batch_size)[0]
    ranks = passes(3, batch_size)
    for part in (0, 1):
        assert len({len(r[part]) for r in ranks}) == 1, 'ranks take a different number of steps'
        for step, batch in enumerate(whole[part]):
            assert (np.concatenate([r[part][step] for r in ranks]) == batch).all()
    everything = np.concatenate([batch for r in ranks for batch in r[2]])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, np.concatenate(whole[2])))


def test_ranks_that_disagree_are_stopped(tmp_path):
    status, logs = run_ranks(tmp_path, WORKER, 'out', 'disagree')
    assert status != 0
    assert 'the alphas of rank 1 differ from those of rank 0' in logs[0] + logs[1]


def test_search_as_the_readme_launches_it(tmp_path):
    """101 images a half on two ranks: uneven last batches. --selected_gpus has no effect on a CPU."""
    status, logs = run_ranks(tmp_path, 'search.py', *FLAGS, '--trainset_num=202', '--batch_size=16',
                             '--method=PC-DARTS',
                             launcher=('--selected_gpus=0,1', '--nproc_per_node', '2', '--log_dir', 'log'))
    assert status == 0, logs
    assert '2 processes read 32 images per step: consider --learning_rate=0.2, 2 times the default' in logs[0]
    assert 'Train Epoch' not in logs[1] and 'genotype = ' not in logs[1]
    assert sorted(os.listdir(str(tmp_path / 'search_cifar'))) == [
        '0', 'checkpoints', 'genotype.json', 'metrics.jsonl', 'train.log']
    metrics = [json.loads(line) for line in open(str(tmp_path / 'search_cifar' / 'metrics.jsonl'))]
    assert len(metrics) == 1
    # 101 images, each counted once: a multiple of 1/101
    assert abs(metrics[0]['valid_acc'] * 101 - round(metrics[0]['valid_acc'] * 101)) < 1e-4
    assert abs(metrics[0]['train_acc'] * 101 - round(metrics[0]['train_acc'] * 101)) < 1e-4


def test_train_on_two_ranks(tmp_path):
    status, logs = run_ranks(tmp_path, 'train.py', *FLAGS, '--auxiliary=False', '--trainset_num=75', '--batch_size=16',
                             '--learning_rate=0.05')
    assert status == 0, logs
    assert 'consider --learning_rate' not in logs[0]
    metrics = json.loads(open(str(tmp_path / 'eval_cifar' / 'metrics.jsonl')).read())
    assert abs(metrics['valid_acc'] * 360 - round(metrics['valid_acc'] * 360)) < 1e-4


def test_two_launchers_are_two_machines(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    launcher = ('--master', f'127.0.0.1:{port}', '--nnodes', '2', '--nproc_per_node', '1', '--log_dir', 'log')
    nodes = []
    for node in ('a', 'b'):
        (tmp_path / node).mkdir()
        nodes.append(start_ranks(tmp_path / node, 'search.py', *FLAGS, '--trainset_num=64', '--batch_size=8',
                           launcher=launcher))
    try:
        outputs = [node.communicate(timeout=WAIT)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    results = [os.path.isfile(str(tmp_path / node / 'search_cifar' / 'genotype.json')) for node in ('a', 'b')]
    assert sorted(results) == [False, True]  # rank 0 alone writes
    assert any(', 2 processes' in output for output in outputs)


def test_a_killed_rank_ends_the_job(tmp_path):
    process = start_ranks(tmp_path, 'search.py', *FLAGS, '--epochs=10000', '--batch_size=16')
    try:
        started = has_line(tmp_path / 'log' / 'workerlog.0', 'Train Epoch 1, Step 0')  # an epoch has one step
        assert wait_for(started, process), 'the search did not start'
        children = subprocess.run(['ps', '-o', 'pid=,args=', '--ppid', str(process.pid)], stdout=subprocess.PIPE,
                                  text=True)
        ranks = [int(line.split()[0]) for line in children.stdout.splitlines() if 'search.py' in line]
        assert len(ranks) == 2, children.stdout
        os.kill(ranks[1], signal.SIGKILL)
        process.communicate(timeout=WAIT)
        assert process.returncode != 0
        assert wait_for(lambda: not os.path.exists(f'/proc/{ranks[0]}')), 'the other rank is still there'
    finally:
        process.kill()


@pytest.mark.parametrize('launcher', [None, ('--selected_gpus=0,1', '--log_dir', 'log')])
def test_one_process_says_so(tmp_path, script, launcher):
    flags = [*FLAGS, '--trainset_num=32', '--use_gpu=False']
    line = ('running on 1 process; start more with python -m paddle.distributed.launch; on a CPU, set their number '
            'with --nproc_per_node')
    if launcher is None:
        result = script('search.py', *flags)
        assert result.returncode == 0 and line in result.stderr
    else:
        status, logs = run_ranks(tmp_path, 'search.py', *flags, launcher=launcher)
        assert status == 0 and line in logs[0]


def test_several_processes_without_the_flag_are_refused(tmp_path):
    status, logs = run_ranks(tmp_path, 'search.py', '--dataset=digits')
    assert status != 0
    assert 'started by paddle.distributed.launch as 2 processes: add --use_data_parallel 1' in logs[0]
    assert 'Traceback' not in logs[0]
