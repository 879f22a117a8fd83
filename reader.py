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
import os

import numpy as np
from paddle.io import DataLoader, Dataset

from archives import cifar10_archive, cifar_batch, members
from transforms import (CIFAR_MEAN, CIFAR_STD, DIGITS_MEAN, DIGITS_STD, IMAGENET_MEAN, IMAGENET_STD, Augmentation, CentreCrop,
                        RandomResizedCrop, load_photo)
from utility import UserError, logger, rank, world_size

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
    for name, content in members(file_name, data_name):
        data, label = cifar_batch('{}: {}'.format(file_name, name), content)
        images.append(data)
        labels.append(label)
    if not images:
        raise UserError("--data: {} holds no file whose name begins with '{}'; give the CIFAR-10 archive for Python "
                        'or the folder it unpacks to'.format(file_name, data_name))
    pairs = list(zip(np.concatenate(images), np.concatenate(labels)))
    if is_shuffle:
        pairs = [pairs[i] for i in _generator(args, ORDER).permutation(len(pairs))]
    return pairs


def imagenet_reader(data_dir, mode):
    """The images that a list names, for train_imagenet.py.

    data_dir: the folder that holds train_list.txt and val_list.txt, whose lines are `relative/path label`. mode: 'train', cropped
    and flipped at random, or 'val', the centre of the image.
    Returns ImageFiles, a paddle.io.Dataset of (image float32 [3, 224, 224], label). Raises UserError that names the line at fault.
    """
    list_name = os.path.join(data_dir, {'train': 'train_list.txt', 'val': 'val_list.txt'}[mode])
    try:
        with open(list_name, encoding='utf-8') as f:
            lines = f.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError('--data_dir: {} cannot be read: {}; it is to hold a line "relative/path label" for each image'.format(
            list_name, getattr(error, 'strerror', None) or error))
    paths, labels, where = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, _, label = line.rstrip().rpartition(' ')  # the path itself may hold spaces
        if not path or not label.isdecimal():
            raise UserError('--data_dir: {}, line {}: {!r:.80} is not "relative/path label"'.format(list_name, number, line))
        paths.append(os.path.join(data_dir, path))
        labels.append(int(label))
        where.append('{}, line {}'.format(list_name, number))
    if not paths:
        raise UserError('--data_dir: {} names no image'.format(list_name))
    return ImageFiles(paths, labels, where, RandomResizedCrop() if mode == 'train' else CentreCrop())


def digits_reader(data_name):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey-scale: every fifth image is for the test, the others train.

    Returns a list of (image, label) pairs, image a uint8 array [3, 8, 8] of three equal channels.
    """
    from sklearn.datasets import load_digits  # comes with paddleslim
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype('uint8')
    wanted = (np.arange(len(grey)) % 5 == 0) == (data_name == 'test')
    return [(np.stack([image] * 3), label) for image, label in zip(grey[wanted], digits.target[wanted])]


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


class ImageFiles(Dataset):
    """Image files. paths, labels, where: for each image its path, its class, and what to call it in a message."""

    def __init__(self, paths, labels, where, crop):
        self.paths, self.labels, self.where, self.crop = paths, np.asarray(labels, 'int64'), where, crop
        self.draws = crop.draws
        self.normalise = Augmentation(IMAGENET_MEAN, IMAGENET_STD)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image, label = self.batch(np.asarray([i]), np.random.random((1, self.draws)))
        return image[0], label[0]

    def plain(self):
        return ImageFiles(self.paths, self.labels, self.where, CentreCrop(self.crop.size))

    def checked(self, class_num):
        """Itself, if all labels are below class_num. Raises UserError that names the first line with another one."""
        wrong = np.flatnonzero(self.labels >= class_num)
        if len(wrong):
            raise UserError('--class_num: {}: label {}, {} classes allow 0 to {}'.format(
                self.where[wrong[0]], self.labels[wrong[0]], class_num, class_num - 1))
        return self

    def sample(self, count, args):
        """At most `count` of the images, chosen by the seed."""
        if count >= len(self):
            return self
        chosen = _generator(args, ORDER).permutation(len(self))[:count]
        return ImageFiles([self.paths[i] for i in chosen], self.labels[chosen], [self.where[i] for i in chosen], self.crop)

    def batch(self, indices, uniform):
        """As ArrayImages.batch. Raises UserError (status 1) that names a file that can't be read."""
        return self.normalise(np.stack([self._load(i, u) for i, u in zip(indices, uniform)]), None), self.labels[indices]

    def _load(self, i, uniform):
        try:
            return load_photo(self.paths[i], self.crop, uniform)
        except Exception as error:  # a damaged file can raise nearly anything
            raise UserError('{}: {} cannot be read as an image: {}'.format(
                self.where[i], self.paths[i], getattr(error, 'strerror', None) or error), status=1)


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
        for image, label in DataLoader(batches, batch_size=None, shuffle=False, num_workers=workers):
            if image.ndim == 1:
                raise UserError(bytes(image.numpy()).decode('utf-8'), status=1)
            yield image, label

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
        try:
            return self.source.batch(everyone[first:last], uniform[first:last])
        except UserError as error:
            # Out of a worker process an exception comes wrapped in a traceback, so its message travels as a batch.
            return np.frombuffer(str(error).encode('utf-8'), 'uint8'), np.zeros(1, 'int64')


def _generator(args, *key):
    """The random numbers that the seed and a key of small integers stand for."""
    return np.random.default_rng((getattr(args, 'seed', 0),) + key)
