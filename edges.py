"""All edges that leave a state of a cell, as one compiled operation: on a CPU most of a search step is spent here.

For every edge t it computes the weighted sum of its convolutions, its poolings and its identity,

    out_t = sum_k w_tk * operation_tk(x)

as model_search.MixedOp does, but in a few passes over the images, each of which reads and writes memory once:

    1   of every convolution: ReLU, depthwise, pointwise; the mean and variance of what comes out, channel by channel
    2   of the SepConvs: batch norm (which is a scale and a shift now) and ReLU of that, depthwise, pointwise; mean and variance
    3   the sum, with batch norm and w_tk as one scale and shift

Between the passes lies only what the batch norms need to be known for. A pass goes through the images in groups, that stay in a core's own cache;
what lies between ReLU and pointwise convolution is never written to memory, the backward pass computes it again where the weights' gradient
needs it. Batch norm is linear in the gradient d of its output f_hat = (f - mean) / std, of M values a channel (Ioffe, Szegedy 2015, section 3):

    df = w / std * (d - sum(d) / M - f_hat * sum(d * f_hat) / M),    dw = sum(d * f_hat)

so one pass over the upstream gradients takes both sums, of all operations of an edge, and the next one uses df as a scale of d, a scale of f and a shift.
"""
import functools

import numpy as np
import paddle
import paddle.nn as nn

import compiled
from compiled import addresses, geometry, on_all_cores
from edge_loops import (add_up, backward_pass, forward_pass, gradient_sums, pool_backward, pool_forward, sum_groups, two_sums, update_statistics)
from operations import Identity

AVERAGE, IDENTITY = 1, 2  # 0: largest, as edge_loops.pool_backward has them


class Edges:
    """What is known of the edges that leave a state before the state is.

    operations: for each edge a list of its operations in the same order: SepConv, DilConv, poolings with their batch norm, Identity. Poolings of
    the first edge stand for those of all.
    rows, columns: where their weights lie in the matrix of a cell, that of operation k of edge t in [rows[t], columns[k]].
    """

    def __init__(self, operations, rows, columns):
        self.place = np.ix_(rows, columns)
        convolutions = [op.op for ops in operations for op in ops if hasattr(op, 'op')]
        again = [layers for layers in convolutions if len(layers) > 4]
        pools = [op for op in operations[0] if type(op) is nn.Sequential]
        self.first = [(layers[1], layers[2]) for layers in convolutions]
        self.second = [(layers[5], layers[6]) for layers in again]
        self.pools = [pool[0] for pool in pools]
        self.norms = [layers[3] for layers in convolutions] + [layers[7] for layers in again] + [pool[1] for pool in pools]
        # Everything that is kept for the way back has a row: first convolutions, second ones, poolings.
        self.twice = np.array([j for j, layers in enumerate(convolutions) if len(layers) > 4], np.int64)
        self.once = np.array([j for j, layers in enumerate(convolutions) if len(layers) == 4], np.int64)
        second = {id(layers): len(convolutions) + i for i, layers in enumerate(again)}
        row_of_pool, first = len(convolutions) + len(again), iter(range(len(convolutions)))
        self.final = np.zeros((len(operations), len(columns)), np.int64)  # the row of what goes into the sum; -1: x itself
        for t, ops in enumerate(operations):
            pool = iter(range(row_of_pool, row_of_pool + len(pools)))
            for k, op in enumerate(ops):
                if hasattr(op, 'op'):
                    self.final[t, k] = second.get(id(op.op), next(first))
                else:
                    self.final[t, k] = next(pool) if type(op) is nn.Sequential else -1
        self.layouts = {}
        self.edge_of = {int(row): t for t, rows in enumerate(self.final) for row in rows}

    def weights(self):
        return [layer.weight for pair in self.first + self.second for layer in pair]

    def applies(self, x):
        return compiled.available(x) and all(bn.training for bn in self.norms)

    def __call__(self, x, matrix):
        """x [N, C, H, W], matrix [edges of the cell, operations] -> for each edge that leaves x a tensor."""
        out = _Edges.apply(self, x, matrix, *self.weights())
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def layout(self, height, width, images):
        """The tables of geometries, of the first convolutions, the second ones and the poolings; height and width of the outputs."""
        if (height, width, images) not in self.layouts:
            first = self.table([depth for depth, _ in self.first], height, width, images)
            pools = self.table(self.pools, height, width, images)
            out = tuple(map(int, (first if len(first) else pools)[0, 6:8]))
            second = self.table([depth for depth, _ in self.second], *out, images)
            self.layouts[height, width, images] = first, second, pools, out
        return self.layouts[height, width, images]

    @staticmethod
    def table(layers, height, width, images):
        rows = [geometry(height, width, *_kernel(layer), images) for layer in layers]
        return np.stack([np.pad(row, (0, max(map(len, rows)) - len(row))) for row in rows]) if rows else np.zeros((0, 12), np.int64)


