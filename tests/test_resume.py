"""A run that was killed, stopped or ran out of disk goes on from its newest whole checkpoint, to the same bits."""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest
from conftest import ROOT, arguments
from test_parallel import launch, start

import reader
from pipeline.loader import TRAIN, VALID, ArrayImages, BatchLoader
from runtime.checkpoint import Checkpoints
from runtime.errors import UserError
from runtime.run import optimizer_state, set_optimizer_state

SMALL = ['--dataset=digits', '--epochs=3', '--init_channels=4', '--layers=3', '--trainset_num=64', '--batch_size=8', '--log_freq=1',
         '--save_freq=1']
RUNS = {
    'first order': ['search.py', '--method=DARTS', '--use_multiprocess=False'],
    'second order': ['search.py', '--method=DARTS', '--unrolled=True', '--use_multiprocess=False'],
    'PC-DARTS': ['search.py', '--method=PC-DARTS', '--epochs_no_archopt=1'],  # with worker processes
    'train': ['train.py', '--auxiliary=False', '--drop_path_prob=0.3', '--use_multiprocess=False'],
}
COSTS = {'seconds', 'reader_cost', 'batch_cost', 'images_per_second', 'peak_memory_mb'}


def command(kind, folder, *more):
    return [sys.executable, os.path.join(ROOT, RUNS[kind][0])] + SMALL + RUNS[kind][1:] + ['--model_save_dir=' + folder] + list(more)


def run(words, folder, **options):
    return subprocess.run(words, cwd=str(folder), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, **options)


