"""The curves of a search: every number in the figure, any number of operations, every method, other search spaces."""
import json
import os

import numpy as np
import pytest
from searches import files, own_search, random_search, write_metrics

from genotypes import DARTS_V2, PRIMITIVES, to_dict
from nas.collapse import entropy
from pictures import curves, film, history
from runtime.errors import UserError

NAMES = ['c_{k-2}', 'c_{k-1}', '0', '1', '2', '3']
SMALL = ['--dataset=digits', '--init_channels=4', '--layers=2', '--trainset_num=64', '--batch_size=16', '--epochs=1',
         '--arch_learning_rate=0.1', '--model_save_dir=run']


def strengths_by_hand(record):
    """The strengths of a line without `weights`: softmax of the alphas, times that of the betas of each node."""
    strengths = []
    for cell in range(2):
        powers = np.exp(np.array(record['alphas'][cell]))
        weights = powers / powers.sum(1)[:, None]
        if len(record['alphas']) == 4:
            betas = np.exp(record['alphas'][2 + cell])
            for a, b in ((0, 2), (2, 5), (5, 9), (9, 14)):
                weights[a:b] *= betas[a:b, None] / betas[a:b].sum()
        strengths.append(weights)
    return strengths


def panels_of(figure):
    """The axes of the edges, cell by cell."""
    return [axes for axes in figure.axes if axes.get_title('left')]


@pytest.mark.parametrize('betas', [False, True])
def test_the_curves_of_earlier_runs_are_the_softmax_of_their_alphas(tmp_path, betas):
    records = random_search(tmp_path, 3, betas=betas)
    search = history.read_search(str(tmp_path), '--alphas', with_weights=True)
    assert search.operations == PRIMITIVES and search.cells == ['normal', 'reduce'] and search.edges is None
    for record, epoch in zip(records, search.epochs):
        for weights, expected in zip(epoch.weights, strengths_by_hand(record)):
            np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_weights_are_drawn_as_the_run_wrote_them(tmp_path):
    """Those of FairDARTS do not add up to 1; a softmax of the alphas would be something else."""
    records = random_search(tmp_path, 2)
    for record in records:
        record.update(weights=(1 / (1 + np.exp(-np.array(record['alphas'])))).tolist(), cells=['normal', 'reduce'],
                      operations=PRIMITIVES)
    write_metrics(tmp_path, records)
    search = history.read_search(str(tmp_path), '--alphas', with_weights=True)
    np.testing.assert_array_equal([epoch.weights for epoch in search.epochs], [record['weights'] for record in records])
    figure = curves.draw(search)
    panels = panels_of(figure)
    shown = np.array([[line.get_ydata() for line in axes.lines] for axes in panels])  # [edge, operation, epoch]
    expected = np.array([record['weights'] for record in records])  # [epoch, cell, edge, operation]
    np.testing.assert_array_equal(shown, expected.transpose(1, 2, 3, 0).reshape(28, 8, 2))
    sums = np.array(records[1]['weights'][0]).sum(-1)
    assert panels[3].get_title('right').endswith(f'→{sums[3]:.2f}')
    texts = ' '.join(text.get_text() for text in figure.texts)
    assert 'Σ' in texts


