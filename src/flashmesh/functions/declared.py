"""An object made of checked settings: what resources, volumes and templates have in common.

Each class lists its settings once, in a table. A setting is stored under Flash's name (`workersMax`) and can be given
and read under each of its other names too (`workers_max`).
"""

from __future__ import annotations

from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.nearest import reject_unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self

    from flashmesh.functions.checks import Check


class Setting:
    """One row of a table: a name, what its value must be, its default, and its other names.

    A `list` or `dict` default is copied for each object. None stands for the default, unless `nullable` says that it is
    a value of its own.
    """

    __slots__ = ("aliases", "check", "default", "name", "nullable")

    def __init__(self, name: str, check: Check, default: Any, *aliases: str, nullable: bool = False) -> None:
        self.name = name
        self.check = check
        self.default = default
        self.aliases = aliases
        self.nullable = nullable

    def read(self, name: str, value: Any) -> Any:
        """The value in its one form. `name` is the one the user wrote, for the message."""
        if value is None:
            return None if self.nullable else self.initial()
        return self.check(name, value)

    def initial(self) -> Any:
        return self.default.copy() if isinstance(self.default, list | dict) else self.default


def table(*settings: Setting) -> dict[str, Setting]:
    """Every accepted name, aliases too, to its setting."""
    return {name: setting for setting in settings for name in (setting.name, *setting.aliases)}


class Declared:
    """Keyword arguments, checked against the class's table and readable as attributes.

    Raises TypeError for a keyword that is not in the table, DeclarationError for a value that cannot be used.
    """

    settings: ClassVar[dict[str, Setting]] = {}

    def __init__(self, **given: Any) -> None:
        reject_unknown(type(self).__name__, given.keys() - self.settings.keys(), self.settings)
        values = {setting.name: setting.initial() for setting in self.settings.values()}
        declared = set()
        seen = set()
        for name, value in given.items():
            setting = self.settings[name]
            if setting.name in seen:
                raise TypeError(f"{type(self).__name__}() got {setting.name!r} twice, once under another of its names")
            seen.add(setting.name)
            if value is not None or setting.nullable:
                declared.add(setting.name)
            values[setting.name] = setting.read(name, value)
        self.__dict__.update(values)
        self.__dict__["_declared"] = declared
        self.validate()

    def validate(self) -> None:
        """Check what concerns several settings together. Raises DeclarationError."""

    def is_declared(self, name: str) -> bool:
        """Whether the setting was given, as opposed to left at its default."""
        return self.settings[name].name in self._declared

    def __setattr__(self, name: str, value: Any) -> None:
        setting = self.settings.get(name)
        if setting is None:
            raise AttributeError(f"{type(self).__name__} has no setting {name!r}")
        before = self.__dict__.get(setting.name)
        self.__dict__[setting.name] = setting.read(name, value)
        try:
            self.validate()
        except DeclarationError:
            self.__dict__[setting.name] = before
            raise
        self._declared.add(setting.name)

    def __getattr__(self, name: str) -> Any:
        setting = type(self).settings.get(name)
        if setting is None or setting.name not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self, setting.name)

    def model_dump(self, *, exclude_none: bool = False, **_: Any) -> dict[str, Any]:
        """The settings under Flash's names."""
        names = dict.fromkeys(setting.name for setting in self.settings.values())
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None or not exclude_none}

    def model_copy(self, *, update: dict[str, Any] | None = None, **_: Any) -> Self:
        """A copy with some settings changed."""
        kept = {name: self.__dict__[name] for name in self._declared}
        for name in update or {}:
            kept.pop(self.settings[name].name if name in self.settings else name, None)
        return type(self)(**kept, **(update or {}))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self.__dict__[name]!r}" for name in sorted(self._declared) if name not in _HIDDEN)
        return f"{type(self).__name__}({shown})"


_HIDDEN = {"env", "aiKey"}
"""Settings whose values may be secrets."""
