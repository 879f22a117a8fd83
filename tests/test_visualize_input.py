"""What visualize.py refuses: wrong command lines, damaged and hostile files. One line, status 2, no file written."""
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from searches import files, own_search, random_search, write_metrics

import visualize
from genotypes import DARTS_V2, PRIMITIVES, to_dict
from pictures import film, history
from runtime.errors import UserError, printable


@pytest.mark.parametrize('words, message', [
    ([], 'give one of GENOTYPE (DARTS_V1, DARTS_V2, PC_DARTS'),
    (['PC_DARTS', '--film=x'], 'give one of GENOTYPE'),
    (['--film=x', '--alphas=x'], 'give one of GENOTYPE'),
    (['--film=x', '--cell=both'], 'argument --cell: goes with GENOTYPE'),
    (['--film=x', '--format=png'], 'argument --format: goes with GENOTYPE, --alphas and --results'),
    (['PC_DARTS', '--format=bmp'], "argument --format: 'bmp' is not allowed: give one of png, svg, pdf"),
    (['PC_DARTS', '--cell=reduction'], 'give one of normal, reduce, both'),
    (['PC_DARTS', '--formats=svg'], 'there is no flag --formats; did you mean --format?'),
    (['PC_DARTS', '--output=x.svg', '--format=png'], 'ends in .svg; allowed here: .png'),
    (['PC_DART'], "'PC_DART' is neither a genotype's name ("),
    (['.'], 'a folder that holds one'),
    ([''], 'is neither'),
    (['PC_DARTS', '--output='], 'argument --output: an empty value is not allowed'),
    (['--film='], 'argument --film: an empty value is not allowed'),
    (['--alphas='], 'argument --alphas: an empty value is not allowed'),
    (['PC_DARTS', '--output=/dev/null'], '--output: /dev/null exists and is not a file'),
    (['PC_DARTS', '--output=' + 'x' * 300], 'is not a path for a picture: File name too long'),
    (['Genotype(normal=[__import__("os").system("touch ran")])'], 'not a genotype'),
    (['Genotype(' + '(' * 5000], 'not a genotype'),
    (['--film=' + __file__], '--film: ' + os.path.join(__file__, 'film.gif') + ' is not a path for a picture'),
    (['--alphas=' + __file__], '--alphas: ' + os.path.join(__file__, 'alphas.png') + ' is not a path for a picture'),
    (['--results=' + os.path.join(__file__, 'x')], '--results: ' + os.path.join(__file__, 'x.png') + ' is not a path'),
    (['--film=nowhere'], 'metrics.jsonl cannot be read: No such file or directory; give a folder that search.py wrote'),
    (['--alphas=nowhere'], '--alphas: ' + os.path.join('nowhere', 'metrics.jsonl')),
])
def test_a_wrong_command_line_is_refused_in_one_line(script, tmp_path, words, message):
    run = script('visualize.py', *words)
    assert run.returncode == 2 and run.stdout == ''
    assert run.stderr.startswith('visualize.py: error: ') and run.stderr.count('\n') == 1
    assert run.stderr[:-1].isprintable()
    assert message in run.stderr
    assert files(tmp_path) == []


def test_a_broken_genotype_and_a_full_place_are_one_line(script, tmp_path):
    (tmp_path / 'genotype.json').write_text('{')
    run = script('visualize.py', '.')
    assert run.returncode == 2 and 'not a genotype' in run.stderr and run.stderr.count('\n') == 1
    random_search(tmp_path / 'run', 1)
    (tmp_path / 'run' / 'film.gif').mkdir()
    run = script('visualize.py', '--film=run')
    assert run.returncode == 2 and 'film.gif exists and is not a file' in run.stderr and run.stderr.count('\n') == 1
    assert not [name for name in files(tmp_path) if 'film.gif' in name]


def changed(**changes):
    return lambda record: json.dumps(dict(record, **changes))


def without(key):
    return lambda record: json.dumps({name: value for name, value in record.items() if name != key})


