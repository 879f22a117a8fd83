"""The change between two stages of a search (DrNAS, section 3.3): edges lose operations, and operations get more
channels.

Convolutions are widened by copies of their channels, without rescaling; momentum buffers are widened by the same
copies.
"""
import numpy as np
import paddle

from runtime.states import set_optimizer_state


class Widening:
    """The copied channels of one parameter. indices: {axis: channels that are copied and appended on that axis}."""

    def __init__(self, parameter, indices):
        self.parameter, self.indices = parameter, indices

    def apply(self, value):
        """The widened numpy array of the parameter or of its momentum."""
        for axis, index in self.indices.items():
            value = np.concatenate([value, value.take(index, axis)], axis)
        return value


def begin_stage(model, partial, kept, choose):
    """Bring a supernet into a stage: `kept` operations per edge, 1/partial of the channels through them.

    choose: called with (name of a parameter, axis, present size, number) -> the channels to copy.
    Returns {id of a parameter before: Widening with the parameter now} of all that were replaced.
    """
    model.keep_strongest(kept)
    if partial == model.method.partial:
        return {}
    widenings = {}
    for name, before, now in model.rebuild_edges(partial):
        sizes = enumerate(zip(before.shape, now.shape))
        indices = {axis: choose(name, axis, old, new - old) for axis, (old, new) in sizes if new > old}
        widenings[id(before)] = Widening(now, indices)
        now.set_value(widenings[id(before)].apply(before.numpy()))
    return widenings


@paddle.no_grad()
def copy_momentum(optimizer, weights, velocities):
    """Set the momentum of a new optimizer, among whose weights are some of an earlier optimizer.

    velocities: as runtime.states.optimizer_state gives them. A checkpoint goes by the names of the optimizer's buffers,
    such as conv2d_3.w_0_velocity_0; those of a second optimizer would end with _velocity_1. A first step with gradients
    of zeros, taken back afterwards, creates them under the usual names.
    """
    values = [weight.clone() for weight in weights]
    set_optimizer_state(optimizer, weights, velocities)
    reached = [weight.grad is not None for weight in weights]
    for weight in weights:
        weight.grad = paddle.zeros_like(weight)
    with paddle.utils.unique_name.guard():
        optimizer.step()
    for weight, value, keep in zip(weights, values, reached):
        paddle.assign(value, weight)
        if not keep:
            weight.clear_gradient(False)
    set_optimizer_state(optimizer, weights, velocities)
