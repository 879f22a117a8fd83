"""A user's mistake ends in one line on standard error that names the flag and what is allowed, and in status 2."""
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT, arguments, check_refusal, run_here
from test_reader import Hostile, batch, write_archive

# Refused by looking at the command line alone: nothing else is printed.
WRONG_ARGUMENTS = {
    '--method=SNAS': "argument --method: 'SNAS' is not allowed: give one of DARTS, PC-DARTS",
    '--epochs=0': "argument --epochs: '0' is not allowed: give a whole number of at least 1",
    '--epochs=ten': 'a whole number of at least 1',
    '--epochs=1.5': 'a whole number of at least 1',
    '--epochs=1e400': 'a whole number of at least 1',
    '--epochs_no_archopt=-1': 'at least 0',
    '--batch_size=0': 'at least 1',
    '--layers=0': 'from 1 to 1000',
    '--init_channels=0': 'from 1 to 4096',
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
    '--num_workers=-1': 'from 0 to 64',
    '--seed=-1': 'from 0 to 4294967295',
    '--class_num=1': 'from 2 to 1000000',
    '--unrolled=maybe': "argument --unrolled: 'maybe' is not allowed: give True, False, 1 or 0",
    '--dataset=mnist': 'give one of cifar10, cifar100, digits, folder',
    '--image_size=64': 'argument --image_size: goes with --dataset=folder',
    '--dataset=folder': 'argument --data: give the folder of --dataset=folder',
    '--max_bad_images=-1': 'at least 0',
    '--max_macs=600MB': 'give a whole number above 0, such as 600000000, 600M or 3.5M',
    '--max_macs=0.5': 'give a whole number above 0',
    '--max_params=-3.5M': 'give a whole number above 0',
    '--max_params=nan': 'give a whole number above 0',
    '--max_latency_ms=0': 'above 0',
    '--budget_channels=1': 'from 2 to 4096',
    '--latency_batch_size=2': 'argument --latency_batch_size: goes with --max_latency_ms',
    '--budget_layers=6': 'argument --budget_layers: goes with a limit, such as --max_macs=600M',
    '--epoch=3': 'there is no flag --epoch; did you mean --epochs?',
    '--qqq': 'there is no flag --qqq, see --help',
    '--nosuch': 'there is no flag --nosuch, see --help',
}


WRONG_ARGUMENTS_OF_TRAINING = {
    ('train.py', '--epochs=0'): 'at least 1',
    ('train.py', '--batch_size=-3'): 'at least 1',
    ('train.py', '--layers=x'): 'a whole number from 1 to 1000',
    ('train.py', '--auxiliary=perhaps'): 'give True, False, 1 or 0',
    ('train.py', '--auxiliary_weight=-1'): 'at least 0',
    ('train.py', '--drop_path_prob=1.5'): 'from 0 to 1',
    ('train.py', '--cutout_length=-16'): 'at least 0',
    ('train.py', '--amp_level=O3'): 'give one of O0, O1, O2',
    ('train.py', '--keep=0'): 'at least 1',
    ('train.py', '--save_freq=-1'): 'at least 0',
    ('train.py', '--resume=later'): 'give True, False, 1 or 0',
    ('train.py', '--init_channel=8'): 'did you mean --init_channels?',
    ('train.py', '--eval_only'): 'argument --eval_only: give the network with --pretrained',
    ('train.py', 'DARTS_V2'): 'unrecognized arguments: DARTS_V2',
    ('train_imagenet.py', '--decay_rate=0'): 'above 0',
    ('train_imagenet.py', '--label_smooth=2'): 'from 0 to 1',
    ('train_imagenet.py', '--dropout=-0.1'): 'from 0 to 1',
    ('train_imagenet.py', '--class_num=1'): 'from 2 to',
    ('train_imagenet.py', '--amp_dtype=int8'): 'give one of float16, bfloat16',
    ('train_imagenet.py', '--num_workers=1000'): 'from 0 to 64',
    ('train_imagenet.py', '--max_bad_images=some'): 'at least 0',
    ('train_imagenet.py', '--dataset=digits'): 'there is no flag --dataset, see --help',
    ('train_imagenet.py', '--export=model'): 'argument --export: give the network with --pretrained',
    ('train.py', '--export=model --pretrained=x --use_data_parallel=1'): 'argument --export: does not go together with '
                                                                         '--use_data_parallel',
}
WRONG_TOGETHER = {
    ('search.py', '--method=random --max_macs=600M'): 'argument --max_macs: --method=random draws any cell',
    ('examples/nasbench201.py', '--max_macs=600M'): 'there is no flag --max_macs',
    ('examples/own_space.py', '--epochs=0'): 'a whole number from 1 to 10000',
    ('search.py', '--samples=7'): 'argument --samples: goes with --method=random',
    ('search.py', '--method=random --unrolled'): 'argument --unrolled: has no meaning with --method=random',
    ('search.py', '--method=random --early_stop=skip:2'): 'argument --early_stop: has no meaning with --method=random',
    ('search.py', '--method=random --resume'): 'argument --resume: has no meaning with --method=random',
    ('examples/make_image_lists.py', '--seed=1'): 'argument --data: give the folder with the images',
    ('train.py', '--dataset=digits --data=mine'): 'argument --data: has no meaning with --dataset=digits',
    ('search.py', '--method=random --summary'): 'argument --summary: --method=random has no supernet to summarise; '
                                                'give another --method',
}
WRONG = {('search.py', argument): message for argument, message in WRONG_ARGUMENTS.items()}
WRONG.update(WRONG_ARGUMENTS_OF_TRAINING)
WRONG.update(WRONG_TOGETHER)


