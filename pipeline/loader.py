"""Batches: which images a step reads, in which order, with which random numbers, in which process.

A source of images has `__len__`, `draws` (random numbers an image needs), `batch(indices, uniform)`, `subset(indices)`, `plain()` (the
same images without augmentation), `image_shape` [3, H, W] and `num_classes`. BatchLoader makes batches of it. Which image stands where, and how it is cropped
and flipped, follows from the seed, the epoch and the place in the epoch's order alone: it is the same with any number of worker
processes, and n ranks together read what one rank would read with an n times larger batch.
"""
import atexit
import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback

import numpy as np
import paddle
from paddle.io import DataLoader, Dataset

from pipeline.transforms import load_photo
from runtime.errors import UserError
from runtime.log import logger
from runtime.parallel import rank, world_size

SHARED_MEMORY = '/dev/shm'  # through which worker processes hand over their batches

# Streams of random numbers, so that the order is not tied to the augmentation, nor the two halves of a search to each other.
ORDER, TRAIN, VALID = 0, 1, 2


def generator(args, *key):
    """The random numbers that the seed and a key of small integers stand for."""
    return np.random.default_rng((getattr(args, 'seed', 0),) + key)


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------


class ArrayImages:
    """Images in memory, also a sequence of (image, label) pairs.

    images: uint8 [M, 3, H, W], labels: int64 [M], transform: an Augmentation; None takes float images as they are. indices: which of
    the M images are meant, in which order (default: all); subsets share one array, so a data set is held once.
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
        """The images at `indices`, transformed by the random numbers `uniform` [N, draws].

        Returns (float32 images, int64 labels, []); the list names what could not be read.
        """
        where = self.indices[indices]
        images, labels = self.images[where], self.labels[where]
        return (self.transform(images, uniform) if self.transform else images.astype('float32')), labels, []


class ImageFiles(Dataset):
    """Image files, decoded when they are asked for; also a paddle.io.Dataset of (image float32 [3, size, size], label).

    paths, labels, where: for each image its path, its class, and where it was named ('LIST, line 3: '). crop, transform: of transforms.py.
    """

    def __init__(self, paths, labels, where, crop, transform, num_classes):
        self.paths, self.labels, self.where = paths, np.asarray(labels, 'int64'), where
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
        return ImageFiles(self.paths, self.labels, self.where, self.crop.plain(), self.transform.plain(), self.num_classes)

    def subset(self, indices):
        return ImageFiles([self.paths[i] for i in indices], self.labels[indices], [self.where[i] for i in indices], self.crop,
                          self.transform, self.num_classes)

    def checked(self, class_num):
        """Itself, if all labels are below class_num. Raises UserError that names the first image with another one."""
        wrong = np.flatnonzero(self.labels >= class_num)
        if len(wrong):
            raise UserError(f'--class_num: {self.where[wrong[0]]}label {self.labels[wrong[0]]}, {class_num} classes allow 0 to {class_num - 1}')
        return self

    def batch(self, indices, uniform):
        """As ArrayImages.batch; a file that can't be read is left out of the batch and named in the list."""
        images, kept, errors = [], [], []
        for position, i in enumerate(indices):
            try:
                images.append(load_photo(self.paths[i], self.crop, uniform[position, :self.crop.draws]))
                kept.append(position)
            except Exception as error:  # a damaged file can raise nearly anything
                errors.append('{}{} cannot be read as an image: {}'.format(
                    self.where[i], self.paths[i], getattr(error, 'strerror', None) or error))
        images = np.stack(images) if images else np.zeros((0, 3, self.crop.size, self.crop.size), 'uint8')
        return self.transform(images, uniform[kept, self.crop.draws:]), self.labels[np.asarray(indices)[kept]], errors


