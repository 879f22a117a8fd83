"""See cells and searches: pictures of a genotype, the film of a search, the curves of its alphas.

    python visualize.py PC_DARTS                              PC_DARTS_normal.png and PC_DARTS_reduce.png
    python visualize.py search_cifar/genotype.json --cell=both --format=svg        both cells in one picture
    python visualize.py search_cifar --output=images/         the cells that a search found
    python visualize.py --film search_cifar                   search_cifar/film.gif: how the cells changed, a frame an epoch
    python visualize.py --alphas search_cifar                 search_cifar/alphas.png: weights, skips, entropy, accuracy

It reads only what a run wrote and prints the path of each picture. Cells are drawn by Graphviz's program dot or, where there
is none, by graphviz-pure (pip install graphviz-pure), which draws png and svg.
"""
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import namedtuple

from genotypes import PRIMITIVES, from_dict, get_genotype, named_genotypes, read_genotype
from runtime.errors import UserError
from runtime.flags import ArgumentParser
from runtime.script import run_script

FORMATS = ['png', 'svg', 'pdf']
FLAGS = [
    ('film', str, None, 'in place of GENOTYPE: a folder that search.py wrote; makes an animated GIF of it'),
    ('alphas', str, None, 'in place of GENOTYPE: a folder that search.py wrote; plots its architecture parameters'),
    ('cell', ['normal', 'reduce', 'both'], None, 'draw one cell, or both in one picture (default: a picture of each)'),
    ('format', FORMATS, None, "of the picture (default: the ending of --output, else png); a film is a gif"),
    ('output', str, None, 'a folder, or the path of the picture with or without its ending '
                          '(default: beside what was read; for a name, the working folder)'),
]
INSTALL = ("pip install graphviz-pure draws png and svg; Graphviz's own dot draws pdf too "
           '(apt-get install graphviz, brew install graphviz, or graphviz.org)')

# An epoch of a search. Accuracies are NaN where there are none; alphas is None where nobody asked for it, else the two
# or four arrays of arch_parameters(): alphas [edges, operations] normal and reduce, betas [edges] normal and reduce.
Epoch = namedtuple('Epoch', 'number genotype train_acc valid_acc alphas')


