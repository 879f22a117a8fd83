"""What train.py and train_imagenet.py share: load a network, train it and keep the best, evaluate it.

best_model.pdparams is a plain state dict. best_model.json beside it describes the network, so that it can be
evaluated, trained further or exported without repeating any argument. Its keys: network (the class of model.py),
genotype, init_channels, layers, class_num, auxiliary; image_shape, class_names, normalised and data (dataset,
image_size, seed) of the images it was trained on (prediction.py); figures of its epoch.
"""
import dataclasses
import os
import re

import paddle

import genotypes
from runtime.checkpoint import load_model, save_model, set_state
from runtime.errors import UserError
from runtime.files import refuse_to_overwrite
from runtime.flags import genotype_of
from runtime.log import logger
from runtime.parallel import broadcast, rank
from runtime.run import Run
from training.additions import Additions
from training.engine import Precision, evaluate, fit
from training.options import AdditionOptions, LossOptions, OptimizerOptions, PrecisionOptions
from training.summary import count_macs, count_parameters

# The values that decide the shape of a network, as flags and best_model.json name them.
SHAPE = ('init_channels', 'layers', 'class_num', 'auxiliary')
MAXIMUM = {'init_channels': 4096, 'layers': 1000, 'class_num': 10**6}

CLASSIFIERS = ('classifier.', 'auxiliary_head.classifier.')  # the layers whose size follows from the number of classes


def describe(network_class, flags, class_num):
    """The description of the network that flags stand for, {name: value} with arch, init_channels, layers and auxiliary
    among them. Raises UserError for a wrong arch."""
    return dict({name: flags[name] for name in SHAPE if name != 'class_num'}, class_num=class_num,
                network=network_class.__name__, genotype=genotypes.to_dict(genotype_of(flags['arch'])))


def build(network_class, description, **options):
    """The network of a description; options: further arguments of the class. Raises UserError for a wrong
    description."""
    try:
        genotype = genotypes.from_dict(description['genotype'])
        init_channels, layers, class_num, auxiliary = [description[name] for name in SHAPE]
        for name, maximum in MAXIMUM.items():
            if type(description[name]) is not int or not 1 <= description[name] <= maximum:
                raise ValueError(f'{name} must be a whole number from 1 to {maximum}, it is {description[name]!r:.80}')
        if auxiliary not in (True, False):
            raise ValueError(f'auxiliary must be true or false, it is {auxiliary!r:.80}')
    except KeyError as error:
        raise UserError(f'--pretrained: its .json does not describe a network: the key {error} is missing')
    except (ValueError, TypeError) as error:
        raise UserError(f'--pretrained: its .json does not describe a network: {error}')
    return network_class(init_channels, class_num, layers, bool(auxiliary), genotype, **options)


def load(path, network_class, wanted, given, **options):
    """Load a trained network.

    wanted: the description that the flags stand for; it counts where no best_model.json lies beside the parameters.
    given: the names of the flags that the user gave; a flag that contradicts best_model.json is an error. options: as
    of `build`.
    Returns (network, description). Raises UserError.
    """
    state, description = load_model(path)
    state = {name.removeprefix('_layers.'): value for name, value in state.items()}  # of a paddle.DataParallel
    if description is None:
        logger.info('%s has no .json beside it: genotype and shape are those of the flags', path)
        bias = state.get('classifier.bias')
        description = wanted if bias is None or bias.ndim != 1 else dict(wanted, class_num=len(bias))
    elif description.get('network') != network_class.__name__:
        raise UserError(f'--pretrained: {path} holds a {str(description.get("network")):.80}, this script takes a '
                        f'{network_class.__name__}')
    for flag, name in [('arch', 'genotype')] + [(name, name) for name in SHAPE]:
        if flag in given and wanted[name] != description.get(name):
            raise UserError(f'--{flag}: {path} was made with another value; leave the flag out')
    _check_size(path, state, description)
    model = build(network_class, description, **options)
    set_state(model, state, '--pretrained: ' + path)
    logger.info('loaded %s', path)
    return model, description


def check_image_size(network_class, description, image_shape):
    """Raise UserError where images of image_shape [3, H, W] are too small for a network's auxiliary classifier.
    description: of best_model.json, or flags; only layers and auxiliary are read."""
    least = network_class.smallest_image(description['layers'])
    if description['auxiliary'] and min(image_shape[1:]) < least:
        raise UserError(f'--auxiliary: the auxiliary classifier needs images of at least {least}x{least} pixels, these '
                        f'have {image_shape[1]}x{image_shape[2]}: give --auxiliary=False or larger images')


def _check_size(path, state, description):
    """Compare a description with the arrays that are there, so that a wrong one does not make a network larger than
    its file.

    Raises UserError.
    """
    cells = {int(match.group(1)) for match in (re.match(r'cells\.(\d{1,6})\.', name) for name in state) if match}
    if len(cells) != description.get('layers'):
        raise UserError(f'--pretrained: {path} does not fit this network: it holds {len(cells)} cells, and the network '
                        f'has {description.get("layers")!r:.80} layers')
    for name, array, length in (('class_num', 'classifier.bias', description.get('class_num')),
                                ('init_channels', 'cells.0.preprocess1.op.2.bias', description.get('init_channels'))):
        if array in state and isinstance(length, int):
            found = state[array].size // (2 if name == 'init_channels' and len(cells) < 3 else 1)  # cell 0 may reduce
            if found != length:
                raise UserError(f'--pretrained: {path} does not fit this network: its {name} is {found}, not {length}')


