"""Example of a custom search space: the cell of NAS-Bench-201 (Dong, Yang, ICLR 2020, section 2.1).

    python examples/nasbench201.py              first-order DARTS on scikit-learn's digits, minutes on a CPU
    python examples/nasbench201.py --dataset=cifar10 --N=5 --epochs=50 --batch_size=64    the paper's network
    python visualize.py --alphas search_nasbench201                                       curves of the six edges

The result is the architecture string of the benchmark, |op~0|+|op~0|op~1|+|op~0|op~1|op~2|: for each node the operation
on each edge and the node that the edge comes from.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from runtime.log import quiet_warnings  # noqa: E402

if __name__ == '__main__':
    quiet_warnings()  # of importing Paddle

from kernels import compiled  # noqa: E402, F401, I001  numba must be imported before Paddle 2
import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402
import paddle.nn.functional as F  # noqa: E402
from paddle.nn.initializer import Normal  # noqa: E402

from nas import DARTSearch  # noqa: E402
from nas.methods import METHODS  # noqa: E402
from nas.options import MonitorOptions  # noqa: E402
from operations import Identity, ReLUConvBN, WeightedSum, Zero, batch_norm, conv2d, linear  # noqa: E402
from reader import class_count, train_search  # noqa: E402
from runtime.flags import DATA_FLAGS, DEVICE_FLAGS, ArgumentParser, boolean, integer, path, positive, reader_flags  # noqa: E402
from runtime.script import run_script, start_script  # noqa: E402

OPS = {
    'none': lambda c: Zero(1),
    'skip_connect': lambda c: Identity(),
    'nor_conv_1x1': lambda c: ReLUConvBN(c, c, 1, 1, 0, affine=False),
    'nor_conv_3x3': lambda c: ReLUConvBN(c, c, 3, 1, 1, affine=False),
    'avg_pool_3x3': lambda c: nn.AvgPool2D(3, 1, padding=1, exclusive=True),
}
PRIMITIVES = list(OPS)
NODES = 4  # node 0 is the input of the cell, node 3 its output
EDGES = [(node, source) for node in range(1, NODES) for source in range(node)]

# The methods that need no more of a supernet than weights of the operations.
USABLE_METHODS = [name for name, method in METHODS.items()
                  if method.partial == 1 and not method.with_betas and not method.auxiliary_skip]

SEARCH_FLAGS = [
    ('method', USABLE_METHODS, 'DARTS', 'the search method, a class of nas/methods.py'),
    ('epochs', integer(1), 5, 'search epochs'),
    ('batch_size', integer(1), 32, 'batch size'),
    ('arch_learning_rate', positive(), 3e-3, 'learning rate of Adam for the architecture parameters'),
    ('C', integer(1, 4096), 16, 'channels of the first stage'),
    ('N', integer(1, 100), 1, 'cells of each of the three stages'),
    ('model_save_dir', path, 'search_nasbench201', 'output directory'),
]
SEARCH_DATA_FLAGS = [
    (name, kind, 'digits' if name == 'dataset' else default, text) for name, kind, default, text in DATA_FLAGS] + [
    ('data', path, None, 'the CIFAR archive or the folder it unpacks to; with --dataset=folder, the folder'),
    ('cutout', boolean, False, 'mask a random square of every training image'),
]


class SearchCell(nn.Layer):
    """Each node is the sum of a weighted sum of all operations from each node before it."""

    def __init__(self, c):
        super().__init__()
        self.edges = nn.LayerList([WeightedSum([OPS[name](c) for name in PRIMITIVES]) for _ in EDGES])

    def forward(self, x, weights):
        """x [N, C, H, W], weights: a tensor [operations] for each edge -> [N, C, H, W]."""
        states = [x] + [0] * (NODES - 1)
        for (node, source), edge, row in zip(EDGES, self.edges, weights):
            states[node] += edge(states[source], row)
        return states[-1]


class ResidualBlock(nn.Layer):
    """Between two stages: halves height and width and doubles the channels."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv_a = ReLUConvBN(c_in, c_out, 3, 2, 1)
        self.conv_b = ReLUConvBN(c_out, c_out, 3, 1, 1)
        self.downsample = nn.Sequential(nn.AvgPool2D(2, 2, ceil_mode=True), conv2d(c_in, c_out, 1))

    def forward(self, x):
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


