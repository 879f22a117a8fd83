"""Running a network over data: what is measured on a batch, and the evaluation over a whole set."""
import paddle
import paddle.nn.functional as F

from utility import AverageMeter, sum_over_ranks


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


@paddle.no_grad()
def evaluate(model, loader):
    """Score a network in eval mode on every batch of a loader, over all ranks, each image counted once.

    Returns (loss, top-1, top-5), means over the images. The model is left in the mode it was in.
    """
    training = model.training
    model.eval()
    loss, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    for batch in loader:
        image, label = to_batch(batch)
        logits = model(image)
        n = image.shape[0]
        loss.update(F.cross_entropy(logits.astype('float32'), label), n)
        for meter, value in zip((top1, top5), accuracy(logits, label)):
            meter.update(value, n)
    if training:
        model.train()
    return mean_over_ranks(loss, top1, top5)


def mean_over_ranks(*meters):
    """The averages of some meters over all ranks, each rank weighted by its counts."""
    totals = sum_over_ranks([value for meter in meters for value in (meter.sum, meter.count)])
    return [total / max(count, 1) for total, count in zip(totals[::2], totals[1::2])]
