"""--dataset=folder: which subfolders are parts of a data set, which are classes, and what is refused."""
import os
import shlex
import shutil

import numpy as np
import paddle
import pytest
from conftest import ROOT, arguments, read, shared_file
from PIL import Image

import reader
from nas.searcher import DARTSearch
from pipeline import loader, transforms
from pipeline.folders import image_files, split_of
from runtime.errors import UserError

COLOURS = {'red': (220, 30, 30), 'green': (30, 220, 30), 'blue': (30, 30, 220)}


def colour_images(folder, count=10, size=(20, 16)):
    """Image files of plain colours, a folder a class."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', size, tuple(c + i for c in colour)).save(str(folder / name / f'image {i}.png'))


@pytest.fixture
def messages(caplog, monkeypatch):
    """A function that gives the lines of the log so far as one text."""
    monkeypatch.setattr(loader.logger, 'propagate', True)
    caplog.set_level('INFO')
    return lambda: '\n'.join(caplog.messages)


def test_a_folder_without_a_test_part_is_split_by_the_seed(tmp_path):
    colour_images(tmp_path)

    def paths(is_train, seed=0):
        return image_files(str(tmp_path), is_train, seed)[0]

    assert len(paths(True)) == 24 and len(paths(False)) == 6
    assert not set(paths(True)) & set(paths(False)) and paths(True) == paths(True)
    assert set(paths(False)) != set(paths(False, seed=1))


def test_a_folder_with_a_test_part(tmp_path):
    colour_images(tmp_path / 'train')
    colour_images(tmp_path / 'test', count=2)
    args = arguments(dataset='folder', data=str(tmp_path), image_size=12)
    images, labels = read(reader.train_valid(4, False, False, args))
    assert images.shape == (6, 3, 12, 12) and labels.tolist() == [0, 0, 1, 1, 2, 2]  # blue, green, red
    colour = np.asarray(COLOURS['green']) / 255
    mean, std = transforms.IMAGENET_PIXELS
    assert np.allclose(images[2].mean((1, 2)), (colour - mean) / std, atol=1e-3)
    train = reader.train_valid(4, True, True, args)
    assert train.source.num_classes == 3 and len(read(train)[1]) == 30
    colour_images(tmp_path / 'test' / 'yellow', count=1)
    with pytest.raises(UserError, match='the class yellow, which the training images do not have'):
        reader.train_valid(4, False, False, args)


@pytest.mark.parametrize('make', [lambda folder: None, lambda folder: (folder / 'one').mkdir(),
                                  lambda folder: [(folder / name).mkdir() for name in ('one', 'two')]])
def test_a_folder_without_classes_or_images_is_refused(tmp_path, make):
    make(tmp_path)
    with pytest.raises(UserError, match='--data: .* holds 0 subfolders with images; .*one subfolder'):
        image_files(str(tmp_path), True, seed=0)


@pytest.mark.parametrize('train, test', [('train', 'test'), ('Training', 'TESTING'), ('train', 'val'), ('train', 'dev'),
                                         ('TRAIN', 'Validation'), ('train', 'valid'), ('Train_Set', 'test-set'),
                                         ('train2017', 'val2017'), ('seg_train', 'seg_test'), ('trainset', 'eval'),
                                         ('images train', 'images test'), ('\u8bad\u7ec3\u96c6', '\u6d4b\u8bd5\u96c6')])
def test_the_parts_of_a_folder_by_their_usual_names(tmp_path, train, test):
    colour_images(tmp_path / train)
    colour_images(tmp_path / test, count=2)
    assert [len(image_files(str(tmp_path), is_train, seed=0)[0]) for is_train in (True, False)] == [30, 6]
    assert image_files(str(tmp_path), True, seed=0)[2] == ['blue', 'green', 'red']


def test_of_three_parts_the_test_is_used_and_the_log_says_so(tmp_path, messages):
    for name, count in (('Train', 3), ('valid', 2), ('Test', 1), ('old', 1)):
        colour_images(tmp_path / name, count)
    assert [len(image_files(str(tmp_path), is_train, seed=0)[0]) for is_train in (True, False)] == [9, 3]
    assert f'{tmp_path}: Train is for training, Test for the test; not used: old, valid' in messages()


@pytest.mark.parametrize('names', [['train'], ['Test', 'val'], ['train', 'training', 'test'], ['train', 'dog'],
                                   ['cat', 'dog', 'validation'], ['TEST', 'cat'], ['train', 'Train', 'val'],
                                   ['train', 'val', 'valid'], ['training_images', 'cat']])
def test_parts_that_cannot_be_assigned_are_refused(tmp_path, names):
    """They would become classes with a plausible accuracy."""
    for name in names:
        colour_images(tmp_path / name, count=1)
    with pytest.raises(UserError, match='names of parts of a data set'):
        image_files(str(tmp_path), True, seed=0)


def test_classes_that_hold_parts_or_folders_above_a_data_set_are_refused(tmp_path):
    for name in ('train', 'test'):
        colour_images(tmp_path / 'colours' / name, count=1)
    with pytest.raises(UserError, match='colours holds test and train, .* within a class: .* or --data=.*colours'):
        image_files(str(tmp_path), True, seed=0)
    for name in ('cat', 'dog'):
        for part in ('train', 'test'):
            colour_images(tmp_path / 'animals' / name / part, count=1)
    with pytest.raises(UserError, match='cat holds test and train, .*names of parts of a data set, within a class'):
        image_files(str(tmp_path / 'animals'), True, seed=0)


@pytest.mark.parametrize('name', ['dog', 'trainer', 'testament', 'train station', 'value', 'devil', 'latest', 'tr',
                                  'valley', 'contest', 'photos', '2017', 'evaluated'])
def test_names_of_classes(name):
    assert split_of(name) is None


def test_a_part_without_images_is_no_part(tmp_path):
    colour_images(tmp_path)
    (tmp_path / 'test').mkdir()
    assert len(image_files(str(tmp_path), True, seed=0)[0]) == 24


def test_only_folders_with_images_are_classes(tmp_path, messages):
    """Each class gives a fifth of its images to the test; a class of one image none."""
    colour_images(tmp_path)
    (tmp_path / 'single').mkdir()
    (tmp_path / 'red' / 'image 0.png').rename(tmp_path / 'single' / 'photo.JPG')
    shutil.copy(str(tmp_path / 'single' / 'photo.JPG'), str(tmp_path / 'loose.png'))
    for name in ('__MACOSX', '@eaDir', '.cache'):
        (tmp_path / name / 'thumbnails').mkdir(parents=True)
        shutil.copy(str(tmp_path / 'loose.png'), str(tmp_path / name / 'thumbnails'))
        shutil.copytree(str(tmp_path / name), str(tmp_path / 'red' / name))
    for name in ('empty', 'texts'):
        (tmp_path / name).mkdir()
    for name in ('texts/a.txt', 'texts/b.heic', 'blue/photo.heic', 'blue/.DS_Store', 'red/._image 1.png'):
        (tmp_path / name).write_text('text')
    paths, labels, classes = image_files(str(tmp_path), False, seed=0)
    assert classes == ['blue', 'green', 'red', 'single'] and labels == [0, 0, 1, 1, 2, 2]
    assert not [path for path in paths if 'thumbnails' in path]
    text = messages()
    assert '4 classes: blue (10), green (10), red (9), single (1)' in text
    assert 'no images of a class: .cache, @eaDir, __MACOSX, empty, texts' in text
    assert '1 file in blue' in text and 'in no class: 1 image' in text
    assert '1 class has a single image, which is used for training, so that the test has none: single' in text


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    """It would be taken for a class without images."""
    colour_images(tmp_path, count=1)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('green'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)
    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(UserError, match='--data: .*green cannot be read: Permission denied'):
        image_files(str(tmp_path), True, seed=0)


def test_searching_training_and_scoring_on_a_folder_of_real_photos(script, tmp_path):
    """Two classes of photos, dogs and others, at 16 pixels; the class count comes from the folders."""
    sample = shared_file('data', 'imagenet-sample')
    source = reader.imagenet_reader(sample, 'train')
    for i, path in enumerate(source.paths[i] for i in range(24)):
        folder = tmp_path / 'my photos' / ('odd' if i % 2 else 'even')
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'photo {i}.jpeg').write_bytes(open(path, 'rb').read())
    data = ['--dataset=folder', '--data=my photos', '--image_size=16', '--max_bad_images=1', '--seed=3']
    result = script('search.py', *data, '--batch_size=4', '--layers=1', '--init_channels=4', '--epochs=1',
                    '--model_save_dir=my search')
    assert result.returncode == 0, result.stderr
    assert 'the data has 2 classes' in result.stderr
    assert '18 images: 9 train the weights, 9 the architecture' in result.stderr
    words = shlex.split(result.stdout.split('To train it: ')[1])
    assert words == ['python', os.path.join(ROOT, 'train.py'), '--arch='
                     + os.path.join('my search', 'genotype.json')] + data + ['--auxiliary=False']
    result = script('train.py', *words[2:], '--batch_size=4', '--layers=1', '--init_channels=4', '--epochs=1')
    assert result.returncode == 0, result.stderr
    best = result.stderr.split('best_valid_acc ')[-1].split(',')[0]
    result = script('train.py', '--eval_only', '--pretrained=eval_cifar/best_model.pdparams', '--data=my photos')
    assert f'valid_acc {best}, ' in result.stdout and result.stdout.endswith(', 6 images\n'), result.stderr


def test_image_files_are_a_dataset_for_the_searcher(tmp_path):
    from model_search import Network
    colour_images(tmp_path)
    files = reader.folder_reader(str(tmp_path), True, size=8,
                                 augmentation=reader.augmentation_of('folder', 8, False, 16), seed=0)
    image, label = files[0]
    assert image.shape == (3, 8, 8) and label == files.labels[0]
    DARTSearch(Network(4, 3, 1, 'DARTS'), files, files, paddle.CPUPlace(), batchsize=12, num_epochs=1,
               save_dir=str(tmp_path / 'search')).train()
    assert (tmp_path / 'search' / 'genotype.json').exists()
