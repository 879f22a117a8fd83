"""Chains of ReLU, convolution and batch norm, and weighted sums of such chains and poolings, as one operation each.

    unit     ReLU (or not), a dense convolution or a depthwise and a pointwise one, batch norm (or not)
    chain    units one after the other: ReLUConvBN, SepConv, a stem
    block    out_t = sum_k w_tk * operation_tk(x) of chains, poolings and the identity: a layer by itself, a mixed
             operation, or all edges t that leave a state of a cell

A plan (plans.py) says what is to be computed for inputs of one shape. One compiled function then computes all of it on
all cores (forward.py), another one the gradients (backward.py): between the convolutions nothing happens in Python.
"""
import numpy as np
import paddle

from kernels.backward import Gradients, backward_pass
from kernels.compiled import addresses, available, new_tensor
from kernels.forward import Call, forward_pass
from kernels.operation import Operation
from kernels.plans import NCHW, Plan
from kernels.threads import with_barrier
from kernels.units import Pooling


class Block:
    """out_t = sum_k w_tk * operation_tk(x), or one output of one operation without a weight.

    outputs: for each output a list of operations: a list of Unit (a chain), a Pooling, IDENTITY or NOTHING: zeros.
    Poolings of one kind are computed once for all outputs. positions [outputs, operations]: where w_tk lies in the
    flattened tensor of weights (default: in this order). smallest: the block applies only if its units take at least so
    many multiply-adds. Parameters must not be changed in place between the forward and the backward pass, which reads
    them again. A block keeps the tensors of its layers: if a layer gets others, make a new block (nas/changes.Record
    tells when). Plans are kept for each shape of an input.
    """

    def __init__(self, outputs, positions=None, smallest=0):
        self.outputs, self.smallest = outputs, smallest
        operations = [operation for output in outputs for operation in output]
        self.positions = (np.arange(len(operations)).reshape(len(outputs), -1) if positions is None
                          else np.array(positions))
        chains = [operation for operation in operations if isinstance(operation, list)]
        poolings = [operation for operation in operations if isinstance(operation, Pooling)]
        self.depth = max([1, *map(len, chains)])
        units = [unit for chain in chains for unit in chain]
        norms = [each.norm for each in units + poolings if each.norm is not None]
        convolutions = [convolution for unit in units for convolution in unit.convolutions]
        parameters = ([tensor for convolution in convolutions
                       for tensor in (convolution.depthwise, convolution.weight, convolution.bias)]
                      + [tensor for norm in norms for tensor in (norm.weight, norm.bias)])
        self.parameters = [tensor for tensor in parameters if tensor is not None]
        self.statistics = [tensor for norm in norms for tensor in (norm._mean, norm._variance)]
        self.tensors = self.parameters + self.statistics
        # Gradients of a tensor that two steps use would overwrite each other.
        self.repeats = len(set(map(id, self.tensors))) < len(self.tensors)
        self.stacks = self._stacks() if len(outputs) > 1 else [[tensor] for tensor in self.parameters]
        place_of = {id(tensor): (stack, sum(before.size for before in tensors[:k]))
                    for stack, tensors in enumerate(self.stacks) for k, tensor in enumerate(tensors)}
        self.places = np.array([place_of[id(tensor)] for tensor in self.parameters], np.int64).reshape(-1, 2)
        self.numbers = {id(tensor): number for tensors in (self.parameters, self.statistics)
                        for number, tensor in enumerate(tensors)}
        self.plans = {}

    def _stacks(self):
        """Parameters of one shape, but for their first side, which Paddle gets as one tensor: each input of an
        operation takes Python's time."""
        stacks = {}
        for tensor in self.parameters:
            stacks.setdefault(tuple(tensor.shape[1:]), []).append(tensor)
        return list(stacks.values())

    def number(self, tensor):
        """Of a parameter or a statistic; -1 for None."""
        return -1 if tensor is None else self.numbers[id(tensor)]

    def plan_of(self, x):
        shape = tuple(x.shape)
        if shape not in self.plans:
            self.plans[shape] = Plan(self, shape)
        return self.plans[shape]

    def applies(self, x, weights=None):
        """Whether the compiled passes cover an input: single precision on a CPU, shapes that the layers allow. Paddle
        says what is wrong with the others."""
        return (not self.repeats and available(x) and x.ndim == 4 and x.size > 0
                and (weights is None or available(weights) and weights.size > self.positions.max())
                and all(tensor.dtype == paddle.float32 for tensor in self.tensors)
                and all(available(tensor) for tensor in self.parameters[:1])  # a layer's tensors are in one place
                and all(tensor.is_contiguous() for tensor in self.statistics) and self.plan_of(x).fit)

    def __call__(self, x, weights=None):
        """A list of the outputs. x [N, C, H, W], to which the block applies; weights: a tensor, of one dimension or
        more, or None."""
        stacks = [paddle.concat(tensors) if len(tensors) > 1 else tensors[0] for tensors in self.stacks]
        out = BlockOperation(self.plan_of(x), weights is not None)(x, *[weights] * (weights is not None), *stacks)
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def addresses_of(self, stacks):
        """The addresses of the parameters, and 0 for None, from those of the stacks."""
        return np.append(addresses(stacks)[self.places[:, 0]] + 4 * self.places[:, 1], 0)