def _kernel(layer):
    """(kernel, stride, padding, dilation) of a depthwise convolution or a pooling."""
    if isinstance(layer, nn.Conv2D):
        return layer.weight.shape[2], layer._stride[0], layer._updated_padding[0], layer._dilation[0]
    return layer.ksize, layer.stride, layer.padding, 1


@functools.lru_cache(None)
def _inverse_counts(height, width, kernel, stride, padding):
    """1 / how many pixels each window of an average pooling has, without the padding, as a row."""
    def along(length):
        starts = np.arange(0, length + 2 * padding - kernel + 1, stride) - padding
        return np.minimum(starts + kernel, length) - np.maximum(starts, 0)
    return (1 / np.outer(along(height), along(width))).astype(np.float32).ravel()


def _batch_norm_backward(scale, sums, mean, inverse, count):
    """The gradient of batch norm's input f as c0 * d + c1 * f + c2, [..., C, 3]; scale: of its output, times inverse; sums [..., C, 2]: of d and
    of d * (f - mean) * inverse, over `count` values of f."""
    c1 = -scale * inverse * sums[..., 1] / count
    return np.stack(np.broadcast_arrays(scale, c1, -scale * sums[..., 0] / count - c1 * mean), -1).astype(np.float32)


class _Edges(paddle.autograd.PyLayer):

    @staticmethod
    def forward(ctx, edges, x, matrix, *weights):
        x, weights = x.contiguous(), [weight.contiguous() for weight in weights]
        n, c, h, w = x.shape
        group = compiled.group_size(n, h * w)
        first, second, pools, (out_height, out_width) = edges.layout(h, w, group)
        rows, pixels, groups = len(edges.norms), out_height * out_width, -(-n // group)
        kept = paddle.empty([rows, n * c * pixels])
        at = kept.data_ptr() + 4 * n * c * pixels * np.arange(rows)
        point = addresses(weights).reshape(-1, 2)
        # The last row is the identity's: nothing is taken off it, and it is multiplied by 1.
        mean, inverse = np.zeros((rows + 1, c), np.float32), np.ones((rows + 1, c), np.float32)
        moments, running = np.empty((rows, groups, c, 2), np.float32), np.array([addresses([bn._mean, bn._variance]) for bn in edges.norms])

        def normalize(some):
            update_statistics(moments[some], n, group, pixels, edges.norms[0]._epsilon, edges.norms[0]._momentum, running[some], mean[some], inverse[some])

        j, jj = len(first), len(first) + len(second)
        source = np.full(j, x.data_ptr())
        affine = np.tile(np.float32([1, 0]), (j, c, 1))
        on_all_cores(forward_pass, j * groups, np.column_stack([source, point[:j], at[:j]]), 1, affine, first, n, c, group, moments[:j])
        normalize(slice(0, j))
        between = np.stack([inverse[edges.twice], -mean[edges.twice] * inverse[edges.twice]], -1)
        on_all_cores(forward_pass, (jj - j) * groups, np.column_stack([at[edges.twice], point[j:], at[j:jj]]), 0, between, second, n, c, group, moments[j:jj])
        averages = np.array([isinstance(pool, nn.AvgPool2D) for pool in edges.pools], np.int64)
        counts = np.array([_inverse_counts(h, w, *_kernel(pool)[:3]) for pool in edges.pools], np.float32).reshape(-1, pixels)
        on_all_cores(pool_forward, len(pools) * groups, np.column_stack([np.full(len(pools), x.data_ptr()), at[jj:]]), averages, counts, pools, n, c, group, moments[jj:])
        normalize(slice(j, rows))

        strength = matrix.numpy()[edges.place]
        scale = strength[..., None] * inverse[edges.final]
        outs = [paddle.empty([n, c, out_height, out_width]) for _ in edges.final]
        at = np.append(at, x.data_ptr())
        on_all_cores(add_up, len(edges.final) * groups, at[edges.final], (edges.final[0] < 0).astype(np.int64), scale, -(scale * mean[edges.final]).sum(1), addresses(outs), n, c, pixels, group)
        ctx.save_for_backward(x, kept, *weights)
        ctx.edges, ctx.at, ctx.mean, ctx.inverse, ctx.strength, ctx.scale = edges, at, mean, inverse, strength, scale
        ctx.tables, ctx.between, ctx.pools, ctx.matrix_shape = (first, second, pools), between, (averages, counts), matrix.shape
        ctx.wanted = not x.stop_gradient, not matrix.stop_gradient, [not weight.stop_gradient for weight in weights]
        return tuple(outs) if len(outs) > 1 else outs[0]

    @staticmethod
    def backward(ctx, *ds):
        ds = [d.contiguous() for d in ds]
        edges, at, mean, inverse = ctx.edges, ctx.at, ctx.mean, ctx.inverse
        x, kept, *weights = ctx.saved_tensor()
        x_wanted, matrix_wanted, weights_wanted = ctx.wanted
        n, c, h, w = x.shape
        pixels = ds[0].shape[2] * ds[0].shape[3]
        group = compiled.group_size(n, h * w)
        groups, count = -(-n // group), n * pixels
        final, nchw = edges.final, (edges.final[0] < 0).astype(np.int64)
        sums = np.empty(final.shape + (groups, c, 2), np.float32)
        on_all_cores(gradient_sums, len(final) * groups, at[final], nchw, mean[final], inverse[final], addresses(ds), n, c, pixels, group, sums)
        sums = sums.sum(2, dtype=np.float64)
        dmatrix = None
        if matrix_wanted:
            dmatrix = np.zeros(ctx.matrix_shape, np.float32)
            dmatrix[edges.place] = sums[..., 1].sum(-1)
            dmatrix = paddle.to_tensor(dmatrix)
        coefficients = np.zeros(inverse.shape + (3,), np.float32)
        coefficients[final] = _batch_norm_backward(ctx.scale, sums, mean[final], inverse[final], count)
        dx = paddle.zeros(x.shape) if x_wanted else None
        dweights = _Edges.convolutions(ctx, ds, coefficients, dx) if x_wanted or any(weights_wanted) else [None] * len(weights)
        if x_wanted:
            _Edges.others(ctx, ds, sums, dx)
        return (dx, dmatrix) + tuple(dweight if wanted else None for dweight, wanted in zip(dweights, weights_wanted))

    @staticmethod
    def convolutions(ctx, ds, coefficients, dx):
        """Add the gradient of x through the convolutions to dx, if there is one; those of the weights."""
        edges, at, mean, inverse = ctx.edges, ctx.at, ctx.mean, ctx.inverse
        x, kept, *weights = ctx.saved_tensor()
        n, c, h, w = x.shape
        group = compiled.group_size(n, h * w)
        groups, pixels = -(-n // group), ds[0].shape[2] * ds[0].shape[3]
        first, second, _ = ctx.tables
        j, jj, point = len(first), len(first) + len(second), addresses(weights).reshape(-1, 2)
        wanted = np.array([1, any(ctx.wanted[2])])
        d_of = np.array([ds[edges.edge_of.get(row, 0)].data_ptr() for row in range(jj)], np.int64)
        gradients = [paddle.empty(weight.shape) for weight in weights] if wanted[1] else []
        into = addresses(gradients).reshape(-1, 2)

        def go_back(memory, nchw, affine, jobs, coefficients, tables, wanted, into):
            kernels = c * tables[:, 10]
            starts = np.stack([0 * kernels, kernels, kernels + c * c], -1)
            dweights = np.zeros((groups, len(tables), starts.max() if wanted[1] else 0), np.float32)
            sums = np.zeros((len(tables), groups, c, 2), np.float32)
            on_all_cores(backward_pass, groups, np.column_stack(memory), nchw, affine, mean[jobs], inverse[jobs], coefficients, tables, n, c, group, wanted, dweights, sums)
            if wanted[1]:
                on_all_cores(sum_groups, len(tables), dweights, starts, into)
            return sums.sum(1, dtype=np.float64)

        middle = paddle.empty([len(second), n * c * pixels])
        d_middle = middle.data_ptr() + 4 * n * c * pixels * np.arange(len(second))
        if len(second):
            sums = go_back([at[edges.twice], point[j:], at[j:jj], d_of[j:], d_middle], (0, np.ones(len(second), np.int64)), ctx.between, edges.twice,
                           coefficients[j:jj], second, wanted, into[j:])
            coefficients[edges.twice] = _batch_norm_backward(inverse[edges.twice], sums, mean[edges.twice], inverse[edges.twice], n * pixels)
            d_of[edges.twice] = d_middle
        if len(first):
            nchw = np.ones(j, np.int64)
            nchw[edges.twice] = 0
            wanted = np.array([dx is not None, wanted[1]])
            target = np.full(j, dx.data_ptr() if wanted[0] else 0)
            go_back([np.full(j, x.data_ptr()), point[:j], at[:j], d_of[:j], target], (1, nchw), np.tile(np.float32([1, 0]), (j, c, 1)),
                    np.arange(j), coefficients[:j], first, wanted, into[:j])
        return gradients or [None] * len(weights)

    @staticmethod
    def others(ctx, ds, sums, dx):
        """Add the gradient of x through the poolings and the identity to dx."""
        edges, mean, inverse = ctx.edges, ctx.mean, ctx.inverse
        x = ctx.saved_tensor()[0]
        n, c, h, w = x.shape
        pixels = ds[0].shape[2] * ds[0].shape[3]
        rows = edges.final[0]
        columns = [k for k, row in enumerate(rows) if row >= len(edges.norms) - len(edges.pools)] + [k for k, row in enumerate(rows) if row < 0]
        if not columns:
            return
        rows, averages, counts = rows[columns], *ctx.pools
        together = (ctx.strength[:, columns, None, None] * sums[:, columns]).sum(0)
        coefficients = _batch_norm_backward(inverse[rows], together, mean[rows], inverse[rows], n * pixels)
        coefficients[rows < 0] = 0
        identities = len(columns) - len(averages)
        tables = ctx.tables[2] if len(averages) else ctx.tables[0]  # of the identity only its pixels count
        tables = np.concatenate([tables[:len(averages)], np.repeat(tables[:1], identities, axis=0)])
        on_all_cores(pool_backward, -(-n // compiled.group_size(n, h * w)), np.column_stack([np.full(len(rows), x.data_ptr()), ctx.at[rows], np.full(len(rows), dx.data_ptr())]),
                      np.append(averages, np.full(identities, IDENTITY)), np.concatenate([counts, np.zeros((identities, pixels), np.float32)]),
                      coefficients, np.ascontiguousarray(ctx.scale[:, columns]), addresses(ds), tables, n, c, compiled.group_size(n, h * w))
