"""Reads what a search wrote: metrics.jsonl and <epoch>/genotype.json, checked, as a `Search`.

A line of metrics.jsonl is a JSON object with the keys epoch and genotype and, where there are any, train_acc and
valid_acc. The curves also read

    weights      for each kind of cell the strengths of the operations as the method defines them, [edges, operations]
    cells        the names of the kinds of cells, such as ["normal", "reduce"]
    operations   the names of the operations
    edges        the names of the edges (only of search spaces other than that of DARTS)
    skip_connects       the number of skip connections in a cell that is no Genotype
    macs, params, …     the costs of the cell, of a search within limits, with expected_… and the limits, max_…
    test_acc_NAME       the true test accuracy of the epoch's cell on data set NAME, where a table has it
"""
import math
import os
from collections import namedtuple

import numpy as np

from genotypes import MAX_JSON_BYTES, OPERATIONS, PRIMITIVES, Genotype, edge_number, from_dict
from runtime.errors import UserError
from runtime.files import MAX_LINE_BYTES, UnreadableFile, open_regular, parse_json, read_json, reason

MAX_METRICS_BYTES = 64 << 20
MAX_CELLS, MAX_PANELS, MAX_OPERATIONS, MAX_NAME = 8, 400, 64, 80
MAX_EPOCH = 10**9
COSTS = ('macs', 'params', 'latency_ns')
COST_KEYS = [prefix + name for name in COSTS for prefix in ('', 'expected_', 'max_')]
TRUE_ACCURACY = 'test_acc_'  # how the keys of true accuracies begin

# One epoch. genotype: None for a search space whose result is no Genotype. Accuracies are NaN where there are none.
# weights: a list of arrays [edges, operations], one for each kind of cell; None unless it was asked for.
# skip_connects: their number, None where it is unknown. true_acc: {data set: true test accuracy of the cell}.
# costs: {key of metrics.jsonl: number} of COST_KEYS.
Epoch = namedtuple('Epoch', 'number genotype train_acc valid_acc weights skip_connects true_acc costs',
                   defaults=(None, {}, {}))

# epochs: [Epoch] in order. cells, operations, edges: names, edges None in the space of DARTS.
Search = namedtuple('Search', 'epochs cells operations edges')


def read_search(folder, flag, with_weights=False):
    """Read the output folder of a search.

    metrics.jsonl says which epochs belong to the search; the folder may hold epochs of an earlier, longer one. The
    genotype of an epoch is that of <epoch>/genotype.json or, without that file, that of its line.
    with_weights: read what the curves need; otherwise every epoch must have a Genotype.
    Raises UserError that names the file and the line.
    """
    path = os.path.join(folder, 'metrics.jsonl')
    epochs, space = {}, None
    for position, line in json_lines(path, flag, 'a folder that search.py wrote'):
        try:
            epoch = _read_epoch(line, folder, with_weights)
            found = _space(line, epoch)
            if space is not None and found != space:
                raise ValueError(_difference(found, space))
        except (ValueError, OverflowError) as error:
            raise UserError(f'{path}: line {position}: {error}')
        epochs[epoch.number], space = epoch, found
    if not epochs:
        raise UserError(f'{flag}: {path} holds no epoch yet')
    nodes, *names = space
    return Search([epochs[number] for number in sorted(epochs)], *names)


def thin_out(epochs, limit):
    """At most `limit` epochs at even distances, the first and the last one among them."""
    if len(epochs) <= limit:
        return epochs
    if limit == 1:
        return epochs[-1:]
    return [epochs[round(i * (len(epochs) - 1) / (limit - 1))] for i in range(limit)]


def json_lines(path, flag, wanted):
    """Yield (position, object) of the lines that are not blank. wanted: what the user should give, for messages.

    Raises UserError for what is not a file of JSON objects of bounded size.
    """
    try:
        with open_regular(path) as f:
            if os.fstat(f.fileno()).st_size > MAX_METRICS_BYTES:
                raise UnreadableFile(f'it is larger than {MAX_METRICS_BYTES >> 20} MB')
            position = 0
            while True:
                text = f.readline(MAX_LINE_BYTES + 1)
                position += 1
                if not text:
                    return
                if len(text) > MAX_LINE_BYTES:
                    raise UserError(f'{path}: line {position}: longer than {MAX_LINE_BYTES >> 20} MB')
                if text.strip():
                    yield position, _object(text, f'{path}: line {position}')
    except (OSError, UnreadableFile) as error:
        raise UserError(f'{flag}: {path} cannot be read: {reason(error)}; give {wanted}')


