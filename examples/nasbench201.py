"""A search space of another kind as an example: the cell of NAS-Bench-201 (Dong, Yang, ICLR 2020, section 2.1).

    python examples/nasbench201.py              first-order DARTS on scikit-learn's digits, minutes on a CPU
    python examples/nasbench201.py --dataset=cifar10 --N=5 --epochs=50 --batch_size=64 --arch_learning_rate=3e-4
                                                the size of the paper; the defaults suit digits
    python examples/nasbench201.py --table=nasbench201.csv         logs the true test accuracy of the cell in each epoch
    python visualize.py --alphas search_nasbench201                curves of the six edges, and of those accuracies
    python examples/train_nasbench201.py --arch='|nor_conv_3x3~0|+…'                   trains a cell

The result is the architecture string of the benchmark, |op~0|+|op~0|op~1|+|op~0|op~1|op~2|: for each node the operation
on each edge and the node that the edge comes from. All methods but random apply,
and all flags but those of sizes, ImageNet, limits and --derive.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from runtime.log import quiet_warnings  # noqa: E402
from runtime.script import end_on_signals, run_script, start_script  # noqa: E402

if __name__ == '__main__':
    end_on_signals()
    quiet_warnings()  # of importing Paddle

from kernels import compiled  # noqa: E402, F401, I001  numba must be imported before Paddle 2
import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402
import paddle.nn.functional as F  # noqa: E402
from paddle.nn.initializer import Constant, Normal  # noqa: E402

import search  # noqa: E402
from examples.nasbench201_table import EDGES, PRIMITIVES, Table, cell_string, parse_cell  # noqa: E402
from model_search import GraphCell, MixedOp, edge_counts, keep_strongest, masked  # noqa: E402
from nas import methods  # noqa: E402
from nas.recipes import METHOD_NAMES  # noqa: E402
from nas.training_command import DATA_NAMES, data_words, shell_word  # noqa: E402
from operations import Identity, ReLUConvBN, Zero, batch_norm, conv2d, linear  # noqa: E402
from reader import class_count, class_count_without_data, train_search  # noqa: E402
from runtime.flags import (  # noqa: E402
    DATA_FLAGS,
    DEVICE_FLAGS,
    ArgumentParser,
    given_flags,
    integer,
    path,
    reader_flags,
    run_flags,
)
from runtime.log import logger  # noqa: E402
from runtime.parallel import rank  # noqa: E402

# name: function of channels and affine, whether the batch norm has a trainable part
OPS = {
    'none': lambda c, affine=False: Zero(1),
    'skip_connect': lambda c, affine=False: Identity(),
    'nor_conv_1x1': lambda c, affine=False: ReLUConvBN(c, c, 1, 1, 0, affine),
    'nor_conv_3x3': lambda c, affine=False: ReLUConvBN(c, c, 3, 1, 1, affine),
    'avg_pool_3x3': lambda c, affine=False: nn.AvgPool2D(3, 1, padding=1, exclusive=True),
}
NODES = 4  # node 0 is the input of the cell, node 3 its output

# Defaults of flags that suit digits, where they are not those of search.py.
DEFAULTS = dict(method='DARTS', dataset='digits', epochs=5, batch_size=32, arch_learning_rate=3e-3, num_workers=0,
                log_freq=10, model_save_dir='search_nasbench201')
SPACE_FLAGS = [
    ('C', integer(1, 4096), 16, 'channels of the first stage'),
    ('N', integer(1, 100), 1, "cells of each of the three stages; the paper's networks have 5"),
    ('table', path, None, 'csv file with the true accuracy of every cell, see examples/nasbench201_table.py: logs '
                          'accuracy and rank of the present cell in each epoch'),
]


class Edge(MixedOp):
    """The weighted sum of all operations on an edge. model_search.MixedOp with the operations of this space: partial
    channels and the auxiliary skip connection of a method are there."""

    def __init__(self, c, method):
        super().__init__(c, 1, method)

    def operation(self, primitive, c):
        return OPS[primitive](c)

    def mix(self, x, weights, active):
        mixed = super().mix(x, weights, active)
        if active is not None:  # GDAS's authors add the weights of the other operations, zeros that have a gradient
            mixed = mixed + sum(weight for column, weight in enumerate(weights.unbind()) if column not in active)
        return mixed


class SearchCell(GraphCell):
    """A cell for c channels: each node is the sum of the edges from all nodes before it. [N, C, H, W] -> the same
    shape."""

    def __init__(self, c, method):
        super().__init__(EDGES, lambda: Edge(c, method))


class ResidualBlock(nn.Layer):
    """Between two stages: halves height and width and doubles the channels."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv_a = ReLUConvBN(c_in, c_out, 3, 2, 1)
        self.conv_b = ReLUConvBN(c_out, c_out, 3, 1, 1)
        self.downsample = nn.Sequential(nn.AvgPool2D(2, 2, ceil_mode=True), conv2d(c_in, c_out, 1))

    def forward(self, x):
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


