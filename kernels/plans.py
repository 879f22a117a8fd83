"""A plan lists what the compiled passes do with a Block (blocks.py) for an input of one shape, as tables that compiled
code can read:

    value   a tensor that the passes read or compute. Number 0 is the input x; there is one for the output f of each
            unit and each pooling, before batch norm
    norm    a scale and a shift of a value, channel by channel: a batch norm where one is behind, else 1 and 0. Number 0
            is that of x for what reads it
    step    a convolution or pooling: reads a value through a norm, and a ReLU where there is one, and computes channels
            of another value
    term    what an output adds up: a weight times a value seen through a norm

Steps of one level do not need each other. Level 0 reads x; level 1, as the second half of a SepConv, what level 0 has
computed; and so on. f lies in memory group of images by group, [C, images of the group, pixels], so that a channel of a
group is one row (GROUPED); x, the outputs and their gradients lie as [N, C, pixels] (NCHW).
"""
from typing import NamedTuple

import numpy as np

from kernels.compiled import ROW, group_size
from kernels.products import SLACK
from kernels.units import AVERAGE, DENSE, LARGEST, POINTWISE, Pooling
from kernels.windows import pack
from runtime.parallel import cpu_threads

GROUPED, NCHW = 0, 1
IDENTITY, NOTHING = 'identity', 'nothing'  # operations of a Block


def _table(*names, **others):
    return np.dtype([(name, np.int64) for name in names] + list(others.items()))


# Fields called after a tensor are its address, filled in at each call, 0 where there is none.
VALUE = _table('channels', 'pixels', 'order', 'trains',  # trains: whether a batch norm behind it needs its moments
               'data', 'gradient')
NORM = _table('value', 'made', 'used',  # the level that computes the value, and that reads it: for terms one more
              'term', 'trains', 'summed',  # its term or -1; whether of a batch; whether its gradient's sums are needed
              'gamma', 'beta', 'bias', 'gamma_gradient', 'beta_gradient', 'bias_gradient',
              'running_mean', 'running_variance', momentum=np.float64, epsilon=np.float64)
STEP = _table('kind', 'source', 'norm', 'relu', 'result', 'result_norm',
              'first', 'channels', 'filters', 'groups',  # first: of its filters, in the result
              'adds', 'last',  # whether an identity or an earlier step has written the source's gradient before, so
              # that this one adds to it; whether it is complete after this step, since no later one reads the source
              'depthwise_at', 'weight_at',  # where the weights begin among all weights' gradients
              'divisors_at', 'depthwise', 'weight', 'depthwise_gradient', 'weight_gradient')
TERM = _table('output', 'norm')


class PlanTables(NamedTuple):
    """What is the same in all calls.

    group: images of a group. parts: of the work, one for each thread. channels: most of a value. weights: elements of
    all weights. geometry: a packed (Window, Tables) for each step. levels: where the steps of each begin, and the end.
    terms: of TERM, by output. outputs: where the terms of each begin, and the end. sections: where the parts of a
    thread's memory begin, see forward.Memory. divisors: 1 / pixels of all windows of poolings.
    """

    images: int
    group: int
    groups: int
    parts: int
    channels: int
    weights: int
    geometry: np.ndarray
    levels: np.ndarray
    terms: np.ndarray
    outputs: np.ndarray
    sections: np.ndarray
    divisors: np.ndarray


