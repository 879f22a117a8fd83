"""The images that the scripts read. To use data of your own, change this file:

    train_search    the two halves of a training set, for search.py
    train_valid     the training or the test set, for train.py
    cifar10_reader  the (image, label) pairs of a CIFAR archive; put a function of yours in its place
    imagenet_reader the training or the validation set of a folder with image lists, for train_imagenet.py

Such a function returns (image, label) pairs, all images of one size: uint8 arrays [3, H, W], [H, W, 3], [H, W] or PIL images are
augmented and normalised, float arrays are taken as they are. Or it returns a paddle.io.Dataset of (float image [3, H, W], label).
"""
import os

import numpy as np
from paddle.io import Dataset

from pipeline import transforms
from pipeline.archives import cifar_archive, cifar_batch, members
from pipeline.loader import ORDER, TRAIN, VALID, ArrayImages, BatchLoader, DatasetImages, ImageFiles, generator
from runtime.errors import UserError
from runtime.log import logger

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.ppm', '.pgm', '.tif', '.tiff', '.webp')


# ---------------------------------------------------------------------------------------------------------------------
# What the scripts call
# ---------------------------------------------------------------------------------------------------------------------


def train_search(batch_size, train_portion, is_shuffle, args):
    """Split the training set by the seed into the search's two halves; the split is the same on every rank.

    batch_size: images a batch on each rank. train_portion: the share of the images that trains the weights; the others train
    the architecture. is_shuffle: False keeps the order of the archive.
    Returns two BatchLoaders, (train, valid), both augmented.
    """
    if _dataset(args) == 'cifar10':
        # To search on your own data, put a function of yours here that returns (image, label) pairs.
        pairs = cifar10_reader(cifar_archive('cifar10', _data(args)), 'data_batch', is_shuffle, args)
    else:
        pairs = other_reader(True, args)
    source = as_source(pairs, args)
    order = np.arange(len(source))
    if is_shuffle:
        order = generator(args, ORDER).permutation(order)
    order = at_most(order, args.trainset_num)
    split_point = int(np.floor(train_portion * len(order)))
    if not 0 < split_point < len(order):
        raise UserError(f'--train_portion: {train_portion:g} of {len(order)} images leaves one half of the search empty')
    logger.info('%d images: %d train the weights, %d the architecture; %s', len(order), split_point, len(order) - split_point,
                source.transform or 'taken as they are')
    return [BatchLoader(source.subset(half), batch_size, is_shuffle, stream, args)
            for half, stream in ((order[:split_point], TRAIN), (order[split_point:], VALID))]


def train_valid(batch_size, is_train, is_shuffle, args):
    """The training set, augmented, or the whole test set as it is, for train.py. Returns a BatchLoader."""
    if _dataset(args) == 'cifar10':
        pairs = cifar10_reader(cifar_archive('cifar10', _data(args)), 'data_batch' if is_train else 'test_batch', is_shuffle, args)
    else:
        pairs = other_reader(is_train, args)
    source = as_source(pairs, args)
    if not is_train:
        return BatchLoader(source.plain(), batch_size, False, VALID, args, train=False)
    order = np.arange(len(source))
    if is_shuffle:
        order = generator(args, ORDER).permutation(order)
    order = at_most(order, args.trainset_num)
    logger.info('%d images train; %s', len(order), source.transform or 'taken as they are')
    return BatchLoader(source.subset(order), batch_size, is_shuffle, TRAIN, args)


def cifar10_reader(file_name, data_name, is_shuffle, args):
    """Read the batches of a CIFAR archive (.tar.gz) or of the folder it unpacks to.

    data_name: 'data_batch' or 'test_batch' ('train' or 'test' in CIFAR-100), what the wanted members' names begin with. Members are
    read in place, nothing is unpacked. is_shuffle shuffles by args.seed.
    Returns a sequence of (image, label) pairs, image a uint8 array [3, 32, 32].
    Raises UserError for an archive that can't be read or holds something else.
    """
    # Large from the start, so that the C library maps it by itself and can let it grow where it is.
    images, labels = np.empty((1 << 15, 3, 32, 32), 'uint8'), []
    images.resize((0,) + images.shape[1:], refcheck=False)
    for name, file in members(file_name, data_name):
        data, label = cifar_batch(f'{file_name}: {name}', file)
        # Grown in place: the images are never held twice, as concatenating parts would.
        images.resize((len(images) + len(data),) + images.shape[1:], refcheck=False)
        images[-len(data):] = data
        labels.append(label)
        del data  # before the next one is read
    if not labels:
        raise UserError(f"--data: {file_name} holds no file whose name begins with '{data_name}'; give the CIFAR archive for Python "
                        'or the folder it unpacks to')
    pairs = ArrayImages(images, np.concatenate(labels))
    return pairs.subset(generator(args, ORDER).permutation(len(pairs))) if is_shuffle else pairs


