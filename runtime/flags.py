"""The command lines: types that check a value, a parser that refuses in one line, and the flags that several scripts have alike.

A flag is a row (name, type, default, help) of a table; a table is a group of the help. Defaults live in these tables alone.
"""
import argparse
import difflib
import math
import os

from genotypes import get_genotype


def boolean(text):
    """True, False, 1 or 0 (also yes/no, on/off), as the scripts have always taken them."""
    if text.lower() in ('true', '1', 'yes', 'y', 't', 'on'):
        return True
    if text.lower() in ('false', '0', 'no', 'n', 'f', 'off'):
        return False
    raise argparse.ArgumentTypeError(f'{text!r:.80} is not allowed: give True, False, 1 or 0')


def integer(minimum, maximum=None):
    """An argument type: a whole number from minimum to maximum."""
    return _bounded(int, 'a whole number', lambda value: value >= minimum and (maximum is None or value <= maximum),
                    f'of at least {minimum}' if maximum is None else f'from {minimum} to {maximum}')


def number(minimum, maximum=None):
    """An argument type: a finite number from minimum to maximum."""
    return _bounded(float, 'a number', lambda value: value >= minimum and (maximum is None or value <= maximum),
                    f'of at least {minimum:g}' if maximum is None else f'from {minimum:g} to {maximum:g}')


def positive(minimum_excluded=0.0, maximum_excluded=None):
    """An argument type: a finite number above minimum_excluded and, if given, below maximum_excluded."""
    return _bounded(
        float, 'a number', lambda value: value > minimum_excluded and (maximum_excluded is None or value < maximum_excluded),
        f'above {minimum_excluded:g}' + (
            '' if maximum_excluded is None else f' and below {maximum_excluded:g}'))


def _one_of(words):
    def parse(text):
        if text in words:
            return text
        raise argparse.ArgumentTypeError('{!r:.80} is not allowed: give one of {}'.format(text, ', '.join(words)))
    return parse


