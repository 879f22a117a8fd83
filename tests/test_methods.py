"""The methods' formulas against numpy, the signs of a collapse, random cells, a space of one's own."""
import json
import math
import random

import numpy as np
import paddle
import pytest
from conftest import relative_error

from examples.nasbench201 import Network as NASBench201
from genotypes import PRIMITIVES, from_dict, random_genotype
from model_search import Network
from nas import searcher
from nas.architect import Architect
from nas.collapse import EarlyStop, indicators
from nas.methods import DARTS, METHODS, make_method
from nas.options import CheckpointOptions, MonitorOptions
from nas.searcher import DARTSearch
from runtime.errors import UserError

SMALL = ['--dataset=digits', '--init_channels=12', '--layers=3', '--trainset_num=64', '--batch_size=16', '--epochs=1']


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def alphas(float64):
    return np.random.default_rng(0).normal(size=(14, 8))


def parameter(values):
    tensor = paddle.to_tensor(values)
    tensor.stop_gradient = False
    return tensor


def test_every_method_is_a_choice_of_the_flag_and_another_is_refused(script):
    from search import SEARCH_FLAGS
    assert dict((name, kind) for name, kind, *_ in SEARCH_FLAGS)['method'] == list(METHODS) + ['random']
    result = script('search.py', '--method=ENAS')
    assert result.returncode == 2
    assert 'give one of DARTS, PC-DARTS, GDAS, DrNAS, FairDARTS, DARTS-, random' in result.stderr


def test_what_a_half_finished_recipe_lacks_is_named(monkeypatch):
    with pytest.raises(UserError, match="'Own' is not allowed: .* METHODS of nas/methods.py"):
        make_method('Own')
    monkeypatch.setattr(DARTS, 'primitives', [*PRIMITIVES, 'conv_1x1'])
    with pytest.raises(UserError, match='^conv_1x1 is a candidate operation, but OPS of operations.py'):
        Network(4, 10, 3)


def test_the_channels_of_all_stages_are_checked_together():
    method = METHODS['DrNAS']()  # 1/6, then 1/4
    for channels in range(1, 40):
        if channels % 12:
            with pytest.raises(UserError, match='passes 1/6 and 1/4 of the channels .*, give a multiple of 12'):
                method.check_channels(channels, '--init_channels')
        else:
            method.check_channels(channels, '--init_channels')


@pytest.mark.parametrize('method, unrolled', [('GDAS', False), ('DrNAS', True), ('FairDARTS', False), ('DARTS-', True)])
def test_a_search_with_each_method(script, tmp_path, method, unrolled):
    result = script('search.py', *SMALL, '--method=' + method, f'--unrolled={unrolled}')
    assert result.returncode == 0, result.stderr
    from_dict(json.loads((tmp_path / 'search_cifar' / 'genotype.json').read_text()))


def test_drnas_draws_from_a_dirichlet_with_the_pathwise_gradient(float64):
    """Means and their derivatives of 40,000 draws: E theta_i = b_i / B, dE theta_i / db_j = (1[i = j] B - b_i) /
    B^2."""
    paddle.seed(0)
    method = METHODS['DrNAS']()
    row = np.array([-0.5, 0.0, 0.7, 1.5])
    a = parameter(np.tile(row, (40000, 1)))
    draws = method.operation_weights(a)
    b = np.where(row > 0, row + 1, np.exp(row))
    total = b.sum()
    assert np.abs(draws.numpy().sum(-1) - 1).max() < 1e-12
    np.testing.assert_allclose(draws.numpy().mean(0), b / total, atol=0.004)
    variance = b * (total - b) / (total**2 * (total + 1))
    np.testing.assert_allclose(draws.numpy().var(0), variance, rtol=0.05)
    for i in range(4):
        gradient, = paddle.grad(draws[:, i].sum(), [a], retain_graph=True)
        # mean over the draws; elu's derivative taken out
        by_beta = gradient.numpy().mean(0) / np.where(row > 0, 1, np.exp(row))
        np.testing.assert_allclose(by_beta, ((np.arange(4) == i) * total - b[i]) / total**2, atol=0.004)