def test_the_figure_shows_the_genotype_skip_connections_entropy_and_accuracy(tmp_path):
    records = random_search(tmp_path, 5, betas=True)
    figure = curves.draw(history.read_search(str(tmp_path), '--alphas', with_weights=True))
    panels, summary = panels_of(figure), figure.axes[-3:]
    assert len(panels) == 28
    expected = [strengths_by_hand(record) for record in records]
    for position, genotype_key in enumerate(('normal', 'reduce')):
        part = panels[14 * position:14 * position + 14]
        shown = np.array([[line.get_ydata() for line in axes.lines] for axes in part])
        np.testing.assert_allclose(shown, np.array([each[position] for each in expected]).transpose(1, 2, 0))
        thick = set()
        for axes in part:
            source, _, node = axes.get_title('left').replace('$', '').partition(' → ')
            thick |= {(operation, NAMES.index(source), int(node)) for operation, line in zip(PRIMITIVES, axes.lines)
                      if line.get_linewidth() > 2}
        assert thick == {(operation, source, i // 2) for i, (operation, source)
                         in enumerate(records[-1]['genotype'][genotype_key])}
    assert panels[0].get_title('left') == '$c_{k-2}$ → 0' and panels[13].get_title('left') == '2 → 3'
    skips, entropies, accuracies = summary
    assert list(skips.lines[0].get_ydata()) == [
        sum(edge[0] == 'skip_connect' for edge in record['genotype']['normal']) for record in records]
    np.testing.assert_allclose(accuracies.lines[1].get_ydata(), [100 * record['valid_acc'] for record in records])
    legend = [text.get_text() for text in entropies.get_legend().get_texts()]
    assert legend == ['normal', 'reduction', 'all equal, log 8']
    for position in range(2):
        for shown, strengths in zip(entropies.lines[position].get_ydata(), expected):
            rows = strengths[position] / strengths[position].sum(1)[:, None]
            assert shown == pytest.approx(-(rows * np.log(rows)).sum(1).mean(), rel=1e-12)
    assert entropies.lines[2].get_ydata()[0] == pytest.approx(np.log(8))


def test_the_costs_of_a_search_within_limits_are_drawn_beside_its_accuracy(tmp_path):
    records = random_search(tmp_path, 3)
    for epoch, record in enumerate(records):
        record.update(expected_params=4e6 - epoch, max_params=3500000, expected_macs=5e8)
        if epoch:  # the cell of the first epoch is that of no network
            record.update(params=3300000 + epoch, macs=1)
    write_metrics(tmp_path, records)
    figure = curves.draw(history.read_search(str(tmp_path), '--alphas', with_weights=True))
    titles = [axes.get_title() for axes in figure.axes[-4:]]
    assert titles[2:] == ['accuracy, %', 'parameters, million']
    cell, expected, limit = figure.axes[-1].lines
    np.testing.assert_allclose(cell.get_ydata(), [np.nan, 3.300001, 3.300002])
    np.testing.assert_allclose(expected.get_ydata(), [4, 3.999999, 3.999998])
    assert list(limit.get_ydata()) == [3.5, 3.5]
    records[0]['max_params'] = '3.5M'
    write_metrics(tmp_path, records)
    with pytest.raises(UserError, match='line 1: max_params must be a number from 0 to 1e18'):
        history.read_search(str(tmp_path), '--alphas', with_weights=True)


@pytest.mark.parametrize('count', [1, 3, 5, 8, 12, 28])
def test_any_number_of_operations_has_as_many_looks(tmp_path, count):
    names = ['none', 'skip_connect', *(f'op{i}' for i in range(26))][:count]
    own_search(tmp_path, 2, (14, count), names, [to_dict(DARTS_V2)] * 2, ['normal', 'reduce'])
    figure = curves.draw(history.read_search(str(tmp_path), '--alphas', with_weights=True))
    looks = {(line.get_color(), str(line._dash_pattern)) for line in panels_of(figure)[0].lines}
    assert len(looks) == count
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    entropies = figure.axes[-2]
    assert f'all equal, log {count}' in [text.get_text() for text in entropies.get_legend().get_texts()]


def lab(linear):
    """Linear sRGB [colours, 3] -> CIE Lab with the white point D65."""
    xyz = np.clip(linear, 0, 1) @ np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]]).T
    x, y, z = np.where(xyz > 0.008856 * np.array([.9505, 1, 1.089]), np.cbrt(xyz / [.9505, 1, 1.089]),
                       7.787 * xyz / [.9505, 1, 1.089] + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize('sight', [
    np.eye(3),
    [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],  # without red cones
    [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],  # without green cones
])
def test_all_readers_can_tell_the_colours_apart_and_see_them_on_white(sight):
    """With the simulation of Vienot, Brettel, Mollon (1999). A difference of 2 is just visible."""
    from PIL import ImageColor
    colours = np.array([ImageColor.getrgb(colour) for colour in curves.COLOURS + [curves.NONE_COLOUR, 'white']]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055)**2.4)
    points = lab(linear @ np.transpose(sight))
    assert min(np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]) > 15


