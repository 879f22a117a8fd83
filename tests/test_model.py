"""The networks made of a genotype: published sizes, drop path, the auxiliary head, cells of other shapes."""
import json

import numpy as np
import paddle
import pytest
from conftest import shared_file

from genotypes import DARTS_V2, PC_DARTS, from_dict, get_genotype
from model import NetworkCIFAR, NetworkImageNet
from operations import DropPath, Identity
from runtime.errors import UserError
from training.summary import count_macs, count_parameters

# The example's own cells, as upstream counts them: CIFAR C36 L20 without and with the auxiliary head, ImageNet C48 L14.
SIZES = {
    'DARTS_V1': (3794518, 4270944, 5262304, 6524616),
    'DARTS_V2': (3767302, 4243728, 5235904, 6498216),
    'PC_DARTS': (3738574, 4215000, 5186944, 6449256),
}


@pytest.mark.parametrize('name', sorted(SIZES))
def test_sizes_of_the_examples_cells(name):
    cifar = NetworkCIFAR(36, 10, 20, True, get_genotype(name))
    imagenet = NetworkImageNet(48, 1000, 14, True, get_genotype(name))
    assert (count_parameters(cifar, False), count_parameters(cifar), count_parameters(imagenet, False),
            count_parameters(imagenet)) == SIZES[name]
    assert count_parameters(NetworkCIFAR(36, 10, 20, False, get_genotype(name))) == SIZES[name][0]


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    paddle.seed(0)
    x = paddle.ones([4000, 3, 2, 2])
    dropped = DropPath()(x, 0.2).numpy().reshape(4000, -1)
    assert (dropped == dropped[:, :1]).all()
    kept = dropped[:, 0] != 0
    assert np.allclose(dropped[kept, 0], 1 / 0.8)
    assert abs(kept.mean() - 0.8) < 0.02  # three standard deviations


def test_drop_path_spares_identity_edges_and_eval_mode(monkeypatch):
    """A dropped sample still passes the identity edges: of DARTS_V2's normal cell, node 4's one skip_connect."""
    dropped = []
    monkeypatch.setattr(DropPath, 'forward', lambda self, x, prob: dropped.append(prob) or x)
    model = NetworkCIFAR(4, 10, 1, False, DARTS_V2)  # one reduction cell: its identities leave node 2
    identities = sum(isinstance(op, Identity) for op in model.cells[0]._ops)
    assert identities == sum(name == 'skip_connect' and state >= 2 for name, state in DARTS_V2.reduce) == 3
    image = paddle.randn([2, 3, 8, 8])
    model(image)
    assert dropped == []
    model.drop_path_prob = 0.3
    model(image)
    assert dropped == [0.3] * (8 - identities)
    model.eval()
    model(image)
    assert len(dropped) == 8 - identities


@pytest.mark.parametrize('network, smallest, fails', [(NetworkCIFAR, 32, 28), (NetworkImageNet, 224, 160)])
def test_the_auxiliary_head_refuses_small_images(network, smallest, fails):
    model = network(4, 10, 3, True, PC_DARTS)
    logits, logits_aux = model(paddle.randn([2, 3, smallest, smallest]))
    assert logits.shape == logits_aux.shape == [2, 10]
    with pytest.raises(UserError, match='--auxiliary=False'):
        model(paddle.randn([2, 3, fails, fails]))
    model.eval()
    logits, logits_aux = model(paddle.randn([2, 3, fails, fails]))
    assert logits.shape == [2, 10] and logits_aux is None


def test_odd_image_sizes():
    model = NetworkCIFAR(4, 10, 3, False, DARTS_V2)
    assert model(paddle.randn([2, 3, 13, 11]))[0].shape == [2, 10]


def test_every_weight_is_trained():
    model = NetworkCIFAR(4, 10, 3, True, PC_DARTS)
    logits, logits_aux = model(paddle.randn([4, 3, 32, 32]))
    (logits.square().sum() + logits_aux.square().sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.trainable:
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_cells_with_other_concats():
    """AmoebaNet's cells concatenate three of five nodes."""
    with open(shared_file('reference', 'genotypes.json')) as f:
        amoeba = from_dict(json.load(f)['genotypes']['AmoebaNet'])
    model = NetworkCIFAR(4, 10, 3, False, amoeba)
    assert [cell.multiplier for cell in model.cells] == [3, 3, 3]
    assert model.classifier.weight.shape == [3 * 4 * 4, 10]


def test_dropout_before_the_classifier():
    paddle.seed(0)
    model = NetworkImageNet(8, 10, 3, False, PC_DARTS, dropout=0.5)
    seen = []
    model.classifier.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].numpy()))
    image = paddle.randn([8, 3, 64, 64])
    model(image)
    model.eval()
    model(image)
    assert 0.3 < (seen[0] == 0).mean() < 0.7 and (seen[1] == 0).mean() < 0.05


def test_counting_leaves_the_network_as_it_is():
    model = NetworkCIFAR(4, 10, 3, False, PC_DARTS)
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    assert count_macs(model, [3, 8, 8]) > 0 and model.training
    for name, value in model.state_dict().items():
        assert (value.numpy() == before[name]).all()


def test_none_edges_are_left_out():
    """A node is the sum of its remaining edges; a node without any is left out of the concatenation."""
    genotype = DARTS_V2._replace(
        normal=[('skip_connect', 0), ('none', 1), ('none', 0), ('none', 1), ('sep_conv_3x3', 3), ('skip_connect', 2),
                ('skip_connect', 3), ('none', 0)])
    model = NetworkCIFAR(4, 10, 3, False, genotype)
    cell = model.cells[0]
    assert cell.multiplier == 2 and not list(cell._ops[4].parameters())  # its source, state 3, has no input
    model.eval()
    image = paddle.randn([2, 12, 8, 8])
    node = cell.preprocess0(image)  # states 2 and 4: both are identities of state 0
    assert np.allclose(cell(image, image, 0.0).numpy(), paddle.concat([node, node], axis=1).numpy())
    assert model(paddle.randn([2, 3, 32, 32]))[0].shape == [2, 10]


@pytest.mark.parametrize('name', ['FairDARTS_c', 'FairDARTS_g', 'ASHA200_random_search', 'SETN', 'NASNet'])
def test_published_cells_with_none_edges_and_other_operations_train(name):
    model = NetworkCIFAR(4, 10, 3, False, get_genotype(name))
    model.set_drop_path_prob(0.2)
    model(paddle.randn([2, 3, 16, 16]))[0].square().sum().backward()
    used = [parameter for parameter in model.parameters() if parameter.trainable and parameter.grad is not None]
    assert used and all(np.isfinite(parameter.grad.numpy()).all() for parameter in used)


def test_genotypes_in_code_are_checked():
    with pytest.raises(ValueError, match='two for each node'):
        NetworkCIFAR(4, 10, 3, False, DARTS_V2._replace(normal=DARTS_V2.normal + DARTS_V2.normal[:1]))
    with pytest.raises(UserError, match='normal cell of the genotype has no edges'):
        NetworkCIFAR(4, 10, 3, False, DARTS_V2._replace(normal=[('none', 0)] * 8))