class DatasetImages:
    """A user's paddle.io.Dataset of (image [3, H, W], label), whose images are taken as they come. Its attribute num_classes, if it has
    one, says how many classes there are.
    """

    draws, transform = 0, None

    def __init__(self, dataset, indices=None):
        self.dataset = dataset
        self.indices = np.arange(len(dataset)) if indices is None else indices
        self.image_shape = list(np.shape(dataset[0][0]))
        self.num_classes = getattr(dataset, 'num_classes', None)

    def __len__(self):
        return len(self.indices)

    def count_classes(self):
        """The classes of the whole data set, which is read once for that. Raises UserError for labels that don't count from 0."""
        logger.info('counting the classes of %d images: --class_num, or an attribute num_classes of the data set, spares that',
                    len(self.dataset))
        labels = [int(np.asarray(self.dataset[i][1]).reshape(())) for i in range(len(self.dataset))]
        if min(labels) < 0:
            raise UserError(f'image {labels.index(min(labels))} of the data has the label {min(labels)}; labels count from 0')
        return max(labels) + 1

    def plain(self):
        return self

    def subset(self, indices):
        return DatasetImages(self.dataset, self.indices[indices])

    def batch(self, indices, uniform):
        images, labels = zip(*[self.dataset[int(self.indices[i])] for i in indices])
        return np.stack([np.asarray(image, 'float32') for image in images]), np.asarray(labels, 'int64').reshape(-1), []


# ---------------------------------------------------------------------------------------------------------------------
# Loader
# ---------------------------------------------------------------------------------------------------------------------


class BatchLoader:
    """Iterates over a source in batches of Paddle tensors, (image [N, 3, H, W], label [N]).

    stream: keeps the random numbers of two loaders apart. train: True gives every rank the same number of batches, False gives
    every image to exactly one rank. args: of them seed, use_multiprocess, num_workers and max_bad_images are used.
    """

    def __init__(self, source, batch_size, shuffle, stream, args, train=True):
        self.source, self.batch_size, self.shuffle, self.stream = source, batch_size, shuffle, stream
        self.args, self.train = args, train
        self.bad_images = set()
        self.beside = []  # loaders whose passes begin within this one's
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Choose the epoch whose order and augmentation the next pass has; later passes differ until the next call."""
        self.set_position([epoch, 0, 0])

    def position(self):
        """The place in the data, [epoch, pass, batches taken of it]; after set_position, the next pass goes on from there."""
        return [self.epoch, self.passes - self.begun, self.taken]

    def set_position(self, position):
        self.epoch, self.passes, self.taken = position  # passes: the number of the next one
        self.first = self.taken  # batch of the next pass
        self.begun = False  # whether `taken` counts the batches of the pass before the next one

    def without_augmentation(self):
        """The same images in order, each once over all ranks, for evaluation."""
        return BatchLoader(self.source.plain(), self.batch_size, False, self.stream, self.args, train=False)

    @property
    def num_classes(self):
        """The classes of the whole data set; None when only reading all of it could tell."""
        return self.source.num_classes

    def __len__(self):
        return len(self._plan(np.arange(len(self.source))))

    def __iter__(self):
        key = (self.stream, self.epoch, self.passes)
        self.passes, self.begun = self.passes + 1, True
        first = self.taken = self.first
        self.first = 0
        order = np.arange(len(self.source))
        if self.shuffle:
            order = generator(self.args, *key).permutation(order)
        batches = _Batches(self.source, self._plan(order), self.args, key, first)
        workers = self._workers
        if workers:
            self._check_shared_memory()
            ready = DataLoader(batches, batch_size=None, shuffle=False, num_workers=workers, worker_init_fn=_leave_signals)
        else:  # without DataLoader, which would wait for ever after an error in a data set
            ready = (tuple(map(paddle.to_tensor, batches[i])) for i in range(len(batches)))
        read, ready = 0, iter(ready)
        try:
            for image, label, errors in ready:
                self.taken += 1
                self._count_bad_images(bytes(errors.numpy()).decode('utf-8').strip())
                if image.ndim == 4:  # not a batch without an image that could be read
                    read += 1
                    yield image, label
                elif self.train and world_size() > 1:  # the other ranks would wait for this one's gradient
                    raise UserError(f'none of the {self.batch_size} images of a batch could be read', status=1)
        except SystemError as error:  # Paddle's word that its reading thread has failed
            cause = _thread_failures.pop() if _thread_failures else error
            if 'exited unexpectedly' not in str(cause) and cause is not error:
                raise cause  # of a user's own code
            raise UserError('a worker process of the reader died, perhaps for lack of memory; --use_multiprocess=False reads '
                            'without one', status=1)
        finally:
            if workers:
                ready._try_shutdown_all(1)  # seconds; a pass that is left half-way would keep its workers
        if self.train and len(batches) and not first and not read:
            raise UserError(f'none of the {len(self.source)} images could be read', status=1)

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

    def _count_bad_images(self, errors):
        """Log the images that could not be read, once each. Raises UserError (status 1) past --max_bad_images."""
        for error in errors.splitlines():
            if error not in self.bad_images:
                self.bad_images.add(error)
                if len(self.bad_images) > getattr(self.args, 'max_bad_images', 0):
                    raise UserError('{} (image {} of this kind; --max_bad_images allows {})'.format(
                        error, len(self.bad_images), getattr(self.args, 'max_bad_images', 0)), status=1)
                logger.warning('left out: %s', error)

    @property
    def _workers(self):
        return getattr(self.args, 'num_workers', 1) if self.args.use_multiprocess else 0

    def _check_shared_memory(self):
        """Refuse to start workers that the shared memory can't serve, with those beside: the kernel would end them with a bus error."""
        if not os.path.isdir(SHARED_MEMORY):
            return
        together = [self] + self.beside
        needed, workers = sum(loader._shared_memory() for loader in together), sum(loader._workers for loader in together)
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < needed:
            raise UserError('--use_multiprocess: {} has {:.1f} MB free and {} worker{} may need {:.1f} MB: give '
                            '--use_multiprocess=False, or fewer --num_workers'.format(
                                SHARED_MEMORY, free / 2**20, workers, '' if workers == 1 else 's', needed / 2**20), status=1)

    def _shared_memory(self):
        """The bytes of shared memory that the workers of a pass may need."""
        if not self._workers or not len(self.source):
            return 0
        image, _, _ = self.source.batch(np.asarray([0]), np.zeros((1, self.source.draws)))
        batch = max(image.nbytes, 4) * min(self.batch_size, len(self.source))
        return batch * (2 * self._workers + 2)  # a worker has two batches under way; two more wait for the network