@pytest.mark.parametrize('name, argument', sorted(WRONG))
def test_a_wrong_argument_is_refused_at_once(script, tmp_path, name, argument):
    result = script(name, *argument.split()) if '/' in name else run_here(tmp_path, name, *argument.split())
    check_refusal(result, WRONG[name, argument])
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_flag_with_its_default_and_takes_no_paddle(script):
    """The defaults of the contract, as users know them."""
    groups = script('search.py', '--help').stdout.split('show this help message')[1]
    defaults = dict(re.findall(r'--(\w+) (?:(?!\n  --).)*?\(default:\s+(\S+?)\)\n', groups, re.DOTALL))
    for flag, default in dict(log_freq=50, use_multiprocess=True, batch_size=64, learning_rate=0.025, momentum=0.9,
                              use_gpu=True,
                              epochs=50, init_channels=16, layers=8, class_num=10, trainset_num=50000,
                              model_save_dir='search_cifar', grad_clip=5.0, arch_learning_rate=0.0003, method='DARTS',
                              epochs_no_archopt=0, cutout_length=16, cutout=False, unrolled=False,
                              use_data_parallel=False).items():
        assert defaults[flag] == str(default), flag
    loaded = subprocess.run([sys.executable, '-c', "import sys, search; search.parse_arguments([]); print('paddle' in "
                                                   "sys.modules)"],
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
    check_refusal(script('search.py', '--model_save_dir=' + folder), f'--model_save_dir: {folder} is not a folder')
    assert (tmp_path / 'taken').read_text() == 'mine'


def test_a_lack_of_memory_is_one_line(tmp_path):
    result = run_here(tmp_path, 'train.py', '--summary', '--batch_size=1000000000000')
    check_refusal(result, 'out of memory: a smaller --batch_size, --init_channels or --layers needs less', 1)


def test_classes_where_no_data_is_read():
    """--class_num where it is given, else the number of the data set."""
    from reader import class_count_without_data
    assert class_count_without_data(arguments(dataset='cifar100', class_num=10), set()) == 100
    assert class_count_without_data(arguments(dataset='cifar100', class_num=10), {'class_num'}) == 10
    assert class_count_without_data(arguments(dataset='folder', class_num=7), set()) == 7


def test_images_too_small_for_the_auxiliary_classifier_are_refused_before_anything_is_written(tmp_path):
    result = run_here(tmp_path, 'train.py', '--dataset=digits', '--model_save_dir=run')
    check_refusal(result, '--auxiliary: the auxiliary classifier needs images of at least 29x29 pixels, these have 8x8')
    assert os.listdir(str(tmp_path / 'run')) == ['train.log']


def test_channels_that_pc_darts_cannot_divide(script):
    check_refusal(script('search.py', '--dataset=digits', '--method=PC-DARTS', '--init_channels=18'),
                  '--init_channels: 18 is not allowed: PC-DARTS passes 1/4 of the channels through an edge, give a '
                  'multiple of 4')


def test_archives_that_are_missing_truncated_or_something_else(script, tmp_path):
    check_refusal(script('search.py', '--data=absent.tar.gz'), '--data: absent.tar.gz does not exist')
    whole = write_archive(tmp_path / 'whole.tar.gz', {'data_batch_1': batch(20)})
    with open(whole, 'rb') as f:
        (tmp_path / 'cut.tar.gz').write_bytes(f.read()[:200])
    check_refusal(script('search.py', '--data=cut.tar.gz'), '--data: cut.tar.gz cannot be read, it may be truncated')
    write_archive(tmp_path / 'other.tar.gz', {'readme': b'text'})
    check_refusal(script('search.py', '--data=other.tar.gz'), '--data: other.tar.gz holds no data_batch file')


GENOTYPE = {'normal': [['skip_connect', 0], ['skip_connect', 1]], 'normal_concat': [2], 'reduce': [['skip_connect', 0],
                                                                                                   ['skip_connect', 1]],
            'reduce_concat': [2]}


@pytest.fixture(scope='module')
def wrong_files(tmp_path_factory):
    """A folder of files that are not what a script asks for."""
    folder = tmp_path_factory.mktemp('wrong files \u00e9\u4e2d')
    (folder / 'a folder').mkdir()
    (folder / 'evil.pdparams').write_bytes(pickle.dumps({'w': Hostile('harm')}, protocol=2))
    (folder / 'list.pdparams').write_bytes(pickle.dumps([1, 2], protocol=2))
    (folder / 'empty.pdparams').write_bytes(b'')
    (folder / 'w.pdparams').write_bytes(pickle.dumps({'w': np.zeros(3)}, protocol=2))
    (folder / 'bad.pdparams').write_bytes(pickle.dumps({'w': np.zeros(3)}, protocol=2))
    (folder / 'bad.json').write_text('{"network": "os.system"}')
    (folder / 'call.json').write_text('__import__("os").system("touch harm")')
    (folder / 'deep.json').write_text('[' * 100000)
    (folder / 'op.json').write_text(json.dumps(dict(GENOTYPE, normal=[['rm -rf', 0], ['skip_connect', 1]])))
    (folder / 'state.json').write_text(json.dumps(dict(GENOTYPE, normal=[['skip_connect', 0], ['skip_connect', 9]])))
    (folder / 'key.json').write_text('{"normal": []}')
    (folder / 'bytes.json').write_bytes(b'\xff\xfe\x00')
    for name, member, content in (
            ('evil.tar.gz', 'cifar/data_batch_1', pickle.dumps({b'data': Hostile('harm'), b'labels': [0]}, protocol=2)),
            ('shape.tar.gz', 'cifar/data_batch_1', pickle.dumps({b'data': np.zeros((2, 5), 'uint8'), b'labels': [0, 1]},
                                                                protocol=2)),
            ('path.tar.gz', '../../escaped', b'x'), ('absolute.tar.gz', '/tmp/escaped_from_an_archive', b'x')):
        with tarfile.open(str(folder / name), 'w:gz') as archive:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with tarfile.open(str(folder / 'link.tar.gz'), 'w:gz') as archive:
        info = tarfile.TarInfo('cifar/data_batch_1')
        info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(info)
    for name in ('labels', 'pictures', 'one class'):
        (folder / name).mkdir()
    (folder / 'labels' / 'train_list.txt').write_text('a.jpg 1\nb.jpg -2\n')
    (folder / 'labels' / 'val_list.txt').write_text('a.jpg 1\n')
    for name in ('a', 'b'):
        (folder / 'pictures' / name).mkdir()
        for number in range(5):
            (folder / 'pictures' / name / f'{number} broken picture.png').write_bytes(b'\x89PNG\r\n\x1a\n broken')
    (folder / 'one class' / 'only').mkdir()
    return folder


def test_channels_are_checked_before_data_is_read(tmp_path):
    result = run_here(tmp_path, 'search.py', '--method=PC-DARTS', '--init_channels=6', '--data=absent')
    check_refusal(result, '--init_channels: 6 is not allowed: PC-DARTS passes 1/4 of the channels')


TINY = ['--init_channels=4', '--layers=1', '--auxiliary=False', '--epochs=1']
EVAL = ['train.py', '--dataset=digits', '--eval_only']
WRONG_INPUTS = [
    (EVAL + ['--resume', '--pretrained=w.pdparams'], '--resume: does not go together with --eval_only', 2),
    (EVAL + ['--summary', '--pretrained=w.pdparams'], '--summary: does not go together with --eval_only', 2),
    (['search.py', '--data=a folder'], 'a folder holds no data_batch file', 2),
    (['search.py', '--data=evil.tar.gz'], 'mkdir, which no file of this kind needs: refused', 2),
    (['search.py', '--data=shape.tar.gz'], 'it must hold data [N, 3072] of uint8 and N labels', 2),
    (['search.py', '--data=path.tar.gz'], 'holds no data_batch file', 2),
    (['search.py', '--data=absolute.tar.gz'], 'holds no data_batch file', 2),
    (['search.py', '--data=link.tar.gz'], 'holds no data_batch file', 2),
    (['search.py', '--data=op.json'], 'cannot be read, it may be truncated or no archive', 2),
    (['search.py', '--dataset=folder', '--data=op.json'], 'argument --data: op.json is not a folder', 2),
    (['search.py', '--dataset=folder', '--data=a folder'], 'a folder holds 0 subfolders with images', 2),
    (['search.py', '--dataset=folder', '--data=one class'], 'one class holds 0 subfolders with images', 2),
    (['search.py', '--dataset=folder', '--data=pictures', '--train_portion=0.5'], 'broken picture.png cannot be read '
                                                                                  'as an image', 1),
    (['search.py', '--dataset=digits', '--class_num=3'], '--class_num: 3 is not allowed: the labels of the data are 0 '
                                                         'to 9', 2),
    (['search.py', '--dataset=digits', '--trainset_num=2', '--train_portion=0.1'], 'leaves one half of the search '
                                                                                   'empty', 2),
    (['search.py', '--model_save_dir=op.json'], '--model_save_dir: op.json is not a folder that can be written to', 2),
    (['search.py', '--model_save_dir=/proc/none'], '--model_save_dir: /proc/none is not a folder that can be written '
                                                   'to', 2),
    (['train.py', '--arch=DARTS'], "--arch: 'DARTS' is neither a genotype's name (DARTS_V1, DARTS_V2, PC_DARTS", 2),
    (['train.py', '--arch=a folder'], "--arch: 'a folder' is neither", 2),
    (['train.py', '--arch=call.json'], 'call.json: not a genotype', 2),
    (['train.py', '--arch=deep.json'], 'deep.json: not a genotype', 2),
    (['train.py', '--arch=op.json'], "unknown operation 'rm -rf'", 2),
    (['train.py', '--arch=state.json'], 'node 0 can take its input from states 0 to 1, not from 9', 2),
    (['train.py', '--arch=key.json'], 'the keys normal_concat, reduce, reduce_concat are missing', 2),
    (['train.py', '--arch=bytes.json'], 'bytes.json: not a genotype', 2),
    (EVAL + ['--pretrained=evil.pdparams'], 'mkdir, which no file of this kind needs: refused', 2),
    (EVAL + ['--pretrained=list.pdparams'], 'it must hold a dictionary of arrays', 2),
    (EVAL + ['--pretrained=empty.pdparams'], 'empty.pdparams cannot be loaded', 2),
    (EVAL + ['--pretrained=a folder'], 'a folder cannot be loaded: it is not a regular file', 2),
    (EVAL + ['--pretrained=w.pdparams'], 'does not fit this network: ', 2),
    (EVAL + ['--pretrained=bad.pdparams'], 'holds a os.system, this script takes a NetworkCIFAR', 2),
    (['train.py', '--dataset=folder', '--data=pictures'], 'broken picture.png cannot be read as an image', 1),
    (['train_imagenet.py', '--data_dir=absent'], 'val_list.txt cannot be read: No such file', 2),
    (['train_imagenet.py', '--data_dir=labels'], "train_list.txt, line 2: 'b.jpg -2' is not", 2),
    (['train_imagenet.py', '--data_dir=labels', '--arch=op.json'], "unknown operation 'rm -rf'", 2),
]


@pytest.mark.parametrize('words, message, status', WRONG_INPUTS,
                         ids=lambda value: ' '.join(value) if isinstance(value, list) else '')
def test_a_wrong_input_is_one_line(wrong_files, tmp_path, words, message, status):
    """Files are named as from their own folder, which has spaces and letters of two scripts in its name."""
    words = words + (TINY if words[0] != 'search.py' else TINY[:2] + TINY[3:])
    save = [] if any(word.startswith('--model_save_dir')
                     for word in words) else ['--model_save_dir=' + str(tmp_path / 'run \u4e2d')]
    before = sorted(os.listdir(str(wrong_files)))
    result = run_here(wrong_files, *words, *save)
    check_refusal(result, message, status)
    assert sorted(os.listdir(str(wrong_files))) == before, 'it left something, or ran what a file told it to'
    left = [name for _, _, names in os.walk(str(tmp_path)) for name in names]
    assert set(left) <= {'train.log', 'metrics.jsonl'}
    assert not os.path.exists('/tmp/escaped_from_an_archive')
    assert not os.path.exists(str(wrong_files.parent.parent / 'escaped'))
