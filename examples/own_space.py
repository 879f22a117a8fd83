"""The smallest search space of one's own: three nodes, five edges, four operations, one of them new. Copy it and change
OPS, GRAPH and Network.

    python examples/own_space.py                      first-order DARTS on scikit-learn's digits, a minute on a CPU
    python examples/own_space.py --method=PC-DARTS

The result is a list with the operation of each edge. examples/nasbench201.py is a space with everything around it:
flags, several cells, the stages of DrNAS, training of the cell that was found.
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
import numpy as np  # noqa: E402
import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402
import paddle.nn.functional as F  # noqa: E402
from paddle.nn.initializer import Normal  # noqa: E402

from model_search import GraphCell, MixedOp, edge_counts  # noqa: E402
from nas import DARTSearch  # noqa: E402
from nas.methods import METHODS  # noqa: E402
from operations import Identity, ReLUConvBN, Zero, batch_norm, conv2d  # noqa: E402
from reader import digits_reader  # noqa: E402
from runtime.flags import ArgumentParser, integer, path  # noqa: E402

# name: function of the channels -> a layer. Only operations that are made of known layers are fast
# (docs/en/acceleration.md); `squeeze` is one.
OPS = {
    'none': lambda c: Zero(1),
    'skip_connect': lambda c: Identity(),
    'conv_3x3': lambda c: ReLUConvBN(c, c, 3, 1, 1, affine=False),
    'squeeze': lambda c: nn.Sequential(nn.ReLU(), conv2d(c, c // 2, 1), batch_norm(c // 2, affine=False),
                                       nn.ReLU(), conv2d(c // 2, c, 3, padding=1), batch_norm(c, affine=False)),
}
GRAPH = [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2)]  # (node, source) of each edge; node 0 is the input, node 3 the output


class Edge(MixedOp):
    """The weighted sum of all operations, of those named in method.primitives."""

    def operation(self, primitive, c):
        return OPS[primitive](c)


class Network(nn.Layer):
    """A stem, one cell, a classifier. What the searcher asks a network for is in docs/en/search-space.md."""

    def __init__(self, c, num_classes, method):
        super().__init__()
        self.method = METHODS[method]()
        self.method.primitives = list(OPS)  # before the edges are made
        self.stem = nn.Sequential(conv2d(1, c, 3, padding=1), batch_norm(c))
        self.cell = GraphCell(GRAPH, lambda: Edge(c, 1, self.method))
        self.classifier = nn.Linear(c, num_classes)
        self.alphas = self.create_parameter([len(GRAPH), len(OPS)], default_initializer=Normal(0.0, 1e-3))
        self.betas = (self.create_parameter([len(GRAPH)], default_initializer=Normal(0.0, 1e-3))
                      if self.method.with_betas else None)

    def forward(self, image):
        """image [N, 1, H, W] -> logits [N, num_classes]."""
        weights = self.method.operation_weights(self.alphas)
        x = self.cell(self.stem(image), weights, self.method.edge_weights(self.betas, edge_counts(GRAPH)),
                      self.method.active_operations(weights))
        return self.classifier(x.mean([2, 3]))

    def arch_parameters(self):
        return [self.alphas] if self.betas is None else [self.alphas, self.betas]

    def _loss(self, image, label):
        return F.cross_entropy(self(image), label) + self.method.regularizer([self.alphas])

    @paddle.no_grad()
    def strengths(self):
        return [self.method.strengths(self.alphas)]

    def genotype(self):
        """The name of the strongest operation of each edge."""
        return [self.method.primitives[column] for column in self.strengths()[0].argmax(-1).tolist()]


class Digits(paddle.io.Dataset):
    """Every second of scikit-learn's training digits: image [1, 8, 8] of values from -1 to 1, label."""

    def __init__(self, first):
        self.items = [(np.float32(image)[None] / 127.5 - 1, label) for image, label in digits_reader(True)[first::2]]

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


def main():
    parser = ArgumentParser(__doc__)
    parser.add_flags('search', [('method', list(METHODS), 'DARTS', 'the search method, a class of nas/methods.py'),
                                ('epochs', integer(1, 10000), 5, 'passes over the training data'),
                                ('model_save_dir', path, 'search_own_space', 'folder of the output files')])
    args = parser.parse_args()
    place = start_script(args.model_save_dir, arguments=vars(args), use_gpu=False, use_data_parallel=False, seed=0)
    channels = 24  # a multiple of 4 and of 6: PC-DARTS passes a quarter of them through the operations, DrNAS a sixth
    searcher = DARTSearch(Network(channels, 10, args.method), Digits(0), Digits(1), place, batchsize=32,
                          arch_learning_rate=3e-3, num_epochs=args.epochs, save_dir=args.model_save_dir, log_freq=10)
    print(searcher.train())


if __name__ == '__main__':
    run_script(main)
