"""What a cell is: `Genotype`, the operations it may name, the cells known by name, and genotype.json.

A genotype describes two cells, a normal and a reduction cell (DARTS, Liu et al. 2019, section 2.1). A cell has two
inputs, states 0 and 1 (the outputs of the two cells before it), and then its intermediate nodes, states 2, 3, …; each
node adds up two edges. `normal[2 * i]` and `normal[2 * i + 1]` are the edges of node i, each an (operation, source
state) pair, and the cell's output is the concatenation of the states in `normal_concat`. An edge whose operation is
`none` is no edge: such a node has one edge or none at all.

Nothing here imports Paddle or another module of the project. Wrong genotypes raise ValueError with a sentence for the
user.
"""
import ast
import difflib
import json
import os
import re
from collections import namedtuple
from numbers import Integral

Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')

# The search space of DARTS. The order is part of the format: column k of alphas belongs to PRIMITIVES[k].
PRIMITIVES = [
    'none',
    'max_pool_3x3',
    'avg_pool_3x3',
    'skip_connect',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'dil_conv_3x3',
    'dil_conv_5x5',
]

# The operations of published cells, which are known whatever the search space above is.
PUBLISHED_OPERATIONS = ['none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'sep_conv_5x5',
                        'dil_conv_3x3', 'dil_conv_5x5', 'sep_conv_7x7', 'conv_7x1_1x7', 'conv_3x1_1x3']
# All that a genotype may name; each is a key of operations.OPS.
OPERATIONS = PRIMITIVES + [name for name in PUBLISHED_OPERATIONS if name not in PRIMITIVES]

# A genotype.json is about 1 kB; a file far larger is something else and is not read into memory.
MAX_JSON_BYTES = 1 << 20
MAX_NODES = 64  # of a cell; published cells have 4 or 5

# Cells of public repositories, with their sources. The keys are names that get_genotype takes.
PUBLISHED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'nas', 'data', 'published_genotypes.json')

# The cells of the PaddleSlim example. They differ from the papers' cells, which are DARTS_V1_paper, DARTS_V2_paper and
# PC_DARTS_cifar in the file of published cells.
DARTS_V1 = Genotype(
    normal=[('sep_conv_5x5', 0), ('dil_conv_3x3', 1), ('sep_conv_3x3', 2), ('sep_conv_5x5', 0),
            ('sep_conv_5x5', 0), ('dil_conv_3x3', 3), ('sep_conv_3x3', 0), ('max_pool_3x3', 1)],
    normal_concat=range(2, 6),
    reduce=[('max_pool_3x3', 1), ('max_pool_3x3', 0), ('dil_conv_3x3', 2), ('sep_conv_5x5', 0),
            ('max_pool_3x3', 0), ('dil_conv_3x3', 3), ('avg_pool_3x3', 3), ('avg_pool_3x3', 4)],
    reduce_concat=range(2, 6))

DARTS_V2 = Genotype(
    normal=[('dil_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
            ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1)],
    normal_concat=range(2, 6),
    reduce=[('skip_connect', 1), ('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2),
            ('skip_connect', 2), ('dil_conv_5x5', 3), ('skip_connect', 2), ('max_pool_3x3', 1)],
    reduce_concat=range(2, 6))

PC_DARTS = Genotype(
    normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_5x5', 0), ('dil_conv_5x5', 2),
            ('sep_conv_5x5', 0), ('sep_conv_3x3', 2), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1)],
    normal_concat=range(2, 6),
    reduce=[('avg_pool_3x3', 0), ('sep_conv_3x3', 1), ('skip_connect', 2), ('avg_pool_3x3', 0),
            ('dil_conv_5x5', 3), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)],
    reduce_concat=range(2, 6))


def named_genotypes():
    """Return {name: Genotype} of every genotype defined in this file; one that you add above is found by its name."""
    return {name: value for name, value in globals().items() if isinstance(value, Genotype)}


def published_genotypes():
    """Return {name: {normal, normal_concat, reduce, reduce_concat, source}} of the cells in
    nas/data/published_genotypes.json."""
    with open(PUBLISHED, encoding='utf-8') as f:
        return json.load(f)


def get_genotype(arch):
    """Turn what a user gave as --arch into a Genotype.

    arch: a name of this file or of the published cells, the path of a genotype.json, a folder that holds one (such as
    the output folder of a search), or the text `Genotype(normal=[...], ...)` as a log or a paper prints it.
    Raises ValueError when it is none of these, or when the file does not hold a genotype.
    """
    named = named_genotypes()
    if arch in named:
        return from_dict(named[arch]._asdict())
    if arch.lstrip().startswith('Genotype('):
        return parse_genotype(arch)
    if '\0' not in arch:  # no path has a null character
        path = os.path.join(arch, 'genotype.json') if os.path.isdir(arch) else arch
        if os.path.isfile(path):
            return read_genotype(path)
    published = published_genotypes()
    if arch in published:
        return from_dict(published[arch])
    near = difflib.get_close_matches(arch[:100], [*named, *published], 1, cutoff=0.75)
    raise ValueError(f"'{arch:.200}' is neither a genotype's name ({', '.join(named)}, or one of the {len(published)} "
                     f'in nas/data/{os.path.basename(PUBLISHED)}), nor a genotype.json or a folder that holds one, nor '
                     'the text of a Genotype(...)' + (f'; did you mean {near[0]}?' if near else ''))


