"""Import every module of the project and print, as JSON, what of the process's state that changed.

Argument: the project's folder. The libraries are imported first: what they change is not the project's doing.
"""
import atexit
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings

root = sys.argv[1]
sys.path.insert(0, root)
LIBRARIES = ['numba', 'numba.extending', 'numpy', 'paddle', 'paddleslim.nas', 'sklearn.datasets', 'PIL.Image',
             'PIL.ImageDraw', 'PIL.ImageFont', 'PIL.ImageColor', 'matplotlib', 'matplotlib.figure', 'graphviz', 'tqdm',
             'visualdl']
for library in LIBRARIES:
    try:
        importlib.import_module(library)
    except ImportError:
        print(f'{library} is not installed', file=sys.stderr)

import numpy as np  # noqa: E402
import paddle  # noqa: E402

logging.getLogger('darts')  # that this logger exists is no change; its settings are compared


def digest(value):
    """A short text of a value that is equal for equal values."""
    return hashlib.md5(repr(value).encode()).hexdigest()


def state():
    """{name: text}: all that an import could change for the rest of the process."""
    umask = os.umask(0)
    os.umask(umask)
    saved = paddle.get_rng_state()
    paddle_random = paddle.rand([4]).tolist()
    paddle.set_rng_state(saved)
    numba = sys.modules.get('numba')
    found = {
        'sys.excepthook': sys.excepthook, 'sys.unraisablehook': sys.unraisablehook, 'sys.displayhook': sys.displayhook,
        'threading.excepthook': threading.excepthook, 'sys.stdout': sys.stdout, 'sys.stderr': sys.stderr,
        'sys.path': sys.path, 'sys.meta_path': sys.meta_path, 'sys.argv': sys.argv,
        'recursion limit': sys.getrecursionlimit(), 'working directory': os.getcwd(), 'umask': umask,
        'environment': sorted(os.environ.items()), 'functions called at exit': atexit._ncallbacks(),
        'warnings.filters': warnings.filters, 'warnings.showwarning': warnings.showwarning,
        'child processes': multiprocessing.active_children(), 'threads': threading.enumerate(),
        'start method': multiprocessing.get_start_method(allow_none=True),
        'open files': sorted(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else None,
        'files in the working directory': sorted(os.listdir('.')),
        'random state of Python': digest(random.getstate()),
        'random state of numpy': digest([np.asarray(part).tolist() for part in np.random.get_state()]),
        'random state of Paddle': paddle_random,
        'numpy error handling': np.geterr(), 'numpy print options': np.get_printoptions(),
        'Paddle default dtype': paddle.get_default_dtype(), 'Paddle device': paddle.get_device(),
        'Paddle gradients': paddle.is_grad_enabled(), 'logging.disable': logging.root.manager.disable,
        'numba.config.CACHE_DIR': numba and numba.config.CACHE_DIR,
    }
    for number in signal.valid_signals():
        found[f'handler of signal {number}'] = signal.getsignal(number)
    for name in [None, *logging.root.manager.loggerDict]:
        logger = logging.getLogger(name)
        found[f'logger {name}'] = [logger.level, logger.propagate, logger.disabled, logger.handlers, logger.filters]
    flags = paddle.base.core.globals()
    for name in flags.keys():
        found[f'Paddle flag {name}'] = flags.get(name)
    return {name: repr(value) for name, value in found.items()}


def modules():
    """The names of all modules, from their files."""
    for folder, folders, names in os.walk(root):
        inside = os.path.relpath(folder, root)
        folders[:] = [name for name in folders if os.path.exists(os.path.join(folder, name, '__init__.py'))]
        for name in sorted(names):
            if name.endswith('.py'):
                parts = ([] if inside == '.' else inside.split(os.sep)) + ([] if name == '__init__.py' else [name[:-3]])
                yield '.'.join(parts)


before, imported = state(), list(modules())
for module in imported:
    importlib.import_module(module)
after = state()
changes = {name: [before.get(name), after.get(name)]
           for name in {**before, **after} if before.get(name) != after.get(name)}
print(json.dumps({'modules': imported, 'changes': changes}))
