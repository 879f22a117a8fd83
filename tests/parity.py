"""The numbers that the authors' PyTorch code computed, as tests read them, and Paddle networks with the same weights.

There are two sets. The extract in tests/data/parity/ is part of the project. The full set, 30 MB, is a folder beside
the project, ../shared/parity, or the one that the environment variable PARITY_DIR names. Tests take both where both
are present.
"""
import copy
import functools
import json
import math
import os

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXTRACT = os.path.join(ROOT, 'tests', 'data', 'parity')
FULL = os.environ.get('PARITY_DIR', os.path.join(os.path.dirname(ROOT), 'shared', 'parity'))


class Parity:
    """One of the two sets of numbers."""

    def __init__(self, folder):
        self.folder = folder
        self.config = self.load('config.json')

    def load(self, name):
        """The arrays of a .npz or the object of a .json. Skips the test where the file is absent."""
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            pytest.skip(f'{path} does not exist: this test needs the full set of parity numbers (PARITY_DIR)')
        if name.endswith('.json'):
            with open(path) as f:
                return json.load(f)
        with np.load(path) as arrays:
            return complete(dict(arrays), self.folder)

    def supernet(self, name, arrays):
        """A float64 supernet with the weights and the architecture parameters of a file. name: the file's name."""
        from model_search import Network
        from nas.architect import weight_parameters
        method = 'PC-DARTS' if name.startswith('pcdarts') else 'DARTS'
        size = {key: int(arrays[key]) if key in arrays else self.config[key] for key in ('num_classes', 'layers')}
        channels = int(arrays['init_channels']) if 'init_channels' in arrays else self.config['init_channels'][method]
        model = Network(channels, size['num_classes'], size['layers'], method)
        set_values(weight_parameters(model), ordered(arrays, 'w/'))
        for key, parameter in arch_parameters(model).items():
            parameter.set_value(arrays['arch/' + key])
        return model


@functools.lru_cache(None)
def parity_set(kind):
    """kind: 'extract' or 'full'."""
    folder = EXTRACT if kind == 'extract' else FULL
    if not os.path.isdir(folder):
        pytest.skip(f'{folder} does not exist: this test needs the full set of parity numbers (PARITY_DIR)')
    return Parity(folder)


def in_sets(*names):
    """Parametrize a test by (parity, name): every file in each set that has it; once, skipping, if no set has it. The
    numbers of the extract are marked `repeated` where the full set has them too."""
    cases = []
    for name in names:
        kinds = [kind for kind, folder in (('full', FULL), ('extract', EXTRACT))
                 if os.path.exists(os.path.join(folder, name))] or ['full']
        marks = {'full': [pytest.mark.slow], 'extract': [pytest.mark.repeated] * (len(kinds) - 1)}
        cases += [pytest.param(kind, name, id=f'{os.path.splitext(name)[0]}-{kind}', marks=marks[kind])
                  for kind in kinds]
    return pytest.mark.parametrize('parity, name', cases, indirect=['parity'])


# ---------------------------------------------------------------------------------------------------------------------
# What the extract leaves out
# ---------------------------------------------------------------------------------------------------------------------


def complete(arrays, folder):
    """The arrays of a file of the extract with what it refers to; the arrays of another file as they are.

    Inputs are stored as `normal/KEY`: seed, position, type and shape for torch_normal. Weights that are PyTorch's
    default initialization are stored as their seed: `seed`, `dtype`, and `shapes`, a JSON object {key: shape} of all
    weights in the order in which they are drawn. The auxiliary head's are left out.
    """
    for key in [key for key in arrays if key.startswith('normal/')]:
        seed, position, dtype, *shape = str(arrays.pop(key)).split()
        arrays[key[len('normal/'):]] = torch_normal(int(seed), int(position), tuple(map(int, shape))).astype(dtype)
    if 'shapes' in arrays:
        shapes, dtype = json.loads(str(arrays.pop('shapes'))), str(arrays.pop('dtype'))
        for key, weight in torch_initialization(int(arrays.pop('seed')), shapes).items():
            if 'auxiliary_head' not in key:
                arrays.setdefault(key, weight.astype(dtype))
    return arrays


