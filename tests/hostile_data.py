"""The data that rows of data/hostile_inputs.tsv name: image lists, folders of images, CIFAR archives, image files."""
import io
import os
import tarfile

import numpy as np
from PIL import Image
from test_archives import old_gnu_sparse, tar_with
from test_reader import batch, cifar10_members, write_archive

LISTS = {  # folder: content of train_list.txt and val_list.txt
    'binary': bytes(range(256)) * 8, 'utf16': 'a.jpg 0\n'.encode('utf-16'), 'gbk': '照片.jpg 0\n'.encode('gbk'),
    'empty': b'', 'bom': b'\xef\xbb\xbf', 'million': b'a.jpg 0\nb.jpg 1000000\n', 'digits': b'a.jpg ' + b'9' * 5000,
    'negative': b'a.jpg 0\r\nb.jpg -1\r\n', 'float': b'a.jpg 0.5\n', 'swapped': b'0 a.jpg\n', 'comma': b'a.jpg,0\n',
    'from_1': b'a.jpg 1\nb.jpg 2\n', 'outside': b'../../etc/passwd 0\n', 'absolute': b'/etc/passwd 0\n',
    'windows': b'..\\a.jpg 0\n', 'long': b'a.jpg 0\n' + b'x' * 100000 + b' 0\n', 'endless': b'x' * 1000000,
    'twice': b'a.jpg 0\nb.jpg 1\na.jpg 1\n', 'carriage': b'a.jpg 0\rb.jpg 1\r', 'escape': b'\x1b[2Ja.jpg\n',
    'nul': b'a\0.jpg 0\n', 'missing': b'a.jpg 0\nb.jpg 1\n', 'short': b'a.jpg 0\n',
}
SPLITS = {  # folder: subfolders that hold an image
    'only_train': ['TRAIN/a', 'TRAIN/b'], 'two_tests': ['Train/a', 'Train/b', 'Test/a', 'TEST_images/b'],
    'beside': ['train/a', 'train/b', 'cat'], 'within': ['a/Train', 'a/VAL', 'b/Train', 'b/VAL'],
    'new_class': ['Training/a', 'Training/b', 'val2017/a', 'val2017/c'], 'one_class': ['train/a', 'test/a'],
}


def write_data(folder):
    """Write everything into a folder."""
    write_lists(folder / 'image_lists')
    for name, classes in SPLITS.items():
        for place in classes:
            (folder / 'splits' / name / place).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(folder / 'splits' / name / place / '1.png')
    (folder / 'archives').mkdir()
    write_archives(folder / 'archives')
    write_modes(folder / 'image_files' / 'modes')
    for name, write in IMAGES.items():
        place = folder / 'image_files' / name
        place.mkdir(parents=True)
        write(place / '1.png')
        for kind in ('train', 'val'):
            (place / f'{kind}_list.txt').write_text('1.png 0\n' * 3)


def write_lists(folder):
    for name, content in LISTS.items():
        (folder / name).mkdir(parents=True)
        for kind in ('train', 'val'):
            (folder / name / f'{kind}_list.txt').write_bytes(content)
    for name, make in (('fifo', os.mkfifo), ('device', lambda path: os.symlink('/dev/zero', path)),
                       ('folder', os.mkdir), ('loop', lambda path: os.symlink(os.path.basename(path), path))):
        (folder / name).mkdir()
        for kind in ('train', 'val'):
            make(str(folder / name / f'{kind}_list.txt'))


def write_archives(folder):
    members = cifar10_members()
    contents = {'twice': dict(members, **{'y/data_batch_2': batch(3)}),
                'label': dict(members, **{'x/data_batch_4': batch(4, labels=[0, 10, 2, 3])}),
                'negative': dict(members, **{'x/data_batch_1': batch(4, labels=[0, -1, 2, 3])}),
                'empty': dict(members, **{'x/data_batch_1': b''}),
                'missing': {name: content for name, content in members.items() if name != 'x/data_batch_3'},
                'extra': {'x/data_batch_6': batch(3), 'x/readme': b'text'}}
    for name, content in contents.items():
        write_archive(folder / f'{name}.tar.gz', content)
    whole = (folder / 'twice.tar.gz').read_bytes()
    (folder / 'truncated.tar.gz').write_bytes(whole[:len(whole) // 2])
    (folder / 'sparse.tar').write_bytes(old_gnu_sparse(5 << 30))
    tar_with(folder / 'outside.tar.gz', '../data_batch_1')
    tar_with(folder / 'link.tar.gz', type=tarfile.SYMTYPE, linkname='/etc/passwd')


def write_modes(folder):
    """Images of modes that are read, and one that is none in line 5 of the lists. In one batch with --seed=2, that line
    is read last: an earlier one that could not be read would be named instead."""
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 1 << 15, 'uint16')).save(folder / '1.png')
    Image.new('CMYK', (8, 8)).save(folder / '2.jpg')
    frames = [Image.new('P', (8, 8), level) for level in (1, 2)]
    frames[0].save(folder / '3.gif', save_all=True, append_images=frames[1:])
    Image.new('LA', (8, 8)).save(folder / '4.png')
    (folder / '5.png').write_bytes(b'text')
    for kind in ('train', 'val'):
        (folder / f'{kind}_list.txt').write_text('1.png 0\n2.jpg 1\n3.gif 0\n4.png 1\n5.png 0\n')


def truncated(kind):
    def write(path):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), 'uint8'))
        content = io.BytesIO()
        noise.save(content, kind)
        path.write_bytes(content.getvalue()[:len(content.getvalue()) // 2])
    return write


def animation(path):
    """A GIF of two images that ends within the first."""
    frames, content = [Image.new('P', (64, 64), level) for level in (1, 2)], io.BytesIO()
    frames[0].save(content, 'GIF', save_all=True, append_images=frames[1:])
    path.write_bytes(content.getvalue()[:40])


IMAGES = {
    'truncated': truncated('JPEG'), 'truncated_png': truncated('PNG'), 'animation': animation,
    'zero_bytes': lambda path: path.write_bytes(b''),
    'bomb': lambda path: Image.new('1', (9000, 9000)).save(path),
    'larger_bomb': lambda path: Image.new('1', (30000, 6000)).save(path),
    'signed': lambda path: Image.fromarray(np.full((8, 8), -1, 'int32')).save(path, 'TIFF'),
    'postscript': lambda path: path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n'),
    'svg': lambda path: path.write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    'pipe': lambda path: os.mkfifo(str(path)), 'device': lambda path: os.symlink('/dev/zero', str(path)),
    'directory': lambda path: os.mkdir(str(path)),
}
