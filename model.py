"""The networks made of a genotype, as trained on CIFAR-10 and ImageNet (DARTS, Liu et al. 2019, section 3.2; after
NASNet, Zoph et al. 2018).

Called on images [N, 3, H, W] both give (logits [N, num_classes], logits_aux): logits_aux is the output of the
auxiliary head, None without one and in evaluation mode. The training loop calls `set_drop_path_prob`, since it
increases over the epochs.
"""
import paddle
import paddle.nn as nn

from genotypes import connected_states, from_dict
from operations import OPS, DropPath, FactorizedReduce, Identity, ReLUConvBN, batch_norm, conv2d, linear
from runtime.errors import UserError


class Cell(nn.Layer):
    """A cell of a genotype: node i is the sum of its edges 2 i and 2 i + 1; the output concatenates the genotype's
    nodes.

    An edge whose operation is `none`, or whose source state has no input, is left out, and so is a node without an edge
    (`genotypes.connected_states`). The output has `multiplier` * c channels, where multiplier is the number of nodes
    that it concatenates.
    """

    def __init__(self, genotype, c_prev_prev, c_prev, c, reduction, reduction_prev):
        super().__init__()
        self.reduction = reduction
        if reduction_prev:  # cell k-2 is twice as large as cell k-1
            self.preprocess0 = FactorizedReduce(c_prev_prev, c)
        else:
            self.preprocess0 = ReLUConvBN(c_prev_prev, c, 1, 1, 0)
        self.preprocess1 = ReLUConvBN(c_prev, c, 1, 1, 0)
        edges = genotype.reduce if reduction else genotype.normal
        connected = connected_states(edges)
        self._concat = [state for state in (genotype.reduce_concat if reduction else genotype.normal_concat)
                        if state in connected]
        if not self._concat:
            raise UserError(f'--arch: the {"reduction" if reduction else "normal"} cell of the genotype has no edges: '
                            'it was written before the search had found any; take the genotype of a later epoch')
        self.multiplier = len(self._concat)
        self.drop_path = DropPath()
        self._indices = [state for _, state in edges]
        self._is_edge = [name != 'none' and state in connected for name, state in edges]
        self._ops = nn.LayerList([OPS[name if is_edge else 'none'](c, 2 if reduction and state < 2 else 1, True)
                                  for (name, state), is_edge in zip(edges, self._is_edge)])

    def forward(self, s0, s1, drop_prob):
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for i in range(0, len(self._ops), 2):
            inputs = [self._edge(k, states, drop_prob) for k in (i, i + 1) if self._is_edge[k]]
            states.append(sum(inputs[1:], inputs[0]) if inputs else None)
        return paddle.concat([states[i] for i in self._concat], axis=1)

    def _edge(self, i, states, drop_prob):
        op = self._ops[i]
        h = op(states[self._indices[i]])
        if self.training and drop_prob > 0 and not isinstance(op, Identity):
            h = self.drop_path(h, drop_prob)
        return h


class AuxiliaryHead(nn.Layer):
    """A small classifier on the features at 2/3 of the cells, which must be at least 5x5 (Szegedy et al. 2015, section
    5).

    stride: of its average pooling, 3 on CIFAR and 2 on ImageNet: 8x8 and 7x7 features both become 2x2.
    """

    def __init__(self, c, num_classes, stride):
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2D(5, stride, padding=0),
            conv2d(c, 128, 1),
            batch_norm(128),
            nn.ReLU(),
            conv2d(128, 768, 2),
            batch_norm(768),
            nn.ReLU())
        self.classifier = linear(768, num_classes)
        self.smallest = smallest_features(stride)

    def forward(self, x):
        if min(x.shape[2:]) < self.smallest:
            raise UserError(f'--auxiliary: the auxiliary classifier needs feature maps of at least '
                            f'{self.smallest}x{self.smallest}; these images give {x.shape[2]}x{x.shape[3]}: give '
                            f'--auxiliary=False or larger images')
        return self.classifier(self.features(x).mean([2, 3]))  # 1x1 at the papers' image sizes


def smallest_features(stride):
    """Height and width of the smallest features that an AuxiliaryHead takes: two positions of the pooling's window, for
    the 2x2 convolution."""
    return 5 + stride


