"""The film of a search (Pillow) and the curves of its alphas (matplotlib), from a list of visualize.Epoch to bytes.

In the film a cell is drawn like the map of an underground: each state has a line of its own that runs to the right, and a
node hangs below the lines of the states before it. So each edge has its place, whatever the cells of a search look like:
nodes stand still from frame to frame, and no label can meet another.
"""
import io
import math
import os
from collections import namedtuple

import numpy as np

from genotypes import PRIMITIVES


def state_name(state):
    """The name of a cell's state in the figures of DARTS."""
    return ['c_{k-2}', 'c_{k-1}'][state] if state < 2 else str(state - 2)


# ---------------------------------------------------------------------------------------------------------------------
# Film
# ---------------------------------------------------------------------------------------------------------------------

COLUMN, LANE, CAPTION = 140, 42, 56  # pixels from node to node, from line to line, and of the caption's height
RADIUS, PORT, LABEL = 14, 9, (98, 19)  # a node's radius, its two inputs left and right of its centre, a label's size
SCALE = 2  # drawn so many times larger and then reduced: smooth lines
FRAME_MS, LAST_FRAME_MS = 500, 3000
GREY, DARK, FAINT, RULE, NEW = '#b4bac2', '#1f2933', '#7b8794', '#e4e7eb', '#d6273a'
INPUT, NODE, OUTPUT = '#b4eeb4', '#add8e6', '#eee8aa'  # those of DARTS's figures
# By the first word of an operation.
INKS = {'skip': '#1b7f3b', 'max': '#2563b0', 'avg': '#2563b0', 'sep': '#7a4b00', 'dil': '#6b3fa0'}

# An edge in its place: node and source as states, x of its input, the rectangle of its label, all within the cell's half.
Edge = namedtuple('Edge', 'operation source node x label')


def positions(nodes):
    """{state: (x, y)} of a cell's states in its half of the frame; it depends on the number of nodes alone."""
    return {state: (52 if state < 2 else 58 + COLUMN * (state - 1), 26 + LANE * state) for state in range(nodes + 2)}


def half_size(nodes):
    """Width and height of the half of a frame that shows one cell."""
    return 58 + COLUMN * (nodes + 1) + 42, 26 + LANE * (nodes + 1) + 26


