"""Images for the search and the training: archives and folders, augmentation, loaders.

Four functions are what the scripts call and what you replace to use data of your own:

    train_search    the two halves of a training set, for search.py
    train_valid     the training or the test set, for train.py
    cifar10_reader  the (image, label) pairs of a CIFAR archive
    imagenet_reader the training or the validation set of a folder with image lists, for train_imagenet.py

Images stay uint8 until the batch is made; augmentation works on whole batches. Which image stands where, and how it is cropped
and flipped, follows from the seed, the epoch and the place in the epoch's order alone: it is the same with any number of worker
processes, and n ranks together read what one rank would read with an n times larger batch.
"""
import hashlib
import http.client
import io
import lzma
import os
import pickle
import tarfile
import urllib.request
import zlib

import numpy as np
from paddle.io import DataLoader, Dataset

from checkpoint import atomic_write
from utility import UserError, logger, rank, world_size

CIFAR10_URL = 'https://dataset.bj.bcebos.com/cifar%2Fcifar-10-python.tar.gz'
CIFAR10_MD5 = 'c58f30108f718f92721af3b95e74349a'
CIFAR10_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'dataset', 'cifar-10-python.tar.gz')

# Mean and standard deviation of the pixels, R, G, B, as fractions of 255.
CIFAR_MEAN, CIFAR_STD = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)
DIGITS_MEAN, DIGITS_STD = (0.3053,) * 3, (0.3760,) * 3

# Streams of random numbers, so that the two halves of a search are not augmented alike.
ORDER, TRAIN, VALID = 0, 1, 2


# ---------------------------------------------------------------------------------------------------------------------
# What the scripts call
# ---------------------------------------------------------------------------------------------------------------------


def train_search(batch_size, train_portion, is_shuffle, args):
    """Split the training set by the seed into the search's two halves; the split is the same on every rank.

    batch_size: images a batch on each rank. train_portion: the share of the images that trains the weights; the others train
    the architecture. is_shuffle: False keeps the order of the archive.
    Returns two BatchLoaders, (train, valid), both augmented.
    """
    if args.dataset == 'digits':
        pairs = digits_reader('train')
    else:
        # To search on your own data, put a function of yours here that returns (image, label) pairs.
        pairs = cifar10_reader(cifar10_archive(args.data), 'data_batch', is_shuffle, args)
    images, labels = to_arrays(pairs, args.class_num)
    order = np.arange(len(labels))
    if is_shuffle:
        order = _generator(args, ORDER).permutation(len(labels))
    order = order[:args.trainset_num]
    split_point = int(np.floor(train_portion * len(order)))
    if not 0 < split_point < len(order):
        raise UserError('--train_portion: {:g} of {} images leaves one half of the search empty'.format(
            train_portion, len(order)))
    logger.info('%d images of %dx%d, %d train the weights, %d the architecture', len(order), *images.shape[2:],
                split_point, len(order) - split_point)
    augmentation = _augmentation(args, images.shape[2])
    return [BatchLoader(ArrayImages(images[half], labels[half], augmentation), batch_size, is_shuffle, stream, args)
            for half, stream in ((order[:split_point], TRAIN), (order[split_point:], VALID))]


def train_valid(batch_size, is_train, is_shuffle, args):
    """The training set, augmented, or the whole test set as it is, for train.py. Returns a BatchLoader."""
    if args.dataset == 'digits':
        pairs = digits_reader('train' if is_train else 'test')
    else:
        pairs = cifar10_reader(cifar10_archive(args.data), 'data_batch' if is_train else 'test_batch', is_shuffle, args)
    images, labels = to_arrays(pairs, args.class_num)
    augmentation = _augmentation(args, images.shape[2])
    if not is_train:
        return BatchLoader(ArrayImages(images, labels, augmentation.plain()), batch_size, False, VALID, args, train=False)
    if is_shuffle:
        order = _generator(args, ORDER).permutation(len(labels))[:args.trainset_num]
        images, labels = images[order], labels[order]
    return BatchLoader(ArrayImages(images[:args.trainset_num], labels[:args.trainset_num], augmentation), batch_size,
                       is_shuffle, TRAIN, args)


