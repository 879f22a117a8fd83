"""The cell derived by removals: every decision against a forward pass written out, resuming, the command."""
import json
from argparse import Namespace

import numpy as np
import paddle
import pytest
from conftest import SMALL, check_refusal, run

from genotypes import get_genotype
from model_search import Network
from nas.methods import METHODS
from nas.options import CheckpointOptions
from nas.perturbation import PerturbationDerivation, decisions_to_make, ranked

STEPS = 2


def make(folder, method='DARTS', resume=False, channels=12, layers=1, **options):
    """A derivation from a small supernet with random alphas, on random images."""
    paddle.seed(1)
    rng = np.random.default_rng(3)
    model = Network(channels, 3, layers, method, steps=STEPS, multiplier=STEPS)
    for parameter in model.arch_parameters():
        parameter.set_value(rng.normal(size=parameter.shape).astype('float32'))
    batches = [(rng.normal(size=(6, 3, 8, 8)).astype('float32'), rng.integers(0, 3, 6)) for _ in range(2)]
    return PerturbationDerivation(model, lambda: batches, lambda: batches, paddle.CPUPlace(), epoch=3, epochs=4,
                                  tune_epochs=2, save_dir=str(folder), learning_rate=0.05,
                                  checkpoint=CheckpointOptions(resume=resume, **options)), batches


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def accuracy_by_hand(model, weights, edges, batches):
    """The accuracy and the loss of a supernet for given weights of operations and edges, with the batch's
    statistics."""
    right, loss, count = 0, 0.0, 0
    before = [p.clone() for p in model.parameters() if not p.trainable]
    model.train()
    for image, label in batches:
        s0 = s1 = model.stem(paddle.to_tensor(image))
        for cell in model.cells:
            kind = 'reduce' if cell.reduction else 'normal'
            states = [cell.preprocess0(s0), cell.preprocess1(s1)]
            for node in range(STEPS):
                total = 0
                for source in range(2 + node):
                    edge = sum(range(2, 2 + node)) + source
                    for column, operation in enumerate(cell._ops[edge]._ops):
                        total = total + float(weights[kind][edge, column] * edges[kind][edge]) * operation(
                            states[source])
                states.append(total)
            s0, s1 = s1, paddle.concat(states[2:], 1)
        logits = model.classifier(s1.mean([2, 3])).numpy().astype('float64')
        right += (logits.argmax(1) == label).sum()
        loss -= np.log(softmax(logits)[range(len(label)), label]).sum()
        count += len(label)
    for value, old in zip([p for p in model.parameters() if not p.trainable], before):
        paddle.assign(old, value)
    return right / count, loss / count


def test_every_decision_is_that_of_a_brute_force(tmp_path):
    """Before each decision, all removals are computed anew from the present weights, by loops over the operations."""
    derivation, batches = make(tmp_path, channels=4, layers=3)
    model, checked = derivation.model, []
    weights = {kind: softmax(alphas.numpy().astype('float64'))
               for kind, alphas in zip(('normal', 'reduce'), model.arch_parameters())}
    edges = {kind: np.ones(5) for kind in ('normal', 'reduce')}
    primitives = model.method.primitives

    def decide():
        number = len(derivation.decisions)
        kind, node, edge = derivation.todo[number]
        first = [0, 2][node]
        removals = {}
        places = ([(name, edge, column) for column, name in enumerate(primitives) if name != 'none']
                  if edge is not None else [(str(source), first + source, None) for source in range(2 + node)])
        for name, place, column in places:
            array, index = (edges, place) if column is None else (weights, (place, column))
            value = array[kind][index]
            array[kind][index] = 0
            removals[name] = accuracy_by_hand(model, weights, edges, batches)
            array[kind][index] = value
        PerturbationDerivation.decide(derivation)
        decision = derivation.decisions[number]
        for name, (right, loss) in removals.items():
            assert decision['without'][name] == [pytest.approx(right, abs=1e-6), pytest.approx(loss, rel=1e-4)]
        order = sorted(removals, key=lambda name: (round(removals[name][0], 6), -removals[name][1]))
        if edge is not None:
            assert decision['kept'] == order[0]
            weights[kind][edge] = np.eye(len(primitives))[primitives.index(order[0])]
        else:
            assert decision['kept'] == order[:2]
            edges[kind][first + int(order[2])] = 0
        checked.append(decision)
    derivation.decide = decide
    genotype = derivation.train()
    assert len(checked) == 12 and len({tuple(sorted(d['without'])) for d in checked}) == 2
    for kind in ('normal', 'reduce'):
        for node in range(STEPS):
            cell = getattr(genotype, kind)[2 * node:2 * node + 2]
            kept = {source for source in range(2 + node) if edges[kind][[0, 2][node] + source]}
            assert {source for _, source in cell} == kept
            for operation, source in cell:
                assert weights[kind][[0, 2][node] + source, primitives.index(operation)] == 1
    lines = [json.loads(line) for line in (tmp_path / 'removals.jsonl').read_text().splitlines()]
    assert lines == json.loads(json.dumps(checked))
    assert get_genotype(str(tmp_path)) == genotype