def _object(text, place):
    try:
        line = parse_json(text.decode('utf-8'))
    except UnicodeDecodeError as error:
        raise UserError(f'{place}: byte {error.start} is not UTF-8 text')
    except ValueError as error:
        raise UserError(f'{place}: {error}')
    if not isinstance(line, dict):
        raise UserError(f'{place}: an object is expected, not {line!r:.40}')
    return line


def _read_epoch(line, folder, with_weights):
    number = _required(line, 'epoch')
    if type(number) is not int or not 0 <= number <= MAX_EPOCH:
        raise ValueError(f'epoch must be a whole number from 0 to {MAX_EPOCH}, it is {number!r:.40}')
    genotype = _read_genotype(line, os.path.join(folder, str(number), 'genotype.json'))
    if genotype is None and not with_weights:
        raise ValueError('a film shows cells; the result of this search is of another kind')
    weights = None
    if with_weights:
        if 'weights' in line:
            weights = _read_weights(line['weights'])
        else:
            weights = _weights_of_alphas(_required(line, 'alphas'), genotype)
    return Epoch(number, genotype, _accuracy(line, 'train_acc'), _accuracy(line, 'valid_acc'), weights,
                 _skip_connections(line, genotype), _true_accuracies(line), _costs(line))


def _required(line, key):
    if key not in line:
        raise ValueError(f'the key {key} is missing; give a folder that search.py wrote')
    return line[key]


def _read_genotype(line, path):
    """The Genotype of an epoch, None where the result of the search is something else."""
    operations = [*OPERATIONS, *(_names(line, 'operations') or [])]
    data = line.get('genotype')
    if os.path.isfile(path):
        try:
            data = read_json(path, MAX_JSON_BYTES)
            return None if isinstance(data, dict) and 'architecture' in data else from_dict(data, operations)
        except ValueError as error:
            raise ValueError(f'{path}: not a genotype: {error}')
    if data is None:
        raise ValueError(f'the key genotype is missing and there is no {path}; give a folder that search.py wrote')
    # The result of another space is a string or a list, or an object with other keys.
    return from_dict(data, operations) if isinstance(data, dict) and set(data) & set(Genotype._fields) else None


def _accuracy(line, key):
    value = line.get(key)
    if value is None:
        return math.nan
    if type(value) not in (int, float) or value < 0 or value > 1:  # NaN is allowed
        raise ValueError(f'{key} must be a number from 0 to 1, it is {value!r:.40}')
    return float(value)


def _skip_connections(line, genotype):
    """The skip connections of the normal cell, or of a cell of another kind; None where they are unknown."""
    if genotype is not None:
        return sum(operation == 'skip_connect' for operation, _ in genotype.normal)
    value = line.get('skip_connects')
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_PANELS):
        raise ValueError(f'skip_connects must be a whole number from 0 to {MAX_PANELS}, it is {value!r:.40}')
    return value


def _costs(line):
    found = {key: line[key] for key in COST_KEYS if key in line}
    for key, value in found.items():
        if type(value) not in (int, float) or not 0 <= value < 1e18:
            raise ValueError(f'{key} must be a number from 0 to 1e18, it is {value!r:.40}')
    return found


def _true_accuracies(line):
    names = [key[len(TRUE_ACCURACY):] for key in line if key.startswith(TRUE_ACCURACY)]
    if len(names) > MAX_CELLS or not all(name.isprintable() and 0 < len(name) <= MAX_NAME for name in names):
        raise ValueError(f'{TRUE_ACCURACY}… must name at most {MAX_CELLS} data sets, in printable characters')
    return {name: _accuracy(line, TRUE_ACCURACY + name) for name in names}


