"""The syntax of a project's files, read when asked for and kept as long as a file does not change."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from flashmesh.project.files import FoundFile
from flashmesh.project.syntax import ModuleSyntax, SyntaxProblem, may_declare, mentions_us, parse


class Source(msgspec.Struct):
    """One file as last read."""

    mtime_ns: int
    size: int
    mentions_us: bool
    may_declare: bool
    digest: bytes
    """Of its bytes; 16 of BLAKE2."""
    syntax: ModuleSyntax | SyntaxProblem | None
    """None until somebody asks: most files of a project declare nothing and are never parsed."""


class Sources:
    """The files of one scan. `remembered` of the last one is given in, so that only what changed is read again."""

    def __init__(
        self,
        root: Path,
        files: Iterable[FoundFile],
        *,
        remembered: Mapping[str, Source],
        changed: Collection[str] = (),
    ) -> None:
        self._root = root
        self._found = {file.path: file for file in files}
        self._remembered = {path: source for path, source in remembered.items() if path not in changed}
        self._current: dict[str, Source] = {}

    @property
    def current(self) -> Mapping[str, Source]:
        """What the next scan may remember: every file asked for, now or before."""
        return {**self._remembered, **self._current}

    def read(self, path: str) -> Source:
        """One file. Raises OSError."""
        source = self._current.get(path)
        if source is None:
            source = self._current[path] = self._read(path)
        return source

    def syntax_of(self, path: str) -> ModuleSyntax | SyntaxProblem:
        """The file's syntax, or why it has none. Never raises."""
        try:
            source = self.read(path)
            if source.syntax is None:
                source.syntax = parse((self._root / path).read_bytes())
        except OSError as error:
            return SyntaxProblem(None, f"it cannot be read: {error.strerror}")
        return source.syntax

    def _read(self, path: str) -> Source:
        found = self._found.get(path)
        if found is None:
            stat = (self._root / path).stat()
            found = FoundFile(path, stat.st_mtime_ns, stat.st_size)
        remembered = self._remembered.get(path)
        if remembered is not None and (remembered.mtime_ns, remembered.size) == (found.mtime_ns, found.size):
            return remembered
        content = (self._root / path).read_bytes()
        declares = may_declare(content)
        return Source(
            mtime_ns=found.mtime_ns,
            size=found.size,
            mentions_us=mentions_us(content),
            may_declare=declares,
            digest=hashlib.blake2b(content, digest_size=16).digest(),
            syntax=parse(content) if declares else None,
        )
