"""What several tests share: the parity numbers, float64, running the scripts as a user does."""
import json
import os
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(os.path.dirname(ROOT), 'shared')
sys.path.insert(0, ROOT)

from kernels import compiled  # noqa: E402, F401  before Paddle, as the scripts do
from runtime.log import quiet_warnings  # noqa: E402

quiet_warnings()

WAIT = 600  # seconds that a test waits for a process at most; generous, for busy machines
PROGRAMS = os.path.join(ROOT, 'tests', 'programs')  # started by tests as processes of their own
needs_numba = pytest.mark.skipif(compiled.numba is None, reason='numba is not installed')


class Parity:
    """The folder of numbers that the authors' PyTorch code computed (environment variable PARITY_DIR)."""

    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, 'config.json')) as f:
            self.config = json.load(f)

    def load(self, name):
        """The arrays of a .npz, or the object of a .json; skips where the file is absent."""
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            pytest.skip(f'{path} is not there')
        if name.endswith('.json'):
            with open(path) as f:
                return json.load(f)
        with np.load(path) as arrays:
            return dict(arrays)

    def method(self, name):
        return 'PC-DARTS' if name.startswith('pcdarts') else 'DARTS'

    def supernet(self, name, arrays):
        """A float64 supernet with the weights and the architecture of a file."""
        from model_search import Network
        from nas.architect import weight_parameters
        method = self.method(name)
        model = Network(self.config['init_channels'][method], self.config['num_classes'], self.config['layers'], method)
        set_values(weight_parameters(model), ordered(arrays, 'w/'))
        for key, parameter in arch_parameters(model).items():
            parameter.set_value(arrays['arch/' + key])
        return model


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


def relative_error(value, expected):
    """The largest deviation, as a fraction of the largest expected value."""
    value, expected = np.asarray(value, 'float64'), np.asarray(expected, 'float64')
    assert value.shape == expected.shape
    return np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30)


def eval_logits(model, image, call=lambda model, image: model(image)):
    """The logits in eval mode after one train-mode pass over a batch, with Paddle's running variance and with
    PyTorch's.

    Paddle keeps the biased variance of a batch, PyTorch the unbiased one, n / (n - 1) times as large.
    """
    import paddle
    counts = []
    norms = [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    hooks = [layer.register_forward_pre_hook(
        lambda layer, x: counts.append((layer, x[0].size // x[0].shape[1]))) for layer in norms]
    model.train()
    call(model, image)
    for hook in hooks:
        hook.remove()
    model.eval()
    biased = call(model, image).numpy()
    assert counts and len(counts) <= len(norms)
    for layer, n in counts:
        layer._variance.set_value(0.9 + (layer._variance - 0.9) * (n / (n - 1)))
    return biased, call(model, image).numpy()


@pytest.fixture(scope='session')
def parity():
    folder = os.environ.get('PARITY_DIR', os.path.join(SHARED, 'parity'))
    if not os.path.isdir(folder):
        pytest.skip(f'the parity numbers are not there: {folder} (set PARITY_DIR)')
    return Parity(folder)


@pytest.fixture
def float64():
    """Make new networks and tensors double precision, as the parity numbers are."""
    import paddle
    paddle.set_default_dtype('float64')
    yield
    paddle.set_default_dtype('float32')


def arguments(**changes):
    """What the readers ask of a script's arguments."""
    return Namespace(**dict(dict(dataset='digits', data=None, seed=0, class_num=10, trainset_num=50000, cutout=False,
                                 cutout_length=16, use_multiprocess=False, num_workers=1, max_bad_images=0,
                                 image_size=None),
                            **changes))


def read(loader):
    """All images and labels of one pass over a loader."""
    images, labels = zip(*[(image.numpy(), label.numpy()) for image, label in loader])
    return np.concatenate(images), np.concatenate(labels)


def shared_file(*parts):
    """A path under shared/, which is not part of the project; skips where it is absent."""
    path = os.path.join(SHARED, *parts)
    if not os.path.exists(path):
        pytest.skip(f'{path} is not there')
    return path


@pytest.fixture
def script(tmp_path):
    """Run a script of the project in an empty folder: script('search.py', '--epochs=1') -> CompletedProcess with
    text."""
    def run(name, *arguments, timeout=300, **options):
        return subprocess.run([sys.executable, os.path.join(ROOT, name)] + list(arguments), cwd=str(tmp_path),
                              text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
                              **options)
    return run
