"""What train.py and train_imagenet.py share: load a network, train it and keep the best, evaluate it, export it.

best_model.pdparams is a plain state dict. best_model.json beside it describes the network, so that it can be evaluated, trained
further or exported without repeating any argument. Its keys: network (the class of model.py), genotype, init_channels, layers,
class_num, auxiliary; image_shape and data (dataset, image_size, seed) of the images it was trained on; figures of its epoch.
"""
import os

import paddle

import genotypes
from runtime.checkpoint import load_model, save_model, set_state
from runtime.errors import UserError
from runtime.log import logger
from runtime.parallel import broadcast, rank
from runtime.run import Run
from training.engine import Precision, evaluate, fit
from training.summary import count_macs, count_parameters

# The values that decide the shape of a network, as flags and best_model.json name them.
SHAPE = ('init_channels', 'layers', 'class_num', 'auxiliary')


def describe(network_class, genotype, **shape):
    """The description of a network. shape: a value for each name of SHAPE."""
    return dict({name: shape[name] for name in SHAPE}, network=network_class.__name__, genotype=genotypes.to_dict(genotype))


def build(network_class, description, **options):
    """The network of a description; options: further arguments of the class. Raises UserError for a wrong description."""
    try:
        genotype = genotypes.from_dict(description['genotype'])
        init_channels, layers, class_num, auxiliary = [description[name] for name in SHAPE]
        if not all(type(n) is int and 1 <= n <= 10**5 for n in (init_channels, layers, class_num)):
            raise ValueError('init_channels, layers and class_num must be whole numbers of at least 1')
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f'--pretrained: its .json does not describe a network: {error}')
    return network_class(init_channels, class_num, layers, bool(auxiliary), genotype, **options)


def load(path, network_class, wanted, given, **options):
    """Load a trained network.

    wanted: the description that the flags stand for; it counts where no best_model.json lies beside the parameters. given: the names
    of the flags that the user gave; a flag that contradicts best_model.json is an error. options: as of `build`.
    Returns (network, description). Raises UserError.
    """
    state, description = load_model(path)
    if description is None:
        logger.info('%s has no .json beside it: genotype and shape are those of the flags', path)
        description = wanted
    else:
        if description.get('network') != network_class.__name__:
            raise UserError(f'--pretrained: {path} holds a {description.get("network")}, this script takes a {network_class.__name__}')
        for flag, name in [('arch', 'genotype')] + [(name, name) for name in SHAPE]:
            if flag in given and wanted[name] != description.get(name):
                raise UserError(f'--{flag}: {path} was made with another value; leave the flag out')
    model = build(network_class, description, **options)
    set_state(model, state, '--pretrained: ' + path)
    logger.info('loaded %s', path)
    return model, description


def log_size(model, image_shape):
    """Log the number of parameters and of multiply-adds for one image [3, H, W]."""
    parameters = count_parameters(model)
    logger.info('param size = %.6fMB (%d parameters), %d multiply-adds for an image of %s',
                parameters / 1e6, parameters, count_macs(model, image_shape), 'x'.join(map(str, image_shape[1:])))


def train(model, description, train_loader, valid_loader, *, schedule, epochs, optimizer_options, loss_options, run_options,
          drop_path_prob, precision_options, save_dir, log_freq, log_epoch):
    """Train a network and keep the best one in save_dir as best_model.pdparams. Returns the best top-1 accuracy.

    schedule: a paddle.optimizer.lr scheduler, stepped once an epoch. optimizer_options: momentum, weight_decay, grad_clip.
    loss_options: of engine.classification_loss. precision_options: level and dtype of engine.Precision. run_options: resume, and
    keywords of runtime.run.Run. log_epoch: called with the figures of each epoch and the best top-1 so far, to log them.
    """
    broadcast(model.parameters())
    parameters = [p for p in model.parameters() if p.trainable]
    optimizer = paddle.optimizer.Momentum(schedule, optimizer_options['momentum'], parameters=parameters,
                                          weight_decay=optimizer_options['weight_decay'],
                                          grad_clip=paddle.nn.ClipGradByGlobalNorm(optimizer_options['grad_clip']))
    precision = Precision(model=model, optimizer=optimizer, **precision_options)
    resume = run_options.pop('resume')
    run = Run(save_dir, model=model, optimizers=[(optimizer, parameters)], schedule=schedule, loaders=[train_loader],
              scaler=precision.scaler, same_on_all_ranks=False, **run_options)  # each rank drops paths of its own images
    run.start(resume)

    def report(metrics):
        best = run.results.get('best', -1.0)
        run.results['best'] = max(best, metrics['valid_acc'])
        log_epoch(metrics, run.results['best'])
        if metrics['valid_acc'] > best and rank() == 0:
            save_model(os.path.join(save_dir, 'best_model.pdparams'), model.state_dict(), dict(
                description, epoch=metrics['epoch'], valid_acc=metrics['valid_acc'], valid_acc5=metrics['valid_acc5'],
                arguments=run_options['arguments']))
        return dict(metrics, genotype=description['genotype'])

    fit(model, train_loader, valid_loader, optimizer=optimizer, schedule=schedule, epochs=epochs, report=report, precision=precision,
        run=run, loss_options=loss_options, drop_path_prob=drop_path_prob, log_freq=log_freq)
    return run.results['best']


def score(model, loader, precision_options):
    """Evaluate a network on every image of a loader and print the result on standard output."""
    loss, top1, top5 = evaluate(model, loader, precision=Precision(model=model, **precision_options))
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

    path: the common beginning of the files' names, as in paddle.jit.save.
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