def cifar10_reader(file_name, data_name, is_shuffle, args):
    """Read the batches of a CIFAR archive (.tar.gz) or of the folder it unpacks to.

    data_name: 'data_batch' or 'test_batch', what the wanted members' names begin with. Members are read in place, nothing is
    unpacked. is_shuffle shuffles by args.seed.
    Returns a list of (image, label) pairs, image a uint8 array [3, 32, 32].
    Raises UserError for an archive that can't be read or holds something else.
    """
    images, labels = [], []
    for name, content in _members(file_name, data_name):
        data, label = _cifar_batch('{}: {}'.format(file_name, name), content)
        images.append(data)
        labels.append(label)
    if not images:
        raise UserError("--data: {} holds no file whose name begins with '{}'; give the CIFAR-10 archive for Python "
                        'or the folder it unpacks to'.format(file_name, data_name))
    pairs = list(zip(np.concatenate(images), np.concatenate(labels)))
    if is_shuffle:
        pairs = [pairs[i] for i in _generator(args, ORDER).permutation(len(pairs))]
    return pairs


def digits_reader(data_name):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey-scale: every fifth image is for the test, the others train.

    Returns a list of (image, label) pairs, image a uint8 array [3, 8, 8] of three equal channels.
    """
    from sklearn.datasets import load_digits  # comes with paddleslim
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype('uint8')
    wanted = (np.arange(len(grey)) % 5 == 0) == (data_name == 'test')
    return [(np.stack([image] * 3), label) for image, label in zip(grey[wanted], digits.target[wanted])]


# ---------------------------------------------------------------------------------------------------------------------
# Archives
# ---------------------------------------------------------------------------------------------------------------------


def cifar10_archive(data):
    """The path of the CIFAR-10 archive: what --data gave, whatever its md5, or else dataset/, downloaded when it isn't there."""
    if data is not None:
        if not os.path.exists(data):
            raise UserError('--data: {} does not exist; give the CIFAR-10 archive or the folder it unpacks to'.format(data))
        if os.path.isfile(data) and _md5(data) != CIFAR10_MD5:
            logger.info('--data: %s is not the official CIFAR-10 archive (another md5); taken since it was asked for', data)
        return data
    if not (os.path.isfile(CIFAR10_PATH) and _md5(CIFAR10_PATH) == CIFAR10_MD5):
        download(CIFAR10_URL, CIFAR10_PATH, CIFAR10_MD5)
    return CIFAR10_PATH


def download(url, path, md5):
    """Download url to path, whole or not at all. Raises UserError (status 1) that names what to do without a network."""
    def failure(reason):
        return UserError('cannot download {} ({}): give --data PATH with an archive you have, or --dataset=digits, which needs '
                         'no download'.format(url, reason), status=1)

    def chunks():
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                yield from iter(lambda: response.read(1 << 20), b'')
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            raise failure(getattr(error, 'reason', None) or error)

    logger.info('downloading %s to %s', url, path)
    digest = hashlib.md5()
    with atomic_write(path) as temporary:
        with open(temporary, 'wb') as f:
            for chunk in chunks():
                f.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != md5:
            raise failure('what arrived has another md5 than {}'.format(md5))


def _md5(path):
    digest = hashlib.md5()
    with open(path, 'rb') as f:
        for chunk in iter(lambda: f.read(1 << 20), b''):
            digest.update(chunk)
    return digest.hexdigest()


def _members(file_name, data_name):
    """Yield (name, bytes) of the files in an archive or a folder whose names begin with data_name, in the names' order."""
    try:
        if os.path.isdir(file_name):
            for folder, _, names in sorted(os.walk(file_name)):
                for name in sorted(names):
                    if name.startswith(data_name):
                        with open(os.path.join(folder, name), 'rb') as f:
                            yield name, f.read()
            return
        with tarfile.open(file_name) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and os.path.basename(m.name).startswith(data_name)]
            for member in sorted(members, key=lambda m: m.name):
                yield member.name, archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError('--data: {} cannot be read, it may be truncated or no archive: {}'.format(file_name, error))


