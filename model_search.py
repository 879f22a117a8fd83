"""The search network (supernet): every edge of a cell is a mixture of all operations, weighted by architecture parameters.

Read it from below: `Network` stacks `Cell`s, a cell joins its states by `MixedOp`s, a mixed operation adds up the operations
of operations.py. A `Method` says how architecture parameters become the weights of that sum; it is the place where
differentiable search methods differ.

    DARTS     Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019
    PC-DARTS  Xu et al.: PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search, ICLR 2020

To search a space of your own, change PRIMITIVES, Cell or Network; the searcher asks a network only for `arch_parameters()`,
`_loss(image, label)`, `genotype()` and being callable on a batch of images.
"""
import paddle
import paddle.nn as nn
import paddle.nn.functional as F
from paddle.nn.initializer import Normal

import genotypes
from genotypes import PRIMITIVES, Genotype
from operations import OPS, FactorizedReduce, ReLUConvBN, batch_norm, conv2d, linear
from utility import UserError


class DARTS:
    """Softmax over the operations of an edge (DARTS, equation 2); every edge counts the same."""

    name = 'DARTS'
    partial = 1  # 1/partial of the channels pass the mixed operation
    with_betas = False

    def operation_weights(self, alphas):
        """alphas [edges, operations] -> the weights of the operations, [edges, operations]."""
        return F.softmax(alphas, axis=-1)

    def edge_weights(self, betas, steps):
        """betas [edges] -> the weights of the edges, [edges], or None where edges have none."""
        return None


class PCDARTS(DARTS):
    """Partial channel connections (PC-DARTS, section 3.2) with edge normalisation (section 3.3, equation 3)."""

    name = 'PC-DARTS'
    partial = 4  # K = 4 for CIFAR-10 and ImageNet, section 4.1
    with_betas = True

    def edge_weights(self, betas, steps):
        """Softmax over the edges that enter a node; node i has i + 2 of them."""
        return paddle.concat([F.softmax(node, axis=-1) for node in betas.split([i + 2 for i in range(steps)])])


METHODS = {method.name: method for method in (DARTS, PCDARTS)}


