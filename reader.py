"""The data sets that the scripts read. To use your own data, change this file:

    train_search      the two halves of a training set, for search.py
    train_valid       the training or the test set, for train.py
    cifar10_reader    the (image, label) pairs of a CIFAR archive; replace the call of it by one of your own function
    imagenet_reader   the training or the validation images of a folder with image lists
    predict_loader    image files, for --predict

Such a function returns (image, label) pairs, all images of one size: uint8 arrays [3, H, W], [H, W, 3] or [H, W] or
PIL images are augmented and normalised; float arrays [3, H, W] are used as they are. Or it returns a paddle.io.Dataset
of (float array, label).

Of `args`, a script's arguments, nothing is passed on: the modules in pipeline/ take explicit values.
"""
import os

import numpy as np
from paddle.io import Dataset

from pipeline import transforms
from pipeline.archives import cifar_archive, cifar_batches
from pipeline.folders import image_files, images_below
from pipeline.items import DatasetItems, images_and_labels
from pipeline.lists import draw_by_class, read_list
from pipeline.loader import ORDER, TRAIN, VALID, BatchLoader, generator
from pipeline.sources import ArrayImages, DatasetImages, ImageFiles
from runtime.errors import UserError
from runtime.files import MAX_JSON_BYTES, open_regular
from runtime.log import logger

IMAGENET_SIZE = 224  # pixels a side


# ---------------------------------------------------------------------------------------------------------------------
# What the scripts call
# ---------------------------------------------------------------------------------------------------------------------


def train_search(batch_size, train_portion, is_shuffle, args):
    """Split the training set into the two halves of a search; the split follows from the seed and is the same on every
    rank.

    batch_size: images per batch on each rank. train_portion: the fraction of the images that trains the weights; the
    others train the architecture. ImageNet has args.train_fraction and args.arch_fraction instead. is_shuffle: False
    keeps the order of the archive.
    Returns two BatchLoaders, (train, valid), both with augmentation.
    """
    if _dataset(args) == 'imagenet':
        return _half_loaders(*imagenet_halves(args), batch_size, is_shuffle, args)
    if _dataset(args) == 'cifar10':
        # To search on your own data, replace this call by one of a function that returns (image, label) pairs.
        pairs = cifar10_reader(cifar_archive('cifar10', _data(args)), 'data_batch', is_shuffle, args)
    else:
        pairs = other_reader(True, args)
    source = as_source(pairs, _augmentation_options(args))
    order = np.arange(len(source))
    if is_shuffle:
        order = generator(_seed(args), ORDER).permutation(order)
    order = first_images(order, args.trainset_num)
    split_point = int(np.floor(train_portion * len(order)))
    if not 0 < split_point < len(order):
        raise UserError(f'--train_portion: {train_portion:g} of {len(order)} images leaves one half of the search '
                        'empty')
    logger.info('%d images: %d train the weights, %d the architecture; %s', len(order), split_point,
                len(order) - split_point,
                source.transform or 'used as they are')
    return _half_loaders(source, (order[:split_point], order[split_point:]), batch_size, is_shuffle, args)


def _half_loaders(source, halves, batch_size, is_shuffle, args):
    """A BatchLoader for each half of a search. halves: (training images, architecture images), as indices."""
    return [BatchLoader(source.subset(half), batch_size, shuffle=is_shuffle, stream=stream, **loader_options(args))
            for half, stream in zip(halves, (TRAIN, VALID))]


def train_valid(batch_size, is_train, is_shuffle, args):
    """The training set with augmentation, or the whole test set without, for train.py. Returns a BatchLoader."""
    if _dataset(args) == 'cifar10':
        pairs = cifar10_reader(cifar_archive('cifar10', _data(args)), 'data_batch' if is_train else 'test_batch',
                               is_shuffle, args)
    else:
        pairs = other_reader(is_train, args)
    source = as_source(pairs, _augmentation_options(args))
    if not is_train:
        return BatchLoader(source.plain(), batch_size, shuffle=False, stream=VALID, train=False,
                           **loader_options(args))
    order = np.arange(len(source))
    if is_shuffle:
        order = generator(_seed(args), ORDER).permutation(order)
    order = first_images(order, args.trainset_num)
    if source.transform is None and getattr(args, 'augment', 'none') != 'none':
        raise UserError(f'--augment: {args.augment} works on uint8 images; these are arrays that are used as they are')
    logger.info('%d training images; %s', len(order), source.transform or 'used as they are')
    return BatchLoader(source.subset(order), batch_size, shuffle=is_shuffle, stream=TRAIN, **loader_options(args))