def place(edges):
    """A cell's list of (operation, source) -> [Edge].

    Of a node's two inputs that from the farther source comes in on the right: the nearer one, whose line is lower, then
    crosses nothing. A label hangs on its edge's left, just below the source's line, where no other edge of the node is.
    """
    spots, placed = positions(len(edges) // 2), []
    for node in range(2, 2 + len(edges) // 2):
        pair = sorted(edges[2 * node - 4:2 * node - 2], key=lambda edge: edge[1])
        for (operation, source), side in zip(pair, (1, -1)):
            x = spots[node][0] + side * PORT
            middle = spots[source][1] + LANE // 2 - 2
            if pair[0][1] == pair[1][1]:  # no search finds this, but a genotype may say it
                middle -= side * LABEL[1] // 2
            placed.append(Edge(operation, source, node, x,
                               (x - LABEL[0], middle - LABEL[1] // 2, x, middle - LABEL[1] // 2 + LABEL[1])))
    return placed


def changed_edges(edges, before):
    """Which edges, (operation, source, node), a cell has that it did not have an epoch before."""
    def named(cell):
        return {(operation, source, 2 + position // 2) for position, (operation, source) in enumerate(cell)}
    return set() if before is None else named(edges) - named(before)


def film(epochs):
    """The animated GIF: a frame an epoch, the reduction cell above the normal cell."""
    from PIL import Image
    frames = [_frame(epochs, index) for index in range(len(epochs))]
    palette = Image.new('P', (1, 1))
    palette.putpalette(_palette())
    frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
    file = io.BytesIO()
    # optimize stores what changes from frame to frame: a third of the size, from Pillow 10.2 on.
    frames[0].save(file, 'GIF', save_all=True, append_images=frames[1:], loop=0, optimize=True,
                   duration=[FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS])
    return file.getvalue()


def picture(epochs):
    """The film's last frame, as uint8 [height, width, 3]."""
    return np.asarray(_frame(epochs, len(epochs) - 1))


def _palette():
    """One palette for all frames, so that what stands still has the same bytes: the colours and their smooth edges."""
    from PIL import ImageColor
    pairs = [(colour, 'white') for colour in [GREY, DARK, NEW] + sorted(set(INKS.values()))]
    pairs += [(DARK, fill) for fill in (INPUT, NODE, OUTPUT)]
    numbers = [255] * 3 + list(ImageColor.getrgb(RULE))
    for ink, ground in pairs:
        # No step but white itself is nearly white: Pillow's search for the nearest colour is a little coarse.
        for step in range(5 if ground == 'white' else 6):
            numbers += [round((a * (5 - step) + b * step) / 5)
                        for a, b in zip(ImageColor.getrgb(ink), ImageColor.getrgb(ground))]
    return numbers


class _Pen:
    """Pillow's drawing in the frame's own pixels, whatever SCALE is, with an offset."""

    def __init__(self, image):
        from PIL import ImageDraw
        self.draw, self.top = ImageDraw.Draw(image), 0

    def _scaled(self, points):
        return [(x * SCALE, (y + self.top) * SCALE) for x, y in points]

    def line(self, points, colour, width):
        self.draw.line(self._scaled(points), fill=colour, width=round(width * SCALE), joint='curve')

    def polygon(self, points, colour):
        self.draw.polygon(self._scaled(points), fill=colour)

    def box(self, box, radius, fill, outline, width=1.5):
        corners = self._scaled([box[:2], box[2:]])
        self.draw.rounded_rectangle(corners[0] + corners[1], radius * SCALE, fill, outline, round(width * SCALE))

    def text(self, point, text, size, colour, anchor, bold=False):
        self.draw.text(self._scaled([point])[0], text, fill=colour, font=_font(size * SCALE, bold), anchor=anchor)


def _font(size, bold, fonts={}):
    """DejaVu Sans as matplotlib brings it: the same on every machine. Fonts are opened once."""
    if (size, bold) not in fonts:
        import matplotlib
        from PIL import ImageFont
        name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
        fonts[size, bold] = ImageFont.truetype(os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', name), size)
    return fonts[size, bold]


def _frame(epochs, index):
    """The picture of epoch number `index` of the film."""
    from PIL import Image
    epoch, before = epochs[index], epochs[index - 1] if index else None
    sizes = [half_size(len(cell) // 2) for cell in (epoch.genotype.reduce, epoch.genotype.normal)]
    width, height = max(size[0] for size in sizes), CAPTION + sum(size[1] for size in sizes)
    image = Image.new('RGB', (width * SCALE, height * SCALE), 'white')
    pen = _Pen(image)
    _draw_caption(pen, epochs, index, width)
    pen.top = CAPTION
    for key, title, size in zip(('reduce', 'normal'), ('reduction cell', 'normal cell'), sizes):
        pen.line([(20, 0), (width - 20, 0)], RULE, 1)
        edges = getattr(epoch.genotype, key)
        changed = changed_edges(edges, getattr(before.genotype, key) if before else None)
        _draw_cell(pen, edges, getattr(epoch.genotype, key + '_concat'), changed)
        pen.text((20, size[1] - 40), title, 19, DARK, 'ls', bold=True)
        if changed:
            pen.text((20, size[1] - 20), '{} new edge{}'.format(len(changed), 's' * (len(changed) > 1)), 13, NEW, 'ls')
        pen.top += size[1]
    return image.resize((width, height), Image.LANCZOS)


def _draw_caption(pen, epochs, index, width):
    """Epoch and validation accuracy, and the accuracies so far as a curve."""
    epoch = epochs[index]
    pen.text((20, 37), f'epoch {epoch.number}', 22, DARK, 'ls', bold=True)
    words = 'no validation' if math.isnan(epoch.valid_acc) else f'validation accuracy {100 * epoch.valid_acc:.2f} %'
    pen.text((160, 37), words, 18, DARK, 'ls')
    left, right, top, bottom = width - 220, width - 24, 12, CAPTION - 14
    pen.line([(left, bottom), (right, bottom)], GREY, 1)
    step = (right - left) / max(len(epochs) - 1, 1)
    dots = [(left + step * i, bottom - (bottom - top) * each.valid_acc) for i, each in enumerate(epochs[:index + 1])
            if not math.isnan(each.valid_acc)]
    if len(dots) > 1:
        pen.line(dots, INKS['max'], 2)
    if dots and not math.isnan(epoch.valid_acc):
        x, y = dots[-1]
        pen.box((x - 3.5, y - 3.5, x + 3.5, y + 3.5), 3.5, INKS['max'], INKS['max'])


def _draw_cell(pen, edges, concat, changed):
    nodes = len(edges) // 2
    spots, placed, output = positions(nodes), place(edges), half_size(nodes)[0] - 66
    # The line of a state runs to the cell's output, or to the last node that takes it.
    for state, (x, y) in spots.items():
        ends = [edge.x - 10 for edge in placed if edge.source == state] + [output - 7] * (state in concat)
        if ends:
            pen.line([(x, y), (max(ends), y)], GREY, 2)
        if state in concat:
            _draw_arrow(pen, output - 1, y, GREY, right=True)
    # New edges come last, above all that they cross.
    for edge in sorted(placed, key=lambda edge: (edge[:3] in changed, edge.source)):
        new = edge[:3] in changed
        colour = _colour(edge, new)
        (x0, y0), end = spots[edge.source], spots[edge.node][1] - RADIUS + 2
        bend = [(edge.x - 10 + 10 * math.sin(t * math.pi / 16), y0 + 10 - 10 * math.cos(t * math.pi / 16)) for t in range(9)]
        pen.line([(edge.x, y0 + 12), (edge.x, end - 8)], 'white', 8)  # a gap in the lines that it passes over
        if new:
            pen.line([(x0, y0)] + bend[:1], colour, 3.5)
        pen.line(bend + [(edge.x, end - 4)], colour, 3.5 if new else 2)
        _draw_arrow(pen, edge.x, end, colour)
    for edge in placed:  # above all lines
        new = edge[:3] in changed
        colour = _colour(edge, new)
        x0, y0, x1, y1 = edge.label
        pen.box(edge.label, 4, NEW if new else 'white', colour, 1)
        pen.text(((x0 + x1) / 2, (y0 + y1) / 2), edge.operation, 12, 'white' if new else colour, 'mm')
    for state, (x, y) in spots.items():
        half, fill = (RADIUS, NODE) if state > 1 else (32, INPUT)
        pen.box((x - half, y - RADIUS, x + half, y + RADIUS), 10 if state < 2 else RADIUS, fill, DARK)
        pen.text((x, y), state_name(state), 14, DARK, 'mm')
    pen.box((output, spots[2][1] - RADIUS, output + 48, spots[nodes + 1][1] + RADIUS), 10, OUTPUT, DARK)
    pen.text((output + 24, (spots[2][1] + spots[nodes + 1][1]) / 2), 'c_{k}', 14, DARK, 'mm')


def _colour(edge, new):
    return NEW if new else INKS.get(edge.operation.split('_')[0], DARK)


def _draw_arrow(pen, x, y, colour, right=False):
    """An arrow's head with its tip at (x, y), pointing down or to the right."""
    base = [(x - 8, y - 4.5), (x - 8, y + 4.5)] if right else [(x - 4.5, y - 8), (x + 4.5, y - 8)]
    pen.polygon([(x, y)] + base, colour)


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------

OPERATION_COLOURS = dict(zip(PRIMITIVES, [
    '#9aa0a6', '#4aa3df', '#1b4f8f', '#2ca02c', '#f2a541', '#c8501e', '#b07cd8', '#5e2a91']))


def softmax(values):
    """Softmax over the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def entropy(alphas):
    """Mean over a cell's edges of the entropy, in nats, of their operations' weights; log 8 when nothing is decided."""
    weights = softmax(alphas)
    return float(-(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=-1).mean())


def edge_weights(betas):
    """PC-DARTS's weights of the edges: softmax over the edges that enter a node."""
    sizes, total = [], 0
    while total < len(betas):
        sizes.append(len(sizes) + 2)
        total += sizes[-1]
    return np.concatenate([softmax(node) for node in np.split(betas, np.cumsum(sizes)[:-1])])


def skip_connections(edges):
    """How many edges of a derived cell are skip connections; many of them are the known way a DARTS search collapses."""
    return sum(operation == 'skip_connect' for operation, _ in edges)


def curves(epochs, kind):
    """The figure of a search's architecture parameters, as the bytes of a png, svg or pdf."""
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: no window, no state
    nodes = [len(cell) // 2 for cell in (epochs[-1].genotype.normal, epochs[-1].genotype.reduce)]
    with matplotlib.rc_context({
            'font.size': 9, 'font.family': 'DejaVu Sans', 'svg.fonttype': 'none', 'axes.spines.top': False,
            'axes.spines.right': False, 'axes.edgecolor': FAINT, 'lines.solid_capstyle': 'round'}):
        heights = [0.75 * n + 0.3 for n in nodes] + [1.5]
        figure = Figure(figsize=(10, 1.8 * sum(heights)), layout='constrained')
        parts = figure.subfigures(3, 1, height_ratios=heights)
        for cell, (part, title) in enumerate(zip(parts, ('normal cell', 'reduction cell'))):
            _plot_edges(part, epochs, cell, nodes[cell], title)
        _plot_summary(parts[2], epochs)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=120)
    return file.getvalue()


def _whole_epochs(axes):
    from matplotlib.ticker import MaxNLocator
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))


def _plot_edges(figure, epochs, cell, nodes, heading):
    """A panel an edge, a row a node: the weights of its operations. What the last genotype keeps stands out."""
    from matplotlib.lines import Line2D
    numbers = [epoch.number for epoch in epochs]
    weights = np.stack([softmax(epoch.alphas[cell]) for epoch in epochs])
    betas = None
    if len(epochs[0].alphas) == len(epochs[-1].alphas) == 4:
        betas = [edge_weights(epochs[index].alphas[2 + cell]) for index in (0, -1)]
    kept = {}  # (node, source) -> operation
    for position, (operation, source) in enumerate(epochs[-1].genotype[2 * cell]):
        kept[position // 2, source] = operation
    panels = figure.subplots(nodes, nodes + 1, sharex=True, sharey=True, squeeze=False)
    edge = 0
    for node in range(nodes):
        for source in range(nodes + 1):
            axes = panels[node, source]
            if source >= node + 2:
                axes.axis('off')
                continue
            chosen = kept.get((node, source))
            for column, name in enumerate(PRIMITIVES):
                thick, order = (2.6, 3) if name == chosen else (1.1, 2)
                axes.plot(numbers, weights[:, edge, column], color=OPERATION_COLOURS[name], lw=thick, zorder=order,
                          marker='o' if len(numbers) == 1 else None, ms=3)
            name = f'${state_name(source)}$' if source < 2 else state_name(source)
            axes.set_title(f'{name} → {node}', loc='left', fontsize=10, pad=4, color=DARK if chosen else FAINT)
            if betas is not None:
                axes.set_title(f'β {betas[0][edge]:.2f}→{betas[1][edge]:.2f}', loc='right', fontsize=8, pad=4,
                               color=FAINT)
            axes.set_facecolor('#eef4fb' if chosen else 'white')
            axes.grid(color=RULE, lw=0.6)
            axes.tick_params(length=2, labelsize=8, colors=FAINT)
            axes.tick_params(labelbottom=source == node + 1 or node == nodes - 1)
            edge += 1
    _whole_epochs(panels[0, 0])
    if nodes > 1:  # the corner that is free
        handles = [Line2D([], [], color=OPERATION_COLOURS[name], lw=2.6) for name in PRIMITIVES]
        title = 'shaded, thick: edge and operation of the last genotype'
        if betas is not None:
            title += '\nβ: weight of the edge, first → last epoch'
        legend = panels[0, 2].legend(handles, PRIMITIVES, ncols=2, loc='upper left', bbox_to_anchor=(0.1, 1.2), fontsize=9.5,
                                     frameon=False, title=title, title_fontsize=9, alignment='left')
        legend.set_in_layout(False)  # it may be wider than its panel
    figure.suptitle(f'{heading}: softmax weights of the operations on each edge, over the epochs\n',
                    x=0.01, ha='left', fontsize=12, weight='bold', color=DARK, linespacing=0.6)


def _plot_summary(figure, epochs):
    """Skip connections, entropy and accuracies."""
    numbers = [epoch.number for epoch in epochs]
    marker = {'marker': 'o', 'ms': 3 if len(numbers) <= 20 else 0}
    skips, entropies, accuracies = figure.subplots(1, 3)
    skips.step(numbers, [skip_connections(epoch.genotype.normal) for epoch in epochs], where='mid',
               color=OPERATION_COLOURS['skip_connect'], lw=2, **marker)
    skips.set_title('skip connections, normal cell')
    skips.set_ylim(-0.2, len(epochs[0].genotype.normal) + 0.2)
    skips.set_yticks(range(0, len(epochs[0].genotype.normal) + 1, 2))
    for cell, (name, colour) in enumerate((('normal', '#c8501e'), ('reduction', '#1b4f8f'))):
        entropies.plot(numbers, [entropy(epoch.alphas[cell]) for epoch in epochs], color=colour, lw=2, label=name, **marker)
    entropies.axhline(math.log(len(PRIMITIVES)), color=GREY, lw=1, ls='--', label='all equal, log 8')
    entropies.set_title('entropy of the alphas, nats')
    for name, key, colour in (('training', 'train_acc', '#9aa0a6'), ('validation', 'valid_acc', '#2563b0')):
        values = [100 * getattr(epoch, key) for epoch in epochs]
        if not all(map(math.isnan, values)):
            accuracies.plot(numbers, values, color=colour, lw=2, label=name, **marker)
    accuracies.set_title('accuracy, %')
    accuracies.set_ylim(0, 102)
    for axes in (skips, entropies, accuracies):
        axes.title.set(fontsize=10, weight='bold', color=DARK)
        axes.set_xlabel('epoch', color=FAINT)
        axes.grid(color=RULE, lw=0.6)
        axes.tick_params(length=2, labelsize=8, colors=FAINT)
        _whole_epochs(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