class _CifarUnpickler(pickle.Unpickler):
    """Admits what a CIFAR batch is made of, numpy arrays in plain containers: a pickle can't call anything else."""

    ALLOWED = {(module, name) for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
               for name in ('_reconstruct', 'scalar')} | {
                   ('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')}

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise UserError('it asks for {}.{}, which no CIFAR batch needs: refused'.format(module, name))
        return super().find_class(module, name)


def _cifar_batch(where, content):
    """Unpickle a CIFAR batch -> images uint8 [N, 3, 32, 32], labels int64 [N]."""
    try:
        batch = _CifarUnpickler(io.BytesIO(content), encoding='bytes').load()
        data = batch[b'data']
        labels = np.asarray(batch.get(b'labels', batch.get(b'fine_labels')))
        if (data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072 or labels.shape != data.shape[:1]
                or labels.dtype.kind not in 'iu'):
            raise ValueError('it must hold data [N, 3072] of uint8 and N labels')
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError('--data: {} is not a CIFAR batch: {}'.format(where, str(error) or type(error).__name__))
    return data.reshape(-1, 3, 32, 32), labels.astype('int64')


def to_arrays(pairs, class_num):
    """Stack (image, label) pairs into images uint8 [N, 3, H, W] and labels int64 [N], and check them.

    An image is [3, H, W], or flat in this order, all of one size.
    """
    images, labels = zip(*pairs)
    images, labels = np.stack([np.asarray(image) for image in images]), np.asarray(labels, 'int64').reshape(-1)
    if images.ndim == 2:
        side = int(round((images.shape[1] / 3)**0.5))
        images = images.reshape(-1, 3, side, side)
    if labels.min() < 0 or labels.max() >= class_num:
        raise UserError('--class_num: the labels of the data are {} to {}, {} classes allow 0 to {}'.format(
            labels.min(), labels.max(), class_num, class_num - 1))
    return images, labels


# ---------------------------------------------------------------------------------------------------------------------
# Augmentation
# ---------------------------------------------------------------------------------------------------------------------


