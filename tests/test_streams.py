"""Standard output and error that are closed, full or a broken pipe: what succeeds says so, what does not is no success,
and nothing ends in a traceback."""
import json
import logging
import os
import shlex
import subprocess

import pytest
from conftest import SMALL, WAIT, command

from runtime.checkpoint import Checkpoints
from runtime.log import logger, start_logging

pytestmark = pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this system has no /dev/full')
NO_OUTPUT = ['>&-', '>/dev/full', '<&- >&-', '| true']
NO_ERROR = ['2>&-', '2>/dev/full', '<&- 2>&-']


def run_with(folder, redirection, *words):
    """A command of the project with a shell's redirection -> CompletedProcess."""
    line = ' '.join(map(shlex.quote, command(*words)))
    if '|' in redirection:  # the status of the first one
        line = f'{line} | (exec <&-; true); exit "${{PIPESTATUS[0]}}"'
    else:
        line = f'exec {line} {redirection}'
    return subprocess.run(['bash', '-c', line], cwd=str(folder), capture_output=True, text=True, timeout=WAIT)


def check_failure(result, name, reason=''):
    assert result.returncode == 1 and result.stdout == '' and 'Traceback' not in result.stderr, result.stderr
    assert 'Exception ignored' not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert f'{name}: error: cannot write the result to standard output: {reason}' in last


@pytest.mark.parametrize('redirection', NO_OUTPUT[:3])
@pytest.mark.parametrize('name', ['search.py', 'visualize.py'])
def test_help_that_cannot_be_shown(tmp_path, name, redirection):
    result = run_with(tmp_path, redirection, name, '--help')
    check_failure(result, name, 'No space left' if 'full' in redirection else 'Bad file descriptor')
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize('redirection', NO_ERROR + ['>&- 2>&-', '>/dev/full 2>/dev/full'])
@pytest.mark.parametrize('name', ['train.py', 'visualize.py'])
def test_a_wrong_argument_whose_message_is_lost(tmp_path, name, redirection):
    """The message does not turn up elsewhere, such as among the results."""
    result = run_with(tmp_path, redirection, name, '--format=3', '--layers=x')
    assert (result.returncode, result.stdout, result.stderr) == (2, '', '')


def test_pictures_whose_names_cannot_be_printed(tmp_path):
    for redirection in NO_OUTPUT[:2]:
        check_failure(run_with(tmp_path, redirection, 'visualize.py', 'PC_DARTS', '--cell=normal'), 'visualize.py')
    result = run_with(tmp_path, '2>&-', 'visualize.py', 'PC_DARTS', '--cell=normal')
    assert (result.returncode, result.stdout) == (0, 'PC_DARTS_normal.png\n')


@pytest.mark.slow
@pytest.mark.parametrize('redirection', NO_OUTPUT)
@pytest.mark.parametrize('words', [('search.py', '--method=random', '--dataset=digits', '--model_save_dir=run'),
                                   ('train_imagenet.py', '--summary', '--layers=1', '--init_channels=4')],
                         ids=lambda words: words[0])
def test_a_result_that_cannot_be_printed(tmp_path, words, redirection):
    check_failure(run_with(tmp_path, redirection, *words), words[0])
    if 'search.py' in words:
        assert json.loads((tmp_path / 'run' / 'genotype.json').read_text())['search']['method'] == 'random'
        assert 'cannot write the result' in (tmp_path / 'run' / 'train.log').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('redirection', NO_ERROR)
def test_a_search_whose_progress_is_lost_succeeds(tmp_path, redirection):
    result = run_with(tmp_path, redirection, 'search.py', *SMALL, '--epochs=1', '--validate=False',
                      '--model_save_dir=run')
    assert result.returncode == 0 and result.stdout.startswith('genotype = Genotype(') and result.stderr == ''
    assert 'Epoch 0, train_acc' in (tmp_path / 'run' / 'train.log').read_text()


@pytest.mark.slow
def test_nothing_is_written_into_a_file_that_took_a_standard_number(tmp_path):
    result = run_with(tmp_path, '<&- >&- 2>&-', 'search.py', *SMALL, '--epochs=1', '--model_save_dir=run')
    assert result.returncode == 1 and result.stdout == result.stderr == ''
    log = (tmp_path / 'run' / 'train.log').read_text().splitlines()
    assert all(line[:2] == '20' for line in log), log  # each begins with its time
    assert 'cannot write the result to standard output' in log[-1]
    assert Checkpoints(str(tmp_path / 'run' / 'checkpoints'), 2).newest()[2]['epoch'] == 1


def test_a_log_on_a_full_disk_ends_with_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging, 'raiseExceptions', True)
    handlers = list(logger.handlers)
    try:
        start_logging(str(tmp_path))
        handler = next(handler for handler in logger.handlers if isinstance(handler, logging.FileHandler))
        handler.setStream(open('/dev/full', 'w'))
        logger.info('first')
        logger.info('second')
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.handlers += handlers
        logger.propagate = True
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[-1].endswith('second')
    assert sum('train.log is not continued: No space left on device' in line for line in lines) == 1


NAMES = {'no UTF-8': b'a\xffb', 'terminal escapes': b'a\x1b[2Jb', 'a line break': b'a\nb', 'too long': b'a' * 5000}


@pytest.mark.parametrize('kind', list(NAMES))
@pytest.mark.parametrize('words', [
    ('search.py', '--data='), ('search.py', '--method='), ('train.py', '--arch='),
    ('train.py', '--eval_only', '--pretrained='),
    ('train_imagenet.py', '--'), ('visualize.py', ''), ('visualize.py', '--film='), ('visualize.py', '--output=')],
    ids=' '.join)
def test_arguments_with_other_characters_are_one_printable_line(tmp_path, words, kind):
    name, *first, flag = words
    rest = [b'PC_DARTS'] if flag == '--output=' else []
    line = [word.encode() for word in command(name, *first)] + [flag.encode() + NAMES[kind], *rest]
    result = subprocess.run(line, cwd=str(tmp_path), capture_output=True, timeout=WAIT)
    if flag == '--output=' and kind != 'too long':
        assert result.returncode == 0, result.stderr
        assert sorted(os.listdir(os.fsencode(str(tmp_path)))) == [NAMES[kind] + b'_normal.png',
                                                                  NAMES[kind] + b'_reduce.png']
        assert len(result.stdout.splitlines()) == 2 and result.stdout.decode().replace('\n', '').isprintable()
        return
    assert result.returncode == 2 and result.stdout == b''
    lines = result.stderr.decode().splitlines()
    assert all(line.isprintable() for line in lines) and f'{name}: error: ' in lines[-1] and len(lines[-1]) < 6000


@pytest.mark.slow
def test_an_output_folder_with_other_characters(tmp_path):
    """The command that is printed for it is one a shell takes."""
    name = b'a\xff\x1b[2J'
    line = [word.encode() for word in command('search.py', '--method=random', '--dataset=digits')]
    result = subprocess.run([*line, b'--model_save_dir=' + name], cwd=str(tmp_path), capture_output=True, timeout=WAIT)
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode()
    assert text.replace('\n', '').isprintable() and result.stderr.decode().replace('\n', '').isprintable()
    shown = text.split('To train it: python ')[1]
    words = subprocess.run(['bash', '-c', f'printf "%s\\n" {shown}'], capture_output=True).stdout.splitlines()
    assert words[1] == b'--arch=' + name + b'/genotype.json'
    assert os.path.exists(os.path.join(os.fsencode(str(tmp_path)), name, b'genotype.json'))