class Plan:
    """The tables of a Block for inputs [N, C, H, W] of one shape.

    fit: whether the block applies; if not, that is all there is. tables, and of values, norms and steps the tables with
    the fields that do not change. positions: of the terms' weights. step_parameters, norm_parameters, norm_statistics:
    for each step or norm the numbers of its tensors among those of the block, -1 for none. shape: of an output. data,
    gradients: elements of all values but x, and of the gradients of those that a step reads (has_gradient); data_at,
    gradients_at: where each begins. norm_layers: the BatchNorm2D of each norm and the bias in front of it, or None.
    """

    def __init__(self, block, shape):
        self.images, self.block, self.input = shape[0], block, tuple(shape[1:])
        self.value_rows = [(*self._sides(self.input), NCHW)]
        self.norm_rows, self.norm_layers, self.term_rows = [(0, -1, 0, -1)], [(None, None)], []
        self.step_rows, self.pools, self.positions = [[] for _ in range(block.depth)], {}, []
        shapes = {self._add(output, k, operation) for output, operations in enumerate(block.outputs)
                  for k, operation in enumerate(operations) if operation != NOTHING}
        self.fit = len(shapes) == 1 and None not in shapes and self._multiply_adds() >= block.smallest
        if self.fit:
            self.shape = (self.images, *shapes.pop())
            self._build()

    @staticmethod
    def _sides(shape):
        return shape[0], shape[1] * shape[2]

    def _is_single_value(self, norm, shape):
        """Whether a batch norm would see one value per channel, which Paddle's returns unchanged."""
        return norm is not None and self.images * shape[1] * shape[2] == 1

    def _add(self, output, k, operation):
        """Add an operation of an output; returns the shape (C, H, W) of what it gives, None where it does not apply."""
        number, shape, norms = 0, self.input, (None, None)
        if isinstance(operation, Pooling):
            shape, norms = operation.output_shape(shape), (operation.norm, None)
            if shape is not None and self._is_single_value(operation.norm, shape):
                return None
            if shape is not None and operation.key() not in self.pools:
                self.pools[operation.key()] = self._add_value(shape)
                self._add_step(0, operation, 0, 0, False, self.input, self.pools[operation.key()], 0)
            number = self.pools.get(operation.key())
        elif operation != IDENTITY:
            norm = 0
            for level, unit in enumerate(operation):
                before, source = shape, number
                shape = unit.output_shape(before)
                if shape is None or self._is_single_value(unit.norm, shape):
                    return None
                number, first = self._add_value(shape), 0
                for convolution in unit.convolutions:
                    self._add_step(level, convolution, source, norm, unit.relu, before, number, first)
                    first += convolution.filters
                norms = unit.norm, unit.convolutions[0].bias
                if unit is not operation[-1]:
                    norm = self._add_norm(number, level, level + 1, -1, norms)
        if shape is not None:
            made = -1 if operation == IDENTITY else 0 if isinstance(operation, Pooling) else len(operation) - 1
            norm = self._add_norm(number, made, self.block.depth, len(self.term_rows), norms)
            self.term_rows.append((output, norm))
            self.positions.append(int(self.block.positions[output, k]))
        return shape

    def _add_value(self, shape):
        self.value_rows.append((*self._sides(shape), GROUPED))
        return len(self.value_rows) - 1

    def _add_norm(self, value, made, used, term, layers):
        self.norm_rows.append((value, made, used, term))
        self.norm_layers.append(layers)
        return len(self.norm_rows) - 1

    def _add_step(self, level, layer, source, norm, relu, shape, result, first):
        """layer: a Convolution of a unit, or a Pooling; shape (C, H, W) of the source."""
        self.step_rows[level].append((layer, source, norm, relu, shape, result, first))

    def _multiply_adds(self):
        return sum(layer.multiply_adds(self.images * self.value_rows[result][1])
                   for level in self.step_rows for layer, *_, result, _ in level if not isinstance(layer, Pooling))

    # -----------------------------------------------------------------------------------------------------------------
    # The tables
    # -----------------------------------------------------------------------------------------------------------------

    def _build(self):
        rows = [row for level in self.step_rows for row in level]
        group = self._group(rows)
        self._build_values()
        self._build_norms()
        windows = [layer.window(shape[1:], group) for layer, _, _, _, shape, _, _ in rows]
        divisors = self._build_steps(rows)
        groups = -(-self.images // group)
        terms = np.array(self.term_rows, TERM)
        parts = max(1, min(cpu_threads(), groups * max(map(len, self.step_rows))))  # a job is a step and a group
        self.tables = PlanTables(
            self.images, group, groups, parts, int(self.values['channels'].max()),
            self.weights, pack(windows), np.cumsum([0] + [len(level) for level in self.step_rows]), terms,
            np.searchsorted(terms['output'], np.arange(len(self.block.outputs) + 1)),
            self._sections(rows, windows, group), divisors)
        self.positions = np.array(self.positions, np.int64)

    def _group(self, rows):
        """How many images form a group: rows of about 1,000 pixels, or fewer where the channels of so many do not fit
        in 2**15 numbers, 128 KB, of a core's own cache."""
        most = [min(ROW, 2 ** 15 // max(channels, 1)) // pixels
                for channels, pixels, _ in (self.value_rows[row[5]] for row in rows)]
        for _, source, *_ in rows:
            channels, pixels, _ = self.value_rows[source]
            most.append(2 ** 16 // (channels * pixels))
        return group_size(self.images, min(most, default=ROW // self.value_rows[0][1]))

    def _build_values(self):
        self.values = np.zeros(len(self.value_rows), VALUE)
        for name, column in zip(('channels', 'pixels', 'order'), zip(*self.value_rows)):
            self.values[name] = column
        sizes = self.images * self.values['channels'] * self.values['pixels']
        sizes[0] = 0
        inner = np.zeros(len(sizes), bool)
        inner[[row[1] for level in self.step_rows for row in level]] = True
        self.data, self.data_at = _in_a_row(sizes)
        self.gradients, self.gradients_at = _in_a_row(sizes * inner)
        self.has_gradient = inner & (sizes > 0)

    def _build_norms(self):
        self.norms = np.zeros(len(self.norm_rows), NORM)
        for name, column in zip(('value', 'made', 'used', 'term'), zip(*self.norm_rows)):
            self.norms[name] = column
        for row, (norm, _) in zip(self.norms, self.norm_layers):
            if norm is not None:
                row['momentum'], row['epsilon'] = norm._momentum, norm._epsilon
        number = self.block.number
        self.norm_parameters = np.array([(number(norm and norm.weight), number(norm and norm.bias), number(bias))
                                         for norm, bias in self.norm_layers])
        self.norm_statistics = np.array([(number(norm and norm._mean), number(norm and norm._variance))
                                         for norm, _ in self.norm_layers])

    def _build_steps(self, rows):
        """Fill steps; returns the divisors of the poolings."""
        self.steps, divisors, at = np.zeros(len(rows), STEP), [np.ones(1, np.float32)], 0
        norm_of = {value: number for number, (value, *_) in enumerate(self.norm_rows)}
        identity = any(self.norm_rows[norm][0] == 0 for _, norm in self.term_rows)
        parameters = []
        for k, (layer, source, norm, relu, shape, result, first) in enumerate(rows):
            step = self.steps[k]
            step['kind'], step['source'], step['norm'], step['relu'] = layer.kind, source, norm, relu
            step['result'], step['result_norm'] = result, norm_of[result]
            step['first'], step['channels'] = first, shape[0]
            step['adds'] = source == 0 and identity or source in [row[1] for row in rows[:k]]
            step['last'] = source not in [row[1] for row in rows[k + 1:]]
            if isinstance(layer, Pooling):
                step['divisors_at'] = sum(map(len, divisors))
                divisors.append(layer.divisors(shape[1:]))
                parameters.append((-1, -1))
                continue
            step['filters'], step['groups'] = layer.filters, layer.groups
            step['depthwise_at'], step['weight_at'] = at, at + (0 if layer.depthwise is None else layer.depthwise.size)
            at = int(step['weight_at']) + layer.weight.size
            parameters.append((self.block.number(layer.depthwise), self.block.number(layer.weight)))
        self.step_parameters, self.weights = np.array(parameters, np.int64).reshape(-1, 2), at
        return np.concatenate(divisors)

    def _sections(self, rows, windows, group):
        """Where the arrays of forward.Memory begin in a thread's memory, and its size."""
        sizes = np.zeros(6, np.int64)
        for (layer, source, _, _, shape, result, _), (w, _) in zip(rows, windows):
            size = group * self.value_rows[result][1] + 32  # as forward.row_step
            if layer.kind == DENSE:
                of_step = layer.filters * w.line, 0, 0, layer.channels * w.block, layer.channels * w.block, 0
            elif layer.kind in (AVERAGE, LARGEST):
                of_step = size, 0, w.line, w.block, w.block, w.line
            else:
                block = w.block if layer.kind != POINTWISE else 0
                of_step = layer.filters * size, shape[0] * size, shape[0] * size, block, block, w.line
            sizes = np.maximum(sizes, of_step)
        return np.cumsum([0, *(sizes + 2 * SLACK)])


def _in_a_row(sizes):
    """(elements of all arrays of these sizes one behind the other, where each begins), each at a multiple of 16."""
    ends = np.cumsum((sizes + 15) // 16 * 16)
    return int(ends[-1]), ends - (sizes + 15) // 16 * 16
