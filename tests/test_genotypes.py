"""Genotypes: the named cells, genotype.json, and what is refused."""
import json

import numpy as np
import pytest
from conftest import shared_file

import genotypes
from genotypes import (
    DARTS_V2,
    PC_DARTS,
    PRIMITIVES,
    connected_states,
    derive_cell,
    from_dict,
    genotype_json,
    get_genotype,
    read_genotype,
    to_dict,
)


@pytest.mark.parametrize('name', ['DARTS_V1', 'DARTS_V2', 'PC_DARTS'])
def test_the_named_cells_are_those_of_the_example(name):
    with open(shared_file('reference', 'genotypes.json')) as f:
        published = json.load(f)['genotypes']['PaddleSlim_' + name]
    assert get_genotype(name) == from_dict({key: published[key] for key in genotypes.Genotype._fields})
    assert set(genotypes.named_genotypes()) == {'DARTS_V1', 'DARTS_V2', 'PC_DARTS'}


def test_operations_are_those_that_can_be_built():
    from operations import OPS
    assert set(genotypes.OPERATIONS) == set(OPS)


def test_a_genotype_survives_json(tmp_path):
    path = tmp_path / 'genotype.json'
    path.write_text(genotype_json(DARTS_V2, {'method': 'DARTS', 'epoch': 3}))
    assert get_genotype(str(path)) == DARTS_V2
    assert repr(read_genotype(str(path))) == repr(DARTS_V2)  # tuples and range(2, 6) again, not lists
    assert json.loads(path.read_text())['search'] == {'method': 'DARTS', 'epoch': 3}
    path.write_text('\ufeff' + path.read_text(), encoding='utf-8')  # as editors on Windows save it
    assert get_genotype(str(path)) == DARTS_V2


def test_cells_with_other_node_counts_and_concats_are_read():
    """NASNet's and AmoebaNet's have five nodes and concatenate some of them."""
    with open(shared_file('reference', 'genotypes.json')) as f:
        published = json.load(f)['genotypes']
    amoeba = from_dict(published['AmoebaNet'])
    assert len(amoeba.normal) == 10 and amoeba.reduce_concat == [3, 4, 6] and amoeba.normal_concat == range(4, 7)


def changed(**changes):
    return dict(to_dict(DARTS_V2), **changes)


EDGES = to_dict(DARTS_V2)['normal']

REFUSED = [
    ([], 'an object with the keys'),
    ({'normal': EDGES}, 'the keys normal_concat, reduce, reduce_concat are missing'),
    (changed(normal=[]), 'normal must be a list'),
    (changed(normal=EDGES[:7]), 'two for each node'),
    (changed(normal=7), 'normal must be a list'),
    (changed(normal=[['conv_9x9', 0]] + EDGES[1:]), "normal[0]: unknown operation 'conv_9x9'; known are none"),
    (changed(normal=[[['a'], 0]] + EDGES[1:]), 'normal[0]: unknown operation'),
    (changed(normal=[['skip_connect', 2]] + EDGES[1:]), 'normal[0]: node 0 can take its input from states 0 to 1, not '
                                                        'from 2'),
    (changed(normal=[['skip_connect', -1]] + EDGES[1:]), 'not from -1'),
    (changed(normal=[['skip_connect', True]] + EDGES[1:]), 'not from True'),
    (changed(normal=[['skip_connect', 0.0]] + EDGES[1:]), 'not from 0.0'),
    (changed(reduce=EDGES[:3] + [['skip_connect', 5]] + EDGES[4:]), 'reduce[3]: node 1 can take its input from states '
                                                                    '0 to 2'),
    (changed(reduce=[['skip_connect']] + EDGES[1:]), 'reduce[0] must be an [operation, state] pair'),
    (changed(normal_concat=[2, 3, 4, 6]), 'normal_concat must list different nodes of the cell, 2 to 5'),
    (changed(normal_concat=[2, 2]), 'normal_concat must list different nodes'),
    (changed(reduce_concat=[1, 2]), 'reduce_concat must list'),
    (changed(reduce_concat=[]), 'reduce_concat must list'),
]