def test_gdas_computes_only_what_it_draws():
    network = Network(4, 10, 3, 'GDAS')
    ran = []
    for cell in network.cells:
        for mixed in cell._ops:
            for column, part in enumerate(mixed._ops):
                part.register_forward_post_hook(lambda *_, column=column: ran.append(column))
    noise = paddle.zeros([14, 8])
    noise[:, 2] = 50.0
    network.method.draw_gumbel = lambda alphas: noise
    network(paddle.randn([2, 3, 8, 8]))
    assert ran == [2] * 3 * 14


def test_fairdarts_writes_none_for_edges_below_the_threshold():
    strengths = np.full((5, 7), 0.1)  # two nodes
    strengths[0, 3], strengths[1, 4] = 0.9, 0.84
    strengths[3, 2], strengths[4, 0] = 0.7, 0.6
    cell = METHODS['FairDARTS']().derive(strengths.tolist(), 2)
    assert cell == [('sep_conv_3x3', 0), ('none', 1), ('none', 1), ('none', 2)]
    network = Network(4, 10, 1, 'FairDARTS')
    assert network.genotype().normal_concat == [] and {name for name, _ in network.genotype().normal} == {'none'}


# ---------------------------------------------------------------------------------------------------------------------
# Collapse
# ---------------------------------------------------------------------------------------------------------------------


def test_the_dominant_eigenvalue_against_the_whole_hessian(float64):
    """The Hessian of a tiny network's loss, column by column from gradients a small step apart, and its largest
    eigenvalue."""
    paddle.seed(3)
    model = Network(4, 3, 1, 'DARTS', steps=1, multiplier=1)
    rng = np.random.default_rng(0)
    for p in model.arch_parameters():
        p.set_value(rng.normal(size=p.shape))
    architect = Architect(model, paddle.optimizer.Momentum(0.1, parameters=model.parameters()))
    image, label = paddle.to_tensor(rng.normal(size=(8, 3, 6, 6))), paddle.to_tensor(rng.integers(0, 3, (8, 1)))
    flat = np.concatenate([p.numpy().ravel() for p in model.arch_parameters()])
    before = [p.numpy().copy() for p in model.parameters()]

    def gradient(values):
        start = 0
        for p in model.arch_parameters():
            p.set_value(values[start:start + p.size].reshape(p.shape))
            start += p.size
        return np.concatenate([g.numpy().ravel() for g in architect.gradient(image, label, model.arch_parameters())])

    step = 1e-5
    hessian = np.stack([(gradient(flat + step * e) - gradient(flat - step * e)) / (2 * step)
                       for e in np.eye(len(flat))])
    gradient(flat)
    values = np.linalg.eigvalsh((hessian + hessian.T) / 2)
    dominant = values[np.abs(values).argmax()]
    assert relative_error(hessian, hessian.T) < 1e-4 and abs(dominant) > 1e-4
    assert relative_error(architect.dominant_eigenvalue(image, label, iterations=200), dominant) < 1e-3
    trained = [p for p in model.parameters() if p.trainable]
    after = {id(p): p.numpy() for p in trained}
    assert all((b == after[id(p)]).all() for p, b in zip(model.parameters(), before) if id(p) in after)


def test_indicators_by_hand():
    genotype = from_dict({'normal': [['skip_connect', 0], ['skip_connect', 1], ['max_pool_3x3', 0],
                                     ['skip_connect', 2]],
                          'normal_concat': [2, 3], 'reduce': [['skip_connect', 0], ['skip_connect', 1]],
                          'reduce_concat': [2]})
    found = indicators(genotype, [[[1.0, 1.0], [3.0, 1.0]], [[1.0, 0.0], [2.0, 2.0]]])
    assert found['skip_connects'] == 3
    assert found['alpha_entropy'] == pytest.approx(
        (2 * math.log(2) + (0.75 * math.log(4 / 3) + 0.25 * math.log(4))) / 4)
    assert indicators('|op~0|', []) == {}


