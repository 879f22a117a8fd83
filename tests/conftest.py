"""What several tests share: running the scripts as a user does, small data, the quick and the slow tests."""
import contextlib
import glob
import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from unittest import mock

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), 'shared')
PROGRAMS = os.path.join(ROOT, 'tests', 'programs')  # started by tests as processes of their own
sys.path.insert(0, ROOT)

from kernels import compiled  # noqa: E402  before Paddle, as the scripts do
from runtime.log import logger, quiet_warnings  # noqa: E402
from runtime.script import run_script  # noqa: E402

quiet_warnings()

# Seconds after which a test gives up on another process. No test measures time: a busy machine may need most of this.
WAIT = 600 * float(os.environ.get('TEST_WAIT_SCALE', '1'))

# The flags of a run of seconds: 4 steps an epoch, 3 cells. Later flags override earlier ones.
SMALL = ['--dataset=digits', '--init_channels=4', '--layers=3', '--trainset_num=64', '--batch_size=16', '--log_freq=1']

needs_numba = pytest.mark.skipif(compiled.numba is None, reason='numba is not installed')


# ---------------------------------------------------------------------------------------------------------------------
# Quick and slow tests
# ---------------------------------------------------------------------------------------------------------------------

# `make test-fast` leaves out what is marked slow: tests whose names begin like these, tests that run whole scripts
# unless those end within a second, the full set of parity numbers, and whatever has @pytest.mark.slow.
SLOW = ('test_budget', 'test_perturbation.py', 'test_resume.py', 'test_parallel.py', 'test_stages.py',
        'test_precompile.py', 'test_train.py', 'test_parity_methods.py', 'test_onnx.py::test_every_cell',
        'test_onnx.py::test_an_exported',
        'test_onnx.py::test_a_network', 'test_hostile_inputs.py', 'test_bad_input.py::test_a_wrong_input',
        'test_parity_search.py::test_trajectory', 'test_parity_network.py::test_parameters',
        'test_acceleration.py::test_every_method_in_double_precision', 'test_acceleration.py::test_random_small',
        'test_acceleration.py::test_copies', 'test_acceleration.py::test_compiled_passes',
        'test_acceleration.py::test_changes_are_noticed', 'test_imports.py::test_numba',
        'test_imports.py::test_the_change')
QUICK_SCRIPTS = ('test_bad_input.py::test_a_wrong_argument', 'test_bad_input.py::test_help', 'test_visualize')


# `make test` leaves out what is marked long: tests of many seconds whose subject another test has too.
LONG = ('test_precompile.py::test_the_first_step_finds_all_loops_compiled[DARTS]',
        'test_resume.py::test_killed_at_random_moments',
        'test_resume.py::test_a_long_search_holds_its_memory', 'test_resume.py::test_killed_during_a_save[after]',
        'test_resume.py::test_signals_finish_the_step_and_save[train',
        'test_resume.py::test_a_damaged_checkpoint_gives_way_to_the_one_before[flipped]',
        'test_kernel_gradients.py::test_gradients_of_a_supernet_by_some_parameters[PC-DARTS-2]',
        'test_budget_search.py::test_a_limit_that_is_never_reached_changes_no_bit[DrNAS]',
        'test_train.py::test_exported_networks_load_with_the_default_configuration[PC_DARTS]',
        'test_train.py::test_exported_networks_load_with_the_default_configuration[DARTS_V1]',
        'test_parallel.py::test_two_ranks_compute_what_one_does_with_both_batches[PC-DARTS',
        'test_parallel.py::test_two_ranks_compute_what_one_does_with_both_batches[DARTS-True]',
        'test_parallel.py::test_two_launchers', 'test_parallel.py::test_one_process_says_so[launcher1]',
        'test_parity_network.py::test_parameters_and_multiply_adds[imagenet',
        'test_curves.py::test_the_weights_of_a_search_are_those_of_its_method[PC-DARTS',
        'test_curves.py::test_the_example_of_another_space', 'test_acceleration.py::test_random_small',
        'test_nasbench201.py::test_a_search_with_every_method_resumes_to_the_same_bits[DARTS-',
        'test_nasbench201.py::test_a_search_with_every_method_resumes_to_the_same_bits[FairDARTS',
        'test_methods.py::test_a_search_with_each_method[DARTS--True]',
        'test_methods.py::test_a_search_with_each_method[DrNAS-True]',
        'test_train.py::test_an_exported_model_gives_the_networks_logits_on_real_images[jit]',
        'test_onnx.py::test_every_cell', 'test_budget_search.py::test_ten_short_searches',
        'test_perturbation.py::test_the_command_by_perturbation',
        *(f'test_perturbation.py::test_every_method_derives_a_whole_cell_and_resumes_to_the_same_bits[{method}]'
          for method in ('PC-DARTS', 'DARTS-', 'FairDARTS', 'GDAS', 'DrNAS')),
        'test_parallel.py::test_ranks_that_disagree', 'test_resume.py::test_resuming_what_is_done_says_so[train]',
        'test_onnx.py::test_an_exported_network_takes_batches_of_any_size[NetworkImageNet]',
        'test_streams.py::test_a_search_whose_progress_is_lost_succeeds[2>&-]')


