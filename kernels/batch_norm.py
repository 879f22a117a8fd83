"""Batch norm between two passes over images: statistics, and the gradient as scales and a shift. Loops over channels
only, compiled because the calls of numpy in their place take longer than what they compute.
"""
import numpy as np

from kernels.compiled import floats, jit


@jit
def update_statistics(moments, s, pixels, norm, running, biases, mean, inverse):
    """From the moments [rows, groups, C, 2] of the groups: mean and 1 / sqrt(variance + epsilon), [rows, C]; the
    running statistics, whose addresses are running [rows, 2], follow as Paddle's do (Chan, Golub, LeVeque 1979 for
    putting groups together). s: a Shape or Images. norm: epsilon and momentum. biases [rows, C], of convolutions before
    the batch norm, are part of the running means only. Without groups mean and variance are the running ones."""
    rows, groups, channels, _ = moments.shape
    epsilon, momentum = norm
    for r in range(rows):
        old_mean, old_variance = floats(running[r, 0], channels), floats(running[r, 1], channels)
        for c in range(channels):
            n, m, squares = 0.0, 0.0, 0.0
            for k in range(groups):
                more = float(min(s.group, s.images - k * s.group) * pixels)
                delta = moments[r, k, c, 0] - m
                squares += moments[r, k, c, 1] + delta * delta * n * more / (n + more)
                n += more
                m += delta * more / n
            if groups:
                mean[r, c], inverse[r, c] = m, 1 / np.sqrt(squares / n + epsilon)
                old_mean[c] = old_mean[c] * momentum + (m + biases[r, c]) * (1 - momentum)
                old_variance[c] = old_variance[c] * momentum + squares / n * (1 - momentum)
            else:
                mean[r, c], inverse[r, c] = old_mean[c] - biases[r, c], 1 / np.sqrt(old_variance[c] + epsilon)


@jit
def gradient_coefficients(sums, strength, count, affine, mean, inverse, result):
    """result [C, 3] with df = c0 * d + c1 * f + c2, where the output of the batch norm has the gradient strength * d.

    sums [C, 2]: of strength * d and of strength * d * (f - mean). count: values of a channel, or 0 in evaluation mode.
    affine [C, 2]: the batch norm's scale and shift of f; mean, inverse [C]: of f, the latter 1 / standard deviation.
    """
    for c in range(len(result)):
        scale, c1, c2 = float(affine[c, 0]), 0.0, 0.0
        if count > 0:
            c1 = -scale * float(inverse[c]) ** 2 * sums[c, 1] / count
            c2 = -scale * sums[c, 0] / count - c1 * mean[c]
        result[c, 0], result[c, 1], result[c, 2] = strength * scale, c1, c2
