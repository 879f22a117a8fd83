r"""Train a cell of NAS-Bench-201 (Dong, Yang, ICLR 2020), given as its string.

    python examples/train_nasbench201.py --arch=search_nasbench201/genotype.json
    python examples/train_nasbench201.py --arch='|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|' --N=1
    python examples/train_nasbench201.py --arch=search_nasbench201/genotype.json --dataset=digits --N=1 --epochs=12 \
        --batch_size=32

The defaults are the paper's (section 2.2): C = 16, N = 5, 200 epochs of SGD with Nesterov momentum at batch size 256,
the learning rate 0.1 falling to 0 along a cosine. Output files as of train.py, in --model_save_dir.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from runtime.log import quiet_warnings  # noqa: E402
from runtime.script import end_on_signals, run_script, start_script  # noqa: E402

if __name__ == '__main__':
    end_on_signals()
    quiet_warnings()  # of importing Paddle

from examples.nasbench201 import EDGES, NODES, OPS, Skeleton, nn, paddle  # noqa: E402, I001  in its order of imports
from examples.nasbench201_table import parse_cell  # noqa: E402
from nas import accelerate  # noqa: E402
from pictures.vdl import visual_log  # noqa: E402
from reader import class_count, class_count_without_data, image_shape, train_valid  # noqa: E402
from runtime.errors import UserError  # noqa: E402
from runtime.files import read_json  # noqa: E402
from runtime.flags import (  # noqa: E402
    DATA_FLAGS, DEVICE_FLAGS, ArgumentParser, boolean, given_flags, integer, path, reader_flags, run_flags)
from runtime.parallel import rank  # noqa: E402
from train import TRAIN_FLAGS, log_epoch  # noqa: E402
from training import evaluation  # noqa: E402
from training.options import OptimizerOptions, RunOptions  # noqa: E402
from training.summary import summary  # noqa: E402

DEFAULTS = dict(epochs=200, batch_size=256, learning_rate=0.1, weight_decay=5e-4)
NETWORK_FLAGS = [
    ('arch', path, None, "the cell's string, |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, or the genotype.json of a search"),
    ('C', integer(1, 4096), 16, 'channels of the first stage'),
    ('N', integer(1, 100), 5, 'cells of each of the three stages'),
    ('class_num', integer(2, 10**6), 10, 'number of classes'),
]
TRAIN_DATA_FLAGS = [
    ('data', path, None, 'the CIFAR archive or the folder it unpacks to (default: dataset/, downloaded if necessary); '
                         'with --dataset=folder, the folder'),
    ('cutout', boolean, False, 'mask a random square of every training image'),
]


class Cell(nn.Layer):
    """A cell with one operation on each edge; `none` gives nothing."""

    def __init__(self, c, operations):
        super().__init__()
        self.edges = nn.LayerList([OPS[name](c, True) for name in operations])

    def forward(self, x):
        """[N, C, H, W] -> [N, C, H, W]."""
        states = [x] + [0] * (NODES - 1)
        for (node, source), operation in zip(EDGES, self.edges):
            states[node] += operation(states[source])
        return states[-1]


class TrainedNetwork(Skeleton):
    """The network of a cell; the interface of model.py's networks."""

    def __init__(self, c, num_classes, n, operations):
        super().__init__(c, num_classes, n, lambda channels: Cell(channels, operations))

    def forward(self, image):
        """image [N, 3, H, W] -> logits [N, num_classes], and None: there is no auxiliary classifier."""
        return super().forward(image), None

    def set_drop_path_prob(self, prob):
        """There is no drop path in NAS-Bench-201."""


def read_cell(arch):
    """The string of the cell that --arch stands for. Raises UserError."""
    place = ''
    try:
        cell = arch
        if os.path.exists(arch):
            path = os.path.join(arch, 'genotype.json') if os.path.isdir(arch) else arch
            place = f'{path}: '
            found = read_json(path, 1 << 20)
            cell = found.get('architecture') if isinstance(found, dict) else None
            if not isinstance(cell, str):
                raise ValueError('it holds no cell of NAS-Bench-201; train.py trains the genotypes of DARTS')
        parse_cell(cell)
        return cell
    except ValueError as error:
        raise UserError(f'--arch: {place}{error}')


def parse_arguments():
    parser = ArgumentParser(__doc__)
    for title, table in (('network', NETWORK_FLAGS), ('training', TRAIN_FLAGS),
                         ('data', DATA_FLAGS + TRAIN_DATA_FLAGS + reader_flags(num_workers=1)),
                         ('device', DEVICE_FLAGS),
                         ('run', run_flags(log_freq=50, model_save_dir='eval_nasbench201'))):
        parser.add_flags(title, [(name, kind, DEFAULTS.get(name, default), text)
                                 for name, kind, default, text in table])
    args = parser.parse_data(None)
    if args.arch is None:
        parser.error("argument --arch: give the cell's string or the genotype.json of a search")
    return args


def main():
    args = parse_arguments()
    cell = read_cell(args.arch)
    start_script(None if args.summary else args.model_save_dir, arguments=vars(args), use_gpu=args.use_gpu,
                 use_data_parallel=args.use_data_parallel, seed=args.seed)
    if args.summary:
        class_num = class_count_without_data(args, given_flags(sys.argv[1:]))
        print(summary(TrainedNetwork(args.C, class_num, args.N, parse_cell(cell)), image_shape(args), args.batch_size))
        return
    train_loader, test_loader = (train_valid(args.batch_size, train, train, args) for train in (True, False))
    class_num = class_count(train_loader, args.class_num if 'class_num' in given_flags(sys.argv[1:]) else None)
    test_loader.source.check_labels(class_num)
    model = TrainedNetwork(args.C, class_num, args.N, parse_cell(cell))
    description = dict(network='TrainedNetwork', genotype=cell, C=args.C, N=args.N, class_num=class_num)
    evaluation.log_size(model, train_loader.source.image_shape)
    best = evaluation.train(
        accelerate(model), description, train_loader, test_loader,
        schedule=paddle.optimizer.lr.CosineAnnealingDecay(args.learning_rate, args.epochs),
        epochs=args.epochs,
        save_dir=args.model_save_dir,
        log_freq=args.log_freq,
        optimizer_options=OptimizerOptions(momentum=args.momentum, weight_decay=args.weight_decay,
                                           grad_clip=args.grad_clip, nesterov=True),
        run_options=RunOptions(arguments=dict(vars(args), class_num=class_num, genotype=cell), seed=args.seed,
                               resume=args.resume, save_freq=args.save_freq, keep=args.keep,
                               on_epoch=visual_log(args.model_save_dir) if args.use_vdl else None),
        log_epoch=log_epoch)
    if rank() == 0:
        print(f'best_valid_acc {best:.6f}')


if __name__ == '__main__':
    run_script(main)
