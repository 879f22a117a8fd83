"""The example of another search space: NAS-Bench-201's cells, its table, its supernet under every method."""
import csv
import itertools
import json
import os
import statistics

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import check_refusal, relative_error, shared_file

from examples.nasbench201 import Edge, Network, SearchCell, make_method
from examples.nasbench201_table import COLUMNS, DATA_SETS, EDGES, PRIMITIVES, Table, cell_string, parse_cell
from examples.train_nasbench201 import TrainedNetwork
from genotypes import DARTS_V2, genotype_json
from nas.options import CheckpointOptions
from nas.searcher import DARTSearch
from runtime.errors import UserError
from training.summary import count_macs, count_parameters

ALL_SKIP = cell_string(['skip_connect'] * 6)
CELLS = [cell_string(operations) for operations in itertools.product(PRIMITIVES, repeat=6)]


# ---------------------------------------------------------------------------------------------------------------------
# Strings and the table
# ---------------------------------------------------------------------------------------------------------------------


def test_the_string_of_a_cell():
    text = '|none~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|'
    operations = ['none', 'nor_conv_1x1', 'skip_connect', 'nor_conv_3x3', 'avg_pool_3x3', 'none']
    assert cell_string(operations) == text and parse_cell(text) == operations
    assert len(set(CELLS)) == 5**6 and all(cell_string(parse_cell(cell)) == cell for cell in CELLS)


@pytest.mark.parametrize('text', ['', '|', 'skip_connect', ALL_SKIP[:-1], ALL_SKIP + '+', ALL_SKIP.replace('~0', '~1'),
                                  ALL_SKIP.replace('skip', 'jump'), ' ' + ALL_SKIP, ALL_SKIP * 2])
def test_other_texts_are_no_cells(text):
    with pytest.raises(ValueError, match='is not a cell of NAS-Bench-201'):
        parse_cell(text)