def imagenet_reader(data_dir, mode):
    """The images that a list names, for train_imagenet.py.

    data_dir: the folder that holds train_list.txt and val_list.txt, whose lines are `relative/path label`. mode: 'train', cropped
    and flipped at random, or 'val', the centre of the image.
    Returns ImageFiles of 224x224. Raises UserError that names the line at fault.
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
        if not path or not (label.isascii() and label.isdecimal()) or len(label) > 9:
            raise UserError(f'--data_dir: {list_name}, line {number}: {line!r:.80} is not "relative/path label"')
        paths.append(os.path.join(data_dir, path.rstrip()))
        labels.append(int(label))
        where.append(f'{list_name}, line {number}: ')
    if not paths:
        raise UserError(f'--data_dir: {list_name} names no image')
    crop = transforms.RandomResizedCrop(224) if mode == 'train' else transforms.CentreCrop(224, share=224 / 256)
    return ImageFiles(paths, labels, where, crop, transforms.Augmentation(*transforms.IMAGENET_PIXELS), max(labels) + 1)


def at_most(order, trainset_num):
    """The first trainset_num of the images in `order`; the log says what is left out."""
    if len(order) > trainset_num:
        logger.info('--trainset_num=%d: %d of the %d training images are left out', trainset_num, len(order) - trainset_num, len(order))
    return order[:trainset_num]


def class_count(images, args, given):
    """The classes a network needs: --class_num where it was given, and not too few, else those of the data.

    images: a source or its loader. given: the names of the flags that were given.
    """
    num_classes = images.num_classes
    if num_classes is None:  # only reading all of a user's data set tells
        num_classes = args.class_num if 'class_num' in given else getattr(images, 'source', images).count_classes()
    if num_classes == args.class_num:
        return args.class_num
    if 'class_num' not in given:
        logger.info('the data has %d classes', num_classes)
        return num_classes
    if num_classes > args.class_num:
        raise UserError(f'--class_num: {args.class_num} is not allowed: the labels of the data are 0 to {num_classes - 1}')
    return args.class_num


def image_shape(args):
    """The shape [3, H, W] of a data set's images, without reading them."""
    size = {'digits': 8, 'folder': getattr(args, 'image_size', None) or 32}.get(_dataset(args), 32)
    return [3, size, size]


# ---------------------------------------------------------------------------------------------------------------------
# Other data sets
# ---------------------------------------------------------------------------------------------------------------------


def other_reader(is_train, args):
    """The training or the test set of --dataset=cifar100, digits or folder."""
    if _dataset(args) == 'cifar100':
        return cifar10_reader(cifar_archive('cifar100', _data(args)), 'train' if is_train else 'test', False, args)
    if _dataset(args) == 'digits':
        return digits_reader(is_train)
    return folder_reader(_data(args), is_train, args)