def outcome(folder):
    """All of a finished run that must not depend on whether it was interrupted: the last checkpoint holds every state."""
    with open(os.path.join(str(folder), 'metrics.jsonl')) as f:
        metrics = [{name: value for name, value in json.loads(line).items() if name not in COSTS} for line in f]
    newest = Checkpoints(os.path.join(str(folder), 'checkpoints'), 2).newest()[1]
    files = {}
    for name in ('genotype.json', '2/genotype.json', '2/params.pdparams', 'best_model.pdparams'):
        path = os.path.join(str(folder), name)
        if os.path.exists(path):
            with open(path, 'rb') as f:
                files[name] = f.read()
    return metrics, {name: value.tobytes() for name, value in newest.items()}, files


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Runs that nobody interrupted, one of each kind, made when they are asked for."""
    folder, done = tmp_path_factory.mktemp('whole'), {}

    def get(kind):
        if kind not in done:
            result = run(command(kind, kind), folder)
            assert result.returncode == 0, result.stderr
            done[kind] = outcome(folder / kind)
            assert len(done[kind][0]) == 3 and len(done[kind][1]) > 50 and done[kind][2]
        return done[kind]
    return get


@pytest.mark.parametrize('kind', list(RUNS))
def test_killed_at_random_moments_it_ends_with_the_same_bits(whole, tmp_path, kind):
    """Five kills each, twenty in all. A checkpoint is written at every step, so many of them hit a save."""
    moments = random.Random(kind)
    kills = 0
    for attempt in range(40):
        with open(str(tmp_path / 'log'), 'w') as log:
            process = subprocess.Popen(command(kind, 'run', '--resume'), cwd=str(tmp_path), stdout=log, stderr=log)
        try:
            if kills < 5:
                deadline = time.time() + 60
                while process.poll() is None and time.time() < deadline and ', Step' not in (tmp_path / 'log').read_text():
                    time.sleep(0.02)
                time.sleep(moments.uniform(0, 0.6))
                if process.poll() is None:
                    process.kill()
                    kills += 1
            status = process.wait(60)
        finally:
            process.kill()
        if status == 0:
            break
        assert status == -signal.SIGKILL, (tmp_path / 'log').read_text()
    assert kills >= 3
    assert 'resumed at epoch' in (tmp_path / 'run' / 'train.log').read_text()
    for mine, expected in zip(outcome(tmp_path / 'run'), whole(kind)):
        assert mine == expected


@pytest.mark.parametrize('when', ['before', 'after'])
def test_killed_during_a_save(whole, tmp_path, when):
    """At the 9th file that is put in its place: the moments before and after a rename are those where a save could be torn."""
    killer = ('import os, sys; sys.path.insert(0, {root!r}); import checkpoint; real, count = os.replace, [0]\n'
              'def replace(*names):\n'
              '    count[0] += 1\n'
              '    {kill_before}\n'
              '    real(*names)\n'
              '    {kill_after}\n'
              'checkpoint.os.replace = replace; sys.argv = sys.argv[1:]; import search; search.main()')
    kill = 'count[0] == 9 and os.kill(os.getpid(), 9)'
    source = killer.format(root=ROOT, kill_before=kill if when == 'before' else 'pass', kill_after=kill if when == 'after' else 'pass')
    words = command('first order', 'run')
    assert run([words[0], '-c', source] + words[1:], tmp_path).returncode == -signal.SIGKILL
    assert run(command('first order', 'run', '--resume'), tmp_path).returncode == 0
    for mine, expected in zip(outcome(tmp_path / 'run'), whole('first order')):
        assert mine == expected


@pytest.mark.parametrize('kind, number, status', [('PC-DARTS', signal.SIGTERM, 143), ('train', signal.SIGINT, 130)])
def test_signals_finish_the_step_and_save(whole, tmp_path, kind, number, status):
    """The signal goes to the whole group, as Ctrl-C does: worker processes get it too."""
    words = [word for word in command(kind, 'run') if not word.startswith('--save_freq')]
    with open(str(tmp_path / 'log'), 'w') as log:
        process = subprocess.Popen(words, cwd=str(tmp_path), stdout=log, stderr=log, start_new_session=True)
    try:
        while process.poll() is None and 'Epoch 1, Step 1' not in (tmp_path / 'log').read_text():
            time.sleep(0.02)
        os.killpg(process.pid, number)
        assert process.wait(60) == status, (tmp_path / 'log').read_text()
    finally:
        process.kill()
    last = (tmp_path / 'log').read_text().splitlines()[-1]
    assert f'stopped by {number.name} before epoch 1, step' in last and '--resume goes on from there' in last
    assert run(words + ['--resume'], tmp_path).returncode == 0
    mine, expected = outcome(tmp_path / 'run'), whole(kind)
    assert mine[0] == expected[0] and mine[1] == expected[1] and mine[2] == expected[2]


def test_a_second_signal_ends_it_at_once_and_one_before_the_first_step_too(tmp_path):
    source = (f'import sys; sys.path.insert(0, {ROOT!r}); import os, signal, time, resume\n'
              'def save(self):\n'
              '    os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)\n'  # the second one comes while the first one's save hangs
              'resume.Run.save = save\n'
              'end_step = resume.Run.end_step\n'
              'def ask(self, *a):\n'
              '    os.kill(os.getpid(), signal.SIGTERM); end_step(self, *a)\n'
              'resume.Run.end_step = ask\n'
              'sys.argv = sys.argv[1:]; import search; from utility import run_script; run_script(search.main)')
    words = [word for word in command('first order', 'run') if not word.startswith('--save_freq')]
    begin = time.time()
    assert run([words[0], '-c', source] + words[1:], tmp_path).returncode == 143
    assert time.time() - begin < 25

    process = subprocess.Popen(words, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if 'arguments:' in line:
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in errors and 'stopped by SIGINT' in errors.splitlines()[-1]


def damage(path, how):
    with open(path, 'rb') as f:
        content = bytearray(f.read())
    if how == 'truncated':
        content = content[:len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    with open(path, 'wb') as f:
        f.write(content)


@pytest.mark.parametrize('how', ['truncated', 'flipped'])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path, how):
    words = command('first order', 'run')
    assert run(words + ['--epochs=1'], tmp_path).returncode == 0
    paths = Checkpoints(str(tmp_path / 'run' / 'checkpoints'), 2).paths()
    assert [os.path.basename(path) for path in paths] == ['epoch-0001-step-000000.npz', 'epoch-0000-step-000004.npz']
    damage(paths[0], how)
    result = run(words + ['--epochs=1', '--resume'], tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'epoch-0001-step-000000.npz is not whole, the one before it is taken' in result.stderr
    assert 'resumed at epoch 0, step 4' in result.stderr


def test_other_arguments_are_refused_by_name_and_free_ones_are_not(tmp_path):
    words = command('first order', 'run')
    assert run(words + ['--epochs=1'], tmp_path).returncode == 0
    for change, message in ((['--layers=4'], 'was made with --layers=3; now it is 4'), (['--seed=1'], 'was made with --seed=0; now it is 1'),
                            (['--method=PC-DARTS', '--unrolled'], '--method=DARTS, --unrolled=False; now it is 0.0, PC-DARTS, True'),
                            (['--trainset_num=100'], '--trainset_num=64')):
        result = run(words + ['--resume'] + change, tmp_path)
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1], result.stderr
    os.rename(str(tmp_path / 'run'), str(tmp_path / 'moved'))
    result = run(words + ['--resume', '--epochs=2', '--log_freq=7', '--model_save_dir=moved', '--keep=1', '--save_freq=0', '--save_params=False',
                          '--use_multiprocess=True', '--num_workers=2'], tmp_path)
    assert result.returncode == 0, result.stderr
    assert os.listdir(str(tmp_path / 'moved' / 'checkpoints')) == ['epoch-0002-step-000000.npz']  # --keep=1
    assert sorted(os.listdir(str(tmp_path / 'moved' / '1'))) == ['genotype.json']
    assert len((tmp_path / 'moved' / 'metrics.jsonl').read_text().splitlines()) == 2
    assert 'arguments: ' in (tmp_path / 'moved' / 'train.log').read_text().split('resumed')[0]  # the log goes on, it isn't begun anew


@pytest.mark.parametrize('kind', ['first order', 'train'])
def test_resuming_what_is_done_says_so(tmp_path, kind):
    words = command(kind, 'run') + ['--epochs=2', '--save_freq=0']
    assert 'nothing to do' not in run(words, tmp_path).stderr
    before = outcome(tmp_path / 'run')
    for epochs in (2, 1):
        result = run(words + ['--resume', f'--epochs={epochs}'], tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count(f'nothing to do: 2 epochs are done and --epochs={epochs}; a larger --epochs goes on') == 1
    assert outcome(tmp_path / 'run') == before


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """Files may grow to 300 kB: as much as a log needs, less than a checkpoint."""
    words = command('first order', 'run')
    assert run(words + ['--epochs=1'], tmp_path).returncode == 0
    before = {path: open(path, 'rb').read() for path in Checkpoints(str(tmp_path / 'run' / 'checkpoints'), 2).paths()}
    assert min(map(len, before.values())) > 400000

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000))
    result = run(words + ['--resume'], tmp_path, preexec_fn=limit)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert result.stderr.splitlines()[-1].endswith('File too large') and 'cannot write' in result.stderr.splitlines()[-1]
    assert {path: open(path, 'rb').read() for path in Checkpoints(str(tmp_path / 'run' / 'checkpoints'), 2).paths()} == before
    assert not [name for name in os.listdir(str(tmp_path / 'run' / 'checkpoints')) if name.startswith('.')]


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    result = run(command('first order', 'run', '--learning_rate=1e30'), tmp_path)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert 'learning rate 1e+30' in last and 'try a lower --learning_rate' in last and 'epoch 0, step' in last
    path, arrays, _ = Checkpoints(str(tmp_path / 'run' / 'checkpoints'), 2).newest()
    assert path is None or all(np.isfinite(value).all() for value in arrays.values() if value.dtype.kind == 'f')


def test_checkpoints_of_strangers_run_no_code(tmp_path):
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    np.savez(str(folder / 'epoch-0001-step-000000.npz'), info=np.array([print], dtype=object))  # a pickle
    assert Checkpoints(str(folder), 2).newest() == (None, None, None)


def test_two_ranks_stop_together_and_go_on(tmp_path):
    words = [os.path.join(ROOT, 'search.py')] + SMALL + ['--use_data_parallel', '1', '--method=PC-DARTS', '--epochs=2']
    assert launch(tmp_path, *words, '--model_save_dir=whole')[0] == 0
    process = start(tmp_path, *words, '--model_save_dir=run', launcher=('--nproc_per_node', '2', '--log_dir', 'stopped'))
    log = tmp_path / 'stopped' / 'workerlog.0'
    try:
        deadline = time.time() + 60
        while time.time() < deadline and not (log.exists() and 'Epoch 0, Step 1' in log.read_text(errors='replace')):
            time.sleep(0.05)
        process.terminate()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0 and 'stopped by SIGTERM before epoch' in log.read_text(errors='replace')
    status, logs = launch(tmp_path, *words, '--model_save_dir=run', '--resume')
    assert status == 0 and 'resumed at epoch' in logs[0], logs
    assert outcome(tmp_path / 'run') == outcome(tmp_path / 'whole')


def test_weights_without_a_gradient_so_far_can_be_resumed():
    """As those of operations that GDAS has not drawn: the optimizer holds no velocity of theirs, and goes on as it would have."""
    def begin():
        layers = [paddle.nn.Linear(2, 2) for _ in range(2)]
        parameters = [p for layer in layers for p in layer.parameters()]
        return layers, parameters, paddle.optimizer.Momentum(0.1, parameters=parameters, weight_decay=0.01)

    def run(stop):
        paddle.seed(0)
        layers, parameters, optimizer = begin()
        for step, used in enumerate([[0], [1], [0, 1]]):
            if stop and step == 1:
                values, saved = [p.numpy() for p in parameters], optimizer_state(optimizer, parameters)
                assert sorted(saved) == ['0/velocity_0', '1/velocity_0']
                layers, parameters, optimizer = begin()
                set_optimizer_state(optimizer, parameters, saved)
                assert sorted(optimizer_state(optimizer, parameters)) == sorted(saved)
                for parameter, value in zip(parameters, values):
                    parameter.set_value(value)
            sum(layers[i](paddle.ones([1, 2])).square().sum() for i in used).backward()
            optimizer.step()
            optimizer.clear_grad()
        return [p.numpy().tobytes() for p in parameters], sorted(optimizer_state(optimizer, parameters))
    assert run(True) == run(False)


class Users(paddle.io.Dataset):
    """Twelve random images, flipped at random by numpy's own random numbers."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        image = np.random.default_rng(i).normal(size=(3, 8, 8)).astype('float32')
        return (image[:, :, ::-1].copy() if np.random.random() < 0.5 else image), np.int64(i % 3)


