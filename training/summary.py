"""How large a network is: parameters, multiply-adds, activations. For the networks of model.py and for the supernet."""
import collections
import re

import paddle
import paddle.nn as nn

from runtime.log import logger, peak_memory_mb


def count_parameters(network, auxiliary=True):
    """The number of trainable parameters, with those of the auxiliary head or without."""
    return sum(p.size for name, p in network.named_parameters()
               if p.trainable and (auxiliary or not name.startswith('auxiliary_head.')))


def count_macs(network, image_shape):
    """The multiply-adds of convolutions and linear layers for one image [3, H, W]; the auxiliary head does not count.
    """
    return sum(call.macs for call in trace(network, image_shape))


# A call of a layer: its name, its output's shape, multiply-adds for one image, elements of its output.
Call = collections.namedtuple('Call', 'name shape macs size')


@paddle.no_grad()
def trace(network, image_shape):
    """Run one image [3, H, W] through a network in evaluation mode -> [Call], in the order in which the calls end.

    A layer with a hook runs as it is written, also in an accelerated network, so every layer is seen.

    Beside the layers without parts it holds the cells, for the shapes they give; they count nothing of their own.
    """
    calls, hooks = [], []

    def watch(name, layer):
        def record(layer, inputs, output):
            macs = 0
            if isinstance(layer, nn.Conv2D):
                # [out, in / groups, kernel h, kernel w]
                macs = output.size * layer.weight.size // layer.weight.shape[0]
            elif isinstance(layer, nn.Linear):
                macs = layer.weight.size
            calls.append(Call(name, list(output.shape), macs, 0 if layer.sublayers() else output.size))
        hooks.append(layer.register_forward_post_hook(record))

    for name, layer in network.named_sublayers():
        if not layer.sublayers() or re.fullmatch(r'cells\.\d+', name):
            watch(name, layer)
    training = network.training
    network.eval()
    network(paddle.zeros([1] + list(image_shape)))
    if training:
        network.train()
    for hook in hooks:
        hook.remove()
    return calls


def summary(network, image_shape, batch_size):
    """A table of a network's parts, for --summary: output shape, parameters, multiply-adds for an image, activations
    of a batch.

    Activations are the outputs of all layers in float32, what a backward pass keeps at least. Below it, the totals and
    the memory that this process has needed at most once a batch has passed forward and backward.
    """
    calls = trace(network, image_shape)
    parts = {}  # stem, cells.0, cells.1, ..., classifier
    for call in calls:
        words = call.name.split('.')
        parts.setdefault('.'.join(words[:2] if words[0] == 'cells' else words[:1]), []).append(call)
    row = '{:<18} {:>20} {:>14} {:>16} {:>14}'.format
    lines = [row('part', 'output', 'parameters', 'multiply-adds', 'activations')]
    for name, inside in parts.items():
        lines.append(row(name, str([batch_size] + inside[-1].shape[1:]), f'{_parameters(network, name):,}',
                         f'{sum(call.macs for call in inside):,}',
                         _megabytes(batch_size * sum(call.size for call in inside))))
    if _parameters(network, 'auxiliary_head'):
        lines.append(row('auxiliary_head', 'in training', '{:,}'.format(_parameters(network, 'auxiliary_head')), '',
                         ''))
    architecture = sum(p.size for p in network.arch_parameters()) if hasattr(network, 'arch_parameters') else 0
    parameters = count_parameters(network) - architecture
    lines.append(row('all', '', f'{parameters:,}', f'{sum(call.macs for call in calls):,}',
                     _megabytes(batch_size * sum(call.size for call in calls))))
    lines.append('parameters: {}{}'.format(_megabytes(parameters),
                                           f', and {architecture} of the architecture' if architecture else ''))
    logger.info('one forward and one backward pass of a batch of %d, for the memory; a smaller --batch_size is faster',
                batch_size)
    output = network(paddle.zeros([batch_size] + list(image_shape)))
    (output[0] if isinstance(output, tuple) else output).sum().backward()
    lines.append(f'memory of this process at most, a batch of {batch_size} forward and backward: '
                 f'{peak_memory_mb():.0f} MB')
    return '\n'.join(lines)


def _parameters(network, part):
    return sum(p.size for name, p in network.named_parameters() if p.trainable and name.startswith(part + '.'))


def _megabytes(elements):
    return f'{elements * 4 / 2**20:.1f} MB'
