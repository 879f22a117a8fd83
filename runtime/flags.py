"""Command lines: argument types that check a value, a parser with one-line errors, and the flags that several scripts
share.

A flag is a row (name, type, default, help) of a table; a table is an argument group of --help. Defaults are in these
tables only.
"""
import argparse
import contextlib
import difflib
import math
import os
import sys
from decimal import Decimal, InvalidOperation

from genotypes import get_genotype
from runtime.errors import UserError, printable


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
        float, 'a number', lambda value: value > minimum_excluded and (maximum_excluded is None
                                                                       or value < maximum_excluded),
        f'above {minimum_excluded:g}' + (
            '' if maximum_excluded is None else f' and below {maximum_excluded:g}'))


def amount(text):
    """An argument type: a whole number above 0, also written with K, M or G: 3.5M is 3500000."""
    factor = {'K': 10**3, 'M': 10**6, 'G': 10**9}.get(text[-1:].upper(), 1)
    try:
        value = Decimal(text if factor == 1 else text[:-1]) * factor
        if value.is_finite() and 0 < value < 10**18 and value == int(value):
            return int(value)
    except (InvalidOperation, ValueError):
        pass
    raise argparse.ArgumentTypeError(f'{text!r:.80} is not allowed: give a whole number above 0, such as 600000000, '
                                     '600M or 3.5M')


amount.metavar = 'N'


def path(text):
    """An argument type: any text but an empty one, such as an unset shell variable gives."""
    if not text:
        raise argparse.ArgumentTypeError('an empty value is not allowed')
    return text


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
    parse.metavar = 'N'  # in the help
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
            options = {'type': kind, 'metavar': getattr(kind, 'metavar', 'TEXT')}
            if isinstance(kind, list):
                options = {'type': _one_of(kind), 'metavar': '{' + ','.join(kind) + '}'}
            elif kind is boolean:
                options.update(nargs='?', const=True, metavar='True|False')
            shown = '' if default is None else f' (default: {default})'
            group.add_argument('--' + name, default=default, help=text.replace('%', '%%') + shown, **options)

    def parse_data(self, argv):
        """parse_args for the scripts with data_flags(), some of which go together."""
        args = self.parse_args(argv)
        given = given_flags(sys.argv[1:] if argv is None else argv)
        if args.image_size and args.dataset not in ('folder', 'imagenet'):
            sized = 'folder or imagenet' if hasattr(args, 'data_dir') else 'folder'
            self.error(f'argument --image_size: goes with --dataset={sized}; the images of {args.dataset} have their '
                       f'own size')
        if args.dataset == 'folder' and not getattr(args, 'predict', None) and not os.path.isdir(str(args.data)):
            wrong = '' if args.data is None else f'{args.data} is not a folder; '
            self.error(f'argument --data: {wrong}give the folder of --dataset=folder, which has a subfolder of images '
                       'for each class')
        if args.dataset == 'digits' and 'data' in given:
            self.error('argument --data: has no meaning with --dataset=digits; for data of your own give another '
                       '--dataset')
        if args.dataset == 'imagenet':
            self._check_imagenet(args, given)
        for name in [row[0] for row in IMAGENET_FLAGS if row[0] in given and args.dataset != 'imagenet']:
            self.error(f'argument --{name}: goes with --dataset=imagenet, not with {args.dataset}')
        return args

    def _check_imagenet(self, args, given):
        """Refuse flags that have no meaning with --dataset=imagenet, and sizes that it cannot have."""
        for name in NOT_FOR_IMAGENET:
            if name in given and getattr(args, name) is not False:
                self.error(f'argument --{name}: has no meaning with --dataset=imagenet; {NOT_FOR_IMAGENET[name]}')
        if args.image_size and args.image_size < 32:
            self.error(f'argument --image_size: {args.image_size} is not allowed: --dataset=imagenet takes at least '
                       '32, since the stem leaves an eighth')
        if args.init_channels < 2:
            self.error(f'argument --init_channels: {args.init_channels} is not allowed: --dataset=imagenet takes at '
                       'least 2, since the first convolution of the stem has half as many')
        if args.train_fraction + args.arch_fraction > 1:
            self.error(f'argument --arch_fraction: {args.arch_fraction:g} is not allowed: with '
                       f'--train_fraction={args.train_fraction:g} that is more than all images')
        if not os.path.isdir(args.data_dir):
            self.error(f'argument --data_dir: {args.data_dir} is not a folder; --dataset=imagenet takes the one with '
                       'the images and train_list.txt')

    def check_use(self, args):
        """Check USE_FLAGS, of which eval_only, predict and export need a network, and --arch, before anything is read
        or downloaded."""
        for name in ('eval_only', 'predict', 'export'):
            if getattr(args, name) and not args.pretrained:
                self.error(f'argument --{name}: give the network with --pretrained=PATH of a best_model.pdparams')
        if args.export and (args.export.endswith(('/', os.sep)) or os.path.isdir(args.export)):
            self.error(f'argument --export: {args.export} is a folder; give the beginning of the file names, such as '
                       f'{os.path.join(args.export, "model")}')
        if args.export and args.use_data_parallel:
            self.error('argument --export: does not go together with --use_data_parallel')
        for name in ('eval_only', 'export', 'summary', 'resume', 'use_data_parallel'):
            if args.predict and getattr(args, name):
                self.error(f'argument --predict: does not go together with --{name}')
        for name in ('eval_only', 'export'):
            for other in ('summary', 'resume'):
                if getattr(args, other) and getattr(args, name):
                    self.error(f'argument --{other}: does not go together with --{name}')
        if args.predict and not os.path.exists(args.predict):
            self.error(f'argument --predict: {args.predict} does not exist; give an image file or a folder')
        if args.json and not args.predict:
            self.error('argument --json: goes with --predict')
        if args.format != 'paddle' and not args.export:
            self.error('argument --format: goes with --export')
        try:
            get_genotype(args.arch)
        except ValueError as error:
            self.error(f'argument --arch: {error}')
        return args

    def check_additions(self, args):
        """Check ADDITION_FLAGS against other flags."""
        if args.warmup_epochs >= args.epochs:
            self.error(f'argument --warmup_epochs: {args.warmup_epochs} is not allowed: it must be less than the '
                       f'{args.epochs} --epochs')
        for name in ('mixup', 'cutmix'):
            if getattr(args, name) and args.batch_size < 2:
                self.error(f'argument --{name}: mixes the images of a batch; --batch_size must be at least 2')
        return args

    def exit(self, status=0, message=None):
        if message:
            with contextlib.suppress(OSError, ValueError):  # standard error is full: the status says it
                sys.stderr.write(message)
        sys.exit(status)

    def error(self, message):
        if message.startswith('unrecognized arguments: --'):
            word = message.split()[2].split('=')[0]
            names = [option.lstrip('-') for option in self._option_string_actions]
            near = difflib.get_close_matches(word.lstrip('-'), names, 1)
            message = f'there is no flag {word}' + (f'; did you mean --{near[0]}?' if near else ', see --help')
        self.exit(2, printable(f'{self.prog}: error: {message}'.replace('\n', ' ')) + '\n')