class BlockOperation(Operation):
    """A block for x, the weights if there are any, and the stacks of parameters."""

    def __init__(self, plan, weighted):
        self.plan, self.weighted = plan, weighted

    def forward(self, x, *tensors):
        outs = self.prepare(x, *tensors)
        with_barrier(forward_pass, self.plan.tables.parts, self.plan.tables, self.call)
        self.call = self.call._replace(memory=np.empty((0, 0), np.float32), moments=np.empty((0, 0, 0, 2)))
        return tuple(outs) if len(outs) > 1 else outs[0]

    def prepare(self, x, *tensors):
        """Get everything ready for forward_pass. Returns the outputs, still without their values."""
        plan, block = self.plan, self.plan.block
        self.x, self.weights = x.contiguous(), tensors[0] if self.weighted else None
        self.stacks = [stack.contiguous() for stack in tensors[self.weighted:]]
        outs = [new_tensor(plan.shape) for _ in block.outputs]
        # The last unit can write the output itself, where nothing is to be kept of what its batch norm reads.
        last = block.outputs[0][0][-1] if isinstance(block.outputs[0][0], list) else None
        self.direct = not self.weighted and last is not None and (
            last.norm is None or not last.norm.training and not any(self.wanted))
        self.data = np.empty(plan.data, np.float32)
        self.call = self._tables(outs)
        return outs

    def _tables(self, outs):
        """The Call of this forward pass."""
        plan, block, tables = self.plan, self.plan.block, self.plan.tables
        values, norms, steps = plan.values.copy(), plan.norms.copy(), plan.steps.copy()
        values['data'] = self.data.ctypes.data + 4 * plan.data_at
        values['data'][0] = self.x.data_ptr()
        if self.direct:
            values['data'][-1], values['order'][-1] = outs[0].data_ptr(), NCHW
        parameters = block.addresses_of(self.stacks)
        steps['depthwise'], steps['weight'] = parameters[plan.step_parameters].T
        norms['gamma'], norms['beta'], norms['bias'] = parameters[plan.norm_parameters].T
        running = np.append(addresses(block.statistics), 0)[plan.norm_statistics]
        norms['running_mean'], norms['running_variance'] = running.T
        norms['trains'] = [norm is not None and norm.training for norm, _ in plan.norm_layers]
        trained = norms['trains'].any()
        values['trains'][norms['value'][norms['trains'] > 0]] = 1
        strengths = np.ones(len(tables.terms), np.float32)
        if self.weighted:
            strengths = self.weights.numpy().ravel()[plan.positions]
        statistics = np.zeros((4, len(norms), tables.channels), np.float32)
        statistics[1:3] = 1
        moments = np.empty((len(values), tables.groups if trained else 0, tables.channels, 2))
        memory = np.empty((tables.parts, tables.sections[-1]), np.float32)
        return Call(values, norms, steps, addresses([] if self.direct else outs), strengths, *statistics, moments,
                    memory)

    def backward(self, *ds):
        plan, block, tables, call = self.plan, self.plan.block, self.plan.tables, self.call
        x_wanted, others = self.wanted[0], self.wanted[1 + self.weighted:]
        strengths_wanted, weights_wanted = self.weighted and self.wanted[1], any(others)
        ds = [d.contiguous() for d in ds]
        dx = new_tensor(self.x.shape) if x_wanted else None
        gradients = np.empty(plan.gradients if x_wanted or weights_wanted else 0, np.float32)
        dstacks = [new_tensor(stack.shape) if weights_wanted else None for stack in self.stacks]
        norms, values, steps = call.norms, call.values, call.steps
        norms['summed'] = ((norms['trains'] + norms['gamma'] + norms['bias'] > 0)
                           | (norms['term'] >= 0) * strengths_wanted)
        if len(gradients):
            values['gradient'][plan.has_gradient] = gradients.ctypes.data + 4 * plan.gradients_at[plan.has_gradient]
        values['gradient'][0] = dx.data_ptr() if x_wanted else 0
        if weights_wanted:
            of_parameters = block.addresses_of(dstacks)
            steps['depthwise_gradient'], steps['weight_gradient'] = of_parameters[plan.step_parameters].T
            for name, column in zip(('gamma', 'beta', 'bias'), of_parameters[plan.norm_parameters].T):
                norms[name + '_gradient'] = column
        found = Gradients(addresses(ds), np.zeros((tables.parts, len(norms), tables.channels, 2)),
                          np.zeros((len(norms), tables.channels, 3), np.float32), np.zeros(len(tables.terms)),
                          np.empty((tables.parts, plan.weights if weights_wanted else 0), np.float32),
                          np.empty(plan.weights, np.float32), weights_wanted)
        memory = np.empty((tables.parts, tables.sections[-1]), np.float32)
        with_barrier(backward_pass, tables.parts, tables, call._replace(memory=memory), found)
        dweights = None
        if strengths_wanted:
            dweights = np.zeros(self.weights.size, np.float32)
            dweights[plan.positions] = found.strengths
            dweights = paddle.to_tensor(dweights.reshape(self.weights.shape))
        return [dx, *[dweights] * self.weighted,
                *[gradient if wanted else None for gradient, wanted in zip(dstacks, others)]]
