"""The poolings and skip connections among the compiled passes of edges.py; edge_loops.py says how jobs and tensors lie.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import floats, inner, jit
from kernels.depthwise import convolve, spread_gradient
from kernels.edge_loops import GROUPED, gather, where
from kernels.images import (
    LOWEST,
    NO,
    NO_FLOOR,
    ONE,
    YES,
    ZERO,
    Place,
    collect,
    copy_to_line,
    fill,
    from_line,
    give_to_largest,
    largest,
    moments_of,
    nchw,
    one_row,
    spread,
)
from kernels.windows import unpack

LARGEST, AVERAGE, IDENTITY = 0, 1, 2  # kinds of what is no convolution


class Pools(NamedTuple):
    """kinds [poolings]; tables: see edge_loops.py; divisors [poolings, output pixels]: 1 / pixels of each window of an
    average."""

    kinds: np.ndarray
    tables: np.ndarray
    divisors: np.ndarray


@jit
def pool_forward(x_address, outs, pools, s, moments, begin, end):
    """Poolings of x, NCHW; outs [poolings]: addresses; moments as in edge_loops.forward_pass."""
    for job in range(begin, end):
        j, k = job % len(outs), job // len(outs)
        (w, t), first = unpack(pools.tables[j]), k * s.group
        count, inside, outside = min(s.group, s.images - first), w.height * w.width, w.out_height * w.out_width
        size, ones = count * outside, np.ones(len(t.taps), np.float32)
        x, out = floats(x_address, s.images * s.channels * inside), floats(outs[j], s.images * s.channels * outside)
        planes, line = np.empty(w.block, np.float32), np.empty(w.line, np.float32)
        fill(planes, ZERO if pools.kinds[j] == AVERAGE else LOWEST)
        for c in range(s.channels):
            spread(planes, x, nchw(first, count, c, s.channels, inside), w, t.places, ONE, ZERO,
                   NO_FLOOR if pools.kinds[j] == AVERAGE else LOWEST)
            if pools.kinds[j] == AVERAGE:
                convolve(line, ones, planes, t, w)
            else:
                largest(line, planes, t.taps, w.length)
            row = out[first * s.channels * outside + c * size:][:size]
            from_line(row, Place(0, outside, count), line, w, ONE, ZERO)
            if pools.kinds[j] == AVERAGE:
                multiply_windows(row, pools.divisors[j])
            if moments.shape[1]:
                moments_of(moments[j, k, c], row, one_row(0), size)


@inner
def multiply_windows(row, divisors):
    for image in range(len(row) // len(divisors)):
        some = row[image * len(divisors):][:len(divisors)]
        for p in range(len(divisors)):
            some[p] *= divisors[p]


class PoolBackward(NamedTuple):
    """x, dx: addresses, NCHW. f [poolings]: addresses of the outputs; upstream [edges]: of d, nchw. scale [edges,
    poolings, C] and shift [poolings, C, 2]: df = sum_t scale_t * d_t + shift_0 * f + shift_1."""

    x: int
    dx: int
    f: np.ndarray
    upstream: np.ndarray
    scale: np.ndarray
    shift: np.ndarray


@jit
def pool_backward(tensors, pools, s, begin, end):
    """Add to dx what comes back through the poolings, and through the identity as the last one."""
    for k in range(begin, end):
        first = k * s.group
        count = min(s.group, s.images - first)
        for j in range(len(tensors.f)):
            w, t = unpack(pools.tables[j])
            inside, outside, total = w.height * w.width, w.out_height * w.out_width, s.images * s.channels
            size, ones = count * outside, np.ones(len(t.taps), np.float32)
            x, dx = floats(tensors.x, total * inside), floats(tensors.dx, total * inside)
            f, row = floats(tensors.f[j], total * outside), np.empty(size, np.float32)
            planes, gradient = np.empty(w.block, np.float32), np.empty(w.block, np.float32)
            line, values = np.zeros(w.line, np.float32), np.zeros(w.line, np.float32)
            fill(planes, LOWEST)
            for c in range(s.channels):
                fill(row, tensors.shift[j, c, 1])
                grouped = where(GROUPED, first, count, c, s.channels, outside)
                gather(row, f, grouped, outside, tensors.shift[j, c, 0], YES)
                for edge in range(len(tensors.upstream)):
                    d = floats(tensors.upstream[edge], total * outside)
                    gather(row, d, nchw(first, count, c, s.channels, outside), outside, tensors.scale[edge, j, c], YES)
                place = nchw(first, count, c, s.channels, inside)
                if pools.kinds[j] == IDENTITY:
                    for image in range(count):
                        to, some = dx[place.start + image * place.step:][:inside], row[image * inside:][:inside]
                        for p in range(inside):
                            to[p] += some[p]
                    continue
                if pools.kinds[j] == AVERAGE:
                    multiply_windows(row, pools.divisors[j])
                copy_to_line(line[w.front:], row, Place(0, outside, count), w)
                if pools.kinds[j] == AVERAGE:
                    spread_gradient(gradient, ones, line, t, w)
                else:
                    spread(planes, x, place, w, t.places, ONE, ZERO, LOWEST)
                    copy_to_line(values, f, grouped, w)
                    give_to_largest(gradient, line[w.front:], values, planes, t.taps, w.length)
                collect(dx, place, w, t.places, gradient, planes, NO, YES)
