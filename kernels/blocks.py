"""Layers that are computed together as one operation: a chain of convolutions, a mixed operation, the edges that leave
a state, a whole cell.

    unit     ReLU (or not), a convolution or a depthwise and a pointwise one, batch norm (or not)
    chain    units one after the other: ReLUConvBN, SepConv, a stem
    term     w * operation(state), the operation being a chain, a pooling or the identity
    node     a sum of terms, which is a state for the terms of later nodes
    block    nodes, from one or more inputs, the first states

A plan (plans.py) says what is to be computed for inputs of given shapes. One compiled function then computes all of it
on all cores (forward.py), another one the gradients (backward.py): between the convolutions nothing happens in Python.
"""
from typing import NamedTuple

import numpy as np
import paddle

from kernels.backward import backward_pass
from kernels.call import Call, Gradients
from kernels.compiled import CPU, addresses, available, new_tensor
from kernels.forward import forward_pass
from kernels.operation import Operation
from kernels.plans import NOTHING, WHOLE, Plan
from kernels.threads import with_barrier
from kernels.units import Pooling

STACK_ABOVE = 16  # parameters of a block: those that differ only in their first side are concatenated
PARAMETERS = 'gamma', 'beta', 'bias', 'second_bias'  # of a norm
SELECTIONS = 100  # of active terms for which a block remembers what they need


class Term(NamedTuple):
    """What a node adds up. source: number of a state, the inputs first. operation: a list of Unit (a chain), a Pooling,
    IDENTITY or NOTHING: zeros. weight: where its weight lies in the flattened tensor of weights, -1 for 1. part: WHOLE,
    or with partial channels MIXED, the first 1 / partial of the source's channels, or KEPT, the others."""

    source: int
    operation: object
    weight: int = -1
    part: str = WHOLE


class Selection(NamedTuple):
    """The parameters of the terms that a call computes. stacks: lists of those that differ only in their first side;
    they are concatenated, since each input of an operation takes time in Python. members: their numbers in
    Block.parameters. places: for each of them its stack and its first element there."""

    stacks: list
    members: np.ndarray
    places: np.ndarray


class Block:
    """Nodes of weighted sums of operations.

    nodes: lists of Term. output: the states that lie side by side along the channels of the output (default: all
    nodes). inputs: how many there are. partial: of the terms' parts. smallest: the block applies only
    if its convolutions take at least so many multiply-adds. Parameters must not be changed in place between the forward
    and the backward pass, which reads them again. A block keeps the tensors of its layers: if a layer gets others, make
    a new block (nas/changes.Record tells when). Plans are kept for each shape of the inputs.
    """

    def __init__(self, nodes, output=None, inputs=1, partial=1, smallest=0):
        self.nodes, self.inputs, self.partial, self.smallest = nodes, inputs, partial, smallest
        self.output = range(inputs, inputs + len(nodes)) if output is None else output
        terms = [term for terms in nodes for term in terms if term.operation != NOTHING]
        term_tensors = [_tensors(term.operation) for term in terms]
        self.parameters = [tensor for parameters, _ in term_tensors for tensor in parameters]
        self.statistics = [tensor for _, statistics in term_tensors for tensor in statistics]
        self.parameter_terms = np.repeat(np.arange(len(terms)), [len(parameters) for parameters, _ in term_tensors])
        self.last_weight = max((term.weight for terms in nodes for term in terms), default=-1)
        self.tensors = self.parameters + self.statistics
        # Gradients of a tensor that two steps use would overwrite each other.
        self.repeats = len(set(map(id, self.tensors))) < len(self.tensors)
        self.numbers = {id(tensor): number for tensors in (self.parameters, self.statistics)
                        for number, tensor in enumerate(tensors)}
        self.plans, self.selections = {}, {}

    def number(self, tensor):
        """Of a parameter or a statistic; -1 for None."""
        return -1 if tensor is None else self.numbers[id(tensor)]

    def plan_of(self, inputs):
        shapes = tuple(tuple(x.shape) for x in inputs)
        if shapes not in self.plans:
            self.plans[shapes] = Plan(self, shapes)
        return self.plans[shapes]

    def applies(self, inputs, weights=None):
        """Whether the compiled passes cover the inputs: single precision on a CPU, shapes that the layers allow. Paddle
        says what is wrong with the others."""
        return (not self.repeats and all(available(x) and x.ndim == 4 and x.size > 0 for x in inputs)
                and (weights is None or available(weights) and weights.size > self.last_weight)
                and all(tensor.dtype == paddle.float32 for tensor in self.tensors)
                and all(available(tensor) for tensor in self.parameters[:1])  # a layer's tensors are in one place
                and all(tensor.is_contiguous() for tensor in self.tensors) and self.plan_of(inputs).fit)

    def __call__(self, inputs, weights=None, factors=None, active=None):
        """The output [N, C, H, W]. inputs: tensors [N, C, H, W] to which the block applies. weights: a tensor or None;
        factors [terms, N], an array in single precision: what each image of a term is multiplied by; active [terms],
        an array: whether a term is computed, or all are. Terms are those that are not NOTHING."""
        selection = self.select(active)
        stacks = [paddle.concat(tensors) if len(tensors) > 1 else tensors[0] for tensors in selection.stacks]
        operation = BlockOperation(self.plan_of(inputs), weights is not None, selection, factors, active)
        return operation(*inputs, *[weights] * (weights is not None), *stacks)

    def select(self, active=None):
        """The Selection of the active terms; without stacks if no parameter wants a gradient."""
        wanted = paddle.is_grad_enabled() and not all(tensor.stop_gradient for tensor in self.parameters)
        key = wanted, None if active is None else active.tobytes()
        if key not in self.selections:
            if len(self.selections) >= SELECTIONS:
                self.selections.clear()
            members = [number for number, term in enumerate(self.parameter_terms)
                       if wanted and (active is None or active[term])]
            self.selections[key] = _stacked(self.parameters, members, concatenate=len(self.parameters) > STACK_ABOVE)
        return self.selections[key]


