"""Pictures of cells and the film of a search: what they show and which files they write."""
import os
import random
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from searches import files, random_cell, random_search, write_metrics

import visualize
from genotypes import DARTS_V2, OPERATIONS, PC_DARTS, Genotype, from_dict, genotype_json
from pictures import cells, film, history
from runtime.errors import UserError

NAMES = ['c_{k-2}', 'c_{k-1}', '0', '1', '2', '3']

drawn = pytest.mark.skipif(not cells.programs(), reason='there is neither dot nor graphviz-pure')


def frames_of(path):
    from PIL import Image
    with Image.open(str(path)) as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append((image.convert('RGB'), image.info['duration']))
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
    concat = getattr(genotype, cell + '_concat')
    return sorted(edges + [(prefix + NAMES[state], prefix + 'c_{k}', '') for state in concat])


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
    monkeypatch.setattr(cells.shutil, 'which', lambda name, path=None: places.get(name))
    assert cells.render('digraph {}', 'svg') == b'good -Tsvg\n'
    places.update(dot=str(tmp_path / 'good'))
    assert cells.programs()[0] == places['dot']
    assert cells.render('digraph {}', 'pdf') == b'good -Tpdf\n'
    places.update({'dot': None, 'graphviz-pure': str(tmp_path / 'bad')})
    with pytest.raises(UserError, match=r'cannot draw a pdf: .*bad failed \(no plugins\); pip install .*dot') as error:
        cells.render('digraph {}', 'pdf')
    assert '\n' not in str(error.value) and error.value.status == 2
    places.clear()
    with pytest.raises(UserError, match='neither dot nor graphviz-pure is installed; pip install .*apt-get'):
        cells.render('digraph {}', 'png')


def test_graphviz_pure_is_found_beside_a_python_that_is_not_on_the_path(tmp_path, monkeypatch):
    program = tmp_path / ('graphviz-pure.exe' if os.name == 'nt' else 'graphviz-pure')
    program.write_text('')
    program.chmod(0o755)
    monkeypatch.setattr(cells.sys, 'executable', str(tmp_path / 'python'))
    monkeypatch.setenv('PATH', '')
    assert [os.path.normcase(path) for path in cells.programs()] == [os.path.normcase(str(program))]


def test_without_the_graphviz_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'graphviz', None)
    with pytest.raises(UserError, match='pip install graphviz graphviz-pure'):
        cells.dot_source(DARTS_V2, ('normal',))


def test_cells_of_other_searches_are_drawn():
    """Five nodes, one used by another alone, both inputs of a node from the same state."""
    edges = [('skip_connect', 0), ('conv_7x1_1x7', 0), ('sep_conv_7x7', 2), ('dil_conv_5x5', 1)]
    edges += [('max_pool_3x3', 1)] * 6
    genotype = from_dict({'normal': edges, 'normal_concat': [3, 4, 6], 'reduce': edges, 'reduce_concat': [2]})
    source = cells.dot_source(genotype, ('normal',))
    for word in ('conv_7x1_1x7', 'sep_conv_7x7', 'dil_conv_5x5'):
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
                                         ('b.gif', None, formats, 'allowed here: .png, .svg, .pdf')]:
        with pytest.raises(UserError, match=message):
            destination(output, 'a', kind, kinds)


@drawn
def test_the_path_of_a_single_cell(script, tmp_path):
    (tmp_path / 'pictures').mkdir()
    for output, name in (('one.svg', 'one.svg'), ('DARTS_V1', 'DARTS_V1.png'),
                         ('pictures', 'pictures/DARTS_V1_reduce.png')):
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
    path = os.path.join('a run', 'film.gif')
    assert run.stdout == path + '\n' and files(tmp_path) == sorted(before + [path])
    assert (tmp_path / path).stat().st_size < 1000000
    frames = frames_of(tmp_path / path)
    assert len(frames) == 50 and {image.size for image, _ in frames} == {(800, 580)}
    assert frames[0][1] < frames[-1][1]  # the last one stays longer
    assert len({image.tobytes() for image, _ in frames}) == 50


def test_nodes_stand_still_and_only_changes_are_highlighted(tmp_path):
    from PIL import ImageColor

    random_search(tmp_path, 6, still=0.5, seed=1)
    epochs = history.read_search(str(tmp_path), '--film').epochs
    (tmp_path / 'film.gif').write_bytes(film.film(epochs))
    frames = [image for image, _ in frames_of(tmp_path / 'film.gif')]
    new, half = ImageColor.getrgb(film.NEW), film.cell_size(4)[1]
    for index, frame in enumerate(frames):
        for top, key in ((film.CAPTION, 'reduce'), (film.CAPTION + half, 'normal')):
            for x, y in film.positions(4).values():
                # The disc of a node, without its rim that edges touch.
                inside = (x - 7, top + y - 7, x + 8, top + y + 8)
                assert frame.crop(inside).tobytes() == frames[0].crop(inside).tobytes()
            cell = getattr(epochs[index].genotype, key)
            last = getattr(epochs[index - 1].genotype, key) if index else cell
            for edge in film.place(cell):
                node = slice(2 * edge.node - 4, 2 * edge.node - 2)
                changed = (edge.operation, edge.source) not in last[node]
                x0, y0, x1, _ = edge.label
                pixels = [frame.getpixel((x, top + y0 + 3)) for x in range(x0 + 3, x1 - 3)]  # above the letters
                assert (np.abs(np.array(pixels) - new).sum(axis=1) < 30).mean() == (1 if changed else 0)


