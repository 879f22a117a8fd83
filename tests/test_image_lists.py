"""Image lists: reading them, the two halves of a search on ImageNet, and examples/make_image_lists.py, which writes
them."""
import itertools
import os
import random
import shlex
import shutil

import numpy as np
import paddle
import pytest
from conftest import ROOT, arguments, check_refusal, read, shared_file
from PIL import Image

import reader
from genotypes import get_genotype
from model import NetworkCIFAR, NetworkImageNet
from pipeline import lists
from pipeline.lists import draw_by_class, read_list
from pipeline.loader import generator
from runtime.checkpoint import Checkpoints
from runtime.errors import UserError

# ---------------------------------------------------------------------------------------------------------------------
# Reading a list
# ---------------------------------------------------------------------------------------------------------------------


def listed(folder, content):
    """What read_list makes of a list: [(path relative to the folder, label, line)]."""
    (folder / 'train_list.txt').write_bytes(content)
    paths, labels, lines = read_list(str(folder / 'train_list.txt'))
    assert len(paths) == len(labels) and labels.dtype == np.int64
    return [(os.path.relpath(paths[i], str(folder)), int(labels[i]), int(lines[i].split()[-1][:-1]))
            for i in range(len(paths))]


@pytest.mark.parametrize('content, expected', [
    (b'a.jpg 0\nb/c.jpg 17\n', [('a.jpg', 0, 1), ('b/c.jpg', 17, 2)]),
    (b'\xef\xbb\xbf \r\nb.jpg 1\n', [('b.jpg', 1, 2)]),
    (b'\xef\xbb\xbfa.jpg\t0\r\n\r\n  \nb.jpg  \t 1 \t\r\n', [('a.jpg', 0, 1), ('b.jpg', 1, 4)]),
    (b'a photo.jpg 3\na\tb.jpg 4', [('a photo.jpg', 3, 1), ('a\tb.jpg', 4, 2)]),
    ('\u7167\u7247/\u732b.jpg 2'.encode(), [('\u7167\u7247/\u732b.jpg', 2, 1)]),
    (b'..a/b..c.jpg 0\n./a.jpg 999999', [('..a/b..c.jpg', 0, 1), ('a.jpg', 999999, 2)]),
])
def test_lists_that_systems_write(tmp_path, content, expected):
    assert listed(tmp_path, content) == expected


def test_separators_of_windows(tmp_path):
    """A backslash separates folders, unless a file of that very name is there."""
    (tmp_path / 'a\\b.jpg').write_bytes(b'')
    assert listed(tmp_path, b'a\\b.jpg 0\nx\\y\\z.jpg 1') == [('a\\b.jpg', 0, 1), ('x/y/z.jpg', 1, 2)]


def test_a_long_list_against_one_read_by_simple_means(tmp_path):
    rng = random.Random(0)
    names = ['/'.join(''.join(rng.choices('ab .\t-\u732b', k=rng.randint(1, 9))).strip() + 'x' for _ in range(3))
             + str(i) for i in range(3000)]
    labels = [rng.randrange(1000) for _ in names]
    content = ''.join(f'{name}{rng.choice([" ", chr(9)])}{label}{rng.choice(["", chr(13)])}\n'
                      for name, label in zip(names, labels))
    assert [entry[:2] for entry in listed(tmp_path, content.encode())] == list(zip(names, labels))


