"""The images of --dataset=folder: which files there are, and which class each belongs to.

    folder/train/<class>/*, folder/test/<class>/*     split already; SPLITS has the usual names of the two parts
    folder/<class>/*                                   a fifth of each class, drawn by the seed, is for the test
"""
import os
import re

import numpy as np

from pipeline.loader import ORDER, generator
from runtime.errors import UserError
from runtime.log import logger

# Endings of the formats that transforms.load_photo reads.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.gif', '.ppm', '.pgm', '.pbm', '.pnm', '.tif',
                  '.tiff', '.webp')

# The usual names of the parts of a data set, which split_of compares. Where there is no test, the validation takes its
# place.
SPLITS = {'train': ('train', 'training', 'trn', '\u8bad\u7ec3'),
          'test': ('test', 'testing', 'tst', '\u6d4b\u8bd5'),
          'validation': ('val', 'valid', 'validation', 'validate', 'validating', 'dev', 'development', 'eval',
                         'evaluation', 'holdout', '\u9a8c\u8bc1')}
PART_OF_SPELLING = {spelling: part for part, spellings in SPLITS.items() for spelling in spellings}
MAX_NAMES = 20  # of classes, at most, in a line of the log
# What data sets put before or after those names: train_set, val_images, seg_test, imgs-train, train2017.
_ADDITIONS = r'(?:set|sets|data|dataset|image|images|img|imgs|pics|photos|split|seg|folder|dir|files|\u96c6)?'
_SPELLINGS = '|'.join(sorted(PART_OF_SPELLING, key=len, reverse=True))
_NAME_OF_PART = re.compile(f'{_ADDITIONS}({_SPELLINGS}){_ADDITIONS}[0-9]*')

# Folders that a system adds: macOS, NAS systems of Synology and QNAP, Windows, Linux, Python. Hidden ones are left out
# too.
SYSTEM_FOLDERS = ('__macosx', '@eadir', '#recycle', '#snapshot', '@recycle', '@recently-snapshot', '$recycle.bin',
                  'system volume information', 'lost+found', '__pycache__')


def image_files(folder, is_train, seed):
    """The paths and the labels of the training or the test images, and the names of the classes.

    Raises UserError for a folder of another form.
    """
    if folder is None or not os.path.isdir(folder):
        raise UserError(f'--data: {folder} is not a folder; --dataset=folder reads a folder with one subfolder of '
                        'images per class')
    parts = _split_folders(folder)
    root = os.path.join(folder, parts['train' if is_train else 'test']) if parts else folder
    found, skipped = _images_by_class(root)
    classes = sorted(_images_by_class(os.path.join(folder, parts['train']))[0] if parts and not is_train else found)
    _log_classes(root, found, skipped)
    for name in found:
        if name not in classes:
            raise UserError(f'--data: {root} holds the class {name}, which the training images do not have')
    if len(classes) < 2 or not found:
        raise UserError(f'--data: {root} holds {len(found)} subfolder{"" if len(found) == 1 else "s"} with images; '
                        '--dataset=folder reads a folder with one subfolder of images per class, two at least')
    without = [name for name in classes if name not in found]
    if without:
        logger.info('%s: no image of %s', root, ', '.join(without))
    if not parts:
        _log_single_images(root, found)
        found = {name: _part_of_class(paths, not is_train, generator(seed, ORDER, number))
                 for number, (name, paths) in enumerate(sorted(found.items()))}
        if not any(found.values()):
            raise UserError(f'--data: no image of {root} is left for the test: every class has a single one')
        logger.info('%s: %d of these images, %s', root, sum(map(len, found.values())),
                    'for training' if is_train else 'a fifth of each class, for the test')
    paths = [path for name in classes for path in found.get(name, [])]
    labels = [label for label, name in enumerate(classes) for _ in found.get(name, [])]
    return paths, labels, classes


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a data set
# ---------------------------------------------------------------------------------------------------------------------


def split_of(name):
    """The part of a data set, a key of SPLITS, that the name of a folder stands for; None for the name of a class.

    Upper and lower case do not matter: 'Training_Set' -> 'train', 'val2017' -> 'validation', 'dog' -> None.
    """
    match = _NAME_OF_PART.fullmatch(re.sub(r'[\s._-]', '', name.lower()))
    return match and PART_OF_SPELLING[match.group(1)]


