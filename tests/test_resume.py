"""A run that was killed, stopped or ran out of disk space resumes from its newest valid checkpoint, bit for bit."""
import json
import os
import random
import resource
import signal
import subprocess
import time

import numpy as np
import paddle
import pytest
from conftest import ROOT, SMALL, WAIT, has_line, run, run_ranks, start, start_ranks, wait_for
from PIL import Image

import reader
from nas.options import CheckpointOptions, MonitorOptions
from pipeline.loader import TRAIN, VALID, BatchLoader
from pipeline.sources import ArrayImages
from runtime.checkpoint import Checkpoints
from runtime.errors import UserError
from runtime.states import optimizer_state, set_optimizer_state

FLAGS = [*SMALL, '--epochs=3', '--batch_size=8', '--save_freq=1']
RUNS = {
    'first order': ['search.py', *FLAGS, '--method=DARTS', '--use_multiprocess=False'],
    'second order': ['search.py', *FLAGS, '--method=DARTS', '--unrolled=True', '--use_multiprocess=False'],
    'PC-DARTS': ['search.py', *FLAGS, '--method=PC-DARTS', '--epochs_no_archopt=1'],  # with worker processes
    'train': ['train.py', *FLAGS, '--auxiliary=False', '--drop_path_prob=0.3', '--use_multiprocess=False'],
    'GDAS': ['search.py', *FLAGS, '--method=GDAS', '--use_multiprocess=False'],
    'DrNAS': ['search.py', *FLAGS, '--method=DrNAS', '--init_channels=12', '--use_multiprocess=False'],
    'FairDARTS': ['search.py', *FLAGS, '--method=FairDARTS', '--use_multiprocess=False'],
    'DARTS-': ['search.py', *FLAGS, '--method=DARTS-', '--use_multiprocess=False'],
    'train_imagenet': ['train_imagenet.py', '--data_dir=photos', '--image_size=32', '--init_channels=4', '--layers=3',
                       '--epochs=3', '--batch_size=8', '--save_freq=1', '--log_freq=1', '--auxiliary=False',
                       '--use_multiprocess=False'],
    'two ranks': ['search.py', *FLAGS, '--method=PC-DARTS', '--batch_size=4', '--use_data_parallel', '1'],
}
COSTS = {'seconds', 'reader_cost', 'batch_cost', 'images_per_second', 'peak_memory_mb'}


def words(kind, folder, *more):
    """The name and the flags of a script, a checkpoint at every step; output to a folder."""
    return [*RUNS[kind], '--model_save_dir=' + folder, *more]


def without_save_freq(flags):
    return [flag for flag in flags if not flag.startswith('--save_freq')]


def outcome(folder):
    """All of a finished run that must not depend on interruptions; the last checkpoint holds every state."""
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
    """The outcomes of uninterrupted runs, one of each kind, made when they are asked for."""
    folder, done = tmp_path_factory.mktemp('whole'), {}

    def get(kind):
        if kind not in done:
            write_photos(folder / 'photos')
            finish(folder, kind, *words(kind, kind))
            done[kind] = outcome(folder / kind)
            assert len(done[kind][0]) == 3 and len(done[kind][1]) > 50 and done[kind][2]
        return done[kind]
    return get


def finish(folder, kind, *command):
    """Run a command to its end."""
    if kind == 'two ranks':
        status, logs = run_ranks(folder, *command)
        assert status == 0, logs
    else:
        result = run(folder, *command)
        assert result.returncode == 0, result.stderr


def write_photos(folder):
    """48 random training and 8 validation images of two classes, with their lists."""
    generator = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for number in range(56):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), 'uint8')).save(folder / f'{number}.png')
    for name, numbers in (('train_list.txt', range(48)), ('val_list.txt', range(48, 56))):
        (folder / name).write_text(''.join(f'{number}.png {number % 2}\n' for number in numbers))


def count_steps(path):
    """The number of steps that a log tells of."""
    return open(path, errors='replace').read().count(', Step') if os.path.exists(path) else 0


