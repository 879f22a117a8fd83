"""The search network (supernet): every edge of a cell is a mixture of all operations, weighted by architecture parameters.

Read it from below: `Network` stacks `Cell`s, a cell joins its states by `MixedOp`s, a mixed operation adds up the operations
of operations.py. A method, a class such as `DARTS`, says how architecture parameters become the weights of that sum; it is where
differentiable search methods differ.

    DARTS     Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019
    PC-DARTS  Xu et al.: PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search, ICLR 2020
    GDAS, DrNAS, FairDARTS, DARTS-: see their classes

To search a space of your own, change PRIMITIVES, Cell or Network; the searcher asks a network only for `arch_parameters()`,
`_loss(image, label)`, `genotype()` and being callable on a batch of images.
"""
import math

import numpy as np
import paddle
import paddle.nn as nn
import paddle.nn.functional as F
from paddle.nn.initializer import Normal

import genotypes
from genotypes import PRIMITIVES, Genotype
from nas import acceleration as fast
from operations import OPS, FactorizedReduce, ReLUConvBN, batch_norm, conv2d, linear
from runtime.errors import UserError

# ---------------------------------------------------------------------------------------------------------------------
# Methods: how architecture parameters become weights, and what is added to the loss
# ---------------------------------------------------------------------------------------------------------------------


class DARTS:
    """Softmax over the operations of an edge (Liu et al. 2019, equation 2); every edge counts the same.

    The other methods are this one with something changed. A method of your own: a subclass here, named in METHODS.
    """

    name = 'DARTS'
    partial = 1  # 1/partial of the channels pass the mixed operation
    with_betas = False  # whether edges have architecture parameters too
    sampled = False  # whether operation_weights gives one operation of each edge the weight 1, so that it alone is computed
    auxiliary_skip = False  # whether an edge has one more skip connection, of weight skip_weight
    skip_weight = 0.0
    progress = 0.0  # of the search, from 0 in its first epoch to 1 in its last; the searcher sets it

    def operation_weights(self, alphas):
        """alphas [edges, operations] -> the weights of the operations, [edges, operations]."""
        return F.softmax(alphas, axis=-1)

    def strengths(self, alphas):
        """alphas [edges, operations] -> how strong each operation is for the genotype, and for scoring the network."""
        return F.softmax(alphas, axis=-1)

    def edge_weights(self, betas, steps):
        """betas [edges] -> the weights of the edges, [edges], or None where edges have none."""
        return None

    def regularizer(self, alphas):
        """What is added to the loss, a scalar, for a list of alphas [edges, operations]; 0 for nothing."""
        return 0.0

    def derive(self, strengths, steps):
        """The cell that strengths [edges, operations], nested lists, stand for."""
        return genotypes.derive_cell(strengths, PRIMITIVES, steps)


class PCDARTS(DARTS):
    """Partial channel connections (Xu et al. 2020, section 3.2) with edge normalisation (section 3.3, equation 3)."""

    name = 'PC-DARTS'
    partial = 4  # K = 4 for CIFAR-10 and ImageNet, section 4.1
    with_betas = True

    def edge_weights(self, betas, steps):
        """Softmax over the edges that enter a node; node i has i + 2 of them."""
        return paddle.concat([F.softmax(node, axis=-1) for node in betas.split([i + 2 for i in range(steps)])])


class GDAS(DARTS):
    """Gumbel-softmax with a hard sample (Dong, Yang: Searching for a Robust Neural Architecture in Four GPU Hours, CVPR 2019,
    equations 3 to 6).

    h = softmax((log softmax(alpha) + o) / tau) with o = -log(-log u), u uniform; forward, the largest h of an edge is 1 and the others are 0;
    backward, the gradient is h's. tau falls linearly from 10 to 0.1 (section 4.1).
    """

    name = 'GDAS'
    sampled = True
    tau_max, tau_min = 10.0, 0.1

    def operation_weights(self, alphas):
        tau = self.tau_max - (self.tau_max - self.tau_min) * self.progress
        gumbel = -paddle.log(-paddle.log(paddle.uniform(alphas.shape, alphas.dtype, 1e-9, 1 - 1e-7)))
        soft = F.softmax((F.log_softmax(alphas, axis=-1) + gumbel) / tau, axis=-1)
        hard = F.one_hot(soft.argmax(-1), alphas.shape[-1]).astype(soft.dtype)
        return hard - soft.detach() + soft