def _read_weights(data):
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_CELLS:
        raise ValueError(f'weights must be a list with an entry for each kind of cell, at most {MAX_CELLS}')
    weights = []
    for position, values in enumerate(data):
        array = _array(values)
        if array is None or array.ndim != 2 or not array.size or array.shape[1] > MAX_OPERATIONS:
            raise ValueError(f'weights[{position}] must be edges x operations finite numbers, of at most '
                             f'{MAX_OPERATIONS} operations')
        weights.append(array)
    if len({array.shape[1] for array in weights}) > 1:
        raise ValueError('weights must have the same number of operations in each kind of cell')
    if sum(len(array) for array in weights) > MAX_PANELS:
        raise ValueError(f'weights has {sum(len(array) for array in weights)} edges; at most {MAX_PANELS} can be drawn')
    return weights


def _weights_of_alphas(data, genotype):
    """The weights of a line without the key `weights`, as a network without strengths() gives it, and as earlier
    versions wrote it: DARTS's and PC-DARTS's, over PRIMITIVES."""
    if genotype is None:
        raise ValueError('the key weights is missing; give a folder that search.py wrote, or one of a network of your '
                         'own that has strengths(), see docs/en/search-space.md')
    if not isinstance(data, list) or len(data) not in (2, 4):
        raise ValueError('alphas must list alphas_normal, alphas_reduce and, for PC-DARTS, betas_normal, betas_reduce')
    arrays, edges_of_cells = [], (genotype.normal, genotype.reduce)
    for position, values in enumerate(data):
        nodes = len(edges_of_cells[position % 2]) // 2
        shape = (edge_number(nodes), len(PRIMITIVES)) if position < 2 else (edge_number(nodes),)
        array = _array(values)
        if array is None or array.shape != shape:
            raise ValueError(f'alphas[{position}] must be {" x ".join(map(str, shape))} finite numbers')
        arrays.append(array)
    weights = [_softmax(alphas) for alphas in arrays[:2]]
    for cell, betas in enumerate(arrays[2:]):
        nodes = np.split(betas, np.cumsum([node + 2 for node in range(len(edges_of_cells[cell]) // 2)])[:-1])
        weights[cell] *= np.concatenate([_softmax(node) for node in nodes])[:, None]
    return weights


def _array(values):
    """Nested lists as an array; None if they are ragged or hold anything but finite numbers."""
    try:
        array = np.array(values)
        if array.dtype.kind not in 'iuf' or not np.isfinite(array).all():
            return None
        return array.astype('float64')
    except (TypeError, ValueError, OverflowError):
        return None


def _softmax(values):
    """Over the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _space(line, epoch):
    """What all lines of a search have in common: (nodes, names of cells, of operations, of edges)."""
    nodes = None if epoch.genotype is None else (len(epoch.genotype.normal) // 2, len(epoch.genotype.reduce) // 2)
    if epoch.weights is None:
        return nodes, None, None, None
    columns, counts = epoch.weights[0].shape[1], [len(array) for array in epoch.weights]
    if 'weights' not in line:
        return nodes, ['normal', 'reduce'], PRIMITIVES, None
    cells = _names(line, 'cells', len(counts)) or [f'cell {i}' for i in range(len(counts))]
    operations = _names(line, 'operations', columns) or [f'operation {i}' for i in range(columns)]
    edges = _names(line, 'edges', max(counts)) or [f'edge {i}' for i in range(max(counts))]
    if nodes and len(counts) == 2 and counts == [edge_number(n) for n in nodes]:
        edges = None
    return nodes, cells, operations, edges


def _names(line, key, count=None):
    names = line.get(key)
    if names is None:
        return None
    if (not isinstance(names, list) or count not in (None, len(names)) or len(names) > MAX_PANELS
            or not all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME for name in names)):
        number = '' if count is None else f'{count} '
        raise ValueError(f'{key} must list {number}names of at most {MAX_NAME} printable characters')
    return names


def _difference(found, before):
    if found[0] != before[0]:
        return f'its cells have {_sizes(found[0])} nodes, those of the lines before {_sizes(before[0])}'
    return 'its cells, operations or edges are not those of the lines before'


def _sizes(nodes):
    return 'no' if nodes is None else ' and '.join(map(str, sorted(set(nodes))))
