"""What train.py and train_imagenet.py do alike: make or load a network, train it and keep the best, score it, export it.

best_model.pdparams is a plain state dict. best_model.json beside it says what made it, so that a network can be scored, trained on
or exported without repeating any argument.
"""
import os

import paddle

import genotypes
import model as networks
from pictures.vdl import visual_log
from runtime.checkpoint import load_model, save_model, set_state
from runtime.errors import UserError
from runtime.log import logger
from runtime.parallel import broadcast, rank
from runtime.run import Run
from training.engine import Precision, evaluate, fit
from training.summary import count_macs, count_parameters

# What decides a network's shape, as the flags and as best_model.json call it.
SHAPE = ('init_channels', 'layers', 'class_num', 'auxiliary')

# What decides which images a network was trained on, and which it is scored on.
DATA = ('dataset', 'image_size', 'seed')


def describe(network, args):
    """What makes a network: the class of model.py, the genotype and the shape the arguments ask for, and the data it is for.

    network: 'NetworkCIFAR' or 'NetworkImageNet'.
    """
    description = {name: getattr(args, name) for name in SHAPE}
    return dict(description, network=network, genotype=genotypes.to_dict(genotypes.get_genotype(args.arch)))


def build(description, **options):
    """The network that a description stands for. Raises UserError when it isn't one."""
    try:
        genotype = genotypes.from_dict(description['genotype'])
        network = {'NetworkCIFAR': networks.NetworkCIFAR, 'NetworkImageNet': networks.NetworkImageNet}[description['network']]
        init_channels, layers, class_num, auxiliary = [description[name] for name in SHAPE]
        if not all(type(n) is int and 1 <= n <= 10**5 for n in (init_channels, layers, class_num)):
            raise ValueError('init_channels, layers and class_num must be whole numbers of at least 1')
        if options and network is networks.NetworkCIFAR:
            options = {}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f'--pretrained: its .json does not describe a network: {error}')
    return network(init_channels, class_num, layers, bool(auxiliary), genotype, **options)


def load(path, network, args, given, **options):
    """Load a trained network. Where best_model.json lies beside it, that says its shape, else the arguments do.

    given: the names of the flags that were given; one that contradicts best_model.json is refused.
    Returns (model, description).
    """
    state, description = load_model(path)
    if description is None:
        logger.info('%s has no .json beside it: its genotype and shape are those of the flags', path)
        description = describe(network, args)
    else:
        asked = describe(network, args)
        if description.get('network') != network:
            raise UserError('--pretrained: {} holds a {}, this script takes a {}'.format(
                path, description.get('network'), network))
        for flag, name in [('arch', 'genotype')] + [(name, name) for name in SHAPE]:
            if flag in given and asked[name] != description.get(name):
                raise UserError(f'--{flag}: {path} was made with another one; leave the flag out')
    model = build(description, **options)
    set_state(model, state, '--pretrained: ' + path)
    data = description.get('data')
    for name in DATA:
        if isinstance(data, dict) and name not in given and type(data.get(name)) in (str, int):
            setattr(args, name, data[name])
    logger.info('loaded %s', path)
    return model, description


def log_size(model, image_shape):
    """Log the parameters and the multiply-adds of a network for one image [3, H, W]."""
    logger.info('param size = %.6fMB (%d parameters), %d multiply-adds for an image of %s',
                count_parameters(model) / 1e6, count_parameters(model), count_macs(model, image_shape), 'x'.join(map(str, image_shape[1:])))


def train(model, description, train_loader, valid_loader, schedule, args, log_epoch):
    """Train a network, keep the best one in args.model_save_dir, and leave a line an epoch in metrics.jsonl.

    schedule: a paddle.optimizer.lr scheduler, stepped once an epoch. log_epoch: called with the epoch's figures to log them.
    Returns the best top-1 accuracy.
    """
    broadcast(model.parameters())
    parameters = [p for p in model.parameters() if p.trainable]
    optimizer = paddle.optimizer.Momentum(schedule, args.momentum, parameters=parameters, weight_decay=args.weight_decay,
                                          grad_clip=paddle.nn.ClipGradByGlobalNorm(args.grad_clip))
    precision = Precision(args.amp_level, args.amp_dtype, model, optimizer)
    run = Run(args.model_save_dir, model, [(optimizer, parameters)], schedule, [train_loader],
              dict(vars(args), genotype=description['genotype']), args.save_freq, args.keep, scaler=precision.scaler,
              same_on_all_ranks=False, on_epoch=visual_log(args))  # each rank drops paths of its own images
    run.start(args.resume)

    def report(metrics):
        best = run.results.get('best', -1.0)
        run.results['best'] = max(best, metrics['valid_acc'])
        log_epoch(metrics, run.results['best'])
        if metrics['valid_acc'] > best and rank() == 0:
            save_model(os.path.join(args.model_save_dir, 'best_model.pdparams'), model.state_dict(), dict(
                description, epoch=metrics['epoch'], valid_acc=metrics['valid_acc'], valid_acc5=metrics['valid_acc5'],
                arguments=vars(args)))
        return dict(metrics, genotype=description['genotype'])

    fit(model, train_loader, valid_loader, optimizer, schedule, args.epochs, report, precision, run,
        drop_path_prob=args.drop_path_prob, auxiliary_weight=args.auxiliary_weight,
        label_smooth=getattr(args, 'label_smooth', 0.0), log_freq=args.log_freq)
    return run.results['best']


def score(model, loader, args):
    """Score a network on every image of a loader and print the result on standard output."""
    loss, top1, top5 = evaluate(model, loader, Precision(args.amp_level, args.amp_dtype, model))
    if rank() == 0:
        print(f'valid_acc {top1:.6f}, valid_acc5 {top5:.6f}, valid_loss {loss:.6f}, {len(loader.source)} images')


class _LogitsOnly(paddle.nn.Layer):
    """A network without its auxiliary output, as an inference model has it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(image)[0]


def export(model, path, image_shape):
    """Write an inference model, images [N, 3, H, W] in, logits [N, classes] out, that paddle.jit.load and paddle.inference read.

    path: the files' common beginning, as paddle.jit.save takes it.
    """
    model.eval()
    inference = _LogitsOnly(model)
    inference.eval()
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        paddle.jit.save(inference, path, input_spec=[paddle.static.InputSpec([None] + list(image_shape), name='image')])
    except OSError as error:
        raise UserError(f'--export: cannot write {path}: {error.strerror or error}', status=1)
    print(f'exported to {path}.*')