@pytest.mark.parametrize('content, message', [
    (b'a 0\nb\n', "line 2: 'b' is not \"relative/path label\""),
    (b'a -1', "line 1: 'a -1' is not"),
    (b'a 1.0', 'is not'),
    ('a \u0663'.encode(), 'is not'),  # a digit of another script
    (b'a 0\rb 1\rc 2', 'is not'),
    (b'7', "'7' is not"),
    (b'a 1000000', 'has a label above 999999'),
    (b'a ' + b'9' * 5000, 'has a label above 999999'),
    (b'\n' + b'a' * 9000 + b' 1', 'line 2: .* has more than 8,192 bytes'),
    ('a 1'.encode('utf-16'), 'is not'),
    (b'\xff.jpg 1', r"line 1: '.*xff.jpg 1' is not UTF-8 text"),
    (b'a 0\n../b 1', "line 2: '../b' is not a path relative to the folder of the list"),
    (b'a/../../b 1', 'is not a path relative'),
    (b'..\\b 1', 'is not a path relative'),
    (b'/etc/passwd 1', 'is not a path relative'),
    (b'a 0\nb 1\n\na 2\n', "line 4: a has the label 2, but 0 in line 1"),
    (b'\n \n', 'names no image'),
    (b'', 'names no image'),
])
def test_lists_that_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match='--data_dir: .*train_list.txt.*' + message):
        listed(tmp_path, content)


def test_what_is_no_list_is_refused_without_reading_it(tmp_path):
    os.mkfifo(str(tmp_path / 'fifo'))
    (tmp_path / 'folder').mkdir()
    with open(tmp_path / 'sparse', 'wb') as file:
        file.truncate(lists.MAX_LIST_BYTES + 1)
    with open(tmp_path / 'no line breaks', 'wb') as file:
        file.truncate(lists.MAX_LIST_BYTES)
    for name, message in (('fifo', 'not a regular file'), ('folder', 'not a regular file'), ('absent', 'No such file'),
                          ('sparse', 'more than 1073741824'), ('no line breaks', 'more than 8,192 bytes')):
        with pytest.raises(UserError, match=message):
            read_list(str(tmp_path / name))
    with pytest.raises(UserError, match='not a regular file'):
        read_list('/dev/zero')


def test_the_number_of_lines_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, 'MAX_LINES', 3)
    assert len(listed(tmp_path, b'a 0\n\nb 0\n')) == 2
    with pytest.raises(UserError, match='line 4: the list has more than 3 lines'):
        listed(tmp_path, b'\n\n\n\n')


def test_labels_from_1_are_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(reader.logger, 'propagate', True)
    for content, named in ((b'a 1\nb 2\nc 3\n', True), (b'a 1\nb 3\n', False), (b'a 0\nb 1\n', False)):
        (tmp_path / 'train_list.txt').write_bytes(content)
        caplog.clear()
        reader.imagenet_reader(str(tmp_path), 'train')
        assert ('the labels are 1 to 3; labels count from 0' in caplog.text) == named


# ---------------------------------------------------------------------------------------------------------------------
# The two halves of a search
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(30))
def test_every_class_has_its_share_of_each_half(seed):
    """Counted by simple means: of each class the exact share, rounded up or down."""
    rng = random.Random(seed)
    sizes = [rng.choice([0, 1, 2, 5, 30, 200]) for _ in range(rng.randint(1, 40))] + [5]
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    rng.shuffle(labels)
    total = len(labels)
    first = rng.randint(1, total - 1)
    counts = [first, rng.randint(1, total - first)]
    subsets = [subset.tolist() for subset in draw_by_class(np.asarray(labels), counts, generator(seed, 0))]
    assert [len(subset) for subset in subsets] == counts
    assert len(set(subsets[0]) | set(subsets[1])) == sum(counts) and subsets == [sorted(subset) for subset in subsets]
    left = list(range(total))
    for subset in subsets:
        for label in range(len(sizes)):
            available = sum(labels[i] == label for i in left)
            taken = sum(labels[i] == label for i in subset)
            # |taken - available * share| < 1, in whole numbers
            assert abs(taken * len(left) - available * len(subset)) < len(left)
        left = [i for i in left if i not in set(subset)]