def _tensors(operation):
    """(the parameters, the statistics) of an operation."""
    units = operation if isinstance(operation, list) else []
    norms = [unit.norm for unit in units] + ([operation.norm] if isinstance(operation, Pooling) else [])
    norms = [norm for norm in norms if norm is not None]
    parameters = [tensor for unit in units for convolution in unit.convolutions
                  for tensor in (convolution.depthwise, convolution.weight, convolution.bias)]
    parameters += [tensor for norm in norms for tensor in (norm.weight, norm.bias)]
    return ([tensor for tensor in parameters if tensor is not None],
            [tensor for norm in norms for tensor in (norm._mean, norm._variance)])


def _stacked(parameters, members, concatenate):
    """The Selection of the parameters with these numbers; concatenate: whether those that differ only in their first
    side are concatenated."""
    stacks = {}
    for number in members:
        key = tuple(parameters[number].shape[1:]) if concatenate else number
        stacks.setdefault(key, []).append(number)
    place_of = {}
    for stack, numbers in enumerate(stacks.values()):
        begin = 0
        for number in numbers:
            place_of[number] = stack, begin
            begin += parameters[number].size
    return Selection([[parameters[number] for number in numbers] for numbers in stacks.values()],
                     np.array(members, np.int64),
                     np.array([place_of[number] for number in members], np.int64).reshape(-1, 2))


