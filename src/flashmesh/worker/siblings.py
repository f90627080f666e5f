"""Imports of a file's neighbours by their bare name: `from cpu_worker import f` in `jobs/pipeline.py`.

`python jobs/pipeline.py` finds `jobs/cpu_worker.py` that way, and so did Flash. Here such a statement is compiled as
the relative import it means. So two folders may hold files of one name, and a neighbour is the same module however it
is imported, which is what its functions are known by.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

_IMPORT_LINES: Final = re.compile(rb"\b(?:from|import)\b([^\n#]*)")
_WORDS: Final = re.compile(rb"[^\W\d]\w*")


def neighbours_named(source: bytes, file: Path, *, is_neighbour: Callable[[str], bool]) -> frozenset[str]:
    """The neighbours of `file` that its import statements may name.

    Args:
        is_neighbour: whether a bare name that stands beside the file means that and nothing else.
    """
    words = {word.decode() for line in _IMPORT_LINES.findall(source) for word in _WORDS.findall(line)}
    others = words - {file.stem, "__init__"}
    return frozenset(word for word in others if _stands_in(file.parent, word) and is_neighbour(word))


def as_relative(tree: ast.Module, neighbours: frozenset[str]) -> ast.Module:
    """`tree` with every absolute import of one of `neighbours` made relative; lines stay where they are."""
    return ast.fix_missing_locations(_Relative(neighbours).visit(tree))  # type: ignore[no-any-return]


class _Relative(ast.NodeTransformer):
    def __init__(self, neighbours: frozenset[str]) -> None:
        self._neighbours = neighbours

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 0 and self._is_neighbour(node.module or ""):
            node.level = 1
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        """One statement per name: what was one line may now need several."""
        return [ast.copy_location(part, node) for alias in node.names for part in self._statements(alias)]

    def _statements(self, alias: ast.alias) -> list[ast.stmt]:
        if not self._is_neighbour(alias.name):
            return [ast.Import([alias])]
        above, _, last = alias.name.rpartition(".")
        bound = _from(above or None, last, alias.asname or alias.name.partition(".")[0])
        if alias.asname is not None or not above:
            return [bound]
        # `import a.b` loads both and binds `a`
        return [bound, _from(None, alias.name.partition(".")[0], alias.name.partition(".")[0])]

    def _is_neighbour(self, module: str) -> bool:
        return module.partition(".")[0] in self._neighbours


def _from(module: str | None, name: str, bound_as: str) -> ast.ImportFrom:
    return ast.ImportFrom(module=module, names=[ast.alias(name, bound_as)], level=1)


def _stands_in(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()
