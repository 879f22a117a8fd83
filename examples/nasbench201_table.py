"""The public table of NAS-Bench-201 (Dong, Yang, ICLR 2020): the test accuracy of all 15,625 cells, each trained for
200 epochs on three data sets.

The table is a csv file with a row a cell and the columns of COLUMNS, in any order; others are ignored. Accuracies are
in per cent. NAS-Bench-201's authors publish the accuracies, https://github.com/D-X-Y/NAS-Bench-201; such a csv file is
also part of several surrogate benchmarks.
"""
import bisect
import csv
import io
import itertools
from typing import NamedTuple

from runtime.errors import UserError
from runtime.files import open_regular, reason

PRIMITIVES = ['none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3']
EDGES = [(node, source) for node in range(1, 4) for source in range(node)]
DATA_SETS = {'cifar10': 'CIFAR10TestAccuracy200Epochs', 'cifar100': 'CIFAR100TestAccuracy200Epochs',
             'imagenet16': 'ImageNetTestAccuracy200Epochs'}
CELL, UNIQUE = 'ArchitectureString', 'UniqueString'  # two strings with one UniqueString are the same cell
COLUMNS = [*DATA_SETS.values(), CELL, UNIQUE]
MAX_BYTES = 64 << 20


def cell_string(operations):
    """The string of a cell, |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, of an operation for each of EDGES."""
    nodes = [[f'{name}~{source}' for (target, source), name in zip(EDGES, operations) if target == node]
             for node in range(1, 4)]
    return '+'.join(f'|{"|".join(edges)}|' for edges in nodes)


def parse_cell(text):
    """The operations of a cell's string, one for each of EDGES. Raises ValueError."""
    operations = [edge.split('~')[0] for node in text.split('+') for edge in node.strip('|').split('|')]
    if len(operations) != len(EDGES) or cell_string(operations) != text or not set(operations) <= set(PRIMITIVES):
        raise ValueError(f'{text!r:.200} is not a cell of NAS-Bench-201: give |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, '
                         f'each op one of {", ".join(PRIMITIVES)}')
    return operations


class Entry(NamedTuple):
    """What the table says of a cell, for each of DATA_SETS: test accuracy in per cent; rank among the 15,625 strings, 1
    the best, equal accuracies have equal ranks. unique: equal for all strings that are the same cell."""

    accuracy: dict[str, float]
    rank: dict[str, int]
    unique: str


class Table:
    """The table in memory: {string of a cell: Entry}. Raises UserError for a file that is not a whole table."""

    def __init__(self, path):
        try:
            with open_regular(path, MAX_BYTES) as file:
                content = file.read()
            rows = list(csv.DictReader(io.StringIO(content.decode('utf-8-sig'), newline='')))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f'--table: {path} cannot be read: {reason(error)}')
        try:
            self.entries = self._read(rows)
        except ValueError as error:
            raise UserError(f'--table: {path}: {error}')

    @staticmethod
    def _read(rows):
        absent = [column for column in COLUMNS if not rows or column not in rows[0]]
        if absent:
            raise ValueError(f'the column {absent[0]} is missing; a table has the columns {", ".join(COLUMNS)}')
        accuracies, unique = {}, {}
        for number, row in enumerate(rows, 2):
            cell = row[CELL]
            try:
                parse_cell(str(cell))
                accuracies[cell] = {name: _per_cent(row[column]) for name, column in DATA_SETS.items()}
            except ValueError as error:
                raise ValueError(f'line {number}: {error}')
            if cell in unique:
                raise ValueError(f'line {number}: the cell {cell} has a row already')
            if not row[UNIQUE]:
                raise ValueError(f'line {number}: {UNIQUE} is empty')
            unique[cell] = row[UNIQUE]
        expected = len(PRIMITIVES) ** len(EDGES)
        if len(unique) != expected:
            absent = next(cell for cell in map(cell_string, itertools.product(PRIMITIVES, repeat=len(EDGES)))
                          if cell not in unique)
            raise ValueError(f'it has {len(unique)} of {expected} cells; {absent} is missing')
        ordered = {name: sorted(found[name] for found in accuracies.values()) for name in DATA_SETS}
        return {cell: Entry(found, {name: 1 + expected - bisect.bisect_right(ordered[name], found[name])
                                    for name in DATA_SETS}, unique[cell])
                for cell, found in accuracies.items()}

    def __getitem__(self, cell):
        """The Entry of a cell's string. Raises KeyError."""
        return self.entries[cell]

    def __len__(self):
        return len(self.entries)

    def same_cell(self, cell):
        """The other strings that the table says to be the same cell; each has accuracies of its own."""
        unique = self.entries[cell].unique
        return [other for other, entry in self.entries.items() if entry.unique == unique and other != cell]

    def figures(self, cell):
        """What metrics.jsonl keeps of a cell: test_acc_NAME, from 0 to 1, and rank_NAME for each of DATA_SETS."""
        entry = self.entries[cell]
        return dict({f'test_acc_{name}': entry.accuracy[name] / 100 for name in DATA_SETS},
                    **{f'rank_{name}': entry.rank[name] for name in DATA_SETS})


def _per_cent(text):
    value = float(text or 'nan')
    if not 0 <= value <= 100:
        raise ValueError(f'{text!r:.40} is not an accuracy in per cent')
    return value
