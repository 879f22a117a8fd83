"""The weights of a plan's convolutions as the backward pass reads them, and the sums that become their gradients."""
from kernels.compiled import floats, inlined, pasted
from kernels.products import NO_SHIFT
from kernels.units import AVERAGE, DENSE
from kernels.windows import unpack


@pasted
def arrange_weights(call, gradients, number):
    """The weights of a convolution as the backward pass reads them: for each group and plane a matrix [channels,
    filters * taps of the plane]; of a depthwise one the taps in the order of windows.WindowTables.order."""
    step, (_, t) = call.steps[number], unpack(call.plan.geometry[number])
    if step.kind >= AVERAGE or not step.active:
        return
    taps, to = len(t.taps), gradients.backward_weights[step.weight_at:]
    if step.kind == DENSE:
        inputs, filters = step.channels // step.groups, step.filters // step.groups
        size = filters * inputs  # of a tap of a group
        weight = floats(step.weight, step.groups * size * taps)
        for k in range(step.groups):
            for plane in range(len(t.plane_starts) - 1):
                begin, end = t.plane_starts[plane], t.plane_starts[plane + 1]
                arrange(to[size * (k * taps + begin):], weight[k * size * taps:], filters, inputs, taps,
                        t.tap_order[begin:end])
    else:
        arrange(gradients.backward_weights[step.depthwise_at:], floats(step.depthwise, step.channels * taps), 1,
                step.channels, taps, t.tap_order)
        arrange(to, floats(step.weight, step.filters * step.channels), step.filters, step.channels, 1, NO_SHIFT)


@inlined
def arrange(result, weight, filters, channels, taps, order):
    """result [channels, filters, len(order)] = a weight [filters, channels, taps] at the taps of that order."""
    to = 0
    for channel in range(channels):
        for filter_ in range(filters):
            for tap in order:
                result[to] = weight[(filter_ * channels + channel) * taps + tap]
                to += 1


@pasted
def sum_over_threads(call, gradients, number, thread):
    """The gradient of a convolution's weight, a thread's share of it: the sums over the weight_sums of all."""
    step, (_, t) = call.steps[number], unpack(call.plan.geometry[number])
    if step.kind >= AVERAGE or not step.active:
        return
    size = step.channels * len(t.taps)
    if step.kind != DENSE:
        sum_weights(floats(step.depthwise_gradient, size), gradients.weight_sums, step.depthwise_at, size, thread)
    size = step.filters * (step.channels // step.groups) * (len(t.taps) if step.kind == DENSE else 1)
    sum_weights(floats(step.weight_gradient, size), gradients.weight_sums, step.weight_at, size, thread)


@inlined
def sum_weights(out, weight_sums, at, size, thread):
    begin, end = size * thread // len(weight_sums), size * (thread + 1) // len(weight_sums)
    to = out[begin:end]
    for number in range(len(weight_sums)):
        addend = weight_sums[number, at + begin:at + end]
        for k in range(len(to)):
            to[k] = addend[k] if number == 0 else to[k] + addend[k]
