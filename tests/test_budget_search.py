"""Searches within limits: every cell keeps them, a limit that is never reached changes nothing, refusals, sizes."""
import json
from argparse import Namespace

import numpy as np
import paddle
import pytest
from conftest import ROOT, SMALL, check_refusal, run
from test_budget import small_budget
from test_image_folders import colour_images

from genotypes import DARTS_V2, PRIMITIVES, Genotype, get_genotype
from model import NetworkCIFAR
from model_search import Network
from nas.budget import size_line
from nas.collapse import EarlyStop
from nas.cost import COUNTS
from nas.feasible import smallest
from nas.latency import latency_costs
from nas.methods import METHODS
from nas.options import ArchOptions, CheckpointOptions, MonitorOptions
from nas.searcher import DARTSearch
from runtime.errors import UserError
from runtime.flags import amount
from training.summary import count_macs, count_parameters


def search(folder, method, limits, resume=False, epochs=4, **monitor):
    """A search of 2 steps an epoch on random images. Returns (searcher, its lines of metrics.jsonl)."""
    paddle.seed(0)
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(4, 3, 8, 8)).astype('float32'), np.arange(4)) for _ in range(2)]
    model = Network(12, 4, 1, method)
    budget = None
    if limits:
        budget = small_budget(model, **limits)
        budget.check(model.method, 4, 4)
    searcher = DARTSearch(model, lambda: batches, lambda: batches, paddle.CPUPlace(), num_epochs=epochs,
                          arch_learning_rate=0.3, save_dir=str(folder), arch=ArchOptions(budget=budget),
                          checkpoint=CheckpointOptions(resume=resume, save_params=False),
                          monitor=MonitorOptions(validate=False, **monitor))
    searcher.train()
    return searcher, [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('method', list(METHODS))
def test_every_epoch_of_every_method_keeps_the_limits(tmp_path, method):
    limits = {'macs': 80000, 'params': 4200}
    searcher, lines = search(tmp_path, method, limits)
    costs = searcher.budget.costs
    for line in lines:
        genotype = get_genotype(str(tmp_path / str(line['epoch'])))
        for name, limit in limits.items():
            assert costs[name].of(genotype) == line.get(name)
            assert line['max_' + name] == limit and (line.get(name) is None or line[name] <= limit)
            assert line['expected_' + name] > 0
    final = get_genotype(str(tmp_path))
    assert final.normal == searcher.genotype().normal and (method == 'FairDARTS' or 'macs' in lines[-1])


@pytest.mark.parametrize('method', ['DARTS', 'GDAS', 'DrNAS'])
def test_a_limit_that_is_never_reached_changes_no_bit(tmp_path, method):
    free, lines = search(tmp_path / 'free', method, {})
    generous, others = search(tmp_path / 'generous', method, {'macs': 10**9})
    assert [line['alphas'] for line in lines] == [line['alphas'] for line in others]
    for name, value in free.model.state_dict().items():
        assert (value.numpy() == generous.model.state_dict()[name].numpy()).all()
    tight, bound = search(tmp_path / 'tight', method, {'macs': 60000})
    assert bound[-1]['macs_multiplier'] > 0 and bound[-1]['alphas'] != lines[-1]['alphas']


def test_a_resumed_search_within_limits_has_the_same_bits(tmp_path):
    _, whole = search(tmp_path / 'a', 'DARTS', {'macs': 60000})

    class Stop(Exception):
        pass

    def stop(line):
        if line['epoch'] == 1:
            raise Stop
    with pytest.raises(Stop):
        search(tmp_path / 'b', 'DARTS', {'macs': 60000}, on_epoch=stop)
    # the exception came before the checkpoint of epoch 1: the run goes on from epoch 0's
    _, parts = search(tmp_path / 'b', 'DARTS', {'macs': 60000}, resume=True)
    assert whole[-1]['macs_multiplier'] > 0
    timings = {'seconds', 'reader_cost', 'batch_cost', 'images_per_second', 'peak_memory_mb'}
    for mine, expected in zip(parts, whole):
        assert {k: v for k, v in mine.items() if k not in timings} == {k: v for k, v in expected.items()
                                                                       if k not in timings}


def test_an_early_stop_returns_a_genotype_within_the_limit(tmp_path, monkeypatch):
    skips = iter([0, 1, 2])
    original = DARTSearch._collapse_indicators
    monkeypatch.setattr(DARTSearch, '_collapse_indicators',
                        lambda self, epoch: dict(original(self, epoch), skip_connects=next(skips)))
    searcher, lines = search(tmp_path, 'DARTS', {'macs': 60000}, early_stop=EarlyStop('skip', 2))
    assert len(lines) == 3
    assert searcher.budget.costs['macs'].of(get_genotype(str(tmp_path))) == lines[1]['macs'] <= 60000


def test_limits_that_no_cell_meets_are_refused_with_the_smallest_possible():
    model = Network(4, 4, 3, 'DARTS')
    budget = small_budget(model, macs=1)
    pools = [('max_pool_3x3', 0), ('max_pool_3x3', 1)] * 4
    network = NetworkCIFAR(4, 4, 3, False, Genotype(pools, range(2, 6), pools, range(2, 6)))
    low = count_macs(network, [3, 8, 8])
    with pytest.raises(UserError, match=f'^--max_macs: 1 is not allowed: .*{low:,} multiply-adds; give at least that$'):
        budget.check(model.method, 4, 4)
    budget.limits = {'macs': low}
    budget.check(model.method, 4, 4)
    assert budget.costs['macs'].of(budget.genotype(model)) == low
    budget.limits = {'macs': low - 1}
    with pytest.raises(UserError):
        budget.check(model.method, 4, 4)


# flags of a search; --max_macs and --max_params. Limits just above the smallest possible, in the middle, and so large
# that they do not bind. FairDARTS may have fewer edges, so its smallest is lower.
SHORT = [('DARTS', '900K', None), ('DARTS', '1.3M', None), ('DARTS', '9G', '90K'), ('PC-DARTS', '1M', None),
         ('PC-DARTS', None, '75000'), ('GDAS', '1M', '70K'), ('DrNAS', '1.1M', None), ('FairDARTS', '500K', None),
         ('FairDARTS', '1.2M', '0.1M'), ('DARTS-', '872K', None)]


@pytest.mark.parametrize('method, macs, params', SHORT)
def test_ten_short_searches_meet_their_limits(tmp_path, method, macs, params):
    """Counted in the network that the printed command trains, after a search by the script."""
    flags = [f'--max_macs={macs}'] * bool(macs) + [f'--max_params={params}'] * bool(params)
    # FairDARTS keeps no edge before its weights reach 0.85
    rate = '0.3' if method == 'FairDARTS' else '0.1'
    result = run(tmp_path, 'search.py', *SMALL, '--init_channels=12', '--epochs=4', '--arch_learning_rate=' + rate,
                 '--method=' + method, '--epochs_no_archopt=0', '--use_multiprocess=False', '--model_save_dir=run',
                 *flags)
    assert result.returncode == 0, result.stderr
    assert '--init_channels=16 --layers=5' in result.stdout
    genotype = get_genotype(str(tmp_path / 'run'))
    network = NetworkCIFAR(16, 10, 5, False, genotype)
    assert macs is None or count_macs(network, [3, 8, 8]) <= amount(macs)
    assert params is None or count_parameters(network) <= amount(params)


def test_a_search_meets_a_limit_in_milliseconds_by_its_table(tmp_path):
    """A table is given in which a multiply-add takes 10 ns, so that the test does not depend on the machine."""
    def measure(entries):
        return {name: 10 * COUNTS['macs'](layer, shape[1:], name) for name, (layer, shape) in entries.items()}
    costs = latency_costs(lambda genotype: NetworkCIFAR(4, 10, 3, False, genotype), [3, 8, 8], primitives=PRIMITIVES,
                          steps=4, size='NetworkCIFAR, 4 channels, 3 cells', path=str(tmp_path / 'latency.json'),
                          measure=measure)
    limit = int(1.05 * smallest(METHODS['DARTS'](), costs, 4, 4))
    result = run(tmp_path, 'search.py', *SMALL, '--layers=1', '--epochs=1', '--use_multiprocess=False',
                 '--model_save_dir=run', '--budget_channels=4', '--budget_layers=3', f'--max_latency_ms={limit / 1e6}')
    assert result.returncode == 0, result.stderr
    assert 'measuring' not in result.stderr
    genotype = get_genotype(str(tmp_path / 'run'))
    network = NetworkCIFAR(4, 10, 3, False, genotype)
    line = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text())
    assert line['latency_ns'] == costs.of(genotype) == 10 * count_macs(network, [3, 8, 8]) <= limit
    assert line['max_latency_ns'] == limit