class MixedOp(nn.Layer):
    """The weighted sum of all operations on an edge.

    With partial > 1, only the first C/partial channels pass the operations; the others are kept as they are (max-pooled 2x2
    where the edge strides), and the channels are shuffled so that the next mixed operation sees other ones.
    """

    def __init__(self, c, stride, partial):
        super().__init__()
        self.partial = partial
        self.mp = nn.MaxPool2D(2, 2, ceil_mode=True) if stride == 2 else None
        self._ops = nn.LayerList()
        for primitive in PRIMITIVES:
            op = OPS[primitive](c // partial, stride, False)
            if 'pool' in primitive:
                op = nn.Sequential(op, batch_norm(c // partial, affine=False))
            self._ops.append(op)

    def forward(self, x, weights):
        """x [N, C, H, W], weights: a scalar tensor for each operation -> [N, C, H / stride, W / stride]."""
        if self.partial == 1:
            return self.mix(x, weights)
        c = x.shape[1] // self.partial
        mixed, kept = self.mix(x[:, :c], weights), x[:, c:]
        if self.mp is not None:
            kept = self.mp(kept)
        return F.channel_shuffle(paddle.concat([mixed, kept], axis=1), self.partial)

    def mix(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self._ops))


class Cell(nn.Layer):
    """A cell: `steps` intermediate nodes, each the sum of the mixed edges from all states before it.

    Its two inputs are brought to c channels first (preprocess0, preprocess1); the output is the concatenation of the last
    `multiplier` states, multiplier * c channels.
    """

    def __init__(self, steps, multiplier, c_prev_prev, c_prev, c, reduction, reduction_prev, partial):
        super().__init__()
        self.reduction = reduction
        self._steps = steps
        self._multiplier = multiplier
        if reduction_prev:  # cell k-2 is twice as large as cell k-1
            self.preprocess0 = FactorizedReduce(c_prev_prev, c, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(c_prev_prev, c, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(c_prev, c, 1, 1, 0, affine=False)
        self._ops = nn.LayerList()
        for i in range(steps):
            for j in range(2 + i):
                stride = 2 if reduction and j < 2 else 1
                self._ops.append(MixedOp(c, stride, partial))

    def forward(self, s0, s1, weights, edge_weights):
        """weights: for each edge a list of scalar tensors; edge_weights: a scalar tensor for each edge, or None."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(self._steps):
            node = 0
            for state in states:
                mixed = self._ops[edge](state, weights[edge])
                node += mixed if edge_weights is None else edge_weights[edge] * mixed
                edge += 1
            states.append(node)
        return paddle.concat(states[-self._multiplier:], axis=1)


class Network(nn.Layer):
    """The supernet.

    c_in: the initial channels C; reduction cells at layers // 3 and 2 * layers // 3 double them.
    num_classes, layers: the classes of the data, the number of cells.
    method: 'DARTS' or 'PC-DARTS'.
    steps, multiplier: intermediate nodes of a cell, and how many of the last ones its output concatenates.
    stem_multiplier: the stem gives stem_multiplier * c_in channels.

    Raises UserError for an unknown method and for channels that the method can't divide.
    """

    def __init__(self, c_in, num_classes, layers, method, steps=4, multiplier=4, stem_multiplier=3):
        super().__init__()
        if method not in METHODS:
            raise UserError("--method: '{}' is not allowed: give one of {}".format(method, ', '.join(METHODS)))
        self.method = METHODS[method]()
        partial = self.method.partial
        if c_in % partial:
            raise UserError('--init_channels: {} is not allowed: {} passes 1/{} of the channels through an edge, '
                            'give a multiple of {}'.format(c_in, method, partial, partial))
        self._steps = steps
        self._multiplier = multiplier
        self._init_arch_parameters()

        c = stem_multiplier * c_in
        self.stem = nn.Sequential(conv2d(3, c, 3, padding=1), batch_norm(c))
        c_prev_prev, c_prev, c = c, c, c_in
        self.cells = nn.LayerList()
        reduction_prev = False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            if reduction:
                c *= 2
            self.cells.append(Cell(steps, multiplier, c_prev_prev, c_prev, c, reduction, reduction_prev, partial))
            reduction_prev = reduction
            c_prev_prev, c_prev = c_prev, multiplier * c
        self.global_pooling = nn.AdaptiveAvgPool2D(1)
        self.classifier = linear(c_prev, num_classes)

    def _init_arch_parameters(self):
        edges = sum(2 + i for i in range(self._steps))

        def parameter(*shape):
            return self.create_parameter(list(shape), default_initializer=Normal(0.0, 1e-3))

        self.alphas_normal = parameter(edges, len(PRIMITIVES))
        self.alphas_reduce = parameter(edges, len(PRIMITIVES))
        if self.method.with_betas:
            self.betas_normal = parameter(edges)
            self.betas_reduce = parameter(edges)

    def arch_parameters(self):
        """The architecture parameters: alphas [edges, operations], normal and reduce, then betas [edges] if there are any."""
        alphas = [self.alphas_normal, self.alphas_reduce]
        return alphas + ([self.betas_normal, self.betas_reduce] if self.method.with_betas else [])

    def _weights(self, reduction):
        """The weights of a kind of cell: operations [edges, operations] and edges [edges] (None without betas)."""
        alphas = self.alphas_reduce if reduction else self.alphas_normal
        betas = None
        if self.method.with_betas:
            betas = self.betas_reduce if reduction else self.betas_normal
        return self.method.operation_weights(alphas), self.method.edge_weights(betas, self._steps)

    def forward(self, image):
        """image [N, 3, H, W] -> logits [N, num_classes]."""
        # Weights are cut into scalars here, once for all cells of a kind, not once a cell.
        scalars = {}
        for reduction in (False, True):
            weights, edge_weights = self._weights(reduction)
            scalars[reduction] = ([row.unbind() for row in weights.unbind()],
                                  None if edge_weights is None else edge_weights.unbind())
        s0 = s1 = self.stem(image)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *scalars[cell.reduction])
        return self.classifier(self.global_pooling(s1).flatten(1))

    def _loss(self, image, label):
        """The mean cross-entropy of a batch, image [N, 3, H, W], label [N] or [N, 1]."""
        return F.cross_entropy(self(image), label)

    def genotype(self):
        """The genotype that the present architecture parameters stand for."""
        cells = []
        with paddle.no_grad():
            for reduction in (False, True):
                weights, edge_weights = self._weights(reduction)
                if edge_weights is not None:
                    weights = weights * edge_weights.unsqueeze(-1)
                cells.append(genotypes.derive_cell(weights.tolist(), PRIMITIVES, self._steps))
        concat = range(2 + self._steps - self._multiplier, 2 + self._steps)
        return Genotype(normal=cells[0], normal_concat=concat, reduce=cells[1], reduce_concat=concat)
