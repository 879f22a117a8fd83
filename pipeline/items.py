"""The check of data that users bring: each item against what is expected, with one line that names what came instead.

A Dataset is checked at its first item and then batch by batch, the pairs of a function when they are read.
"""
import numpy as np

from pipeline.pixels import to_rgb
from runtime.errors import UserError
from runtime.log import logger

MAX_CLASSES = 10**6  # as many as --class_num takes
NORMALISED = 30  # no normalised pixel is larger


class DatasetItems:
    """The checked items of a user's paddle.io.Dataset: pairs (array, integer label).

    images: True where the network takes images [3, H, W]; False for arrays of any one shape, sequences or rows of a
    table, for example. num_classes: the labels must be below it; None for any, unless the data set has an attribute
    num_classes. It may be set later.
    Raises UserError that names the first item which is something else.
    """

    def __init__(self, dataset, images=False, num_classes=None):
        self.dataset, self.images = dataset, images
        self.num_classes = _classes_of(dataset)
        if num_classes is not None:
            if (self.num_classes or 0) > num_classes:
                raise UserError(f'the data set has {self.num_classes} classes (num_classes), the network {num_classes}')
            self.num_classes = num_classes
        self.first = None
        if not len(self):
            raise UserError('the data set is empty')
        self.first, _ = self[0]
        if self.images and np.abs(self.first).max() > NORMALISED:
            logger.warning('item 0 of the data set holds values up to %g: the items are used as they are, so they must '
                           'be normalised', np.abs(self.first).max())

    def __len__(self):
        try:
            return len(self.dataset)
        except (TypeError, NotImplementedError, RuntimeError):  # an object without a length; Paddle's own Dataset
            raise UserError(f'the data set, a {type(self.dataset).__name__}, has no length: give a paddle.io.Dataset '
                            'with __len__ and __getitem__')

    def __getitem__(self, number):
        """Item `number` as (array, int): float32, or int64 for a row of integers."""
        item = self.dataset[number]
        expected = f'a pair (float array{" [3, H, W]" if self.images else ""}, integer label)'
        array, label = pair(item, number, 'data set', expected)
        array = _as_array(array, number, 'data set', expected)
        label = integer_label(label, number, 'data set', expected, self.num_classes)
        row_of_integers = array.dtype.kind in 'iu' and array.ndim == 1 and not self.images
        if array.dtype.kind != 'f' and not row_of_integers:
            raise _wrong(number, 'data set', f'a pair whose first part is of type {array.dtype}: convert and normalise '
                         'the pixels', expected)
        if not array.size or self.images and (array.ndim != 3 or array.shape[0] != 3):
            raise _wrong(number, 'data set', f'a pair whose first part has the shape {list(array.shape)}'
                         + _advice_on(array.shape), expected)
        if not np.isfinite(array).all():
            raise _wrong(number, 'data set', 'a pair whose first part holds NaN or infinite values', expected)
        if self.first is not None and array.shape != self.first.shape:
            raise UserError(f'item {number} of the data set has the shape {list(array.shape)}, the first one '
                            f'{list(self.first.shape)}: bring all to one shape')
        return array.astype('int64' if row_of_integers else 'float32'), label


def images_and_labels(pairs):
    """The pairs (image, label) of a user's function as arrays: uint8 or float32 [N, 3, H, W] and int64 [N].

    Raises UserError that names the first pair which is something else.
    """
    expected = 'a pair (image, integer label)'
    refuse_x_and_y(pairs)
    images, labels = [], []
    try:
        pairs = list(pairs)
    except TypeError:
        raise UserError(f'the data is a {type(pairs).__name__}; expected is a list of pairs (image, integer label) or '
                        'a paddle.io.Dataset')
    for number, item in enumerate(pairs):
        image, label = pair(item, number, 'data', expected)
        images.append(_image(image, number))
        labels.append(integer_label(label, number, 'data', expected))
        for what in ('shape', 'dtype'):
            this, first = getattr(images[-1], what), getattr(images[0], what)
            if this != first:
                raise UserError(f'image {number} of the data is {this}, image 0 is {first}: bring them to one size and '
                                'type')
    if not images:
        raise UserError('the data holds no image')
    return np.stack(images), np.asarray(labels, 'int64')