def reduction_cells(layers):
    """The numbers of the reduction cells of a network of so many cells; the auxiliary classifier is behind the last."""
    return {layers // 3, 2 * layers // 3}


class _Network(nn.Layer):
    """What both networks have: cells, auxiliary head, classifier. A subclass makes the stem first.

    C: channels of the first cell; reduction cells double them. layers: number of cells. auxiliary: whether there is an
    auxiliary classifier, which only training uses. genotype: a Genotype of genotypes.py; ValueError for a wrong one,
    UserError for one with a cell without edges.
    """

    stem_stride = None  # by which factor the stem reduces height and width
    auxiliary_stride = None  # of the AuxiliaryHead

    @classmethod
    def smallest_image(cls, layers):
        """Height and width in pixels of the smallest images that the auxiliary classifier takes."""
        factor = cls.stem_stride * 2 ** len(reduction_cells(layers))
        return (smallest_features(cls.auxiliary_stride) - 1) * factor + 1

    def _build(self, c, num_classes, layers, auxiliary, genotype, *, states, reduction_prev):
        """states: channels of the two inputs of the first cell. reduction_prev: whether the second one has half the
        height and width of the first one."""
        genotype = from_dict(genotype._asdict())  # genotypes written in code are checked too
        c_prev_prev, c_prev = states
        self.drop_path_prob = 0.0
        self._auxiliary_at = max(reduction_cells(layers))
        self.cells = nn.LayerList()
        for i in range(layers):
            reduction = i in reduction_cells(layers)
            if reduction:
                c *= 2
            cell = Cell(genotype, c_prev_prev, c_prev, c, reduction, reduction_prev)
            self.cells.append(cell)
            reduction_prev = reduction
            c_prev_prev, c_prev = c_prev, cell.multiplier * c
            if i == self._auxiliary_at:
                c_auxiliary = c_prev
        self.auxiliary_head = AuxiliaryHead(c_auxiliary, num_classes, self.auxiliary_stride) if auxiliary else None
        self.global_pooling = nn.AdaptiveAvgPool2D(1)
        self.classifier = linear(c_prev, num_classes)

    def set_drop_path_prob(self, prob):
        """Set the probability with which a path is dropped for an image, in training mode."""
        self.drop_path_prob = prob

    def _run(self, s0, s1):
        logits_aux = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i == self._auxiliary_at and self.auxiliary_head is not None and self.training:
                logits_aux = self.auxiliary_head(s1)
        return self.classifier(self.dropout(self.global_pooling(s1).flatten(1))), logits_aux


class NetworkCIFAR(_Network):
    """The network for small images; image [N, 3, H, W], 32x32 in the papers."""

    stem_stride, auxiliary_stride = 1, 3

    def __init__(self, C, num_classes, layers, auxiliary, genotype):
        super().__init__()
        c = 3 * C
        self.stem = nn.Sequential(conv2d(3, c, 3, padding=1), batch_norm(c))
        self.dropout = nn.Identity()
        self._build(C, num_classes, layers, auxiliary, genotype, states=(c, c), reduction_prev=False)

    def forward(self, image):
        s = self.stem(image)
        return self._run(s, s)


class NetworkImageNet(_Network):
    """The network for photos; image [N, 3, H, W], 224x224 in the papers. The stem leaves an eighth of H and W.

    dropout: probability of dropping a feature before the classifier. Raises UserError for less than 2 channels.
    """

    stem_stride, auxiliary_stride = 8, 2

    def __init__(self, C, num_classes, layers, auxiliary, genotype, dropout=0.0):
        super().__init__()
        if C < 2:
            raise UserError(f'--init_channels: {C} is not allowed: the first convolution of the ImageNet stem has half '
                            f'as many channels; give at least 2')
        self.stem0 = nn.Sequential(
            conv2d(3, C // 2, 3, stride=2, padding=1), batch_norm(C // 2), nn.ReLU(),
            conv2d(C // 2, C, 3, stride=2, padding=1), batch_norm(C))
        self.stem1 = nn.Sequential(nn.ReLU(), conv2d(C, C, 3, stride=2, padding=1), batch_norm(C))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self._build(C, num_classes, layers, auxiliary, genotype, states=(C, C), reduction_prev=True)

    def forward(self, image):
        s0 = self.stem0(image)
        return self._run(s0, self.stem1(s0))
