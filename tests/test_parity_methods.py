"""GDAS, DrNAS, FairDARTS and DARTS- against their authors' PyTorch code, in float64: the same weights, inputs and
noise."""
import json
import re

import numpy as np
import paddle
import pytest
from conftest import relative_error
from parity import as_paddle, eval_logits, in_sets, ordered

from model_search import Network
from nas.architect import weight_parameters
from nas.methods import METHODS, dirichlet_jacobian
from nas.options import ArchOptions, WeightOptions
from nas.searcher import DARTSearch
from nas.stages import begin_stage

TOLERANCE = 1e-6
KINDS = 'normal', 'reduce'

pytestmark = pytest.mark.usefixtures('float64')


def our_name(name):
    """The name of a weight of the authors' code in our network; GDAS's code has other names for edges and
    operations."""
    def edge(match):
        node, source = int(match.group(1)), int(match.group(2))
        return f'_ops.{sum(range(2, 2 + node)) + source}.'
    name = re.sub(r'edges\.(\d+)<-(\d+)\.', edge, name)
    name = re.sub(r'op_a\.op\.', 'op.', name)
    name = re.sub(r'op_b\.op\.(\d+)', lambda match: f'op.{4 + int(match.group(1))}', name)
    return name.replace('convs.0.', 'conv_1.').replace('convs.1.', 'conv_2.')


def weight_names(arrays):
    """Our names of the weights in the order of the file."""
    return [our_name(key.split('/', 2)[2]) for key in sorted(arrays) if key.startswith('w/')]


def supernet(arrays, method, sizes=None):
    """A network with the weights and the architecture of a file, and its weights in the order of the file."""
    sizes = sizes or arrays
    model = Network(int(sizes['init_channels']), int(sizes['num_classes']), int(sizes['layers']), method)
    parameters = dict(model.named_parameters())
    names = weight_names(arrays)
    assert {id(parameters[name]) for name in names} == {id(weight) for weight in weight_parameters(model)}
    weights = [parameters[name] for name in names]
    for weight, value in zip(weights, ordered(arrays, 'w/')):
        weight.set_value(as_paddle(value))
    set_alphas(model, {kind: arrays[f'arch/alphas_{kind}'] for kind in KINDS})
    return model, weights


def set_alphas(model, alphas):
    for kind in KINDS:
        getattr(model, 'alphas_' + kind).set_value(np.asarray(alphas[kind]))


def tensors(arrays, *keys):
    return [paddle.to_tensor(arrays[key].astype('float64') if 'input' in key else arrays[key]) for key in keys]


def check_supernet(arrays, model, weights, expected_grad='grad/', before_pass=lambda: None):
    """Logits, loss and the gradients by alphas and weights."""
    image, label = tensors(arrays, 'input', 'label')
    before_pass()
    assert relative_error(model(image), arrays['logits']) < TOLERANCE
    before_pass()
    loss = model._loss(image, label)
    assert relative_error(loss, arrays['loss']) < TOLERANCE
    gradients = paddle.grad(loss, model.arch_parameters() + weights, allow_unused=True)
    for kind, gradient in zip(KINDS, gradients):
        assert relative_error(gradient, arrays[f'{expected_grad}alphas_{kind}']) < TOLERANCE, kind
    check_weight_gradients(arrays, gradients[2:])


def check_weight_gradients(arrays, gradients):
    values = [0.0 if gradient is None else gradient.numpy() for gradient in gradients]
    norm = np.sqrt(sum(np.square(value).sum() for value in values))
    assert relative_error(norm, arrays['grad_norm']) < TOLERANCE
    numbers = [int(key.split('/')[1]) for key in arrays if key.startswith('wgrad/')]
    assert numbers
    for i in numbers:
        value = as_paddle(np.broadcast_to(values[i], as_paddle(arrays[f'wgrad/{i:04d}']).shape))
        assert np.abs(value - arrays[f'wgrad/{i:04d}']).max() < TOLERANCE * \
                      max(np.abs(arrays[f'wgrad/{i:04d}']).max(), 1e-8), i


