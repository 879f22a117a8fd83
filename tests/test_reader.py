"""Reading images: the split, the augmentation, the archives and what is refused in them."""
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from conftest import arguments, read, shared_file

import reader
from pipeline import archives, loader, transforms
from runtime.errors import UserError


def fingerprints(source):
    return {image.tobytes() for image, _ in source}


def test_digits_are_real_and_split_for_good():
    from sklearn.datasets import load_digits
    train, test = reader.digits_reader(True), reader.digits_reader(False)
    assert (len(train), len(test)) == (1437, 360)
    image, label = test[1]  # number 5 of the set
    assert label == load_digits().target[5]
    assert (image == np.round(load_digits().images[5] / 16 * 255)).all()


def test_the_search_halves_share_no_image_and_follow_the_seed():
    train, valid = reader.train_search(64, 0.4, True, arguments())
    assert (len(train.source), len(valid.source)) == (574, 863)
    whole = np.stack([np.stack([image] * 3) for image, _ in reader.digits_reader(True)])
    assert sorted(image.tobytes() for half in (train, valid) for image, _ in half.source) == sorted(
        map(bytes, whole.reshape(1437, -1)))
    again, _ = reader.train_search(64, 0.4, True, arguments())
    other, _ = reader.train_search(64, 0.4, True, arguments(seed=1))
    assert all((a[0] == b[0]).all() and a[1] == b[1] for a, b in zip(again.source, train.source))
    assert fingerprints(other.source) != fingerprints(train.source)
    few, rest = reader.train_search(64, 0.5, True, arguments(trainset_num=100))
    assert (len(few.source), len(rest.source)) == (50, 50)


def test_images_that_trainset_num_leaves_out_are_said(caplog, monkeypatch):
    monkeypatch.setattr(loader.logger, 'propagate', True)
    line = '--trainset_num=1400: 37 of the 1437 training images are left out'
    for limit, times in ((1437, 0), (1400, 1)):
        for read_half in (lambda args: reader.train_search(64, 0.5, True, args),
                          lambda args: reader.train_valid(64, True, True, args)):
            caplog.clear()
            with caplog.at_level('INFO'):
                read_half(arguments(trainset_num=limit))
            assert caplog.messages.count(line) == times and sum('left out' in message
                                                                for message in caplog.messages) == times


def test_augmentation_differs_by_epoch_pass_and_half_and_is_reproducible():
    train, valid = reader.train_search(500, 0.5, True, arguments())
    valid.source = train.source  # the same images: what differs now is order and augmentation
    first, label = read(train)
    second, _ = read(train)
    other_half, _ = read(valid)
    train.set_epoch(1)
    next_epoch, _ = read(train)
    train.set_epoch(0)
    again, again_label = read(train)
    assert (first == again).all() and (label == again_label).all()
    for different in (second, other_half, next_epoch):
        assert (first != different).mean() > 0.3


def test_a_loader_knows_its_place_before_and_during_a_pass():
    train, _ = reader.train_search(200, 0.5, True, arguments())
    for place in ([0, 0, 0], [3, 0, 2], [3, 2, 0], [3, 2, 1]):
        train.set_position(place)
        assert train.position() == place
        batches = iter(train)
        next(batches)
        assert train.position() == place[:2] + [place[2] + 1]
    rest = [image.numpy() for image, _ in batches]
    assert train.position() == [3, 2, 4] and len(rest) == 2
    next(iter(train))
    assert train.position() == [3, 3, 1]


def test_batches_do_not_depend_on_the_workers():
    loaders = [reader.train_search(100, 0.5, True, arguments(use_multiprocess=workers > 0, num_workers=workers))[0]
               for workers in (0, 1, 3)]
    alone, *others = [read(loader) for loader in loaders]
    for other in others:
        assert (alone[0] == other[0]).all() and (alone[1] == other[1]).all()


def test_evaluation_sees_each_image_once_and_as_it_is():
    _, valid = reader.train_search(64, 0.5, True, arguments())
    images, labels = read(valid.without_augmentation())
    mean, std = transforms.DIGITS_PIXELS
    expected = (np.stack([image for image, _ in valid.source]) / 255 - mean[0]) / std[0]
    assert np.abs(images - expected).max() < 1e-5 and (labels == [label for _, label in valid.source]).all()
    test = reader.train_valid(64, False, False, arguments())
    assert len(read(test)[1]) == 360 and len(test) == 6  # the last batch holds 40