def _split_folders(folder):
    """{'train': name, 'test': name} for a folder that is split already; {} where the subfolders are classes.

    Raises UserError for subfolders that are named like parts of a data set and cannot be assigned.
    """
    names = [entry.name for entry in _entries(folder) if entry.is_dir() and not _added_by_a_system(entry.name)]
    named = [name for name in names if split_of(name) and _holds_images(os.path.join(folder, name))]
    if not named:
        return {}
    of_part = {part: [name for name in named if split_of(name) == part] for part in SPLITS}
    train, test = of_part['train'], of_part['test'] or of_part['validation']
    if not train or not test or any(len(names) > 1 for names in of_part.values()):
        raise UserError(f'--data: {folder} holds images in {", ".join(named)}, which are names of parts of a data '
                        'set: give one folder with the training images (train or training) and one for the test '
                        '(test, testing, val, valid, validation, dev or eval); or rename them; or give one part with '
                        '--data, of which a fifth will be for the test')
    unused = [name for name in names if name not in (train[0], test[0])]
    logger.info('%s: %s is for training, %s for the test%s', folder, train[0], test[0],
                f'; not used: {", ".join(unused)}' if unused else '')
    return {'train': train[0], 'test': test[0]}


def _log_single_images(root, found):
    """Name the classes of which the test gets no image."""
    names = sorted(name for name, paths in found.items() if len(paths) == 1)
    if names:
        logger.info('%s: %d class%s a single image, which is used for training, so that the test has none: %s%s', root,
                    len(names), ' has' if len(names) == 1 else 'es have', ', '.join(names[:MAX_NAMES]),
                    f' and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else '')


def _part_of_class(paths, is_test, random):
    """A random fifth of a class's paths, at least one, for the test, or the others for training."""
    if len(paths) == 1:
        return [] if is_test else paths
    order = random.permutation(len(paths))
    test_count = -(-len(paths) // 5)
    return [paths[i] for i in np.sort(order[:test_count] if is_test else order[test_count:])]


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def _images_by_class(root):
    """{class: [paths]} of the subfolders that hold images, and what else there is, as lines.

    Raises UserError where a class holds parts of a data set, and for a folder that cannot be read.
    """
    found, without_images, others, loose = {}, [], {}, 0
    for entry in _entries(root):
        if not entry.is_dir():
            loose += _is_image(entry.name)
        elif _added_by_a_system(entry.name):
            without_images.append(entry.name)
        else:
            paths, other_files = _files_of_class(entry.path)
            if paths:
                found[entry.name] = paths
            else:
                without_images.append(entry.name)
            if paths and other_files:
                others[entry.name] = len(other_files)
    skipped = []
    if without_images:
        skipped.append(f'skipped, since they hold no images of a class: {", ".join(without_images)}')
    if others:
        skipped.append('skipped, since they have another ending than '
                       f'{", ".join(IMAGE_SUFFIXES)}: ' + ', '.join(f'{count} file{"s" * (count > 1)} in {name}'
                                                                    for name, count in others.items()))
    if loose:
        skipped.append(f'skipped, since they lie in no class: {loose} image{"s" * (loose > 1)}')
    return found, skipped


def _files_of_class(folder):
    """The paths of the images in a class's folder and below, and the names of its other files; hidden ones do not
    count."""
    images, others = [], []
    for path, folders, files in _walk(folder):
        parts = [name for name in folders if split_of(name)]
        if path == folder and len({split_of(name) for name in parts}) > 1:
            raise UserError(f'--data: {folder} holds {" and ".join(parts)}, which are names of parts of a data set, '
                            f'within a class: give train/<class>/* and test/<class>/*, or --data={folder} if that is '
                            'the data set')
        for name in files:
            if _is_image(name):
                images.append(os.path.join(path, name))
            elif not name.startswith('.'):
                others.append(name)
    return images, others


def images_below(folder, flag):
    """The paths of all images in a folder and its subfolders; hidden ones do not count.

    flag: what named the folder. Raises UserError for one that cannot be read.
    """
    return [os.path.join(path, name) for path, _, files in _walk(folder, flag) for name in files if _is_image(name)]


def _walk(folder, flag='--data'):
    """os.walk in the order of the names, without hidden folders and those of systems, which hold thumbnails.

    Raises UserError for a folder that cannot be read.
    """
    def unreadable(error):
        raise _unreadable(error, flag)
    for path, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not _added_by_a_system(name))
        yield path, folders, sorted(files)


def _holds_images(folder):
    return any(_is_image(name) for _, _, files in _walk(folder) for name in files)


def _entries(folder):
    """The entries of a folder in the order of their names. Raises UserError for a folder that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(error)


def _unreadable(error, flag='--data'):
    return UserError(f'{flag}: {error.filename} cannot be read: {error.strerror}')


def _added_by_a_system(name):
    return name.startswith('.') or name.lower() in SYSTEM_FOLDERS


def _is_image(name):
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')


def _log_classes(root, found, skipped):
    logger.info('%s: %d classes: %s', root, len(found), ', '.join(f'{name} ({len(paths)})'
                                                                  for name, paths in sorted(found.items())))
    for line in skipped:
        logger.info('%s: %s', root, line)
