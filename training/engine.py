"""The loops over an epoch: training steps, and evaluation. The searcher, train.py and train_imagenet.py share them.

A network of model.py gives (logits, logits_aux) for images [N, 3, H, W], with logits_aux None without an auxiliary head
and in evaluation mode; the supernet gives logits alone. `evaluate` takes both.
"""
import contextlib
import math

import paddle
import paddle.nn.functional as F

from pipeline.loader import MIX
from runtime.errors import UserError
from runtime.log import AverageMeter, Progress, logger, peak_memory_mb
from runtime.parallel import average_over_ranks, check_agreement, sum_over_ranks
from training.additions import Additions, Groups
from training.options import LossOptions, PrecisionOptions


def run_epoch(loader, train_step, *, run, epoch, log_freq, optimizer):
    """One pass over a loader.

    train_step: called with each batch as the loader gives it; it updates the network and returns (loss,
    logits [N, classes], label [N, 1]). run: a runtime.run.Run, which is told about each step, so that the epoch can be
    resumed at any of them.
    Returns the figures of metrics.jsonl: epoch, learning rate, loss and accuracies over all ranks, timings.
    Raises UserError (status 1) for a loss that is not finite and for a loader without batches.
    """
    meters = loss_meter, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    first = run.begin_epoch(epoch, meters)
    progress = Progress('Train', epoch, _length(loader), log_freq, first)
    for step, batch in progress.batches(run.batches(loader)):
        run.begin_step(epoch, step)
        loss, logits, label = train_step(batch)
        check_finite(loss, epoch, step, optimizer)
        n = logits.shape[0]
        loss_meter.update(loss, n)
        for meter, value in zip((top1, top5), accuracy(logits, label)):
            meter.update(value, n)
        progress.update(step, n, loss_meter, top1, top5)
        run.end_step(step, meters)
    if not loss_meter.count:
        raise UserError('the training data holds no batch')
    train_loss, train_acc, train_acc5 = mean_over_ranks(*meters)
    return dict(progress.costs(), epoch=epoch, lr=optimizer.get_lr(), train_loss=train_loss, train_acc=train_acc,
                train_acc5=train_acc5)


def _length(loader):
    """The number of batches of a loader, None where it is unknown."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


class Precision:
    """Automatic mixed precision on a GPU. On a CPU it logs a line and computes in float32. options: PrecisionOptions;
    model, optimizer: needed for the level O2."""

    def __init__(self, options=PrecisionOptions(), model=None, optimizer=None):
        level, dtype = options.level, options.dtype
        if level != 'O0' and not paddle.get_device().startswith('gpu'):
            logger.info('--amp_level=%s: ignored, the CPU computes in float32', level)
            level = 'O0'
        self.level, self.dtype = level, dtype
        self.scaler = paddle.amp.GradScaler() if level != 'O0' and dtype == 'float16' else None
        if level == 'O2':
            paddle.amp.decorate(model, optimizer, level='O2', dtype=dtype, save_dtype='float32')

    def autocast(self):
        """The context for forward passes."""
        if self.level == 'O0':
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)

    def backward(self, loss):
        """The backward pass, which adds to the gradients."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer, parameters, count):
        """The mean of the gradients over the ranks (this one has `count` images), and the step of the optimizer."""
        average_over_ranks([p.grad for p in parameters if p.grad is not None], count)
        if self.scaler is None:
            optimizer.step()
        else:  # removes the scale from the gradients first, so that they are clipped at their true size
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.clear_grad()


def fit(model, train_loader, valid_loader, *, optimizer, schedule, epochs, report, precision, run,
        loss_options=LossOptions(), drop_path_prob=0.0, log_freq=50, additions=None):
    """Train a network for a number of epochs and evaluate it after each.

    schedule: the learning rate scheduler of the optimizer, stepped once an epoch. report: called after each epoch with
    its figures, a dict; it returns the line for metrics.jsonl. drop_path_prob: epoch e of E uses
    drop_path_prob * e / E (DARTS, section 3.2, after NASNet).
    additions: an additions.Additions (default: nothing added).
    """
    parameters = [p for p in model.parameters() if p.trainable]
    additions = additions or Additions()

    def train_step(group):
        batches = [to_batch(batch) for batch in group]
        count = sum(image.shape[0] for image, _ in batches)
        loss, outputs = 0.0, []
        for number, (image, label) in enumerate(batches):
            image, targets = additions.mix(image, label, [run.seed, MIX, run.stream, run.epoch, run.step, number])
            with precision.autocast():
                logits, logits_aux = model(image)
                part = weighted_sum((classification_loss(logits, logits_aux, target, loss_options), share)
                                    for target, share in targets)
            part = weighted_sum([(part, image.shape[0] / count)])
            loss += float(part)
            outputs.append(logits.detach())
            if math.isfinite(loss):  # the caller ends the run otherwise
                precision.backward(part)
        if math.isfinite(loss):
            precision.step(optimizer, parameters, count)
            if additions.average:
                additions.average.update()
        return loss, joined(outputs), joined([label for _, label in batches])

    def check():
        if not additions.average:
            run.check()
        elif run.signal is not None:
            with additions.average.exchanged():  # a checkpoint holds the trained weights as such
                run.check()

    with run:
        for epoch in run.epochs(epochs):
            logger.info('Epoch %d, lr %.6f', epoch, optimizer.get_lr())
            model.train()
            model.set_drop_path_prob(drop_path_prob * epoch / epochs)
            metrics = run_epoch(Groups(train_loader, additions.accumulate), train_step, run=run, epoch=epoch,
                                log_freq=log_freq, optimizer=optimizer)
            sync_ranks(model)
            if additions.average:
                additions.average.sync_ranks()
            with additions.average.exchanged() if additions.average else contextlib.nullcontext():
                valid_loss, top1, top5, _ = evaluate(model, valid_loader, precision=precision, after_batch=check)
                schedule.step()
                line = report(dict(metrics, valid_loss=valid_loss, valid_acc=top1, valid_acc5=top5,
                                   peak_memory_mb=peak_memory_mb()))
            run.end_epoch(line)


