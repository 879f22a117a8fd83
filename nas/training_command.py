"""The command that trains the cell of a search, which search.py prints at its end."""
import os
import shlex
import sys

from nas import budget_flags

# Sizes that suit 1,437 images of 8x8 pixels: minutes on a CPU.
DIGITS_TRAINING = ['--epochs=12', '--batch_size=32', '--learning_rate=0.05', '--cutout=False', '--drop_path_prob=0',
                   '--model_save_dir=eval_digits']
# The flags that decide which images there are; the seed selects the test images of a folder.
DATA_NAMES = ('dataset', 'data', 'image_size', 'class_num', 'trainset_num', 'max_bad_images', 'seed')
IMAGENET_NAMES = ('data_dir', 'image_size', 'class_num', 'max_bad_images', 'seed')


def train_command(genotype_path, args, given, *, auxiliary):
    """The command that trains the genotype on the data that it was searched on, ready for a shell.

    given: the names of the flags that were given. auxiliary: whether the images are large enough for an auxiliary
    classifier.
    """
    program, names = 'train.py', DATA_NAMES
    if args.dataset == 'imagenet':
        program, names, given = 'train_imagenet.py', IMAGENET_NAMES, {*given, 'data_dir'}
    words = ['python', os.path.join(os.path.dirname(sys.argv[0]), program), '--arch=' + genotype_path]
    words += data_words(args, names, given)
    if not auxiliary:
        words.append('--auxiliary=False')
    if args.dataset == 'digits' or budget_flags.limits_of(args):
        words += [f'--{name}={value}' for name, value in budget_flags.evaluation_size(args).items()]
    if args.dataset == 'digits':
        words += DIGITS_TRAINING
    return ' '.join(map(shell_word, words))


def data_words(args, names, given):
    """The flags with these names that were given, as words of a command."""
    return [f'--{name}={getattr(args, name)}' for name in names if name in given and getattr(args, name) is not None]


def shell_word(word):
    """A word quoted for a shell; as $'...' where it has characters that must not reach a terminal."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + ''.join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f'\\x{byte:02x}'
                           for byte in os.fsencode(word)) + "'"