def kill(process):
    """Kill a script or, under the launcher, one of its ranks: the other one and the launcher end by themselves then.

    Returns when all of them have ended."""
    children = subprocess.run(['ps', '-ww', '-o', 'pid=,args=', '--ppid', str(process.pid)], stdout=subprocess.PIPE,
                              text=True)
    ranks = [int(line.split()[0]) for line in children.stdout.splitlines() if '--use_data_parallel' in line]
    os.kill(ranks[-1] if ranks else process.pid, signal.SIGKILL)
    process.communicate(timeout=WAIT)
    assert all(wait_for(lambda rank=rank: not os.path.exists(f'/proc/{rank}')) for rank in ranks)


@pytest.mark.parametrize('kind', list(RUNS))
def test_killed_at_random_moments_it_ends_with_the_same_bits(whole, tmp_path, kind):
    """KILLS=N in the environment: N kills of each kind, default 2. A checkpoint is written at every step, so a moment
    after a step may hit a save; from the second step of a process on there is one to go on from."""
    write_photos(tmp_path / 'photos')
    moments, kills = random.Random(kind), int(os.environ.get('KILLS', '2'))
    for number in range(kills):
        command, log = words(kind, 'run', '--resume'), tmp_path / 'log'
        if kind == 'two ranks':
            log = tmp_path / f'log {number}' / 'workerlog.0'
            process = start_ranks(tmp_path, *command, launcher=('--nproc_per_node', '2', '--log_dir', log.parent.name))
        else:
            process = start(tmp_path, *command)
        try:
            steps = moments.randint(2, 3)
            assert wait_for(lambda steps=steps, log=log: count_steps(log) >= steps, process), log.read_text()
            time.sleep(moments.uniform(0, 0.3))
            kill(process)
        finally:
            process.kill()
        assert kind == 'two ranks' or process.returncode in (0, -signal.SIGKILL), log.read_text()
        if process.returncode == 0:
            break
    finish(tmp_path, kind, *words(kind, 'run', '--resume'))
    assert 'resumed at epoch' in (tmp_path / 'run' / 'train.log').read_text()
    for mine, expected in zip(outcome(tmp_path / 'run'), whole(kind)):
        assert mine == expected


@pytest.mark.parametrize('when', ['before', 'after'])
def test_killed_during_a_save(whole, tmp_path, when):
    """At the 9th file: just before its rename and just after it, where a save could be torn."""
    name, *flags = words('first order', 'run')
    assert run(tmp_path, 'kill_during_save.py', ROOT, when, *flags).returncode == -signal.SIGKILL
    assert run(tmp_path, name, *flags, '--resume').returncode == 0
    for mine, expected in zip(outcome(tmp_path / 'run'), whole('first order')):
        assert mine == expected


@pytest.mark.parametrize('kind, number, status', [('PC-DARTS', signal.SIGTERM, 143), ('train', signal.SIGINT, 130)])
def test_signals_finish_the_step_and_save(whole, tmp_path, kind, number, status):
    """The signal goes to the whole group, as Ctrl-C does: worker processes get it too."""
    command = without_save_freq(words(kind, 'run'))
    process = start(tmp_path, *command, start_new_session=True)
    try:
        wait_for(has_line(tmp_path / 'log', 'Epoch 1, Step 1'), process)
        os.killpg(process.pid, number)
        assert process.wait(WAIT) == status, (tmp_path / 'log').read_text()
    finally:
        process.kill()
    last = (tmp_path / 'log').read_text().splitlines()[-1]
    assert f'stopped by {number.name} before epoch 1, step' in last and '--resume goes on from there' in last
    assert run(tmp_path, *command, '--resume').returncode == 0
    mine, expected = outcome(tmp_path / 'run'), whole(kind)
    assert mine[0] == expected[0] and mine[1] == expected[1] and mine[2] == expected[2]


