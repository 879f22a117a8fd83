"""The data of a search: any reader that DARTSearch accepts as a loader, and the pairs of batches that a step takes."""
from paddle.io import DataLoader, Dataset, IterableDataset

from pipeline.loader import TRAIN, BatchLoader
from pipeline.sources import DatasetImages
from runtime.errors import UserError


class PairedLoader:
    """The steps of a search epoch: every training batch with a validation batch."""

    def __init__(self, train_loader, valid_loader):
        self.train_loader, self.valid_loader = train_loader, valid_loader

    def __len__(self):
        return len(self.train_loader)

    def __iter__(self):
        return zip(self.train_loader, endless(self.valid_loader))


def as_loader(reader, *, batch_size, workers=0, seed=0, stream=TRAIN, train=True):
    """Turn any reader that DARTSearch accepts into an object that gives batches and can be iterated once per epoch.

    A Dataset is distributed over the ranks: for training, shuffled and with the same number of batches on each;
    otherwise each image once. Other readers must do that themselves. Raises UserError for anything else.
    """
    if isinstance(reader, IterableDataset):
        return DataLoader(reader, batch_size=batch_size, num_workers=workers)
    if isinstance(reader, Dataset):
        return BatchLoader(DatasetImages(reader), batch_size, shuffle=train, stream=stream, seed=seed, workers=workers,
                           train=train)
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
