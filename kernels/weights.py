"""The weights of a plan's convolutions as the backward pass reads them, and the sums that become their gradients."""
from kernels.compiled import floats, inner, pasted
from kernels.depthwise import in_order
from kernels.products import transpose
from kernels.units import AVERAGE, DENSE, DEPTHWISE, SEPARABLE
from kernels.windows import unpack


@pasted
def arrange_weights(call, gradients, number):
    """The weights of a convolution as the backward pass reads them: for each group of the convolution, for each plane,
    a matrix [channels, filters * taps of the plane]; of a depthwise one the taps in the order of
    windows.WindowTables.order."""
    step, (_, t) = call.steps[number], unpack(call.plan.geometry[number])
    if step.kind >= AVERAGE or not step.active:
        return
    inputs, filters, taps = step.channels // step.groups, step.filters // step.groups, len(t.taps)
    if step.kind == SEPARABLE or step.kind == DEPTHWISE:
        in_order(gradients.backward_weights[step.depthwise_at:], floats(step.depthwise, step.channels * taps), t.order,
                 step.channels)
    if step.kind == DEPTHWISE:
        return
    per_pair = taps if step.kind == DENSE else 1  # elements for a pair of channel and filter
    weight = floats(step.weight, step.filters * inputs * per_pair)
    for k in range(step.groups):
        at = k * filters * inputs * per_pair
        if step.kind != DENSE:
            transpose(gradients.backward_weights[step.weight_at + at:], weight[at:], filters, inputs)
            continue
        to = step.weight_at + at
        for plane in range(len(t.planes)):
            for channel in range(inputs):
                for filter_ in range(filters):
                    for position in range(t.starts[plane], t.starts[plane + 1]):
                        tap = t.order[position]
                        gradients.backward_weights[to] = weight[at + (filter_ * inputs + channel) * taps + tap]
                        to += 1


@pasted
def sum_over_threads(call, gradients, number, thread):
    """The gradient of a convolution's weight, a thread's share of it: the sums over the weight_sums of all."""
    step, (_, t) = call.steps[number], unpack(call.plan.geometry[number])
    if step.kind >= AVERAGE or not step.active:
        return
    size = step.channels * len(t.taps)
    if step.kind == SEPARABLE or step.kind == DEPTHWISE:
        sum_weights(floats(step.depthwise_gradient, size), gradients.weight_sums, step.depthwise_at, size, thread)
    if step.kind == DEPTHWISE:
        return
    size = step.filters * step.channels // step.groups * (len(t.taps) if step.kind == DENSE else 1)
    sum_weights(floats(step.weight_gradient, size), gradients.weight_sums, step.weight_at, size, thread)


@inner
def sum_weights(out, weight_sums, at, size, thread):
    begin, end = size * thread // len(weight_sums), size * (thread + 1) // len(weight_sums)
    to = out[begin:end]
    for number in range(len(weight_sums)):
        addend = weight_sums[number, at + begin:at + end]
        for k in range(len(to)):
            to[k] = addend[k] if number == 0 else to[k] + addend[k]
