"""The data of a search: any reader that DARTSearch accepts as a loader, and the pairs of batches that a step takes."""
import numpy as np
from paddle.io import DataLoader, Dataset, IterableDataset

from pipeline.items import MAX_CLASSES, DatasetItems, refuse_x_and_y
from pipeline.loader import TRAIN, BatchLoader
from pipeline.sources import DatasetImages
from runtime.errors import UserError


class PairedLoader:
    """The steps of a search epoch: every training batch with a validation batch.

    num_classes: of the network, if known. Raises UserError for the first batch that is something else than (images,
    labels), with labels below num_classes.
    """

    def __init__(self, train_loader, valid_loader, num_classes=None):
        self.train_loader, self.valid_loader, self.num_classes = train_loader, valid_loader, num_classes

    def __len__(self):
        return len(self.train_loader)

    def __iter__(self):
        return zip(self._checked(self.train_loader, 'training'),
                   self._checked(endless(self.valid_loader), 'validation'))

    def _checked(self, batches, half):
        for number, batch in enumerate(batches):
            check_batch(batch, f'batch {number} of the {half} data', self.num_classes)
            yield batch


def check_batch(batch, name, num_classes=None):
    """Raise UserError, which names the batch, for anything but (images, labels) of one length with integer labels."""
    expected = 'expected is a pair (images, integer labels)'
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        parts = f' of {len(batch)} parts' if isinstance(batch, (tuple, list)) else ''
        raise UserError(f'{name} is a {type(batch).__name__}{parts}; {expected}')
    try:
        count, labels = len(batch[0]), np.asarray(batch[1])
    except Exception as error:  # whatever objects of a user's raise
        raise UserError(f'{name} is not made of arrays ({error}); {expected}')
    if labels.dtype.kind not in 'iu' or labels.size != count:
        raise UserError(f'{name} holds {count} images and labels of type {labels.dtype} and shape '
                        f'{list(labels.shape)}; {expected}')
    wrong = labels[(labels < 0) | (labels >= (num_classes or MAX_CLASSES))]
    if wrong.size:
        raise UserError(f'{name} holds the label {wrong[0]}; labels count from 0'
                        + (f', and the network has {num_classes} classes' if num_classes else ''))


def classes_of(model):
    """The attribute num_classes of a network; None without a number of that name."""
    number = getattr(model, 'num_classes', None)
    return number if isinstance(number, int) else None


def as_loader(reader, *, batch_size, workers=0, seed=0, stream=TRAIN, train=True, model=None):
    """Turn any reader that DARTSearch accepts into an object that gives batches and can be iterated once per epoch.

    A Dataset is distributed over the ranks: for training, shuffled and with the same number of batches on each;
    otherwise each image once. Other readers must do that themselves.

    model: the network; its attributes input_channels and num_classes, if it has them, say what the items must be.
    Raises UserError for anything else.
    """
    if isinstance(reader, IterableDataset):
        return DataLoader(reader, batch_size=batch_size, num_workers=workers)
    if isinstance(reader, Dataset):
        items = DatasetItems(reader, images=getattr(model, 'input_channels', None) == 3,
                             num_classes=classes_of(model))
        return BatchLoader(DatasetImages(items), batch_size, shuffle=train, stream=stream, seed=seed, workers=workers,
                           train=train)
    refuse_x_and_y(reader)
    if isinstance(reader, (tuple, list)) and not reader:
        raise UserError('a reader is empty: it must be a paddle.io.Dataset or give batches (images, labels)')
    if hasattr(reader, '__iter__') and not hasattr(reader, '__next__'):
        return reader
    if callable(reader):
        return _FunctionLoader(reader)
    raise UserError('a reader must be a paddle.io.Dataset, an iterable that can be started again, or a function that '
                    f'returns one, not a {type(reader).__name__}')


class _FunctionLoader:
    """A reader of Paddle 1.x: each call of the function starts a new pass over batches."""

    def __init__(self, function):
        self.function = function

    def __iter__(self):
        return iter(self.function())


def endless(loader):
    """Yield a loader's batches, pass after pass. Raises UserError where a pass has no batch."""
    empty_passes = 0
    while True:
        empty_passes += 1
        for batch in loader:
            empty_passes = 0
            yield batch
        if empty_passes > 1:  # the first one may be the end of a pass that a resumed run continues
            raise UserError('the validation data holds no batch')
