"""Search a cell on CIFAR-10 with DARTS, PC-DARTS or one of their successors.

    python search.py                                          first-order DARTS, 50 epochs, on CIFAR-10
    python search.py --unrolled=True                          second-order DARTS
    python search.py --method='PC-DARTS' --batch_size=256 --learning_rate=0.1 --arch_learning_rate=6e-4 --epochs_no_archopt=15
    python search.py --dataset=digits --layers=3 --method='PC-DARTS' --epochs=10 --batch_size=32 --learning_rate=0.1      minutes on a laptop's CPU
    python -m paddle.distributed.launch --selected_gpus=0,1,2,3 --log_dir ./mylog search.py --use_data_parallel 1

It leaves train.log, metrics.jsonl, genotype.json and, for each epoch, <epoch>/params.pdparams and <epoch>/genotype.json in
--model_save_dir, and ends by printing the genotype and the command that trains it.
"""
import argparse
import os
import random
import shlex
import sys

from genotypes import genotype_json, random_genotype
from runtime.flags import (
    DATA_FLAGS,
    DEVICE_FLAGS,
    ArgumentParser,
    boolean,
    given_flags,
    integer,
    number,
    positive,
    reader_flags,
    run_flags,
)
from runtime.log import logger
from runtime.parallel import rank
from runtime.script import run_script, start_script


def stop_rule(text):
    """An argument type: 'skip:2' or 'eigenvalue:1.3', as [kind, limit]."""
    kind, _, limit = text.partition(':')
    if kind == 'skip':
        return [kind, integer(1)(limit)]
    if kind == 'eigenvalue':
        return [kind, positive()(limit)]
    raise argparse.ArgumentTypeError(f'{text!r:.80} is not allowed: give skip:NUMBER or eigenvalue:RATIO')


SEARCH_FLAGS = [
    ('method', ['DARTS', 'PC-DARTS', 'GDAS', 'DrNAS', 'FairDARTS', 'DARTS-', 'random'], 'DARTS',
     'the search method, a class of model_search.py; random draws --samples cells and trains nothing'),
    ('samples', integer(1), 1, 'cells that --method=random draws'),
    ('unrolled', boolean, False, 'second order: the architecture gradient looks one weight step ahead'),
    ('epochs', integer(1), 50, 'passes over the training half'),
    ('epochs_no_archopt', integer(0), 0, 'first epochs in which only the weights learn'),
    ('init_channels', integer(1), 16, 'channels C of the first cell; PC-DARTS takes multiples of 4'),
    ('layers', integer(1), 8, 'cells of the supernet; those at 1/3 and 2/3 of them are reduction cells'),
]
COLLAPSE_FLAGS = [
    ('eigenvalue_freq', integer(0), 0, "epochs between two measurements of the Hessian's dominant eigenvalue; 0: none"),
    ('early_stop', stop_rule, None, 'skip:2 stops at two skip connections in the normal cell, eigenvalue:1.3 when the eigenvalue has '
                                    'grown so much; the genotype is that of the last good epoch'),
]
WEIGHT_FLAGS = [
    ('batch_size', integer(1), 64, 'images a step, on each card'),
    ('learning_rate', positive(), 0.025, 'initial learning rate, falling along a cosine over all epochs'),
    ('learning_rate_min', number(0), None, 'where the cosine ends (default: 1e-3, for PC-DARTS 0, as the authors have it)'),
    ('momentum', number(0, 1), 0.9, 'of SGD'),
    ('weight_decay', number(0), 3e-4, 'L2 decay of the weights'),
    ('grad_clip', positive(), 5.0, "largest global norm of the weights' gradient"),
]
ARCH_FLAGS = [
    ('arch_learning_rate', positive(), 3e-4, "learning rate of the architecture's Adam"),
    ('arch_weight_decay', number(0), 1e-3, 'L2 decay of the architecture parameters'),
]
HALVES_FLAGS = [
    ('data', str, None, 'the CIFAR archive or the folder it unpacks to (default: dataset/ beside this script, downloaded when it '
                        'is not there); with --dataset=folder, the folder'),
    ('class_num', integer(2), 10, "classes; without this flag the data's"),
    ('train_portion', positive(0, 1), 0.5, 'share of the images that trains the weights; the rest trains the architecture'),
    ('validate', boolean, True, 'measure the accuracy on the validation half after every epoch'),
    ('cutout', boolean, False, 'blank a square of every training image'),
]
SAVE_FLAGS = [
    ('save_params', boolean, True, "keep each epoch's parameters, <epoch>/params.pdparams"),
]

# Sizes that fit 1,437 images of 8x8, for minutes on a CPU.
DIGITS_TRAINING = ['--init_channels=16', '--layers=5', '--epochs=12', '--batch_size=32', '--learning_rate=0.05', '--cutout=False', '--drop_path_prob=0']
AUXILIARY_SIZE = 32  # side of the smallest images that the auxiliary head takes

# What of a search's command line says which images there are; the seed sets a folder's test images apart.
DATA_NAMES = ('dataset', 'data', 'image_size', 'class_num', 'trainset_num', 'max_bad_images', 'seed')


