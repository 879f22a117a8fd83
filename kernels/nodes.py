"""A node of a cell with partial channels (PC-DARTS): beside the sum of its mixed operations lie the channels that the
edges keep, a weighted sum too; then the channels are shuffled. One pass over memory instead of one for each edge.
"""
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F

from kernels.compiled import EMPTY, addresses, available, floats, jit, new_tensor, view
from kernels.operation import Operation
from kernels.threads import on_all_cores

PARTS = 16  # of the images, whose sums are put together afterwards, in the same order on any number of cores


def node_of(mixed, kept, weights, partial):
    """channel_shuffle(concat([mixed, sum_e weights_e * kept_e]), partial).

    mixed [N, C / partial, H, W]; kept: for each edge a tensor [N, C - C / partial, H, W]; weights: a tensor [edges], or
    None for ones.
    """
    tensors = [mixed, *kept, *([] if weights is None else [weights])]
    if all(available(tensor) for tensor in tensors) and mixed.size and (mixed.shape[1] * partial
                                                                        == mixed.shape[1] + kept[0].shape[1]):
        weights = paddle.ones([len(kept)], 'float32') if weights is None else weights
        return _Node(partial)(mixed, weights, *kept)
    terms = kept if weights is None else [weight * term for weight, term in zip(weights.unbind(), kept)]
    return F.channel_shuffle(paddle.concat([mixed, paddle.add_n(terms)], axis=1), partial)


class Sides(NamedTuple):
    """Of the tensors: images, channels of `mixed` and of the output, pixels."""

    images: int
    mixed: int
    channels: int
    pixels: int


class _Node(Operation):

    def __init__(self, partial):
        self.partial = partial

    def forward(self, mixed, weights, *kept):
        self.kept, self.weights = [tensor.contiguous() for tensor in kept], weights.numpy()
        n, c, h, w = mixed.shape
        self.sides = Sides(n, c, c * self.partial, h * w)
        out = new_tensor([n, c * self.partial, h, w])
        mixed = mixed.contiguous()
        on_all_cores(_forward, n, view(mixed), addresses(self.kept), self.weights, view(out), self.sides)
        return out

    def backward(self, d):
        mixed_wanted, weights_wanted, *kept_wanted = self.wanted
        sides, d = self.sides, d.contiguous()
        dmixed = new_tensor([sides.images, sides.mixed, *d.shape[2:]]) if mixed_wanted else None
        dkept = [new_tensor(kept.shape) for kept in self.kept] if any(kept_wanted) else []
        sums = np.zeros((min(PARTS, sides.images), len(self.kept) if weights_wanted else 0))
        on_all_cores(_backward, len(sums), view(d), EMPTY if dmixed is None else view(dmixed),
                     (addresses(self.kept), addresses(dkept)), self.weights, sides, sums)
        dweights = paddle.to_tensor(sums.sum(0).astype(np.float32)) if weights_wanted else None
        return [dmixed, dweights, *(dkept or [None] * len(self.kept))]


@jit
def _forward(mixed, kept, weights, out, sides, begin, end):
    """kept [edges]: addresses."""
    images, mixed_channels, channels, pixels = sides
    kept_channels, partial = channels - mixed_channels, channels // mixed_channels
    for image in range(begin, end):
        for c in range(channels):
            to = out[(image * channels + c % mixed_channels * partial + c // mixed_channels) * pixels:][:pixels]
            if c < mixed_channels:
                some = mixed[(image * mixed_channels + c) * pixels:][:pixels]
                for p in range(pixels):
                    to[p] = some[p]
            for edge in range(len(kept) if c >= mixed_channels else 0):
                term = floats(kept[edge], images * kept_channels * pixels)
                some, weight = term[(image * kept_channels + c - mixed_channels) * pixels:][:pixels], weights[edge]
                if edge == 0:
                    for p in range(pixels):
                        to[p] = weight * some[p]
                else:
                    for p in range(pixels):
                        to[p] += weight * some[p]


@jit
def _backward(d, dmixed, kept, weights, sides, sums, begin, end):
    """kept: the addresses of the terms and of their gradients, or none. sums [parts, edges] of d * term, or [parts, 0].
    A job is a part of the images."""
    images, mixed_channels, channels, pixels = sides
    kept_channels, partial = channels - mixed_channels, channels // mixed_channels
    terms, gradients = kept
    for part in range(begin, end):
        for image in range(images * part // len(sums), images * (part + 1) // len(sums)):
            for c in range(channels):
                some = d[(image * channels + c % mixed_channels * partial + c // mixed_channels) * pixels:][:pixels]
                if c < mixed_channels and len(dmixed):
                    to = dmixed[(image * mixed_channels + c) * pixels:][:pixels]
                    for p in range(pixels):
                        to[p] = some[p]
                at, size = (image * kept_channels + c - mixed_channels) * pixels, images * kept_channels * pixels
                for edge in range(sums.shape[1] if c >= mixed_channels else 0):
                    term, total = floats(terms[edge], size)[at:][:pixels], np.float32(0)
                    for p in range(pixels):
                        total += some[p] * term[p]
                    sums[part, edge] += total
                for edge in range(len(gradients) if c >= mixed_channels else 0):
                    to, weight = floats(gradients[edge], size)[at:][:pixels], weights[edge]
                    for p in range(pixels):
                        to[p] = weight * some[p]
