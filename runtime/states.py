"""The states of random generators and of Paddle's optimizers, in forms that a checkpoint can hold."""
import random
import re

import numpy as np
import paddle


def running_statistics(model):
    """The running statistics of a network, which Paddle keeps among the parameters as ones that cannot be trained, and
    its buffers."""
    return [p for p in model.parameters() if not p.trainable] + list(model.buffers())


def random_states():
    """The states of Python's and numpy's random numbers, in a form that JSON keeps."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {'python': [version, list(internal), gauss], 'numpy': [name, keys.tolist()] + rest}


def set_random_states(states):
    """Set what random_states gave."""
    version, internal, gauss = states['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states['numpy']
    np.random.set_state((name, np.asarray(keys, 'uint32')) + tuple(rest))


def optimizer_state(optimizer, parameters):
    """An optimizer's arrays by the place of their parameter: Paddle's own names depend on what else the process has
    built.

    Zeros that set_optimizer_state filled in, where an optimizer had nothing yet, are left out.
    """
    place = {parameter.name: i for i, parameter in enumerate(parameters)}
    # Until its first step an optimizer keeps a loaded state in _accumulators_holder, and in some versions of Paddle
    # state_dict() is empty until then.
    state = dict(getattr(optimizer, '_accumulators_holder', {}), **optimizer.state_dict())
    arrays = {f'{place[name]}/master': value.numpy() for name, value in state.get('master_weights', {}).items()}
    for name, value in state.items():
        match = re.fullmatch(r'(.*)_((?:velocity|moment1|moment2|beta1_pow_acc|beta2_pow_acc)_0)', name)
        if match:
            i, value = place[match.group(1)], value.numpy()
            if match.group(2) != 'velocity_0' or value.any() or parameters[i].grad is not None:
                arrays[f'{i}/{match.group(2)}'] = value
    # a gradient of zeros before the first step: GDAS's architecture step
    if isinstance(optimizer, paddle.optimizer.Momentum):
        for i, parameter in enumerate(parameters):
            if parameter.grad is not None and f'{i}/velocity_0' not in arrays:
                arrays[f'{i}/velocity_0'] = np.zeros(parameter.shape, parameter.numpy().dtype)
    return arrays


def set_optimizer_state(optimizer, parameters, arrays):
    """Set what optimizer_state gave.

    A weight that has had no gradient yet, as of operations that a method has not drawn, has no velocity; Paddle takes
    all or none, so it gets what its first step would begin with. One that has had a gradient keeps one of zeros where
    a step has none for it, as clear_grad leaves it: momentum and decay go on.
    """
    stepped = [name for name in arrays if name.endswith('/velocity_0')]
    if stepped:
        dtype = arrays[stepped[0]].dtype
        arrays = dict({f'{i}/velocity_0': np.zeros(p.shape, dtype) for i, p in enumerate(parameters)}, **arrays)
    state, masters = {}, {}
    for name, value in arrays.items():
        i, part = name.split('/')
        if part == 'master':
            masters[parameters[int(i)].name] = paddle.to_tensor(value)
        else:
            state[f'{parameters[int(i)].name}_{part}'] = paddle.to_tensor(value)
    for name in stepped:
        parameter = parameters[int(name.split('/')[0])]
        parameter.grad = paddle.zeros_like(parameter)
    if masters:
        state['master_weights'] = masters
    if isinstance(optimizer._learning_rate, paddle.optimizer.lr.LRScheduler):
        state['LR_Scheduler'] = optimizer._learning_rate.state_dict()  # Paddle insists on it; it stays as it is
    optimizer.set_state_dict(state)
