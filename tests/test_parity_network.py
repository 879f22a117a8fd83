"""The networks made of a genotype against the authors' PyTorch code, in float64, and their published sizes."""
import glob
import json
import os

import paddle
import pytest
from conftest import SHARED, eval_logits, ordered, relative_error, set_values, shared_file

from genotypes import from_dict
from model import NetworkCIFAR, NetworkImageNet
from training.summary import count_macs, count_parameters

TOLERANCE = 1e-6
FOLDER = os.environ.get('PARITY_DIR', os.path.join(SHARED, 'parity'))
FILES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(FOLDER, 'network_*.npz')))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', FILES or ['network_cifar_darts_v2.npz'])
def test_network(parity, name):
    """Logits in train mode, with the auxiliary head's, and in eval mode."""
    arrays = parity.load(name)
    weights = ordered(arrays, 'w/')
    imagenet = name.startswith('network_imagenet')
    network = NetworkImageNet if imagenet else NetworkCIFAR
    model = network(parity.config['network_init_channels'], len(weights[-1]), parity.config['network_layers'], True,
                    from_dict(json.loads(str(arrays['genotype']))))
    parameters = [p for name, p in model.named_parameters() if p.trainable
                  # The authors' ImageNet head has no second batch norm; ours has, as the PaddleSlim example.
                  and not (imagenet and name.startswith('auxiliary_head.features.6.'))]
    set_values(parameters, weights)
    image = paddle.to_tensor(arrays['input'].astype('float64'))
    logits, logits_aux = model(image)
    assert relative_error(logits, arrays['logits']) < TOLERANCE
    if imagenet:
        assert logits_aux.shape == logits.shape
    else:
        assert relative_error(logits_aux, arrays['logits_aux']) < TOLERANCE
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):  # the pass above has moved them
            layer._mean.set_value(paddle.zeros_like(layer._mean))
            layer._variance.set_value(paddle.ones_like(layer._variance))
    model.auxiliary_head = None  # a batch of two 1x1 features says nothing about eval logits
    biased, unbiased = eval_logits(model, image, lambda model, image: model(image)[0])
    expected = arrays['logits_eval_after_one_train_forward']
    assert relative_error(unbiased, expected) < TOLERANCE < relative_error(biased, expected)


SETTINGS = {'cifar': (NetworkCIFAR, 36, 10, 20, [3, 32, 32], 0), 'imagenet': (NetworkImageNet, 48, 1000, 14, [3, 224, 224], 1536)}


@pytest.mark.parametrize('kind', sorted(SETTINGS))
def test_parameters_and_multiply_adds(parity, kind):
    network, channels, classes, layers, image_shape, second_batch_norm = SETTINGS[kind]
    with open(shared_file('reference', 'genotypes.json')) as f:
        published = json.load(f)['genotypes']
    counts = parity.load('counts.json')
    known = [name for name in counts if name in published]
    assert known
    for name in known:
        model, expected = network(channels, classes, layers, True, from_dict(published[name])), counts[name][kind]
        assert count_parameters(model) == expected['params'] + second_batch_norm, name
        assert count_parameters(model, auxiliary=False) == expected['params_without_auxiliary'], name
        assert count_macs(model, image_shape) == expected['macs'], name
