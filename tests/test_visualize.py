"""Pictures of cells, the film of a search, the curves of its alphas: what they show and leave behind, what is refused."""
import json
import os
import random
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT

import visualize
from genotypes import DARTS_V2, OPERATIONS, PC_DARTS, PRIMITIVES, Genotype, from_dict, genotype_json, to_dict
from runtime.errors import UserError

NAMES = ['c_{k-2}', 'c_{k-1}', '0', '1', '2', '3']

drawn = pytest.mark.skipif(not visualize.programs(), reason='there is neither dot nor graphviz-pure')


def random_cell(generator, nodes=4, operations=tuple(PRIMITIVES[1:])):
    return [(generator.choice(operations), source) for node in range(nodes)
            for source in generator.sample(range(node + 2), 2)]


def random_search(folder, epochs, betas=False, validate=True, nodes=4, still=1.0, seed=0):
    """Write what a search leaves; a cell changes with probability `still` an epoch. Returns the objects of metrics.jsonl."""
    generator, values = random.Random(seed), np.random.RandomState(seed)
    edges, records, genotype = sum(range(2, nodes + 2)), [], None
    for epoch in range(epochs):
        if genotype is None or generator.random() < still:
            genotype = Genotype(random_cell(generator, nodes), range(2, nodes + 2),
                                random_cell(generator, nodes), range(2, nodes + 2))
        shapes = [(edges, 8)] * 2 + [(edges,)] * 2 * betas
        record = {'epoch': epoch, 'lr': 0.1, 'train_acc': generator.random(), 'genotype': to_dict(genotype),
                  'alphas': [values.randn(*shape).tolist() for shape in shapes]}
        if validate:
            record['valid_acc'] = generator.random()
        records.append(record)
        (folder / str(epoch)).mkdir(parents=True)
        (folder / str(epoch) / 'genotype.json').write_text(genotype_json(genotype))
    (folder / 'genotype.json').write_text(genotype_json(genotype))
    write_metrics(folder, records)
    return records


def write_metrics(folder, records):
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def frames_of(path):
    from PIL import Image
    with Image.open(str(path)) as film:
        frames = []
        for index in range(film.n_frames):
            film.seek(index)
            frames.append((film.convert('RGB'), film.info['duration']))
    return frames


# ---------------------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------------------


def svg_edges(text):
    """The edges of Graphviz's SVG: a sorted list of (source, node, label)."""
    found = []
    for group in ElementTree.fromstring(text).iter('{http://www.w3.org/2000/svg}g'):
        if group.get('class') == 'edge':
            title = group.find('{http://www.w3.org/2000/svg}title').text
            labels = [(label.text or '').strip() for label in group.iter('{http://www.w3.org/2000/svg}text')]
            found.append(tuple(title.split('->')) + (''.join(labels),))
    return sorted(found)


