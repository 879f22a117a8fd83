"""The images of --dataset=folder: which files there are, and which class each belongs to.

    folder/train/<class>/*, folder/test/<class>/*     split already; other usual names of the two parts are in SPLITS
    folder/<class>/*                                   a fifth of each class, drawn by the seed, is for the test
"""
import os

import numpy as np

from pipeline.loader import ORDER, generator
from runtime.errors import UserError
from runtime.log import logger

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.ppm', '.pgm', '.tif', '.tiff', '.webp')

# The names of the two parts, in any case. With several for the test, the first one in this order is used.
SPLITS = {'train': ('train', 'training'),
          'test': ('test', 'testing', 'val', 'valid', 'validation', 'eval', 'evaluation')}


def image_files(folder, is_train, seed):
    """The paths and the labels of the training or the test images, and the names of the classes.

    Raises UserError for a folder of another form.
    """
    if folder is None or not os.path.isdir(folder):
        raise UserError(f'--data: {folder} is not a folder; --dataset=folder reads a folder with one subfolder of '
                        'images per class')
    parts = _split_folders(folder)
    root = os.path.join(folder, parts['train' if is_train else 'test']) if parts else folder
    found = _images_by_class(root)
    classes = sorted(_images_by_class(os.path.join(folder, parts['train'])) if parts else found)
    for name in found:
        if name not in classes:
            raise UserError(f'--data: {root} holds the class {name}, which the training images do not have')
    if len(classes) < 2 or not found:
        raise UserError(f'--data: {root} holds {len(found)} subfolder{"" if len(found) == 1 else "s"} with images; '
                        '--dataset=folder reads a folder with one subfolder of images per class, two at least')
    _log_classes(root, found)
    if not parts:
        found = {name: _part_of_class(name, paths, not is_train, generator(seed, ORDER, number))
                 for number, (name, paths) in enumerate(sorted(found.items()))}
    paths = [path for name in classes for path in found.get(name, [])]
    labels = [classes.index(name) for name in classes for _ in found.get(name, [])]
    return paths, labels, classes


def _split_folders(folder):
    """{'train': name, 'test': name} for a folder that is split already; {} where the subfolders are classes.

    Raises UserError for subfolders that are named like parts of a data set and cannot be assigned.
    """
    names = _subfolders(folder)
    found = {part: [name for name in names if name.lower() in spellings] for part, spellings in SPLITS.items()}
    if len(found['train']) == 1 and found['test']:
        return {'train': found['train'][0],
                'test': min(found['test'], key=lambda name: SPLITS['test'].index(name.lower()))}
    named = found['train'] + found['test']
    if found['train'] or named and len(named) == len(names):
        raise UserError(f'--data: {folder} holds {", ".join(named)}, which are names of parts of a data set: give one '
                        f'folder with the training images ({" or ".join(SPLITS["train"])}) and one for the test '
                        f'({", ".join(SPLITS["test"])}), or rename them')
    return {}


def _images_by_class(root):
    """{class: [paths]} of the subfolders that hold images."""
    found = {}
    for name in _subfolders(root):
        paths = [os.path.join(path, file) for path, _, files in sorted(os.walk(os.path.join(root, name)))
                 for file in sorted(files) if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith('.')]
        if paths:
            found[name] = paths
    return found


def _log_classes(root, found):
    logger.info('%s: %s', root, ', '.join(f'{name} ({len(paths)})' for name, paths in sorted(found.items())))
    skipped = [name for name in _subfolders(root) if name not in found]
    if skipped:
        logger.info('%s: skipped, since they hold no images: %s', root, ', '.join(skipped))


def _part_of_class(name, paths, is_test, random):
    """A random fifth of a class's paths, at least one, for the test, or the others for training."""
    if len(paths) == 1:
        logger.info('class %s has a single image: it is used for training, the test has none of this class', name)
        return [] if is_test else paths
    order = random.permutation(len(paths))
    test_count = -(-len(paths) // 5)
    return [paths[i] for i in np.sort(order[:test_count] if is_test else order[test_count:])]


def _subfolders(folder):
    """The names of subfolders that may be classes: without hidden ones and those that macOS and NAS systems add."""
    return sorted(entry.name for entry in os.scandir(folder)
                  if entry.is_dir() and not entry.name.startswith('.') and entry.name not in ('__MACOSX', '@eaDir'))
