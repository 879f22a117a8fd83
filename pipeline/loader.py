"""Batches: which images a step reads, in which order, with which random numbers.

Order, crops and flips follow from the seed, the epoch and the place in the epoch's order alone. They are the same with
any number of worker processes, and n ranks together read what one rank would read with an n times larger batch.
"""
import numpy as np
import paddle

from pipeline import workers as worker_processes
from runtime.errors import UserError
from runtime.log import logger
from runtime.parallel import rank, world_size

# Streams of random numbers: the order of the images, the augmentation of each half of a search, and the mixing of the
# images of a batch do not depend on each other.
ORDER, TRAIN, VALID, MIX, DECISIONS, STAGES = range(6)


def generator(seed, *key):
    """A numpy random generator for a seed and a key of small non-negative integers."""
    return np.random.default_rng((seed,) + key)


class BatchLoader:
    """Iterates over a source in batches of Paddle tensors: images [N, 3, H, W] (or what else a source holds) and
    labels [N].

    source: a Source (sources.py). batch_size: images per batch on each rank. shuffle: draw a new order for every pass.
    stream: TRAIN or VALID, keeps the random numbers of two loaders apart. workers: number of worker processes; 0 reads
    in the main process. max_bad_images: how many unreadable images may be skipped before UserError is raised.
    train: True gives every rank the same number of batches; False gives every image to exactly one rank.
    """

    def __init__(self, source, batch_size, *, shuffle, stream, seed=0, workers=0, max_bad_images=0, train=True):
        self.source, self.batch_size, self.shuffle = source, batch_size, shuffle
        self.stream, self.seed = stream, seed
        self.workers, self.max_bad_images, self.train = workers, max_bad_images, train
        self.bad_images = set()
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Choose the epoch whose order and augmentation the next pass uses. Later passes differ from it until the next
        call."""
        self.set_position([epoch, 0, 0])

    def position(self):
        """The current position, [epoch, pass, batches taken of it], for set_position."""
        return [self.epoch, self.next_pass - self.pass_started, self.taken]

    def set_position(self, position):
        """Continue at a position: the next pass starts after the batches that were taken of it."""
        self.epoch, self.next_pass, self.taken = position
        self.first_batch = self.taken
        self.pass_started = False  # True once `taken` belongs to pass next_pass - 1

    def without_augmentation(self):
        """A loader of the same images in a fixed order, each exactly once over all ranks, for evaluation."""
        return BatchLoader(self.source.plain(), self.batch_size, shuffle=False, stream=self.stream, seed=self.seed,
                           workers=self.workers, max_bad_images=self.max_bad_images, train=False)

    def __len__(self):
        return len(self._plan(np.arange(len(self.source))))

    def __iter__(self):
        key = (self.stream, self.epoch, self.next_pass)
        self.next_pass, self.pass_started = self.next_pass + 1, True
        first = self.taken = self.first_batch
        self.first_batch = 0
        order = np.arange(len(self.source))
        if self.shuffle:
            order = generator(self.seed, *key).permutation(order)
        batches = _Batches(self.source, self._plan(order), (self.seed,) + key, first)
        if self.workers and worker_processes.SUPPORTED:
            ready = worker_processes.read_ahead(batches, self.workers, self.batch_size * self.source.example_bytes)
        else:
            ready = map(_to_tensors, batches)
        some_read = False
        for images, labels, errors in ready:
            self.taken += 1
            self._count_bad_images(errors)
            if labels is not None:
                some_read = True
                yield images, labels
            elif self.train and world_size() > 1:  # the other ranks would wait for this rank's gradient
                raise UserError(f'none of the {self.batch_size} images of a batch could be read', status=1)
        if self.train and len(batches) and not first and not some_read:
            raise UserError(f'none of the {len(self.source)} images could be read', status=1)

    def _plan(self, order):
        """Cut an order into batches: a list of (images of all ranks, first, last), where [first:last] are this
        rank's."""
        size = self.batch_size * world_size()
        plan = []
        for start in range(0, len(order), size):
            everyone = order[start:start + size]
            if self.train and len(everyone) < world_size():
                everyone = np.resize(everyone, world_size())  # every rank takes part in averaging the gradients
            bounds = np.linspace(0, len(everyone), world_size() + 1).astype(int)
            first, last = bounds[rank()], bounds[rank() + 1]
            if last > first:
                plan.append((everyone, first, last))
        return plan

    def _count_bad_images(self, errors):
        """Log each unreadable image once. Raises UserError (status 1) when there are more than max_bad_images."""
        for error in errors:
            if error not in self.bad_images:
                self.bad_images.add(error)
                if len(self.bad_images) > self.max_bad_images:
                    raise UserError(f'{error} (unreadable image number {len(self.bad_images)}; --max_bad_images allows '
                                    f'{self.max_bad_images})', status=1)
                logger.warning('skipped: %s', error)


class _Batches:
    """The batches of one pass, from number `first` on; each can be prepared in any process."""

    def __init__(self, source, plan, key, first):
        self.source, self.plan, self.key, self.first = source, plan, key, first

    def __len__(self):
        return len(self.plan) - self.first

    def __getitem__(self, i):
        """(images, labels, errors), as Source.batch returns them."""
        if i >= len(self):
            raise IndexError(i)
        number = i + self.first
        everyone, first, last = self.plan[number]
        uniform = generator(*self.key, number).random((len(everyone), self.source.draws))
        images, labels, errors = self.source.batch(everyone[first:last], uniform[first:last])
        return images, labels, [' '.join(error.split()) for error in errors]


def _to_tensors(batch):
    images, labels, errors = batch
    return (paddle.to_tensor(images), paddle.to_tensor(labels), errors) if len(labels) else (None, None, errors)