@pytest.mark.parametrize('broken, message', [
    (lambda record: json.dumps(record)[:100], 'line 2: '),
    (lambda record: '[' * 100000, 'line 2: '),
    (lambda record: '[1]', 'line 2: an object is expected, not [1]'),
    (without('epoch'), 'line 2: the key epoch is missing'),
    (changed(epoch=-1), 'line 2: epoch must be a whole number'),
    (changed(epoch=True), 'line 2: epoch must be a whole number'),
    (changed(valid_acc='90'), "line 2: valid_acc must be a number from 0 to 1, it is '90'"),
    (changed(train_acc=90.0), 'line 2: train_acc must be a number from 0 to 1, it is 90.0'),
    (changed(epoch=7, genotype={'normal': []}), 'line 2: the keys normal_concat, reduce, reduce_concat are missing'),
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
        history.read_search(str(tmp_path), '--alphas', with_weights=True)
    assert str(error.value).startswith('{}: {}'.format(tmp_path / 'metrics.jsonl', message))
    assert '\n' not in str(error.value) and error.value.status == 2


@pytest.mark.parametrize('content, message', [(b'', 'holds no epoch yet'), (b'\n\n', 'holds no epoch yet'),
                                              (b'\xff\xfe', 'line 1: byte 0 is not UTF-8 text'),
                                              (b'\xef\xbb\xbf\n', 'line 1')])
def test_a_file_that_holds_no_metrics_is_refused(tmp_path, content, message):
    (tmp_path / 'metrics.jsonl').write_bytes(content)
    with pytest.raises(UserError, match='metrics.jsonl.* ' + message):
        history.read_search(str(tmp_path), '--film')


def test_epochs_with_cells_of_other_sizes_are_refused(tmp_path):
    records = random_search(tmp_path / 'a', 1) + random_search(tmp_path / 'b', 2, nodes=3)[1:]
    write_metrics(tmp_path / 'a', records)
    with pytest.raises(UserError, match='line 2: its cells have 3 nodes'):
        history.read_search(str(tmp_path / 'a'), '--film')


def own_line(**changes):
    """A line of metrics.jsonl with weights, [14, 8] for two kinds of cells."""
    line = dict(epoch=0, train_acc=0.5, genotype=to_dict(DARTS_V2), weights=[[[0.125] * 8] * 14] * 2,
                cells=['normal', 'reduce'], operations=PRIMITIVES)
    return json.dumps(dict(line, **changes))


def metrics(text):
    """A search folder whose metrics.jsonl holds a text, as the argument of --alphas."""
    def make(folder):
        (folder / 'run').mkdir()
        (folder / 'run' / 'metrics.jsonl').write_text(text)
        return ['--alphas=run']
    return make


def genotype_file(text):
    def make(folder):
        (folder / 'genotype.json').write_text(text)
        return ['genotype.json']
    return make


def genotype_of_nodes(count):
    edges = [['skip_connect', 0]] * (2 * count)
    return json.dumps({'normal': edges, 'normal_concat': [2], 'reduce': edges, 'reduce_concat': [2]})


def special(kind, *argv):
    """A FIFO, a link to itself, a device or a folder in the place of a file."""
    def make(folder):
        (folder / 'run').mkdir()
        path = folder / 'run' / 'metrics.jsonl'
        if kind == 'fifo':
            os.mkfifo(path)
        elif kind == 'folder':
            path.mkdir()
        else:
            path.symlink_to({'loop': path, 'zero': '/dev/zero', 'full': '/dev/full', 'tty': '/dev/tty'}[kind])
        return list(argv)
    return make


def epoch_file(text):
    """A search whose <epoch>/genotype.json holds a text."""
    def make(folder):
        random_search(folder / 'run', 1)
        (folder / 'run' / '0' / 'genotype.json').write_text(text)
        return ['--film=run']
    return make


def sparse(size, name, *argv):
    """A file with a hole: large, but no room on the disk."""
    def make(folder):
        (folder / 'run').mkdir()
        with open(folder / 'run' / name, 'wb') as f:
            f.truncate(size)
        return list(argv)
    return make


HOSTILE = {
    'NaN weights': (metrics(own_line(weights=[[[float('nan')] * 8] * 14] * 2)), 'weights[0] must be'),
    'infinite weights': (metrics(own_line(weights=[[[float('inf')] * 8] * 14] * 2)), 'weights[0] must be'),
    'a huge number': (metrics(own_line().replace('0.125', '1' * 350)), 'weights[0] must be'),
    'too many digits': (metrics(own_line().replace('0.125', '1' * 100000)), 'line 1: '),
    'ragged weights': (metrics(own_line(weights=[[[1.0], [1.0, 2.0]]])), 'weights[0] must be'),
    'texts as weights': (metrics(own_line(weights=[[['a'] * 8] * 14] * 2)), 'weights[0] must be'),
    'true as weights': (metrics(own_line(weights=[[[True] * 8] * 14] * 2)), 'weights[0] must be'),
    'no weights': (metrics(own_line(weights=[])), 'weights must be a list'),
    'weights null': (metrics(own_line(weights=None)), 'weights must be a list'),
    'empty weights': (metrics(own_line(weights=[[[]]])), 'weights[0] must be'),
    'flat weights': (metrics(own_line(weights=[[1.0, 2.0]])), 'weights[0] must be'),
    'deep weights': (metrics(own_line(weights=[[[[1.0]]]])), 'weights[0] must be'),
    'too many kinds of cells': (metrics(own_line(weights=[[[1.0]]] * 9)), 'at most 8'),
    'too many operations': (metrics(own_line(weights=[[[1.0] * 65]])), 'at most 64 operations'),
    'too many edges': (metrics(own_line(weights=[[[1.0] * 8] * 401])), '401 edges; at most 400'),
    'cells of other operations': (metrics(own_line(weights=[[[1.0]], [[1.0, 2.0]]])), 'the same number of operations'),
    'too few names': (metrics(own_line(operations=['a'])), 'operations must list 8 names'),
    'names that are no texts': (metrics(own_line(operations=list(range(8)))), 'operations must list names'),
    'names as a text': (metrics(own_line(operations='abcdefgh')), 'operations must list'),
    'a terminal escape as a name': (metrics(own_line(operations=['\x1b[2J'] * 8)), 'printable characters'),
    'a line break as a name': (metrics(own_line(operations=['a\nb'] * 8)), 'printable characters'),
    'an empty name': (metrics(own_line(operations=[''] * 8)), 'printable characters'),
    'an endless name': (metrics(own_line(operations=['x' * 10000] * 8)), 'at most 80 printable characters'),
    'too few cells': (metrics(own_line(cells=['normal'])), 'cells must list 2 names'),
    'cells as an object': (metrics(own_line(cells={'normal': 1})), 'cells must list 2 names'),
    'too few edges': (metrics(own_line(genotype='x', edges=['a'])), 'edges must list 14 names'),
    'an epoch too large': (metrics(own_line(epoch=10**12)), 'epoch must be a whole number'),
    'an epoch as a text': (metrics(own_line(epoch='0')), 'epoch must be a whole number'),
    'an epoch as a path': (metrics(own_line(epoch='../../etc')), 'epoch must be a whole number'),
    'an accuracy as true': (metrics(own_line(valid_acc=True)), 'valid_acc must be a number'),
    'an accuracy of infinity': (metrics(own_line(valid_acc=float('inf'))), 'valid_acc must be a number'),
    'an escape in the place of an object': (metrics('"\\u001b[2J"'), 'an object is expected'),
    'a genotype of 2,000 nodes': (
        metrics(own_line(genotype=json.loads(genotype_of_nodes(2000)))), '2000 nodes; at most 64'),
    'a genotype with an unknown state': (
        metrics(own_line(genotype=dict(to_dict(DARTS_V2), normal=[['skip_connect', 10**30]] * 8))),
        'can take its input'),
    'an operation of another type': (
        metrics(own_line(genotype=dict(to_dict(DARTS_V2), normal=[[5, 0]] * 8))), 'unknown operation'),
    'lines that differ': (
        metrics(own_line() + '\n' + own_line(epoch=1, weights=[[[1.0] * 8] * 13] * 2)), 'line 2: its cells'),
    'a line too long': (metrics(' ' * (2 << 20)), 'line 1: longer than 1 MB'),
    'nested too deeply': (metrics('{"epoch": ' * 50000), 'line 1: '),
    'a list of lists': (metrics('[' * 500000), 'line 1: '),
    'null characters': (metrics('\0' * 1000), 'line 1: '),
    'only alphas, no genotype of cells': (
        metrics('{"epoch": 0, "genotype": "x", "alphas": []}'), 'the key weights is missing'),
    'the film of another space': (
        lambda folder: own_search(folder / 'run', 1, (6, 5)) and ['--film=run'], 'a film shows cells'),
    'a FIFO as the metrics of a film': (special('fifo', '--film=run'), 'it is not a regular file'),
    'a FIFO as the metrics of curves': (special('fifo', '--alphas=run'), 'it is not a regular file'),
    'a FIFO as a genotype': (special('fifo', 'run/metrics.jsonl'), 'is neither'),
    'a link to itself as the metrics': (special('loop', '--film=run'), 'Too many levels of symbolic links'),
    'a link to itself as a genotype': (special('loop', 'run/metrics.jsonl'), 'is neither'),
    'a link to itself as the output': (
        special('loop', 'PC_DARTS', '--output=run/metrics.jsonl'), 'not a path for a picture'),
    'a folder as the metrics': (special('folder', '--film=run'), 'it is not a regular file'),
    'a folder without a genotype': (special('folder', 'run'), 'is neither'),
    'a device as the metrics of a film': (special('zero', '--film=run'), 'it is not a regular file'),
    'a device as the metrics of curves': (special('zero', '--alphas=run'), 'it is not a regular file'),
    'a device as a genotype': (special('zero', 'run/metrics.jsonl'), 'is neither'),
    'a device as the output': (special('full', 'PC_DARTS', '--output=run/metrics.jsonl'), 'exists and is not a file'),
    'metrics of 10 GB': (sparse(10 << 30, 'metrics.jsonl', '--alphas=run'), 'larger than 64 MB'),
    'a genotype of 10 GB': (sparse(10 << 30, 'genotype.json', 'run'), 'not a genotype'),
    'an empty genotype': (genotype_file(''), 'not a genotype'),
    'genotype: 2,000 nodes': (genotype_file(genotype_of_nodes(2000)), '2000 nodes; at most 64'),
    'genotype: NaN': (genotype_file(genotype_of_nodes(1).replace('0]', 'NaN]')), 'can take its input'),
    'genotype: a list': (genotype_file('[]'), 'not a genotype'),
    'genotype: nested too deeply': (genotype_file('[' * 100000), 'not a genotype'),
    'genotype: a terminal escape': (
        genotype_file(genotype_of_nodes(1).replace('skip', '\\u001b[31m')), 'unknown operation'),
    'genotype: many digits': (genotype_file(genotype_of_nodes(1).replace('0]', '1' * 100000 + ']')), 'not a genotype'),
    'an epoch of a broken genotype': (epoch_file('{'), 'genotype.json: not a genotype'),
    'an epoch of a genotype of 2,000 nodes': (epoch_file(genotype_of_nodes(2000)), '2000 nodes; at most 64'),
    'an epoch of a large genotype': (epoch_file(' ' * (2 << 20)), 'more than the 1,048,576 bytes'),
    'an epoch of another space': (epoch_file('{"architecture": "x"}'), 'a film shows cells'),
    'an escape in a path': (lambda folder: ['--film=\x1b[2J'], 'cannot be read'),
    'an escape in a name': (lambda folder: ['\x1b]0;owned\x07'], 'is neither'),
    'a name too long': (lambda folder: ['x' * 5000], 'is neither'),
    'a path too long': (lambda folder: ['--alphas=' + 'x/' * 3000], 'File name too long'),
    'a file as a folder': (lambda folder: ['--film=' + os.path.join(ROOT, 'visualize.py')], 'Not a directory'),
    'a file as the folder of the output': (
        lambda folder: ['PC_DARTS', '--output=' + os.path.join(ROOT, 'visualize.py', 'x.png')], 'Not a directory'),
    'bytes that are not UTF-8': (lambda folder: ['--film=' + os.fsdecode(b'\xff')], 'cannot be read'),
}
posix = pytest.mark.skipif(os.name != 'posix', reason='FIFOs, devices and links')


@posix
@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_input_is_one_line(tmp_path, monkeypatch, name):
    make, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    argv = make(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['visualize.py', *argv])
    with pytest.raises(UserError) as error:
        visualize.main()
    line = printable(str(error.value))
    assert message in line and error.value.status == 2
    assert len(line) < 1500 + len(str(tmp_path)) and line.isprintable()
    assert files(tmp_path) == before


@posix
@pytest.mark.parametrize('name', ['a device as the metrics of curves', 'a device as a genotype', 'metrics of 10 GB',
                                  'a genotype of 10 GB', 'a FIFO as the metrics of a film', 'an escape in a path',
                                  'genotype: a terminal escape', 'bytes that are not UTF-8'])
def test_hostile_input_takes_little_memory_and_ends_with_status_2(script, tmp_path, name):
    import resource
    make, message = HOSTILE[name]
    run = script('visualize.py', *make(tmp_path),
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)))
    assert (run.returncode, run.stdout, run.stderr.count('\n')) == (2, '', 1)
    assert message in run.stderr and run.stderr[:-1].isprintable()


