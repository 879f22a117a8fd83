"""Importing a module changes nothing in the process; imports run in one direction only."""
import ast
import glob
import json
import os
import shutil

import pytest
from conftest import ROOT, needs_numba, run

SCRIPTS = ['search', 'train', 'train_imagenet', 'visualize']
FOLDERS = ['nas', 'training', 'pipeline', 'runtime', 'kernels', 'pictures']
TOP = SCRIPTS + ['model_search', 'model', 'reader', 'operations', 'genotypes']

# What a module or the modules of a folder may import besides libraries; a folder's modules may import one another.
MAY_IMPORT = {
    'genotypes': [],
    'operations': ['kernels', 'runtime.errors'],
    'model': ['genotypes', 'operations', 'runtime'],
    'model_search': ['genotypes', 'operations', 'nas.methods', 'runtime'],
    'reader': ['pipeline', 'runtime'],
    'nas': ['genotypes', 'operations', 'training', 'pipeline', 'runtime', 'kernels'],
    'training': ['genotypes', 'pipeline', 'runtime'],
    'pipeline': ['runtime'],
    'pictures': ['genotypes', 'nas.collapse', 'runtime'],  # entropy, which the collapse test uses too
    'runtime': ['genotypes'],
    'kernels': ['runtime.log', 'runtime.parallel'],
    **{script: [name for name in TOP + FOLDERS if name not in SCRIPTS] for script in SCRIPTS},
}


def test_importing_all_modules_changes_nothing_in_the_process(tmp_path):
    result = run(tmp_path, 'import_everything.py', ROOT)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(TOP + FOLDERS) <= set(found['modules'])
    assert found['changes'] == {}


def test_the_change_of_a_process_is_noticed(tmp_path):
    """The test above can fail: it finds what a project of one module changes."""
    (tmp_path / 'project').mkdir()
    (tmp_path / 'project' / 'module.py').write_text(
        'import atexit, logging, os, random, signal, threading, warnings, numpy, paddle\n'
        'threading.excepthook = print\natexit.register(print)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
        'logging.getLogger("darts").setLevel(10)\nwarnings.simplefilter("ignore")\n'
        'os.environ["CHANGED"] = "1"\nos.umask(0o777)\n'
        'paddle.set_flags({"FLAGS_paddle_num_threads": 7})\nrandom.random()\nnumpy.random.rand()\npaddle.rand([1])\n'
        'paddle.seed(5)\n')
    result = run(tmp_path, 'import_everything.py', str(tmp_path / 'project'))
    assert result.returncode == 0, result.stderr
    expected = {'threading.excepthook', 'functions called at exit', 'handler of signal 15', 'logger darts',
                'warnings.filters', 'environment', 'umask', 'Paddle flag FLAGS_paddle_num_threads',
                'random state of Python', 'random state of numpy', 'random state of Paddle'}
    assert expected <= set(json.loads(result.stdout)['changes'])


@needs_numba
def test_numba_keeps_our_functions_apart_and_a_users_where_they_were(tmp_path):
    """Ours are found again in the next process, and not after a change of any file of kernels/."""
    shutil.copytree(os.path.join(ROOT, 'kernels'), str(tmp_path / 'copy' / 'kernels'))
    (tmp_path / 'users_module.py').write_text('import numba\n\n\n@numba.njit(cache=True)\n'
                                              'def double(x):\n    return 2 * x\n')
    environment = {name: value for name, value in os.environ.items() if name != 'NUMBA_CACHE_DIR'}

    def call():
        result = run(tmp_path, 'numba_cache.py', str(tmp_path / 'copy'), ROOT, env=environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    first, second = call(), call()
    assert first['users']['folder'] == str(tmp_path / '__pycache__')
    assert first['ours']['folder'].startswith(str(tmp_path / 'copy' / 'kernels'))
    assert (first['ours']['hits'], first['ours']['misses']) == (0, 1)
    assert (second['ours']['hits'], second['ours']['misses']) == (1, 0)
    assert second['ours']['folder'] == first['ours']['folder']
    last = sorted((tmp_path / 'copy' / 'kernels').glob('*.py'))[-1]
    last.write_text(last.read_text() + '# changed\n')
    third = call()
    assert third['ours']['folder'] != first['ours']['folder'] and third['ours']['misses'] == 1
    assert third['users'] == second['users'] and third['users']['hits'] == 1


# ---------------------------------------------------------------------------------------------------------------------
# The direction of imports
# ---------------------------------------------------------------------------------------------------------------------


def module_files():
    """{module name: path} of the nine modules at the top and of the folders."""
    paths = glob.glob(os.path.join(ROOT, '*.py'))
    for folder in FOLDERS:
        paths += glob.glob(os.path.join(ROOT, folder, '**', '*.py'), recursive=True)
    names = {}
    for path in paths:
        parts = os.path.relpath(path, ROOT)[:-len('.py')].split(os.sep)
        names['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return names


def imports(path, modules):
    """The modules of ours that a file imports, anywhere in it."""
    with open(path) as f:
        tree = ast.parse(f.read())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: a relative import'
            found.update(f'{node.module}.{alias.name}' if f'{node.module}.{alias.name}' in modules else node.module
                         for alias in node.names)
    return found & set(modules)


MODULES = module_files()
IMPORTS = {name: imports(path, MODULES) for name, path in MODULES.items()}


def test_nine_modules_at_the_top():
    assert sorted(name for name in MODULES if '.' not in name and name not in FOLDERS) == sorted(TOP)
    assert set(MAY_IMPORT) == set(TOP + FOLDERS)


@pytest.mark.parametrize('name', sorted(MODULES))
def test_a_module_imports_only_what_lies_below_it(name):
    own = name.split('.')[0]
    allowed = MAY_IMPORT[own] + ([own] if own in FOLDERS else [])
    for other in IMPORTS[name]:
        assert any(other == prefix or other.startswith(prefix + '.') for prefix in allowed), f'{name} imports {other}'


def test_no_circle_of_imports():
    done, path = set(), []

    def visit(name):
        assert name not in path, ' -> '.join(path[path.index(name):] + [name])
        if name not in done:
            path.append(name)
            for other in sorted(IMPORTS[name]):
                visit(other)
            done.add(path.pop())

    for name in MODULES:
        visit(name)
    assert done == set(MODULES)