def rows_of_a_table():
    """A row a cell with random accuracies, some of them equal."""
    random = np.random.default_rng(0)
    columns = {name: random.integers(0, 10000, len(CELLS)) / 100 for name in DATA_SETS.values()}
    return [dict({name: repr(float(values[number])) for name, values in columns.items()}, ArchitectureString=cell,
                 UniqueString=str(number // 2)) for number, cell in enumerate(CELLS)]


def write_table(path, rows, columns=COLUMNS):
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, columns, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_accuracies_and_ranks(tmp_path):
    rows = rows_of_a_table()
    table = Table(write_table(tmp_path / 'table.csv', rows[::-1], COLUMNS[::-1]))
    assert len(table) == 15625
    for name, column in DATA_SETS.items():
        values = np.array([float(row[column]) for row in rows])
        assert len(set(values)) < len(values)
        for number in range(0, 15625, 97):
            entry = table[CELLS[number]]
            assert entry.accuracy[name] == values[number]
            assert entry.rank[name] == 1 + (values > values[number]).sum()
    assert table[CELLS[0]].unique == table[CELLS[1]].unique != table[CELLS[2]].unique
    assert table.same_cell(CELLS[0]) == [CELLS[1]]
    figures = table.figures(CELLS[5])
    assert figures['test_acc_cifar100'] == float(rows[5][DATA_SETS['cifar100']]) / 100
    assert figures['rank_imagenet16'] == table[CELLS[5]].rank['imagenet16'] and len(figures) == 6


def test_incomplete_tables_are_refused(tmp_path):
    rows = rows_of_a_table()
    broken = dict(rows[7], **{DATA_SETS['cifar10']: '101'})
    for wrong, columns, message in (
            (rows[:-1], COLUMNS, 'it has 15624 of 15625 cells'),
            (rows[:5] + rows[4:], COLUMNS, 'line 7: the cell'),
            (rows[:7] + [broken] + rows[8:], COLUMNS, "line 9: '101' is not an accuracy"),
            ([dict(rows[0], ArchitectureString='|none~0|')], COLUMNS, 'line 2: .* is not a cell'),
            (rows, COLUMNS[1:], 'the column CIFAR10TestAccuracy200Epochs is missing'),
            ([], COLUMNS, 'the column')):
        with pytest.raises(UserError, match=message):
            Table(write_table(tmp_path / 'table.csv', wrong, columns))


def test_other_files_are_no_tables(tmp_path):
    (tmp_path / 'bytes').write_bytes(bytes(range(256)))
    os.mkfifo(tmp_path / 'fifo')
    for name in ('absent', 'bytes', 'fifo', '.'):
        with pytest.raises(UserError, match='--table: '):
            Table(str(tmp_path / name))


def test_the_public_table():
    table = Table(shared_file('data', 'nasbench201.csv'))
    accuracies = [table[cell].accuracy['cifar10'] for cell in CELLS]
    assert round(table[ALL_SKIP].accuracy['cifar10'], 2) == 54.30
    assert round(statistics.median(accuracies), 2) in (90.74, 90.75)
    best = max(CELLS, key=lambda cell: table[cell].accuracy['cifar10'])
    assert table[best].rank['cifar10'] == 1 and round(table[best].accuracy['cifar10'], 2) == 94.37


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('cell, parameters, macs', [
    (ALL_SKIP, 73306, 7783040), (cell_string(['nor_conv_3x3'] * 6), 1531546, 220119680)])
def test_the_size_of_trained_networks(cell, parameters, macs):
    """The benchmark's smallest network without pooling or `none`, and its largest: 0.073 M and 1.532 M parameters,
    7.78 M and 220.12 M multiply-adds."""
    network = TrainedNetwork(16, 10, 5, parse_cell(cell))
    assert (count_parameters(network), count_macs(network, [3, 32, 32])) == (parameters, macs)


@pytest.mark.parametrize('partial', [1, 4])
def test_an_edge_is_the_weighted_sum(float64, partial):
    edge = Edge(8, make_method('PC-DARTS', partial=partial))
    x, weights = paddle.randn([2, 8, 5, 5]), F.softmax(paddle.randn([5]))
    c = 8 // partial
    expected = sum(float(weight) * operation(x[:, :c]).numpy() for weight, operation in zip(weights, edge._ops))
    if partial > 1:  # channel k of group g comes to place k * partial + g
        whole = np.concatenate([expected, x[:, c:].numpy()], 1)
        expected = np.stack([whole[:, group * c + k] for k in range(c) for group in range(partial)], 1)
    assert relative_error(edge(x, weights), expected) < 1e-12


def test_gdas_computes_drawn_operations_and_adds_the_other_weights(float64):
    edge = Edge(4, make_method('GDAS'))
    x, weights = paddle.randn([2, 4, 5, 5]), paddle.to_tensor([0.0, 0.0, 1.0, 0.0, 0.0], stop_gradient=False)
    upstream = paddle.randn(x.shape)
    calls = []
    for operation in edge._ops:
        operation.register_forward_pre_hook(lambda layer, inputs: calls.append(layer))
    output = edge(x, weights, [2])
    assert calls == [edge._ops[2]]
    drawn = edge._ops[2](x)
    assert relative_error(output, drawn) < 1e-12
    expected = np.full(5, float(upstream.sum()))
    expected[2] = float((drawn * upstream).sum())
    gradient, = paddle.grad(output, [weights], upstream)
    assert relative_error(gradient, expected) < 1e-12


def test_a_cell_sums_its_edges(float64):
    """With edge weights; brute force over all paths of a cell whose operations are scalings."""
    cell = SearchCell(4, make_method('DARTS'))
    x, edge_weights = paddle.randn([1, 4, 3, 3]), paddle.randn([6])
    weights = paddle.zeros([6, 5])
    weights[:, 1] = paddle.randn([6])  # skip connections alone
    factor = {edge: float(edge_weights[number] * weights[number, 1]) for number, edge in enumerate(EDGES)}
    total = sum(np.prod([factor[edge] for edge in path]) for path in (
        [(3, 0)], [(1, 0), (3, 1)], [(2, 0), (3, 2)], [(1, 0), (2, 1), (3, 2)]))
    assert relative_error(cell(x, weights, edge_weights), total * x.numpy()) < 1e-12


@pytest.mark.parametrize('method', ['DARTS', 'DrNAS', 'FairDARTS', 'PC-DARTS'])
def test_the_genotype_is_the_strongest_operation_of_each_edge(method):
    network = Network(4, 10, 1, method)
    expected = ['none', 'avg_pool_3x3', 'nor_conv_3x3', 'skip_connect', 'nor_conv_1x1', 'nor_conv_1x1']
    network.alphas.set_value(F.one_hot(paddle.to_tensor([PRIMITIVES.index(name) for name in expected]), 5))
    assert network.genotype() == cell_string(expected)


def search(folder, method, unrolled=False, resume=False, epochs=2, stop_after=None):
    """A search of 2 steps an epoch. stop_after: an epoch after which it ends with an exception."""
    paddle.seed(0)
    random = np.random.default_rng(0)
    batches = [(random.normal(size=(4, 3, 8, 8)).astype('float32'), np.arange(4)) for _ in range(2)]
    searcher = DARTSearch(Network(8, 4, 1, method), lambda: batches, lambda: batches, paddle.CPUPlace(),
                          num_epochs=epochs, arch_learning_rate=0.1, unrolled=unrolled, save_dir=str(folder),
                          checkpoint=CheckpointOptions(resume=resume))
    end_epoch = searcher.run.end_epoch

    def end(metrics):
        end_epoch(metrics)
        if metrics['epoch'] == stop_after:
            raise KeyboardInterrupt
    searcher.run.end_epoch = end
    searcher.train()
    return {name: value.numpy() for name, value in searcher.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize('method, unrolled', [('DARTS', False), ('DARTS', True), ('PC-DARTS', False), ('GDAS', False),
                                              ('DrNAS', False), ('FairDARTS', False), ('DARTS-', False)])
def test_a_search_with_every_method_resumes_to_the_same_bits(tmp_path, method, unrolled):
    expected = search(tmp_path / 'whole', method, unrolled)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / 'stopped', method, unrolled, stop_after=0)
    found = search(tmp_path / 'stopped', method, unrolled, resume=True)
    assert sorted(found) == sorted(expected)
    assert all((found[name] == value).all() for name, value in expected.items())
    lines = [json.loads(line) for line in (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()]
    assert lines[0]['alphas'] != lines[1]['alphas']
    if method == 'DrNAS':
        assert [line['stage'] for line in lines] == [1, 2]
        assert (np.count_nonzero(lines[1]['weights'][0], axis=-1) == 3).all()


@pytest.mark.parametrize('method, channels', [('PC-DARTS', 6), ('DrNAS', 10)])
def test_channels_that_do_not_divide_are_refused(method, channels):
    with pytest.raises(UserError, match='--C: .* multiple of 4'):
        Network(channels, 10, 1, method)


@pytest.mark.slow
def test_search_with_a_table_and_training(script, tmp_path):
    table = write_table(tmp_path / 'table.csv', rows_of_a_table())
    size = ['--C=4', '--N=1', '--dataset=digits', '--trainset_num=64', '--batch_size=32', '--epochs=1']
    run = script('examples/nasbench201.py', '--method=PC-DARTS', '--table=' + table, '--model_save_dir=run', *size)
    assert run.returncode == 0, run.stderr
    record, cell = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text()), run.stdout.splitlines()[0]
    figures = Table(table).figures(cell)
    assert {name: record[name] for name in figures} == figures
    assert record['skip_connects'] == cell.count('skip_connect')
    check_refusal(script('search.py', '--derive=run'), 'run is not the output directory of a search by search.py')
    run = script('examples/train_nasbench201.py', '--arch=run', '--model_save_dir=trained', *size)
    assert run.returncode == 0, run.stderr
    line = json.loads((tmp_path / 'trained' / 'metrics.jsonl').read_text())
    assert line['genotype'] == cell and run.stdout == f'best_valid_acc {line["valid_acc"]:.6f}\n'


def test_wrong_flags_of_the_examples(script, tmp_path):
    (tmp_path / 'darts.json').write_text(genotype_json(DARTS_V2, {}))
    check_refusal(script('examples/train_nasbench201.py', '--arch=darts.json'),
                  '--arch: darts.json: it holds no cell of NAS-Bench-201; train.py trains the genotypes of DARTS')
    check_refusal(script('examples/train_nasbench201.py'), "--arch: give the cell's string")
    check_refusal(script('examples/train_nasbench201.py', '--arch=|none~0|'), 'is not a cell of NAS-Bench-201')
    check_refusal(script('examples/nasbench201.py', '--method=random'), 'give one of DARTS, PC-DARTS, GDAS')
    check_refusal(script('examples/nasbench201.py', '--table=absent.csv'), '--table: absent.csv cannot be read')