def torch_uniform(random, count):
    """The next numbers of torch.rand in double precision on a CPU: 53 bits of two 32-bit numbers each.

    random: a RandomState with the seed that PyTorch had; its Mersenne Twister draws the same 32-bit numbers.
    """
    words = random.randint(0, 2**32, (count, 2), dtype=np.uint32).astype(np.uint64)
    bits = words[:, 0] << np.uint64(32) | words[:, 1]
    return (bits & np.uint64(2**53 - 1)).astype(np.float64) / 2**53


def torch_normal(seed, position, shape):
    """torch.randn of a shape of a multiple of 16 numbers, in double precision on a CPU.

    seed: what PyTorch's generator was seeded with. position: how many numbers of torch_uniform were drawn since then.
    In every 16 numbers, the first 8 and the last 8 are the two results of the Box-Muller transform.
    """
    random = np.random.RandomState(seed)
    torch_uniform(random, position)
    first, second = torch_uniform(random, math.prod(shape)).reshape(-1, 2, 8).swapaxes(0, 1)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), 2 * np.pi * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(shape)


def torch_initialization(seed, shapes):
    """PyTorch's default initialization of convolutions and linear layers after torch.manual_seed(seed), float64, CPU.

    It is uniform in +-1 / sqrt(inputs of an output). shapes: {key: shape} in the order of construction; keys are
    `w/NNNN/NAME`. A bias has the bound of its weight. The other arrays of one dimension belong to batch norms, which
    draw nothing. Returns {key: array}.
    """
    random, weights, bounds = np.random.RandomState(seed), {}, {}
    for key, shape in shapes.items():
        layer, kind = key.split('/')[-1].rsplit('.', 1)
        if kind == 'weight' and len(shape) > 1:
            bounds[layer] = 1 / math.sqrt(math.prod(shape[1:]))
        elif layer not in bounds:
            continue
        fraction = torch_uniform(random, math.prod(shape))
        weights[key] = ((2 * fraction - 1) * bounds[layer]).reshape(shape)
    return weights


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's layout and Paddle's
# ---------------------------------------------------------------------------------------------------------------------


def arch_parameters(model):
    names = ['alphas_normal', 'alphas_reduce', 'betas_normal', 'betas_reduce']
    return dict(zip(names, model.arch_parameters()))


def ordered(arrays, prefix):
    """The arrays whose keys begin with prefix, in the order of their numbers."""
    return [arrays[key] for key in sorted(key for key in arrays if key.startswith(prefix))]


def as_paddle(array):
    """PyTorch's layout of a weight in Paddle's: linear weights are transposed."""
    return array.T if array.ndim == 2 else array


def set_values(parameters, values):
    parameters = list(parameters)
    assert len(parameters) == len(values)
    for parameter, value in zip(parameters, values):
        assert tuple(parameter.shape) == as_paddle(value).shape, parameter.name
        parameter.set_value(as_paddle(value).astype(str(parameter.dtype).split('.')[-1]))


def values_per_channel(model, image, call):
    """{name: n}: how many values of a channel each batch norm of a network averages over in one pass over a batch.

    A copy of the network makes the pass. So the network itself has no hooks, for which an accelerated network would run
    as its definition is written, and keeps its state; the random state is restored.
    """
    import paddle
    twin, counts, random_state = copy.deepcopy(model), {}, paddle.get_rng_state()

    def count(name):
        def hook(layer, inputs):
            assert name not in counts, f'{name} runs twice in one pass'
            counts[name] = inputs[0].size // inputs[0].shape[1]
        return hook

    for name, layer in twin.named_sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer.register_forward_pre_hook(count(name))
    twin.train()
    call(twin, image)
    paddle.set_rng_state(random_state)
    assert counts
    return counts


def eval_logits(model, image, call=lambda model, image: model(image)):
    """The logits in eval mode after a pass over a batch in train mode: with Paddle's running variance, with PyTorch's.

    Paddle keeps the biased variance of a batch, PyTorch the unbiased one, n / (n - 1) times as large for n values of a
    channel.
    """
    import paddle
    layers = dict(model.named_sublayers())
    before = {name: layer._variance.numpy() for name, layer in layers.items()
              if isinstance(layer, paddle.nn.BatchNorm2D)}
    counts = values_per_channel(model, image, call)
    model.train()
    call(model, image)
    model.eval()
    biased = call(model, image).numpy()
    for name, n in counts.items():
        kept = layers[name]._momentum * before[name]
        layers[name]._variance.set_value(kept + (layers[name]._variance.numpy() - kept) * (n / (n - 1)))
    return biased, call(model, image).numpy()