def test_a_second_signal_ends_it_at_once_and_one_before_the_first_step_too(tmp_path):
    name, *flags = without_save_freq(words('first order', 'run'))
    assert run(tmp_path, 'signal_during_save.py', ROOT, *flags).returncode == 143

    process = start(tmp_path, name, *flags)
    try:
        wait_for(has_line(tmp_path / 'log', 'arguments:'), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
    finally:
        process.kill()
    errors = (tmp_path / 'log').read_text()
    assert 'Traceback' not in errors and 'stopped by SIGINT' in errors.splitlines()[-1]


def test_a_signal_while_nothing_is_saved_ends_a_script_with_one_line(tmp_path):
    process = start(tmp_path, 'train.py', '--summary', '--arch=PC_DARTS', '--batch_size=64')
    try:
        wait_for(has_line(tmp_path / 'log', 'one forward and one backward pass'), process)
        process.terminate()
        assert process.wait(WAIT) == 143
    finally:
        process.kill()
    lines = (tmp_path / 'log').read_text().splitlines()
    assert lines[-1] == 'train.py: error: stopped by SIGTERM' and 'Traceback' not in ' '.join(lines)


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
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, how):
    command = words('first order', 'run')
    assert run(tmp_path, *command, '--epochs=1').returncode == 0
    before = outcome(tmp_path / 'run')
    paths = Checkpoints(str(tmp_path / 'run' / 'checkpoints'), 2).paths()
    assert [os.path.basename(path) for path in paths] == ['epoch-0001-step-000000.npz', 'epoch-0000-step-000004.npz']
    damage(paths[0], how)
    result = run(tmp_path, *command, '--epochs=1', '--resume')
    assert result.returncode == 0, result.stderr
    assert 'epoch-0001-step-000000.npz is not whole, the one before it is taken' in result.stderr
    assert 'resumed at epoch 0, step 4' in result.stderr
    assert outcome(tmp_path / 'run') == before


def test_other_arguments_are_refused_by_name_and_free_ones_are_not(tmp_path):
    command = words('first order', 'run')
    assert run(tmp_path, *command, '--epochs=1').returncode == 0
    for change, message in (
            (['--layers=4'], 'was made with --layers=3; now it is 4'),
            (['--seed=1'], 'was made with --seed=0; now it is 1'),
            (['--method=PC-DARTS', '--unrolled'],  # the recipe of the other method is named too
             '--learning_rate_min=0.001, --method=DARTS, --unrolled=False; now it is 0.0006, 0.1, 0.0, PC-DARTS, True'),
            (['--trainset_num=100'], '--trainset_num=64')):
        result = run(tmp_path, *command, '--resume', *change)
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1], result.stderr
    before = outcome(tmp_path / 'run')
    for resume in (['--resume'], []):
        result = run(tmp_path, *words('train', 'run'), *resume)
        assert result.returncode == 2 and result.stderr.endswith(
            '--model_save_dir: run is the output directory of a search: give another one\n')
    assert outcome(tmp_path / 'run') == before
    os.rename(str(tmp_path / 'run'), str(tmp_path / 'moved'))
    result = run(tmp_path, *command, '--resume', '--epochs=2', '--log_freq=7', '--model_save_dir=moved', '--keep=1',
                 '--save_freq=0', '--save_params=False', '--use_multiprocess=True', '--num_workers=2')
    assert result.returncode == 0, result.stderr
    kept = [path.name for path in (tmp_path / 'moved' / 'checkpoints').glob('*.npz')]
    assert kept == ['epoch-0002-step-000000.npz']  # --keep=1
    assert sorted(os.listdir(str(tmp_path / 'moved' / '1'))) == ['genotype.json']
    assert len((tmp_path / 'moved' / 'metrics.jsonl').read_text().splitlines()) == 2
    log = (tmp_path / 'moved' / 'train.log').read_text()
    assert 'arguments: ' in log.split('resumed')[0]  # the log is continued


