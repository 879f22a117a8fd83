"""Make the extract of the parity numbers that lies beside this file.

    python tests/data/parity/extract.py FULL_SET PUBLISHED_GENOTYPES.json

Nothing is computed anew: arrays are copied, less what README.md names. Weights are stored as the seed that PyTorch drew
them with, after checking that this seed gives the weights of the full set: float32 weights to the last bit, float64
weights within 1.1e-16.
"""
import json
import os
import re
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from parity import torch_initialization, torch_normal  # noqa: E402

# Each file with the seed of its weights and the one of its inputs (None: they are stored).
FILES = {'darts_supernet.npz': (1, 2), 'darts_second_order.npz': (1, 2), 'pcdarts_supernet.npz': (1, 2),
         'pcdarts_second_order.npz': (1, 2), 'darts_first_order_trajectory.npz': (1, 2),
         'darts_second_order_trajectory.npz': (1, 2), 'pcdarts_first_order_trajectory.npz': (1, 2),
         'network_cifar_darts_v2.npz': (1, None),
         'fairdarts_supernet.npz': (13, 12), 'fairdarts_trajectory.npz': (13, 12),
         'dartsminus_supernet.npz': (15, 14), 'dartsminus_trajectory.npz': (15, 14),
         'gdas_supernet.npz': (17, 16), 'gdas_trajectory.npz': (17, 16), 'drnas_full_channels_supernet.npz': (19, 18)}
# Where inputs lie in the numbers that each seed gave: alphas and noise were drawn before and labels between them.
POSITIONS = {2: [0, 12290], 12: [252, 12542, 24832, 37122, 49412, 61702, 73992],
             14: [248, 12538, 24828, 37118, 49408, 61698, 73988],
             16: [376, 14010, 26300, 38590, 50880, 63170, 75460], 18: [252]}
SCHEDULES = {'dartsminus_schedule.json': 'epochs beta_by_epoch beta_by_epoch_cosine beta_by_epoch_slow_cosine '
                                         'beta_by_epoch_constant', 'gdas_schedule.json': 'epochs tau_by_epoch',
             'drnas_schedule.json': 'epochs partial_by_epoch operations_by_epoch'}


def is_taken(key, value, name):
    """Whether an array of a file belongs to the extract."""
    part = key.split('/')[0]
    if part in ('velocity', 'logits_aux', 'grad_weights'):
        return False
    if 'order' in name and (part == 'final' or part.startswith('step') and part != 'step0'):
        return False
    if part.startswith(('jacobian', 'soft', 'index', 'eval_soft', 'eval_index')):  # what tests do not read
        return False
    if part in ('wgrad', 'final'):  # of a few small weights; grad_norm and weights_sum_norm are over all weights
        return value.size <= 100 and int(key.split('/')[1]) % 35 == 0
    return 'auxiliary_head' not in key


def in_drawing_order(keys):
    """The keys of weights in the order in which the weights were drawn.

    That is the order of the file, but for the auxiliary skip connection of DARTS-: it stands behind the operations of
    its edge and was drawn before them.
    """
    edges = {}
    for key in keys:
        name = key.split('/')[2]
        edge = re.match(r'cells\.\d+\._ops\.\d+\.|', name).group(0) or name
        edges.setdefault(edge, []).append(key)
    return [key for edge in edges.values() for key in sorted(edge, key=lambda key: 'auxiliary_op' not in key)]


def take_weights(arrays, seed, name):
    """Replace the weights that follow from the seed by the seed and the shapes of all weights."""
    shapes = {key: arrays[key].shape for key in in_drawing_order(key for key in arrays if key.startswith('w/'))}
    taken = {key: value for key, value in arrays.items() if is_taken(key, value, name)}
    for key, weight in torch_initialization(seed, shapes).items():
        if key in taken:
            value = taken[key]
            single = value.dtype == np.float32
            if (weight.astype(np.float32) == value).all() if single else np.abs(weight - value).max() <= 2**-53:
                del taken[key]
    left = [key for key in taken if key.startswith('w/') and taken[key].ndim > 1]
    assert not left, f'{left[:3]} … do not follow from seed {seed}'
    dtype = {value.dtype.name for key, value in arrays.items() if key.startswith('w/')}
    return dict(taken, seed=seed, shapes=json.dumps(shapes), dtype=dtype.pop())


def take_inputs(arrays, seed):
    """Replace the inputs that torch.randn gave after that seed by their positions in the sequence of its numbers."""
    for key in [key for key in arrays if 'input' in key]:
        value = arrays.pop(key)
        if (value.astype(np.float32) == value).all():  # in whatever type it is stored
            value = value.astype(np.float32)
        position = next(position for position in POSITIONS[seed] if
                        (torch_normal(seed, position, value.shape).astype(value.dtype) == value).all())
        arrays['normal/' + key] = ' '.join(map(str, [seed, position, value.dtype.name, *value.shape]))


def read_json(*path):
    with open(os.path.join(*path)) as f:
        return json.load(f)


def main():
    full, published = sys.argv[1:]
    for name, (seed, input_seed) in FILES.items():
        with np.load(os.path.join(full, name)) as arrays:
            arrays = take_weights({key: arrays[key] for key in sorted(arrays.files)}, seed, name)
        if input_seed is not None:
            take_inputs(arrays, input_seed)
        np.savez_compressed(os.path.join(HERE, name), **arrays)
    for name in ('gdas_draws.npz', 'drnas_draws.npz'):
        with np.load(os.path.join(full, name)) as arrays:
            np.savez_compressed(os.path.join(HERE, name), **{key: arrays[key] for key in arrays if key[0] == '0'})
    texts = {name: read_json(full, name) for name in ('counts.json', 'config.json')}
    published = read_json(published)['genotypes']
    texts['genotypes_published.json'] = {name: published[name] for name in texts['counts.json']}
    for name, keys in SCHEDULES.items():
        schedule = read_json(full, name)
        texts[name] = {key: schedule[key] for key in keys.split()}
    for method in ('gdas', 'drnas', 'fairdarts', 'dartsminus'):
        genotypes = read_json(full, method + '_genotypes.json')
        texts[method + '_genotypes.json'] = dict(genotypes, cases=genotypes['cases'][-1:])
    for name, content in texts.items():
        with open(os.path.join(HERE, name), 'w') as f:
            f.write(json.dumps(content) + '\n')
    made = [os.path.join(HERE, name) for name in os.listdir(HERE) if name.endswith(('.npz', '.json'))]
    size = sum(map(os.path.getsize, made))
    print(f'{size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