def test_each_image_is_equally_likely():
    """Of 7 images in classes of 4, 2 and 1, over all random numbers that can be drawn."""
    class Fixed:
        """A generator that gives each permutation and each start once."""

        def __init__(self, images, classes, starts):
            self.permutations, self.starts = [images, classes], list(starts)

        def permutation(self, count):
            return np.asarray(self.permutations.pop(0))

        def integers(self, count):
            return self.starts.pop(0)

    labels, drawn = np.asarray([0, 1, 0, 2, 0, 1, 0]), np.zeros((2, 7), int)
    for classes in itertools.permutations(range(3)):
        for starts in itertools.product(range(7), range(4)):
            for shift in range(7):
                images = np.roll(np.arange(7), shift)
                for half, subset in zip(drawn, draw_by_class(labels, [3, 2], Fixed(images, classes, starts))):
                    half[subset] += 1
    assert (drawn[0] == 6 * 7 * 4 * 7 * 3 // 7).all()
    assert (drawn[1] == 6 * 7 * 4 * 7 * 2 // 7).all()


def imagenet_arguments(folder, **changes):
    return arguments(**dict(dict(dataset='imagenet', data_dir=str(folder), train_fraction=0.1, arch_fraction=0.025,
                                 image_size=32), **changes))


def drawn(folder, **changes):
    """The paths of the two halves, [[path, label]]."""
    halves = reader.train_search(16, 0.5, True, imagenet_arguments(folder, **changes))
    return [[[half.source.paths[i], int(half.source.labels[i])] for i in half.source.indices] for half in halves]


def test_the_halves_of_a_list(tmp_path):
    """10 % and 2.5 %, rounded; the same for the same seed, others for another; no image that is listed twice is in
    both."""
    entries = [f'{label}/{number}.jpg {label}\n' for label in range(10) for number in range(41 + label)]
    (tmp_path / 'train_list.txt').write_text(''.join(entries * 2))
    train, arch = drawn(tmp_path)
    assert len(entries) == 455 and (len(train), len(arch)) == (46, 11)  # 45.5 and 11.375
    paths = [path for path, _ in train + arch]
    assert len(set(paths)) == 57
    known = {str(tmp_path / path): int(label) for path, label in (entry.split() for entry in entries)}
    assert all(known[path] == label for path, label in train + arch)
    assert {sum(label == wanted for _, label in train) for wanted in range(10)} <= {4, 5, 6}
    assert all(sum(label == wanted for _, label in arch) in (1, 2) for wanted in range(10))
    assert drawn(tmp_path) == [train, arch] and drawn(tmp_path, seed=1)[0] != train
    both = drawn(tmp_path, train_fraction=0.5, arch_fraction=0.5)
    assert [len(half) for half in both] == [228, 227] and len({path for half in both for path, _ in half}) == 455


def test_a_list_too_short_for_a_half_is_refused(tmp_path):
    (tmp_path / 'train_list.txt').write_text(''.join(f'{i}.jpg {i % 2}\n' for i in range(19)))
    with pytest.raises(UserError, match='--arch_fraction: 0.025 of the 19 images .* leaves one half .* empty'):
        drawn(tmp_path)
    (tmp_path / 'train_list.txt').write_text(''.join(f'{i}.jpg {i % 2}\n' for i in range(20)))
    assert [len(half) for half in drawn(tmp_path)] == [2, 1]
    (tmp_path / 'train_list.txt').write_text('a.jpg 0\n')
    with pytest.raises(UserError, match='--arch_fraction: '):
        drawn(tmp_path, train_fraction=0.9, arch_fraction=0.1)


def test_the_validation_half_is_evaluated_at_its_centre(tmp_path):
    """A white photo with a black rim outside of the central 7/8 (and of the two pixels that resizing reads around
    them): without augmentation only white, in the order of the list; with it other pixels in each epoch."""
    photo = np.zeros((64, 64, 3), 'uint8')
    photo[2:-2, 2:-2] = 255
    for i in range(20):
        Image.fromarray(photo).save(tmp_path / f'{i}.png')
    (tmp_path / 'train_list.txt').write_text(''.join(f'{i}.png {i % 2}\n' for i in range(20)))
    _, valid = reader.train_search(4, 0.5, True, imagenet_arguments(tmp_path, arch_fraction=0.5))
    images, labels = read(valid.without_augmentation())
    white = (1 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    assert images.shape == (10, 3, 32, 32) and np.abs(images - white).max() < 1e-5
    assert labels.tolist() == [int(valid.source.labels[i]) for i in valid.source.indices]
    passes = [read(valid)[0] for _ in range(2)]
    assert any(image.min() < 0 for image in passes[0]) and not (passes[0] == passes[1]).all()


def test_a_label_beyond_class_num_is_named_whichever_half_it_is_in(tmp_path):
    (tmp_path / 'train_list.txt').write_text(''.join(f'{i}.jpg {i // 4}\n' for i in range(40)))
    halves = reader.train_search(4, 0.5, True, imagenet_arguments(tmp_path, arch_fraction=0.1))
    for half in halves:
        with pytest.raises(UserError, match='train_list.txt, line 37: label 9, 9 classes allow 0 to 8'):
            reader.class_count(half, 9)


SEARCH = ['--dataset=imagenet', '--image_size=32', '--train_fraction=0.4', '--arch_fraction=0.2', '--batch_size=8',
          '--init_channels=4', '--layers=1', '--method=PC-DARTS', '--epochs=2', '--epochs_no_archopt=0', '--seed=1',
          '--save_freq=1', '--keep=20']


def test_a_search_on_photos_resumes_to_the_same_bits_and_its_command_trains(script, tmp_path):
    data = '--data_dir=' + shared_file('data', 'imagenet-sample')
    result = script('search.py', *SEARCH, data, '--model_save_dir=whole')
    assert result.returncode == 0, result.stderr
    assert '75 images: 30 train the weights, 15 the architecture; randomly cropped to 32x32' in result.stderr
    assert 'multiply-adds for an image of 32x32' in result.stderr  # the size that the command trains at
    words = shlex.split(result.stdout.split('To train it: ')[1])
    assert words == ['python', os.path.join(ROOT, 'train_imagenet.py'), '--arch=' + os.path.join('whole',
                     'genotype.json'), data, '--image_size=32', '--seed=1', '--auxiliary=False']
    shutil.copytree(tmp_path / 'whole', tmp_path / 'parts')
    for path in Checkpoints(str(tmp_path / 'parts' / 'checkpoints'), 20).paths()[:-2]:
        os.remove(path)
    again = script('search.py', *SEARCH, data, '--model_save_dir=parts', '--resume', '--num_workers=3')
    assert 'resumed at epoch 0, step 2' in again.stderr and again.returncode == 0, again.stderr
    for name in ('0/params.pdparams', '1/params.pdparams', 'genotype.json'):
        assert (tmp_path / 'whole' / name).read_bytes() == (tmp_path / 'parts' / name).read_bytes()
    check_refusal(script('search.py', *SEARCH, data, '--model_save_dir=whole', '--resume', '--arch_fraction=0.3'),
                  'the checkpoint was made with --arch_fraction=0.2; now it is 0.3')
    result = script('train_imagenet.py', *words[2:], '--epochs=1', '--init_channels=4', '--layers=1')
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('network_class, layers', [(NetworkCIFAR, 1), (NetworkCIFAR, 2), (NetworkCIFAR, 14),
                                                   (NetworkImageNet, 1), (NetworkImageNet, 14)])
@pytest.mark.parametrize('fewer', [0, 1])
def test_the_command_leaves_the_auxiliary_classifier_out_where_images_are_too_small(network_class, layers, fewer):
    network = network_class(4, 10, layers, True, get_genotype('PC_DARTS'))
    size = network_class.smallest_image(layers) - fewer
    images = paddle.zeros([2, 3, size, size])
    if fewer:
        with pytest.raises(UserError, match='--auxiliary: '):
            network(images)
    else:
        assert network(images)[1].shape == [2, 10]


# ---------------------------------------------------------------------------------------------------------------------
# Writing lists
# ---------------------------------------------------------------------------------------------------------------------


def write_images(folder, count, level):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), level, 'uint8')).save(folder / f'image {number}.png')