def check_eval(arrays, model, call=lambda model, image: model(image)):
    _, logits = eval_logits(model, *tensors(arrays, 'input'), call)
    assert relative_error(logits, arrays['logits_eval_after_one_train_forward']) < TOLERANCE


def searcher_for(model, tmp_path, learning_rate, arch_learning_rate, weight_decay=3e-4):
    return DARTSearch(model, lambda: [], lambda: [], paddle.CPUPlace(), learning_rate=learning_rate, num_epochs=1,
                      arch_learning_rate=arch_learning_rate, save_dir=str(tmp_path),
                      arch=ArchOptions(weight_decay=1e-3),
                      weight=WeightOptions(weight_decay=weight_decay, learning_rate_min=learning_rate))


def check_trajectory(arrays, model, weights, search, before_step=lambda at: None):
    """Some steps of the searcher: the loss, alphas and weights after each."""
    steps = sorted({int(key.split('/')[0][4:]) for key in arrays if key.startswith('step')})
    assert steps
    model.train()
    for step in steps:
        at = {key.split('/', 1)[1]: value for key, value in arrays.items() if key.startswith(f'step{step}/')}
        before_step(at)
        loss, _ = search.train_step(*tensors(at, 'input_train', 'label_train', 'input_valid', 'label_valid'))
        assert relative_error(loss, at['train_loss']) < TOLERANCE, step
        if hasattr(search, 'clip_norm'):
            assert relative_error(search.clip_norm, at['clip_norm']) < TOLERANCE, step
        for kind in KINDS:
            value = getattr(model, 'alphas_' + kind)
            assert relative_error(value, at['arch/alphas_' + kind]) < TOLERANCE, (step, kind)
        values = [weight.numpy() for weight in weights]
        norm = np.sqrt(sum((value**2).sum() for value in values))
        assert abs(sum(value.sum() for value in values) - at['weights_sum_norm'][0]) / norm < TOLERANCE, step
        assert relative_error(norm, at['weights_sum_norm'][1]) < TOLERANCE, step
    numbers = [int(key.split('/')[1]) for key in arrays if key.startswith('final/')]
    assert numbers
    for i in numbers:
        assert relative_error(as_paddle(values[i]), arrays[f'final/{i:04d}']) < TOLERANCE, i


def genotypes_of(parity, name, method):
    """(expected, ours) of every case of a file of genotypes."""
    data = parity.load(name)
    assert data['cases']
    model = Network(12, 10, 1, method)
    for case in data['cases']:
        set_alphas(model, {kind: case['arch']['alphas_' + kind] for kind in KINDS})
        yield case['genotype'], model.genotype()


# ---------------------------------------------------------------------------------------------------------------------
# FairDARTS
# ---------------------------------------------------------------------------------------------------------------------


