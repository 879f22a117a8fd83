"""The networks of model_search.py and model.py as PyTorch modules, so that bench_torch.py can time PyTorch on them.

Written from the definitions of the papers that those two files name, for the sizes and cells that are timed: supernets
of DARTS and PC-DARTS for CIFAR, networks of a genotype without `none`. Attributes have the names that ours have, so
weights load by name.
"""
import torch
import torch.nn.functional as F
from torch import nn

from genotypes import PRIMITIVES

STEPS = 4  # intermediate nodes of a cell of the supernet


def conv(c_in, c_out, size, stride=1, padding=0, dilation=1, groups=1):
    return nn.Conv2d(c_in, c_out, size, stride, padding, dilation, groups, bias=False)


def separable(c, size, stride, dilation=1):
    """A depthwise and a pointwise convolution."""
    return [conv(c, c, size, stride, dilation * (size // 2), dilation, groups=c), conv(c, c, 1)]


class Block(nn.Module):
    """Layers one after the other."""

    def __init__(self, *layers):
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x):
        return self.op(x)


def relu_conv_bn(c_in, c_out, affine):
    return Block(nn.ReLU(), conv(c_in, c_out, 1), nn.BatchNorm2d(c_out, affine=affine))


class FactorizedReduce(nn.Module):
    """Two strided 1x1 convolutions, the second one shifted by a pixel, side by side."""

    def __init__(self, c_in, c_out, affine):
        super().__init__()
        self.conv_1 = conv(c_in, c_out // 2, 1, stride=2)
        self.conv_2 = conv(c_in, c_out - c_out // 2, 1, stride=2)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x):
        x = F.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class Zero(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.zeros_like(x[:, :, ::self.stride, ::self.stride])


def operation(name, c, stride, affine):
    """A candidate operation. Affine is whether its batch norms have trainable parts."""
    if name == 'none':
        return Zero(stride)
    if name == 'skip_connect':
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)
    if name == 'max_pool_3x3':
        return nn.MaxPool2d(3, stride, padding=1)
    if name == 'avg_pool_3x3':
        return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
    size = int(name[-1])
    if name.startswith('dil_conv'):
        return Block(nn.ReLU(), *separable(c, size, stride, dilation=2), nn.BatchNorm2d(c, affine=affine))
    return Block(nn.ReLU(), *separable(c, size, stride), nn.BatchNorm2d(c, affine=affine),
                 nn.ReLU(), *separable(c, size, 1), nn.BatchNorm2d(c, affine=affine))


class MixedOp(nn.Module):
    """The weighted sum of all operations; with partial > 1, of the first 1/partial of the channels."""

    def __init__(self, c, stride, partial):
        super().__init__()
        self.partial, self.stride = partial, stride
        self._ops = nn.ModuleList()
        for name in PRIMITIVES:
            op = operation(name, c // partial, stride, affine=False)
            self._ops.append(nn.Sequential(op, nn.BatchNorm2d(c // partial, affine=False)) if 'pool' in name else op)

    def forward(self, x, weights):
        mixed_channels = x.shape[1] // self.partial
        mixed = sum(weight * op(x[:, :mixed_channels]) for weight, op in zip(weights.unbind(), self._ops))
        if self.partial == 1:
            return mixed
        kept = x[:, mixed_channels:]
        if self.stride == 2:
            kept = F.max_pool2d(kept, 2, 2)
        x = torch.cat([mixed, kept], dim=1)
        return x.unflatten(1, (self.partial, mixed_channels)).transpose(1, 2).flatten(1, 2)  # shuffle


class SearchCell(nn.Module):
    def __init__(self, c_prev_prev, c_prev, c, reduction, reduction_prev, partial):
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = (FactorizedReduce(c_prev_prev, c, False) if reduction_prev
                            else relu_conv_bn(c_prev_prev, c, False))
        self.preprocess1 = relu_conv_bn(c_prev, c, False)
        self._ops = nn.ModuleList(MixedOp(c, 2 if reduction and source < 2 else 1, partial)
                                  for node in range(STEPS) for source in range(2 + node))

    def forward(self, s0, s1, weights, edge_weights):
        states, edge = [self.preprocess0(s0), self.preprocess1(s1)], 0
        for _ in range(STEPS):
            node = 0
            for state in states:
                mixed = self._ops[edge](state, weights[edge])
                node = node + (mixed if edge_weights is None else edge_weights[edge] * mixed)
                edge += 1
            states.append(node)
        return torch.cat(states[2:], dim=1)


class SearchNetwork(nn.Module):
    """The supernet. With partial > 1 it has edge weights too, as PC-DARTS has."""

    def __init__(self, c, num_classes, layers, partial):
        super().__init__()
        edges = sum(2 + node for node in range(STEPS))
        self.alphas_normal, self.alphas_reduce = [nn.Parameter(torch.zeros(edges, len(PRIMITIVES))) for _ in range(2)]
        self.betas_normal, self.betas_reduce = [nn.Parameter(torch.zeros(edges)) if partial > 1 else None
                                                for _ in range(2)]
        self.stem = nn.Sequential(conv(3, 3 * c, 3, padding=1), nn.BatchNorm2d(3 * c))
        c_prev_prev = c_prev = 3 * c
        self.cells, reduction_prev = nn.ModuleList(), False
        for number in range(layers):
            reduction = number in (layers // 3, 2 * layers // 3)
            if reduction:
                c *= 2
            self.cells.append(SearchCell(c_prev_prev, c_prev, c, reduction, reduction_prev, partial))
            c_prev_prev, c_prev, reduction_prev = c_prev, STEPS * c, reduction
        self.classifier = nn.Linear(c_prev, num_classes)

    def arch_parameters(self):
        return [parameter for name, parameter in self.named_parameters() if name.startswith(('alphas', 'betas'))]

    @staticmethod
    def _weights(alphas, betas):
        """Softmax over the operations of an edge, and over the edges that enter a node."""
        by_node = None if betas is None else betas.split([2 + node for node in range(STEPS)])
        return alphas.softmax(-1), None if betas is None else torch.cat([part.softmax(0) for part in by_node])

    def forward(self, image):
        normal = self._weights(self.alphas_normal, self.betas_normal)
        reduce = self._weights(self.alphas_reduce, self.betas_reduce)
        s0 = s1 = self.stem(image)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *(reduce if cell.reduction else normal))
        return self.classifier(s1.mean((2, 3)))


class Cell(nn.Module):
    def __init__(self, genotype, c_prev_prev, c_prev, c, reduction, reduction_prev):
        super().__init__()
        self.preprocess0 = (FactorizedReduce(c_prev_prev, c, True) if reduction_prev
                            else relu_conv_bn(c_prev_prev, c, True))
        self.preprocess1 = relu_conv_bn(c_prev, c, True)
        edges = genotype.reduce if reduction else genotype.normal
        self.concat = list(genotype.reduce_concat if reduction else genotype.normal_concat)
        self.sources = [source for _, source in edges]
        self._ops = nn.ModuleList(operation(name, c, 2 if reduction and source < 2 else 1, True)
                                  for name, source in edges)

    def forward(self, s0, s1, drop_prob):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for first in range(0, len(self._ops), 2):
            states.append(self._edge(first, states, drop_prob) + self._edge(first + 1, states, drop_prob))
        return torch.cat([states[number] for number in self.concat], dim=1)

    def _edge(self, number, states, drop_prob):
        op = self._ops[number]
        x = op(states[self.sources[number]])
        if self.training and drop_prob > 0 and not isinstance(op, nn.Identity):  # drop path
            keep = 1 - drop_prob
            x = x * (x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep) / keep)
        return x


class AuxiliaryHead(nn.Module):
    def __init__(self, c, num_classes, stride):
        super().__init__()
        self.features = nn.Sequential(nn.ReLU(), nn.AvgPool2d(5, stride), conv(c, 128, 1), nn.BatchNorm2d(128),
                                      nn.ReLU(), conv(128, 768, 2), nn.BatchNorm2d(768), nn.ReLU())
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class TrainedNetwork(nn.Module):
    """The network of a genotype, with auxiliary head; photos: with the stem for 224x224 images. Gives (logits,
    logits_aux)."""

    def __init__(self, c, num_classes, layers, genotype, photos):
        super().__init__()
        self.drop_path_prob = 0.0
        if photos:
            self.stem0 = nn.Sequential(conv(3, c // 2, 3, 2, 1), nn.BatchNorm2d(c // 2), nn.ReLU(),
                                       conv(c // 2, c, 3, 2, 1), nn.BatchNorm2d(c))
            self.stem1 = nn.Sequential(nn.ReLU(), conv(c, c, 3, 2, 1), nn.BatchNorm2d(c))
            c_prev_prev, c_prev = c, c
        else:
            self.stem = nn.Sequential(conv(3, 3 * c, 3, padding=1), nn.BatchNorm2d(3 * c))
            c_prev_prev, c_prev = 3 * c, 3 * c
        self.cells, reduction_prev, self.auxiliary_at = nn.ModuleList(), photos, 2 * layers // 3
        for number in range(layers):
            reduction = number in (layers // 3, 2 * layers // 3)
            if reduction:
                c *= 2
            self.cells.append(Cell(genotype, c_prev_prev, c_prev, c, reduction, reduction_prev))
            c_prev_prev, c_prev, reduction_prev = c_prev, len(self.cells[-1].concat) * c, reduction
            if number == self.auxiliary_at:
                self.auxiliary_head = AuxiliaryHead(c_prev, num_classes, 2 if photos else 3)
        self.classifier = nn.Linear(c_prev, num_classes)

    def forward(self, image):
        logits_aux = None
        if hasattr(self, 'stem0'):
            s0 = self.stem0(image)
            s1 = self.stem1(s0)
        else:
            s0 = s1 = self.stem(image)
        for number, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if number == self.auxiliary_at and self.training:
                logits_aux = self.auxiliary_head(s1)
        return self.classifier(s1.mean((2, 3))), logits_aux
