"""Importing several throw-away projects in one test process, each as if it were the first."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def forget_project_modules() -> Iterator[None]:
    """Undo what importing a project does to the interpreter: modules, path, path hooks."""
    modules, path, hooks = dict(sys.modules), list(sys.path), list(sys.path_hooks)
    try:
        yield
    finally:
        sys.path[:] = path
        sys.path_hooks[:] = hooks
        for name in set(sys.modules) - set(modules):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if "site-packages" not in file and "/lib/python" not in file and "flashmesh" not in name:
                del sys.modules[name]
        sys.path_importer_cache.clear()