@pytest.mark.parametrize('method', list(METHODS))
def test_every_method_derives_a_whole_cell_and_resumes_to_the_same_bits(tmp_path, method):
    whole, _ = make(tmp_path / 'whole', method)
    expected = whole.train()
    assert all(name != 'none' for name, _ in expected.normal + expected.reduce)

    class Stopped(Exception):
        pass

    def stop_after(derivation, count):
        step, done = derivation.train_step, [0]

        def counted(*batch, **options):
            if done[0] == count:
                raise Stopped
            done[0] += 1
            return step(*batch, **options)
        derivation.train_step = counted

    for count in (5, 9):
        derivation, _ = make(tmp_path / 'parts', method, resume=True, save_freq=1)
        stop_after(derivation, count)
        with pytest.raises(Stopped):
            derivation.train()
    resumed, _ = make(tmp_path / 'parts', method, resume=True)
    assert resumed.train() == expected
    assert (tmp_path / 'parts' / 'removals.jsonl').read_bytes() == (tmp_path / 'whole' / 'removals.jsonl').read_bytes()
    for name, value in whole.model.state_dict().items():
        assert (value.numpy() == resumed.model.state_dict()[name].numpy()).all(), name


def test_the_order_follows_the_seed_and_has_all_edges_first():
    orders = [decisions_to_make(4, seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert len(order) == 28 + 6 and len(set(order)) == 34
        assert all(edge is not None for _, _, edge in order[:28]) and all(edge is None for _, _, edge in order[28:])
    assert ranked({'a': [0.5, 1.0], 'b': [0.25, 1.0], 'c': [0.25, 1.5]}) == ['c', 'b', 'a']


def test_operations_that_a_stage_has_dropped_are_no_candidates():
    model = Network(12, 4, 1, 'DrNAS')
    kept = np.zeros((14, 7), 'float32')
    for edge in range(14):
        kept[edge, [edge % 7, (edge + 3) % 7]] = 1
    model.mask_reduce.set_value(kept)
    search = Namespace(model=model, method=model.method)
    for edge in range(14):
        assert PerturbationDerivation._candidates(search, 'reduce', edge) == sorted([edge % 7, (edge + 3) % 7])
        assert PerturbationDerivation._candidates(search, 'normal', edge) == list(range(7))


def search(folder):
    """Search within a limit, in two stages -> what the command printed."""
    small = [*SMALL, '--layers=1', '--epochs=2', '--init_channels=12', '--use_multiprocess=False', '--method=DrNAS',
             '--epochs_no_archopt=0', '--max_params=100K', '--model_save_dir=run']
    result = run(folder, 'search.py', *small)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_command_by_strength_gives_the_genotype_of_the_search(tmp_path):
    printed = search(tmp_path)
    derived = run(tmp_path, 'search.py', '--derive=run', '--use_multiprocess=False')
    assert derived.returncode == 0, derived.stderr
    assert derived.stdout == printed
    genotype = tmp_path / 'run' / 'genotype.json'
    text = genotype.read_text()
    for found, other in (('"seed": 0', '"seed": 1'), ('"epoch": 1', '"epoch": 2')):
        assert found in text
        genotype.write_text(text.replace(found, other))
        check_refusal(run(tmp_path, 'search.py', '--derive=run'), '--derive: run holds files of two searches')


def test_the_command_by_perturbation_leaves_the_files_of_the_search_alone(tmp_path):
    search(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()}
    derived = run(tmp_path, 'search.py', '--derive=run', '--by=perturbation', '--tune_epochs=1',
                  '--use_multiprocess=False')
    assert derived.returncode == 0, derived.stderr
    assert f'genotype = {get_genotype(str(tmp_path / "run" / "perturbation"))}' in derived.stdout
    assert '--arch=run/perturbation/genotype.json --dataset=digits' in derived.stdout
    assert '34 decisions, after the evaluation of 136 removals in all; 33 epochs of' in derived.stderr
    assert derived.stderr.count('normal node 0 from 0 ') >= 1 and '\\n' not in derived.stderr  # the table, line by line
    assert 'accuracy lost without it' in derived.stderr and 'decision 34 of 34' in derived.stderr
    after = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*') if path.is_file()
             and 'perturbation' not in path.parts}
    assert after == before


@pytest.mark.parametrize('flags, message', [
    (['--derive=absent'], '--derive: absent holds no checkpoint of a search, which the flags are read from'),
    (['--derive=absent', '--epochs=3'], 'argument --epochs: --derive takes it from the search'),
    (['--derive=absent', '--summary'], 'argument --summary: has no meaning with --derive'),
    (['--by=perturbation'], 'argument --by: goes with --derive=DIR'),
    (['--derive=absent', '--tune_epochs=2'], 'argument --tune_epochs: goes with --by=perturbation'),
    (['--derive=absent', '--resume'], 'argument --resume: goes with --by=perturbation'),
    (['--derive=absent', '--by=guess'], 'give one of strength, perturbation')])
def test_wrong_derivations_are_refused(script, flags, message):
    check_refusal(script('search.py', *flags), message)
