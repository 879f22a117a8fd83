r"""A search space of one's own, searched by the same searcher: the cell of NAS-Bench-201 (Dong, Yang, ICLR 2020, section 2.1).

    python tests/nasbench201.py                            first-order DARTS on scikit-learn's digits: minutes on a laptop's CPU
    python tests/nasbench201.py --dataset=cifar10 --N=5 --epochs=50 --batch_size=64       the paper's skeleton on CIFAR-10

The result is the benchmark's architecture string: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, for each node the operation on every edge
and the node it comes from.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402
import paddle.nn.functional as F  # noqa: E402
from paddle.nn.initializer import Normal  # noqa: E402

from kernels import compiled  # noqa: E402, F401  before Paddle 2
from model_search import METHODS  # noqa: E402
from operations import Identity, ReLUConvBN, Zero, batch_norm, conv2d, linear  # noqa: E402

OPS = {
    'none': lambda c: Zero(1),
    'skip_connect': lambda c: Identity(),
    'nor_conv_1x1': lambda c: ReLUConvBN(c, c, 1, 1, 0, affine=False),
    'nor_conv_3x3': lambda c: ReLUConvBN(c, c, 3, 1, 1, affine=False),
    'avg_pool_3x3': lambda c: nn.AvgPool2D(3, 1, padding=1, exclusive=True),
}
PRIMITIVES = list(OPS)
NODES = 4  # node 0 is the cell's input, node 3 its output
EDGES = [(node, source) for node in range(1, NODES) for source in range(node)]


class SearchCell(nn.Layer):
    """Every node adds up a mixture of all operations from every node before it."""

    def __init__(self, c):
        super().__init__()
        self.edges = nn.LayerList([nn.LayerList([OPS[name](c) for name in PRIMITIVES]) for _ in EDGES])

    def forward(self, x, weights):
        """x [N, C, H, W], weights: for each edge a list of scalar tensors -> [N, C, H, W]."""
        states = [x] + [0] * (NODES - 1)
        for (node, source), operations, row in zip(EDGES, self.edges, weights):
            states[node] += sum(w * op(states[source]) for w, op in zip(row, operations))
        return states[-1]


class ResidualBlock(nn.Layer):
    """Halves H and W and doubles the channels, between two stages."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv_a = ReLUConvBN(c_in, c_out, 3, 2, 1)
        self.conv_b = ReLUConvBN(c_out, c_out, 3, 1, 1)
        self.downsample = nn.Sequential(nn.AvgPool2D(2, 2, ceil_mode=True), conv2d(c_in, c_out, 1))

    def forward(self, x):
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


class Network(nn.Layer):
    """Three stages of N cells with C, 2C and 4C channels. What the searcher asks for: `arch_parameters`, `_loss`, `genotype` and being
    callable on images; `strengths` and `set_epoch` are extras that it uses where they are."""

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
        rows = [row.unbind() for row in weights.unbind()]
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
        """The benchmark's architecture string; `none` competes with the others, as in the benchmark."""
        best = [PRIMITIVES[k] for k in self.alphas.argmax(-1).tolist()]
        nodes = [[f'{name}~{source}' for (to, source), name in zip(EDGES, best) if to == node] for node in range(1, NODES)]
        return '+'.join('|{}|'.format('|'.join(node)) for node in nodes)


def main():
    from nas.searcher import DARTSearch
    from reader import class_count, train_search
    from runtime.script import run_script, start_script

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('dataset', 'digits'), ('data', None), ('method', 'DARTS'), ('epochs', 5), ('batch_size', 32), ('C', 16), ('N', 1),
                          ('class_num', 10), ('trainset_num', 50000), ('seed', 0), ('model_save_dir', 'search_nasbench201')):
        parser.add_argument('--' + name, type=type(default) if default is not None else str, default=default, help='(default: %(default)s)')
    args = parser.parse_args()

    def search():
        vars(args).update(use_gpu=True, use_data_parallel=False, cutout=False, cutout_length=16, use_multiprocess=False)
        place = start_script(args, args.model_save_dir, {'learning_rate'})
        train_loader, valid_loader = train_search(args.batch_size, 0.5, True, args)
        network = Network(args.C, class_count(train_loader, args, set()), args.N, args.method)
        searcher = DARTSearch(network, train_loader, valid_loader, place, num_epochs=args.epochs, save_dir=args.model_save_dir, log_freq=10,
                              arch_learning_rate=3e-3, eval_reader=valid_loader.without_augmentation(), search_info={'seed': args.seed})
        print(searcher.train())
    run_script(search)


if __name__ == '__main__':
    main()