def test_a_search_on_a_users_dataset_goes_on_in_the_middle_of_an_epoch(tmp_path):
    """Its order and augmentation come from numpy's global random state, not from a loader that knows its place."""
    from model_search import Network
    from nas.searcher import DARTSearch

    def search(folder, resume, stop_at=None):
        paddle.seed(1)
        np.random.seed(1)
        model = Network(4, 3, 1, 'DARTS', steps=2, multiplier=2)
        searcher = DARTSearch(model, Users(), Users(), paddle.CPUPlace(), batchsize=4, num_epochs=2, save_dir=str(tmp_path / folder),
                              validate=False, resume=resume)
        if stop_at:
            steps, real = [0], searcher.train_step

            def train_step(*batches, **options):
                steps[0] += 1
                if steps[0] == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return real(*batches, **options)
            searcher.train_step = train_step
        searcher.train()
        return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}

    whole = search('whole', False)
    with pytest.raises(UserError, match='stopped by SIGTERM before epoch 1, step 2'):
        search('part', False, stop_at=5)
    assert search('part', True) == whole


@pytest.mark.parametrize('valid_images', [12, 20])  # a pass and a half and less than one beside the training half's pass
def test_the_eigenvalue_is_the_same_after_a_stop_at_an_epochs_last_step(tmp_path, valid_images):
    """Its batch and its draws are those of the unbroken run, though no step of the epoch is left to begin a pass."""
    from model_search import Network
    from nas.searcher import DARTSearch
    rng, args = np.random.default_rng(0), arguments(dataset='cifar10')
    images, labels = rng.integers(0, 256, (36, 3, 8, 8)).astype('uint8'), np.arange(36) % 3
    source = ArrayImages(images, labels, reader._augmentation(args, 8))

    def search(folder, resume, stop_at=None):
        paddle.seed(1)
        halves = [BatchLoader(source.subset(np.asarray(part)), 4, True, stream, args)
                  for part, stream in ((range(20, 36), TRAIN), (range(valid_images), VALID))]
        searcher = DARTSearch(Network(4, 3, 1, 'GDAS', steps=2, multiplier=2), *halves, paddle.CPUPlace(), num_epochs=2,
                              arch_learning_rate=0.1, save_dir=str(tmp_path / folder), validate=False, resume=resume, eigenvalue_freq=1)
        end_step = searcher.run.end_step

        def stop(step, meters):
            if stop_at == step:
                os.kill(os.getpid(), signal.SIGTERM)
            end_step(step, meters)
        searcher.run.end_step = stop
        searcher.train()
        return outcome(tmp_path / folder)

    whole = search('whole', False)
    with pytest.raises(UserError, match='stopped by SIGTERM before epoch 0, step 4'):
        search('part', False, stop_at=3)
    assert search('part', True) == whole and all(line['eigenvalue'] for line in whole[0])