def given_flags(argv):
    """The names of the flags on a command line, to tell a given value from a default."""
    return {word[2:].split('=')[0] for word in argv if word.startswith('--')}


def checked_value(table, name, value):
    """The value of a flag that comes from a file, checked as on the command line. Raises ValueError that names the
    flag."""
    kind = next(kind for row, kind, _, _ in table if row == name)
    try:
        if type(value) not in (str, int, float, bool):
            raise argparse.ArgumentTypeError(f'{value!r:.80} is not allowed')
        return (_one_of(kind) if isinstance(kind, list) else kind)(str(value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f'{name}: {error}')


def genotype_of(arch):
    """The Genotype that --arch names. Raises UserError for a wrong value."""
    try:
        return get_genotype(arch)
    except ValueError as error:
        raise UserError(f'--arch: {error}')


# Flags that several scripts share.
DEVICE_FLAGS = [
    ('use_gpu', boolean, True, 'run on a GPU if there is one, otherwise on the CPU'),
    ('use_data_parallel', boolean, False, 'run in several processes, one for each GPU or, with --nproc_per_node, on '
                                          'CPUs; start with python -m paddle.distributed.launch'),
    ('seed', integer(0, 2**32 - 1), 0, 'random seed'),
]
IMAGENET_FLAGS = [
    ('data_dir', path, 'dataset/ILSVRC2012', 'for --dataset=imagenet: the folder with the images and train_list.txt'),
    ('train_fraction', positive(0, 1), 0.1, 'for --dataset=imagenet: fraction of the images of train_list.txt used for '
                                            'weight training, drawn from each class'),
    ('arch_fraction', positive(0, 1), 0.025, 'for --dataset=imagenet: fraction of the images of train_list.txt that '
                                             'train the architecture, drawn from the others of each class'),
]
NOT_FOR_IMAGENET = {  # and what to do instead
    'data': 'give the folder with --data_dir',
    'train_portion': 'give --train_fraction and --arch_fraction',
    'trainset_num': 'give --train_fraction and --arch_fraction',
    'cutout': 'its images are cropped at random and flipped',
    'cutout_length': 'its images are cropped at random and flipped',
}


def data_flags(imagenet):
    """The flags that say which images there are. imagenet: whether --dataset=imagenet is one of the data sets."""
    return [
        ('dataset', ['cifar10', 'cifar100', 'digits', 'folder'] + ['imagenet'] * imagenet, 'cifar10',
         "data set; digits: scikit-learn's handwritten digits, 1,437 training and 360 test images of 8x8 pixels, "
         'nothing to download; folder: --data is a folder with one subfolder of images per class'
         + '; imagenet: photos, --data_dir is a folder with train_list.txt' * imagenet),
        ('image_size', integer(8, 1024), None,
         'for --dataset=folder: height and width in pixels that images are resized to (default: 32)'
         + '; for --dataset=imagenet too (default: 224)' * imagenet),
        ('trainset_num', integer(2), 50000, 'maximum number of training images'),
        ('cutout_length', integer(0), 16, 'side of the square that cutout masks, in pixels of a 32x32 image; scaled '
                                          'for other sizes'),
    ] + IMAGENET_FLAGS * imagenet


DATA_FLAGS = data_flags(imagenet=False)
USE_FLAGS = [
    ('pretrained', path, None, 'a trained best_model.pdparams; the .json beside it gives genotype, channels, layers '
                               'and classes'),
    ('eval_only', boolean, False, 'evaluate the --pretrained network on the test set and exit'),
    ('predict', path, None, 'print the 5 most probable classes of an image file, or of all images in a folder and its '
                            'subfolders, a line for each, and exit; needs no other data. The central square of an '
                            'image is resized to the size of the test images (CIFAR: 32x32 pixels; ImageNet: 224/256 '
                            'of the square, to 224x224)'),
    ('json', boolean, False, 'print what --predict finds as a JSON object for each image'),
    ('export', path, None, 'export the --pretrained network as an inference model, PATH.* (paddle.jit.save) or, with '
                           '--format=onnx, PATH.onnx, and exit'),
    ('format', ['paddle', 'onnx'], 'paddle', 'format of --export; onnx needs the package paddle2onnx'),
]
ADDITION_FLAGS = [
    ('ema', positive(0, 1), None, 'decay per step of an exponential moving average of the weights, such as 0.9999; the '
                                  'average is evaluated and saved (default: off)'),
    ('mixup', positive(), None, 'alpha of mixup, such as 0.2: mix each image with another one of its batch, the shares '
                                'drawn from Beta(alpha, alpha) (default: off)'),
    ('cutmix', positive(), None, 'alpha of cutmix, such as 1: put a rectangle of another image of the batch into each '
                                 'image; with --mixup, each batch takes one of the two (default: off)'),
    ('augment', ['none', 'trivial'], 'none', 'trivial: TrivialAugment, one random operation of 14 on every training '
                                             'image'),
    ('warmup_epochs', integer(0), 0, 'epochs in which the learning rate increases linearly to its initial value'),
    ('accumulate', integer(1), 1, 'batches per step; their gradients are averaged'),
]
PRECISION_FLAGS = [
    ('amp_level', ['O0', 'O1', 'O2'], 'O0', 'mixed precision on a GPU: O0 off, O1 where it is safe, O2 nearly '
                                            'everywhere'),
    ('amp_dtype', ['float16', 'bfloat16'], 'float16', '16-bit type of mixed precision; float16 uses loss scaling'),
]


def reader_flags(num_workers):
    """The flags of data loading."""
    return [
        ('use_multiprocess', boolean, True, 'load images in worker processes; False: in the main process'),
        ('num_workers', integer(0, 64), num_workers, 'worker processes per data loader; 0: load in the main process'),
        ('max_bad_images', integer(0), 0, 'unreadable images that each data loader skips; one more stops the run'),
    ]


def network_flags(init_channels, layers, class_num, drop_path_prob):
    """The flags of a network made of a genotype, with a script's own defaults."""
    return [
        ('arch', path, 'DARTS_V2', 'genotype: a name of genotypes.py or of nas/data/published_genotypes.json, a '
                                   'genotype.json, a search output directory, or the '
                                   "printed text 'Genotype(...)'"),
        ('init_channels', integer(2, 4096), init_channels, 'channels of the first cell'),
        ('layers', integer(1, 1000), layers, 'number of cells; the cells at 1/3 and 2/3 of the depth are reduction '
                                             'cells'),
        ('class_num', integer(2, 10**6), class_num, 'number of classes; without this flag that of the data'),
        ('auxiliary', boolean, True, 'train with an auxiliary classifier at 2/3 of the depth'),
        ('auxiliary_weight', number(0), 0.4, "weight of the auxiliary classifier's loss"),
        ('drop_path_prob', number(0, 1), drop_path_prob, 'drop path probability P: epoch e of E, counted from 0, uses '
                                                         'P * e / E'),
    ]


def run_flags(log_freq, model_save_dir):
    """The flags of logging and output files."""
    return [
        ('log_freq', integer(1), log_freq, 'steps between two log lines'),
        ('model_save_dir', path, model_save_dir, 'output directory'),
        ('resume', boolean, False, 'continue from the newest intact checkpoint in --model_save_dir, if there is one'),
        ('save_freq', integer(0), 0, 'steps between two checkpoints within an epoch; 0: only at the end of each epoch'),
        ('keep', integer(1), 2, 'number of checkpoints to keep'),
        ('use_vdl', boolean, False, 'log curves, architecture parameters and cells for VisualDL, to vdl/ in '
                                    '--model_save_dir'),
        ('summary', boolean, False, "print the network's layers and sizes and exit"),
    ]
