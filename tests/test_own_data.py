"""Data of one's own, and image files of all kinds: what is read, what is left out, what is refused."""
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import paddle
import pytest
from conftest import ROOT, WAIT, arguments, read
from PIL import Image

import reader
from pipeline import loader, transforms
from pipeline.items import DatasetItems
from pipeline.sources import DatasetImages, Source
from runtime.errors import UserError
from training.engine import evaluate

# ---------------------------------------------------------------------------------------------------------------------
# A function of one's own in place of cifar10_reader, and a paddle.io.Dataset
# ---------------------------------------------------------------------------------------------------------------------

OPTIONS = ['digits', False, 16]  # of augmentation_of: data set, cutout, its length
IMAGE = np.random.default_rng(0).integers(0, 256, (3, 8, 8), 'uint8')


@pytest.mark.parametrize('form', [lambda image: image, lambda image: image.transpose(1, 2, 0),
                                  lambda image: image.ravel(),
                                  lambda image: Image.fromarray(image.transpose(1, 2, 0))])
def test_images_in_any_form(monkeypatch, form):
    monkeypatch.setattr(reader, 'cifar_archive', lambda name, data: 'none')
    monkeypatch.setattr(reader, 'cifar10_reader', lambda *_: [(form(IMAGE), i % 3) for i in range(10)])
    train, valid = reader.train_search(4, 0.5, True, arguments(dataset='cifar10'))
    assert train.source.num_classes == 3 and len(train.source) == len(valid.source) == 5
    assert (train.source.images == IMAGE).all()
    mean, std = [np.reshape(values, (3, 1, 1)) for values in transforms.CIFAR_PIXELS]
    assert np.allclose(read(valid.without_augmentation())[0], (IMAGE / 255 - mean) / std, atol=1e-5)


def test_grey_images_float_images_and_what_is_refused():
    grey = reader.as_source([(IMAGE[0], 0)], OPTIONS)
    assert (grey.images[0] == IMAGE[0]).all() and grey.images.shape == (1, 3, 8, 8)
    ready = reader.as_source([(IMAGE / 7, 0)] * 2, OPTIONS)
    assert np.allclose(ready.batch([0], None)[0], IMAGE / 7)
    with pytest.raises(UserError, match=r'image 1 of the data is \(3, 4, 4\), image 0 is \(3, 8, 8\)'):
        reader.as_source([(IMAGE, 0), (IMAGE[:, :4, :4], 1)], OPTIONS)
    with pytest.raises(UserError, match=r'shape \(2, 2, 2, 2\)'):
        reader.as_source([(np.zeros((2, 2, 2, 2), 'uint8'), 0)], OPTIONS)
    with pytest.raises(UserError, match='item 0 of the data has the label -1'):
        reader.as_source([(IMAGE, -1)], OPTIONS)