def check_sparse_cell(expected, cell, concat):
    """The authors list the kept edges as (operation, node, state); ours writes `none` for the others."""
    kept = [[name, 2 + i // 2, state] for i, (name, state) in enumerate(cell) if name != 'none']
    assert sorted(kept) == sorted(map(list, expected)) and len(cell) == 8
    assert list(concat) == sorted({node for _, node, _ in kept})


class TestFairDARTS:

    @in_sets('fairdarts_supernet.npz')
    def test_supernet(self, parity, name):
        arrays = parity.load(name)
        model, weights = supernet(arrays, 'FairDARTS')
        check_supernet(arrays, model, weights)
        regularizer = model.method.regularizer(model.arch_parameters())
        assert relative_error(regularizer, arrays['loss_regularizer']) < TOLERANCE
        for kind, gradient in zip(KINDS, paddle.grad(regularizer, model.arch_parameters())):
            assert relative_error(gradient, arrays['grad_regularizer/alphas_' + kind]) < TOLERANCE
        genotype, expected = model.genotype(), json.loads(str(arrays['genotype']))
        check_sparse_cell(expected['normal'], genotype.normal, genotype.normal_concat)
        check_sparse_cell(expected['reduce'], genotype.reduce, genotype.reduce_concat)
        model, _ = supernet(arrays, 'FairDARTS')  # with fresh running statistics
        check_eval(arrays, model)

    @in_sets('fairdarts_trajectory.npz')
    def test_trajectory(self, parity, name, tmp_path):
        arrays = parity.load(name)
        model, weights = supernet(arrays, 'FairDARTS', parity.load('fairdarts_supernet.npz'))
        check_trajectory(arrays, model, weights, searcher_for(model, tmp_path, 0.005, 3e-3))

    @in_sets('fairdarts_genotypes.json')
    def test_genotypes(self, parity, name):
        for expected, ours in genotypes_of(parity, name, 'FairDARTS'):
            check_sparse_cell(expected['normal'], ours.normal, ours.normal_concat)
            check_sparse_cell(expected['reduce'], ours.reduce, ours.reduce_concat)

    def test_initial_alphas_are_zero(self):
        model = Network(4, 10, 1, 'FairDARTS')
        assert not any(alphas.numpy().any() for alphas in model.arch_parameters())


# ---------------------------------------------------------------------------------------------------------------------
# DARTS-
# ---------------------------------------------------------------------------------------------------------------------


def set_beta(model, beta):
    """Let the linear schedule give beta."""
    model.set_epoch(1 - float(beta), 1)
    assert model.method.skip_weight == pytest.approx(float(beta), abs=1e-12)


class TestDARTSMinus:

    @in_sets('dartsminus_supernet.npz')
    def test_supernet(self, parity, name):
        arrays = parity.load(name)
        model, weights = supernet(arrays, 'DARTS-')
        for beta in (0, 1):
            set_beta(model, beta)
            assert relative_error(model(*tensors(arrays, 'input')), arrays[f'logits_beta{beta}']) < TOLERANCE
        model, weights = supernet(arrays, 'DARTS-')
        set_beta(model, arrays['beta'])
        check_supernet(arrays, model, weights)
        expected, ours = json.loads(str(arrays['genotype'])), model.genotype()
        assert [ours.normal, ours.reduce] == [list(map(tuple, expected[kind])) for kind in KINDS]
        model, _ = supernet(arrays, 'DARTS-')
        set_beta(model, arrays['beta'])
        check_eval(arrays, model)

    @in_sets('dartsminus_trajectory.npz')
    def test_trajectory(self, parity, name, tmp_path):
        arrays = parity.load(name)
        model, weights = supernet(arrays, 'DARTS-', parity.load('dartsminus_supernet.npz'))
        check_trajectory(arrays, model, weights, searcher_for(model, tmp_path, 0.025, 3e-4),
                         lambda at: set_beta(model, at['beta']))

    @in_sets('dartsminus_genotypes.json')
    def test_genotypes(self, parity, name):
        for expected, ours in genotypes_of(parity, name, 'DARTS-'):
            assert [ours.normal, ours.reduce] == [list(map(tuple, expected[kind])) for kind in KINDS]

    @pytest.mark.parametrize('decay', ['linear', 'cosine', 'slow_cosine', 'constant'])
    @in_sets('dartsminus_schedule.json')
    def test_schedule(self, parity, name, decay):
        schedule = parity.load(name)
        method = METHODS['DARTS-'](decay=decay)
        expected = schedule['beta_by_epoch' + ('' if decay == 'linear' else '_' + decay)]
        for epoch, beta in enumerate(expected):
            method.set_epoch(epoch, schedule['epochs'])
            assert method.skip_weight == pytest.approx(beta, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# GDAS
# ---------------------------------------------------------------------------------------------------------------------


def give_noise(model, arrays, *prefixes):
    """Let the next passes of a GDAS network use the Gumbel noise of a file: of each prefix, normal and reduce."""
    noise = [paddle.to_tensor(arrays[f'{prefix}gumbel_{kind}']) for prefix in prefixes for kind in KINDS]
    model.method.draw_gumbel = lambda alphas: noise.pop(0)


def set_tau(model, tau):
    model.set_epoch((10 - float(tau)) / 9.9, 2)
    assert model.method.tau == pytest.approx(float(tau), abs=1e-12)


class TestGDAS:

    OPERATIONS = {'dua_sepc_3x3': 'sep_conv_3x3', 'dua_sepc_5x5': 'sep_conv_5x5', 'dil_sepc_3x3': 'dil_conv_3x3',
                  'dil_sepc_5x5': 'dil_conv_5x5'}

    def pairs(self, cell):
        return [(self.OPERATIONS.get(pair[0], pair[0]), pair[1]) for node in cell for pair in node]

    @in_sets('gdas_supernet.npz')
    def test_supernet(self, parity, name):
        arrays = parity.load(name)
        model, weights = supernet(arrays, 'GDAS')
        set_tau(model, arrays['tau'])
        check_supernet(arrays, model, weights, before_pass=lambda: give_noise(model, arrays, ''))
        expected, ours = json.loads(str(arrays['genotype'])), model.genotype()
        assert [ours.normal, ours.reduce] == [self.pairs(expected[kind]) for kind in KINDS]

    @in_sets('gdas_supernet.npz')
    def test_eval(self, parity, name):
        arrays = parity.load(name)
        model, _ = supernet(arrays, 'GDAS')
        set_tau(model, arrays['tau'])

        def call(model, image):
            give_noise(model, arrays, '' if model.training else 'eval_')
            return model(image)
        check_eval(arrays, model, call)

    @in_sets('gdas_draws.npz')
    def test_draws(self, parity, name):
        arrays = parity.load(name)
        cases = sorted({key.split('/')[0] for key in arrays})
        assert cases
        for case in cases:
            at = {key.split('/', 1)[1]: value for key, value in arrays.items() if key.startswith(case + '/')}
            method = METHODS['GDAS']()
            method.set_epoch((10 - float(at['tau'])) / 9.9, 2)
            method.draw_gumbel = lambda alphas, at=at: paddle.to_tensor(at['gumbel'])
            alphas = paddle.to_tensor(at['alphas'], stop_gradient=False)
            weights = method.operation_weights(alphas)
            assert np.abs(weights.numpy() - at['weights']).max() < TOLERANCE
            gradient, = paddle.grad(weights, [alphas], paddle.to_tensor(at['upstream']))
            assert relative_error(gradient, at['grad_alphas']) < TOLERANCE

    @in_sets('gdas_trajectory.npz', 'gdas_trajectory_torch2.npz')
    def test_trajectory(self, parity, name, tmp_path):
        """torch2: with PyTorch 2's zero_grad, weights that are not drawn stay as they are."""
        arrays, moves = parity.load(name), name == 'gdas_trajectory.npz'
        model, weights = supernet(arrays, 'GDAS', parity.load('gdas_supernet.npz'))
        model.method.undrawn_weights_move = moves
        set_tau(model, arrays['tau'])
        check_trajectory(arrays, model, weights, searcher_for(model, tmp_path, 0.025, 3e-4, weight_decay=5e-4),
                         lambda at: give_noise(model, at, 'train_', 'valid_'))

    @in_sets('gdas_genotypes.json')
    def test_genotypes(self, parity, name):
        for expected, ours in genotypes_of(parity, name, 'GDAS'):
            assert [ours.normal, ours.reduce] == [self.pairs(expected[kind]) for kind in KINDS]

    @in_sets('gdas_schedule.json')
    def test_schedule(self, parity, name):
        schedule = parity.load(name)
        method = METHODS['GDAS']()
        for epoch, tau in enumerate(schedule['tau_by_epoch']):
            method.set_epoch(epoch, schedule['epochs'])
            assert method.tau == pytest.approx(tau, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# DrNAS
# ---------------------------------------------------------------------------------------------------------------------


def drnas(partial):
    return METHODS['DrNAS'](partial=int(partial))


def give_theta(model, arrays, *prefixes):
    """Let the next passes of a DrNAS network use the draws of a file: of each prefix, normal and reduce."""
    draws = [arrays[f'{prefix}theta_{kind}'] for prefix in prefixes for kind in KINDS]
    model.method.draw_theta = lambda concentration: draws.pop(0)


def set_masks(model, masks):
    for kind in KINDS:
        getattr(model, 'mask_' + kind).set_value(np.asarray(masks[kind], 'float64'))


class TestDrNAS:

    @in_sets('drnas_supernet.npz', 'drnas_full_channels_supernet.npz', 'drnas_second_stage_supernet.npz')
    def test_supernet(self, parity, name):
        arrays = parity.load(name)

        def network():
            model, weights = supernet(arrays, drnas(arrays['partial']))
            if 'mask/normal' in arrays:
                set_masks(model, {kind: arrays['mask/' + kind] for kind in KINDS})
            return model, weights
        model, weights = network()
        check_supernet(arrays, model, weights, 'grad_exact/', lambda: give_theta(model, arrays, ''))
        give_theta(model, arrays, '')
        for kind, gradient in zip(KINDS, paddle.grad(model._loss(*tensors(arrays, 'input', 'label')),
                                                     model.arch_parameters())):
            # PyTorch's Jacobian is an approximation
            assert relative_error(gradient, arrays['grad/alphas_' + kind]) < 2e-3
        expected, ours = json.loads(str(arrays['genotype'])), model.genotype()
        assert [ours.normal, ours.reduce] == [list(map(tuple, expected[kind])) for kind in KINDS]
        model, _ = network()

        def call(model, image):
            give_theta(model, arrays, '' if model.training else 'eval_')
            return model(image)
        check_eval(arrays, model, call)
        if 'kl/regularizer' in arrays:
            model.method.kl_weight = 1e-3
            term = model.method.regularizer(model.arch_parameters())
            assert relative_error(term, arrays['kl/regularizer']) < TOLERANCE
            for kind, gradient in zip(KINDS, paddle.grad(term, model.arch_parameters())):
                assert relative_error(gradient, arrays['kl/grad_regularizer/alphas_' + kind]) < TOLERANCE

    @in_sets('drnas_draws.npz')
    def test_draws(self, parity, name):
        arrays = parity.load(name)
        cases = sorted({key.split('/')[0] for key in arrays})
        assert cases
        for case in cases:
            at = {key.split('/', 1)[1]: value for key, value in arrays.items() if key.startswith(case + '/')}
            method = drnas(1)
            concentration = np.where(at['alphas'] > 0, at['alphas'] + 1, np.exp(at['alphas']))
            assert relative_error(dirichlet_jacobian(at['theta'], concentration), at['jacobian_exact']) < TOLERANCE
            method.draw_theta = lambda concentration, at=at: at['theta']
            alphas = paddle.to_tensor(at['alphas'], stop_gradient=False)
            weights = method.operation_weights(alphas)
            assert np.abs(weights.numpy() - at['theta']).max() < TOLERANCE
            gradient, = paddle.grad(weights, [alphas], paddle.to_tensor(at['upstream']))
            assert relative_error(gradient, at['grad_exact_alphas']) < TOLERANCE

    def test_trajectory(self, parity, tmp_path):
        """Adam's steps depend on gradients whose Jacobian PyTorch approximates: alphas within 2e-3 of the learning
        rate's steps."""
        arrays = parity.load('drnas_trajectory.npz')
        model, weights = supernet(arrays, drnas(arrays['partial']), parity.load('drnas_supernet.npz'))
        search = searcher_for(model, tmp_path, 0.1, 6e-4)

        def before_step(at):
            give_theta(model, at, 'valid_', 'train_')
            step = search.architect.step

            def checked(*batches):
                search.architect.step = step
                gradients = search.architect.gradient
                found = []
                search.architect.gradient = lambda *options: found.extend(gradients(*options)) or found
                step(*batches)
                search.architect.gradient = gradients
                for kind, gradient in zip(KINDS, found):
                    assert relative_error(gradient, at['arch_grad/alphas_' + kind]) < 2e-3
                    moved = getattr(model, 'alphas_' + kind).numpy()
                    assert np.abs(moved - at['arch/alphas_' + kind]).max() < 0.05 * 6e-4
                set_alphas(model, {kind: at['arch/alphas_' + kind] for kind in KINDS})
            search.architect.step = checked
        check_trajectory(arrays, model, weights, search, before_step)

    def test_widening(self, parity):
        arrays = parity.load('drnas_widening.npz')
        model, weights = supernet(arrays, drnas(arrays['partial']), parity.load('drnas_supernet.npz'))

        def choose(name, axis, size, count):
            key = f'{"in" if axis else "out"}_index/{name}'
            return arrays[key] if key in arrays else np.zeros(count, 'int64')  # running statistics of batch norms
        widenings = begin_stage(model, int(arrays['partial_after']), int(arrays['num_keep']), choose)
        for kind in KINDS:
            assert (getattr(model, 'alphas_' + kind).numpy() == arrays['arch_after/alphas_' + kind]).all()
            assert (getattr(model, 'mask_' + kind).numpy() == arrays['mask/' + kind]).all()
        parameters = dict(model.named_parameters())
        for name, value in zip(weight_names(arrays), ordered(arrays, 'w_after/')):
            assert (parameters[name].numpy() == as_paddle(value)).all(), name
        velocities = [key.split('/')[1] for key in arrays if key.startswith('velocity/')]
        assert velocities and weights
        for number in velocities:
            widening, velocity = widenings.get(id(weights[int(number)])), arrays['velocity/' + number]
            velocity = widening.apply(velocity) if widening else velocity
            assert (velocity == arrays['velocity_after/' + number]).all(), number
        expected, ours = json.loads(str(arrays['genotype_after'])), model.genotype()
        assert [ours.normal, ours.reduce] == [list(map(tuple, expected[kind])) for kind in KINDS]

    @in_sets('drnas_genotypes.json')
    def test_genotypes(self, parity, name):
        data = parity.load(name)
        model = Network(12, 10, 1, 'DrNAS')
        assert data['cases'] and list(model.method.primitives) == data['primitives']
        ones = {kind: np.ones([14, 7]) for kind in KINDS}
        for case in data['cases']:
            if case.get('before_pruning'):
                set_alphas(model, {kind: case['before_pruning']['alphas_' + kind] for kind in KINDS})
                model.keep_strongest(4)
                for kind in KINDS:
                    assert (getattr(model, 'mask_' + kind).numpy() == case['mask'][kind]).all()
            set_masks(model, case.get('mask') or ones)
            set_alphas(model, {kind: case['arch']['alphas_' + kind] for kind in KINDS})
            ours = model.genotype()
            assert [ours.normal, ours.reduce] == [list(map(tuple, case['genotype'][kind])) for kind in KINDS]

    @in_sets('drnas_schedule.json')
    def test_schedule(self, parity, name):
        schedule, method = parity.load(name), METHODS['DrNAS']()
        stages = [(method.partial, len(method.primitives)), *method.later_stages]
        for epoch, expected in enumerate(zip(schedule['partial_by_epoch'], schedule['operations_by_epoch'])):
            assert stages[method.stage_at(epoch, schedule['epochs']) - 1] == expected
