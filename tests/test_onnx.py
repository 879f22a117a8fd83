"""--export --format=onnx: the logits of the ONNX model, in another process, are those of the trained network.

Needs paddle2onnx (the version for this Paddle, training/export.py) and onnxruntime; without them the conversion is
skipped and only the refusals are tested.
"""
import importlib.metadata
import importlib.util
import random
import subprocess

import numpy as np
import paddle
import pytest
from conftest import check_refusal, command, relative_error, run

import training.export
from genotypes import PC_DARTS, get_genotype, named_genotypes, published_genotypes, random_genotype
from model import NetworkCIFAR, NetworkImageNet
from runtime.errors import UserError
from training.export import check_paddle2onnx, convert, export, save_inference

SIZES = {NetworkCIFAR: 32, NetworkImageNet: 64}  # pixels a side
BATCHES = (1, 2, 5)
NAMED = {name: get_genotype(name) for name in [*named_genotypes(), *published_genotypes()]}
RANDOM = {f'random{seed}': random_genotype(random.Random(seed)) for seed in range(20)}


def missing():
    """Why networks cannot be converted and run here; '' where they can."""
    try:
        check_paddle2onnx()
    except UserError as error:
        return str(error)
    return '' if importlib.util.find_spec('onnxruntime') else 'the package onnxruntime is not installed'


needs_onnx = pytest.mark.skipif(bool(missing()), reason=missing())


def a_network(network_class, genotype, layers=4):
    """A network of random weights and running statistics: a normal cell, two reduction cells, a normal cell."""
    paddle.seed(0)
    network = network_class(4, 10, layers, False, genotype)
    for name, value in network.state_dict().items():
        if name.endswith(('_mean', '_variance')):
            value.set_value(paddle.rand(value.shape) + 0.5)
    network.eval()
    return network


def errors_of(folder, networks, network_class):
    """The largest relative error of each model folder/NAME.onnx, run in a new process -> {name: error}."""
    side = SIZES[network_class]
    images = np.random.default_rng(0).normal(size=(max(BATCHES), 3, side, side)).astype('float32')
    np.save(str(folder / 'images.npy'), images)
    result = run(folder, 'run_onnx.py', str(folder), *map(str, BATCHES))
    assert result.returncode == 0, result.stderr
    errors = {}
    for name, network in networks.items():
        expected = network(paddle.to_tensor(images))[0].numpy()
        found = np.load(str(folder / f'{name}.npz'))
        errors[name] = max(relative_error(found[str(n)], expected[:n]) for n in BATCHES)
    return errors


@needs_onnx
@pytest.mark.parametrize('network_class', list(SIZES))
@pytest.mark.parametrize('genotypes', [NAMED, RANDOM], ids=['named', 'random'])
def test_every_cell_gives_the_logits_of_its_network(network_class, genotypes, tmp_path):
    """Converted in this process, which saves starting one for each."""
    networks = {name: a_network(network_class, genotype) for name, genotype in genotypes.items()}
    side = SIZES[network_class]
    for name, network in networks.items():
        save_inference(network, str(tmp_path / name), [3, side, side])
        convert(str(tmp_path / name), str(tmp_path / f'{name}.onnx'))
    errors = errors_of(tmp_path, networks, network_class)
    print(network_class.__name__, max(errors.values()))
    assert len(errors) == len(genotypes) and max(errors.values()) < 1e-4, errors


@needs_onnx
@pytest.mark.parametrize('network_class', list(SIZES))
def test_an_exported_network_takes_batches_of_any_size(network_class, tmp_path, capfd):
    network, side = a_network(network_class, PC_DARTS), SIZES[network_class]
    for name in ('plain', 'ending.onnx'):
        export(network, str(tmp_path / 'models' / name), [3, side, side], 'onnx')
    assert capfd.readouterr().out == ''.join(f'exported to {tmp_path}/models/{name}.onnx\n'
                                             for name in ('plain', 'ending'))
    assert sorted(path.name for path in (tmp_path / 'models').iterdir()) == ['ending.onnx', 'plain.onnx']
    errors = errors_of(tmp_path / 'models', {'plain': network, 'ending': network}, network_class)
    assert max(errors.values()) < 1e-4


@needs_onnx
def test_a_network_that_cannot_be_converted_leaves_one_line_and_no_file(tmp_path, monkeypatch):
    network = a_network(NetworkCIFAR, PC_DARTS, layers=1)
    for program, message in (('print("noise"); print("no such operation"); raise SystemExit(3)', 'no such operation'),
                             ('import os; os.abort()', 'its process ended with status -6'),
                             ('pass', 'its process ended with status 0')):
        monkeypatch.setattr(training.export, 'CONVERT', program)
        with pytest.raises(UserError) as error:
            export(network, str(tmp_path / 'm'), [3, 32, 32], 'onnx')
        assert str(error.value) == f'--format: paddle2onnx did not convert the network: {message}'
        assert error.value.status == 1 and list(tmp_path.iterdir()) == []
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='cannot write .*/file/m.onnx: '):
        export(network, str(tmp_path / 'file' / 'm'), [3, 32, 32], 'onnx')


@pytest.mark.parametrize('paddle_version, installed, message', [
    ('3.3.1', None, 'paddle2onnx, which is not installed: python -m pip install paddle2onnx==2.1.0'),
    ('2.6.2', None, 'paddle2onnx, which is not installed: python -m pip install paddle2onnx==1.3.1'),
    ('3.3.1', '1.3.1', 'paddle2onnx 1.3.1 does not go with Paddle 3.3.1: python -m pip install paddle2onnx==2.1.0'),
    ('2.6.2', '2.1.0', 'paddle2onnx 2.1.0 does not go with Paddle 2.6.2: python -m pip install paddle2onnx==1.3.1'),
    ('3.3.1', '2.0.1', None), ('2.6.2', '1.2.11', None)])
def test_what_to_install(paddle_version, installed, message, tmp_path, monkeypatch):
    def version(name):
        assert name == 'paddle2onnx'
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(paddle, '__version__', paddle_version)
    monkeypatch.setattr(importlib.metadata, 'version', version)
    if message is None:
        check_paddle2onnx()
        return
    with pytest.raises(UserError) as error:
        export(None, str(tmp_path / 'm'), [3, 32, 32], 'onnx')
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('flags, message', [
    (['--format=onnx'], 'argument --format: goes with --export'),
    (['--format=torch'], "argument --format: 'torch' is not allowed: give one of paddle, onnx"),
    (['--format=onnx', '--export=m'], 'argument --export: give the network with --pretrained')])
def test_wrong_flags(flags, message):
    for name in ('train.py', 'train_imagenet.py'):
        check_refusal(subprocess.run(command(name, *flags), text=True, capture_output=True), message)
