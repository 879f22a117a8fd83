"""The search against the authors' PyTorch code: the same weights and inputs must give the same numbers, in float64."""
import json

import numpy as np
import paddle
import pytest
from conftest import arch_parameters, as_paddle, eval_logits, ordered, relative_error, set_values

from genotypes import from_dict
from model_search import Network
from nas.architect import Architect, weight_parameters
from nas.searcher import DARTSearch
from operations import OPS

TOLERANCE = 1e-6
SECOND_ORDER_TOLERANCE = 1e-5  # rests on a finite difference

pytestmark = pytest.mark.usefixtures('float64')


def tensors(arrays, *keys):
    """Arrays as tensors; inputs may be stored as float32 and are float64 to the network."""
    return [paddle.to_tensor(arrays[key].astype('float64') if 'input' in key else arrays[key]) for key in keys]


def momentum_optimizer(model, learning_rate):
    return paddle.optimizer.Momentum(learning_rate, 0.9, parameters=weight_parameters(model), weight_decay=3e-4)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', sorted(OPS))
def test_operation(parity, name, stride):
    arrays = parity.load('ops.npz')
    prefix = f'{name}/stride{stride}/'
    case = {key[len(prefix):]: value for key, value in arrays.items() if key.startswith(prefix)}
    assert case, f'ops.npz has no {prefix}'
    op = OPS[name](case['input'].shape[1], stride, False)
    weights = [p for p in op.parameters() if p.trainable]
    set_values(weights, ordered(case, 'w/'))
    x = paddle.to_tensor(case['input'], stop_gradient=False)
    output = op(x)
    assert relative_error(output, case['output']) < TOLERANCE
    if name == 'none':  # Paddle sees that the output does not depend on the input
        assert output.stop_gradient and not case['input_grad'].any()
        return
    gradients = paddle.grad(output, [x] + weights, paddle.to_tensor(case['output_grad']))
    assert relative_error(gradients[0], case['input_grad']) < TOLERANCE
    assert len(gradients) - 1 == len(ordered(case, 'g/'))
    for gradient, expected in zip(gradients[1:], ordered(case, 'g/')):
        assert relative_error(gradient, expected) < TOLERANCE


@pytest.mark.parametrize('name', ['darts_supernet', 'pcdarts_supernet'])
class TestSupernet:

    def test_logits_loss_and_gradients(self, parity, name):
        arrays = parity.load(name + '.npz')
        model = parity.supernet(name, arrays)
        image, label = tensors(arrays, 'input', 'label')
        assert relative_error(model(image), arrays['logits']) < TOLERANCE

        loss = model._loss(image, label)
        assert relative_error(loss, arrays['loss']) < TOLERANCE
        arch, weights = arch_parameters(model), weight_parameters(model)
        gradients = paddle.grad(loss, list(arch.values()) + weights)
        for key, gradient in zip(arch, gradients):
            assert relative_error(gradient, arrays['grad/' + key]) < TOLERANCE, key
        wgrad = [gradient.numpy() for gradient in gradients[len(arch):]]
        norm = np.sqrt(sum((gradient**2).sum() for gradient in wgrad))
        assert relative_error(norm, arrays['grad_norm']) < TOLERANCE
        numbers = [int(key.split('/')[1]) for key in arrays if key.startswith('wgrad/')]
        assert numbers
        for i in numbers:
            assert relative_error(as_paddle(wgrad[i]), arrays[f'wgrad/{i:04d}']) < TOLERANCE, i

    def test_eval_logits(self, parity, name):
        """With PyTorch's unbiased running variance the logits agree; with Paddle's they are 6e-5 (DARTS) and 8e-6 (PC-DARTS)
        away."""
        arrays = parity.load(name + '.npz')
        biased, unbiased = eval_logits(parity.supernet(name, arrays), *tensors(arrays, 'input'))
        expected = arrays['logits_eval_after_one_train_forward']
        assert relative_error(unbiased, expected) < TOLERANCE < relative_error(biased, expected)

    def test_genotype(self, parity, name):
        arrays = parity.load(name + '.npz')
        assert parity.supernet(name, arrays).genotype() == from_dict(json.loads(str(arrays['genotype'])))


