"""The command that trains the cell of a search, which search.py prints at its end."""
import os
import shlex
import sys

# Sizes that suit 1,437 images of 8x8 pixels: minutes on a CPU.
DIGITS_TRAINING = ['--epochs=12', '--batch_size=32', '--learning_rate=0.05', '--cutout=False', '--drop_path_prob=0',
                   '--model_save_dir=eval_digits']
# The flags that decide which images there are; the seed selects the test images of a folder.
DATA_NAMES = ('dataset', 'data', 'image_size', 'class_num', 'trainset_num', 'max_bad_images', 'seed')
IMAGENET_NAMES = ('data_dir', 'image_size', 'class_num', 'max_bad_images', 'seed')


def train_command(genotype_path, given, *, dataset, auxiliary, size=None):
    """The command that trains the genotype on the data that it was searched on, ready for a shell.

    given: {name: value} of the flags that were given. auxiliary: whether the images are large enough for an auxiliary
    classifier. size: {'init_channels': number, 'layers': number} of the network; None: the script's.
    """
    program, names = ('train_imagenet.py', IMAGENET_NAMES) if dataset == 'imagenet' else ('train.py', DATA_NAMES)
    words = ['python', os.path.join(os.path.dirname(sys.argv[0]), program), '--arch=' + genotype_path]
    words += data_words(names, given)
    if not auxiliary:
        words.append('--auxiliary=False')
    words += [f'--{name}={value}' for name, value in (size or {}).items()]
    if dataset == 'digits':
        words += DIGITS_TRAINING
    return ' '.join(map(shell_word, words))


def data_words(names, given):
    """The flags with these names among those that were given, {name: value}, as words of a command."""
    return [f'--{name}={given[name]}' for name in names if given.get(name) is not None]


def shell_word(word):
    """A word quoted for a shell; as $'...' where it has characters that must not reach a terminal."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + ''.join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f'\\x{byte:02x}'
                           for byte in os.fsencode(word)) + "'"