class DrNAS(DARTS):
    """Weights drawn from a Dirichlet distribution (Chen et al.: DrNAS: Dirichlet Neural Architecture Search, ICLR 2021, section 3.1).

    theta ~ Dir(beta), beta = elu(alpha) + 1. A draw is g / sum(g) with g_k ~ Gamma(beta_k), taken as the inverse of Gamma's distribution function at
    a uniform number, so that its derivative by beta at that number is the pathwise gradient. Added to the loss: 0.001 times the Kullback-Leibler
    divergence from Dir(1), summed over the edges, mean over the cells.
    """

    name = 'DrNAS'
    regularization = 1e-3

    def concentration(self, alphas):
        return F.elu(alphas) + 1

    def operation_weights(self, alphas):
        from scipy.special import gammaincinv  # scipy comes with scikit-learn
        beta = self.concentration(alphas)
        b = np.maximum(beta.numpy().astype('float64'), 1e-3)
        u = paddle.uniform(alphas.shape, alphas.dtype, 1e-6, 1 - 1e-6).numpy().astype('float64')
        h = 1e-4 * b
        value, slope = gammaincinv(b, u) + 1e-12, (gammaincinv(b + h, u) - gammaincinv(b - h, u)) / (2 * h)
        draw = paddle.to_tensor(value, alphas.dtype) + paddle.to_tensor(slope, alphas.dtype) * (beta - beta.detach())
        return draw / draw.sum(-1, keepdim=True)

    def strengths(self, alphas):
        beta = self.concentration(alphas)
        return beta / beta.sum(-1, keepdim=True)

    def regularizer(self, alphas):
        """KL(Dir(beta) || Dir(1)) = lgamma(B) - sum lgamma(beta_k) - lgamma(K) + sum (beta_k - 1) (digamma(beta_k) - digamma(B))."""
        divergences = []
        for beta in map(self.concentration, alphas):
            total = beta.sum(-1, keepdim=True)
            divergences.append((paddle.lgamma(total).squeeze(-1) - paddle.lgamma(beta).sum(-1) - math.lgamma(beta.shape[-1])
                                + ((beta - 1) * (paddle.digamma(beta) - paddle.digamma(total))).sum(-1)).sum())
        return self.regularization * sum(divergences) / len(divergences)


class FairDARTS(DARTS):
    """Independent operations (Chu et al.: Fair DARTS, ECCV 2020): sigmoid in place of softmax (equation 2), and the zero-one loss
    -1/N sum (sigmoid(alpha) - 0.5)^2 over all N alphas, times 10 (equation 3, section 4.1).

    A node keeps its two strongest edges, but no operation below the threshold 0.85 (section 3.3): that edge is `none`. Where a node would have no
    input at all, its strongest edge stays.
    """

    name = 'FairDARTS'
    threshold, zero_one_weight = 0.85, 10.0

    def operation_weights(self, alphas):
        return F.sigmoid(alphas)

    strengths = operation_weights

    def regularizer(self, alphas):
        count = sum(alpha.size for alpha in alphas)
        return -self.zero_one_weight * sum((F.sigmoid(alpha) - 0.5).square().sum() for alpha in alphas) / count

    def derive(self, strengths, steps):
        cell = super().derive(strengths, steps)
        for i, (operation, state) in enumerate(cell):
            node, first = i // 2, i % 2 == 0  # the stronger edge of a node comes first
            strength = strengths[sum(range(2, 2 + node)) + state][PRIMITIVES.index(operation)]
            if strength < self.threshold and not first:
                cell[i] = ('none', state)
        return cell