def expected_edges(genotype, cell, prefix=''):
    edges = [(prefix + NAMES[state], prefix + NAMES[2 + position // 2], operation)
             for position, (operation, state) in enumerate(getattr(genotype, cell))]
    return sorted(edges + [(prefix + NAMES[state], prefix + 'c_{k}', '') for state in getattr(genotype, cell + '_concat')])


@drawn
def test_a_name_gives_both_cells_in_the_working_folder_and_nothing_else(script, tmp_path):
    run = script('visualize.py', 'PC_DARTS', '--format=svg')
    assert (run.returncode, run.stderr, run.stdout) == (0, '', 'PC_DARTS_normal.svg\nPC_DARTS_reduce.svg\n')
    assert files(tmp_path) == ['PC_DARTS_normal.svg', 'PC_DARTS_reduce.svg']
    for cell in ('normal', 'reduce'):
        text = (tmp_path / f'PC_DARTS_{cell}.svg').read_text()
        assert svg_edges(text) == expected_edges(PC_DARTS, cell)
        boxes = {title.text for title in ElementTree.fromstring(text).iter('{http://www.w3.org/2000/svg}title')}
        assert set(NAMES) | {'c_{k}'} <= boxes


@drawn
def test_both_cells_in_one_picture(script, tmp_path):
    run = script('visualize.py', 'DARTS_V2', '--cell=both', '--output=my pictures/cells.SVG')
    assert (run.returncode, run.stderr) == (0, '')
    assert files(tmp_path) == [os.path.join('my pictures', 'cells.svg')]
    text = (tmp_path / 'my pictures' / 'cells.svg').read_text()
    assert svg_edges(text) == sorted(expected_edges(DARTS_V2, 'normal', 'normal ')
                                     + expected_edges(DARTS_V2, 'reduce', 'reduce '))
    assert 'normal cell' in text and 'reduction cell' in text


@drawn
def test_png_by_default_beside_the_genotype(script, tmp_path):
    random_search(tmp_path / 'a search', 1)
    before = files(tmp_path)
    for word in ('a search', os.path.join('a search', 'genotype.json')):
        run = script('visualize.py', word)
        assert (run.returncode, run.stderr) == (0, '')
        new = sorted(set(files(tmp_path)) - set(before))
        assert new == [os.path.join('a search', name) for name in ('genotype_normal.png', 'genotype_reduce.png')]
        from PIL import Image
        for name in new:
            with Image.open(str(tmp_path / name)) as image:
                image.load()
                assert image.format == 'PNG' and image.width > image.height > 100  # from left to right
            os.remove(str(tmp_path / name))


def test_a_dot_program_is_preferred_and_a_broken_one_is_passed_over(tmp_path, monkeypatch):
    scripts = {'good': '#!/bin/sh\ncat > /dev/null\necho good $*\n', 'bad': '#!/bin/sh\necho no plugins >&2\nexit 1\n'}
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
    if os.name != 'posix':
        pytest.skip('the stand-ins are shell scripts')
    places = {'dot': str(tmp_path / 'bad'), 'graphviz-pure': str(tmp_path / 'good')}
    monkeypatch.setattr(visualize.shutil, 'which', lambda name, path=None: places.get(name))
    assert visualize.render('digraph {}', 'svg') == b'good -Tsvg\n'
    places.update(dot=str(tmp_path / 'good'))
    assert visualize.programs()[0] == places['dot']
    assert visualize.render('digraph {}', 'pdf') == b'good -Tpdf\n'
    places.update({'dot': None, 'graphviz-pure': str(tmp_path / 'bad')})
    with pytest.raises(UserError, match=r'cannot draw a pdf: .*bad failed \(no plugins\); pip install .*dot') as error:
        visualize.render('digraph {}', 'pdf')
    assert '\n' not in str(error.value) and error.value.status == 2
    places.clear()
    with pytest.raises(UserError, match='neither dot nor graphviz-pure; pip install graphviz-pure .*apt-get'):
        visualize.render('digraph {}', 'png')


def test_graphviz_pure_is_found_beside_a_python_that_is_not_on_the_path(tmp_path, monkeypatch):
    program = tmp_path / ('graphviz-pure.exe' if os.name == 'nt' else 'graphviz-pure')
    program.write_text('')
    program.chmod(0o755)
    monkeypatch.setattr(visualize.sys, 'executable', str(tmp_path / 'python'))
    monkeypatch.setenv('PATH', '')
    assert [os.path.normcase(path) for path in visualize.programs()] == [os.path.normcase(str(program))]


def test_without_the_graphviz_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'graphviz', None)
    with pytest.raises(UserError, match='pip install graphviz graphviz-pure'):
        visualize.dot_source(DARTS_V2, ('normal',))


def test_cells_of_other_searches_are_drawn():
    """Five nodes, one used by another alone, both inputs of a node from the same state."""
    edges = [('skip_connect', 0), ('conv_7x1_1x7', 0), ('sep_conv_7x7', 2), ('none', 1)] + [('max_pool_3x3', 1)] * 6
    genotype = from_dict({'normal': edges, 'normal_concat': [3, 4, 6], 'reduce': edges, 'reduce_concat': [2]})
    source = visualize.dot_source(genotype, ('normal',))
    for word in ('conv_7x1_1x7', 'sep_conv_7x7', 'none'):
        assert source.count(f'" {word} "') == 1
    assert source.count('-> "c_{k}"') + source.count('-> c_{k}') == 3


def test_output_and_format():
    destination = visualize.destination
    formats = visualize.FORMATS
    assert destination(None, 'a/genotype', None, formats) == ('a/genotype', 'png', False)
    assert destination('new/', 'a/genotype', 'svg', formats) == ('new/genotype', 'svg', False)
    assert destination('b', 'a/genotype', None, formats) == ('b', 'png', True)
    assert destination('b.pdf', 'a/genotype', None, formats) == ('b', 'pdf', True)
    assert destination('run.v2', 'a/genotype', None, formats) == ('run.v2', 'png', True)
    for output, kind, kinds, message in [('b.pdf', 'svg', formats, 'ends in .pdf; allowed here: .svg'),
                                         ('b.png', None, ['gif'], 'allowed here: .gif'),
                                         ('b.gif', None, formats, 'allowed here: .png, .svg, .pdf'),
                                         ('', None, formats, 'give a folder or the path')]:
        with pytest.raises(UserError, match=message):
            destination(output, 'a', kind, kinds)


@drawn
def test_the_path_of_a_single_cell(script, tmp_path):
    (tmp_path / 'pictures').mkdir()
    for output, name in (('one.svg', 'one.svg'), ('DARTS_V1', 'DARTS_V1.png'), ('pictures', 'pictures/DARTS_V1_reduce.png')):
        run = script('visualize.py', 'DARTS_V1', '--cell=reduce', '--output=' + output)
        assert (run.returncode, run.stdout.strip()) == (0, os.path.join(*name.split('/')))
        assert (tmp_path / name).is_file()


# ---------------------------------------------------------------------------------------------------------------------
# Film
# ---------------------------------------------------------------------------------------------------------------------


def test_a_film_has_a_frame_an_epoch_and_stays_small(script, tmp_path):
    """50 epochs in which both cells change throughout: far more than a search does."""
    random_search(tmp_path / 'a run', 50)
    before = files(tmp_path)
    run = script('visualize.py', '--film', 'a run')
    assert (run.returncode, run.stderr) == (0, '')
    film = os.path.join('a run', 'film.gif')
    assert run.stdout == film + '\n' and files(tmp_path) == sorted(before + [film])
    assert (tmp_path / film).stat().st_size < 1000000
    frames = frames_of(tmp_path / film)
    assert len(frames) == 50 and {image.size for image, _ in frames} == {(800, 580)}
    assert frames[0][1] < frames[-1][1]  # the last one stays longer
    assert len({image.tobytes() for image, _ in frames}) == 50


def test_nodes_stand_still_and_only_changes_are_highlighted(tmp_path):
    from PIL import ImageColor

    from pictures import film as plots
    random_search(tmp_path, 6, still=0.5, seed=1)
    epochs = visualize.read_search(str(tmp_path), '--film')
    (tmp_path / 'film.gif').write_bytes(plots.film(epochs))
    frames = [image for image, _ in frames_of(tmp_path / 'film.gif')]
    new, half = ImageColor.getrgb(plots.NEW), plots.half_size(4)[1]
    for index, frame in enumerate(frames):
        for top, key in ((plots.CAPTION, 'reduce'), (plots.CAPTION + half, 'normal')):
            for x, y in plots.positions(4).values():
                # The disc of a node, without its rim that edges touch.
                inside = (x - 7, top + y - 7, x + 8, top + y + 8)
                assert frame.crop(inside).tobytes() == frames[0].crop(inside).tobytes()
            cell = getattr(epochs[index].genotype, key)
            last = getattr(epochs[index - 1].genotype, key) if index else cell
            for edge in plots.place(cell):
                node = slice(2 * edge.node - 4, 2 * edge.node - 2)
                changed = (edge.operation, edge.source) not in last[node]
                x0, y0, x1, _ = edge.label
                pixels = [frame.getpixel((x, top + y0 + 3)) for x in range(x0 + 3, x1 - 3)]  # above the letters
                assert (np.abs(np.array(pixels) - new).sum(axis=1) < 30).mean() == (1 if changed else 0)


@pytest.mark.parametrize('nodes', [1, 2, 4, 5, 7])
def test_no_label_meets_another_or_a_node(nodes):
    from pictures import film as plots
    generator = random.Random(nodes)
    width, height = plots.half_size(nodes)
    spots = plots.positions(nodes)
    for _ in range(200):
        cell = random_cell(generator, nodes, OPERATIONS)
        placed = plots.place(cell)
        assert sorted((edge.operation, edge.source, edge.node) for edge in placed) == sorted(
            (operation, source, 2 + position // 2) for position, (operation, source) in enumerate(cell))
        boxes = [edge.label for edge in placed]
        for state, (x, y) in spots.items():
            boxes.append((x - 32, y - plots.RADIUS, x + 32, y + plots.RADIUS) if state < 2 else (x - 8, y - 8, x + 8, y + 8))
        for i, a in enumerate(boxes):
            assert 0 <= a[0] and a[2] <= width and 0 <= a[1] and a[3] <= height
            for b in boxes[:i]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
        for edge in placed:  # nor does the upright part of another edge pass through a label
            for other in placed:
                if edge is not other:
                    inside = edge.label[0] < other.x < edge.label[2]
                    assert not (inside and spots[other.source][1] < edge.label[3] and edge.label[1] < spots[other.node][1])


def test_every_operation_fits_its_label():
    from pictures import film as plots
    for operation in OPERATIONS:
        assert plots._font(12 * plots.SCALE, False).getbbox(operation)[2] < (plots.LABEL[0] - 6) * plots.SCALE


def test_changed_edges_by_hand():
    from pictures import film as plots
    before = [('a', 0), ('b', 1), ('c', 0), ('d', 2)]
    assert plots.changed_edges(before, None) == set()
    assert plots.changed_edges([('b', 1), ('a', 0), ('d', 2), ('c', 0)], before) == set()  # order in a node says nothing
    assert plots.changed_edges([('a', 0), ('c', 1), ('c', 0), ('d', 1)], before) == {('c', 1, 2), ('d', 1, 3)}


def test_a_search_of_one_epoch_without_validation(script, tmp_path):
    random_search(tmp_path / 'run', 1, validate=False, betas=True)
    for flag in ('--film', '--alphas'):
        run = script('visualize.py', flag, 'run')
        assert (run.returncode, run.stderr) == (0, '')
    assert len(frames_of(tmp_path / 'run' / 'film.gif')) == 1


def test_the_genotypes_of_the_film_are_those_of_the_epochs_folders(tmp_path):
    """metrics.jsonl says which epochs belong to the run; where an epoch's folder is gone, it has the genotype too."""
    records = random_search(tmp_path, 4)
    (tmp_path / '1' / 'genotype.json').write_text(genotype_json(PC_DARTS))
    (tmp_path / '2' / 'genotype.json').unlink()
    write_metrics(tmp_path, records[:3])
    epochs = visualize.read_search(str(tmp_path), '--film')
    assert [epoch.number for epoch in epochs] == [0, 1, 2]
    assert epochs[1].genotype == PC_DARTS and epochs[2].genotype == from_dict(records[2]['genotype'])
    assert [epoch.valid_acc for epoch in epochs] == [record['valid_acc'] for record in records[:3]]


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


def test_the_numbers_of_the_curves_agree_with_numpy(tmp_path):
    from pictures import film as plots
    records = random_search(tmp_path, 3, betas=True)
    for record, epoch in zip(records, visualize.read_search(str(tmp_path), '--alphas', with_alphas=True)):
        for position, key in enumerate(('normal', 'reduce')):
            alphas = np.array(record['alphas'][position])
            weights = np.exp(alphas) / np.exp(alphas).sum(1)[:, None]
            total = 0.0
            for row in weights:
                total -= sum(p * np.log(p) for p in row)
            np.testing.assert_allclose(plots.softmax(epoch.alphas[position]), weights, rtol=1e-12)
            np.testing.assert_allclose(plots.entropy(epoch.alphas[position]), total / 14, rtol=1e-12)
            betas = np.exp(record['alphas'][2 + position])
            expected = np.concatenate([betas[a:b] / betas[a:b].sum() for a, b in ((0, 2), (2, 5), (5, 9), (9, 14))])
            np.testing.assert_allclose(plots.edge_weights(epoch.alphas[2 + position]), expected, rtol=1e-12)
        skips = json.dumps(record['genotype']['normal']).count('skip_connect')
        assert plots.skip_connections(epoch.genotype.normal) == skips
    assert plots.entropy(np.zeros((14, 8))) == pytest.approx(np.log(8))
    assert plots.entropy(np.eye(8) * 1000) == pytest.approx(0)


def test_the_figure_draws_these_numbers(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from pictures import film as plots
    records = random_search(tmp_path, 5, betas=True)
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda self, *args, **more: (figures.append(self), save(self, *args, **more)))
    plots.curves(visualize.read_search(str(tmp_path), '--alphas', with_alphas=True), 'png')
    normal, reduction, summary = figures[0].subfigs
    for position, part in enumerate((normal, reduction)):
        panels = [axes for axes in part.axes if axes.axison]
        assert len(panels) == 14
        shown = np.array([[line.get_ydata() for line in axes.lines] for axes in panels])  # [edge, operation, epoch]
        alphas = np.exp([record['alphas'][position] for record in records])
        np.testing.assert_allclose(shown, (alphas / alphas.sum(-1, keepdims=True)).transpose(1, 2, 0))
        kept = sum(axes.get_title('left').endswith(' → 3') and max(line.get_linewidth() for line in axes.lines) > 2
                   for axes in panels)
        assert kept == 2
        assert panels[0].get_title('left') == '$c_{k-2}$ → 0' and panels[-1].get_title('left') == '2 → 3'
    skips, entropies, accuracies = summary.axes
    assert list(skips.lines[0].get_ydata()) == [
        sum(edge[0] == 'skip_connect' for edge in record['genotype']['normal']) for record in records]
    np.testing.assert_allclose(accuracies.lines[1].get_ydata(), [100 * record['valid_acc'] for record in records])
    assert [text.get_text() for text in entropies.get_legend().get_texts()] == ['normal', 'reduction', 'all equal, log 8']


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


# ---------------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('words, message', [
    ([], 'give one of GENOTYPE (DARTS_V1, DARTS_V2, PC_DARTS'),
    (['PC_DARTS', '--film=x'], 'give one of GENOTYPE'),
    (['--film=x', '--alphas=x'], 'give one of GENOTYPE'),
    (['--film=x', '--cell=both'], 'argument --cell: goes with GENOTYPE'),
    (['--film=x', '--format=png'], 'argument --format: goes with GENOTYPE and --alphas; a film is always a gif'),
    (['PC_DARTS', '--format=bmp'], "argument --format: 'bmp' is not allowed: give one of png, svg, pdf"),
    (['PC_DARTS', '--cell=reduction'], 'give one of normal, reduce, both'),
    (['PC_DARTS', '--formats=svg'], 'there is no flag --formats; did you mean --format?'),
    (['PC_DARTS', '--output=x.svg', '--format=png'], 'ends in .svg; allowed here: .png'),
    (['PC_DART'], "'PC_DART' is neither a genotype's name (DARTS_V1, DARTS_V2, PC_DARTS) nor a genotype.json nor a folder"),
    (['.'], 'nor a folder that holds one'),
    (['--film=nowhere'], 'metrics.jsonl cannot be read: No such file or directory; give a folder that search.py wrote'),
    (['--alphas=nowhere'], '--alphas: ' + os.path.join('nowhere', 'metrics.jsonl')),
])
def test_a_wrong_command_line_is_refused_in_one_line(script, tmp_path, words, message):
    run = script('visualize.py', *words)
    assert run.returncode == 2 and run.stdout == ''
    assert run.stderr.startswith('visualize.py: error: ') and run.stderr.count('\n') == 1
    assert message in run.stderr
    assert files(tmp_path) == []


def test_a_broken_genotype_and_a_full_place_are_one_line(script, tmp_path):
    (tmp_path / 'genotype.json').write_text('{')
    run = script('visualize.py', '.')
    assert run.returncode == 2 and 'not a genotype' in run.stderr and run.stderr.count('\n') == 1
    random_search(tmp_path / 'run', 1)
    (tmp_path / 'run' / 'film.gif').mkdir()
    run = script('visualize.py', '--film=run')
    assert run.returncode == 1 and 'cannot write' in run.stderr and run.stderr.count('\n') == 1
    assert not [name for name in files(tmp_path) if 'film.gif' in name]


def changed(**changes):
    return lambda record: json.dumps(dict(record, **changes))


def without(key):
    return lambda record: json.dumps({name: value for name, value in record.items() if name != key})


@pytest.mark.parametrize('broken, message', [
    (lambda record: json.dumps(record)[:100], 'line 2: '),
    (lambda record: '[' * 100000, 'line 2: '),
    (lambda record: '[1]', 'line 2: an epoch is an object, not [1]'),
    (without('epoch'), 'line 2: the key epoch is missing'),
    (changed(epoch=-1), 'line 2: epoch must be a whole number'),
    (changed(epoch=True), 'line 2: epoch must be a whole number'),
    (changed(valid_acc='90'), "line 2: valid_acc must be a number from 0 to 1, it is '90'"),
    (changed(train_acc=90.0), 'line 2: train_acc must be a number from 0 to 1, it is 90.0'),
    (changed(epoch=7, genotype={'normal': []}), 'line 2: the key normal_concat and reduce'),
    (lambda record: without('genotype')(dict(record, epoch=7)), 'line 2: the key genotype is missing and there is no'),
    (without('alphas'), 'line 2: the key alphas is missing; give a folder that search.py wrote'),
    (changed(alphas=[[]]), 'line 2: alphas must list alphas_normal'),
    (changed(alphas=[[[0.0] * 7] * 14] * 2), 'line 2: alphas[0] must be 14 x 8 finite numbers'),
    (changed(alphas=[[[0.0] * 8] * 14, [[float('nan')] * 8] * 14]), 'line 2: alphas[1] must be 14 x 8'),
    (changed(alphas=[[[0.0] * 8] * 14] * 2 + [[0.0] * 14, [0.0] * 13]), 'line 2: alphas[3] must be 14 finite'),
    (changed(alphas=[{}, 'x']), 'line 2: alphas[0] must be 14 x 8'),
])
def test_a_broken_line_of_the_metrics_is_named(tmp_path, broken, message):
    records = random_search(tmp_path, 2)
    (tmp_path / 'metrics.jsonl').write_text(json.dumps(records[0]) + '\n' + broken(records[1]) + '\n')
    with pytest.raises(UserError) as error:
        visualize.read_search(str(tmp_path), '--alphas', with_alphas=True)
    assert str(error.value).startswith('{}: {}'.format(tmp_path / 'metrics.jsonl', message))
    assert '\n' not in str(error.value) and error.value.status == 2


@pytest.mark.parametrize('content, message', [(b'', 'holds no epoch yet'), (b'\n\n', 'holds no epoch yet'),
                                              (b'\xff\xfe', 'cannot be read')])
def test_a_file_that_holds_no_metrics_is_refused(tmp_path, content, message):
    (tmp_path / 'metrics.jsonl').write_bytes(content)
    with pytest.raises(UserError, match='--film: .*metrics.jsonl.* ' + message):
        visualize.read_search(str(tmp_path), '--film')


def test_epochs_with_cells_of_other_sizes_are_refused(tmp_path):
    records = random_search(tmp_path / 'a', 1) + random_search(tmp_path / 'b', 2, nodes=3)[1:]
    write_metrics(tmp_path / 'a', records)
    with pytest.raises(UserError, match='line 2: its cells have 3 nodes'):
        visualize.read_search(str(tmp_path / 'a'), '--film')


def test_neither_the_module_nor_its_help_imports_what_is_slow():
    code = ("import sys; sys.argv = ['visualize.py', '--help']; import visualize\n"
            "try: visualize.main()\nexcept SystemExit: pass\n"
            "slow = {'paddle', 'numpy', 'matplotlib', 'PIL', 'graphviz', 'plots'} & set(sys.modules)\n"
            "print(sorted(slow), file=sys.stderr)")
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (0, '[]') and 'visualize.py --film' in run.stdout


def test_drawing_never_imports_paddle(tmp_path):
    random_search(tmp_path, 2)
    code = (f"import sys, plots, visualize; epochs = visualize.read_search({str(tmp_path)!r}, '--alphas', True)\n"
            "plots.film(epochs), plots.curves(epochs, 'svg'), visualize.dot_source(epochs[0].genotype, ('normal',))\n"
            "print('paddle' in sys.modules, 'matplotlib.pyplot' in sys.modules)")
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout.split(), run.stderr) == (['False', 'False'], '')