def apart(a, b):
    """Whether two boxes, (left, top, right, bottom), do not overlap."""
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize('nodes', [1, 2, 4, 5, 7])
def test_no_label_meets_another_or_a_node(nodes):
    generator = random.Random(nodes)
    width, height = film.cell_size(nodes)
    spots = film.positions(nodes)
    for _ in range(200):
        cell = random_cell(generator, nodes, OPERATIONS[1:])
        placed = film.place(cell)
        assert sorted((edge.operation, edge.source, edge.node) for edge in placed) == sorted(
            (operation, source, 2 + position // 2) for position, (operation, source) in enumerate(cell))
        boxes = [edge.label for edge in placed]
        for state, (x, y) in spots.items():
            half_width, half_height = (32, film.RADIUS) if state < 2 else (8, 8)
            boxes.append((x - half_width, y - half_height, x + half_width, y + half_height))
        for i, a in enumerate(boxes):
            assert 0 <= a[0] and a[2] <= width and 0 <= a[1] and a[3] <= height
            assert all(apart(a, b) for b in boxes[:i])
        for edge in placed:  # nor does the upright part of another edge pass through a label
            for other in placed:
                if edge is not other:
                    inside = edge.label[0] < other.x < edge.label[2]
                    top, bottom = spots[other.source][1], spots[other.node][1]
                    assert not (inside and top < edge.label[3] and edge.label[1] < bottom)


def test_every_operation_fits_its_label():
    for operation in OPERATIONS:
        assert film.label_text(operation) == (operation, 12)
    for name in ('a_rather_long_oper', 'x' * 80, 'W' * 80):
        text, size = film.label_text(name)
        assert film._font(size, False).getlength(text) <= film.LABEL[0] - 4 and 7 <= size < 12
        assert text == name or text[:5] == name[:5] and text.endswith('…')


def test_new_edges_by_hand():
    before = [('a', 0), ('b', 1), ('c', 0), ('d', 2)]
    assert not film.new_edges(before, None)
    assert not film.new_edges([('b', 1), ('a', 0), ('d', 2), ('c', 0)], before)  # the order within a node means nothing
    new = film.new_edges([('a', 0), ('c', 1), ('c', 0), ('d', 1)], before)
    assert new == {('c', 1, 2): 1, ('d', 1, 3): 1}
    assert film.new_edges([('a', 0), ('a', 0)], [('a', 0), ('none', 1)]) == {('a', 0, 2): 1}
    assert not film.new_edges([('none', 0), ('a', 0)], [('a', 0), ('b', 1)])  # removed, not new


# Node 0: one edge. Node 1: none. Node 2: the same edge twice. Node 3: two operations from one state.
SPARSE = [('sep_conv_3x3', 0), ('none', 1), ('none', 0), ('none', 1), ('max_pool_3x3', 1), ('max_pool_3x3', 1),
          ('skip_connect', 4), ('dil_conv_5x5', 4)]
SPARSE_EDGES = [('sep_conv_3x3', 0, 2), ('max_pool_3x3', 1, 4), ('max_pool_3x3', 1, 4), ('skip_connect', 4, 5),
                ('dil_conv_5x5', 4, 5)]


def test_none_is_no_edge_and_a_node_without_edges_is_not_concatenated():
    assert cells.drawn_edges(SPARSE) == SPARSE_EDGES
    assert cells.drawn_concat(SPARSE, range(2, 6)) == [2, 4, 5]
    source = cells.dot_source(Genotype(SPARSE, range(2, 6), SPARSE, range(2, 6)), ('normal',))
    assert 'none' not in source and source.count('->') == len(SPARSE_EDGES) + 3
    assert source.count('" max_pool_3x3 "') == 2
    placed = film.place(SPARSE)
    assert sorted(edge[:3] for edge in placed) == sorted(SPARSE_EDGES)
    assert len({(edge.x, edge.label) for edge in placed}) == len(placed)  # each at a place of its own
    boxes = [edge.label for edge in placed]
    assert all(apart(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_node_without_edges_has_no_line_to_the_output():
    from PIL import ImageColor
    genotype = Genotype(SPARSE, range(2, 6), SPARSE, range(2, 6))
    frame = film.picture([history.Epoch(0, genotype, 0.5, 0.5, None)])
    line = ImageColor.getrgb(film.GREY)
    for state in range(2, 6):
        x, y = film.positions(4)[state]
        pixels = frame[film.CAPTION + y - 1:film.CAPTION + y + 2, x + film.RADIUS + 3:x + film.RADIUS + 12].astype(int)
        assert (np.abs(pixels - line).sum(-1) < 60).any() == (state != 3)


def test_long_films_are_thinned_out():
    epochs = [history.Epoch(number, None, 0, 0, None) for number in range(1000)]
    for limit in (1, 2, 7, 999, 1000, 2000):
        few = [epoch.number for epoch in history.thin_out(epochs, limit)]
        assert len(few) == min(limit, 1000) and few == sorted(set(few))
        assert few[-1] == 999 and (limit == 1 or few[0] == 0)
        assert limit < 2 or max(b - a for a, b in zip(few, few[1:])) <= 999 / (len(few) - 1) + 1


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
    epochs = history.read_search(str(tmp_path), '--film').epochs
    assert [epoch.number for epoch in epochs] == [0, 1, 2]
    assert epochs[1].genotype == PC_DARTS and epochs[2].genotype == from_dict(records[2]['genotype'])
    assert [epoch.valid_acc for epoch in epochs] == [record['valid_acc'] for record in records[:3]]
