"""Image lists, train_list.txt and val_list.txt: a line `relative/path label` for each image.

A list may come from others. It is read line by line, at most MAX_LIST_BYTES of a regular file. The paths stay in one
array of bytes: worker processes share its memory, while of a list of str each would get a copy as it counts references.
"""
import codecs
import os
from array import array

import numpy as np

from pipeline.items import MAX_CLASSES
from runtime.errors import UserError
from runtime.files import UnreadableFile, open_regular

# ImageNet's list of 1.28 million images has less than 60 MB; ImageNet-21k has 14 million images.
MAX_LIST_BYTES, MAX_LINES = 1 << 30, 20 * 10**6
MAX_LINE = 8192  # characters; the paths of Linux have at most 4,096 bytes


class ListedPaths:
    """The paths of a list as a sequence of str.

    folder: what they are relative to. text: all of them, one after the other, UTF-8. ends: where each ends in it, after
    a 0. first_mentions: the numbers of those that stand in no line before.
    """

    def __init__(self, folder, text, ends):
        self.folder, self.text, self.ends = folder, text, ends
        self.first_mentions = np.arange(len(self))

    def __len__(self):
        return len(self.ends) - 1

    def relative(self, i):
        """Path i as it stands in the list."""
        return self.text[self.ends[i]:self.ends[i + 1]].decode()

    def __getitem__(self, i):
        """Path i, with the separators of this system if the list has those of Windows."""
        relative = self.relative(i)
        path = os.path.join(self.folder, relative)
        if '\\' in relative and not os.path.lexists(path):
            path = os.path.join(self.folder, *relative.split('\\'))
        return path


class Lines:
    """Where each image is listed: a sequence of 'LIST, line 3: ', for messages. numbers: of the lines, from 1."""

    def __init__(self, list_name, numbers):
        self.list_name, self.numbers = list_name, numbers

    def __getitem__(self, i):
        return f'{self.list_name}, line {self.numbers[i]}: '


def read_list(list_name):
    """Read a list: the paths (ListedPaths, relative to its folder), the labels int64 [N] and where they stand (Lines).

    Raises UserError that names the line at fault: one that is something else or too long, a path that leads out of the
    folder, an image with two labels.
    """
    text, ends, labels, numbers, hashes = bytearray(), array('q', [0]), array('q'), array('i'), array('q')
    number = 1
    try:
        with _open(list_name) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b''), 1):
                if number > MAX_LINES:
                    raise ValueError(f'the list has more than {MAX_LINES:,} lines')
                line = line if number > 1 else line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                path, label = _path_and_label(line)
                text += path
                ends.append(len(text))
                labels.append(label)
                numbers.append(number)
                hashes.append(hash(path))
    except ValueError as error:
        raise UserError(f'--data_dir: {list_name}, line {number}: {error}')
    if not labels:
        raise UserError(f'--data_dir: {list_name} names no image')
    paths = ListedPaths(os.path.dirname(list_name), text, np.asarray(ends))
    labels, lines = np.asarray(labels), Lines(list_name, np.asarray(numbers))
    paths.first_mentions = _first_mentions(paths, labels, lines, np.asarray(hashes))
    return paths, labels, lines


def _open(list_name):
    try:
        return open_regular(list_name, MAX_LIST_BYTES)
    except UnreadableFile as error:
        raise UserError(f'--data_dir: {list_name} cannot be read: {error}; it must hold a line "relative/path label" '
                        'for each image')


def _path_and_label(line):
    """The path, UTF-8, and the label of a line, separated by spaces or tabs; the path itself may contain some.

    Raises ValueError for another line.
    """
    if len(line) > MAX_LINE:
        raise ValueError(f'{_text(line[:80])!r} ... has more than {MAX_LINE:,} bytes')
    path, *label = line.rsplit(None, 1)
    if not label or not label[0].isdigit() or b'\r' in path:
        raise ValueError(f'{_text(line.rstrip())!r:.80} is not "relative/path label"')
    if len(label[0]) > 9 or int(label[0]) >= MAX_CLASSES:
        raise ValueError(f'{_text(line.rstrip())!r:.80} has a label above {MAX_CLASSES - 1}')
    if not path.isascii():
        try:
            path.decode()
        except UnicodeDecodeError:
            raise ValueError(f'{_text(line.rstrip())!r:.80} is not UTF-8 text')
    if b'..' in path or b':' in path or path[:1] in b'/\\':  # a quick look, for millions of lines
        parts = path.replace(b'\\', b'/').split(b'/')
        if b'..' in parts or not parts[0] or os.path.isabs(path):
            raise ValueError(f'{_text(path)!r:.80} is not a path relative to the folder of the list, without ..')
    return path, int(label[0])


def _text(content):
    return content.decode('utf-8', 'backslashreplace')


def _first_mentions(paths, labels, lines, hashes):
    """The numbers of the paths that stand in no line before. Raises UserError for a path with two labels."""
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    first = first[group]  # for each path the first one of the same hash
    suspects = np.flatnonzero(first != np.arange(len(first)))
    same = (paths.relative(i) == paths.relative(first[i]) for i in suspects)
    repeated = suspects[np.fromiter(same, bool, len(suspects))]
    contradicting = repeated[labels[repeated] != labels[first[repeated]]]
    if len(contradicting):
        i = contradicting[0]
        raise UserError(f'--data_dir: {lines[i]}{paths.relative(i)} has the label {labels[i]}, but '
                        f'{labels[first[i]]} in line {lines.numbers[first[i]]}')
    return np.delete(np.arange(len(first)), repeated)


def draw_by_class(labels, counts, random):
    """Draw disjoint subsets of images, in each of which every class has its share, rounded up or down, of the images
    that the subsets before it have left.

    labels: int [N]. counts: the size of each subset, together at most N. random: a numpy Generator.
    Returns for each subset the numbers of its images, in increasing order. All images of a subset are equally likely.
    """
    left = random.permutation(len(labels))
    order_of_classes = random.permutation(int(labels.max()) + 1)
    left = left[np.argsort(order_of_classes[labels[left]], kind='stable')]  # class by class
    subsets = []
    for count in counts:
        # Every len(left) / count-th image from a random start on, in whole numbers.
        places = (np.arange(count) * len(left) + random.integers(len(left))) // count
        subsets.append(np.sort(left[places]))
        left = np.delete(left, places)
    return subsets