def cifar10_reader(file_name, data_name, is_shuffle, args):
    """Read the batches of a CIFAR archive (.tar.gz) or of the folder it unpacks to.

    data_name: 'data_batch' or 'test_batch' ('train' or 'test' for CIFAR-100). Members are read in place, nothing is
    unpacked.
    is_shuffle: shuffle by args.seed.
    Returns a sequence of (image, label) pairs, image a uint8 array [3, 32, 32].
    Raises UserError for an archive that cannot be read or holds something else.
    """
    # Allocated large, so that the C library maps the memory by itself and resizing does not copy it.
    images, parts = np.empty((1 << 15, 3, 32, 32), 'uint8'), {}
    images.resize((0,) + images.shape[1:], refcheck=False)
    names = []
    for name, data, labels in cifar_batches(file_name, data_name, names):
        # Grown in place: concatenating parts would hold all images twice.
        parts[name] = np.arange(len(images), len(images) + len(data)), labels
        images.resize((len(images) + len(data),) + images.shape[1:], refcheck=False)
        images[-len(data):] = data
        del data  # before the next batch is read
    labels = np.concatenate([labels for _, labels in parts.values()])
    order = np.concatenate([parts[name][0] for name in sorted(parts)])  # an archive has its members in any order
    pairs = ArrayImages(images, labels, indices=order, class_names=names or None)
    return pairs.subset(generator(_seed(args), ORDER).permutation(len(pairs))) if is_shuffle else pairs


def imagenet_reader(data_dir, mode, size=IMAGENET_SIZE, augment='none'):
    """The images of a list, for train_imagenet.py and search.py --dataset=imagenet.

    data_dir: the folder with train_list.txt and val_list.txt, whose lines are `relative/path label` (separated by a
    space or a tab).
    mode: 'train', cropped and flipped at random, or 'val', the centre of each image. size: pixels a side. augment: of
    the training images, see augmentation_of.
    Returns ImageFiles. Raises UserError that names the line at fault.
    """
    list_name = os.path.join(data_dir, {'train': 'train_list.txt', 'val': 'val_list.txt'}[mode])
    paths, labels, lines = read_list(list_name)
    if mode == 'train' and labels.min() == 1 and len(np.unique(labels)) == labels.max():
        logger.warning('%s: the labels are 1 to %d; labels count from 0, so the network gets a class 0 of which there '
                       'are no images', list_name, labels.max())
    crop = transforms.RandomResizedCrop(size) if mode == 'train' else transforms.RandomResizedCrop(size).plain()
    operations = transforms.POLICIES[augment] if mode == 'train' else None
    normalisation = transforms.Augmentation(*transforms.IMAGENET_PIXELS, policy=operations)
    class_num = int(labels.max()) + 1
    return ImageFiles(paths, labels, lines, crop, normalisation, class_num, _listed_names(data_dir, class_num))


def imagenet_halves(args):
    """The images of train_list.txt and the numbers of those in the two halves of a search, which are drawn from each
    class (PC-DARTS, section 4.3: 10 % of the images for the weights, 2.5 % for the architecture)."""
    source = imagenet_reader(args.data_dir, 'train', _image_size(args))
    images = source.paths.first_mentions
    if len(images) < len(source):
        logger.info('%d lines of the list repeat an image and are left out', len(source) - len(images))
    counts = []
    for name in ('train_fraction', 'arch_fraction'):
        counts.append(min(int(np.floor(getattr(args, name) * len(images) + 0.5)), len(images) - sum(counts)))
        if not counts[-1]:
            raise UserError(f'--{name}: {getattr(args, name):g} of the {len(images)} images that train_list.txt names '
                            'leaves one half of the search empty')
    halves = [images[half] for half in draw_by_class(source.labels[images], counts, generator(_seed(args), ORDER))]
    logger.info('%d images: %d train the weights, %d the architecture; %s', len(images), *counts, source.crop)
    without = [source.num_classes - len(np.unique(source.labels[half])) for half in halves]
    if any(without):
        logger.info('of the %d classes, %d have no image that trains the weights, %d none that trains the '
                    'architecture; larger --train_fraction and --arch_fraction take more', source.num_classes, *without)
    return source, halves


