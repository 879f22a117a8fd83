"""The output folder of a run: no second run at the same time, nothing lost that a run did not write."""
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, WAIT, run_here, wait_for

from runtime import lock
from runtime.errors import UserError
from runtime.files import refuse_to_overwrite, remove_numbered
from runtime.lock import lock_folder, release_folder

HOLD = """
import os, sys, time
sys.path.insert(0, {root!r})
from runtime.lock import lock_folder
lock_folder({folder!r})
if {fork}:  # a worker process, which outlives it
    read, write = os.pipe()
    if os.fork() == 0:
        time.sleep({wait})
        os._exit(0)
print('held', flush=True)
time.sleep({wait})
"""


@pytest.fixture
def held(tmp_path):
    """A process that keeps a run out of tmp_path/run, with a child process."""
    (tmp_path / 'run').mkdir()
    code = HOLD.format(root=ROOT, folder=str(tmp_path / 'run'), fork=True, wait=WAIT)
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline() == 'held\n'
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT)


def run_into(folder, name, *words):
    """A script with that output folder, in this process -> (status, standard error)."""
    result = run_here(folder, name, *words, f'--model_save_dir={folder}')
    return result.returncode, result.stderr


@pytest.mark.parametrize('name', ['search.py', 'train.py', 'train_imagenet.py'])
def test_a_second_run_in_the_folder_is_refused(held, tmp_path, name):
    (tmp_path / 'run' / 'train.log').write_text('of the first\n')
    code, stderr = run_into(tmp_path / 'run', name)
    assert code == 2 and len(stderr.splitlines()) == 1
    assert f'{tmp_path}/run is in use by another run (process {held.pid} on ' in stderr
    assert (tmp_path / 'run' / 'train.log').read_text() == 'of the first\n'
    assert sorted(os.listdir(str(tmp_path / 'run'))) == [lock.NAME, 'train.log']


def test_a_killed_run_leaves_neither_a_lock_nor_temporary_files(held, tmp_path):
    folder = tmp_path / 'run'
    for name in ('checkpoints', '3', 'mine'):
        (folder / name).mkdir()
    names = ['metrics.jsonl', '3/params.pdparams', 'checkpoints/epoch-0001-step-000000.npz']
    left = [folder / os.path.dirname(name) / f'.{held.pid}.{os.path.basename(name)}' for name in names]
    others = [folder / f'.{held.pid + 1}.metrics.jsonl', folder / f'.{held.pid}.notes.txt', folder / 'metrics.jsonl',
              folder / 'mine' / f'.{held.pid}.metrics.jsonl']
    for path in left + others:
        path.write_text('x')
    with pytest.raises(UserError):
        lock_folder(str(folder))
    held.kill()
    held.wait(WAIT)
    removed = wait_for(lambda: lock_folder(str(folder)))
    try:
        assert sorted(removed) == sorted(map(str, left))
        assert not any(path.exists() for path in left) and all(path.exists() for path in others)
        assert (folder / lock.NAME).read_text().split()[0] == str(os.getpid())
    finally:
        release_folder(str(folder))
    assert not (folder / lock.NAME).exists()


def test_ranks_of_one_run_do_not_keep_each_other_out(held, tmp_path, monkeypatch):
    monkeypatch.setenv('PADDLE_TRAINER_ID', '1')
    assert lock_folder(str(tmp_path / 'run')) == []


def test_one_process_may_run_in_a_folder_again(tmp_path):
    for _ in range(2):
        assert lock_folder(str(tmp_path)) == [] == lock_folder(str(tmp_path) + '/.')
    release_folder(str(tmp_path))
    release_folder(str(tmp_path))
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('content', [b'', b'text', b'\xff\xfe', b'12', b'-1 host\n', b'1' * 5000, b'5 ../..\n'])
def test_a_lock_file_of_another_form_names_no_run(tmp_path, content):
    (tmp_path / lock.NAME).write_bytes(content)
    (tmp_path / '.12.metrics.jsonl').write_text('mine')
    assert lock_folder(str(tmp_path)) == []
    release_folder(str(tmp_path))
    assert os.listdir(str(tmp_path)) == ['.12.metrics.jsonl']


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda path: os.symlink('/etc/passwd', path),
                                  lambda path: os.symlink(path, path)], ids=['pipe', 'folder', 'link', 'loop'])
@pytest.mark.parametrize('name', [lock.NAME, 'train.log'])
def test_what_is_no_file_is_refused(tmp_path, name, make):
    if name == 'train.log' and make not in (os.mkfifo, os.mkdir):
        pytest.skip('the log may be a link')
    make(str(tmp_path / name))
    code, stderr = run_into(tmp_path, 'search.py')
    assert code == 2 and len(stderr.splitlines()) == 1 and f'--model_save_dir: {tmp_path}/{name} ' in stderr


def test_without_locks_runs_are_not_kept_apart(held, tmp_path, monkeypatch):
    """As on Windows, and on file systems that have none."""
    monkeypatch.setattr(lock, 'fcntl', None)
    assert lock_folder(str(tmp_path / 'run')) == []


# ---------------------------------------------------------------------------------------------------------------------
# What others wrote
# ---------------------------------------------------------------------------------------------------------------------

OWN = {'metrics.jsonl': '{"epoch": 0}\n', 'removals.jsonl': '{"decision": 0}\n',
       'genotype.json': '{"search": {"epoch": 3}}', 'best_model.pdparams': 'x',
       'best_model.json': '{"network": "NetworkCIFAR"}', '2/genotype.json': '{"search": {"epoch": 2}}',
       '2/params.pdparams': 'x', '0/genotype.json': '{"search": {"sample": 0}}'}
