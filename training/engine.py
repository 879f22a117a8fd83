"""The loop that trains and scores a network: what train.py and train_imagenet.py share.

A network here is one of model.py: called on images [N, 3, H, W] it gives (logits, logits_aux), logits_aux None without an
auxiliary head and in eval mode. `evaluate` also takes the supernet, which gives logits alone.
"""
import contextlib
import math

import paddle
import paddle.nn.functional as F

from runtime.errors import UserError
from runtime.log import AverageMeter, Progress, logger, peak_memory_mb
from runtime.parallel import average_over_ranks, check_agreement, sum_over_ranks


class Precision:
    """Automatic mixed precision on a GPU; on a device without it, one log line and float32.

    level: 'O0' float32, 'O1' float16 or bfloat16 where Paddle holds it safe, 'O2' nearly everywhere, with float32 master weights.
    dtype: 'float16', with a gradient scaler, or 'bfloat16', which needs none.
    """

    def __init__(self, level, dtype, model, optimizer=None):
        if level != 'O0' and not paddle.get_device().startswith('gpu'):
            logger.info('--amp_level=%s: ignored, the CPU computes in float32', level)
            level = 'O0'
        self.level, self.dtype = level, dtype
        self.scaler = paddle.amp.GradScaler() if level != 'O0' and dtype == 'float16' else None
        if level == 'O2':
            paddle.amp.decorate(model, optimizer, level='O2', dtype=dtype, save_dtype='float32')

    def autocast(self):
        """The context that forward passes run in."""
        if self.level == 'O0':
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)

    def step(self, loss, optimizer, parameters, count):
        """Backward, the mean over the ranks, of which this one read `count` images, and the optimizer's step."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        average_over_ranks([p.grad for p in parameters if p.grad is not None], count)
        if self.scaler is None:
            optimizer.step()
        else:  # takes the scale off the gradients first, so that clipping sees the true ones
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.clear_grad()


def fit(model, train_loader, valid_loader, optimizer, schedule, epochs, report, precision, run, drop_path_prob=0.0, **options):
    """Train for some epochs and score the network after each.

    drop_path_prob: the probability after the last epoch; it rises linearly from 0 (DARTS, section 3.2, after NASNet).
    schedule: the optimizer's learning rate, stepped once an epoch. run: a resume.Run, started.
    report: called after each epoch with its figures, a dict, of which it makes the line for metrics.jsonl. options: go to
    train_one_epoch.
    """
    with run:
        for epoch in run.epochs(epochs):
            logger.info('Epoch %d, lr %.6f', epoch, optimizer.get_lr())
            model.drop_path_prob = drop_path_prob * epoch / epochs
            metrics = train_one_epoch(model, train_loader, optimizer, epoch, precision, run, **options)
            agree(model)
            valid_loss, top1, top5 = evaluate(model, valid_loader, precision, run.check)
            schedule.step()
            run.end_epoch(report(dict(metrics, valid_loss=valid_loss, valid_acc=top1, valid_acc5=top5,
                                      peak_memory_mb=peak_memory_mb())))


def train_one_epoch(model, loader, optimizer, epoch, precision, run, auxiliary_weight=0.4, label_smooth=0.0, log_freq=50):
    """One pass over the training set. Returns its figures for metrics.jsonl.

    auxiliary_weight: of the auxiliary head's loss. label_smooth: epsilon of label smoothing, in both losses (Szegedy et al. 2016).
    Raises UserError (status 1) when the loss is not finite.
    """
    model.train()
    parameters = [p for p in model.parameters() if p.trainable]
    meters = loss_meter, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    first = run.begin_epoch(epoch, meters)
    progress = Progress('Train', epoch, len(loader), log_freq, first)
    for step, batch in progress.batches(run.batches(loader)):
        run.begin_step(epoch, step)
        image, label = to_batch(batch)
        with precision.autocast():
            logits, logits_aux = model(image)
            loss = F.cross_entropy(logits, label.flatten(), label_smoothing=label_smooth)
            if logits_aux is not None:
                loss += auxiliary_weight * F.cross_entropy(logits_aux, label.flatten(), label_smoothing=label_smooth)
        check_finite(float(loss), epoch, step, optimizer)
        n = image.shape[0]
        precision.step(loss, optimizer, parameters, n)
        loss_meter.update(loss, n)
        for meter, value in zip((top1, top5), accuracy(logits, label)):
            meter.update(value, n)
        progress.update(step, n, loss_meter, top1, top5)
        run.end_step(step, meters)
    train_loss, train_top1, train_top5 = mean_over_ranks(*meters)
    return dict(progress.costs(), epoch=epoch, lr=optimizer.get_lr(), train_loss=train_loss, train_acc=train_top1,
                train_acc5=train_top5)


def agree(model):
    """Bring ranks together at the end of an epoch: batch norm's running statistics, of which each has seen its own images, become
    their mean, and the trained parameters must be the same to the last bit. Raises UserError (status 1) where they aren't."""
    average_over_ranks([p for p in model.parameters() if not p.trainable])
    check_agreement([p for p in model.parameters() if p.trainable], 'the parameters')


def check_finite(loss, epoch, step, optimizer):
    """Stop a run whose loss is not finite. Raises UserError (status 1) with what may help."""
    if not math.isfinite(loss):
        raise UserError(f'the loss is {loss} at epoch {epoch}, step {step}, learning rate {optimizer.get_lr():g}: try a lower --learning_rate or '
                        '--grad_clip', status=1)


@paddle.no_grad()
def evaluate(model, loader, precision=None, check=None):
    """Score a network in eval mode on every batch of a loader, over all ranks, each image counted once.

    check: called between batches; it may raise what ends the evaluation.
    Returns (loss, top-1, top-5), means over the images. The model is left in the mode it was in.
    """
    training = model.training
    model.eval()
    loss, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    for batch in loader:
        image, label = to_batch(batch)
        with precision.autocast() if precision else contextlib.nullcontext():
            output = model(image)
        logits = (output[0] if isinstance(output, tuple) else output).astype(image.dtype)
        n = image.shape[0]
        loss.update(F.cross_entropy(logits, label), n)
        for meter, value in zip((top1, top5), accuracy(logits, label)):
            meter.update(value, n)
        if check is not None:
            check()
    if training:
        model.train()
    return mean_over_ranks(loss, top1, top5)


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
    """The averages of some meters over all ranks, each rank weighted by its counts."""
    totals = sum_over_ranks([value for meter in meters for value in (meter.sum, meter.count)])
    return [total / max(count, 1) for total, count in zip(totals[::2], totals[1::2])]