class Users(paddle.io.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return np.full((3, 8, 8), i, 'float32'), i % 2


def test_a_dataset_in_place_of_cifar10_reader(monkeypatch):
    monkeypatch.setattr(reader, 'cifar_archive', lambda name, data: 'none')
    monkeypatch.setattr(reader, 'cifar10_reader', lambda *_: Users())
    train, valid = reader.train_search(4, 0.5, True, arguments(dataset='cifar10'))
    seen = [sorted(read(half)[0][:, 0, 0, 0].tolist()) for half in (train, valid)]
    assert sorted(seen[0] + seen[1]) == list(range(12)) and len(seen[0]) == 6
    images, labels = read(train)
    assert (images[:, 0, 0, 0] % 2 == labels).all()


def test_the_classes_of_a_dataset_are_counted_unless_it_or_the_flag_says_them(monkeypatch):
    class Labelled(Users):
        read, labels = 0, [2, 0, 11, 4]

        def __getitem__(self, i):
            type(self).read += 1
            return np.zeros((3, 8, 8), 'float32'), self.labels[i % 4]

    def count(data, class_num=None):
        monkeypatch.setattr(reader, 'cifar10_reader', lambda *_: data)
        halves = reader.train_search(4, 0.5, True, arguments(dataset='cifar10'))
        return reader.class_count(halves[0], class_num)

    monkeypatch.setattr(reader, 'cifar_archive', lambda name, data: 'none')
    assert count(Labelled()) == 12 and Labelled.read >= 12
    Labelled.read = 0
    assert count(Labelled(), 10) == 10 and Labelled.read < 12
    data = Labelled()
    data.num_classes = 20
    assert count(data) == 20 and Labelled.read < 12
    with pytest.raises(UserError, match='--class_num: 10 is not allowed: the labels of the data are 0 to 19'):
        count(data, 10)
    Labelled.labels = [np.array([3]), np.int64(1), paddle.to_tensor([2]), -1]
    with pytest.raises(UserError, match='item 3 of the data set has the label -1; labels count from 0'):
        count(Labelled())
    Labelled.labels = [0, 0, 0, 0]
    with pytest.raises(UserError, match='the data has 1 class; a classifier needs at least two'):
        count(Labelled())


def test_cifar100(tmp_path):
    from test_reader import batch, write_archive
    members = {'cifar-100-python/train': batch(4, labels=None, fine_labels=[99, 3, 0, 7], coarse_labels=[1, 2, 3, 4]),
               'cifar-100-python/test': batch(2, labels=None, fine_labels=[5, 6]), 'cifar-100-python/meta': b'?'}
    path = write_archive(tmp_path / 'c.tar.gz', members)
    args = arguments(dataset='cifar100', data=path)
    assert sorted(read(reader.train_valid(2, True, True, args))[1]) == [0, 3, 7, 99]
    assert read(reader.train_valid(2, False, False, args))[1].tolist() == [5, 6]


# ---------------------------------------------------------------------------------------------------------------------
# Image files
# ---------------------------------------------------------------------------------------------------------------------

WHOLE = transforms.CentreCrop(16)


def quadrants(mode='RGB', size=64):
    """An image whose quadrants are red, green, blue and grey: orientation and colours can be told."""
    image = Image.new('RGB', (size, size), (128, 128, 128))
    half = size // 2
    for box, colour in (((0, 0), (250, 0, 0)), ((half, 0), (0, 250, 0)), ((0, half), (0, 0, 250))):
        image.paste(colour, box + (box[0] + half, box[1] + half))
    return image.convert(mode)


def corners(path, crop=WHOLE, uniform=()):
    """The colours near the four corners of what load_photo makes of a file, [4, 3], by rows."""
    photo = transforms.load_photo(str(path), crop, np.asarray(uniform))
    assert photo.shape == (3, crop.size, crop.size) and photo.dtype == np.uint8
    near, far = crop.size // 8, crop.size - crop.size // 8
    return np.asarray([photo[:, y, x] for y in (near, far) for x in (near, far)], int)


EXPECTED = np.asarray([(250, 0, 0), (0, 250, 0), (0, 0, 250), (128, 128, 128)])


@pytest.mark.parametrize('mode, name', [
    ('RGB', 'a.jpeg'), ('RGB', 'a.png'), ('RGBA', 'a.png'), ('P', 'a.png'), ('P', 'a.gif'), ('CMYK', 'a.jpeg'),
    ('RGB', 'a.bmp')])
def test_colour_modes(tmp_path, mode, name):
    quadrants(mode).save(str(tmp_path / name))
    assert np.abs(corners(tmp_path / name) - EXPECTED).max() < 12


@pytest.mark.parametrize('mode', ['L', 'LA', '1', 'I;16'])
def test_grey_modes(tmp_path, mode):
    path = tmp_path / 'a.png'
    if mode == 'I;16':
        Image.fromarray(np.asarray(quadrants('L'), 'uint16') * 257).save(str(path))
    else:
        quadrants(mode).save(str(path))
    result = corners(path)
    assert (result == result[:, :1]).all()
    if mode != '1':
        assert np.abs(result[:, 0] - [np.asarray(Image.new('RGB', (1, 1), tuple(c)).convert('L'))[0, 0]
                                      for c in EXPECTED]).max() < 4


def test_a_png_named_jpeg_and_a_palette_with_transparency(tmp_path):
    path = tmp_path / 'a.JPEG'
    quadrants().save(str(path), format='PNG')
    assert np.abs(corners(path) - EXPECTED).max() < 2
    quadrants('P').save(str(path), format='PNG', transparency=bytes(range(200)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.abs(corners(path) - EXPECTED).max() < 4


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    """A file that stores the picture turned and says so reads as the picture itself."""
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # PIL's transpositions that make the stored picture
    image = quadrants()
    for turn in undo.get(orientation, []):
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(str(tmp_path / 'a.jpeg'), exif=exif, quality=95)
    assert np.abs(corners(tmp_path / 'a.jpeg') - EXPECTED).max() < 12


def test_a_large_jpeg_is_not_decoded_whole_and_looks_the_same(tmp_path, monkeypatch):
    quadrants(size=2048).save(str(tmp_path / 'a.jpeg'))
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, 'resize', lambda self, *args, **kwargs: sizes.append(self.size)
                        or resize(self, *args, **kwargs))
    assert np.abs(corners(tmp_path / 'a.jpeg') - EXPECTED).max() < 12
    assert max(sizes[0]) <= 256  # an eighth, libjpeg's smallest


def test_random_crops_cover_8_to_100_per_cent_at_3_to_4_and_stay_inside():
    crop, rng = transforms.RandomResizedCrop(16), np.random.default_rng(0)
    boxes = np.asarray([crop.box(200, 150, rng.random(crop.draws)) for _ in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes[:, :2].min() >= 0 and boxes[:, 2].max() <= 200 and boxes[:, 3].max() <= 150
    share, ratio = width * height / (200 * 150), width / height
    assert 0.07 < share.min() < 0.1 and share.max() > 0.9
    assert 0.7 < ratio.min() < 0.8 and 1.3 < ratio.max() < 1.4
    assert len({tuple(box) for box in boxes}) > 2900
    assert 0.47 < np.mean([crop.flip(rng.random(crop.draws)) for _ in range(3000)]) < 0.53


def photo_list(folder, broken=()):
    """A folder with a list of eight images, some of which are no images."""
    for i in range(8):
        path = folder / f'photo {i}.jpeg'
        if i in broken:
            path.write_bytes(b'text')
        else:
            Image.new('RGB', (40, 30), (20 * i, 0, 0)).save(str(path))
    for name in ('train_list.txt', 'val_list.txt'):
        (folder / name).write_text(''.join(f'photo {i}.jpeg {i % 2}\n' for i in range(8)))
    return str(folder)


@pytest.mark.parametrize('workers', [0, 2])
def test_bad_images_are_left_out_up_to_the_limit(tmp_path, caplog, monkeypatch, workers):
    monkeypatch.setattr(loader.logger, 'propagate', True)
    source = reader.imagenet_reader(photo_list(tmp_path, broken=(2, 6, 7)), 'val')

    def batches(limit):
        return loader.BatchLoader(source, 2, shuffle=False, stream=loader.VALID, workers=workers, max_bad_images=limit,
                                  train=False)

    model = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * 224 * 224, 2))
    several = batches(3)
    for _ in range(2):  # the second pass does not count them again
        assert read(several)[1].tolist() == [0, 1, 1, 0, 1]  # the last batch is empty and left out whole
    assert evaluate(model, several)[3] == 5
    assert len(several.bad_images) == 3 and sum('skipped' in record.message for record in caplog.records) == 3
    with pytest.raises(UserError, match='val_list.txt, line 8: .*photo 7.jpeg cannot be read .* --max_bad_images '
                                        'allows 2') as error:
        read(batches(2))
    assert error.value.status == 1


def test_an_evaluation_without_a_readable_image_has_no_result(tmp_path):
    source = reader.imagenet_reader(photo_list(tmp_path, broken=range(8)), 'val')
    batches = loader.BatchLoader(source, 2, shuffle=False, stream=loader.VALID, max_bad_images=8, train=False)
    with pytest.raises(UserError, match='none of the images of the evaluation could be read') as error:
        evaluate(paddle.nn.Identity(), batches)
    assert error.value.status == 1


# ---------------------------------------------------------------------------------------------------------------------
# Shared memory
# ---------------------------------------------------------------------------------------------------------------------

SMALL_SHM = '''
mount -t tmpfs -o size=1m tmpfs /dev/shm &&
exec "{python}" "{root}/train.py" --dataset=digits --auxiliary=False --init_channels=4 --layers=1 --epochs=1 \
    --batch_size=1400 --num_workers={workers} --use_multiprocess={use}
'''


@pytest.mark.parametrize('use', [True, False])
def test_a_small_shared_memory_is_no_limit(tmp_path, use):
    """Workers hand over their batches through memory without a name: a container's small /dev/shm does not matter."""
    command = ['unshare', '-m', 'sh', '-c', SMALL_SHM.format(python=sys.executable, root=ROOT, workers=1, use=use)]
    try:
        allowed = subprocess.run(command[:2] + ['sh', '-c', 'mount -t tmpfs tmpfs /dev/shm'],
                                 stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip('this user cannot mount a small /dev/shm')
    result = subprocess.run(command, cwd=str(tmp_path), text=True, capture_output=True, timeout=WAIT)
    assert result.returncode == 0, result.stderr


def test_a_worker_that_is_killed_ends_the_run_with_one_line(capfd):
    """As by a bus error or the kernel's out-of-memory killer; not a hang."""
    class Deadly(Source):
        image_shape = [3, 2, 2]

        def __len__(self):
            return 4

        def batch(self, indices, uniform):
            if indices[0] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return np.zeros((len(indices), 3, 2, 2), 'float32'), np.zeros(len(indices), 'int64'), []

    batches = loader.BatchLoader(Deadly(), 1, shuffle=False, stream=loader.TRAIN, workers=1)
    with pytest.raises(UserError, match='a worker process of the reader died.*--num_workers=0'):
        read(batches)
    assert 'Traceback' not in capfd.readouterr().err


def test_an_error_in_a_users_dataset_is_shown_as_it_is():
    class Faulty(Users):
        def __getitem__(self, i):
            raise KeyError('my own mistake')

    source = DatasetImages(DatasetItems(Users()))
    source.items.dataset = Faulty()
    for workers in (0, 1):
        batches = loader.BatchLoader(source, 1, shuffle=False, stream=loader.TRAIN, workers=workers)
        with pytest.raises(KeyError, match='my own mistake'):
            read(batches)


class Digits(paddle.io.Dataset):
    """scikit-learn's real digits as a user's Dataset: float images, ready for the network."""

    def __init__(self):
        self.pairs = reader.digits_reader(True)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        image, label = self.pairs[i]
        return np.stack([image] * 3).astype('float32') / 255, label


@pytest.mark.parametrize('mine', [lambda *_: reader.digits_reader(True), lambda *_: Digits()])
def test_real_images_through_a_function_and_a_dataset(monkeypatch, mine):
    """Both halves together hold every digit once, each with its own label."""
    monkeypatch.setattr(reader, 'cifar_archive', lambda name, data: 'none')
    monkeypatch.setattr(reader, 'cifar10_reader', mine)
    halves = reader.train_search(64, 0.5, True, arguments(dataset='cifar10'))
    mean, std = [np.reshape(values, (3, 1, 1)) for values in transforms.CIFAR_PIXELS]
    as_they_are, seen = isinstance(mine(), Digits), []
    for half in halves:
        for image, label in zip(*read(half.without_augmentation())):
            pixels = image if as_they_are else image * std + mean
            seen.append((np.round(pixels[0] * 255).astype('uint8').tobytes(), int(label)))
    assert sorted(seen) == sorted((image.tobytes(), int(label)) for image, label in reader.digits_reader(True))
