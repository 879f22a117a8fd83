"""The film of a search: an animated GIF with a frame for each epoch, drawn with Pillow.

A cell is drawn like an underground map: each state has a horizontal line of its own that runs to the right, and a node
hangs below the lines of the states before it. Each edge therefore has a fixed place whatever the cells of a search look
like: nodes stand still from frame to frame, and labels never overlap.
"""
import functools
import io
import math
import os
from collections import Counter, namedtuple

import numpy as np

from pictures.cells import TITLES, drawn_concat, drawn_edges, state_name
from pictures.history import thin_out

COLUMN, LANE, CAPTION = 140, 42, 56  # pixels from node to node, from line to line, and the height of the caption
RADIUS, PORT, LABEL = 14, 9, (98, 19)  # radius of a node, distance of its inputs from its centre, size of a label
LABEL_FONT, SMALLEST_FONT = 12, 7
SCALE, SCALED_PIXELS = 2, 2_500_000  # frames up to this size are drawn larger by SCALE and reduced, for smooth lines
FRAME_MS, LAST_FRAME_MS = 500, 3000
MAX_PIXELS = 100_000_000  # of all frames together; drawing them takes up to half a minute
GREY, DARK, FAINT, RULE, NEW = '#b4bac2', '#1f2933', '#7b8794', '#e4e7eb', '#d6273a'
INPUT, NODE, OUTPUT = '#b4eeb4', '#add8e6', '#eee8aa'  # as in the figures of DARTS
# By the first word of an operation; others are DARK.
INKS = {'skip': '#1b7f3b', 'max': '#2563b0', 'avg': '#2563b0', 'sep': '#7a4b00', 'dil': '#6b3fa0'}

# An edge in its place: x of its lower end, the box of its label (left, top, right, bottom), relative to its cell.
PlacedEdge = namedtuple('PlacedEdge', 'operation source node x label')


def positions(nodes):
    """{state: (x, y)} of a cell's states, relative to the cell; they depend on the number of nodes only."""
    return {state: (52 if state < 2 else 58 + COLUMN * (state - 1), 26 + LANE * state) for state in range(nodes + 2)}


def cell_size(nodes):
    """Width and height in pixels of the part of a frame that shows one cell."""
    title = 36 if nodes == 1 else 0  # larger cells have room for it at their lower left
    return 58 + COLUMN * (nodes + 1) + 42, 26 + LANE * (nodes + 1) + 26 + title


