"""A plan lists what the compiled passes do with a Block (blocks.py) for inputs of given shapes, as records for compiled
code:

    value   a tensor that the passes read or compute: the inputs, for each unit and each pooling the output f before
            batch norm, for each node the sum of its terms
    norm    a scale and a shift of a value, channel by channel: a batch norm where one is behind, else 1 and 0
    step    a convolution or pooling: reads a value through a norm, and a ReLU where there is one, and computes channels
            of another value
    node    a sum of terms, for all channels or, with partial channels, for the mixed ones and the kept ones
    term    what a node adds up: a weight times a value seen through a norm

Steps of one level do not need each other. Level 0 reads inputs; level 1, as the second half of a SepConv, what level 0
has computed; and so on. A node is summed up at the end of the level of its last term. f lies in memory chunk of images
by chunk, [C, images of the chunk, pixels], so that a channel of a chunk is one row (CHUNKED); so do nodes that are no
output. Inputs, outputs and their gradients lie as [N, C, pixels] (NCHW). The gradient of a value lies as the value.
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import ROW, chunk_size
from kernels.products import SLACK
from kernels.records import CHUNKED, NCHW, NODE, NORM, STEP, TERM, VALUE, PlanConstants
from kernels.units import AVERAGE, DENSE, LARGEST, Pooling
from kernels.windows import pack
from runtime.parallel import cpu_threads

IDENTITY, NOTHING = 'identity', 'nothing'  # operations of a Block
WHOLE, MIXED, KEPT = 'whole', 'mixed', 'kept'  # the channels that a term reads and gives


class Source(NamedTuple):
    """Channels of a state that a term reads: the number of the state's value, the first channel, the shape (C, H, W).
    """

    value: int
    from_channel: int
    shape: tuple


class Plan:
    """The records of a Block for inputs of given shapes [N, C, H, W].

    fit: whether the block applies; if not, there is no more. constants; values, norms, steps and terms with the fields
    that do not change. norm_layers: the BatchNorm2D of each norm, or None, and the convolutions in front.
    step_parameters, norm_parameters, norm_statistics: for each step or norm the numbers of its tensors among those of
    the block, -1 for none. positions: for each term where its weight lies, -1 for none. norm_terms: for each norm the
    term that it belongs to, or -1. pairs: (step, term) of all steps that a term needs.
    data, gradients: elements of all values that no tensor holds, and of their gradients; data_at, gradients_at: where
    each begins, has_data, has_gradient: of which values. state_of: for each value the state whose gradient it leads to.
    output_shape: [N, C, H, W]; output_nodes: (value, first channel) of each node in it; output_is_read: whether a term
    reads one of them.
    """

    def __init__(self, block, shapes):
        self.block, self.images = block, shapes[0][0]
        self.shapes, self.level_of, self.state_of = [], [], []  # of the values: (C, H, W), level, state
        self.norm_rows, self.norm_layers = [dict(term=-1, level=-1, gradient_level=-1)], [(None, [])]
        self.step_rows, self.term_rows, self.node_rows, self.pools, self.pairs = [], [], [], {}, []
        self.states = [self._add_value(shape[1:], -1, state) for state, shape in enumerate(shapes)]
        self.fit = (all(shape[0] == self.images for shape in shapes)
                    and all(self._add_node(terms) for terms in block.nodes)
                    and self._set_output() and self._multiply_adds() >= block.smallest)
        if self.fit:
            self._build()

    def _add_value(self, shape, level, state):
        self.shapes.append(tuple(shape))
        self.level_of.append(level)
        self.state_of.append(state)
        return len(self.shapes) - 1

    def _is_single_value(self, norm, shape):
        """Whether a batch norm would see one value per channel, which Paddle's returns unchanged."""
        return norm is not None and self.images * shape[1] * shape[2] == 1

    # -----------------------------------------------------------------------------------------------------------------
    # Nodes, terms and steps
    # -----------------------------------------------------------------------------------------------------------------

    def _add_node(self, terms):
        """Add a node; returns whether its terms apply and have one shape."""
        begin, shapes = len(self.term_rows), set()
        for term in terms:
            if term.operation != NOTHING:
                shapes.add(self._add_term(term))
        if len(shapes) != 1 or None in shapes:
            return False
        rows = self.term_rows[begin:]
        level = max(row['level'] for row in rows)
        value = self._add_value(shapes.pop(), level, len(self.states))
        for row in rows:
            self.norm_rows[row['norm']]['gradient_level'] = level
            row['partial'] = 1 if row['part'] == WHOLE else self.block.partial
            row['mixed'] = self.shapes[value][0] // row['partial']
            row['first_channel'] = row['mixed'] if row['part'] == KEPT else 0
        self.node_rows.append(dict(value=value, begin=begin, end=len(self.term_rows), level=level))
        self.states.append(value)
        return True

    def _add_term(self, term):
        """Add what a term of the next node needs; returns the shape (C, H, W) of the node, None where it does not
        apply."""
        state = self.states[term.source]
        channels, *sides = self.shapes[state]
        mixed = channels // self.block.partial
        from_channel, count = {WHOLE: (0, channels), MIXED: (0, mixed), KEPT: (mixed, channels - mixed)}[term.part]
        source, number = Source(state, from_channel, (count, *sides)), len(self.term_rows)
        if term.operation == IDENTITY:
            value, layers = state, (None, [])
            shape, level = source.shape, self.level_of[state] + 1
        else:
            add = self._add_pooling if isinstance(term.operation, Pooling) else self._add_chain
            value, layers = add(term.operation, source, term.source, number)
            if value is None:
                return None
            from_channel, shape, level = 0, self.shapes[value], self.level_of[value]
        self.term_rows.append(dict(
            node=len(self.node_rows), norm=self._add_norm(value, number, layers), from_channel=from_channel,
            channels=shape[0], level=level, part=term.part, weight=term.weight))
        whole = {WHOLE: shape[0], MIXED: shape[0] * self.block.partial, KEPT: shape[0] + mixed}[term.part]
        return whole, *shape[1:]

    def _add_pooling(self, pooling, source, state, term):
        """(the value that a pooling computes, one for all terms that need it; its layers)."""
        shape, key = pooling.output_shape(source.shape), (*source, pooling.key())
        if shape is None or self._is_single_value(pooling.norm, shape):
            return None, None
        if key not in self.pools:
            value = self._add_value(shape, self.level_of[source.value] + 1, state)
            self._add_step(pooling, source, value)
            self.pools[key] = self.step_rows[-1]
        step = self.pools[key]
        self.pairs.append((step, term))
        return step['result'], (pooling.norm, [])

    def _add_chain(self, chain, source, state, term):
        """(the value that a chain of units computes, its layers)."""
        norm = 0
        for unit in chain:
            shape = unit.output_shape(source.shape)
            if shape is None or self._is_single_value(unit.norm, shape):
                return None, None
            value, first = self._add_value(shape, self.level_of[source.value] + 1, state), 0
            for convolution in unit.convolutions:
                self._add_step(convolution, source, value, norm=norm, relu=unit.relu, first_filter=first)
                self.pairs.append((self.step_rows[-1], term))
                first += convolution.filters
            layers = unit.norm, unit.convolutions
            if unit is not chain[-1]:
                norm = self._add_norm(value, -1, layers, owner=term)
                self.norm_rows[norm]['gradient_level'] = self.level_of[value]
            source = Source(value, 0, shape)
        return value, layers

    def _add_norm(self, value, term, layers, owner=None):
        """owner: the term that a norm inside a chain belongs to."""
        self.norm_rows.append(dict(value=value, level=self.level_of[value], term=term,
                                   owner=term if owner is None else owner))
        self.norm_layers.append(layers)
        return len(self.norm_rows) - 1

    def _add_step(self, layer, source, result, norm=0, **fields):
        """layer: a Convolution of a unit, or a Pooling."""
        self.step_rows.append(dict(
            layer=layer, shape=source.shape, level=self.level_of[result], kind=layer.kind, source=source.value,
            from_channel=source.from_channel, channels=source.shape[0], norm=norm, result=result, **fields))

    def _set_output(self):
        """Find where the nodes lie in the output; returns whether they fit together and each node is used."""
        read = {term.source for terms in self.block.nodes for term in terms if term.operation != NOTHING}
        inputs, states = len(self.states) - len(self.node_rows), self.block.output
        shapes = [self.shapes[self.states[state]] for state in states]
        if len({shape[1:] for shape in shapes}) != 1 or min(states) < inputs:
            return False
        ends = np.cumsum([0] + [shape[0] for shape in shapes]).tolist()
        self.output_shape, self.output_is_read = (self.images, ends[-1], *shapes[0][1:]), not read.isdisjoint(states)
        self.output_nodes = [(self.states[state], channel) for state, channel in zip(states, ends)]
        return len(set(states)) == len(states) and read.union(states) >= set(range(inputs, len(self.states)))

    def _multiply_adds(self):
        return sum(row['layer'].multiply_adds(self.images * np.prod(self.shapes[row['result']][1:]))
                   for row in self.step_rows if not isinstance(row['layer'], Pooling))

    # -----------------------------------------------------------------------------------------------------------------
    # The records
    # -----------------------------------------------------------------------------------------------------------------

    def _build(self):
        self.step_rows.sort(key=lambda row: row['level'])
        levels = [row['level'] for row in self.step_rows]
        number_of = {id(row): number for number, row in enumerate(self.step_rows)}
        self.pairs = np.array([(number_of[id(step)], term) for step, term in self.pairs], np.int64).reshape(-1, 2)
        chunk = self._share_images()
        chunks = -(-self.images // chunk)
        windows = [row['layer'].window(row['shape'][1:], row['tile_size']) for row in self.step_rows]
        divisors, weights = self._build_steps()
        self._build_values()
        self._build_norms()
        self.terms, nodes = _filled(TERM, self.term_rows), _filled(NODE, self.node_rows)
        self.terms['active'] = 1
        self.positions = np.array([row['weight'] for row in self.term_rows], np.int64)
        last = max(row['level'] for row in self.node_rows)
        levels = np.searchsorted(levels, np.arange(last + 2))
        tiles = chunks * max([-(-chunk // row['tile_size']) for row in self.step_rows], default=1)
        threads = max(1, min(cpu_threads(), chunks * max(1, int(np.diff(levels).max()))))  # a job is a step and a chunk
        channels = max(self.shapes[value][0] for value in self.norms['value'][1:])
        self.constants = PlanConstants(self.images, len(self.states) - len(nodes), chunk, chunks, threads, channels,
                                       tiles, weights, pack(windows), levels, nodes, self._sections(windows), divisors)

    def _share_images(self):
        """How many images form a chunk. A step computes a tile of them at once, so that rows have about 1,000 pixels,
        or fewer where its channels would not fit in a core's own cache: 2**15 numbers, 128 KB, of the result, 2**16 of
        the source."""
        for row in self.step_rows:
            (channels, *sides), (source_channels, *source_sides) = self.shapes[row['result']], row['shape']
            most = min(min(ROW, 2 ** 15 // max(channels, 1)) // np.prod(sides),
                       2 ** 16 // (source_channels * np.prod(source_sides)))
            row['tile_size'] = max(1, int(most))
        default = max(1, ROW // int(np.prod(self.shapes[0][1:])))
        chunk = chunk_size(self.images, max([row['tile_size'] for row in self.step_rows], default=default))
        for row in self.step_rows:
            times = -(-chunk // row['tile_size'])
            row['tile_size'] = -(-chunk // times)
        return chunk

    def _build_values(self):
        tile_sizes = {row['result']: row['tile_size'] for row in self.step_rows}
        rows = [dict(channels=shape[0], pixels=shape[1] * shape[2], order=CHUNKED, tensor_channels=shape[0],
                     tile_size=tile_sizes.get(value, 1)) for value, shape in enumerate(self.shapes)]
        outside = self.states[:len(self.states) - len(self.node_rows)]
        for value in outside:
            rows[value]['order'] = NCHW
        for value, _ in self.output_nodes:
            outside.append(value)
            rows[value].update(order=NCHW, tensor_channels=self.output_shape[1])
        self.values = _filled(VALUE, rows)
        inside = np.ones(len(rows), bool)
        inside[outside] = False
        sizes = self.images * self.values['channels'] * self.values['pixels'] * inside
        read = np.zeros(len(rows), bool)  # by a step or, the states, by a term
        read[[row['source'] for row in self.step_rows] + self.states] = True
        self.has_data, self.has_gradient = inside, read & inside
        self.data, self.data_at = _in_a_row(sizes)
        self.gradients, self.gradients_at = _in_a_row(sizes * read)
        self.state_of = np.array(self.state_of)

    def _build_norms(self):
        self.norms = _filled(NORM, self.norm_rows)
        self.norms['active'] = 1
        self.norm_terms = np.array([row.get('owner', -1) for row in self.norm_rows])
        for row, (norm, convolutions) in zip(self.norms, self.norm_layers):
            row['second'] = convolutions[0].filters if convolutions else 0
            if norm is not None:
                row['momentum'], row['epsilon'] = norm._momentum, norm._epsilon
        number = self.block.number
        self.norm_parameters = np.array([
            (number(norm and norm.weight), number(norm and norm.bias),
             *[number(convolution.bias) for convolution in convolutions], *[-1] * (2 - len(convolutions)))
            for norm, convolutions in self.norm_layers])
        self.norm_statistics = np.array([(number(norm and norm._mean), number(norm and norm._variance))
                                         for norm, _ in self.norm_layers])

    def _build_steps(self):
        """Fill steps; returns the divisors of the poolings and the number of elements of all weights."""
        divisors, at, parameters = [np.ones(1, np.float32)], 0, []
        norm_of = {row['value']: number for number, row in enumerate(self.norm_rows) if number}
        for row in self.step_rows:
            layer = row['layer']
            row.update(active=1, result_norm=norm_of[row['result']])
            if isinstance(layer, Pooling):
                row['divisors_at'] = sum(map(len, divisors))
                divisors.append(layer.divisors(row['shape'][1:]))
                parameters.append((-1, -1))
                continue
            row.update(filters=layer.filters, groups=layer.groups, depthwise_at=at,
                       weight_at=at + (0 if layer.depthwise is None else layer.depthwise.size))
            at = row['weight_at'] + layer.weight.size
            parameters.append((self.block.number(layer.depthwise), self.block.number(layer.weight)))
        self.step_parameters = np.array(parameters, np.int64).reshape(-1, 2)
        self.steps = _filled(STEP, self.step_rows)
        return np.concatenate(divisors), at

    def _sections(self, windows):
        """Where the arrays of call.Memory begin in a thread's memory, and its size."""
        sizes = np.zeros(6, np.int64)
        for row, (w, _) in zip(self.step_rows, windows):
            layer, channels = row['layer'], row['channels']
            size = row['tile_size'] * int(np.prod(self.shapes[row['result']][1:])) + 32  # as call.row_pitch
            if layer.kind == DENSE:
                step_sizes = layer.filters * w.plane, 0, 0, channels * w.channel, channels * w.channel, 0
            elif layer.kind in (AVERAGE, LARGEST):
                step_sizes = size, 0, w.plane, w.channel, w.channel, w.plane
            else:
                step_sizes = layer.filters * size, channels * size, channels * size, w.channel, w.channel, w.plane
            sizes = np.maximum(sizes, step_sizes)
        return np.cumsum([0, *(sizes + 2 * SLACK)])


def _filled(dtype, rows):
    """A record for each dict; fields that it does not have are 0."""
    records = np.zeros(len(rows), dtype)
    for name in dtype.names:
        records[name] = [row.get(name, 0) for row in rows]
    return records


def _in_a_row(sizes):
    """(elements of all arrays of these sizes one behind the other, where each begins), each at a multiple of 16."""
    ends = np.cumsum((sizes + 15) // 16 * 16)
    return int(ends[-1]), ends - (sizes + 15) // 16 * 16