@pytest.mark.parametrize('data, message', REFUSED)
def test_a_wrong_genotype_is_refused_by_what_is_wrong(tmp_path, data, message):
    path = tmp_path / 'genotype.json'
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError) as error:
        get_genotype(str(path))
    assert str(error.value).startswith(f'{path}: not a genotype: ') and message in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe', b'[' * 100000, b' ' * (1 << 20) + b'{}'])
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / 'genotype.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='not a genotype'):
        read_genotype(str(path))


@pytest.mark.parametrize('arch', ['DARTS_V9', 'PRIMITIVES', '__doc__', 'DARTS_V1.normal', '__import__("os").getcwd()',
                                  ''])
def test_an_arch_is_a_name_or_a_file_and_never_code(arch):
    with pytest.raises(ValueError, match='neither a genotype.*DARTS_V1, DARTS_V2, PC_DARTS'):
        get_genotype(arch)


def test_derivation_of_a_cell_by_hand():
    """Node 0 keeps both its edges, node 1 the two strongest of three; `none` never wins, however strong."""
    strengths = [[0.0] * len(PRIMITIVES) for _ in range(5)]
    strengths[0][4], strengths[0][0] = 0.3, 0.7
    strengths[1][1] = 0.5
    strengths[2][6], strengths[3][2], strengths[4][7] = 0.2, 0.1, 0.9
    assert derive_cell(strengths, PRIMITIVES, 2) == [
        ('max_pool_3x3', 1), ('sep_conv_3x3', 0), ('dil_conv_5x5', 2), ('dil_conv_3x3', 0)]


# ---------------------------------------------------------------------------------------------------------------------
# Other ways to give a genotype
# ---------------------------------------------------------------------------------------------------------------------


def test_every_published_cell_has_a_name():
    """All 50 cells of the reference file, edge by edge; FairDARTS's explicit edges [op, to, from] become pairs with
    `none`."""
    with open(shared_file('reference', 'genotypes.json')) as f:
        published = json.load(f)['genotypes']
    assert len(published) == 50
    for name, cell in published.items():
        found = get_genotype(name + '_paper' if name in ('DARTS_V1', 'DARTS_V2') else name)
        for kind in ('normal', 'reduce'):
            edges = [(operation, 2 + i // 2, state) for i, (operation, state) in enumerate(getattr(found, kind))]
            if cell['format'].startswith('edges'):
                assert [list(edge) for edge in edges if edge[0] != 'none'] == cell[kind], name
            else:
                assert [[operation, state] for operation, _, state in edges] == cell[kind], name
            assert list(getattr(found, kind + '_concat')) == cell[kind + '_concat'], name


def test_the_names_of_the_example_keep_their_meaning():
    assert get_genotype('DARTS_V2') == DARTS_V2 == get_genotype('PaddleSlim_DARTS_V2') != get_genotype('DARTS_V2_paper')
    with pytest.raises(ValueError, match='did you mean PDARTS'):
        get_genotype('P-DARTS')


def test_the_printed_text_and_a_folder_are_read(tmp_path):
    assert get_genotype(repr(DARTS_V2)) == DARTS_V2
    assert get_genotype(f' {DARTS_V2} \n'.replace('range(2, 6)', '[2, 3, 4, 5]')) == DARTS_V2
    (tmp_path / 'genotype.json').write_text(genotype_json(PC_DARTS))
    assert get_genotype(str(tmp_path)) == PC_DARTS


@pytest.mark.parametrize('text', [
    'Genotype(normal=__import__("os").getcwd(), normal_concat=[2], reduce=[], reduce_concat=[2])',
    'Genotype(normal=[].append(1))', 'Genotype(1)', 'Genotype(**{})', 'Genotype(', 'Genotype()',
    'Genotype(normal=[])()',
    'Genotype(normal=' + '(' * 100000 + ')', 'Genotype(normal=' + '-' * 100000 + '1)',
    repr(DARTS_V2).replace('range(2, 6)', 'range(0, 10**9)'), repr(DARTS_V2).replace('range(2, 6)',
                                                                                     'range(2, 1000000000)'),
    repr(DARTS_V2).replace('range(2, 6)', 'range(2, 6, 0)'), repr(DARTS_V2).replace('range(2, 6)', 'range()')])
def test_a_wrong_text_is_refused_and_never_evaluated(text):
    with pytest.raises(ValueError, match='not a genotype'):
        get_genotype(text)


def test_genotypes_written_in_code():
    """Numpy integers and nodes as nested pairs are accepted; nine edges are not."""
    edges = [(operation, np.int64(state)) for operation, state in DARTS_V2.normal]
    nested = [tuple(DARTS_V2.reduce[i:i + 2]) for i in range(0, 8, 2)]
    given = DARTS_V2._replace(normal=edges, normal_concat=tuple(np.arange(2, 6)), reduce=nested)
    assert from_dict(given._asdict()) == DARTS_V2
    for wrong in (edges + edges[:1], nested[:3] + [nested[3][:1]]):
        with pytest.raises(ValueError, match='two'):
            from_dict(DARTS_V2._replace(normal=wrong)._asdict())


def test_bounds_and_states_without_an_input():
    with pytest.raises(ValueError, match='2000 nodes; at most 64'):
        from_dict(changed(normal=[['skip_connect', 0]] * 4000))
    # State 3 has no input, so an edge that leaves it is none either.
    edges = [('skip_connect', 0), ('none', 1), ('none', 0), ('none', 1), ('skip_connect', 3), ('none', 0)]
    assert connected_states(edges) == [0, 1, 2]