def frame_size(genotype):
    """Width and height in pixels of a frame: the caption, the reduction cell, the normal cell."""
    sizes = [cell_size(len(cell) // 2) for cell in (genotype.reduce, genotype.normal)]
    return max(width for width, _ in sizes), CAPTION + sum(height for _, height in sizes)


def place(cell):
    """A cell of a genotype, [(operation, source), ...] -> [PlacedEdge].

    Of the two inputs of a node that from the farther source is on the right: the nearer one, whose line is lower, then
    crosses nothing. A label is on the left of its edge, just below the source's line, where no other edge of the node
    is.
    """
    spots, edges, placed = positions(len(cell) // 2), drawn_edges(cell), []
    for node in range(2, 2 + len(cell) // 2):
        pair = sorted((edge for edge in edges if edge.node == node), key=lambda edge: edge.source)
        for edge, side in zip(pair, (1, -1)):
            x = spots[node][0] + (side * PORT if len(pair) > 1 else 0)
            top = spots[edge.source][1] + LANE // 2 - 2 - LABEL[1] // 2
            if len(pair) > 1 and pair[0].source == pair[1].source:  # two edges side by side: one label above the other
                top -= side * LABEL[1] // 2
            placed.append(PlacedEdge(*edge, x, (x - LABEL[0], top, x, top + LABEL[1])))
    return placed


def new_edges(cell, before):
    """The edges that a cell has and that its predecessor has not, a Counter of Edge."""
    return Counter() if before is None else Counter(drawn_edges(cell)) - Counter(drawn_edges(before))


def film(epochs):
    """The animated GIF of a list of history.Epoch, as bytes: the reduction cell above the normal cell.

    Of a search too long for MAX_PIXELS (215 epochs for cells of 4 nodes), epochs at even distances are shown.
    """
    from PIL import Image
    width, height = frame_size(epochs[0].genotype)
    epochs = thin_out(epochs, max(1, MAX_PIXELS // (width * height)))
    palette = Image.new('P', (1, 1))
    palette.putpalette(_palette())
    frames = (_frame(epochs, index).quantize(palette=palette, dither=0) for index in range(len(epochs)))
    file = io.BytesIO()
    # optimize stores only what changes from frame to frame: a third of the size, with Pillow 10.2 or newer.
    next(frames).save(file, 'GIF', save_all=True, append_images=frames, loop=0, optimize=True,
                      duration=[FRAME_MS] * (len(epochs) - 1) + [LAST_FRAME_MS])
    return file.getvalue()


def picture(epochs):
    """The last frame of the film, as uint8 [height, width, 3]."""
    return np.asarray(_frame(epochs, len(epochs) - 1))


def _palette():
    """One palette for all frames, so that what stands still has the same bytes: the colours and their blends."""
    from PIL import ImageColor
    pairs = [(colour, 'white') for colour in [GREY, DARK, NEW, FAINT] + sorted(set(INKS.values()))]
    pairs += [(DARK, fill) for fill in (INPUT, NODE, OUTPUT)]
    numbers = [255] * 3 + list(ImageColor.getrgb(RULE))
    for ink, ground in pairs:
        # No blend but white itself is nearly white: Pillow's search for the nearest colour is inexact.
        for step in range(5 if ground == 'white' else 6):
            numbers += [round((a * (5 - step) + b * step) / 5)
                        for a, b in zip(ImageColor.getrgb(ink), ImageColor.getrgb(ground))]
    return numbers


class _Pen:
    """Pillow's drawing in pixels of the frame, whatever the scale of the image, with a vertical offset."""

    def __init__(self, image, scale):
        from PIL import ImageDraw
        self.draw, self.scale, self.top = ImageDraw.Draw(image), scale, 0

    def _scaled(self, points):
        return [(x * self.scale, (y + self.top) * self.scale) for x, y in points]

    def line(self, points, colour, width):
        self.draw.line(self._scaled(points), fill=colour, width=round(width * self.scale), joint='curve')

    def polygon(self, points, colour):
        self.draw.polygon(self._scaled(points), fill=colour)

    def box(self, box, radius, fill, outline, width=1.5):
        corners = self._scaled([box[:2], box[2:]])
        self.draw.rounded_rectangle(corners[0] + corners[1], radius * self.scale, fill, outline,
                                    round(width * self.scale))

    def text(self, point, text, size, colour, anchor, bold=False):
        self.draw.text(self._scaled([point])[0], text, fill=colour, font=_font(size * self.scale, bold), anchor=anchor)


@functools.lru_cache(None)
def _font(size, bold):
    """DejaVu Sans, which comes with matplotlib: the same on every machine. Each font is opened once."""
    import matplotlib
    from PIL import ImageFont
    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', name), size)


def label_text(operation):
    """(text, font size) of an operation's name that fits into a label; a name that is far too long is cut."""
    width = LABEL[0] - 6
    for size in range(LABEL_FONT, SMALLEST_FONT - 1, -1):
        if _font(size, False).getlength(operation) <= width:
            return operation, size
    text = operation
    while _font(SMALLEST_FONT, False).getlength(text + '…') > width:
        text = text[:-1]
    return text + '…', SMALLEST_FONT


def _frame(epochs, index):
    """The picture of epoch number `index` of the film, an RGB image."""
    from PIL import Image
    epoch, before = epochs[index], epochs[index - 1] if index else None
    width, height = frame_size(epoch.genotype)
    scale = SCALE if width * height <= SCALED_PIXELS else 1
    image = Image.new('RGB', (width * scale, height * scale), 'white')
    pen = _Pen(image, scale)
    _draw_caption(pen, epochs, index, width)
    pen.top = CAPTION
    for key in ('reduce', 'normal'):
        cell = getattr(epoch.genotype, key)
        bottom = cell_size(len(cell) // 2)[1]
        pen.line([(20, 0), (width - 20, 0)], RULE, 1)
        new = new_edges(cell, getattr(before.genotype, key) if before else None)
        _draw_cell(pen, cell, getattr(epoch.genotype, key + '_concat'), new)
        pen.text((20, bottom - 40), TITLES[key], 19, DARK, 'ls', bold=True)
        count = sum(new.values())
        if count:
            pen.text((20, bottom - 20), f'{count} new edge{"s" * (count > 1)}', 13, NEW, 'ls')
        pen.top += bottom
    return image if scale == 1 else image.resize((width, height), Image.LANCZOS)


def _draw_caption(pen, epochs, index, width):
    """Epoch and validation accuracy, and the accuracies so far as a curve where there is room for it."""
    epoch = epochs[index]
    pen.text((20, 37), f'epoch {epoch.number}', 22, DARK, 'ls', bold=True)
    words = 'no validation' if math.isnan(epoch.valid_acc) else f'validation accuracy {100 * epoch.valid_acc:.2f} %'
    if width < 660:  # cells of one or two nodes
        pen.text((width - 20, 37), words, 14, DARK, 'rs')
        return
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


def _draw_cell(pen, cell, concat, new):
    """new: a Counter of the edges to highlight."""
    nodes = len(cell) // 2
    spots, placed, output = positions(nodes), place(cell), cell_size(nodes)[0] - 66
    concat = drawn_concat(cell, concat)
    highlighted, left = [], new.copy()
    for edge in placed:  # of two equal edges perhaps only one is new
        highlighted.append(left[edge[:3]] > 0)
        left[edge[:3]] -= 1
    # The line of a state runs to the cell's output, or to the last node that takes it.
    for state, (_, y) in spots.items():
        ends = [edge.x - 10 for edge in placed if edge.source == state] + [output - 7] * (state in concat)
        if ends:
            pen.line([(spots[state][0], y), (max(ends), y)], GREY, 2)
        if state in concat:
            _draw_arrow(pen, output - 1, y, GREY, right=True)
    # New edges come last, above all that they cross.
    for edge, is_new in sorted(zip(placed, highlighted), key=lambda pair: (pair[1], pair[0].source)):
        _draw_edge(pen, edge, is_new, spots)
    for edge, is_new in zip(placed, highlighted):  # above all lines
        colour, (x0, y0, x1, y1) = _colour(edge, is_new), edge.label
        pen.box(edge.label, 4, NEW if is_new else 'white', colour, 1)
        text, size = label_text(edge.operation)
        pen.text(((x0 + x1) / 2, (y0 + y1) / 2), text, size, 'white' if is_new else colour, 'mm')
    with_edges = {edge.node for edge in placed}
    for state, (x, y) in spots.items():
        half, fill, ink = (RADIUS, NODE, DARK) if state > 1 else (32, INPUT, DARK)
        if state > 1 and state not in with_edges:
            fill, ink = 'white', FAINT
        pen.box((x - half, y - RADIUS, x + half, y + RADIUS), 10 if state < 2 else RADIUS, fill, ink)
        pen.text((x, y), state_name(state), 14, ink, 'mm')
    pen.box((output, spots[2][1] - RADIUS, output + 48, spots[nodes + 1][1] + RADIUS), 10, OUTPUT, DARK)
    pen.text((output + 24, (spots[2][1] + spots[nodes + 1][1]) / 2), 'c_{k}', 14, DARK, 'mm')


def _draw_edge(pen, edge, is_new, spots):
    """From the line of the source, in a bend, down to the node."""
    colour, width = _colour(edge, is_new), 3.5 if is_new else 2
    (x0, y0), end = spots[edge.source], spots[edge.node][1] - RADIUS + 2
    angles = [step * math.pi / 16 for step in range(9)]
    bend = [(edge.x - 10 + 10 * math.sin(angle), y0 + 10 - 10 * math.cos(angle)) for angle in angles]
    pen.line([(edge.x, y0 + 12), (edge.x, end - 8)], 'white', 8)  # a gap in the lines that it passes over
    if is_new:
        pen.line([(x0, y0)] + bend[:1], colour, width)
    pen.line(bend + [(edge.x, end - 4)], colour, width)
    _draw_arrow(pen, edge.x, end, colour)


def _colour(edge, is_new):
    return NEW if is_new else INKS.get(edge.operation.split('_')[0], DARK)


def _draw_arrow(pen, x, y, colour, right=False):
    """An arrow's head with its tip at (x, y), pointing down or to the right."""
    base = [(x - 8, y - 4.5), (x - 8, y + 4.5)] if right else [(x - 4.5, y - 8), (x + 4.5, y - 8)]
    pen.polygon([(x, y)] + base, colour)