def test_a_space_of_other_edges_and_one_kind_of_cell(tmp_path):
    """NAS-Bench-201: 6 edges, 5 operations, a string as the result."""
    names = ['none', 'skip_connect', 'conv$1', 'conv_3x3', 'pool']
    edges = ['0 → 1', '0 → 2', '1 → 2', '$0', '1 → 3', '2 → 3']
    records = own_search(tmp_path, 4, (6, 5), names, edges=edges)
    search = history.read_search(str(tmp_path), '--alphas', with_weights=True)
    assert search[1:] == (['only'], names, edges)
    figure = curves.draw(search)
    panels = panels_of(figure)
    assert [axes.get_title('left').replace('\\$', '$') for axes in panels] == edges
    last = np.array(records[-1]['weights'][0])
    for axes, row in zip(panels, last):
        assert [line.get_linewidth() > 2 for line in axes.lines] == list(row == row.max())
    assert len(figure.axes) == 6 + 2  # no skip connections of a normal cell; entropy, accuracy
    assert curves.curves(search, 'svg').startswith(b'<?xml')
    with pytest.raises(UserError, match='line 1: a film shows cells'):
        history.read_search(str(tmp_path), '--film')


def test_an_operation_that_this_version_does_not_know(tmp_path):
    """A search with an operation of its own can be drawn after that was removed from PRIMITIVES."""
    genotype = json.loads(json.dumps(to_dict(DARTS_V2)).replace('dil_conv_3x3', 'my_conv'))
    own_search(tmp_path, 1, (14, 3), ['skip_connect', 'sep_conv_3x3', 'my_conv'], [genotype], ['normal', 'reduce'])
    epoch, = history.read_search(str(tmp_path), '--film').epochs
    assert epoch.genotype.normal[0] == ('my_conv', 0)
    assert film.film([epoch]).startswith(b'GIF')


def test_entropy_by_hand():
    assert entropy(np.zeros((14, 8)).tolist()) != entropy([[1.0] * 8] * 14) == pytest.approx(np.log(8))
    assert entropy([[0.5, 0.5, 0, 0], [3, 0, 0, 0]]) == pytest.approx(np.log(2) / 2)
    assert entropy([[2.0, 2.0]]) == entropy([[0.1, 0.1]]) == pytest.approx(np.log(2))
    for wrong in ([], [[0.0, 0.0]], [[-1.0, 2.0]], [[1.0], [float('nan')]]):
        assert np.isnan(entropy(wrong))


@pytest.mark.parametrize('kind, start', [('png', b'\x89PNG'), ('pdf', b'%PDF'), ('svg', b'<?xml')])
def test_the_curves_in_every_format(script, tmp_path, kind, start):
    random_search(tmp_path / 'run', 2)
    before = files(tmp_path)
    run = script('visualize.py', '--alphas', 'run', '--format=' + kind)
    assert (run.returncode, run.stderr) == (0, '')
    path = os.path.join('run', 'alphas.' + kind)
    assert files(tmp_path) == sorted(before + [path])
    content = (tmp_path / path).read_bytes()
    assert content.startswith(start)
    if kind == 'svg':
        text = content.decode()
        assert all(word in text for word in PRIMITIVES + ['skip connections', 'entropy', 'validation', 'training'])


@pytest.mark.parametrize('method, strengths, operations', [
    ('FairDARTS', lambda record: 1 / (1 + np.exp(-np.array(record['alphas']))), PRIMITIVES[1:]),
    ('PC-DARTS', lambda record: strengths_by_hand(record), PRIMITIVES),
])
def test_the_weights_of_a_search_are_those_of_its_method(script, tmp_path, method, strengths, operations):
    run = script('search.py', *SMALL, '--method=' + method)
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text())
    np.testing.assert_allclose(record['weights'], strengths(record), rtol=1e-5)
    assert record['cells'] == ['normal', 'reduce'] and 'edges' not in record
    assert record['operations'] == operations
    search = history.read_search(str(tmp_path / 'run'), '--alphas', with_weights=True)
    rows = [row for cell in search.epochs[0].weights for row in cell.tolist()]
    assert entropy(rows) == pytest.approx(record['alpha_entropy'], rel=1e-6)
    assert curves.curves(search, 'png').startswith(b'\x89PNG')


def test_the_example_of_another_space_runs_from_any_folder_and_is_drawn(script, tmp_path):
    flags = ['--C=4', '--epochs=1', '--trainset_num=64', '--batch_size=16', '--model_save_dir=run']
    run = script(os.path.join('examples', 'nasbench201.py'), *flags)
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text())
    assert run.stdout.strip() == record['genotype']
    assert np.shape(record['weights']) == (1, 6, 5) and len(record['operations']) == 5
    assert record['edges'] == ['0 → 1', '0 → 2', '1 → 2', '0 → 3', '1 → 3', '2 → 3']
    run = script('visualize.py', '--alphas=run')
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, os.path.join('run', 'alphas.png'), '')
