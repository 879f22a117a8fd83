"""The networks made of a genotype against the authors' PyTorch code, in float64, and their published sizes."""
import glob
import json
import os

import paddle
import pytest
from conftest import relative_error
from parity import EXTRACT, FULL, eval_logits, in_sets, ordered, set_values

from genotypes import from_dict
from model import NetworkCIFAR, NetworkImageNet
from nas import accelerate
from training.summary import count_macs, count_parameters

TOLERANCE = 1e-6
FILES = {os.path.basename(path) for folder in (FULL, EXTRACT)
         for path in glob.glob(os.path.join(folder, 'network_*.npz'))}


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('accelerated', [False, True], ids=['plain', 'accelerated'])
@in_sets(*sorted(FILES))
def test_network(parity, name, accelerated):
    """Logits in train mode, with the auxiliary head's where the file has its weights, and in eval mode."""
    arrays = parity.load(name)
    weights, auxiliary = ordered(arrays, 'w/'), any('auxiliary_head' in key for key in arrays)
    imagenet = name.startswith('network_imagenet')
    network = NetworkImageNet if imagenet else NetworkCIFAR
    genotype = from_dict(json.loads(str(arrays['genotype'])))
    model = network(parity.config['network_init_channels'], len(weights[-1]), parity.config['network_layers'],
                    auxiliary, genotype)
    parameters = [p for name, p in model.named_parameters() if p.trainable
                  # The authors' ImageNet head has no second batch norm; ours has, as the PaddleSlim example.
                  and not (imagenet and name.startswith('auxiliary_head.features.6.'))]
    set_values(parameters, weights)
    if accelerated:
        accelerate(model)
    image = paddle.to_tensor(arrays['input'].astype('float64'))
    model.auxiliary_head, head = None, getattr(model, 'auxiliary_head', None)
    biased, unbiased = eval_logits(model, image, lambda model, image: model(image)[0])
    expected = arrays['logits_eval_after_one_train_forward']
    assert relative_error(unbiased, expected) < TOLERANCE < relative_error(biased, expected)

    model.auxiliary_head = head
    model.train()
    logits, logits_aux = model(image)
    assert relative_error(logits, arrays['logits']) < TOLERANCE
    if imagenet:
        assert logits_aux.shape == logits.shape
    elif auxiliary:
        assert relative_error(logits_aux, arrays['logits_aux']) < TOLERANCE


SIZES = {'cifar': (NetworkCIFAR, 36, 10, 20, [3, 32, 32]), 'imagenet': (NetworkImageNet, 48, 1000, 14, [3, 224, 224])}
SECOND_BATCH_NORM = {'cifar': 0, 'imagenet': 1536}  # of the auxiliary head, which the authors' code has not


@in_sets('counts.json')
@pytest.mark.parametrize('kind', sorted(SIZES))
def test_parameters_and_multiply_adds(parity, name, kind):
    network, channels, classes, layers, image_shape = SIZES[kind]
    with open(os.path.join(EXTRACT, 'genotypes_published.json')) as f:
        published = json.load(f)
    counts = parity.load(name)
    assert sorted(counts) == sorted(published)
    for name in counts:
        model, expected = network(channels, classes, layers, True, from_dict(published[name])), counts[name][kind]
        assert count_parameters(model) == expected['params'] + SECOND_BATCH_NORM[kind], name
        assert count_parameters(model, auxiliary=False) == expected['params_without_auxiliary'], name
        assert count_macs(model, image_shape) == expected['macs'], name