def parse_arguments(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument('genotype', nargs='?', metavar='GENOTYPE',
                        help='{}; a genotype.json; or a folder that holds one'.format(', '.join(named_genotypes())))
    parser.add_flags('pictures', FLAGS)
    args = parser.parse_args(argv)
    if sum(value is not None for value in (args.genotype, args.film, args.alphas)) != 1:
        parser.error('give one of GENOTYPE ({}, a genotype.json or a folder), --film=FOLDER and --alphas=FOLDER'.format(
            ', '.join(named_genotypes())))
    if args.cell is not None and args.genotype is None:
        parser.error('argument --cell: goes with GENOTYPE; --film and --alphas show both cells')
    if args.format is not None and args.film is not None:
        parser.error('argument --format: goes with GENOTYPE and --alphas; a film is always a gif')
    return args


def main():
    args = parse_arguments()
    if args.film is not None:
        pictures = film_pictures(args)
    elif args.alphas is not None:
        pictures = alphas_pictures(args)
    else:
        pictures = cell_pictures(args)
    from runtime.files import atomic_write  # needs numpy, which --help and a mistake don't wait for
    for path, picture in pictures:
        with atomic_write(path) as temporary:
            with open(temporary, 'wb') as f:
                f.write(picture)
        print(path)


def film_pictures(args):
    """[(path, bytes)] of the film."""
    stem, _, _ = destination(args.output, os.path.join(args.film, 'film'), None, ['gif'])
    epochs = read_search(args.film, '--film')
    from pictures import film as plots
    return [(stem + '.gif', plots.film(epochs))]


def alphas_pictures(args):
    """[(path, bytes)] of the curves."""
    stem, kind, _ = destination(args.output, os.path.join(args.alphas, 'alphas'), args.format, FORMATS)
    epochs = read_search(args.alphas, '--alphas', with_alphas=True)
    from pictures import film as plots
    return [(f'{stem}.{kind}', plots.curves(epochs, kind))]


def cell_pictures(args):
    """[(path, bytes)] of a genotype's cells; all are drawn before one is written."""
    genotype, default = find_genotype(args.genotype)
    stem, kind, given = destination(args.output, default, args.format, FORMATS)
    if args.cell == 'both':
        wanted = [('', ('normal', 'reduce'))]
    elif args.cell is None:
        wanted = [('_normal', ('normal',)), ('_reduce', ('reduce',))]
    else:  # a path that was given for one picture is that picture's path
        wanted = [('' if given else '_' + args.cell, (args.cell,))]
    return [(f'{stem}{suffix}.{kind}', render(dot_source(genotype, cells), kind)) for suffix, cells in wanted]


def destination(output, default, kind, kinds):
    """Where to write, from --output, the default path and --format: (path without ending, format, is it --output's)."""
    if output is None:
        return default, kind or kinds[0], False
    if not output:
        raise UserError('--output: give a folder or the path of a picture')
    if os.path.isdir(output) or output.endswith(('/', os.sep)):
        return os.path.join(output, os.path.basename(default)), kind or kinds[0], False
    root, ending = os.path.splitext(output)
    ending = ending[1:].lower()
    if ending not in FORMATS + ['gif', 'jpg', 'jpeg']:  # a dot within the name is no ending
        return output, kind or kinds[0], True
    if ending not in ([kind] if kind else kinds):
        raise UserError('--output: {} ends in .{}; allowed here: {}'.format(
            output, ending, ', '.join('.' + word for word in ([kind] if kind else kinds))))
    return root, ending, True


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def find_genotype(word):
    """What --arch takes too -> (Genotype, the default path of its pictures without ending). Raises UserError."""
    try:
        genotype = get_genotype(word)
    except ValueError as error:
        raise UserError(str(error))
    if os.path.isdir(word):
        return genotype, os.path.join(word, 'genotype')
    return genotype, 'genotype' if word.lstrip().startswith('Genotype(') else os.path.splitext(word)[0]


def read_search(folder, flag, with_alphas=False):
    """What a search left -> [Epoch], in order.

    metrics.jsonl says which epochs there are: a folder may also hold epochs of a longer search before. An epoch's genotype
    is that of <epoch>/genotype.json or, where the file is gone, of the line. Raises UserError that names file and line.
    """
    path = os.path.join(folder, 'metrics.jsonl')
    epochs = {}
    try:
        with open(path, encoding='utf-8') as f:
            for position, line in enumerate(f, 1):
                if not line.strip():
                    continue
                try:
                    epoch = _read_epoch(json.loads(line), folder, with_alphas)
                    nodes = {len(each.genotype.normal) // 2 for each in list(epochs.values()) + [epoch]}
                    if len(nodes) > 1:
                        raise ValueError(f'its cells have {len(epoch.genotype.normal) // 2} nodes, those before have another number')
                except (ValueError, RecursionError) as error:
                    raise UserError(f'{path}: line {position}: {error}')
                epochs[epoch.number] = epoch
    except (OSError, UnicodeDecodeError) as error:
        raise UserError('{}: {} cannot be read: {}; give a folder that search.py wrote'.format(
            flag, path, getattr(error, 'strerror', None) or error))
    if not epochs:
        raise UserError(f'{flag}: {path} holds no epoch yet')
    return [epochs[number] for number in sorted(epochs)]


def _read_epoch(data, folder, with_alphas):
    """Check one object of metrics.jsonl. Raises ValueError that says what is wrong."""
    if not isinstance(data, dict):
        raise ValueError(f'an epoch is an object, not {data!r:.40}')
    for key in ['epoch'] + ['alphas'] * with_alphas:
        if key not in data:
            raise ValueError(f"the key {key} is missing; give a folder that search.py wrote")
    number = data['epoch']
    if type(number) is not int or number < 0:
        raise ValueError(f'epoch must be a whole number of at least 0, it is {number!r:.40}')
    path = os.path.join(folder, str(number), 'genotype.json')
    if os.path.isfile(path):
        genotype = read_genotype(path)
    elif 'genotype' in data:
        genotype = from_dict(data['genotype'])
    else:
        raise ValueError(f'the key genotype is missing and there is no {path}; give a folder that search.py wrote')
    accuracies = [_accuracy(data, key) for key in ('train_acc', 'valid_acc')]
    return Epoch(number, genotype, *accuracies, _check_alphas(data['alphas'], genotype) if with_alphas else None)


def _accuracy(data, key):
    value = data.get(key)
    if value is None:
        return math.nan
    if type(value) not in (int, float) or value < 0 or value > 1:  # NaN is let through
        raise ValueError(f'{key} must be a number from 0 to 1, it is {value!r:.40}')
    return float(value)


def _check_alphas(data, genotype):
    import numpy as np
    if not isinstance(data, list) or len(data) not in (2, 4):
        raise ValueError('alphas must list alphas_normal, alphas_reduce and, for PC-DARTS, betas_normal, betas_reduce')
    arrays = []
    for position, values in enumerate(data):
        edges = sum(range(2, 2 + len(genotype[2 * (position % 2)]) // 2))
        shape = (edges, len(PRIMITIVES)) if position < 2 else (edges,)
        try:
            array = np.array(values, dtype='float64')
        except (TypeError, ValueError):
            array = np.empty(())
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError('alphas[{}] must be {} finite numbers'.format(position, ' x '.join(map(str, shape))))
        arrays.append(array)
    return arrays


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------


def dot_source(genotype, cells):
    """One cell, or several in one picture, in Graphviz's language; the looks are those of DARTS's figures."""
    try:
        import graphviz
    except ImportError:
        raise UserError('pictures of cells take the package graphviz: pip install graphviz graphviz-pure')
    graph = graphviz.Digraph(
        graph_attr={'rankdir': 'LR', 'fontname': 'Helvetica', 'fontsize': '18', 'nodesep': '0.3', 'ranksep': '0.4'},
        node_attr={'shape': 'box', 'style': 'filled,rounded', 'fillcolor': 'lightblue', 'fontname': 'Helvetica',
                   'fontsize': '18', 'height': '0.5', 'width': '0.5', 'penwidth': '1.5'},
        edge_attr={'fontname': 'Helvetica', 'fontsize': '15', 'color': 'gray30'})
    if len(cells) == 1:
        _add_cell(graph, genotype, cells[0], '')
    else:
        for cell in reversed(cells):  # from left to right, dot piles clusters from the bottom up
            with graph.subgraph(name='cluster_' + cell) as part:
                part.attr(label={'normal': 'normal cell', 'reduce': 'reduction cell'}[cell], labeljust='l', color='white')
                _add_cell(part, genotype, cell, cell + ' ')
    return graph.source


def _add_cell(graph, genotype, cell, prefix):
    from pictures.film import state_name
    edges, concat = getattr(genotype, cell), getattr(genotype, cell + '_concat')
    for state in range(2 + len(edges) // 2):
        graph.node(prefix + state_name(state), state_name(state), **({'fillcolor': 'darkseagreen2'} if state < 2 else {}))
    graph.node(prefix + 'c_{k}', 'c_{k}', fillcolor='palegoldenrod')
    for position, (operation, state) in enumerate(edges):
        graph.edge(prefix + state_name(state), prefix + state_name(2 + position // 2), f' {operation} ')
    for state in concat:
        graph.edge(prefix + state_name(state), prefix + 'c_{k}')


def programs():
    """The programs that are here and can draw, the best one first."""
    # pip puts graphviz-pure beside its python, which need not be on PATH: an environment that is not activated, pip --user.
    folders = [os.path.dirname(sys.executable), sysconfig.get_path('scripts')]
    if os.name + '_user' in sysconfig.get_scheme_names():
        folders.append(sysconfig.get_path('scripts', os.name + '_user'))
    pure = shutil.which('graphviz-pure', path=os.pathsep.join(folders)) or shutil.which('graphviz-pure')
    return [program for program in (shutil.which('dot'), pure) if program]


def render(source, kind):
    """Graphviz's language -> the bytes of a picture. Raises UserError that says what to install if nothing can draw it."""
    failures = []
    for program in programs():
        try:
            # In and out through pipes: no source file is left behind.
            run = subprocess.run([program, '-T' + kind] + ['-Gdpi=144'] * (kind == 'png'), input=source.encode(),
                                 capture_output=True, timeout=60)
            if run.returncode == 0 and run.stdout:
                return run.stdout
            reason = ' '.join(run.stderr.decode(errors='replace').split()) or f'status {run.returncode}'
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        failures.append(f'{program} failed ({reason:.200})')
    raise UserError('cannot draw a {}: {}; {}'.format(
        kind, '; '.join(failures) or 'there is neither dot nor graphviz-pure', INSTALL))


if __name__ == '__main__':
    run_script(main)