def test_when_to_stop():
    def lines(**values):
        name, numbers = values.popitem()
        return [{'epoch': i, name: n} for i, n in enumerate(numbers)]
    skip = EarlyStop('skip', 2)
    assert skip.verdict(lines(skip_connects=[3, 2])) is None  # never good so far: not armed
    assert skip.verdict(lines(skip_connects=[3, 1, 0, 1])) is None
    assert skip.verdict(lines(skip_connects=[3, 1, 0, 2]))['epoch'] == 2
    # while the architecture rests no epoch is good
    assert skip.verdict(lines(skip_connects=[0, 0, 2]), first=2) is None
    assert skip.verdict(lines(skip_connects=[0, 0, 2, 1, 2]), first=2)['epoch'] == 3
    assert skip.verdict(lines(skip_connects=[2, 0, 2]), first=3) is None
    # of each stage of DrNAS
    two_stages = [dict(line, stage=1 + (line['epoch'] > 2)) for line in lines(skip_connects=[1, 1, 0, 2, 2, 0, 2])]
    assert [skip.verdict(two_stages[:length], first=2) for length in range(1, 6)] == [None] * 5
    assert skip.verdict(two_stages, first=2)['epoch'] == 5


def test_when_a_growing_eigenvalue_stops_a_search():
    """Against the rule of Zela et al. written out: means of five, compared with the one four before, from epoch 10
    on."""
    random, stops = np.random.default_rng(0), 0
    rule = EarlyStop('eigenvalue', 1.3)
    for _ in range(200):
        first, every = int(random.integers(0, 4)), int(random.integers(1, 4))
        values = random.uniform(0.5, 1.5, 30).cumsum() if random.random() < 0.5 else random.uniform(0.5, 1.5, 30)
        history = [dict(epoch=every * i, eigenvalue=value) for i, value in enumerate(values)]
        means = {every * (i + 2): values[i:i + 5].mean() for i in range(26) if every * i >= first}
        for length in range(1, 31):
            newest, earlier = every * (length - 3), every * (length - 7)
            stop = (newest in means and earlier in means and earlier >= 10 and means[newest] > 1.3 * means[earlier])
            verdict = rule.verdict(history[:length], first)
            assert (verdict and verdict['epoch']) == (earlier if stop else None)
            stops += stop
    assert stops > 50
    assert rule.verdict(history[:20] + [{'epoch': 1000}]) is None  # not measured now


def test_a_search_hands_its_resting_epochs_to_no_verdict(tmp_path, monkeypatch):
    skips = iter([0, 0, 3, 1, 2])
    monkeypatch.setattr(DARTSearch, '_collapse_indicators', lambda self, epoch: {'skip_connects': next(skips)})
    batch = (np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype('float32'), np.arange(4))
    search = DARTSearch(Network(4, 4, 1, 'DARTS'), lambda: [batch], lambda: [batch], paddle.CPUPlace(), num_epochs=9,
                        save_dir=str(tmp_path),
                        epochs_no_archopt=2, monitor=MonitorOptions(validate=False, early_stop=EarlyStop('skip', 2)))
    search.train()
    assert search.run.results['stopped']['epoch'] == 4


def test_an_early_stop_goes_back_to_the_last_good_genotype(tmp_path, monkeypatch, caplog):
    skips = iter([0, 1, 2, 3])
    found, accuracies = [], [0.25, 0.5, 0.75]

    def fake(self, epoch):
        found.append(self._current_genotype())
        return {'skip_connects': next(skips)}
    monkeypatch.setattr(DARTSearch, '_collapse_indicators', fake)
    monkeypatch.setattr(DARTSearch, 'valid_one_epoch', lambda self: {'valid_acc': accuracies[self.run.epoch]})

    def search(resume):
        paddle.seed(0)
        batch = (np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype('float32'), np.arange(4))
        return DARTSearch(Network(4, 4, 1, 'DARTS'), lambda: [batch], lambda: [batch], paddle.CPUPlace(), num_epochs=9,
                          save_dir=str(tmp_path),
                          arch_learning_rate=1.0, monitor=MonitorOptions(early_stop=EarlyStop('skip', 2)),
                          checkpoint=CheckpointOptions(resume=resume)).train()
    genotype = search(False)
    assert len(found) == 3 and genotype == found[1] != found[2]
    for place, epoch, expected in (('.', 1, found[1]), ('1', 1, found[1]), ('2', 2, found[2])):
        data = json.loads((tmp_path / place / 'genotype.json').read_text())
        assert from_dict(data) == expected and data['search'] == {'epoch': epoch, 'valid_acc': accuracies[epoch]}
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 3
    monkeypatch.setattr(searcher.logger, 'propagate', True)
    caplog.set_level('INFO')
    assert search(True) == genotype and len(found) == 3  # resumed, it stays stopped
    assert caplog.messages.count('nothing to do: --early_stop ended this search after epoch 2') == 1