def entries(path):
    return [line.rsplit(' ', 1) for line in path.read_text().splitlines()]


def test_lists_of_a_folder_without_parts(script, tmp_path):
    for level, name in ((50, 'dog'), (100, 'cat'), (150, 'a b')):
        write_images(tmp_path / 'images' / name, 10, level)
    result = script('examples/make_image_lists.py', '--data=images')
    assert result.returncode == 0, result.stderr
    assert result.stdout == ('train_list.txt: 24 images of 3 classes\nval_list.txt: 6 images of 3 classes\n')
    assert (tmp_path / 'images' / 'classes.txt').read_text() == 'a b\ncat\ndog\n'
    train, val = (entries(tmp_path / 'images' / f'{name}_list.txt') for name in ('train', 'val'))
    everything = sorted(path for path, _ in train + val)
    assert everything == sorted(f'{name}/image {i}.png' for name in ('a b', 'cat', 'dog') for i in range(10))
    assert all(['a b', 'cat', 'dog'].index(path.split('/')[0]) == int(label) for path, label in train + val)
    assert [sum(label == str(number) for _, label in val) for number in range(3)] == [2, 2, 2]
    images = reader.imagenet_reader(str(tmp_path / 'images'), 'val', 8)
    assert len(images) == 6
    before = (tmp_path / 'images' / 'train_list.txt').read_text()
    check_refusal(script('examples/make_image_lists.py', '--data=images'), 'train_list.txt is there already')
    assert (tmp_path / 'images' / 'train_list.txt').read_text() == before