@pytest.mark.parametrize('velocity', ['zero_velocity', 'velocity'])
@pytest.mark.parametrize('name', ['darts_second_order', 'pcdarts_second_order'])
def test_second_order_gradient(parity, name, velocity):
    arrays = parity.load(name + '.npz')
    model = parity.supernet(name, arrays)
    optimizer = momentum_optimizer(model, float(arrays['eta']))
    if velocity == 'velocity':
        buffers = ordered({key: value for key, value in arrays.items() if 'arch_grad' not in key}, 'velocity/')
        assert len(buffers) == len(weight_parameters(model))
        give_velocity(optimizer, weight_parameters(model), buffers)
    architect = Architect(model, optimizer, unrolled=True, momentum=0.9, weight_decay=3e-4)
    before = [weight.numpy() for weight in weight_parameters(model)]
    gradients = architect.unrolled_gradient(
        *tensors(arrays, 'input_train', 'label_train', 'input_valid', 'label_valid'))
    for key, gradient in zip(arch_parameters(model), gradients):
        expected = arrays[f'{velocity}/arch_grad/{key}']
        assert relative_error(gradient, expected) < SECOND_ORDER_TOLERANCE, key
    for weight, value in zip(weight_parameters(model), before):
        assert (weight.numpy() == value).all()  # back to the last bit
        assert weight.grad is None  # nothing that the weight step could take up


def give_velocity(optimizer, weights, buffers):
    """Let a new Momentum optimizer have these velocities: a step with zero gradients makes its state, then it is loaded."""
    values = [weight.numpy() for weight in weights]
    for weight in weights:
        weight.grad = paddle.zeros_like(weight)
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)
    for weight, value in zip(weights, values):
        weight.set_value(value)
    state = optimizer.state_dict()
    for weight, buffer in zip(weights, buffers):
        state[weight.name + '_velocity_0'].set_value(as_paddle(buffer))


@pytest.mark.parametrize('name', ['darts_first_order_trajectory', 'darts_second_order_trajectory',
                                  'pcdarts_first_order_trajectory'])
def test_trajectory(parity, name, tmp_path):
    """Some steps of the searcher itself: loss, architecture and weights after each."""
    arrays = parity.load(name + '.npz')
    model = parity.supernet(name, arrays)
    tolerance = SECOND_ORDER_TOLERANCE if 'second' in name else TOLERANCE
    searcher = DARTSearch(model, lambda: [], lambda: [], paddle.CPUPlace(), learning_rate=0.025, learning_rate_min=0.025,
                          unrolled='second' in name, num_epochs=1, save_dir=str(tmp_path))
    steps = sorted({int(key.split('/')[0][4:]) for key in arrays if key.startswith('step')})
    assert steps
    for step in steps:
        at = {key.split('/', 1)[1]: value for key, value in arrays.items() if key.startswith(f'step{step}/')}
        model.train()
        loss, _ = searcher.train_step(*tensors(at, 'input_train', 'label_train', 'input_valid', 'label_valid'))
        assert relative_error(loss, at['train_loss']) < tolerance, step
        for key, parameter in arch_parameters(model).items():
            assert relative_error(parameter, at['arch/' + key]) < tolerance, (step, key)
        weights = [weight.numpy() for weight in weight_parameters(model)]
        norm = np.sqrt(sum((weight**2).sum() for weight in weights))
        total = sum(weight.sum() for weight in weights)
        # The sum of all weights is small beside the weights: its error is measured against their norm.
        assert abs(total - at['weights_sum_norm'][0]) / norm < tolerance, step
        assert relative_error(norm, at['weights_sum_norm'][1]) < tolerance, step
    for key in (key for key in arrays if key.startswith('final/')):
        assert relative_error(as_paddle(weights[int(key.split('/')[1])]), arrays[key]) < tolerance, key


def test_genotypes(parity):
    cases = parity.load('genotypes.json')
    assert cases
    for number, case in enumerate(cases):
        model = Network(4, 10, 1, case['method'])
        for key, parameter in arch_parameters(model).items():
            parameter.set_value(np.asarray(case['arch'][key]))
        assert model.genotype() == from_dict(case['genotype']), number
