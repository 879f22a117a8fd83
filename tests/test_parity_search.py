"""The search against the authors' PyTorch code: the same weights and inputs must give the same numbers, in float64."""
import glob
import json
import os

import numpy as np
import paddle
import pytest
from conftest import relative_error
from parity import EXTRACT, arch_parameters, as_paddle, eval_logits, in_sets, ordered, parity_set, set_values

from genotypes import from_dict
from model_search import Network
from nas import accelerate
from nas.architect import Architect, weight_parameters
from nas.options import WeightOptions
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
@pytest.mark.parametrize('operation', sorted(set(OPS) - {'conv_3x1_1x3'}))  # which the authors' list does not have
@in_sets('ops.npz')
def test_operation(parity, name, operation, stride):
    arrays = parity.load(name)
    prefix = f'{operation}/stride{stride}/'
    case = {key[len(prefix):]: value for key, value in arrays.items() if key.startswith(prefix)}
    assert case, f'ops.npz has no {prefix}'
    op = OPS[operation](case['input'].shape[1], stride, False)
    weights = [p for p in op.parameters() if p.trainable]
    set_values(weights, ordered(case, 'w/'))
    x = paddle.to_tensor(case['input'], stop_gradient=False)
    output = op(x)
    assert relative_error(output, case['output']) < TOLERANCE
    if operation == 'none':  # Paddle sees that the output does not depend on the input
        assert output.stop_gradient and not case['input_grad'].any()
        return
    gradients = paddle.grad(output, [x] + weights, paddle.to_tensor(case['output_grad']))
    assert relative_error(gradients[0], case['input_grad']) < TOLERANCE
    assert len(gradients) - 1 == len(ordered(case, 'g/'))
    for gradient, expected in zip(gradients[1:], ordered(case, 'g/')):
        assert relative_error(gradient, expected) < TOLERANCE


@in_sets('darts_supernet.npz', 'pcdarts_supernet.npz')
class TestSupernet:

    @pytest.fixture(params=[False, True], ids=['plain', 'accelerated'])
    def build(self, request):
        """A function that builds the supernet of a file, as it is defined or accelerated."""
        def build(parity, name, arrays):
            model = parity.supernet(name, arrays)
            return accelerate(model) if request.param else model
        return build

    def test_logits_loss_and_gradients(self, parity, name, build):
        arrays = parity.load(name)
        model = build(parity, name, arrays)
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

    def test_eval_logits(self, parity, name, build):
        """They agree with PyTorch's unbiased running variance; with Paddle's they are 6e-5 and 8e-6 away."""
        arrays = parity.load(name)
        biased, unbiased = eval_logits(build(parity, name, arrays), *tensors(arrays, 'input'))
        expected = arrays['logits_eval_after_one_train_forward']
        assert relative_error(unbiased, expected) < TOLERANCE < relative_error(biased, expected)

    def test_genotype(self, parity, name):
        arrays = parity.load(name)
        assert parity.supernet(name, arrays).genotype() == from_dict(json.loads(str(arrays['genotype'])))


@pytest.mark.parametrize('velocity', ['zero_velocity', 'velocity'])
@in_sets('darts_second_order.npz', 'pcdarts_second_order.npz')
def test_second_order_gradient(parity, name, velocity):
    """At the start of a search, where momentum is zero, and later; the extract has the former only."""
    arrays = parity.load(name)
    if not any(key.startswith(velocity + '/') for key in arrays):
        pytest.skip(f'{name} of the extract has no {velocity}')
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
        assert (weight.numpy() == value).all()  # restored to the last bit
        assert weight.grad is None  # nothing that the weight step could take up


def give_velocity(optimizer, weights, buffers):
    """Give a new Momentum optimizer these velocities: a step with zero gradients makes its state to write to."""
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


@in_sets('darts_first_order_trajectory.npz', 'darts_second_order_trajectory.npz', 'pcdarts_first_order_trajectory.npz')
def test_trajectory(parity, name, tmp_path):
    """Several steps of the searcher itself: loss, architecture parameters and weights after each."""
    arrays = parity.load(name)
    model = parity.supernet(name, arrays)
    tolerance = SECOND_ORDER_TOLERANCE if 'second' in name else TOLERANCE
    searcher = DARTSearch(model, lambda: [], lambda: [], paddle.CPUPlace(), learning_rate=0.025,
                          weight=WeightOptions(learning_rate_min=0.025), unrolled='second' in name, num_epochs=1,
                          save_dir=str(tmp_path))
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


@in_sets('genotypes.json')
def test_genotypes(parity, name):
    cases = parity.load(name)
    assert cases
    models = {method: Network(4, 10, 1, method) for method in {case['method'] for case in cases}}
    for number, case in enumerate(cases):
        model = models[case['method']]
        for key, parameter in arch_parameters(model).items():
            parameter.set_value(np.asarray(case['arch'][key]))
        assert model.genotype() == from_dict(case['genotype']), number


@pytest.mark.parametrize('name', sorted(os.path.basename(path) for path in glob.glob(os.path.join(EXTRACT, '*.npz'))))
def test_the_extract_is_part_of_the_full_set(name):
    """Also the weights and inputs that the extract stores as PyTorch's seeds: those are computed here, and numpy's
    logarithms and cosines differ in the last bit from one processor to another."""
    extract, full = parity_set('extract').load(name), parity_set('full').load(name)
    assert len(extract) > (5 if 'draws' in name else 100)
    for key, value in extract.items():
        if value.dtype.kind == 'f':
            drawn = key.startswith(('w/', 'input'))
            np.testing.assert_allclose(value, full[key], rtol=2**-50 * drawn, atol=2**-53 * drawn, err_msg=key)
        else:
            assert (value == full[key]).all(), key