def pytest_collection_modifyitems(items):
    for item in items:
        path, _, test = item.nodeid.partition('::')
        name = f'{os.path.basename(path)}::{test}'
        if name.startswith(SLOW) or 'script' in item.fixturenames and not name.startswith(QUICK_SCRIPTS):
            item.add_marker(pytest.mark.slow)
        if name.startswith(LONG):
            item.add_marker(pytest.mark.long)


# ---------------------------------------------------------------------------------------------------------------------
# Other processes
# ---------------------------------------------------------------------------------------------------------------------


def command(name, *arguments):
    """The words that run a script of the project, a program of tests/programs/ or any other Python file."""
    folder = next((folder for folder in (ROOT, PROGRAMS) if os.path.exists(os.path.join(folder, name))), '')
    return [sys.executable, os.path.join(folder, name), *arguments]


def run(folder, name, *arguments, timeout=WAIT, **options):
    """Run a script or a program in a folder to its end -> CompletedProcess with text."""
    return subprocess.run(command(name, *arguments), cwd=str(folder), text=True, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=timeout, **options)


def run_here(folder, name, *arguments):
    """Run a script of the project that ends with a status, such as a refusal, in this process, which saves the seconds
    of importing Paddle -> CompletedProcess with text."""
    stdout, stderr = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def hangs(number, frame):
        raise TimeoutError(f'{name} {arguments} takes more than {WAIT} s')
    handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, hangs)
    before = os.getcwd()
    signal.alarm(int(WAIT))
    try:
        os.chdir(str(folder))
        with mock.patch.object(sys, 'argv', [name, *arguments]), contextlib.redirect_stdout(stdout), \
                contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as end:
            run_script(importlib.import_module(name[:-3]).main)
    finally:
        signal.alarm(0)
        os.chdir(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True  # as a process begins; tests of log lines depend on it
    return subprocess.CompletedProcess([name, *arguments], end.value.code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture
def script(tmp_path):
    """Run a script in an empty folder: script('search.py', '--epochs=1') -> CompletedProcess with text."""
    return lambda name, *arguments, **options: run(tmp_path, name, *arguments, **options)


def start(folder, name, *arguments, log='log', **options):
    """Start a script or a program in a folder; its output goes to the file `log` in it -> Popen."""
    with open(os.path.join(str(folder), log), 'w') as file:
        return subprocess.Popen(command(name, *arguments), cwd=str(folder), stdin=subprocess.DEVNULL, stdout=file,
                                stderr=subprocess.STDOUT, **options)


def wait_for(condition, process=None):
    """Wait until condition() holds or a process has ended. Returns what condition() gives in the end."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    return condition()


def has_line(path, text):
    """A condition for wait_for: whether the file exists and contains text."""
    def condition():
        try:
            with open(str(path), errors='replace') as file:
                return text in file.read()
        except FileNotFoundError:
            return False
    return condition


def start_ranks(folder, name, *arguments, launcher=('--nproc_per_node', '2', '--log_dir', 'log')):
    """Start a script under paddle.distributed.launch -> Popen."""
    words = [sys.executable, '-m', 'paddle.distributed.launch', *launcher, *command(name, *arguments)[1:]]
    return subprocess.Popen(words, cwd=str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def run_ranks(folder, name, *arguments, **options):
    """Run a script as two processes, or as options['launcher'] says -> (status, the logs of all ranks)."""
    process = start_ranks(folder, name, *arguments, **options)
    try:
        output, _ = process.communicate(timeout=WAIT)
    finally:
        process.kill()
    logs = []
    for path in sorted(glob.glob(os.path.join(str(folder), 'log*', 'workerlog.*'))):
        with open(path, errors='replace') as log:
            logs.append(log.read())
    return process.returncode, logs or [output]


def check_refusal(result, message, status=2):
    """One line, the right status, no traceback. What a run logged before it failed stands above the line."""
    assert result.returncode == status, result.stderr
    assert 'Traceback' not in result.stderr and result.stdout == ''
    last = result.stderr.splitlines()[-1]
    assert re.search(r'\w+\.py: error: ', last) and message in last, result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Data and numbers
# ---------------------------------------------------------------------------------------------------------------------


def shared_file(*parts):
    """A path under ../shared/, which is not part of the project; skips where it is absent."""
    path = os.path.join(SHARED, *parts)
    if not os.path.exists(path):
        pytest.skip(f'{path} is not there')
    return path


def arguments(**changes):
    """What the readers ask of a script's arguments."""
    return Namespace(**dict(dict(dataset='digits', data=None, seed=0, class_num=10, trainset_num=50000, cutout=False,
                                 cutout_length=16, use_multiprocess=False, num_workers=1, max_bad_images=0,
                                 image_size=None), **changes))


def read(loader):
    """All images and labels of one pass over a loader."""
    images, labels = zip(*[(image.numpy(), label.numpy()) for image, label in loader])
    return np.concatenate(images), np.concatenate(labels)


def relative_error(value, expected):
    """The largest deviation, as a fraction of the largest expected value."""
    value, expected = np.asarray(value, 'float64'), np.asarray(expected, 'float64')
    assert value.shape == expected.shape
    return np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30)


@pytest.fixture
def float64():
    """Make new networks and tensors double precision, as the parity numbers are."""
    import paddle
    paddle.set_default_dtype('float64')
    yield
    paddle.set_default_dtype('float32')


@pytest.fixture(scope='session')
def parity(request):
    """The full set of parity numbers; with parity.in_sets, that or the extract."""
    from parity import parity_set
    return parity_set(getattr(request, 'param', 'full'))
