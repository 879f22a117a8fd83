"""Tensors [N, C, H, W] cut or joined along the channels on all cores, as paddle.split and paddle.concat do on one."""
import numpy as np
import paddle

from kernels.compiled import addresses, available, floats, jit, new_tensor
from kernels.operation import Operation
from kernels.threads import on_all_cores


def split_channels(x, sizes):
    """x [N, C, H, W] as a list of tensors with so many channels each."""
    if available(x) and x.ndim == 4 and x.size and min(sizes) > 0 and sum(sizes) == x.shape[1]:
        return list(_Split(sizes)(x))
    return x.split(sizes, axis=1)


def concat_channels(tensors):
    """Tensors [N, C_k, H, W] as one, [N, sum of C_k, H, W]."""
    first = tensors[0]
    if all(available(x) and x.ndim == 4 and x.size and x.shape[:1] + x.shape[2:] == first.shape[:1] + first.shape[2:]
           for x in tensors):
        return _Concat()(*tensors)
    return paddle.concat(tensors, axis=1)


class _Split(Operation):

    def __init__(self, sizes):
        self.sizes = sizes

    def forward(self, x):
        return tuple(_parts(x, self.sizes))

    def backward(self, *gradients):
        return [_whole(gradients)]


class _Concat(Operation):

    def forward(self, *tensors):
        self.sizes = [x.shape[1] for x in tensors]
        return _whole(tensors)

    def backward(self, gradient):
        return _parts(gradient, self.sizes)


def _parts(x, sizes):
    parts = [new_tensor([x.shape[0], size, *x.shape[2:]]) for size in sizes]
    _copy_parts(x.contiguous(), parts, sizes, False)
    return parts


def _whole(tensors):
    sizes, (n, _, height, width) = [x.shape[1] for x in tensors], tensors[0].shape
    whole = new_tensor([n, sum(sizes), height, width])
    _copy_parts(whole, [x.contiguous() for x in tensors], sizes, True)
    return whole


def _copy_parts(whole, parts, sizes, joined):
    n, _, height, width = whole.shape
    ends = np.cumsum([0] + sizes) * height * width
    on_all_cores(_copy, n, whole.data_ptr(), addresses(parts), ends, n, joined)


@jit
def _copy(whole, parts, ends, images, joined, begin, end):
    """Copy the parts into the whole if `joined`, else the whole into the parts; all are addresses. In an image of the
    whole, part k lies at [ends[k], ends[k + 1])."""
    size = ends[-1]
    for image in range(begin, end):
        of_whole = floats(whole, images * size)[image * size:][:size]
        for k in range(len(parts)):
            count = ends[k + 1] - ends[k]
            one, other = floats(parts[k], images * count)[image * count:][:count], of_whole[ends[k]:][:count]
            if joined:
                for p in range(count):
                    other[p] = one[p]
            else:
                for p in range(count):
                    one[p] = other[p]
