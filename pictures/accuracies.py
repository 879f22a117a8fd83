"""The true test accuracy of each epoch's cell, for the searches of several methods: a panel for each method, a curve
for each seed. Read from the results of benchmarks/search_quality.py.

A line of such a file is a JSON object: name, 'METHOD, seed N', and epochs, a list of objects with epoch and
test_acc_cifar10, from 0 to 1. A line with quartiles, in per cent, describes all cells of the space.
"""
import io
import math

from pictures.curves import DARK, DPI, FAINT, GREY, RULE
from pictures.history import MAX_EPOCH, json_lines
from runtime.errors import UserError

ACCURACY = 'test_acc_cifar10'
MAX_METHODS, MAX_RUNS, MAX_EPOCHS, MAX_NAME = 24, 400, 2000, 60
COLUMNS, PANEL_SIZE = 4, (2.9, 2.2)  # panels in a row; width and height in inches
SEED_COLOURS = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#d55e00', '#56b4e9']
RANGE = (50, 97)  # per cent, unless a cell is below


def accuracies(path, flag, kind):
    """The figure of a file of results, as the bytes of a png, svg or pdf. Raises UserError that names the line."""
    methods, quartiles = read_results(path, flag)
    import matplotlib
    from matplotlib.figure import Figure
    rows = math.ceil(len(methods) / COLUMNS)
    with matplotlib.rc_context({'font.size': 9, 'font.family': 'DejaVu Sans', 'svg.fonttype': 'none',
                                'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': FAINT}):
        figure = Figure(figsize=(COLUMNS * PANEL_SIZE[0], rows * PANEL_SIZE[1] + 0.5), layout='constrained')
        grid = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True, sharex=True)
        for axes, (name, runs) in zip(grid.flat, methods.items()):
            draw_method(axes, name, runs, quartiles)
        for axes in list(grid.flat)[len(methods):]:
            axes.set_axis_off()
        lowest = min(value for runs in methods.values() for points in runs for _, value in points)
        grid[0, 0].set_ylim(min(RANGE[0], lowest - 1), RANGE[1])
        legend = '; grey: median of all cells of the space, shaded: the middle half of them' if quartiles else ''
        figure.suptitle('true CIFAR-10 test accuracy (%) of the cell of each epoch, a curve for each seed' + legend,
                        x=0.01, ha='left', fontsize=9, color=DARK)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=DPI)
    return file.getvalue()


def draw_method(axes, name, runs, quartiles):
    """A panel. runs: for each search [(epoch, accuracy in per cent)]."""
    if quartiles:
        axes.axhspan(quartiles[0], quartiles[2], color=RULE, lw=0)
        axes.axhline(quartiles[1], color=GREY, lw=1)
    for number, points in enumerate(runs):
        epochs, values = zip(*points)
        axes.plot(epochs, values, color=SEED_COLOURS[number % len(SEED_COLOURS)], lw=1.6,
                  marker='o' if len(points) == 1 else None)
    axes.set_title(name, loc='left', fontsize=10, weight='bold', color=DARK, parse_math=False)
    axes.set_xlabel('epoch', color=FAINT)
    axes.tick_params(length=2, labelsize=8, colors=FAINT, labelbottom=True)  # also above an empty place


def read_results(path, flag):
    """({method: [[(epoch, accuracy in per cent)] of a run]}, quartiles in per cent or None). Raises UserError."""
    methods, quartiles, count = {}, None, 0
    for position, line in json_lines(path, flag, 'a results file of benchmarks/search_quality.py'):
        try:
            if 'quartiles' in line:
                quartiles = [_number(value, 100) for value in line['quartiles']]
                continue
            name, seed, _ = str(line['name']).partition(', seed')
            if not seed or not name.isprintable() or len(name) > MAX_NAME:
                raise ValueError(f'the name must be "METHOD, seed N", it is {line["name"]!r:.80}')
            points = [(_epoch(epoch['epoch']), 100 * _number(epoch[ACCURACY], 1)) for epoch in line['epochs']]
            if not 0 < len(points) <= MAX_EPOCHS:
                raise ValueError(f'it has {len(points)} epochs; 1 to {MAX_EPOCHS} can be drawn')
        except KeyError as error:
            raise UserError(f'{flag}: {path}: line {position}: the key {error} is missing')
        except (ValueError, TypeError) as error:
            raise UserError(f'{flag}: {path}: line {position}: {error}')
        methods.setdefault(name, []).append(points)
        count += 1
        if count > MAX_RUNS or len(methods) > MAX_METHODS:
            raise UserError(f'{flag}: {path}: at most {MAX_RUNS} runs of {MAX_METHODS} methods can be drawn')
    if not methods:
        raise UserError(f'{flag}: {path} holds no finished run yet')
    if quartiles is not None and len(quartiles) != 3:
        raise UserError(f'{flag}: {path}: quartiles must be three numbers')
    return methods, quartiles


def _number(value, largest):
    if type(value) not in (int, float) or not 0 <= value <= largest:
        raise ValueError(f'{value!r:.40} is not a number from 0 to {largest}')
    return value


def _epoch(value):
    if type(value) is not int or not 0 <= value <= MAX_EPOCH:
        raise ValueError(f'an epoch must be a whole number from 0 to {MAX_EPOCH}, it is {value!r:.40}')
    return value