class Skeleton(nn.Layer):
    """Three stages of N cells with C, 2C and 4C channels (NAS-Bench-201, section 2.1). make_cell: number of channels ->
    a cell."""

    def __init__(self, c, num_classes, n, make_cell):
        super().__init__()
        self.stem = nn.Sequential(conv2d(3, c, 3, padding=1), batch_norm(c))
        self.blocks = nn.LayerList()
        for stage in range(3):
            if stage:
                self.blocks.append(ResidualBlock(c * 2**(stage - 1), c * 2**stage))
            self.blocks.extend([make_cell(c * 2**stage) for _ in range(n)])
        self.last = nn.Sequential(batch_norm(4 * c), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten())
        self.classifier = linear(4 * c, num_classes)

    def forward(self, image, *weights):
        """image [N, 3, H, W] -> logits [N, num_classes]; weights: further arguments of the cells."""
        x = self.stem(image)
        for block in self.blocks:
            x = block(x) if isinstance(block, ResidualBlock) else block(x, *weights)
        return self.classifier(self.last(x))


class Network(Skeleton):
    """The supernet. method: a name or an object of nas/methods.py.

    The searcher requires `arch_parameters`, `_loss`, `genotype` and that the network is callable on images. What else
    it has is used where it exists: `set_epoch`, `strengths` and the names of cells, operations and edges for methods
    and curves; `keep_strongest` and `rebuild_edges` for the stages of DrNAS.

    Raises UserError for a number of channels that the method cannot divide.
    """

    cell_names = ['cell']
    primitives = PRIMITIVES
    edge_names = [f'{source} → {node}' for node, source in EDGES]

    def __init__(self, C, num_classes, N, method='DARTS'):
        method = make_method(method) if isinstance(method, str) else method
        method.check_channels(C, '--C')
        super().__init__(C, num_classes, N, lambda c: SearchCell(c, method))
        self.method = method
        deviation, shape = method.alpha_deviation, [len(EDGES), len(PRIMITIVES)]
        initializer = Normal(0.0, deviation) if deviation else Constant(0.0)
        self.alphas = self.create_parameter(shape, default_initializer=initializer)
        self.betas = (self.create_parameter(shape[:1], default_initializer=Normal(0.0, deviation))
                      if method.with_betas else None)
        self.register_buffer('mask', paddle.ones(shape, self.alphas.dtype) if method.later_stages else None)

    def forward(self, image):
        """image [N, 3, H, W] -> logits [N, num_classes]."""
        weights = masked(self.method.operation_weights(self.alphas), self.mask)
        return super().forward(image, weights, self.method.edge_weights(self.betas, edge_counts(EDGES)),
                               self.method.active_operations(weights))

    def arch_parameters(self):
        return [self.alphas] if self.betas is None else [self.alphas, self.betas]

    def _loss(self, image, label):
        return F.cross_entropy(self(image), label) + self.method.regularizer([self.alphas])

    def set_epoch(self, epoch, epochs):
        self.method.set_epoch(epoch, epochs)

    @paddle.no_grad()
    def strengths(self):
        return [masked(self.method.strengths(self.alphas), self.mask)]

    def genotype(self):
        """The architecture string of the benchmark: the strongest operation of each edge, `none` included."""
        return cell_string([PRIMITIVES[column] for column in self.strengths()[0].argmax(-1).tolist()])

    def keep_strongest(self, count):
        keep_strongest(self.alphas, self.mask, count)

    def rebuild_edges(self, partial):
        """As model_search.Network.rebuild_edges."""
        self.method.partial = partial
        replaced = []
        for number, cell in enumerate(self.blocks):
            for place, old in enumerate(cell.edges) if isinstance(cell, SearchCell) else ():
                cell.edges[place] = Edge(old.c, self.method)
                replaced += [(f'blocks.{number}.edges.{place}.{name}', before, now) for (name, before), now
                             in zip(old.named_parameters(), cell.edges[place].parameters())]
        return replaced