@pytest.mark.parametrize('flags, low', [
    (['--dataset=digits', '--max_params=3.5K'], '--max_params: 3,500'),
    (['--data=/nowhere', '--max_macs=1K', '--budget_channels=2', '--budget_layers=3'], '--max_macs: 1,000')])
def test_an_impossible_limit_of_the_script_is_refused_before_data_is_read(script, flags, low):
    result = script('search.py', *flags)
    check_refusal(result, f'{low} is not allowed: the smallest cell of DARTS gives a network of ')
    assert ' train the weights' not in result.stderr  # the line of the log about the images


def test_an_impossible_limit_on_images_of_unknown_classes_is_refused_once_they_are_known(tmp_path, script):
    colour_images(tmp_path / 'images')
    result = script('search.py', '--dataset=folder', '--data=images', '--image_size=8', '--max_macs=1K',
                    '--batch_size=2', '--budget_channels=2', '--budget_layers=3')
    check_refusal(result, '--max_macs: 1,000 is not allowed: the smallest cell of DARTS gives a network of ')


def test_a_search_for_cells_of_five_nodes_meets_its_limit(tmp_path):
    """The recipe of the README, with a limit."""
    result = run(tmp_path, 'search_with_nodes.py', ROOT, '5', *SMALL, '--epochs=1', '--max_macs=1.2M',
                 '--arch_learning_rate=0.1', '--model_save_dir=run')
    assert result.returncode == 0, result.stderr
    genotype = get_genotype(str(tmp_path / 'run'))
    assert len(genotype.normal) == len(genotype.reduce) == 10 and list(genotype.normal_concat) == [2, 3, 4, 5, 6]
    macs = count_macs(NetworkCIFAR(16, 10, 5, False, genotype), [3, 8, 8])
    assert macs <= 1.2e6 and f'{macs:,} multiply-adds' in result.stderr


