"""Sources of images: what a BatchLoader (loader.py) makes batches of.

    ArrayImages     images in memory
    ImageFiles      image files, decoded when a batch needs them
    DatasetImages   a user's paddle.io.Dataset
"""
import numpy as np
from paddle.io import Dataset

from pipeline.transforms import load_photo
from runtime.errors import UserError
from runtime.log import logger


class Source:
    """The base class of all sources: a sequence of labelled images.

    draws: how many random numbers an image needs for its augmentation. image_shape: [3, H, W]. transform: the
    augmentation, for the log; None where images are used as they are. num_classes: the classes of the whole data set;
    None if only reading all of it tells.
    """

    draws = 0
    transform = None
    image_shape = None
    num_classes = None

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

    def __init__(self, images, labels, transform=None, num_classes=None, indices=None):
        self.images, self.labels, self.transform = images, labels, transform
        self.num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
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
        return ArrayImages(self.images, self.labels, transform, self.num_classes, self.indices)

    def subset(self, indices):
        return ArrayImages(self.images, self.labels, self.transform, self.num_classes, self.indices[indices])

    def batch(self, indices, uniform):
        places = self.indices[indices]
        images, labels = self.images[places], self.labels[places]
        return (self.transform(images, uniform) if self.transform else images.astype('float32')), labels, []


class ImageFiles(Source, Dataset):
    """Image files; also a paddle.io.Dataset of (image float32 [3, size, size], label).

    paths, labels: the path and the class of each image. origins: for each image where it was listed ('LIST, line 3:
    '), for messages. crop, transform: a crop and an Augmentation of transforms.py.
    """

    def __init__(self, paths, labels, origins, crop, transform, num_classes):
        self.paths, self.labels, self.origins = paths, np.asarray(labels, 'int64'), origins
        self.crop, self.transform, self.num_classes = crop, transform, num_classes
        self.draws = crop.draws + transform.draws
        self.image_shape = [3, crop.size, crop.size]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        images, labels, errors = self.batch([i], np.random.random((1, self.draws)))
        if errors:
            raise UserError(errors[0], status=1)
        return images[0], labels[0]

    def plain(self):
        return ImageFiles(self.paths, self.labels, self.origins, self.crop.plain(), self.transform.plain(),
                          self.num_classes)

    def subset(self, indices):
        return ImageFiles([self.paths[i] for i in indices], self.labels[indices], [self.origins[i] for i in indices],
                          self.crop,
                          self.transform, self.num_classes)

    def check_labels(self, num_classes):
        """Raise UserError that names the first image whose label is not below num_classes."""
        wrong = np.flatnonzero(self.labels >= num_classes)
        if len(wrong):
            raise UserError(f'--class_num: {self.origins[wrong[0]]}label {self.labels[wrong[0]]}, {num_classes} '
                            'classes allow 0 to '
                            f'{num_classes - 1}')

    def batch(self, indices, uniform):
        images, kept, errors = [], [], []
        for position, i in enumerate(indices):
            try:
                images.append(load_photo(self.paths[i], self.crop, uniform[position, :self.crop.draws]))
                kept.append(position)
            except Exception as error:  # a damaged file can raise nearly anything
                reason = getattr(error, 'strerror', None) or error
                errors.append(f'{self.origins[i]}{self.paths[i]} cannot be read as an image: {reason}')
        images = np.stack(images) if images else np.zeros((0, 3, self.crop.size, self.crop.size), 'uint8')
        return self.transform(images, uniform[kept, self.crop.draws:]), self.labels[np.asarray(indices)[kept]], errors


class DatasetImages(Source):
    """A user's paddle.io.Dataset of (float array, label), used as it is; the array is [3, H, W] for images, of any
    shape for networks that take something else. An attribute num_classes of the data set, if there is one, says how
    many classes it has.

    Raises UserError that names the first item which is something else, at the first item and then batch by batch.
    """

    def __init__(self, dataset, indices=None):
        self.dataset = dataset
        self.indices = np.arange(len(dataset)) if indices is None else indices
        if not len(self.indices):
            raise UserError('the data set is empty')
        self.num_classes = getattr(dataset, 'num_classes', None)
        self.image_shape = list(self._item(int(self.indices[0]))[0].shape)

    def __len__(self):
        return len(self.indices)

    def count_classes(self):
        """The classes of the whole data set, all of which is read for that. Raises UserError for negative labels."""
        logger.info('counting the classes of %d images; --class_num, or an attribute num_classes of the data set, '
                    'makes that unnecessary',
                    len(self.dataset))
        labels = [self._item(i)[1] for i in range(len(self.dataset))]
        return max(labels) + 1

    def subset(self, indices):
        return DatasetImages(self.dataset, self.indices[indices])

    def batch(self, indices, uniform):
        images, labels = [], []
        for i in indices:
            number = int(self.indices[i])
            image, label = self._item(number)
            if list(image.shape) != self.image_shape:
                raise UserError(f'item {number} of the data set has the shape {list(image.shape)}, the first one '
                                f'{self.image_shape}: '
                                'bring all to one shape')
            images.append(image)
            labels.append(label)
        return np.stack(images), np.asarray(labels, 'int64'), []

    def _item(self, number):
        """Item `number` as (float32 array, int)."""
        item = self.dataset[number]

        def wrong(what):
            return UserError(f'item {number} of the data set is {what}; expected is a pair (float array [3, H, W], '
                             'integer label)')
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise wrong(f'a {type(item).__name__}' + (f' of {len(item)} parts' if isinstance(item, (tuple, list))
                                                      else ''))
        try:
            image, label = np.asarray(item[0]), np.asarray(item[1])
        except Exception as error:
            raise wrong(f'not made of arrays ({error})')
        if image.dtype.kind != 'f':
            raise wrong(f'a pair whose first part is of type {image.dtype}: convert and normalise the pixels')
        if label.size != 1 or label.dtype.kind not in 'iu':
            raise wrong(f'a pair whose label is of type {label.dtype} and shape {list(label.shape)}')
        label = int(label.reshape(()))
        if label < 0:
            raise UserError(f'item {number} of the data set has the label {label}; labels count from 0')
        if self.num_classes is not None and label >= self.num_classes:
            raise UserError(f'item {number} of the data set has the label {label}; its num_classes is '
                            f'{self.num_classes}, which allows 0 to {self.num_classes - 1}')
        return image.astype('float32'), label
