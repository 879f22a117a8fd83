"""The gradients of a depthwise convolution of one channel; `correlate` of products.py is the convolution itself.

planes, lines, t and w: see windows.py.
"""
import numpy as np

from kernels.compiled import inner
from kernels.products import correlate, correlate_rows


@inner
def spread_gradient(gradient, weight, line, t, w):
    """The gradient of the planes: the way back through `correlate`; weight: of a channel, in the order of t.order."""
    for plane in range(len(t.planes)):
        begin, end = t.starts[plane], t.starts[plane + 1]
        correlate(gradient[t.planes[plane]:], weight[begin:], line, t.backwards[begin:end], w.span)


@inner
def in_order(weight, order, channels):
    """A depthwise weight [C, taps] with its taps in that order."""
    result = np.empty(len(weight), np.float32)
    for c in range(channels):
        for tap in range(len(order)):
            result[c * len(order) + tap] = weight[c * len(order) + order[tap]]
    return result


@inner
def up_to_multiple(taps):
    """The taps, and zeros up to a multiple of 3, as correlate_rows needs them."""
    result = np.zeros((len(taps) + 2) // 3 * 3, np.int64)
    for tap in range(len(taps)):
        result[tap] = taps[tap]
    return result


@inner
def add_correlations(result, upstream, planes, taps, length):
    """Add the gradient of a channel's depthwise weight to result."""
    found = np.zeros(len(taps), np.float32)
    correlate_rows(found, upstream, planes, taps, length)
    for tap in range(len(result)):
        result[tap] += found[tap]
