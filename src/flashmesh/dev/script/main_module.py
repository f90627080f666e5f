"""The name that this program's `__main__` has in workers: they import its file under its own name."""

import sys
from pathlib import Path

NOTEBOOK = "notebook"
"""What a `__main__` without a file is called there: a notebook's, a REPL's, that of `python -c`."""


def main_name() -> str:
    """`script` for `python script.py`, `pkg.tool` for `python -m pkg.tool`, else `notebook`."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return Path(file).stem if file and not str(file).startswith("<") else NOTEBOOK