def _bounded(cast, kind, inside, bounds):
    def parse(text):
        try:
            value = cast(text)
            if math.isfinite(value) and inside(value):
                return value
        except (ValueError, OverflowError):
            pass
        raise argparse.ArgumentTypeError(f'{text!r:.80} is not allowed: give {kind} {bounds}')
    return parse


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviated flags, and every default in the help."""

    def __init__(self, doc):
        super().__init__(description=doc, allow_abbrev=False,
                         formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32))

    def add_flags(self, title, table):
        """Add a group of flags. table: rows (name, type, default, help); a type may also be a list of allowed words."""
        group = self.add_argument_group(title)
        for name, kind, default, text in table:
            options = {'type': kind, 'metavar': 'TEXT' if kind is str else 'N'}
            if isinstance(kind, list):
                options = {'type': _one_of(kind), 'metavar': '{' + ','.join(kind) + '}'}
            elif kind is boolean:
                options.update(nargs='?', const=True, metavar='True|False')
            shown = '' if default is None else f' (default: {default})'
            group.add_argument('--' + name, default=default, help=text.replace('%', '%%') + shown, **options)

    def parse_data(self, argv):
        """parse_args for the scripts with DATA_FLAGS, some of which go together."""
        args = self.parse_args(argv)
        if args.image_size and args.dataset != 'folder':
            self.error(f'argument --image_size: goes with --dataset=folder; the images of {args.dataset} have their own size')
        if args.dataset == 'folder' and not os.path.isdir(str(args.data)):
            self.error(f'argument --data: {args.data} is not a folder; --dataset=folder takes one with a folder of images a class')
        return args

    def check_use(self, args):
        """Of the USE_FLAGS, eval_only and export need a network. --arch is looked at before anything is read or downloaded."""
        for name in ('eval_only', 'export'):
            if getattr(args, name) and not args.pretrained:
                self.error(f'argument --{name}: give the network with --pretrained=PATH of a best_model.pdparams')
        get_genotype(args.arch)
        return args

    def error(self, message):
        if message.startswith('unrecognized arguments: --'):
            word = message.split()[2].split('=')[0]
            near = difflib.get_close_matches(word, self._option_string_actions, 1)
            message = f'there is no flag {word}' + (f'; did you mean {near[0]}?' if near else ', see --help')
        self.exit(2, '{}: error: {}\n'.format(self.prog, message.replace('\n', ' ')))


def given_flags(argv):
    """The names of the flags that stand on a command line, to tell a default from a value that was asked for."""
    return {word[2:].split('=')[0] for word in argv if word.startswith('--')}


# Flags that all scripts have alike.
DEVICE_FLAGS = [
    ('use_gpu', boolean, True, 'run on a GPU if there is one, else on the CPU'),
    ('use_data_parallel', boolean, False, 'several cards, with python -m paddle.distributed.launch'),
    ('seed', integer(0, 2**32 - 1), 0, 'seed of all that is random'),
]
DATA_FLAGS = [
    ('dataset', ['cifar10', 'cifar100', 'digits', 'folder'], 'cifar10',
     "cifar10; cifar100; digits: scikit-learn's, 1,437 to train and 360 to test, 8x8, nothing to download; folder: one folder of images a class"),
    ('image_size', integer(8, 1024), None, 'for --dataset=folder: images are brought to so many pixels a side (default: 32)'),
    ('trainset_num', integer(2), 50000, 'use at most so many training images'),
    ('cutout_length', integer(0), 16, 'side of the blanked square, in pixels of a 32x32 image; other sizes in proportion'),
]
USE_FLAGS = [
    ('pretrained', str, None, 'a best_model.pdparams to start from; the .json beside it says genotype, channels, layers, classes'),
    ('eval_only', boolean, False, 'score the --pretrained network on the test set and end'),
    ('export', str, None, 'write the --pretrained network as an inference model, PATH.* (paddle.jit.save), and end'),
]
PRECISION_FLAGS = [
    ('amp_level', ['O0', 'O1', 'O2'], 'O0', 'mixed precision on a GPU: O0 none, O1 where it is safe, O2 nearly everywhere'),
    ('amp_dtype', ['float16', 'bfloat16'], 'float16', 'its type; float16 scales the loss'),
]


def reader_flags(num_workers):
    """The flags of a reader in worker processes."""
    return [
        ('use_multiprocess', boolean, True, 'read images in worker processes; False: in the main process'),
        ('num_workers', integer(1, 64), num_workers, 'worker processes of a reader'),
        ('max_bad_images', integer(0), 0, 'leave out at most so many image files that cannot be read; one more ends the run'),
    ]


def network_flags(init_channels, layers, class_num, drop_path_prob):
    """The flags of a network made of a genotype, with a script's own defaults."""
    return [
        ('arch', str, 'DARTS_V2', "the genotype: a name of genotypes.py or a genotype.json"),
        ('init_channels', integer(1), init_channels, 'channels of the first cell'),
        ('layers', integer(1), layers, 'cells; those at 1/3 and 2/3 of them are reduction cells'),
        ('class_num', integer(2), class_num, 'classes of the data'),
        ('auxiliary', boolean, True, 'train with an auxiliary classifier at 2/3 of the cells'),
        ('auxiliary_weight', number(0), 0.4, 'of its loss'),
        ('drop_path_prob', number(0, 1), drop_path_prob, 'probability of dropping a path; it rises to this from 0 over the epochs'),
    ]


def run_flags(log_freq, model_save_dir):
    """Where a run writes, and how often."""
    return [
        ('log_freq', integer(1), log_freq, 'steps between two log lines'),
        ('model_save_dir', str, model_save_dir, 'folder for all that the run leaves'),
        ('resume', boolean, False, 'go on from the newest whole checkpoint in --model_save_dir, if there is one'),
        ('save_freq', integer(0), 0, 'steps between two checkpoints within an epoch; 0: one at the end of each epoch'),
        ('keep', integer(1), 2, 'how many checkpoints stay, the newest ones'),
        ('use_vdl', boolean, False, 'log curves, alphas and the cells for VisualDL, to vdl/ in --model_save_dir'),
        ('summary', boolean, False, "print the network's size, part by part, and end"),
    ]