class BlockOperation(Operation):
    """A block for its inputs, the weights if there are any, and the stacks of parameters."""

    def __init__(self, plan, weighted, selection, factors=None, active=None):
        self.plan, self.weighted, self.selection, self.factors, self.active = plan, weighted, selection, factors, active

    def forward(self, *tensors):
        out = self.prepare(*tensors)
        with_barrier(forward_pass, self.plan.constants.threads, self.call)
        self.call = self.call._replace(memory=np.empty((0, 0), np.float32), moments=np.empty((0, 0, 0, 2)))
        return out

    def prepare(self, *tensors):
        """Get everything ready for forward_pass. Returns the output, still without its values."""
        plan, block = self.plan, self.plan.block
        self.inputs = [x.contiguous() for x in tensors[:block.inputs]]
        self.weights = tensors[block.inputs] if self.weighted else None
        self.stacks = [stack.contiguous() for stack in tensors[block.inputs + self.weighted:]]
        out = new_tensor(plan.output_shape)
        # What the backward pass reads of the output. A tensor that is part of Paddle's graph would keep itself alive.
        self.out = out.detach() if plan.output_is_read else None
        self.data = np.empty(plan.data, np.float32)
        self.call = self._make_call(out)
        return out

    def _make_call(self, out):
        """The Call of this forward pass."""
        plan, block, constants = self.plan, self.plan.block, self.plan.constants
        values, norms, steps, terms = plan.values.copy(), plan.norms.copy(), plan.steps.copy(), plan.terms.copy()
        values['data'][plan.has_data] = self.data.ctypes.data + 4 * plan.data_at[plan.has_data]
        values['data'][:block.inputs] = addresses(self.inputs)
        self._set_output(values['data'], out.data_ptr())
        if self.active is not None:
            self._leave_out(norms, steps, terms)
        parameters = np.append(addresses(block.parameters) if len(self.selection.members) < len(block.parameters)
                               else np.zeros(len(block.parameters), np.int64), 0)
        parameters[self.selection.members] = self._addresses_of(self.stacks)
        steps['depthwise'], steps['weight'] = parameters[plan.step_parameters].T
        for name, column in zip(PARAMETERS, parameters[plan.norm_parameters].T):
            norms[name] = column
        running = np.append(addresses(block.statistics), 0)[plan.norm_statistics]
        norms['running_mean'], norms['running_variance'] = running.T
        norms['trains'] = [norm is not None and norm.training for norm, _ in plan.norm_layers]
        trained = norms['trains'].any()
        values['trains'][norms['value'][norms['trains'] > 0]] = 1
        term_weights = np.ones(len(terms), np.float32)
        if self.weighted:
            term_weights = np.append(self.weights.numpy().ravel(), np.float32(1))[plan.positions]
        statistics = np.zeros((4, len(norms), constants.channels), np.float32)
        statistics[1:3] = 1  # inverse and scale
        moments = np.empty((len(values), constants.tiles if trained else 0, constants.channels, 2))
        memory = np.empty((constants.threads, constants.sections[-1]), np.float32)
        factors = np.ones((len(terms), constants.images), np.float32) if self.factors is None else self.factors
        return Call(constants, values, norms, steps, terms, term_weights, factors, *statistics, moments, memory)

    def _addresses_of(self, stacks):
        """The addresses of the selected parameters in the stacks."""
        stack_numbers, begin = self.selection.places.T
        return addresses(stacks)[stack_numbers] + 4 * begin

    def _set_output(self, table, address):
        """Fill in where the nodes lie that are in the output, or their gradients in that of the output."""
        for value, channel in self.plan.output_nodes:
            table[value] = address + 4 * channel * int(self.plan.values['pixels'][value])

    def _leave_out(self, norms, steps, terms):
        """Mark what only terms need that are not active."""
        terms['active'] = self.active
        norms['active'] = np.append(self.active, True)[self.plan.norm_terms]
        step_numbers, term_numbers = self.plan.pairs.T
        steps['active'] = 0
        steps['active'][step_numbers[self.active[term_numbers]]] = 1

    def backward(self, d):
        plan, block, constants, call = self.plan, self.plan.block, self.plan.constants, self.call
        wanted, term_weights_wanted = self.wanted[:block.inputs], self.weighted and self.wanted[block.inputs]
        others = self.wanted[block.inputs + self.weighted:]
        weights_wanted = any(others)
        norms, values, steps = call.norms, call.values, call.steps
        norms['summed'] = ((norms['trains'] + norms['gamma'] + norms['bias'] > 0)
                           | (norms['term'] >= 0) * term_weights_wanted)
        d, dxs = d.contiguous(), [new_tensor(x.shape) if wanted[k] else None for k, x in enumerate(self.inputs)]
        kept = self._find_gradients(d, dxs, self._states_wanted(wanted, weights_wanted, term_weights_wanted))
        dstacks = [new_tensor(stack.shape) if weights_wanted else None for stack in self.stacks]
        if weights_wanted:
            gradient_addresses = np.zeros(len(block.parameters) + 1, np.int64)
            gradient_addresses[self.selection.members] = self._addresses_of(dstacks)
            steps['depthwise_gradient'], steps['weight_gradient'] = gradient_addresses[plan.step_parameters].T
            for name, column in zip(PARAMETERS, gradient_addresses[plan.norm_parameters].T):
                norms[name + '_gradient'] = column
        written = np.zeros((len(values), constants.chunks, max(shape[0] for shape in plan.shapes)), np.uint8)
        written[[value for value, _ in plan.output_nodes]] = 1
        gradients = Gradients(written, np.zeros((constants.threads, len(norms), constants.channels, 2)),
                              np.zeros((len(norms), constants.channels, 3), np.float32), np.zeros(len(call.terms)),
                              np.empty((constants.threads, constants.weights if weights_wanted else 0), np.float32),
                              np.empty(constants.weights, np.float32), weights_wanted)
        memory = np.empty((constants.threads, constants.sections[-1]), np.float32)
        with_barrier(backward_pass, constants.threads, call._replace(memory=memory), gradients)
        del kept
        dweights = self._weights_gradient(gradients.term_weights) if term_weights_wanted else None
        return [*dxs, *[dweights] * self.weighted,
                *[gradient if wanted else None for gradient, wanted in zip(dstacks, others)]]

    def _states_wanted(self, inputs_wanted, weights_wanted, term_weights_wanted):
        """For each state whether gradients that lead to it are needed."""
        wanted = list(inputs_wanted)
        for terms in self.plan.block.nodes:
            wanted.append(weights_wanted or any(wanted[term.source] or term_weights_wanted and term.weight >= 0
                                                for term in terms))
        return np.array(wanted) | weights_wanted

    def _find_gradients(self, d, dxs, wanted):
        """Fill in where the gradients of the values lie. Returns what must be kept until the pass has run. wanted: as
        of _states_wanted."""
        plan, table = self.plan, self.call.values['gradient']
        table[:] = 0
        needed = plan.has_gradient & wanted[plan.state_of]
        gradients = np.empty(plan.gradients if needed.any() else 0, np.float32)
        table[needed] = gradients.ctypes.data + 4 * plan.gradients_at[needed]
        table[:len(dxs)] = [0 if dx is None else dx.data_ptr() for dx in dxs]
        if plan.output_is_read:  # the pass adds to a copy
            d = d.clone()
        self._set_output(table, d.data_ptr())
        return gradients, d

    def _weights_gradient(self, term_weights):
        """The gradient of the tensor of weights."""
        positions = self.plan.positions
        gradient = np.zeros(self.weights.size, np.float32)
        np.add.at(gradient, positions[positions >= 0], term_weights[positions >= 0])
        return paddle.to_tensor(gradient.reshape(self.weights.shape), place=CPU)