_thread_failures = []


def _thread_failed(args, otherwise=threading.excepthook):
    """Keep what Paddle's reading thread raised; it would be printed there, while the main thread hears only that it failed."""
    frames = traceback.extract_tb(args.exc_traceback)
    if any(os.path.join('paddle', 'io') in frame.filename for frame in frames):
        _thread_failures.append(args.exc_value)
    else:
        otherwise(args)


threading.excepthook = _thread_failed


def _leave_signals(worker):
    """In a worker process: Ctrl-C reaches every process, and the main one decides when its workers end; when it is killed they go
    with it (on Linux; Paddle's own watch waits for ever)."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


@atexit.register
def _end_workers():
    """At exit, Python would ask the workers that are left to end by a signal they leave alone, and wait."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where Paddle raises an error for a worker that ends
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class _Batches(Dataset):
    """The batches of one pass from number `first` on, as a Paddle Dataset, each made in whichever process asks for it."""

    def __init__(self, source, plan, args, key, first):
        self.source, self.plan, self.args, self.key, self.first = source, plan, args, key, first

    def __len__(self):
        return len(self.plan) - self.first

    def __getitem__(self, i):
        """(images, labels, errors). Errors travel as UTF-8 lines in an array: an exception in a worker process would arrive as
        a page of traceback. Paddle hands over no empty array, so an empty batch goes as one number, no errors as a blank."""
        i += self.first
        everyone, first, last = self.plan[i]
        uniform = generator(self.args, *self.key, i).random((len(everyone), self.source.draws))
        images, labels, errors = self.source.batch(everyone[first:last], uniform[first:last])
        if not len(labels):
            images, labels = np.zeros(1, 'float32'), np.zeros(1, 'int64')
        errors = '\n'.join(' '.join(error.split()) for error in errors) or ' '
        return images, labels, np.frombuffer(errors.encode('utf-8'), 'uint8')