def with_classes(network_class, model, description, class_num, **options):
    """A trained network for another number of classes: its classifiers start untrained, all other weights are kept.

    options: as of `build`. Returns (network, description); the given ones where the number of classes is the same.
    """
    if class_num == description['class_num']:
        return model, description
    logger.info('--pretrained: the network was trained for %d classes, now there are %d: the classifier%s untrained',
                description['class_num'], class_num,
                ' and the auxiliary classifier start' if description['auxiliary'] else ' starts')
    description = dict(description, class_num=class_num)
    adapted = build(network_class, description, **options)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(CLASSIFIERS)}
    adapted.set_state_dict(dict(adapted.state_dict(), **kept))
    return adapted, description


def image_shape_of(description, default):
    """The shape [3, H, W] of the images that a network was trained on; default: for a description that does not say it.

    Raises UserError for anything else in the description.
    """
    shape = description.get('image_shape', default)
    if not (isinstance(shape, list) and len(shape) == 3 and shape[0] == 3
            and all(type(side) is int and 1 <= side <= 4096 for side in shape)):
        raise UserError(f'--pretrained: its .json is wrong: image_shape must be [3, height, width], it is '
                        f'{shape!r:.80}')
    return shape


def log_size(model, image_shape):
    """Log the number of parameters and of multiply-adds for one image [3, H, W]."""
    parameters = count_parameters(model)
    logger.info('param size = %.6fMB (%d parameters), %d multiply-adds for an image of %s',
                parameters / 1e6, parameters, count_macs(model, image_shape), 'x'.join(map(str, image_shape[1:])))


def train(model, description, train_loader, valid_loader, *, schedule, epochs, save_dir, log_epoch, run_options,
          log_freq=50, drop_path_prob=0.0, optimizer_options=OptimizerOptions(), loss_options=LossOptions(),
          precision_options=PrecisionOptions(), addition_options=AdditionOptions()):
    """Train a network and keep the best one in save_dir as best_model.pdparams. Returns the best top-1 accuracy.

    schedule: a paddle.optimizer.lr scheduler, stepped once an epoch. log_epoch: called with the figures of each epoch
    and the best top-1 so far, to log them. drop_path_prob: of the last epoch, see engine.fit. The options: of
    training/options.py.
    """
    broadcast(model.parameters())
    additions = Additions(model, **dataclasses.asdict(addition_options))
    parameters = [p for p in model.parameters() if p.trainable]
    optimizer = paddle.optimizer.Momentum(schedule, optimizer_options.momentum, parameters=parameters,
                                          weight_decay=optimizer_options.weight_decay,
                                          use_nesterov=optimizer_options.nesterov,
                                          grad_clip=paddle.nn.ClipGradByGlobalNorm(optimizer_options.grad_clip))
    precision = Precision(precision_options, model, optimizer)
    run = Run(save_dir, model=model, optimizers=[(optimizer, parameters)], schedule=schedule, loaders=[train_loader],
              arguments=run_options.arguments, seed=run_options.seed, save_freq=run_options.save_freq,
              keep=run_options.keep, on_epoch=run_options.on_epoch, scaler=precision.scaler, tensors=additions.tensors,
              same_on_all_ranks=False)  # each rank drops paths of its own images
    if rank() == 0:
        refuse_to_overwrite(save_dir, ['best_model.json', 'best_model.pdparams'])
    run.start(run_options.resume)

    def report(metrics):
        best = run.results.get('best', -1.0)
        run.results['best'] = max(best, metrics['valid_acc'])
        log_epoch(metrics, run.results['best'])
        if metrics['valid_acc'] > best and rank() == 0:
            save_model(os.path.join(save_dir, 'best_model.pdparams'), model.state_dict(), dict(
                description, epoch=metrics['epoch'], valid_acc=metrics['valid_acc'], valid_acc5=metrics['valid_acc5'],
                arguments=run_options.arguments))
        return dict(metrics, genotype=description['genotype'])

    fit(model, train_loader, valid_loader, optimizer=optimizer, schedule=schedule, epochs=epochs, report=report,
        precision=precision, run=run, loss_options=loss_options, drop_path_prob=drop_path_prob, log_freq=log_freq,
        additions=additions)
    return run.results['best']


def score(model, loader, precision_options=PrecisionOptions()):
    """Evaluate a network on every image of a loader that can be read, and print the result on standard output."""
    loss, top1, top5, images = evaluate(model, loader, precision=Precision(precision_options, model))
    if rank() == 0:
        print(f'valid_acc {top1:.6f}, valid_acc5 {top5:.6f}, valid_loss {loss:.6f}, {images} images')
