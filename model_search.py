"""The supernet of differentiable architecture search: each edge of a cell is a weighted sum of all candidate
operations.

`Network` stacks `Cell`s, a cell connects its states by `MixedOp`s, a mixed operation adds up the operations of
operations.py (DARTS, section 2.1 and 2.2). How architecture parameters become the weights of that sum is up to the
method, an object of nas/methods.py.

To search a space of your own, change PRIMITIVES in genotypes.py, OPS in operations.py, or the classes below. The
searcher asks a network only for `arch_parameters()`, `_loss(image, label)`, `genotype()` and for being callable on a
batch of images.
"""
import collections

import paddle
import paddle.nn as nn
import paddle.nn.functional as F
from paddle.nn.initializer import Constant, Normal, Uniform

from genotypes import Genotype, edge_number
from nas.methods import DARTS, make_method
from operations import OPS, FactorizedReduce, ReLUConvBN, WeightedSum, batch_norm, conv2d, linear


class MixedOp(nn.Layer):
    """The weighted sum of all candidate operations on an edge (DARTS, equation 2).

    With method.partial = K > 1, only the first C / K channels pass through the operations; the other channels are kept
    (max-pooled 2x2 where the edge has stride 2), and the channels are shuffled in K groups (PC-DARTS, section 3.2).
    """

    def __init__(self, c, stride, method):
        super().__init__()
        self.method = method
        self.c, self.stride = c, stride
        method.check_channels(c, 'channels', [method.partial])
        c //= method.partial
        self.auxiliary_op = OPS['skip_connect'](c, stride, False) if method.auxiliary_skip else None
        self.mp = nn.MaxPool2D(2, 2, ceil_mode=True) if stride == 2 else None
        self._ops = WeightedSum([self.operation(primitive, c) for primitive in method.primitives])

    def operation(self, primitive, c):
        """The layer of a candidate operation for c channels."""
        op = OPS[primitive](c, self.stride, False)
        is_pool = isinstance(op, (nn.AvgPool2D, nn.MaxPool2D))  # the convolutions end in a batch norm already
        return nn.Sequential(op, batch_norm(c, affine=False)) if is_pool and self.method.pool_norm else op

    def forward(self, x, weights, active=None):
        """x [N, C, H, W], weights [operations] -> [N, C, H / stride, W / stride].

        active: the columns of the operations to compute; None for all.
        """
        partial = self.method.partial
        if partial == 1:
            return self.mix(x, weights, active)
        c = x.shape[1] // partial
        mixed, kept = self.mix(x[:, :c], weights, active), x[:, c:]
        if self.mp is not None:
            kept = self.mp(kept)
        return F.channel_shuffle(paddle.concat([mixed, kept], axis=1), partial)

    def mix(self, x, weights, active):
        """The weighted sum of the operations on x, [N, C / partial, H, W]; arguments as in forward."""
        if active is None:
            mixed = self._ops(x, weights)
        else:
            weights = weights.unbind()
            mixed = sum(weights[column] * self._ops[column](x) for column in active)
        if self.auxiliary_op is not None:
            mixed = mixed + self.method.skip_weight * self.auxiliary_op(x)
        return mixed