def pair(item, number, data, expected):
    """The two parts of an item. Raises UserError for anything but a pair."""
    if isinstance(item, dict):
        raise _wrong(number, data, f'a dict with the keys {", ".join(map(str, list(item)[:5]))}', expected)
    if not isinstance(item, (tuple, list)):
        raise _wrong(number, data, f'a {type(item).__name__}', expected)
    if len(item) != 2:
        raise _wrong(number, data, f'a {type(item).__name__} of {len(item)} parts', expected)
    return item


def integer_label(label, number, data, expected, num_classes=None):
    """A label as an int from 0 to num_classes - 1. Raises UserError for anything else."""
    array = _as_array(label, number, data, expected)
    if array.size != 1 or array.dtype.kind not in 'iu':
        said = f', {label!r:.40}' if array.ndim == 0 else ''
        one_hot = ': give the number of the class, not one value for each class' if array.size > 1 else ''
        raise _wrong(number, data, f'a pair whose label is of type {array.dtype} and shape {list(array.shape)}{said}'
                     f'{one_hot}', expected)
    value = int(array.reshape(()))
    if value < 0:
        raise UserError(f'item {number} of the {data} has the label {value}; labels count from 0')
    if num_classes is not None and value >= num_classes:
        raise UserError(f'item {number} of the {data} has the label {value}; num_classes (--class_num) is '
                        f'{num_classes}, which allows 0 to {num_classes - 1}')
    if value >= MAX_CLASSES:
        raise UserError(f'item {number} of the {data} has the label {value}; the largest that is taken is '
                        f'{MAX_CLASSES - 1}')
    return value


def _wrong(number, data, what, expected):
    return UserError(f'item {number} of the {data} is {what}; expected is {expected}')


def _as_array(value, number, data, expected):
    try:
        return np.asarray(value)
    except Exception as error:  # whatever a user's object raises
        raise _wrong(number, data, f'not made of arrays ({str(error).splitlines()[0] if str(error) else error!r})',
                     expected)


def _advice_on(shape):
    """What to do with an array of the wrong shape, if that can be told."""
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        return ': bring the channels to the front'
    if len(shape) == 3 and shape[0] in (1, 4) or len(shape) == 2:
        return ': give three channels, red, green and blue'
    return ''


def refuse_x_and_y(pairs):
    """Raise UserError for (all images, all labels), which would be taken for two items."""
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2 or any(isinstance(part, tuple) for part in pairs):
        return
    images, labels = pairs
    try:
        together = (len(images) == len(labels) > 0 and min(np.ndim(images[0]), np.ndim(images[-1])) >= 1
                    and np.ndim(labels[0]) <= 1)
    except (TypeError, ValueError, LookupError):  # not even sequences
        return
    if together:
        raise UserError(f'the data is a pair of {len(images)} images and {len(labels)} labels; expected is a list of '
                        'pairs (image, integer label): list(zip(images, labels))')


def _image(image, number):
    """An image in any form that reader.py names, as an array [3, H, W] of uint8 or float32."""
    if hasattr(image, 'getbands'):  # a PIL image; the pixels of some modes are numbers of colours
        try:
            image = to_rgb(image)
        except ValueError as error:
            raise UserError(f'image {number} of the data cannot be used: {error}')
    array = _as_array(image, number, 'data', 'a pair (image, integer label)')
    if array.dtype != np.uint8 and array.dtype.kind != 'f':
        raise UserError(f'image {number} of the data is of type {array.dtype}; uint8 and float arrays are accepted')
    if array.ndim == 1:  # as in the pickles of CIFAR
        side = int(round((array.size / 3)**0.5))
        if 3 * side * side == array.size > 0:
            array = array.reshape(3, side, side)
    elif array.ndim == 2:
        array = np.stack([array] * 3)
    elif array.ndim == 3 and array.shape[0] != 3 and array.shape[2] == 3:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != 3 or not array.size:
        raise UserError(f'image {number} of the data has the shape {array.shape}; [3, H, W], [H, W, 3] and [H, W] are '
                        'accepted')
    if not np.isfinite(array).all():
        raise UserError(f'image {number} of the data holds NaN or infinite values')
    return array if array.dtype == np.uint8 else array.astype('float32')


def _classes_of(dataset):
    """The attribute num_classes of a data set, None without one. Raises UserError for anything but a number."""
    value = getattr(dataset, 'num_classes', None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 < value <= MAX_CLASSES:
        raise UserError(f'num_classes of the data set is {value!r:.80}; expected is a whole number from 1 to '
                        f'{MAX_CLASSES}')
    return int(value)