def test_names_of_own_operations_are_drawn_as_they_are(tmp_path):
    """matplotlib takes $ for mathematics, Graphviz \\N for the name of a node."""
    from pictures import cells, curves
    names = ['$x', r'$\frac$', r'a\N', '<b>', '_private', '100%', 'x' * 80, '中文']
    genotype = to_dict(DARTS_V2._replace(normal=[(name, 0) for name in names], reduce=[(name, 1) for name in names]))
    own_search(tmp_path, 2, (14, 8), names, [genotype] * 2, ['$cell', r'\frac{$'])
    search = history.read_search(str(tmp_path), '--alphas', with_weights=True)
    for kind in ('png', 'svg', 'pdf'):
        assert len(curves.curves(search, kind)) > 10000
    svg = curves.curves(search, 'svg').decode()
    assert '$x' in svg and '$\\frac$' in svg and '$cell' in svg
    assert film.film(search.epochs).startswith(b'GIF')
    source = cells.dot_source(search.epochs[0].genotype, ('normal',))
    assert r'a\\N' in source and '"' + ' <b> ' + '"' in source


def test_neither_the_module_nor_its_help_imports_what_is_slow():
    code = ("import sys; sys.argv = ['visualize.py', '--help']; import visualize\n"
            "try: visualize.main()\nexcept SystemExit: pass\n"
            "slow = {'paddle', 'numpy', 'matplotlib', 'PIL', 'graphviz'} & set(sys.modules)\n"
            "print(sorted(slow), file=sys.stderr)")
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (0, '[]') and 'visualize.py --film' in run.stdout


def test_drawing_never_imports_paddle(tmp_path):
    random_search(tmp_path, 2)
    code = (f"import sys; from pictures import cells, curves, film, history\n"
            f"search = history.read_search({str(tmp_path)!r}, '--alphas', True)\n"
            "film.film(search.epochs), curves.curves(search, 'svg')\n"
            "cells.dot_source(search.epochs[0].genotype, ('normal',))\n"
            "print('paddle' in sys.modules, 'matplotlib.pyplot' in sys.modules)")
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout.split(), run.stderr) == (['False', 'False'], '')