def test_lists_of_a_folder_with_parts(script, tmp_path):
    for part, count in (('train', 3), ('val', 1)):
        for name in ('x', 'y'):
            write_images(tmp_path / part / name, count, 100)
    assert script('examples/make_image_lists.py', '--data=.').returncode == 0
    assert entries(tmp_path / 'train_list.txt') == [[f'train/{name}/image {i}.png', str(label)]
                                                      for label, name in enumerate('xy') for i in range(3)]
    assert entries(tmp_path / 'val_list.txt') == [['val/x/image 0.png', '0'], ['val/y/image 0.png', '1']]


def test_names_that_a_list_cannot_hold_are_refused_before_anything_is_written(script, tmp_path):
    """Others come back from the list as they are on the disk."""
    names = ['a b.png', ' c.png', 'd\te.png', 'f\\g.png', '\u732b\u2028.png']
    for label in 'xy':
        (tmp_path / 'good' / label).mkdir(parents=True)
        for name in names:
            Image.new('RGB', (8, 8)).save(tmp_path / 'good' / label / name)
    assert script('examples/make_image_lists.py', '--data=good').returncode == 0
    paths = [path for name in ('train', 'val') for path in read_list(str(tmp_path / 'good' / f'{name}_list.txt'))[0]]
    assert sorted(paths) == sorted(str(tmp_path / 'good' / label / name) for label in 'xy' for name in names)
    for number, (name, message) in enumerate([(b'a\nb.png', 'has a line break'), (b'\xff.png', 'is not UTF-8 text')]):
        for part in ('train', 'val'):
            for label in 'xy':
                write_images(tmp_path / str(number) / part / label, 1, 100)
        with open(os.path.join(os.fsencode(tmp_path / str(number) / 'val' / 'x'), name), 'wb'):
            pass
        check_refusal(script('examples/make_image_lists.py', f'--data={number}'), message)
        assert sorted(path.name for path in (tmp_path / str(number)).iterdir()) == ['train', 'val']


def test_other_folders_are_refused(script, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name in 'xy':
        write_images(tmp_path / 'single' / name, 1, 100)
    check_refusal(script('examples/make_image_lists.py', '--data=single'), 'no image of single is left for the test')
    assert sorted(path.name for path in (tmp_path / 'single').iterdir()) == ['x', 'y']
    for folder in ('absent', 'empty'):
        check_refusal(script('examples/make_image_lists.py', '--data=' + folder), folder)
    check_refusal(script('examples/make_image_lists.py'), '--data')
