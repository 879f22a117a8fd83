"""A user's mistake ends in one line on standard error that names the flag and what is allowed, and in status 2."""
import re
import subprocess
import sys

import pytest

from conftest import ROOT
from test_reader import batch, write_archive


def check_refusal(result, message, status=2):
    """One line, the right status, no traceback. What a run logged before it failed stands above the line."""
    assert result.returncode == status, result.stderr
    assert 'Traceback' not in result.stderr and result.stdout == ''
    last = result.stderr.splitlines()[-1]
    assert re.search(r'\w+\.py: error: ', last) and message in last, result.stderr


# Refused by looking at the command line alone: nothing else is printed.
WRONG_ARGUMENTS = {
    '--method=SNAS': "argument --method: 'SNAS' is not allowed: give one of DARTS, PC-DARTS",
    '--epochs=0': "argument --epochs: '0' is not allowed: give a whole number of at least 1",
    '--epochs=ten': 'a whole number of at least 1',
    '--epochs=1.5': 'a whole number of at least 1',
    '--epochs=1e400': 'a whole number of at least 1',
    '--epochs_no_archopt=-1': 'at least 0',
    '--batch_size=0': 'at least 1',
    '--layers=0': 'at least 1',
    '--init_channels=0': 'at least 1',
    '--learning_rate=0': 'a number above 0',
    '--learning_rate=nan': 'a number above 0',
    '--learning_rate=inf': 'a number above 0',
    '--learning_rate_min=-1': 'at least 0',
    '--learning_rate_min=1': 'give at most --learning_rate, 0.025',
    '--momentum=2': 'from 0 to 1',
    '--weight_decay=-1': 'at least 0',
    '--grad_clip=0': 'above 0',
    '--arch_learning_rate=x': 'above 0',
    '--train_portion=1': 'above 0 and below 1',
    '--train_portion=0': 'above 0 and below 1',
    '--num_workers=0': 'from 1 to 64',
    '--seed=-1': 'from 0 to 4294967295',
    '--class_num=1': 'at least 2',
    '--unrolled=maybe': "argument --unrolled: 'maybe' is not allowed: give True, False, 1 or 0",
    '--dataset=mnist': 'give one of cifar10, cifar100, digits, folder',
    '--image_size=64': 'argument --image_size: goes with --dataset=folder',
    '--dataset=folder': 'argument --data: None is not a folder',
    '--max_bad_images=-1': 'at least 0',
    '--epoch=3': 'there is no flag --epoch; did you mean --epochs?',
    '--qqq': 'there is no flag --qqq, see --help',
}


@pytest.mark.parametrize('argument', sorted(WRONG_ARGUMENTS))
def test_a_wrong_argument_is_refused_at_once(script, tmp_path, argument):
    result = script('search.py', argument)
    check_refusal(result, WRONG_ARGUMENTS[argument])
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_flag_with_its_default_and_takes_no_paddle(script):
    """The defaults of the contract, as users know them."""
    groups = script('search.py', '--help').stdout.split('show this help message')[1]
    defaults = dict(re.findall(r'--(\w+) (?:(?!\n  --).)*?\(default:\s+(\S+?)\)\n', groups, re.DOTALL))
    for flag, default in dict(log_freq=50, use_multiprocess=True, batch_size=64, learning_rate=0.025, momentum=0.9, use_gpu=True,
                              epochs=50, init_channels=16, layers=8, class_num=10, trainset_num=50000,
                              model_save_dir='search_cifar', grad_clip=5.0, arch_learning_rate=0.0003, method='DARTS',
                              epochs_no_archopt=0, cutout_length=16, cutout=False, unrolled=False,
                              use_data_parallel=False).items():
        assert defaults[flag] == str(default), flag
    loaded = subprocess.run([sys.executable, '-c', "import sys, search; search.parse_arguments([]); print('paddle' in sys.modules)"],
                            cwd=ROOT, text=True, stdout=subprocess.PIPE).stdout
    assert loaded == 'False\n'


def test_booleans_as_the_example_took_them():
    from search import parse_arguments
    for words, value in ((['--unrolled=True'], True), (['--unrolled', '1'], True), (['--unrolled'], True),
                         (['--unrolled', '0'], False), (['--unrolled=false'], False)):
        assert parse_arguments(words).unrolled is value


def test_where_the_cosine_ends_follows_the_method():
    from search import parse_arguments
    assert parse_arguments([]).learning_rate_min == 1e-3
    assert parse_arguments(['--method=PC-DARTS']).learning_rate_min == 0
    assert parse_arguments(['--learning_rate_min=0.01']).learning_rate_min == 0.01


@pytest.mark.parametrize('kind', ['file', 'below a file'])
def test_a_save_folder_that_cannot_be(script, tmp_path, kind):
    (tmp_path / 'taken').write_text('mine')
    folder = 'taken' if kind == 'file' else 'taken/below'
    check_refusal(script('search.py', '--model_save_dir=' + folder), '--model_save_dir: {} is not a folder'.format(folder))
    assert (tmp_path / 'taken').read_text() == 'mine'


def test_channels_that_pc_darts_cannot_divide(script):
    check_refusal(script('search.py', '--dataset=digits', '--method=PC-DARTS', '--init_channels=18'),
                  '--init_channels: 18 is not allowed: PC-DARTS passes 1/4 of the channels through an edge, give a multiple of 4')


def test_archives_that_are_missing_truncated_or_something_else(script, tmp_path):
    check_refusal(script('search.py', '--data=absent.tar.gz'), '--data: absent.tar.gz does not exist')
    whole = write_archive(tmp_path / 'whole.tar.gz', {'data_batch_1': batch(20)})
    with open(whole, 'rb') as f:
        (tmp_path / 'cut.tar.gz').write_bytes(f.read()[:200])
    check_refusal(script('search.py', '--data=cut.tar.gz'), '--data: cut.tar.gz cannot be read, it may be truncated')
    write_archive(tmp_path / 'other.tar.gz', {'readme': b'text'})
    check_refusal(script('search.py', '--data=other.tar.gz'), '--data: other.tar.gz holds no file whose name begins with')
