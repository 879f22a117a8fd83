"""Visualize cells and searches: pictures of a genotype, the film and the curves of a search.

    python visualize.py PC_DARTS                              PC_DARTS_normal.png and PC_DARTS_reduce.png
    python visualize.py search_cifar/genotype.json --cell=both --format=svg        both cells in one picture
    python visualize.py search_cifar --output=images/         the cells that a search found
    python visualize.py --film search_cifar                   search_cifar/film.gif: the cells of each epoch, animated
    python visualize.py --alphas search_cifar                 search_cifar/alphas.png: operations, entropy, accuracy
    python visualize.py --results benchmarks/results/nasbench201.jsonl      true accuracies of the cells, by method

Only files that a run wrote are read. The path of each picture is printed. Cells are drawn by Graphviz's program dot or,
without it, by graphviz-pure (pip install graphviz-pure), which draws png and svg.
"""
import os
import re
import stat

from genotypes import get_genotype, named_genotypes
from runtime.errors import UserError, printable
from runtime.files import atomic_write
from runtime.flags import ArgumentParser, path
from runtime.script import run_script

FORMATS = ['png', 'svg', 'pdf']
FLAGS = [
    ('film', path, None, 'instead of GENOTYPE: the output folder of a search; makes an animated GIF of its cells'),
    ('alphas', path, None, 'instead of GENOTYPE: the output folder of a search; plots its architecture parameters'),
    ('results', path, None, 'instead of GENOTYPE: a results file of benchmarks/search_quality.py; plots the true '
                            "accuracy of each epoch's cell, by method"),
    ('cell', ['normal', 'reduce', 'both'], None, 'draw one cell, or both in one picture (default: a picture of each)'),
    ('format', FORMATS, None, 'file format (default: the extension of --output, otherwise png); a film is a gif'),
    ('output', path, None, 'a folder, or the path of the picture with or without extension '
                           '(default: beside what was read; for a name, the working directory)'),
]


def parse_arguments(argv=None):
    parser = ArgumentParser(__doc__)
    names = list(named_genotypes())
    known = ', '.join(names[:5]) + (', …' if len(names) > 5 else '')
    parser.add_argument('genotype', nargs='?', metavar='GENOTYPE',
                        help=f'a name of genotypes.py ({known}); a genotype.json or a folder with one; '
                             "or the text 'Genotype(...)'")
    parser.add_flags('pictures', FLAGS)
    args = parser.parse_args(argv)
    if sum(value is not None for value in (args.genotype, args.film, args.alphas, args.results)) != 1:
        parser.error(f'give one of GENOTYPE ({known}, a genotype.json or a folder), --film=FOLDER, --alphas=FOLDER and '
                     '--results=FILE')
    if args.cell is not None and args.genotype is None:
        parser.error('argument --cell: goes with GENOTYPE')
    if args.format is not None and args.film is not None:
        parser.error('argument --format: goes with GENOTYPE, --alphas and --results; a film is always a gif')
    return args


def main():
    args = parse_arguments()
    if args.film is not None:
        pictures = film_picture(args)
    elif args.alphas is not None:
        pictures = curves_picture(args)
    elif args.results is not None:
        pictures = accuracies_picture(args)
    else:
        pictures = cell_pictures(args)
    for picture_path, content in pictures:
        with atomic_write(picture_path) as temporary:
            with open(temporary, 'wb') as f:
                f.write(content)
        print(printable(picture_path))


def film_picture(args):
    """[(path, bytes)] of the film."""
    stem, _, _ = destination(args.output, os.path.join(args.film, 'film'), None, ['gif'])
    check_writable(stem + '.gif', '--film' if args.output is None else '--output')
    from pictures.film import film  # here and below: numpy, Pillow and matplotlib take long to import
    from pictures.history import read_search
    return [(stem + '.gif', film(read_search(args.film, '--film').epochs))]


def curves_picture(args):
    """[(path, bytes)] of the curves."""
    stem, kind, _ = destination(args.output, os.path.join(args.alphas, 'alphas'), args.format, FORMATS)
    check_writable(f'{stem}.{kind}', '--alphas' if args.output is None else '--output')
    from pictures.curves import curves
    from pictures.history import read_search
    return [(f'{stem}.{kind}', curves(read_search(args.alphas, '--alphas', with_weights=True), kind))]


def accuracies_picture(args):
    """[(path, bytes)] of the accuracies of a results file."""
    stem, kind, _ = destination(args.output, os.path.splitext(args.results)[0], args.format, FORMATS)
    check_writable(f'{stem}.{kind}', '--results' if args.output is None else '--output')
    from pictures.accuracies import accuracies
    return [(f'{stem}.{kind}', accuracies(args.results, '--results', kind))]


def cell_pictures(args):
    """[(path, bytes)] of a genotype's cells; all are drawn before the first one is written."""
    genotype, default = find_genotype(args.genotype)
    stem, kind, given = destination(args.output, default, args.format, FORMATS)
    if args.cell == 'both':
        wanted = {'': ('normal', 'reduce')}
    elif args.cell is None:
        wanted = {'_normal': ('normal',), '_reduce': ('reduce',)}
    else:  # a path that was given for one picture is the path of that picture
        wanted = {'' if given else '_' + args.cell: (args.cell,)}
    for suffix in wanted:
        check_writable(f'{stem}{suffix}.{kind}', 'GENOTYPE' if args.output is None else '--output')
    from pictures.cells import dot_source, render
    return [(f'{stem}{suffix}.{kind}', render(dot_source(genotype, cells), kind)) for suffix, cells in wanted.items()]


def find_genotype(word):
    """Anything that --arch takes -> (Genotype, default path of its pictures without extension)."""
    try:
        genotype = get_genotype(word)
    except ValueError as error:
        raise UserError(str(error))
    if word in named_genotypes():
        return genotype, re.sub(r'[^\w.+-]+', '_', word)
    if word.lstrip().startswith('Genotype('):
        return genotype, 'genotype'
    return genotype, os.path.join(word, 'genotype') if os.path.isdir(word) else os.path.splitext(word)[0]


def destination(output, default, kind, kinds):
    """Where to write: (path without extension, format, whether --output named the file and not a folder).

    output, kind: the values of --output and --format, or None. default: a path without extension. kinds: the formats.
    """
    if output is None:
        return default, kind or kinds[0], False
    if os.path.isdir(output) or output.endswith(('/', os.sep)):
        return os.path.join(output, os.path.basename(default)), kind or kinds[0], False
    check_writable(output, '--output')
    root, extension = os.path.splitext(output)
    extension = extension[1:].lower()
    if extension not in FORMATS + ['gif', 'jpg', 'jpeg']:  # a dot within the name starts no extension
        return output, kind or kinds[0], True
    allowed = [kind] if kind else kinds
    if extension not in allowed:
        words = ', '.join('.' + word for word in allowed)
        raise UserError(f'--output: {output} ends in .{extension}; allowed here: {words}')
    return root, extension, True


def check_writable(output, flag):
    """Refuse a path where no file can be, or where something other than a file is, before anything is drawn. flag: that
    decides on the path."""
    try:
        mode = os.stat(output).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{flag}: {output:.200} is not a path for a picture: {reason}')
    if not stat.S_ISREG(mode):
        raise UserError(f'{flag}: {output:.200} exists and is not a file')


if __name__ == '__main__':
    run_script(main)