def _listed_names(data_dir, class_num):
    """The names of the classes in classes.txt, which examples/make_image_lists.py writes: that of class 0 in the first
    line, and so on. None without such a file or where it names other than all classes."""
    try:
        with open_regular(os.path.join(data_dir, 'classes.txt'), MAX_JSON_BYTES) as f:
            names = f.read().decode('utf-8-sig').splitlines()
    except ValueError:  # UnreadableFile and UnicodeDecodeError are
        return None
    return names if len(names) == class_num else None


def predict_loader(batch_size, dataset, size, args):
    """The image file --predict, or all of a folder and its subfolders, prepared as the test images of a data set are:
    their central square, on ImageNet 224/256 of it, is resized to size x size pixels.

    dataset: a value of --dataset, or 'imagenet'. Returns a BatchLoader; the label of an image is its number in
    source.paths. Raises UserError for a folder without images.
    """
    paths = images_below(args.predict, '--predict') if os.path.isdir(args.predict) else [args.predict]
    if not paths:
        raise UserError(f'--predict: {args.predict} holds no image file')
    crop = transforms.RandomResizedCrop(size).plain() if dataset == 'imagenet' else transforms.CentreCrop(size)
    normalisation = augmentation_of(dataset, size, False, 0).plain()
    source = ImageFiles(paths, np.arange(len(paths)), [''] * len(paths), crop, normalisation, len(paths))
    return BatchLoader(source, batch_size, shuffle=False, stream=VALID, train=False, **loader_options(args))


def first_images(order, trainset_num):
    """The first trainset_num entries of `order`; logs how many are left out."""
    if len(order) > trainset_num:
        logger.info('--trainset_num=%d: %d of the %d training images are left out', trainset_num,
                    len(order) - trainset_num, len(order))
    return order[:trainset_num]


def class_count(images, class_num=None):
    """The number of classes for a network.

    images: a source or a BatchLoader. class_num: the value of --class_num, None where the flag was not given: then it
    is that of the data.
    Raises UserError where the data has labels that class_num does not allow, or fewer than two classes.
    """
    source = getattr(images, 'source', images)
    if class_num is not None:
        source.check_labels(class_num)
    elif source.num_classes is None:  # only reading all of a user's data set tells
        class_num = source.count_classes()
    else:
        class_num = source.num_classes
        logger.info('the data has %d classes', class_num)
    if class_num < 2:
        raise UserError(f'the data has {class_num} class; a classifier needs at least two')
    return class_num


def image_shape(args):
    """The shape [3, H, W] of a data set's images, without reading them."""
    size = {'digits': 8, 'folder': _image_size(args), 'imagenet': _image_size(args)}.get(_dataset(args), 32)
    return [3, size, size]


def usual_class_count(args):
    """The number of classes of a data set; None where only reading it tells."""
    return {'cifar10': 10, 'cifar100': 100, 'digits': 10}.get(_dataset(args))


def class_count_without_data(args, given):
    """The number of classes where no data is read: --class_num if it is one of the given flags, else that of the data
    set, as far as it is known, else --class_num's default."""
    return args.class_num if 'class_num' in given else usual_class_count(args) or args.class_num


# ---------------------------------------------------------------------------------------------------------------------
# Other data sets
# ---------------------------------------------------------------------------------------------------------------------