def test_a_cell_without_edges_has_no_training_command(tmp_path):
    """FairDARTS with alphas that no step has moved far enough."""
    result = run(tmp_path, 'search.py', *SMALL, '--method=FairDARTS', '--epochs=1', '--model_save_dir=run')
    assert result.returncode == 0, result.stderr
    assert 'genotype = Genotype(' in result.stdout and 'To train it' not in result.stdout
    assert 'a cell without an edge to its output gives no network: search for more epochs' in result.stderr


def test_every_search_logs_the_size_of_its_cell_and_a_limit_that_is_never_reached_changes_no_bit_of_it(tmp_path):
    runs = {}
    for name, flags in (('free', []), ('limited', ['--max_macs=9G'])):
        result = run(tmp_path, 'search.py', *SMALL, '--method=GDAS', '--epochs=1', '--layers=1',
                     '--use_multiprocess=False', '--model_save_dir=' + name, *flags)
        assert result.returncode == 0, result.stderr
        network = NetworkCIFAR(16, 10, 5, False, get_genotype(str(tmp_path / name)))
        assert (f'the network of this cell (16 channels, 5 cells, 10 classes): {count_macs(network, [3, 8, 8]):,} '
                f'multiply-adds for an image of 8x8, {count_parameters(network):,} parameters') in result.stderr
        runs[name] = [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
    assert not any(key.startswith(('macs', 'params', 'expected', 'max_')) for key in runs['free'][0])
    for free, limited in zip(*runs.values()):
        assert all(free[key] == limited[key] for key in ('alphas', 'train_loss', 'valid_loss', 'genotype'))


def test_a_cell_without_edges_has_no_size():
    none = [('none', 0)] * 8
    line = size_line(Genotype(none, [], DARTS_V2.reduce, range(2, 6)), None, image_shape=[3, 8, 8], size={},
                     latency_options={})
    assert line == (
        'a cell without an edge to its output gives no network: search for more epochs or with a larger '
        '--arch_learning_rate')


def test_the_last_lines_name_the_latency_where_it_is_limited():
    options = dict(image_shape=[3, 8, 8], size=dict(init_channels=4, layers=3),
                   latency_options=dict(batch_size=2, path='latency.json'))

    class Cost:

        @staticmethod
        def of(genotype):
            return 12345678
    budget = Namespace(limits={'latency_ns': 20e6}, costs={'latency_ns': Cost})

    def network(genotype):
        return NetworkCIFAR(4, 10, 3, False, genotype)
    line, without = [size_line(DARTS_V2, network, budget=some, **options) for some in (budget, None)]
    assert line == without + ', 12.346 ms for a batch of 2 by latency.json'
    assert without.endswith(' parameters without auxiliary classifier')