OTHERS = {
    'metrics.jsonl': ['text', '{"loss": 1}\n', '[]', '\xff', '[' * 9999],
    'removals.jsonl': ['text', '{"epoch": 1}\n'], 'genotype.json': ['{}', '[]', '', '{"search": 1}'],
    'best_model.json': ['{}', '[]', 'x'], 'best_model.pdparams': ['x'], '2/params.pdparams': ['x'],
    '2/genotype.json': ['{}', '{"search": {"epoch": 3}}', '{"search": {"epoch": true}}', '{"search": []}'],
}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding='latin-1')


def test_results_of_earlier_runs_may_be_overwritten(tmp_path):
    write(tmp_path, OWN)
    refuse_to_overwrite(str(tmp_path), [*OWN, '7/genotype.json'])


@pytest.mark.parametrize('name, text', [(name, text) for name, texts in OTHERS.items() for text in texts])
def test_files_of_others_may_not(tmp_path, name, text):
    write(tmp_path, {name: text})
    with pytest.raises(UserError, match=f'{name} was not written by a run of this program and would be overwritten'):
        refuse_to_overwrite(str(tmp_path), [*OWN])
    remove_numbered(str(tmp_path), 0)
    assert (tmp_path / name).read_text(encoding='latin-1') == text


def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / '2').mkdir()
    os.mkfifo(str(tmp_path / '2' / 'genotype.json'))
    with pytest.raises(UserError, match='2/genotype.json was not written'):
        refuse_to_overwrite(str(tmp_path), ['2/genotype.json'])
    remove_numbered(str(tmp_path), 0)


@pytest.mark.parametrize('script, words, name, text', [
    ('search.py', ['--epochs=2'], '1/genotype.json', '{"mine": true}'),
    ('search.py', ['--epochs=2'], '0/params.pdparams', 'mine'),
    ('search.py', ['--epochs=2', '--resume'], 'genotype.json', '{"mine": true}'),
    ('search.py', ['--epochs=2'], 'metrics.jsonl', '{"mine": true}\n'),
    ('search.py', ['--method=random', '--samples=3'], '2/genotype.json', '{"mine": true}'),
    ('train.py', ['--auxiliary=False'], 'best_model.pdparams', 'mine'),
    ('train.py', ['--auxiliary=False'], 'best_model.json', '{"mine": true}')])
def test_a_run_over_files_of_others_is_refused(tmp_path, script, words, name, text):
    write(tmp_path, {name: text, 'train.log': 'of an earlier run\n'})
    words = [*SMALL, *words, '--use_multiprocess=False']
    code, stderr = run_into(tmp_path, script, *words)
    assert code == 2 and 'Traceback' not in stderr
    assert f'{name} was not written by a run of this program' in stderr.splitlines()[-1]
    assert (tmp_path / name).read_text() == text
    assert (tmp_path / 'train.log').read_text() == 'of an earlier run\n' + stderr
    left = {os.path.join(folder, name) for folder, _, names in os.walk(str(tmp_path)) for name in names}
    assert left == {str(tmp_path / name), str(tmp_path / 'train.log')}


def test_random_cells_do_not_go_into_the_folder_of_a_search(tmp_path):
    write(tmp_path, {'metrics.jsonl': '{"epoch": 0}\n', 'genotype.json': '{}'})
    code, stderr = run_into(tmp_path, 'search.py', '--dataset=digits', '--method=random')
    assert code == 2 and 'holds a search; give another folder' in stderr.splitlines()[-1]
    assert (tmp_path / 'genotype.json').read_text() == '{}'


def test_mistyped_commands_leave_an_earlier_log(tmp_path):
    write(tmp_path, {'train.log': 'of an earlier run\n', 'metrics.jsonl': '{"epoch": 0}\n'})
    for _ in range(2):
        assert run_into(tmp_path, 'search.py', '--dataset=digits', '--class_num=3')[0] == 2
    log = (tmp_path / 'train.log').read_text()
    assert log.startswith('of an earlier run\n') and log.count('arguments: ') == 2
    assert sorted(os.listdir(str(tmp_path))) == ['metrics.jsonl', 'train.log']


WRITE_FOR_EVER = '''
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from runtime.files import atomic_write
from runtime.script import run_script

def main():
    with atomic_write('archive.tar.gz') as temporary:
        with open(temporary, 'w') as file:
            file.write('a part')
        assert os.listdir() == [os.path.basename(temporary)]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

run_script(main)
'''


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='/proc tells when Paddle is being imported')
@pytest.mark.parametrize('name', ['nasbench201.py', 'own_space.py', 'train_nasbench201.py'])
def test_a_signal_while_paddle_is_imported_ends_an_example_with_one_line(tmp_path, name):
    process = subprocess.Popen([sys.executable, os.path.join(ROOT, 'examples', name)], cwd=str(tmp_path),
                               stderr=subprocess.PIPE, text=True)
    try:
        assert wait_for(lambda: 'libpaddle' in open(f'/proc/{process.pid}/maps').read(), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT)
    finally:
        process.kill()
    assert (process.returncode, errors) == (130, f'{name}: error: stopped by SIGINT\n')


def test_a_signal_removes_what_is_not_written_to_its_end(tmp_path):
    result = subprocess.run([sys.executable, '-c', WRITE_FOR_EVER, ROOT], cwd=str(tmp_path), capture_output=True,
                            text=True, timeout=WAIT)
    assert result.returncode == 128 + signal.SIGTERM and 'stopped by SIGTERM' in result.stderr
    assert os.listdir(str(tmp_path)) == []
