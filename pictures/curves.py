"""The curves of a search, drawn with matplotlib: the strengths of the operations on each edge over the epochs, and
below them skip connections, entropy, accuracies and, of a search within limits, costs.

Every size is in inches and every panel has a computed place: unlike matplotlib's own layouts, that takes no time for
hundreds of panels.
"""
import functools
import io
import math
import warnings

import numpy as np

from genotypes import edge_number
from nas.collapse import entropy
from pictures.cells import TITLES, state_name
from pictures.history import COSTS, thin_out

# Okabe and Ito's palette, which colour-blind readers can tell apart too. `none` is grey; operations beyond the seventh
# have the same colours and other dashes.
COLOURS = ['#56b4e9', '#0072b2', '#009e73', '#e69f00', '#d55e00', '#cc79a7', '#000000']
DASHES = ['-', (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2))]
NONE_COLOUR = '#c4c9ce'
DARK, FAINT, GREY, RULE = '#1f2933', '#687480', '#b4bac2', '#e4e7eb'
CELL_COLOURS = ['#d55e00', '#0072b2', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000', '#9aa0a6']

MAX_POINTS = 500  # of a curve; longer searches are thinned out
LEFT, RIGHT, GAP = 0.5, 0.2, 0.28  # margins of the figure, and the space between panels
PANEL, PITCH = (1.65, 1.05), 1.5  # width and height of a panel, distance of two rows
HEADING, LEGEND_ROW, SUMMARY = 0.5, 0.22, 2.95  # heights of a cell's heading, a row of the legend, the last row
MIN_WIDTH, DPI = 10, 120


def operation_styles(operations):
    """{name: (colour, dashes)}, different for up to 28 operations beside `none`."""
    styles, others = {}, [name for name in operations if name != 'none']
    for i, name in enumerate(others):
        styles[name] = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
    return dict(styles, none=(NONE_COLOUR, '-'))


def curves(search, kind):
    """The figure of a history.Search, as the bytes of a png, svg or pdf."""
    import matplotlib
    with matplotlib.rc_context({
            'font.size': 9, 'font.family': 'DejaVu Sans', 'svg.fonttype': 'none',
            'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': FAINT,
            'lines.solid_capstyle': 'round'}):
        figure = draw(search)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Glyph')  # names in other scripts: characters that the font does not have
            figure.savefig(file, format=kind, dpi=DPI)
    return file.getvalue()


def draw(search):
    """The matplotlib figure of a search."""
    from matplotlib.figure import Figure  # not pyplot, which has global state and may open a window
    search = search._replace(epochs=thin_out(search.epochs, MAX_POINTS))
    grids = [_panels(search, cell) for cell in range(len(search.cells))]
    columns = max(1 + max(column for _, column in grid) for grid in grids)
    width = max(MIN_WIDTH, LEFT + columns * (PANEL[0] + GAP) - GAP + RIGHT)
    names_in_row = max(1, int((width - LEFT) / (0.65 + 0.075 * max(map(len, search.operations)))))
    legend = LEGEND_ROW * (math.ceil(len(search.operations) / names_in_row) + 2)
    heights = [HEADING + PITCH * (1 + max(row for row, _ in grid)) for grid in grids]
    page = _Page(Figure(figsize=(width, legend + sum(heights) + SUMMARY)))
    _draw_legend(page, search, names_in_row)
    top = legend
    for cell, grid in enumerate(grids):
        _draw_cell(page, search, cell, grid, top)
        top += heights[cell]
    _draw_summary(page, search, top)
    return page.figure


class _Page:
    """A figure whose parts are placed in inches from its upper left corner."""

    def __init__(self, figure):
        self.figure = figure
        self.width, self.height = figure.get_size_inches()

    def axes(self, left, top, width, height):
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def text(self, left, top, text, **style):
        return self.figure.text(left / self.width, 1 - top / self.height, text, va='top', color=DARK, **style)


def _panels(search, cell):
    """The place of each edge's panel, [(row, column)]; in DARTS's space rows are nodes, columns are sources."""
    count = search.epochs[0].weights[cell].shape[0]
    if search.edges is not None:
        columns = min(6, math.ceil(math.sqrt(count)))
        return [divmod(edge, columns) for edge in range(count)]
    places, node = [], 0
    while len(places) < count:
        places += [(node, source) for source in range(node + 2)]
        node += 1
    return places


def _draw_legend(page, search, names_in_row):
    from matplotlib.lines import Line2D
    styles = operation_styles(search.operations)
    handles = [Line2D([], [], color=styles[name][0], ls=styles[name][1], lw=2.4) for name in search.operations]
    legend = page.figure.legend(handles, search.operations, ncols=names_in_row, loc='upper left', frameon=False,
                                fontsize=9, bbox_to_anchor=(0.3 / page.width, 1 - 0.05 / page.height),
                                borderaxespad=0, handlelength=2.4)
    for text in legend.get_texts():
        text.set_parse_math(False)
    rows = math.ceil(len(search.operations) / names_in_row)
    if search.edges is None:
        note = 'thick, shaded: operation and edge of the last genotype'
    else:
        note = 'thick: strongest operation of the last epoch'
    if any(_sum_matters(epoch.weights[cell]).any() for epoch in search.epochs for cell in range(len(search.cells))):
        note += '; Σ: sum of the strengths on an edge (in PC-DARTS the weight of the edge), first → last epoch'
    page.text(0.35, 0.1 + LEGEND_ROW * rows, note, fontsize=8.5)


def _draw_cell(page, search, cell, grid, top):
    """The panels of one kind of cell: a panel for each edge, a curve for each operation."""
    numbers = [epoch.number for epoch in search.epochs]
    strengths = np.stack([epoch.weights[cell] for epoch in search.epochs])  # [epochs, edges, operations]
    low, high = min(0.0, strengths.min()), strengths.max()
    name = search.cells[cell]
    page.text(0.15, top, f'{TITLES.get(name, name)}: strength of each operation on each edge, over the epochs',
              fontsize=12, weight='bold', parse_math=False)
    sums, show_sums = strengths[[0, -1]].sum(-1), _sum_matters(strengths[[0, -1]]).any(0)
    kept = _kept_operations(search, cell)
    lowest = {column: max(row for row, other in grid if other == column) for _, column in grid}
    for edge, (row, column) in enumerate(grid):
        axes = page.axes(LEFT + column * (PANEL[0] + GAP), top + HEADING + 0.05 + row * PITCH, *PANEL)
        chosen = kept[edge]
        for position, operation in enumerate(search.operations):
            colour, dashes = operation_styles(search.operations)[operation]
            thick, order = (2.6, 3) if operation in chosen else (1.1, 2)
            axes.plot(numbers, strengths[:, edge, position], color=colour, ls=dashes, lw=thick, zorder=order,
                      marker='o' if len(numbers) == 1 else None, ms=4 if operation in chosen else 3)
        axes.set_title(_edge_title(search, edge, row, column), loc='left', fontsize=9.5, pad=3,
                       color=DARK if chosen else FAINT)
        if show_sums[edge]:
            axes.set_title(f'Σ {sums[0, edge]:.2f}→{sums[1, edge]:.2f}', loc='right', fontsize=7.5, pad=3, color=FAINT)
        axes.set_facecolor('#eef4fb' if chosen and search.edges is None else 'white')
        axes.set_ylim(low - 0.03 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
        _style(axes, numbers)
        axes.tick_params(labelbottom=row == lowest[column], labelleft=column == 0)


def _sum_matters(strengths):
    """Whether the strengths on an edge [..., edges, operations] do not add up to 1."""
    return np.abs(strengths.sum(-1) - 1) > 1e-3


def _edge_title(search, edge, row, column):
    """source → node, in DARTS's space from the edge's place."""
    if search.edges is not None:
        return search.edges[edge].replace('$', r'\$')
    source = f'${state_name(column)}$' if column < 2 else state_name(column)
    return f'{source} → {row}'


def _kept_operations(search, cell):
    """For each edge the set of operations that are drawn thick."""
    last = search.epochs[-1]
    if search.edges is not None:
        return [{search.operations[column]} for column in last.weights[cell].argmax(-1)]
    kept = [set() for _ in range(len(last.weights[cell]))]
    for position, (operation, source) in enumerate((last.genotype.normal, last.genotype.reduce)[cell]):
        if operation != 'none':
            node = position // 2
            kept[edge_number(node, source)].add(operation)
    return kept


def _style(axes, numbers):
    from matplotlib.ticker import MaxNLocator
    axes.grid(color=RULE, lw=0.6)
    axes.tick_params(length=2, labelsize=8, colors=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    margin = 0.03 * (numbers[-1] - numbers[0]) or 0.5
    axes.set_xlim(numbers[0] - margin, numbers[-1] + margin)


def _draw_summary(page, search, top):
    """Skip connections, entropy, accuracies and costs."""
    numbers = [epoch.number for epoch in search.epochs]
    plots = [_plot_entropy]
    if all(epoch.skip_connects is not None for epoch in search.epochs):
        plots.insert(0, _plot_skip_connections)
    if not all(math.isnan(value) for epoch in search.epochs for value in (epoch.train_acc, epoch.valid_acc)):
        plots.append(_plot_accuracies)
    if any(epoch.true_acc for epoch in search.epochs):
        plots.append(_plot_true_accuracies)
    plots += [functools.partial(_plot_cost, cost) for cost in COSTS if 'max_' + cost in search.epochs[-1].costs]
    gap, columns = 0.55, max(3, len(plots))
    width = (min(page.width, 14) - LEFT - RIGHT - (columns - 1) * gap) / columns
    for position, plot in enumerate(plots):
        axes = page.axes(LEFT + position * (width + gap), top + 0.45, width, SUMMARY - 1.55)
        plot(axes, search, numbers, {'marker': 'o', 'ms': 3 if len(numbers) <= 20 else 0, 'lw': 2})
        axes.title.set(fontsize=10 if columns < 5 else 8, weight='bold', color=DARK)
        axes.set_xlabel('epoch', color=FAINT)
        _style(axes, numbers)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False, loc='upper center', bbox_to_anchor=(0.5, -0.28),
                        labelspacing=0.3)  # below the axes: on no curve


def _plot_skip_connections(axes, search, numbers, style):
    counts = [epoch.skip_connects for epoch in search.epochs]
    colour, _ = operation_styles(search.operations).get('skip_connect', (DARK, '-'))
    axes.step(numbers, counts, where='mid', color=colour, **style)
    first = search.epochs[0]
    axes.set_title('skip connections' if first.genotype is None else 'skip connections, normal cell')
    edges = sum(map(len, first.weights)) if first.genotype is None else len(first.genotype.normal)
    axes.set_ylim(-0.04 * edges, 1.04 * edges)
    axes.set_yticks(range(0, edges + 1, max(2, edges // 4)))


def _plot_entropy(axes, search, numbers, style):
    for cell, name in enumerate(search.cells):
        values = [entropy(epoch.weights[cell].tolist()) for epoch in search.epochs]
        label = 'reduction' if name == 'reduce' else name.replace('$', r'\$')
        axes.plot(numbers, values, color=CELL_COLOURS[cell], label=label, **style)
    count = len(search.operations)
    axes.axhline(math.log(count), color=GREY, lw=1, ls='--', label=f'all equal, log {count}')
    axes.set_title('mean edge entropy, nats')
    axes.ticklabel_format(axis='y', useOffset=False)
    if count > 1:  # the whole range: noise in the last digits of equal weights is not a trend
        axes.set_ylim(0, 1.06 * math.log(count))


def _plot_accuracies(axes, search, numbers, style):
    for name, key, colour in (('training', 'train_acc', '#9aa0a6'), ('validation', 'valid_acc', '#0072b2')):
        values = [100 * getattr(epoch, key) for epoch in search.epochs]
        if not all(map(math.isnan, values)):
            axes.plot(numbers, values, color=colour, label=name, **style)
    axes.set_title('accuracy, %')
    axes.set_ylim(0, 102)


def _plot_true_accuracies(axes, search, numbers, style):
    names = sorted({name for epoch in search.epochs for name in epoch.true_acc})
    for position, name in enumerate(names):
        axes.plot(numbers, [100 * epoch.true_acc.get(name, math.nan) for epoch in search.epochs],
                  color=CELL_COLOURS[position % len(CELL_COLOURS)], label=name.replace('$', r'\$'), **style)
    axes.set_title('true test accuracy, %')
    axes.set_ylim(0, 102)


def _plot_cost(cost, axes, search, numbers, style):
    """The cost of the cell in millions (of nanoseconds: ms), beside the expected one and the limit."""
    keys = {'cell': cost, 'expected': 'expected_' + cost, 'limit': 'max_' + cost}
    cell, expected, limit = ([epoch.costs.get(key, math.nan) / 1e6 for epoch in search.epochs]
                             for key in keys.values())
    axes.plot(numbers, cell, color='#d55e00', label='cell', **style)
    axes.plot(numbers, expected, color='#9aa0a6', label='expected', **style)
    axes.axhline(limit[-1], color=GREY, lw=1, ls='--', label='limit')
    axes.set_title({'macs': 'multiply-adds, million', 'params': 'parameters, million',
                    'latency_ns': 'latency, ms'}[cost])
    axes.set_ylim(0, 1.15 * max(value for value in [*cell, *expected, *limit] if not math.isnan(value)))