class Cell(nn.Layer):
    """A cell with `steps` intermediate nodes, each the sum of the mixed operations on the edges from all states before
    it.

    The two inputs are projected to c channels (preprocess0, preprocess1); the output concatenates the last
    `multiplier` nodes and has multiplier * c channels.
    """

    def __init__(self, steps, multiplier, c_prev_prev, c_prev, c, reduction, reduction_prev, method):
        super().__init__()
        self.reduction = reduction
        self._steps = steps
        self._multiplier = multiplier
        if reduction_prev:  # the output of cell k-2 is twice as high and wide as that of cell k-1
            self.preprocess0 = FactorizedReduce(c_prev_prev, c, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(c_prev_prev, c, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(c_prev, c, 1, 1, 0, affine=False)
        self._ops = nn.LayerList()
        for node in range(steps):
            for source in range(2 + node):
                self._ops.append(MixedOp(c, 2 if reduction and source < 2 else 1, method))

    def forward(self, s0, s1, weights, edge_weights=None, active=None):
        """s0, s1: the outputs of the two cells before this one. Returns [N, multiplier * C, H, W].

        weights [edges, operations]; edge_weights [edges], None without; active: for each edge the columns of the
        operations to compute, None for all.
        """
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(self._steps):
            node = 0
            for state in states:
                mixed = self._ops[edge](state, weights[edge], None if active is None else active[edge])
                node += mixed if edge_weights is None else edge_weights[edge] * mixed
                edge += 1
            states.append(node)
        return paddle.concat(states[-self._multiplier:], axis=1)


class GraphCell(nn.Layer):
    """A cell of another search space, with one input: each node is the sum of the mixed operations on the edges that
    enter it, the last node is the output. examples/own_space.py and examples/nasbench201.py use it.

    graph: (node, source) of each edge, ordered by node; the input is node 0.
    make_edge: a function without arguments that returns a MixedOp.

    Raises ValueError for edges in another order, and for nodes that no edge enters or leaves.
    """

    def __init__(self, graph, make_edge):
        super().__init__()
        self.graph = [tuple(edge) for edge in graph]
        self.check_graph()
        self.edges = nn.LayerList([make_edge() for _ in self.graph])

    def check_graph(self):
        """Raise ValueError for a graph that is not allowed."""
        nodes, sources = [node for node, _ in self.graph], {source for _, source in self.graph}
        count = max(nodes, default=0)
        if (not nodes or nodes != sorted(nodes) or set(nodes) != set(range(1, 1 + count))
                or sources != set(range(count)) or any(source >= node for node, source in self.graph)):
            raise ValueError(f'{self.graph}: give (node, source) of each edge, ordered by node; nodes are 1, 2, …, '
                             'source is an earlier node or 0, the input, and every node but the last one is a source')

    def forward(self, x, weights, edge_weights=None, active=None):
        """x [N, C, H, W] -> the last node; the other arguments as of Cell.forward."""
        self.check_graph()  # it may have been changed
        if len(weights) != len(self.graph):
            raise ValueError(f'{len(weights)} rows of weights for {len(self.graph)} edges')
        states = [x] + [0] * self.graph[-1][0]
        for number, (node, source) in enumerate(self.graph):
            mixed = self.edges[number](states[source], weights[number], None if active is None else active[number])
            states[node] += mixed if edge_weights is None else edge_weights[number] * mixed
        return states[-1]


def edge_counts(graph):
    """How many edges enter each node of a GraphCell, for the methods' `edge_weights`."""
    return list(collections.Counter(node for node, _ in graph).values())


class Network(nn.Layer):
    """The supernet: a stem, `layers` cells of which those at layers // 3 and 2 * layers // 3 are reduction cells, a
    classifier.

    c_in: the channels C of the first cell; reduction cells double them.
    method: a name of nas/methods.py, or an object of a subclass of nas.methods.DARTS.
    steps, multiplier: intermediate nodes of a cell, and how many of the last ones its output concatenates.
    stem_multiplier: the CIFAR stem has stem_multiplier * c_in channels.
    stem: 'cifar', or 'imagenet' for photos, which reduces height and width to an eighth (PC-DARTS, section 4.3).

    Raises UserError for an unknown name of a method and for a number of channels that the method cannot divide,
    TypeError for another object as a method.
    """

    input_channels = 3  # with num_classes, what the searcher checks the items of a data set by

    def __init__(self, c_in, num_classes, layers, method='DARTS', steps=4, multiplier=4, stem_multiplier=3,
                 stem='cifar'):
        super().__init__()
        self.method = make_method(method) if isinstance(method, str) else method
        if not isinstance(self.method, DARTS):
            raise TypeError(f'method: {method!r} is no object of a subclass of nas.methods.DARTS')
        self.method.check_channels(c_in, '--init_channels')
        self.num_classes = num_classes
        self._steps = steps
        self._multiplier = multiplier
        self.edge_counts = range(2, 2 + steps)  # how many edges enter each node
        self._init_arch_parameters()

        c = c_in
        if stem == 'imagenet':
            self.stem0 = nn.Sequential(conv2d(3, c // 2, 3, stride=2, padding=1), batch_norm(c // 2), nn.ReLU(),
                                       conv2d(c // 2, c, 3, stride=2, padding=1), batch_norm(c))
            self.stem1 = nn.Sequential(nn.ReLU(), conv2d(c, c, 3, stride=2, padding=1), batch_norm(c))
            c_prev_prev, c_prev, reduction_prev = c, c, True
        else:
            self.stem = nn.Sequential(conv2d(3, stem_multiplier * c, 3, padding=1), batch_norm(stem_multiplier * c))
            c_prev_prev, c_prev, reduction_prev = stem_multiplier * c, stem_multiplier * c, False
        self.cells = nn.LayerList()
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            if reduction:
                c *= 2
            self.cells.append(Cell(steps, multiplier, c_prev_prev, c_prev, c, reduction, reduction_prev, self.method))
            reduction_prev = reduction
            c_prev_prev, c_prev = c_prev, multiplier * c
        self.lastact = nn.Sequential(batch_norm(c_prev), nn.ReLU()) if self.method.final_norm else None
        self.global_pooling = nn.AdaptiveAvgPool2D(1)
        self.classifier = linear(c_prev, num_classes)
        if self.method.pointwise_bias:
            for layer in self.cells.sublayers():
                if isinstance(layer, nn.Conv2D) and list(layer.weight.shape[2:]) == [1, 1]:
                    bound = layer.weight.shape[1] ** -0.5  # as the weights are drawn, see operations.conv2d
                    layer.bias = layer.create_parameter(
                        [layer.weight.shape[0]], default_initializer=Uniform(-bound, bound))

    def _init_arch_parameters(self):
        edges = edge_number(self._steps)
        deviation = self.method.alpha_deviation

        def parameter(*shape):
            initializer = Normal(0.0, deviation) if deviation else Constant(0.0)
            return self.create_parameter(list(shape), default_initializer=initializer)

        self.alphas_normal = parameter(edges, len(self.method.primitives))
        self.alphas_reduce = parameter(edges, len(self.method.primitives))
        self.betas_normal = parameter(edges) if self.method.with_betas else None
        self.betas_reduce = parameter(edges) if self.method.with_betas else None

        # 1 for the operations that an edge keeps, 0 for those that a stage of the search has removed
        for kind, alphas in (('normal', self.alphas_normal), ('reduce', self.alphas_reduce)):
            self.register_buffer('mask_' + kind, paddle.ones_like(alphas) if self.method.later_stages else None)

    def arch_parameters(self):
        """The architecture parameters: alphas [edges, operations], normal and reduce, then betas [edges] if the method
        has them."""
        alphas = [self.alphas_normal, self.alphas_reduce]
        return alphas + ([self.betas_normal, self.betas_reduce] if self.method.with_betas else [])

    def _weights(self, alphas, betas, mask):
        """The arguments of Cell.forward for one kind of cell: weights, edge weights, columns of active operations."""
        weights = masked(self.method.operation_weights(alphas), mask)
        return weights, self.method.edge_weights(betas, self.edge_counts), self.method.active_operations(weights)

    def set_epoch(self, epoch, epochs):
        """Set the epoch of the search, counted from 0; the searcher calls it before every epoch."""
        self.method.set_epoch(epoch, epochs)

    def forward(self, image):
        """image [N, 3, H, W] -> logits [N, num_classes]."""
        normal = self._weights(self.alphas_normal, self.betas_normal, self.mask_normal)
        reduce = self._weights(self.alphas_reduce, self.betas_reduce, self.mask_reduce)
        if hasattr(self, 'stem0'):
            s0 = self.stem0(image)
            s1 = self.stem1(s0)
        else:
            s0 = s1 = self.stem(image)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *(reduce if cell.reduction else normal))
        if self.lastact is not None:
            s1 = self.lastact(s1)
        return self.classifier(self.global_pooling(s1).flatten(1))

    def _loss(self, image, label):
        """The mean cross-entropy of a batch plus the method's regularizer; image [N, 3, H, W], label [N] or [N, 1]."""
        return F.cross_entropy(self(image), label) + self.method.regularizer([self.alphas_normal, self.alphas_reduce])

    @paddle.no_grad()
    def keep_strongest(self, count):
        """Remove all but the `count` largest alphas of each edge: the others become 0 and are masked."""
        for alphas, mask in ((self.alphas_normal, self.mask_normal), (self.alphas_reduce, self.mask_reduce)):
            keep_strongest(alphas, mask, count)

    def rebuild_edges(self, partial):
        """New mixed operations for another share of channels. Returns (name, parameter before, parameter now) for every
        parameter of the edges."""
        self.method.partial = partial
        replaced = []
        for number, cell in enumerate(self.cells):
            for edge, old in enumerate(list(cell._ops)):
                cell._ops[edge] = MixedOp(old.c, old.stride, self.method)
                replaced += [(f'cells.{number}._ops.{edge}.{name}', before, now) for (name, before), now
                             in zip(old.named_parameters(), cell._ops[edge].parameters())]
        return replaced

    def strengths(self):
        """The scores that rank operations, for the normal and the reduction cell: two tensors [edges, operations]."""
        strengths = []
        for alphas, betas, mask in ((self.alphas_normal, self.betas_normal, self.mask_normal),
                                    (self.alphas_reduce, self.betas_reduce, self.mask_reduce)):
            edges = self.method.edge_weights(betas, self.edge_counts)
            scores = masked(self.method.strengths(alphas), mask)
            strengths.append(scores if edges is None else scores * edges.unsqueeze(-1))
        return strengths

    def genotype(self):
        """The Genotype that the architecture parameters stand for at present. Nodes without an edge are not
        concatenated."""
        cells = [self.method.derive(strengths.tolist(), self._steps) for strengths in self.strengths()]
        concats = []
        for cell in cells:
            last = range(2 + self._steps - self._multiplier, 2 + self._steps)
            empty = {2 + node for node in range(self._steps)
                     if all(operation == 'none' for operation, _ in cell[2 * node:2 * node + 2])}
            concats.append([state for state in last if state not in empty] if empty else last)
        return Genotype(normal=cells[0], normal_concat=concats[0], reduce=cells[1], reduce_concat=concats[1])


@paddle.no_grad()
def keep_strongest(alphas, mask, count):
    """Set all but the `count` largest alphas of each edge to 0, and mask to 1 for those that stay and 0 for the others.

    alphas, mask: [edges, operations].
    """
    kept = F.one_hot(alphas.topk(count, axis=-1)[1], alphas.shape[-1]).sum(1).astype(mask.dtype)
    mask.set_value(kept)
    alphas.set_value(alphas * kept)


def masked(weights, mask):
    """Weights without the operations that an edge no longer has, normalised; mask None: as they are."""
    if mask is None:
        return weights
    weights = weights * mask
    return weights / weights.sum(-1, keepdim=True)