def reference_augmentation(image, uniform, padding, cutout):
    """The CIFAR recipe, image by image and pixel by pixel: pad, crop, flip, normalise, cut out."""
    size = image.shape[1]
    padded = np.zeros((3, size + 2 * padding, size + 2 * padding))
    padded[:, padding:-padding, padding:-padding] = image
    y, x = [int(u * (2 * padding + 1)) for u in uniform[:2]]
    image = padded[:, y:y + size, x:x + size]
    if uniform[2] < 0.5:
        image = image[:, :, ::-1]
    image = (image / 255 - np.reshape(transforms.CIFAR_PIXELS[0], (3, 1, 1))) / np.reshape(transforms.CIFAR_PIXELS[1],
                                                                                           (3, 1, 1))
    cy, cx = [int(u * size) for u in uniform[3:]]
    for row in range(size):
        for column in range(size):
            if cy - cutout // 2 <= row < cy + cutout // 2 and cx - cutout // 2 <= column < cx + cutout // 2:
                image[:, row, column] = 0
    return image


def test_augmentation_against_pixel_loops():
    rng = np.random.default_rng(0)
    images, uniform = rng.integers(0, 256, (40, 3, 32, 32), 'uint8'), rng.random((40, 5))
    augmentation = transforms.Augmentation(*transforms.CIFAR_PIXELS, padding=4, flip=True, cutout_length=16)
    batch = augmentation(images, uniform)
    assert batch.dtype == np.float32
    for image, u, result in zip(images, uniform, batch):
        assert np.abs(result - reference_augmentation(image, u, 4, 16)).max() < 1e-5


def test_all_crop_offsets_occur_and_both_flips():
    marked = np.zeros((2000, 3, 32, 32), 'uint8')
    marked[:, :, 16, 10] = 255
    crop = transforms.Augmentation((0, 0, 0), (1, 1, 1), padding=4)
    _, _, y, x = np.nonzero(crop(marked, np.random.default_rng(0).random((2000, 5))))
    assert {(a - 16, b - 10) for a, b in zip(y, x)} == {(a, b) for a in range(-4, 5) for b in range(-4, 5)}
    flip = transforms.Augmentation((0, 0, 0), (1, 1, 1), flip=True)
    _, _, _, x = np.nonzero(flip(marked, np.random.default_rng(0).random((2000, 5))))
    assert set(x) == {10, 21} and 0.45 < (x == 21).mean() < 0.55


def test_augmentation_in_proportion_to_the_image():
    digits = reader.augmentation_of('digits', 8, True, 16)
    assert (digits.padding, digits.flip, digits.cutout_length) == (1, False, 4)
    cifar = reader.augmentation_of('cifar10', 32, True, 16)
    assert (cifar.padding, cifar.flip, cifar.cutout_length) == (4, True, 16)


@pytest.mark.parametrize('train', [True, False])
def test_ranks_read_what_one_rank_with_a_larger_batch_reads(monkeypatch, train):
    """Batch by batch, augmentation included, the uneven tail too."""
    def half_of(batch_size):
        half, _ = reader.train_search(batch_size, 0.5, True, arguments(trainset_num=2 * 101))
        return half if train else half.without_augmentation()

    whole = [image.numpy() for image, _ in half_of(32)]
    assert [len(batch) for batch in whole] == [32, 32, 32, 5]
    parts = []
    monkeypatch.setattr(loader, 'world_size', lambda: 2)
    for number in range(2):
        monkeypatch.setattr(loader, 'rank', lambda number=number: number)
        parts.append([image.numpy() for image, _ in half_of(16)])
    assert [len(batch) for batch in parts[0]] == [16, 16, 16, 2]
    for both, first, second in zip(whole, *parts):
        assert (np.concatenate([first, second]) == both).all()


# ---------------------------------------------------------------------------------------------------------------------
# Archives
# ---------------------------------------------------------------------------------------------------------------------


def write_archive(path, members):
    with tarfile.open(path, 'w:gz') as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def batch(n=4, **changes):
    data = np.arange(n * 3072, dtype='int64').astype('uint8').reshape(n, 3072)
    content = dict(dict(data=data, labels=list(range(n))), **changes)
    return pickle.dumps({key.encode(): value for key, value in content.items() if value is not None}, 2)


def cifar10_members(n=2):
    """The members of an archive of CIFAR-10, each of n images."""
    return {f'x/{name}': batch(n) for name in ['test_batch'] + [f'data_batch_{number}' for number in range(1, 6)]}


def test_an_archive_of_the_official_layout():
    path = shared_file('data', 'cifar-10-subset.tar.gz')
    train = reader.cifar10_reader(path, 'data_batch', False, arguments())
    test = reader.cifar10_reader(path, 'test_batch', False, arguments())
    assert (len(train), len(test)) == (10000, 2000)
    with tarfile.open(path) as archive:  # the pickle module itself, on a file that is known to be good
        expected = pickle.load(archive.extractfile('cifar-10-batches-py/data_batch_1'), encoding='bytes')
    assert (train[7][0] == expected[b'data'][7].reshape(3, 32, 32)).all() and train[7][1] == expected[b'labels'][7]
    shuffled = reader.cifar10_reader(path, 'data_batch', True, arguments())
    assert [label for _, label in shuffled] != [label for _, label in train]
    assert sorted(label for _, label in shuffled) == sorted(label for _, label in train)


