"""Differentiable architecture search; it replaces paddleslim.nas.

    from nas import DARTSearch, accelerate

Both are imported when they are first used, so that `import nas` does not import Paddle (PEP 562).
"""
import importlib

_MODULES = {'DARTSearch': 'nas.searcher', 'accelerate': 'nas.acceleration'}
__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_MODULES[name]), name)
