"""Make the extract of the parity numbers that lies beside this file.

    python tests/data/parity/extract.py FULL_SET PUBLISHED_GENOTYPES.json

Nothing is computed anew: arrays are copied, less what README.md names. Weights are stored as the seed that PyTorch drew
them with, after checking that this seed gives the weights of the full set: float32 weights to the last bit, float64
weights within 1.1e-16.
"""
import json
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from parity import torch_initialization  # noqa: E402

SEED = 1  # of the weights of all files below
FILES = ['darts_supernet.npz', 'darts_second_order.npz', 'pcdarts_supernet.npz', 'pcdarts_second_order.npz',
         'darts_first_order_trajectory.npz', 'darts_second_order_trajectory.npz', 'pcdarts_first_order_trajectory.npz',
         'network_cifar_darts_v2.npz']


def is_taken(key, value):
    """Whether an array belongs to the extract."""
    part = key.split('/')[0]
    if part.startswith('step') and part != 'step0' or part in ('final', 'velocity', 'logits_aux'):
        return False
    if part == 'wgrad':  # of a few small weights; grad_norm is over all weights
        return value.size <= 100 and int(key.split('/')[1]) % 35 == 0
    return 'auxiliary_head' not in key


def take_weights(arrays):
    """Replace the weights that follow from the seed by the seed and the shapes of all weights."""
    shapes = {key: value.shape for key, value in arrays.items() if key.startswith('w/')}
    taken = {key: value for key, value in arrays.items() if is_taken(key, value)}
    for key, weight in torch_initialization(SEED, shapes).items():
        if key in taken:
            value = taken[key]
            single = value.dtype == np.float32
            if (weight.astype(np.float32) == value).all() if single else np.abs(weight - value).max() <= 2**-53:
                del taken[key]
    left = [key for key in taken if key.startswith('w/') and taken[key].ndim > 1]
    assert not left, f'{left} do not follow from seed {SEED}'
    dtype = {value.dtype.name for key, value in arrays.items() if key.startswith('w/')}
    return dict(taken, seed=SEED, shapes=json.dumps(shapes), dtype=dtype.pop())


def share(value, shared):
    """Add an array to the shared ones unless it is the rounding of one. Returns 'NAME DTYPE', of shared.npz."""
    single = value.astype(np.float32)
    if (single == value).all():  # float32 numbers, in whatever type they are stored
        value = single
    for number, other in enumerate(shared):
        if (other.astype(value.dtype) == value).all():
            return f'arr_{number} {value.dtype.name}'
    assert value.dtype == np.float64, 'files that hold the float64 array come first'
    shared.append(value)
    return f'arr_{len(shared) - 1} float64'


def main():
    full, published = sys.argv[1:]
    shared = []
    for name in FILES:
        with np.load(os.path.join(full, name)) as arrays:
            arrays = take_weights({key: arrays[key] for key in sorted(arrays.files)})
        if not name.startswith('network'):
            for key in [key for key in arrays if 'input' in key]:
                arrays['shared/' + key] = share(arrays.pop(key), shared)
        np.savez_compressed(os.path.join(HERE, name), **arrays)
    np.savez_compressed(os.path.join(HERE, 'shared.npz'), *shared)
    with open(os.path.join(full, 'counts.json')) as f:
        counts = json.load(f)
    with open(published) as f:
        genotypes = json.load(f)['genotypes']
    with open(os.path.join(full, 'config.json')) as f:
        config = json.load(f)
    for name, content in (('counts.json', counts), ('config.json', config),
                          ('genotypes_published.json', {name: genotypes[name] for name in counts})):
        with open(os.path.join(HERE, name), 'w') as f:
            f.write(json.dumps(content) + '\n')
    made = [os.path.join(HERE, name) for name in os.listdir(HERE) if name.endswith(('.npz', '.json'))]
    size = sum(map(os.path.getsize, made))
    print(f'{size / 1000:.0f} kB')


if __name__ == '__main__':
    main()