@pytest.mark.parametrize('kind', ['first order', 'train'])
def test_resuming_what_is_done_says_so(tmp_path, kind):
    command = words(kind, 'run', '--epochs=2', '--save_freq=0')
    assert 'nothing to do' not in run(tmp_path, *command).stderr
    before = outcome(tmp_path / 'run')
    for epochs in (2, 1):
        result = run(tmp_path, *command, '--resume', f'--epochs={epochs}')
        assert result.returncode == 0, result.stderr
        line = f'nothing to do: 2 epochs are done and --epochs={epochs}; a larger --epochs goes on'
        assert result.stderr.count(line) == 1
    assert outcome(tmp_path / 'run') == before


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """Files may grow to 300 kB: as much as a log needs, less than a checkpoint."""
    command = words('first order', 'run')
    assert run(tmp_path, *command, '--epochs=1').returncode == 0
    folder = tmp_path / 'run' / 'checkpoints'
    before = {path.name: path.read_bytes() for path in folder.glob('*.npz')}
    assert min(map(len, before.values())) > 400000

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000))
    result = run(tmp_path, *command, '--resume', preexec_fn=limit)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.endswith('File too large') and 'cannot write' in last
    assert {path.name: path.read_bytes() for path in folder.glob('*.npz')} == before
    assert not list(folder.glob('.*')), 'a temporary file is left'


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    result = run(tmp_path, *words('first order', 'run', '--learning_rate=1e30'))
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
    command = ['search.py', *FLAGS, '--use_data_parallel', '1', '--method=PC-DARTS', '--epochs=6']
    assert run_ranks(tmp_path, *command, '--model_save_dir=whole')[0] == 0
    launcher = ('--nproc_per_node', '2', '--log_dir', 'stopped')
    process = start_ranks(tmp_path, *command, '--model_save_dir=run', launcher=launcher)
    log = tmp_path / 'stopped' / 'workerlog.0'
    try:
        wait_for(has_line(log, 'Epoch 0, Step 1'), process)
        process.terminate()
        process.communicate(timeout=WAIT)
    finally:
        process.kill()
    assert process.returncode != 0 and 'stopped by SIGTERM before epoch' in log.read_text(errors='replace')
    status, logs = run_ranks(tmp_path, *command, '--model_save_dir=run', '--resume')
    assert status == 0 and 'resumed at epoch' in logs[0], logs
    assert outcome(tmp_path / 'run') == outcome(tmp_path / 'whole')


def test_weights_without_a_gradient_so_far_can_be_resumed():
    """Such as those of operations that GDAS has not drawn: the optimizer holds no velocity for them."""
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
        searcher = DARTSearch(model, Users(), Users(), paddle.CPUPlace(), batchsize=4, num_epochs=2,
                              save_dir=str(tmp_path / folder), monitor=MonitorOptions(validate=False),
                              checkpoint=CheckpointOptions(resume=resume))
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


@pytest.mark.parametrize('valid_images', [12, 20])  # 4 steps: more than a pass of 12, less than one of 20
def test_the_eigenvalue_is_the_same_after_a_stop_at_an_epochs_last_step(tmp_path, valid_images):
    """Its batch and its draws are those of the unbroken run, though no step of the epoch is left to begin a pass."""
    from model_search import Network
    from nas.searcher import DARTSearch
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (36, 3, 8, 8)).astype('uint8'), np.arange(36) % 3
    source = ArrayImages(images, labels, reader.augmentation_of('cifar10', 8, False, 16))

    def search(folder, resume, stop_at=None):
        paddle.seed(1)
        halves = [BatchLoader(source.subset(np.asarray(part)), 4, shuffle=True, stream=stream)
                  for part, stream in ((range(20, 36), TRAIN), (range(valid_images), VALID))]
        searcher = DARTSearch(Network(4, 3, 1, 'GDAS', steps=2, multiplier=2), *halves, paddle.CPUPlace(), num_epochs=2,
                              arch_learning_rate=0.1, save_dir=str(tmp_path / folder),
                              monitor=MonitorOptions(validate=False, eigenvalue_freq=1),
                              checkpoint=CheckpointOptions(resume=resume))
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
    """800 steps; the peak of the last quarter may be 2 % above that of the second."""
    if not os.path.exists('/proc/self/statm'):
        pytest.skip('this system has no /proc')
    result = run(tmp_path, 'memory_of_a_search.py', ROOT, *SMALL, '--epochs=8', '--layers=1', '--trainset_num=400',
                 '--batch_size=2', '--log_freq=500', '--validate=False', '--save_freq=40', '--use_multiprocess=False',
                 '--method=PC-DARTS')
    assert result.returncode == 0, result.stderr
    steps, second, last = map(int, result.stdout.split('peaks')[1].split())
    assert steps == 800 and last <= 1.02 * second, (second, last)