def test_a_folder_reads_as_its_archive(tmp_path):
    members = dict(cifar10_members(), **{'x/data_batch_1': batch(3), 'x/batches.meta': b'?'})
    (tmp_path / 'x').mkdir()
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    archive = write_archive(tmp_path / 'a.tar.gz', members)
    for path in (archive, str(tmp_path / 'x'), str(tmp_path)):
        pairs = reader.cifar10_reader(path, 'data_batch', False, arguments())
        assert [label for _, label in pairs] == [0, 1, 2] + 4 * [0, 1] and pairs[1][0].shape == (3, 32, 32)
        assert (pairs[1][0].ravel() == pairs[4][0].ravel()).all()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


BROKEN = {
    'no batch': ({'x/readme': b'text'}, "holds no data_batch file"),
    'no pickle': ({'x/data_batch_1': b'text'}, 'x/data_batch_1 is not a CIFAR batch'),
    'no dict': ({'x/data_batch_1': pickle.dumps([1])}, 'is not a CIFAR batch'),
    'no labels': ({'x/data_batch_1': pickle.dumps({b'data': np.zeros((1, 3072), 'uint8')})}, 'is not a CIFAR batch'),
    'other shape': ({'x/data_batch_1': batch(data=np.zeros((4, 100), 'uint8'))}, 'must hold data [N, 3072]'),
    'other type': ({'x/data_batch_1': batch(data=np.zeros((4, 3072)))}, 'must hold data [N, 3072]'),
    'fewer labels': ({'x/data_batch_1': batch(labels=[1])}, 'must hold data [N, 3072]'),
    'text labels': ({'x/data_batch_1': batch(labels=['a', 'b', 'c', 'd'])}, 'must hold data [N, 3072]'),
}


@pytest.mark.parametrize('case', sorted(BROKEN))
def test_an_archive_that_holds_something_else_is_refused(tmp_path, case):
    members, message = BROKEN[case]
    path = write_archive(tmp_path / 'a.tar.gz', members)
    with pytest.raises(UserError) as error:
        reader.cifar10_reader(path, 'data_batch', False, arguments())
    assert message in str(error.value) and path in str(error.value)


def test_a_pickle_that_calls_something_is_refused_and_named(tmp_path):
    path = write_archive(tmp_path / 'a.tar.gz', {'data_batch_1': pickle.dumps(Hostile(str(tmp_path / 'made')))})
    with pytest.raises(UserError, match='posix.mkdir|nt.mkdir'):
        reader.cifar10_reader(path, 'data_batch', False, arguments())
    assert not (tmp_path / 'made').exists()


def test_the_default_path_is_for_cifar10_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(archives, 'download', lambda *_: None)
    data = os.path.join('dataset', 'cifar10')
    downloaded = [os.path.join(archives.DATASET_FOLDER, archives.CIFAR[name][2]) for name in ('cifar10', 'cifar100')]
    assert [archives.cifar_archive(name, data) for name in ('cifar10', 'cifar100')] == downloaded
    os.makedirs(data)
    assert [archives.cifar_archive(name, data) for name in ('cifar10', 'cifar100')] == [data, downloaded[1]]
    os.makedirs('mine')
    assert archives.cifar_archive('cifar100', 'mine') == 'mine'


@pytest.mark.parametrize('keep', [0, 10, 0.5])
def test_a_truncated_archive_is_refused(tmp_path, keep):
    path = tmp_path / 'a.tar.gz'
    write_archive(path, {'data_batch_1': batch(20, data=np.random.default_rng(0).integers(0, 256, (20, 3072),
                                                                                          'uint8'))})
    content = path.read_bytes()
    path.write_bytes(content[:keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match='cannot be read, it may be truncated'):
        reader.cifar10_reader(str(path), 'data_batch', False, arguments())


def test_the_class_count_is_the_datas_unless_more_are_asked_for():
    train, _ = reader.train_search(64, 0.5, True, arguments(trainset_num=2))
    assert train.source.num_classes == 10  # of the whole set, not of two images
    assert reader.class_count(train) == 10
    assert reader.class_count(train, 12) == 12
    with pytest.raises(UserError, match='--class_num: 8 is not allowed: the labels of the data are 0 to 9'):
        reader.class_count(train, 8)


def test_a_download_that_fails_or_differs_leaves_nothing(tmp_path):
    source = tmp_path / 'source'
    source.write_bytes(b'content')
    path = tmp_path / 'dataset' / 'a.tar.gz'
    with pytest.raises(UserError, match='another md5.*--data PATH.*--dataset=digits'):
        archives.download(source.as_uri(), str(path), '0' * 32)
    with pytest.raises(UserError, match='cannot download.*--data PATH'):
        archives.download((tmp_path / 'absent').as_uri(), str(path), '0' * 32)
    assert list(path.parent.iterdir()) == []
    archives.download(source.as_uri(), str(path), '9a0364b9e99bb480dd25e1f0284c8555')  # md5sum of the seven letters
    assert path.read_bytes() == b'content'
