"""What the training scripts can add to the papers' recipe, each off by default: an exponential moving average of the
weights, mixup and cutmix, several batches a step, warm-up epochs. TrivialAugment is in pipeline/trivial_augment.py.
"""
import contextlib
import itertools

import numpy as np
import paddle

from pipeline.loader import generator
from runtime.parallel import average_over_ranks


def with_warmup(schedule, epochs):
    """A learning rate scheduler that begins with `epochs` epochs of 1/(epochs + 1), 2/(epochs + 1), ... of the initial
    learning rate of `schedule`, which starts after them (Goyal et al. 2017, section 2.2)."""
    if not epochs:
        return schedule
    rate = schedule.base_lr
    return paddle.optimizer.lr.LinearWarmup(schedule, warmup_steps=epochs, start_lr=rate / (epochs + 1), end_lr=rate)


class Groups:
    """The batches of a loader in lists of `size`, the last one of what is left: a step takes one."""

    def __init__(self, loader, size):
        self.loader, self.size = loader, size

    def __len__(self):
        return -(-len(self.loader) // self.size)

    def __iter__(self):
        batches = iter(self.loader)
        return iter(lambda: list(itertools.islice(batches, self.size)), [])


class WeightAverage:
    """The exponential moving average of a network's parameters and running statistics: after every step
    average = decay * average + (1 - decay) * value (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    `tensors` is all of its state.
    """

    def __init__(self, model, decay):
        self.decay = decay
        self.values = [*model.parameters(), *model.buffers()]
        self.trainable = [getattr(value, 'trainable', False) for value in self.values]
        self.tensors = [value.detach().clone() for value in self.values]  # before mixed precision makes them 16 bits

    @paddle.no_grad()
    def update(self):
        """To be called after every step of the optimizer."""
        for average, value in zip(self.tensors, self.values):
            paddle.assign(average * self.decay + value.astype(average.dtype) * (1 - self.decay), average)

    def sync_ranks(self):
        """Make the averages of the running statistics, which each rank has of its own images, their mean."""
        average_over_ranks([average for average, trainable in zip(self.tensors, self.trainable) if not trainable])

    @contextlib.contextmanager
    def exchanged(self):
        """Within the block the network has the averages and `tensors` the values; within two nested ones all is as
        outside of both."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @paddle.no_grad()
    def _exchange(self):
        for average, value in zip(self.tensors, self.values):
            kept = value.clone()
            paddle.assign(average.astype(value.dtype), value)
            paddle.assign(kept.astype(average.dtype), average)


class Mixing:
    """Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of the images of a batch, each with the image that a
    random permutation puts in its place.

    mixup, cutmix: alpha of the Beta(alpha, alpha) distribution of the image's own share, None for off; with both, each
    batch takes one of the two with equal probability.
    """

    def __init__(self, mixup=None, cutmix=None):
        self.alphas = [(name, alpha) for name, alpha in (('mixup', mixup), ('cutmix', cutmix)) if alpha]

    def __call__(self, image, label, key):
        """image [N, C, H, W], label [N, 1] -> (mixed images, [(label, share), ...]); the shares add up to 1.

        key: of generator(), the whole source of randomness.
        """
        if not self.alphas:
            return image, [(label, 1)]
        random = generator(*key)
        name, alpha = self.alphas[random.integers(len(self.alphas))]
        share = random.beta(alpha, alpha)
        order = paddle.to_tensor(random.permutation(image.shape[0]))
        other = paddle.index_select(image, order)
        if name == 'mixup':
            image = image * share + other * (1 - share)
        else:
            own = ~cutmix_box(*image.shape[2:], share, random)
            image = paddle.where(paddle.to_tensor(own).expand_as(image), image, other)
            share = own.mean()
        return image, [(label, float(share)), (paddle.index_select(label, order), float(1 - share))]


def cutmix_box(height, width, share, random):
    """The part of an image that cutmix takes from the other one, bool [height, width]: a rectangle of the image's
    proportions and (1 - share) of its area, its centre anywhere; what lies outside of the image is lost."""
    half = np.sqrt(1 - share) / 2
    y, x = random.integers(height), random.integers(width)
    top, bottom = np.clip([y - int(height * half), y + int(height * half)], 0, height)
    left, right = np.clip([x - int(width * half), x + int(width * half)], 0, width)
    box = np.zeros((height, width), bool)
    box[top:bottom, left:right] = True
    return box


class Additions:
    """What a training run adds. ema: decay of a WeightAverage; mixup, cutmix: of Mixing; accumulate: batches a step.

    model: the network that is trained. The randomness follows from the run's seed, the epoch and the step.
    """

    def __init__(self, model=None, *, ema=None, mixup=None, cutmix=None, accumulate=1):
        self.average = WeightAverage(model, ema) if ema else None
        self.mix = Mixing(mixup, cutmix)
        self.accumulate = accumulate

    @property
    def tensors(self):
        """The state of the additions, which a checkpoint must hold."""
        return self.average.tensors if self.average else []
