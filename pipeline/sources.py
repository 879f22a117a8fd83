"""Sources of images: what a BatchLoader (loader.py) makes batches of.

    ArrayImages     images in memory
    ImageFiles      image files, decoded when a batch needs them
    DatasetImages   a user's paddle.io.Dataset
"""
import warnings

import numpy as np
from paddle.io import Dataset
from PIL import Image, UnidentifiedImageError

from pipeline.transforms import load_photo
from runtime.errors import UserError
from runtime.log import logger


class Source:
    """The base class of all sources: a sequence of labelled images.

    draws: how many random numbers an image needs for its augmentation. image_shape: [3, H, W]. transform: the
    augmentation, for the log; None where images are used as they are. num_classes: the classes of the whole data set;
    None if only reading all of it tells. class_names: their names, in the order of the labels; None where they have
    none.
    """

    draws = 0
    transform = None
    image_shape = None
    num_classes = None
    class_names = None

    def __len__(self):
        """The number of images."""
        raise NotImplementedError

    def batch(self, indices, uniform):
        """The images at `indices`, augmented by the random numbers `uniform` [N, draws] in [0, 1).

        Returns (images float32 [M, 3, H, W], labels int64 [M], errors): errors is a list of lines, one for each image
        that could not be read; M is N without those.
        """
        raise NotImplementedError

    def subset(self, indices):
        """The source of the images at `indices`, in that order."""
        raise NotImplementedError

    def plain(self):
        """The source of the same images without augmentation, for evaluation."""
        return self

    def check_labels(self, num_classes):
        """Raise UserError where a label is not below num_classes; a user's Dataset is checked as it is read."""
        if self.num_classes > num_classes:
            raise UserError(f'--class_num: {num_classes} is not allowed: the labels of the data are 0 to '
                            f'{self.num_classes - 1}')

    def count_classes(self):
        """The number of classes, by reading all labels: for a source whose num_classes is None."""
        raise NotImplementedError

    @property
    def example_bytes(self):
        """The size in bytes of one image of a batch."""
        return 4 * int(np.prod(self.image_shape))


class ArrayImages(Source):
    """Images in memory; also a sequence of (image, label) pairs.

    images: uint8 [M, 3, H, W], labels: int64 [M]. transform: a transforms.Augmentation; None uses float images as they
    are.
    indices: which of the M images belong to the source, in which order (default: all); subsets share one array.
    """

    def __init__(self, images, labels, transform=None, num_classes=None, indices=None, class_names=None):
        self.images, self.labels, self.transform = images, labels, transform
        self.num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
        self.class_names = class_names
        self.indices = np.arange(len(labels)) if indices is None else indices
        self.draws = transform.draws if transform else 0
        self.image_shape = list(images.shape[1:])

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return self.subset(np.arange(len(self))[i])
        return self.images[self.indices[i]], int(self.labels[self.indices[i]])

    def plain(self):
        return self.with_transform(self.transform and self.transform.plain())

    def with_transform(self, transform):
        return ArrayImages(self.images, self.labels, transform, self.num_classes, self.indices, self.class_names)

    def subset(self, indices):
        return ArrayImages(self.images, self.labels, self.transform, self.num_classes, self.indices[indices],
                           self.class_names)

    def batch(self, indices, uniform):
        places = self.indices[indices]
        images, labels = self.images[places], self.labels[places]
        return (self.transform(images, uniform) if self.transform else images.astype('float32')), labels, []


class ImageFiles(Source, Dataset):
    """Image files; also a paddle.io.Dataset of (image float32 [3, size, size], label).

    paths, labels: the path and the class of each of M images. origins: for each image where it was listed ('LIST, line
    3: '), for messages. paths and origins are any sequences. crop, transform: a crop and an Augmentation of
    transforms.py. indices: which of the M images belong to the source, in which order (default: all); subsets share
    the sequences.
    """

    def __init__(self, paths, labels, origins, crop, transform, num_classes, class_names=None, indices=None):
        self.paths, self.labels, self.origins = paths, np.asarray(labels, 'int64'), origins
        self.crop, self.transform = crop, transform
        self.num_classes, self.class_names = num_classes, class_names
        self.indices = np.arange(len(self.labels)) if indices is None else indices
        self.draws = crop.draws + transform.draws
        self.image_shape = [3, crop.size, crop.size]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        images, labels, errors = self.batch([i], np.random.random((1, self.draws)))
        if errors:
            raise UserError(errors[0], status=1)
        return images[0], labels[0]

    def plain(self):
        return ImageFiles(self.paths, self.labels, self.origins, self.crop.plain(), self.transform.plain(),
                          self.num_classes, self.class_names, self.indices)

    def subset(self, indices):
        return ImageFiles(self.paths, self.labels, self.origins, self.crop, self.transform, self.num_classes,
                          self.class_names, self.indices[indices])

    def check_labels(self, num_classes):
        """Raise UserError that names the first image, of all M, whose label is not below num_classes."""
        wrong = np.flatnonzero(self.labels >= num_classes)
        if len(wrong):
            from_1 = '; labels count from 0' if self.labels.min() == 1 and self.labels.max() == num_classes else ''
            raise UserError(f'--class_num: {self.origins[wrong[0]] or self.paths[wrong[0]] + ": "}label '
                            f'{self.labels[wrong[0]]}, {num_classes} classes allow 0 to {num_classes - 1}{from_1}')

    def batch(self, indices, uniform):
        images, kept, errors = [], [], []
        places = self.indices[indices]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # load_photo has a limit of its own
            for position, i in enumerate(places):
                try:
                    images.append(load_photo(self.paths[i], self.crop, uniform[position, :self.crop.draws]))
                    kept.append(position)
                except Exception as error:  # a damaged file can raise nearly anything
                    reason = getattr(error, 'strerror', None) or error
                    if isinstance(error, UnidentifiedImageError):  # its own text names the file object
                        reason = 'it is no image of a known format'
                    errors.append(f'{self.origins[i]}{self.paths[i]} cannot be read as an image: {reason}')
        images = np.stack(images) if images else np.zeros((0, 3, self.crop.size, self.crop.size), 'uint8')
        return self.transform(images, uniform[kept, self.crop.draws:]), self.labels[places[kept]], errors


class DatasetImages(Source):
    """A user's paddle.io.Dataset, used as it is.

    items: a DatasetItems, which checks each item (items.py). indices: which of the items belong to the source, in
    which order (default: all); subsets share the items.
    """

    def __init__(self, items, indices=None):
        self.items = items
        self.indices = np.arange(len(items)) if indices is None else indices
        self.image_shape = list(items.first.shape)

    def __len__(self):
        return len(self.indices)

    @property
    def num_classes(self):
        return self.items.num_classes

    @property
    def example_bytes(self):
        return self.items.first.nbytes

    def check_labels(self, num_classes):
        if self.num_classes is not None:
            super().check_labels(num_classes)
        self.items.num_classes = num_classes  # the others are checked as they are read

    def count_classes(self):
        """The classes of the whole data set, all of which is read for that."""
        logger.info('counting the classes of %d images; --class_num, or an attribute num_classes of the data set, '
                    'makes that unnecessary', len(self.items))
        return max(self.items[i][1] for i in range(len(self.items))) + 1

    def subset(self, indices):
        return DatasetImages(self.items, self.indices[indices])

    def batch(self, indices, uniform):
        arrays, labels = zip(*[self.items[int(self.indices[i])] for i in indices])
        return np.stack(arrays), np.asarray(labels, 'int64'), []