def make_method(name, **options):
    """The method object for this space, whose operations every method has.

    DrNAS: 1/4 of the channels, then 1/2 and three operations on each edge (DrNAS, section 4.3).
    """
    method = methods.make_method(name, **options)
    method.primitives = PRIMITIVES
    if method.later_stages:
        partial = options.get('partial')
        method.partial, method.later_stages = partial or 4, ((partial or 2, 3),)
    return method


def parse_arguments():
    parser = ArgumentParser(__doc__)
    sizes = ('method', 'samples', 'init_channels', 'layers')
    method_flag = ('method', METHOD_NAMES, None, 'the search method, a class of nas/methods.py')
    flags = [method_flag] + [row for row in search.SEARCH_FLAGS if row[0] not in sizes] + SPACE_FLAGS
    for title, table in (('search', flags), ('weight step', search.WEIGHT_FLAGS),
                         ('architecture step', search.ARCH_FLAGS), ('collapse', search.COLLAPSE_FLAGS),
                         ('data', DATA_FLAGS + search.SEARCH_DATA_FLAGS + reader_flags(num_workers=0)),
                         ('device', DEVICE_FLAGS),
                         ('run', run_flags(log_freq=10, model_save_dir='') + search.SAVE_FLAGS)):
        parser.add_flags(title, [(name, kind, DEFAULTS.get(name, default), text)
                                 for name, kind, default, text in table])
    args = parser.parse_data(None)
    search.check_search_flags(parser, args, given_flags(sys.argv[1:]))
    return args


def main():
    args = parse_arguments()
    place = start_script(None if args.summary else args.model_save_dir, arguments=vars(args), use_gpu=args.use_gpu,
                         use_data_parallel=args.use_data_parallel, seed=args.seed)
    table = Table(args.table) if args.table else None

    def cell_figures(cell):
        """What metrics.jsonl keeps of a cell."""
        return dict({'skip_connects': parse_cell(cell).count('skip_connect')}, **(table.figures(cell) if table else {}))

    method = make_method(args.method, **search.method_options(args))
    if args.summary:
        from reader import image_shape
        from training.summary import summary
        class_num = class_count_without_data(args, given_flags(sys.argv[1:]))
        print(summary(Network(args.C, class_num, args.N, method), image_shape(args), args.batch_size))
        return
    train_loader, valid_loader = train_search(args.batch_size, args.train_portion, True, args)
    class_num = class_count(train_loader, args.class_num if 'class_num' in given_flags(sys.argv[1:]) else None)
    searcher = search.make_searcher(Network(args.C, class_num, args.N, method), train_loader, valid_loader, place,
                                    dict(vars(args), class_num=class_num), cell_figures)
    cell = searcher.train()
    if rank() == 0:
        if table:
            for name, accuracy in table[cell].accuracy.items():
                same = [table[other].accuracy[name] for other in table.same_cell(cell)]
                logger.info('%s: test accuracy %.2f %%, rank %d of %d%s', name, accuracy, table[cell].rank[name],
                            len(table), f'; other strings of this cell: {min(same):.2f} to {max(same):.2f} %'
                            if same else '')
        given = {name: getattr(args, name) for name in {*given_flags(sys.argv[1:]), 'dataset'}}
        words = ['python', os.path.join(os.path.dirname(sys.argv[0]), 'train_nasbench201.py'),
                 '--arch=' + os.path.join(args.model_save_dir, 'genotype.json'), *data_words(DATA_NAMES, given)]
        print(cell)
        print('To train it:', ' '.join(map(shell_word, words)))


if __name__ == '__main__':
    run_script(main)