def parse_arguments(argv=None):
    parser = ArgumentParser(__doc__)
    for title, table in (('search', SEARCH_FLAGS), ('weight step', WEIGHT_FLAGS), ('architecture step', ARCH_FLAGS), ('collapse', COLLAPSE_FLAGS),
                         ('data', DATA_FLAGS + HALVES_FLAGS + reader_flags(num_workers=1)), ('device', DEVICE_FLAGS),
                         ('run', run_flags(log_freq=50, model_save_dir='search_cifar') + SAVE_FLAGS)):
        parser.add_flags(title, table)
    args = parser.parse_data(argv)
    if args.learning_rate_min is None:
        args.learning_rate_min = 0.0 if args.method == 'PC-DARTS' else min(1e-3, args.learning_rate)
    if args.learning_rate_min > args.learning_rate:
        parser.error(f'argument --learning_rate_min: {args.learning_rate_min:g} is not allowed: give at most --learning_rate, {args.learning_rate:g}')
    if args.early_stop and args.early_stop[0] == 'eigenvalue' and not args.eigenvalue_freq:
        parser.error('argument --early_stop: eigenvalue needs --eigenvalue_freq, the epochs between two measurements')
    if args.summary and args.method == 'random':
        parser.error('argument --summary: --method=random has no supernet to summarise; give another --method')
    return args


def main():
    args = parse_arguments()
    given = given_flags(sys.argv[1:])
    place = start_script(args, None if args.summary else args.model_save_dir, given)
    if args.method == 'random':
        draw(args)
        return
    # Paddle and what needs it: seconds of import that --help and a wrong argument don't pay.
    from model_search import Network
    from nas.collapse import EarlyStop
    from nas.searcher import DARTSearch
    from pictures.vdl import visual_log
    from reader import class_count, image_shape, train_search
    from training.summary import summary

    if args.summary:
        print(summary(Network(args.init_channels, args.class_num, args.layers, args.method), image_shape(args), args.batch_size))
        return
    train_loader, valid_loader = train_search(args.batch_size, args.train_portion, True, args)
    args.class_num = class_count(train_loader, args, given)
    model = Network(args.init_channels, args.class_num, args.layers, args.method)
    searcher = DARTSearch(
        model, train_loader, valid_loader, place,
        learning_rate=args.learning_rate,
        batchsize=args.batch_size,
        num_imgs=args.trainset_num,
        arch_learning_rate=args.arch_learning_rate,
        unrolled=args.unrolled,
        num_epochs=args.epochs,
        epochs_no_archopt=args.epochs_no_archopt,
        use_multiprocess=args.use_multiprocess,
        save_dir=args.model_save_dir,
        log_freq=args.log_freq,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        grad_clip=args.grad_clip,
        arch_weight_decay=args.arch_weight_decay,
        learning_rate_min=args.learning_rate_min,
        eval_reader=valid_loader.without_augmentation(),
        validate=args.validate,
        search_info={'method': args.method, 'seed': args.seed, 'dataset': args.dataset},
        resume=args.resume,
        save_freq=args.save_freq,
        keep=args.keep,
        save_params=args.save_params,
        arguments=vars(args),
        on_epoch=visual_log(args),
        eigenvalue_freq=args.eigenvalue_freq,
        early_stop=args.early_stop and EarlyStop(*args.early_stop))
    genotype = searcher.train()
    if rank() == 0:
        report(genotype, args, train_loader.source.image_shape)


def draw(args):
    """Write --samples random genotypes, <number>/genotype.json; the first one is genotype.json too."""
    from reader import image_shape
    from runtime.checkpoint import remove_numbered, write_text
    generator = random.Random(args.seed)
    genotypes = [random_genotype(generator) for _ in range(args.samples)]
    if rank() == 0:
        remove_numbered(args.model_save_dir, 0, ['sample'])
    for number in range(args.samples if rank() == 0 else 0):
        text = genotype_json(genotypes[number], {'method': 'random', 'seed': args.seed, 'sample': number, 'dataset': args.dataset})
        for folder in [os.path.join(args.model_save_dir, str(number))] + [args.model_save_dir] * (number == 0):
            write_text(os.path.join(folder, 'genotype.json'), text)
    if rank() == 0:
        report(genotypes[0], args, image_shape(args))


def report(genotype, args, image_shape):
    """Print the result, and how to go on with images of image_shape [3, H, W], on standard output."""
    path = os.path.join(args.model_save_dir, 'genotype.json')
    logger.info('written: %s', path)
    print(f'genotype = {genotype}')
    print(f'To train it: {train_command(path, args, image_shape, given_flags(sys.argv[1:]))}')


def train_command(path, args, image_shape, given):
    """The command that trains the genotype at `path` on the data it was searched on, ready for a shell.

    given: the names of the flags that were given.
    """
    words = ['python', os.path.join(os.path.dirname(sys.argv[0]), 'train.py'), '--arch=' + path]
    words += [f'--{name}={getattr(args, name)}' for name in DATA_NAMES if name in given]
    if min(image_shape[1:]) < AUXILIARY_SIZE:
        words.append('--auxiliary=False')
    if args.dataset == 'digits':
        words += DIGITS_TRAINING
    return ' '.join(map(shlex.quote, words))


if __name__ == '__main__':
    run_script(main)
