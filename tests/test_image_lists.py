"""examples/make_image_lists.py: lists that train_imagenet.py reads."""
import numpy as np
from conftest import check_refusal
from PIL import Image

import reader


def write_images(folder, count, level):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), level, 'uint8')).save(folder / f'image {number}.png')


def read_list(path):
    return [line.rsplit(' ', 1) for line in path.read_text().splitlines()]


def test_lists_of_a_folder_without_parts(script, tmp_path):
    for level, name in ((50, 'dog'), (100, 'cat'), (150, 'a b')):
        write_images(tmp_path / 'images' / name, 10, level)
    result = script('examples/make_image_lists.py', '--data=images')
    assert result.returncode == 0, result.stderr
    assert result.stdout == ('train_list.txt: 24 images of 3 classes\nval_list.txt: 6 images of 3 classes\n')
    assert (tmp_path / 'images' / 'classes.txt').read_text() == 'a b\ncat\ndog\n'
    train, val = (read_list(tmp_path / 'images' / f'{name}_list.txt') for name in ('train', 'val'))
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
    assert read_list(tmp_path / 'train_list.txt') == [[f'train/{name}/image {i}.png', str(label)]
                                                      for label, name in enumerate('xy') for i in range(3)]
    assert read_list(tmp_path / 'val_list.txt') == [['val/x/image 0.png', '0'], ['val/y/image 0.png', '1']]


def test_other_folders_are_refused(script, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name in 'xy':
        write_images(tmp_path / 'single' / name, 1, 100)
    check_refusal(script('examples/make_image_lists.py', '--data=single'), 'no image of single is left for the test')
    assert sorted(path.name for path in (tmp_path / 'single').iterdir()) == ['x', 'y']
    for folder in ('absent', 'empty'):
        check_refusal(script('examples/make_image_lists.py', '--data=' + folder), folder)
    check_refusal(script('examples/make_image_lists.py'), '--data')