class Network(nn.Layer):
    """Three stages of N cells with C, 2C and 4C channels (NAS-Bench-201, section 2.1).

    The searcher requires `arch_parameters`, `_loss`, `genotype` and that the network is callable on images. If there
    are `set_epoch`, `strengths` and the names of cells, operations and edges, it uses them, for the method and for
    the curves.
    """

    cell_names = ['cell']
    primitives = PRIMITIVES
    edge_names = [f'{source} → {node}' for node, source in EDGES]

    def __init__(self, C, num_classes, N, method='DARTS'):
        super().__init__()
        self.method = METHODS[method]()
        self.alphas = self.create_parameter([len(EDGES), len(PRIMITIVES)], default_initializer=Normal(0.0, 1e-3))
        self.stem = nn.Sequential(conv2d(3, C, 3, padding=1), batch_norm(C))
        self.blocks = nn.LayerList()
        for stage in range(3):
            if stage:
                self.blocks.append(ResidualBlock(C * 2**(stage - 1), C * 2**stage))
            self.blocks.extend([SearchCell(C * 2**stage) for _ in range(N)])
        self.last = nn.Sequential(batch_norm(4 * C), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten())
        self.classifier = linear(4 * C, num_classes)

    def forward(self, image):
        """image [N, 3, H, W] -> logits [N, num_classes]."""
        weights = self.method.operation_weights(self.alphas) if self.training else self.method.strengths(self.alphas)
        rows = weights.unbind()
        x = self.stem(image)
        for block in self.blocks:
            x = block(x, rows) if isinstance(block, SearchCell) else block(x)
        return self.classifier(self.last(x))

    def arch_parameters(self):
        return [self.alphas]

    def _loss(self, image, label):
        return F.cross_entropy(self(image), label) + self.method.regularizer([self.alphas])

    @paddle.no_grad()
    def strengths(self):
        return [self.method.strengths(self.alphas)]

    def set_epoch(self, epoch, epochs):
        self.method.set_epoch(epoch, epochs)

    def genotype(self):
        """The architecture string of the benchmark: the strongest operation of each edge, `none` included."""
        best = [PRIMITIVES[column] for column in self.strengths()[0].argmax(-1).tolist()]
        nodes = [[f'{name}~{source}' for (target, source), name in zip(EDGES, best) if target == node]
                 for node in range(1, NODES)]
        return '+'.join(f'|{"|".join(edges)}|' for edges in nodes)


def main():
    parser = ArgumentParser(__doc__)
    parser.add_flags('search', SEARCH_FLAGS)
    parser.add_flags('data', SEARCH_DATA_FLAGS + reader_flags(num_workers=0))
    parser.add_flags('device', DEVICE_FLAGS)
    args = parser.parse_data(None)
    place = start_script(args.model_save_dir, arguments=vars(args), use_gpu=args.use_gpu,
                         use_data_parallel=args.use_data_parallel, seed=args.seed)
    train_loader, valid_loader = train_search(args.batch_size, 0.5, True, args)
    network = Network(args.C, class_count(train_loader), args.N, args.method)
    monitor = MonitorOptions(eval_reader=valid_loader.without_augmentation(),
                             search_info={'method': args.method, 'seed': args.seed, 'dataset': args.dataset})
    searcher = DARTSearch(network, train_loader, valid_loader, place, arch_learning_rate=args.arch_learning_rate,
                          num_epochs=args.epochs, save_dir=args.model_save_dir, log_freq=10, seed=args.seed,
                          monitor=monitor)
    print(searcher.train())


if __name__ == '__main__':
    run_script(main)