def other_reader(is_train, args):
    """The training or the test set of --dataset=cifar100, digits or folder."""
    if _dataset(args) == 'cifar100':
        return cifar10_reader(cifar_archive('cifar100', _data(args)), 'train' if is_train else 'test', False, args)
    if _dataset(args) == 'digits':
        return digits_reader(is_train)
    augmentation = augmentation_of('folder', _image_size(args), *_cutout(args))
    return folder_reader(_data(args), is_train, size=_image_size(args), augmentation=augmentation, seed=_seed(args))


def digits_reader(is_train):
    """scikit-learn's 1,797 handwritten digits, 8x8 grey-scale: every fifth image is for the test, the others for
    training.

    Returns a list of (image, label) pairs, image a uint8 array [8, 8].
    """
    from sklearn.datasets import load_digits  # installed with PaddleSlim
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype('uint8')
    wanted = (np.arange(len(grey)) % 5 != 0) == bool(is_train)
    return list(zip(grey[wanted], digits.target[wanted]))


def folder_reader(folder, is_train, *, size, augmentation, seed):
    """A folder of image files with one subfolder per class (pipeline/folders.py says which forms it may have).

    Images are cropped to their central square and resized to size x size pixels. Returns ImageFiles.
    Raises UserError for a folder that holds something else.
    """
    paths, labels, classes = image_files(folder, is_train, seed)
    return ImageFiles(paths, labels, [''] * len(paths), transforms.CentreCrop(size), augmentation, len(classes),
                      classes)


# ---------------------------------------------------------------------------------------------------------------------
# From pairs to a source
# ---------------------------------------------------------------------------------------------------------------------


def as_source(pairs, augmentation_options):
    """Make a source (pipeline/sources.py) of what a reader function returned. Raises UserError that names the first
    item which is something else than the module docstring says.

    augmentation_options: the arguments of augmentation_of but the size, for uint8 images.
    """
    if isinstance(pairs, (ImageFiles, DatasetImages)):
        return pairs
    if isinstance(pairs, Dataset):
        return DatasetImages(DatasetItems(pairs, images=True))
    if not isinstance(pairs, ArrayImages):
        pairs = ArrayImages(*images_and_labels(pairs))
    dataset, *cutout = augmentation_options
    uint8 = pairs.images.dtype == np.uint8
    return pairs.with_transform(augmentation_of(dataset, pairs.image_shape[1], *cutout) if uint8 else None)


def augmentation_of(dataset, size, cutout, cutout_length, augment='none'):
    """The augmentation of size x size images: the CIFAR recipe, in proportion to the image.

    dataset: the value of --dataset, which decides mean and standard deviation. cutout_length: in pixels of a 32x32
    image. augment: a key of transforms.POLICIES.
    """
    pixels = {'digits': transforms.DIGITS_PIXELS, 'cifar100': transforms.CIFAR100_PIXELS,
              'folder': transforms.IMAGENET_PIXELS,
              'imagenet': transforms.IMAGENET_PIXELS}.get(dataset, transforms.CIFAR_PIXELS)
    length = max(2, cutout_length * size // 32) if cutout and cutout_length else 0
    # a mirrored digit is another character
    return transforms.Augmentation(*pixels, padding=size // 8, flip=dataset != 'digits',
                                   cutout_length=length, policy=transforms.POLICIES[augment])


# ---------------------------------------------------------------------------------------------------------------------
# Arguments; callers that have only those of the original example read CIFAR-10
# ---------------------------------------------------------------------------------------------------------------------


def _dataset(args):
    return getattr(args, 'dataset', 'cifar10')


def _data(args):
    return getattr(args, 'data', None)


def _seed(args):
    return getattr(args, 'seed', 0)


def _image_size(args):
    return getattr(args, 'image_size', None) or (IMAGENET_SIZE if _dataset(args) == 'imagenet' else 32)


def _cutout(args):
    return args.cutout, args.cutout_length, getattr(args, 'augment', 'none')


def _augmentation_options(args):
    return [_dataset(args), *_cutout(args)]


def loader_options(args):
    """The arguments of a BatchLoader that follow from flags."""
    return {'seed': _seed(args), 'workers': getattr(args, 'num_workers', 1) if args.use_multiprocess else 0,
            'max_bad_images': getattr(args, 'max_bad_images', 0)}