def parse_genotype(text):
    """The Genotype that a printed `Genotype(normal=[...], normal_concat=range(2, 6), ...)` stands for. Only literals
    and range(...) of literals are read, nothing is evaluated. Raises ValueError."""
    try:
        # nothing else occurs in such a text
        if len(text) > MAX_JSON_BYTES or not re.fullmatch(r"[\w\s()\[\],='\"]*", text):
            raise ValueError('it is too long or has characters that no genotype has')
        call = ast.parse(text.strip(), mode='eval').body
        if not isinstance(call, ast.Call) or call.args or getattr(call.func, 'id', None) != 'Genotype':
            raise ValueError('it must be Genotype(normal=..., normal_concat=..., reduce=..., reduce_concat=...)')
        return from_dict({keyword.arg: _literal(keyword.value) for keyword in call.keywords})
    except (SyntaxError, TypeError, RecursionError, MemoryError, ValueError) as error:
        raise ValueError(f'not a genotype: {text:.80}: {error}')


def _literal(node):
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'range' and not node.keywords:
        bounds = [ast.literal_eval(argument) for argument in node.args]
        if any(type(bound) is not int or abs(bound) > 2 + MAX_NODES for bound in bounds):
            raise ValueError('range must have small whole numbers')
        return range(*bounds)
    return ast.literal_eval(node)


def derive_cell(strengths, primitives, steps):
    """Discretise one cell (DARTS, section 2.4): keep for each node its two strongest edges, on each the strongest
    operation.

    strengths: [edges, operations], the weight of every operation on every edge, where the edges of node i come before
        those of node i + 1 and edge j of a node leaves state j. An edge is as strong as its strongest operation;
        `none` competes for neither.
    Returns the list of (operation, source state), two a node, the stronger edge first.
    """
    candidates = [k for k, name in enumerate(primitives) if name != 'none']
    edges, start = [], 0
    for node in range(steps):
        rows = strengths[start:start + node + 2]
        start += node + 2
        best = [max(candidates, key=lambda k, row=row: row[k]) for row in rows]
        strongest = sorted(range(node + 2), key=lambda j: -rows[j][best[j]])[:2]
        edges += [(primitives[best[j]], j) for j in strongest]
    return edges


def to_dict(genotype):
    """The JSON form of a genotype: lists in place of tuples and ranges."""
    return {
        'normal': [list(edge) for edge in genotype.normal],
        'normal_concat': list(genotype.normal_concat),
        'reduce': [list(edge) for edge in genotype.reduce],
        'reduce_concat': list(genotype.reduce_concat),
    }


def from_dict(data, operations=OPERATIONS):
    """Check the JSON form of a genotype and return the Genotype.

    operations: the names that are allowed.
    Raises ValueError with a sentence that says what is wrong and where.
    """
    if not isinstance(data, dict):
        raise ValueError('a genotype is an object with the keys {}'.format(', '.join(Genotype._fields)))
    if 'architecture' in data and 'normal' not in data:
        raise ValueError(f'{data["architecture"]!s:.200} is a cell of another search space; '
                         'examples/train_nasbench201.py trains those of NAS-Bench-201')
    missing = [key for key in Genotype._fields if key not in data]
    if missing:
        raise ValueError(f'the key {missing[0]} is missing' if len(missing) == 1
                         else f'the keys {", ".join(missing)} are missing')
    normal = _check_edges('normal', data['normal'], operations)
    reduce = _check_edges('reduce', data['reduce'], operations)
    return Genotype(
        normal=normal,
        normal_concat=_check_concat('normal_concat', data['normal_concat'], normal),
        reduce=reduce,
        reduce_concat=_check_concat('reduce_concat', data['reduce_concat'], reduce))


def edge_number(node, source=0):
    """The place of an edge among those of the supernet's cell: node i has i + 2 of them, from states 0, 1, …;
    edge_number(nodes) is the number of edges of a cell."""
    return sum(range(2, 2 + node)) + source