class DARTSMinus(DARTS):
    """An auxiliary skip connection beside every mixed operation (Chu et al.: DARTS-, ICLR 2021, equation 5): beta x + sum p_o o(x). beta falls
    from 1 to 0 along a cosine over the search; the genotype doesn't see it.
    """

    name = 'DARTS-'
    auxiliary_skip = True

    @property
    def skip_weight(self):
        return (1 + math.cos(math.pi * self.progress)) / 2


METHODS = {method.name: method for method in (DARTS, PCDARTS, GDAS, DrNAS, FairDARTS, DARTSMinus)}


# ---------------------------------------------------------------------------------------------------------------------
# The supernet
# ---------------------------------------------------------------------------------------------------------------------


class MixedOp(nn.Layer):
    """The weighted sum of all operations on an edge.

    With partial > 1, only the first C/partial channels pass the operations; the others are kept as they are (max-pooled 2x2
    where the edge strides), and the channels are shuffled so that the next mixed operation sees other ones.
    """

    def __init__(self, c, stride, partial, auxiliary_skip=False):
        super().__init__()
        self.partial = partial
        self.auxiliary_op = OPS['skip_connect'](c // partial, stride, False) if auxiliary_skip else None
        self.mp = nn.MaxPool2D(2, 2, ceil_mode=True) if stride == 2 else None
        self._ops = nn.LayerList()
        for primitive in PRIMITIVES:
            op = OPS[primitive](c // partial, stride, False)
            if 'pool' in primitive:
                op = nn.Sequential(op, batch_norm(c // partial, affine=False))
            self._ops.append(op)

    def forward(self, x, weights, chosen=None, skip_weight=0.0):
        """x [N, C, H, W], weights [operations] -> [N, C, H / stride, W / stride].

        chosen: the one operation to compute; its weight is 1 and those of the others are 0, but have gradients. skip_weight: of the
        auxiliary skip connection.
        """
        if self.partial == 1:
            return self.mix(x, weights, chosen, skip_weight)
        c = x.shape[1] // self.partial
        mixed, kept = self.mix(x[:, :c], weights, chosen, skip_weight), x[:, c:]
        if self.mp is not None:
            kept = self.mp(kept)
        return F.channel_shuffle(paddle.concat([mixed, kept], axis=1), self.partial)

    def mix(self, x, weights, chosen, skip_weight):
        if chosen is not None:  # as in the authors' code, each other weight is added to all of the output
            mixed = sum(w * self._ops[k](x) if k == chosen else w for k, w in enumerate(weights.unbind()))
        else:
            mixed = sum(w * op(x) for w, op in zip(weights.unbind(), self._ops))
        return mixed if self.auxiliary_op is None else mixed + skip_weight * self.auxiliary_op(x)


class Cell(nn.Layer):
    """A cell: `steps` intermediate nodes, each the sum of the mixed edges from all states before it.

    Its two inputs are brought to c channels first (preprocess0, preprocess1); the output is the concatenation of the last
    `multiplier` states, multiplier * c channels.
    """

    def __init__(self, steps, multiplier, c_prev_prev, c_prev, c, reduction, reduction_prev, method, allow_fast=True):
        super().__init__()
        self.method = method
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
                self._ops.append(MixedOp(c, stride, method.partial, method.auxiliary_skip))
        self.by_state = fast.ByState(self._ops, steps) if allow_fast and fast.applies(self._ops, method) else None
        if self.by_state and not fast.agrees(self, len(PRIMITIVES)):
            self.by_state = None

    def forward(self, s0, s1, weights, edge_weights, chosen):
        """weights [edges, operations]; edge_weights [edges] or None; chosen: for each edge the number of the operation to compute, or None for
        all. Returns [N, multiplier * C, H, W]."""
        if self.by_state:  # the same numbers in less time; below is what they are
            states = [fast.preprocess(self.preprocess0, s0), fast.preprocess(self.preprocess1, s1)]
            return paddle.concat(self.by_state.states(*states, weights, edge_weights)[-self._multiplier:], axis=1)
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(self._steps):
            node = 0
            for state in states:
                mixed = self._ops[edge](state, weights[edge], chosen[edge], self.method.skip_weight)
                node += mixed if edge_weights is None else edge_weights[edge] * mixed
                edge += 1
            states.append(node)
        return paddle.concat(states[-self._multiplier:], axis=1)


class Network(nn.Layer):
    """The supernet.

    c_in: the initial channels C; reduction cells at layers // 3 and 2 * layers // 3 double them.
    num_classes, layers: the classes of the data, the number of cells.
    method: a name of METHODS.
    steps, multiplier: intermediate nodes of a cell, and how many of the last ones its output concatenates.
    stem_multiplier: the stem gives stem_multiplier * c_in channels.
    allow_fast: False computes every edge by itself, as it is written here, and not by fast.py.

    Raises UserError for an unknown method and for channels that the method can't divide.
    """

    def __init__(self, c_in, num_classes, layers, method, steps=4, multiplier=4, stem_multiplier=3, allow_fast=True):
        super().__init__()
        if method not in METHODS:
            raise UserError("--method: '{}' is not allowed: give one of {}".format(method, ', '.join(METHODS)))
        self.method = METHODS[method]()
        partial = self.method.partial
        if c_in % partial:
            raise UserError(f'--init_channels: {c_in} is not allowed: {method} passes 1/{partial} of the channels through an edge, '
                            f'give a multiple of {partial}')
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
            self.cells.append(Cell(steps, multiplier, c_prev_prev, c_prev, c, reduction, reduction_prev, self.method,
                                   allow_fast))
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
        """The weights of a kind of cell: operations [edges, operations] and edges [edges] (None without betas).

        While the network is scored, a method's strengths are taken in place of a draw.
        """
        alphas = self.alphas_reduce if reduction else self.alphas_normal
        betas = None
        if self.method.with_betas:
            betas = self.betas_reduce if reduction else self.betas_normal
        weights = self.method.operation_weights(alphas) if self.training else self.method.strengths(alphas)
        if self.method.sampled and not self.training:
            weights = F.one_hot(weights.argmax(-1), weights.shape[-1])
        return weights, self.method.edge_weights(betas, self._steps)

    def set_progress(self, progress):
        """Tell the method how far the search is, from 0 to 1; the searcher calls it before every epoch."""
        self.method.progress = progress

    def forward(self, image):
        """image [N, 3, H, W] -> logits [N, num_classes]."""
        weights = {}
        for reduction in (False, True):
            operations, edges = self._weights(reduction)
            chosen = operations.argmax(-1).tolist() if self.method.sampled else [None] * operations.shape[0]
            weights[reduction] = operations, edges, chosen
        s0 = s1 = self.stem(image)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *weights[cell.reduction])
        return self.classifier(self.global_pooling(s1).flatten(1))

    def _loss(self, image, label):
        """The mean cross-entropy of a batch, image [N, 3, H, W], label [N] or [N, 1], and what the method adds."""
        return F.cross_entropy(self(image), label) + self.method.regularizer([self.alphas_normal, self.alphas_reduce])

    @paddle.no_grad()
    def strengths(self):
        """How strong each operation of the normal and of the reduction cell is, two tensors [edges, operations]."""
        strengths = [self.method.strengths(alphas) for alphas in (self.alphas_normal, self.alphas_reduce)]
        if self.method.with_betas:
            betas = [self.method.edge_weights(betas, self._steps) for betas in (self.betas_normal, self.betas_reduce)]
            strengths = [s * beta.unsqueeze(-1) for s, beta in zip(strengths, betas)]
        return strengths

    def genotype(self):
        """The genotype that the present architecture parameters stand for."""
        cells = [self.method.derive(strengths.tolist(), self._steps) for strengths in self.strengths()]
        concat = range(2 + self._steps - self._multiplier, 2 + self._steps)
        return Genotype(normal=cells[0], normal_concat=concat, reduce=cells[1], reduce_concat=concat)