class Augmentation:
    """Pad with zeros and crop back, flip, normalise, cut out: the CIFAR recipe of DARTS (appendix A.1), on a whole batch.

    padding: pixels on each side; all (2 * padding + 1)^2 offsets are equally likely. flip: mirror half of the images.
    cutout_length: side of the square that is blanked, its centre anywhere in the image (DeVries and Taylor 2017); 0 for none.
    """

    draws = 5  # random numbers an image needs: crop y and x, flip, cutout y and x

    def __init__(self, mean, std, padding=0, flip=False, cutout_length=0):
        self.mean, self.std = mean, std
        self.padding, self.flip, self.cutout_length = padding, flip, cutout_length
        self.scale = (1 / (255 * np.asarray(std, 'float32'))).reshape(1, 3, 1, 1).astype('float32')
        self.shift = (np.asarray(mean) / np.asarray(std)).reshape(1, 3, 1, 1).astype('float32')

    def plain(self):
        """The same normalisation without anything random, for evaluation."""
        return Augmentation(self.mean, self.std)

    def __call__(self, images, uniform):
        """images uint8 [N, 3, H, W], uniform [N, 5] in [0, 1) -> float32 [N, 3, H, W]."""
        n, _, h, w = images.shape
        if self.padding:
            p = self.padding
            padded = np.pad(images, ((0, 0), (0, 0), (p, p), (p, p)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(2, 3))
            y, x = (uniform[:, :2] * (2 * p + 1)).astype(int).T
            images = windows[np.arange(n), :, y, x]
        if self.flip:
            images = np.where((uniform[:, 2] < 0.5).reshape(n, 1, 1, 1), images[:, :, :, ::-1], images)
        batch = images.astype('float32')
        batch *= self.scale
        batch -= self.shift
        if self.cutout_length:
            half = self.cutout_length // 2
            y, x = (uniform[:, 3:] * (h, w)).astype(int).T
            rows = np.abs(np.arange(h) + 0.5 - y[:, None]) < half  # y - half <= row < y + half
            columns = np.abs(np.arange(w) + 0.5 - x[:, None]) < half
            batch[np.broadcast_to((rows[:, :, None] & columns[:, None, :])[:, None], batch.shape)] = 0
        return batch


def _augmentation(args, size):
    """The augmentation of a data set of size x size images: the CIFAR recipe, in proportion to the image."""
    digits = args.dataset == 'digits'
    cutout = max(2, args.cutout_length * size // 32) if args.cutout and args.cutout_length else 0
    if cutout and size != 32:
        logger.info('--cutout_length=%d is meant for 32x32 images: %d on %dx%d', args.cutout_length, cutout, size, size)
    return Augmentation(DIGITS_MEAN if digits else CIFAR_MEAN, DIGITS_STD if digits else CIFAR_STD, padding=size // 8,
                        flip=not digits,  # a mirrored digit is another sign
                        cutout_length=cutout)


# ---------------------------------------------------------------------------------------------------------------------
# Loaders
# ---------------------------------------------------------------------------------------------------------------------


class ArrayImages:
    """Images in memory. images: uint8 [N, 3, H, W], labels: int64 [N], transform: an Augmentation."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform
        self.draws = transform.draws

    def __len__(self):
        return len(self.labels)

    def plain(self):
        return ArrayImages(self.images, self.labels, self.transform.plain())

    def batch(self, indices, uniform):
        """The images at `indices`, transformed by the random numbers `uniform` [N, draws]; float32 images, int64 labels."""
        return self.transform(self.images[indices], uniform), self.labels[indices]


class BatchLoader:
    """Iterates over a source of images in batches of Paddle tensors, (image [N, 3, H, W], label [N]).

    source: has __len__, `draws`, `batch(indices, uniform)` and `plain()`, as ArrayImages. stream: keeps the random numbers of
    two loaders apart. train: True gives every rank the same number of batches, False gives every image to exactly one rank.
    args: of them seed, use_multiprocess and num_workers are used.
    """

    def __init__(self, source, batch_size, shuffle, stream, args, train=True):
        self.source, self.batch_size, self.shuffle, self.stream = source, batch_size, shuffle, stream
        self.args, self.train = args, train
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Choose the epoch whose order and augmentation the next pass has; later passes differ until the next call."""
        self.epoch, self.passes = epoch, 0

    def without_augmentation(self):
        """The same images in order, each once over all ranks, for evaluation."""
        return BatchLoader(self.source.plain(), self.batch_size, False, self.stream, self.args, train=False)

    def __len__(self):
        return len(self._plan(np.arange(len(self.source))))

    def __iter__(self):
        key = (self.stream, self.epoch, self.passes)
        self.passes += 1
        order = np.arange(len(self.source))
        if self.shuffle:
            order = _generator(self.args, *key).permutation(order)
        batches = _Batches(self.source, self._plan(order), self.args, key)
        workers = getattr(self.args, 'num_workers', 1) if self.args.use_multiprocess else 0
        return iter(DataLoader(batches, batch_size=None, shuffle=False, num_workers=workers))

    def _plan(self, order):
        """Cut an epoch's order into what this rank reads: for each batch (images of all ranks, first, last of this rank's)."""
        size = self.batch_size * world_size()
        plan = []
        for start in range(0, len(order), size):
            everyone = order[start:start + size]
            if self.train and len(everyone) < world_size():
                everyone = np.resize(everyone, world_size())  # no rank may stand still while the others average
            bounds = np.linspace(0, len(everyone), world_size() + 1).astype(int)
            first, last = bounds[rank()], bounds[rank() + 1]
            if last > first:
                plan.append((everyone, first, last))
        return plan


class _Batches(Dataset):
    """The batches of one pass as a Paddle Dataset: item i is batch i, made in whichever process asks for it."""

    def __init__(self, source, plan, args, key):
        self.source, self.plan, self.args, self.key = source, plan, args, key

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, i):
        everyone, first, last = self.plan[i]
        uniform = _generator(self.args, *self.key, i).random((len(everyone), self.source.draws))
        return self.source.batch(everyone[first:last], uniform[first:last])


def _generator(args, *key):
    """The random numbers that the seed and a key of small integers stand for."""
    return np.random.default_rng((getattr(args, 'seed', 0),) + key)