def test_a_long_search_holds_its_memory(tmp_path):
    """2,000 steps; the peak of the last quarter may be 2 % above that of the second."""
    source = (f'import sys; sys.path.insert(0, {ROOT!r}); import searcher\n'
              'steps, real = [], searcher.DARTSearch.train_step\n'
              'def resident():\n'
              '    return int(open("/proc/self/statm").read().split()[1])\n'
              'def train_step(self, *a, **k):\n'
              '    result = real(self, *a, **k); steps.append(resident()); return result\n'
              'searcher.DARTSearch.train_step = train_step\n'
              'sys.argv = sys.argv[1:]; import search; search.main()\n'
              'n = len(steps); print("peaks", n, max(steps[n // 4:n // 2]), max(steps[3 * n // 4:]))')
    if not os.path.exists('/proc/self/statm'):
        pytest.skip('this system has no /proc')
    words = [sys.executable, '-c', source, 'search.py', '--dataset=digits', '--epochs=8', '--init_channels=4', '--layers=1', '--trainset_num=1000',
             '--batch_size=2', '--log_freq=500', '--validate=False', '--save_freq=100', '--use_multiprocess=False', '--method=PC-DARTS']
    result = subprocess.run(words, cwd=str(tmp_path), capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr
    steps, second, last = map(int, result.stdout.split('peaks')[1].split())
    assert steps == 2000 and last <= 1.02 * second, (second, last)