def weighted_sum(parts):
    """The sum of tensors times their weights, [(tensor, weight)]; one of weight 1 is returned as it is."""
    scaled = [tensor if weight == 1 else tensor * weight for tensor, weight in parts]
    return sum(scaled[1:], scaled[0])


def joined(tensors):
    return tensors[0] if len(tensors) == 1 else paddle.concat(tensors)


def classification_loss(logits, logits_aux, label, options=LossOptions()):
    """The cross-entropy, plus that of the auxiliary classifier times its weight if there is one; label [N, 1]."""
    loss = F.cross_entropy(logits, label.flatten(), label_smoothing=options.label_smooth)
    if logits_aux is not None:
        loss += options.auxiliary_weight * F.cross_entropy(logits_aux, label.flatten(),
                                                           label_smoothing=options.label_smooth)
    return loss


def sync_ranks(model):
    """Synchronise the ranks at the end of an epoch: batch norm's running statistics, which each rank computed from its
    own images, become their mean; the trained parameters must be equal bit for bit.

    Raises UserError (status 1) where they are not.
    """
    average_over_ranks([p for p in model.parameters() if not p.trainable])
    check_agreement([p for p in model.parameters() if p.trainable], 'the parameters')


def check_finite(loss, epoch, step, optimizer):
    """Raise UserError (status 1) for a loss that is not finite."""
    if not math.isfinite(loss):
        raise UserError(f'the loss is {loss} at epoch {epoch}, step {step}, learning rate {optimizer.get_lr():g}: try '
                        'a lower --learning_rate or --grad_clip', status=1)


@paddle.no_grad()
def evaluate(model, loader, *, precision=None, after_batch=None, batch_statistics=False):
    """Evaluate a network on all batches of a loader, over all ranks. The network is left in the mode that it was in.

    after_batch: called after each batch; an exception that it raises ends the evaluation. batch_statistics: normalise
    by the statistics of each batch, as in training, which updates the running ones.
    Returns (loss, top-1, top-5, number of images), means over the images. Raises UserError (status 1) where there is
    none.
    """
    training = model.training
    set_mode(model, batch_statistics)
    loss, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    for batch in loader:
        image, label = to_batch(batch)
        logits = logits_of(model, image, precision)
        n = image.shape[0]
        loss.update(F.cross_entropy(logits, label), n)
        for meter, value in zip((top1, top5), accuracy(logits, label)):
            meter.update(value, n)
        if after_batch is not None:
            after_batch()
    set_mode(model, training)
    images = int(sum_over_ranks([loss.count])[0])
    if not images:
        raise UserError('none of the images of the evaluation could be read', status=1)
    return (*mean_over_ranks(loss, top1, top5), images)


def set_mode(model, training):
    """Bring a network into training or evaluation mode."""
    model.train() if training else model.eval()


def logits_of(model, image, precision=None):
    """The logits [N, classes] of a network in evaluation mode, in the type of the images."""
    with precision.autocast() if precision else contextlib.nullcontext():
        output = model(image)
    logits = output[0] if isinstance(output, tuple) else output
    # Mixed precision gives 16 bits; a network on integers, rows of words for example, is not one of images.
    return logits.astype(image.dtype if paddle.is_floating_point(image) else paddle.get_default_dtype())


def to_batch(batch):
    """Bring a batch of any reader into one form: images as a float tensor, labels as int64 [N, 1].

    Readers give tensors (paddle.io.DataLoader), numpy arrays, or lists of samples (readers of Paddle 1.x).
    """
    image, label = batch
    if not isinstance(image, paddle.Tensor):
        image = paddle.to_tensor(image, dtype=paddle.get_default_dtype())
    if not isinstance(label, paddle.Tensor):
        label = paddle.to_tensor(label)
    return image, label.astype('int64').reshape([-1, 1])


def accuracy(logits, label):
    """Top-1 and top-5 accuracy of a batch, as fractions; with fewer than five classes, top-5 is top-`classes`."""
    return [float(paddle.metric.accuracy(logits, label, k=min(k, logits.shape[1]))) for k in (1, 5)]


def mean_over_ranks(*meters):
    """The averages of meters over all ranks, each rank weighted by its counts."""
    totals = sum_over_ranks([value for meter in meters for value in (meter.sum, meter.count)])
    return [total / max(count, 1) for total, count in zip(totals[::2], totals[1::2])]