@pytest.mark.parametrize('text', ['skip', 'skip:0', 'skip:x', 'eigenvalue:',
                         'eigenvalue:-1', 'hessian:2'])
def test_wrong_early_stops_are_refused(script, text):
    result = script('search.py', '--early_stop=' + text)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert f"argument --early_stop: '{text}' is not allowed: give skip:NUMBER" in result.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Random cells, another space
# ---------------------------------------------------------------------------------------------------------------------


def test_random_cells_follow_the_seed_and_are_all_alike_likely(script, tmp_path):
    result = script('search.py', '--method=random', '--samples=3', '--seed=5', '--dataset=digits')
    assert result.returncode == 0, result.stderr
    texts = [(tmp_path / 'search_cifar' / str(k) / 'genotype.json').read_text() for k in range(3)]
    generator = random.Random(5)
    assert [from_dict(json.loads(text)) for text in texts] == [random_genotype(generator) for _ in range(3)]
    assert (tmp_path / 'search_cifar' / 'genotype.json').read_text() == texts[0] and len(set(texts)) == 3
    cells = [random_genotype(generator).normal for _ in range(4000)]
    operations = np.array([PRIMITIVES.index(op) for cell in cells for op, _ in cell])
    counts = np.bincount(operations, minlength=8)
    assert counts[0] == 0 and np.abs(counts[1:] / len(operations) - 1 / 7).max() < 0.01
    pairs = [(cell[6][1], cell[7][1]) for cell in cells]  # of the last node: 10 pairs of 5 states
    assert len(set(pairs)) == 10 and all(a != b for a, b in pairs)
    assert max(abs(pairs.count(pair) / 4000 - 0.1) for pair in set(pairs)) < 0.025


def test_the_cell_of_nas_bench_201_is_searched_by_the_same_searcher(tmp_path):
    rng = np.random.default_rng(0)
    model = NASBench201(4, 3, 1)
    batch = (rng.normal(size=(4, 3, 8, 8)).astype('float32'), np.arange(4) % 3)
    result = DARTSearch(model, lambda: [batch] * 2, lambda: [batch], paddle.CPUPlace(), num_epochs=1,
                        save_dir=str(tmp_path), unrolled=True).train()
    for node, part in enumerate(result.split('+'), 1):
        operations = part.strip('|').split('|')
        assert [op.split('~')[1] for op in operations] == [str(source) for source in range(node)]
    assert json.loads((tmp_path / 'genotype.json').read_text())['architecture'] == result
    values = np.zeros((6, 5))
    values[range(6), [3, 1, 0, 2, 4, 3]] = 1
    model.alphas.set_value(values.astype('float32'))
    assert model.genotype() == '|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|'


def test_the_supernet_of_nas_bench_201_is_the_papers(float64):
    """A stage's cell with weight 1 on one operation of every edge is the discrete cell: here computed by hand from
    its definition."""
    paddle.seed(0)
    model = NASBench201(4, 3, 1)
    model.eval()
    cell = model.blocks[0]
    choice = [3, 1, 4, 0, 2, 1]
    weights = [paddle.to_tensor([float(k == c) for k in range(5)]) for c in choice]
    x = paddle.randn([2, 4, 6, 6])
    ops = [cell.edges[e]._ops[c] for e, c in enumerate(choice)]
    node1 = ops[0](x)
    node2 = ops[1](x) + ops[2](node1)
    node3 = ops[3](x) + ops[4](node1) + ops[5](node2)
    assert relative_error(cell(x, weights).numpy(), node3.numpy()) < 1e-12
    assert len(model.blocks) == 5 and model.classifier.weight.shape == [16, 3]