def connected_states(edges):
    """The states of a cell that have a value: the two inputs and every node with an edge other than `none` from such
    a state."""
    connected = [0, 1]
    for position in range(0, len(edges), 2):
        if any(operation != 'none' and state in connected for operation, state in edges[position:position + 2]):
            connected.append(2 + position // 2)
    return connected


def _check_edges(key, edges, operations):
    edges = _flat(edges)
    if not isinstance(edges, (list, tuple)) or not edges or len(edges) % 2:
        raise ValueError(f'{key} must be a list of [operation, state] pairs, two for each node')
    if len(edges) > 2 * MAX_NODES:
        raise ValueError(f'{key} has {len(edges) // 2} nodes; at most {MAX_NODES} are allowed')
    for position, edge in enumerate(edges):
        where = f'{key}[{position}]'
        if not isinstance(edge, (list, tuple)) or len(edge) != 2:
            raise ValueError(f'{where} must be an [operation, state] pair, it is {edge!r:.80}')
        operation, state = edge
        if operation not in operations:
            raise ValueError('{}: unknown operation {!r:.80}; known are {}'.format(
                where, operation, ', '.join(operations)))
        if not _is_integer(state) or not 0 <= state < 2 + position // 2:
            raise ValueError(f'{where}: node {position // 2} can take its input from states 0 to {1 + position // 2}, '
                             f'not from {state!r:.80}')
    return [(str(operation), int(state)) for operation, state in edges]


def _flat(edges):
    """A list of edges, also where it is given node by node: [[edge, edge], ...]."""
    if isinstance(edges, (list, tuple)) and edges and all(
            isinstance(node, (list, tuple)) and node and isinstance(node[0], (list, tuple)) for node in edges):
        if any(len(node) != 2 for node in edges):
            raise ValueError('a node has two edges; write ("none", 0) for one that it does not have')
        return [edge for node in edges for edge in node]
    return edges


def _is_integer(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_concat(key, concat, edges):
    """Only a cell without any edge, which a search with FairDARTS can write in its first epochs, has nothing to
    concatenate."""
    nodes, has_edges = len(edges) // 2, any(operation != 'none' for operation, _ in edges)
    if (not isinstance(concat, (list, tuple, range)) or not concat and has_edges
            or any(not _is_integer(state) or not 2 <= state < 2 + nodes for state in concat)
            or len(set(concat)) != len(concat)):
        raise ValueError(f'{key} must list different nodes of the cell, 2 to {1 + nodes}, it is {concat!r:.80}')
    return _as_range([int(state) for state in concat])


def _as_range(concat):
    """A run of states prints as range(2, 6), as in the papers' code; others as they are."""
    if not concat:
        return []
    run = range(concat[0], concat[0] + len(concat))
    return run if list(run) == list(concat) else list(concat)


def read_genotype(path):
    """Read and check a genotype.json. Raises ValueError that names the file and what is wrong in it."""
    try:
        with open(path, encoding='utf-8-sig') as f:  # editors on Windows write a byte order mark
            text = f.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f'larger than {MAX_JSON_BYTES} bytes')
        return from_dict(json.loads(text))
    except (OSError, ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are ValueErrors
        raise ValueError(f'{path}: not a genotype: {getattr(error, "strerror", None) or error}')


def plain(result):
    """A search's result with numpy integers and nested lists brought to Python's own types, so that JSON can hold it;
    the result of another space, such as a string, is returned as it is."""
    if not isinstance(result, Genotype):
        return result
    cells = [[(str(operation), int(state)) for operation, state in cell] for cell in (result.normal, result.reduce)]
    concats = [_as_range([int(state) for state in concat]) for concat in (result.normal_concat, result.reduce_concat)]
    return Genotype(cells[0], concats[0], cells[1], concats[1])


def to_json(result):
    """What a search found, as JSON keeps it: a Genotype's dict; the result of another space, such as a string, as it
    is."""
    return to_dict(result) if isinstance(result, Genotype) else result


def from_json(result):
    """The result that to_json gave the JSON form of. Unchecked: a user's own network may have operations that this
    file doesn't know."""
    if not isinstance(result, dict) or set(result) != set(Genotype._fields):
        return result
    normal, reduce = [[tuple(edge) for edge in result[cell]] for cell in ('normal', 'reduce')]
    return Genotype(normal, _as_range(result['normal_concat']), reduce, _as_range(result['reduce_concat']))


def random_genotype(random, steps=4):
    """Draw two cells: each node takes two different states before it, on each edge one operation that is not `none`;
    all are equally likely.

    random: a random.Random.
    """
    operations = [name for name in PRIMITIVES if name != 'none']
    cells = [[(random.choice(operations), state) for node in range(steps)
              for state in sorted(random.sample(range(2 + node), 2))]
             for _ in range(2)]
    return Genotype(cells[0], range(2, 2 + steps), cells[1], range(2, 2 + steps))


def genotype_json(genotype, search=None):
    """The text of a genotype.json; `search` says how the genotype was found (method, seed, epoch, …) and is not read
    back.

    The result of another space stands there as {"architecture": result}.
    """
    data = to_dict(genotype) if isinstance(genotype, Genotype) else {'architecture': genotype}
    if search is not None:
        data['search'] = search
    return json.dumps(data) + '\n'