def digits_reader(is_train):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey-scale: every fifth image is for the test, the others train.

    Returns a list of (image, label) pairs, image a uint8 array [8, 8].
    """
    from sklearn.datasets import load_digits  # comes with paddleslim
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype('uint8')
    wanted = (np.arange(len(grey)) % 5 != 0) == bool(is_train)
    return list(zip(grey[wanted], digits.target[wanted]))


def folder_reader(folder, is_train, args):
    """A folder of image files, one folder a class: folder/train/<class>/* and folder/test/<class>/* (or val/), or
    folder/<class>/*, of which the seed sets a fifth apart for the test.

    Images are cut to their central square and brought to args.image_size pixels. Returns ImageFiles.
    """
    if folder is None or not os.path.isdir(folder):
        raise UserError(f'--data: {folder} is not a folder; --dataset=folder reads one folder of images a class')
    parts = [part for part in ('train', 'test', 'val') if os.path.isdir(os.path.join(folder, part))]
    split = parts[:1] == ['train'] and len(parts) > 1
    root = os.path.join(folder, parts[0 if is_train else 1]) if split else folder
    classes = _folders(os.path.join(folder, 'train') if split else folder)
    paths, labels = [], []
    for name in _folders(root):
        if name not in classes:
            raise UserError(f'--data: {root} holds the class {name}, which the training images do not have')
        for path, _, files in sorted(os.walk(os.path.join(root, name))):
            for file in sorted(files):
                if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith('.'):
                    paths.append(os.path.join(path, file))
                    labels.append(classes.index(name))
    if len(classes) < 2 or not paths:
        raise UserError('--data: {} holds {} image{} in {} class{}; --dataset=folder reads one folder of images a class, two at '
                        'least'.format(root, len(paths), '' if len(paths) == 1 else 's', len(classes),
                                       '' if len(classes) == 1 else 'es'))
    size = getattr(args, 'image_size', None) or 32
    source = ImageFiles(paths, labels, [''] * len(paths), transforms.CentreCrop(size), _augmentation(args, size), len(classes))
    if split:
        return source
    order = generator(args, ORDER).permutation(len(paths))
    test = -(-len(paths) // 5)
    return source.subset(np.sort(order[test:] if is_train else order[:test]))


def _folders(folder):
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


# ---------------------------------------------------------------------------------------------------------------------
# From pairs to a source of batches
# ---------------------------------------------------------------------------------------------------------------------


def as_source(pairs, args):
    """Make a source (loader.py) of what a reader function returned. Raises UserError for images of different sizes."""
    if isinstance(pairs, ImageFiles):
        return pairs
    if isinstance(pairs, Dataset):
        return DatasetImages(pairs)
    if isinstance(pairs, ArrayImages):
        return pairs.with_transform(_augmentation(args, pairs.image_shape[1]))
    images, labels = zip(*[(_as_chw(image), int(label)) for image, label in pairs])
    odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None:
        raise UserError(f'image {odd} of the data is {images[odd].shape}, image 0 is {images[0].shape}: bring them to one size')
    images, labels = np.stack(images), np.asarray(labels, 'int64')
    if labels.min() < 0:
        raise UserError(f'image {labels.argmin()} of the data has the label {labels.min()}; labels count from 0')
    transform = _augmentation(args, images.shape[2]) if images.dtype == np.uint8 else None
    return ArrayImages(images, labels, transform)


def _as_chw(image):
    """An image in any form that the docstring above names, as an array [3, H, W]."""
    image = np.asarray(image)
    if image.ndim == 1:  # as CIFAR's pickles have it
        side = int(round((image.size / 3)**0.5))
        image = image.reshape(3, side, side)
    elif image.ndim == 2:
        image = np.stack([image] * 3)
    elif image.ndim == 3 and image.shape[0] != 3 and image.shape[2] == 3:
        image = image.transpose(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != 3:
        raise UserError(f'an image of the data has the shape {image.shape}; [3, H, W], [H, W, 3] and [H, W] are understood')
    return image


def _augmentation(args, size):
    """The augmentation of a data set of size x size images: the CIFAR recipe, in proportion to the image."""
    pixels = {'digits': transforms.DIGITS_PIXELS, 'cifar100': transforms.CIFAR100_PIXELS,
              'folder': transforms.IMAGENET_PIXELS}.get(_dataset(args), transforms.CIFAR_PIXELS)
    cutout = max(2, args.cutout_length * size // 32) if args.cutout and args.cutout_length else 0
    return transforms.Augmentation(*pixels, padding=size // 8,
                                   flip=_dataset(args) != 'digits',  # a mirrored digit is another sign
                                   cutout_length=cutout)


# Callers that have only the original example's arguments read CIFAR-10.


def _dataset(args):
    return getattr(args, 'dataset', 'cifar10')


def _data(args):
    return getattr(args, 'data', None)
