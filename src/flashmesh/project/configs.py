"""From a configuration object seen in syntax to its ResourceConfig: the real class is called with what is known."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from flashmesh.functions.config import LB_CONCURRENCY, ResourceConfig
from flashmesh.project import literals
from flashmesh.project.evaluate import known
from flashmesh.project.model import FunctionSpec
from flashmesh.project.values import Config, Invalid, Known, Value
from flashmesh.project.vocabulary import Vocabulary


class Built(msgspec.Struct, frozen=True):
    """A configuration, and the names of settings whose values only running the file tells (`*`: any).

    `resource`: the object that was made, None when it could not be.
    """

    config: ResourceConfig
    unresolved: tuple[str, ...] = ()
    resource: Any = None


def is_load_balanced(config: Config) -> bool:
    """Whether functions on it are HTTP routes: by its class, or by `type=ServerlessType.LB`."""
    declared = config.keywords.get("type")
    kind = declared.value if isinstance(declared, Known) else None
    return "LoadBalancer" in config.class_name or getattr(kind, "name", kind) == "LB"


def build(config: Config, vocabulary: Vocabulary, *, default_name: str | None, load_balanced: bool) -> Built | Invalid:
    """Call the class that was declared, as running the file would.

    Args:
        default_name: the name of an `Endpoint` that was given none: its function's.
        load_balanced: an `Endpoint` whose `.get`, `.post`, … declare routes.
    """
    arguments, keywords, unresolved = _plain_arguments(config, vocabulary)
    if isinstance(arguments, Invalid):
        return arguments
    made: Any = None
    failure: Exception | None = None
    for attempt in _attempts(keywords, default_name or config.variable, bool(unresolved)):
        try:
            made = vocabulary.get(config.class_name)(*arguments, **attempt)
            break
        except Exception as error:  # the class speaks: these values cannot work
            failure = failure or error
    if made is None:
        if not unresolved:
            return Invalid(config.place.file, config.place.line, f"{type(failure).__name__}: {failure}")
        return Built(_placeholder(config, load_balanced), ("*",))
    normal: ResourceConfig = made.to_config()
    if getattr(made, "is_client", False):
        return Invalid(config.place.file, config.place.line, _CLIENT)
    if config.class_name == "Endpoint":
        has_scaler = keywords.get("scaler_type") is not None
        normal = _as_used(normal, default_name, load_balanced=load_balanced, has_scaler=has_scaler)
        if normal.is_load_balanced and "max_concurrency" not in config.keywords:
            normal = dataclasses.replace(normal, max_concurrency=LB_CONCURRENCY)
    return Built(normal, (*unresolved, *config.changed), made)


def refusal(built: Built, vocabulary: Vocabulary, function: FunctionSpec, keywords: Mapping[str, Any]) -> str | None:
    """Why the decorator will raise when the file is imported, or None. The real one is asked; nothing is decorated."""
    if built.resource is None:
        return None
    try:
        if function.decorated_by == "remote":
            decorator = vocabulary.get("remote")
            arguments: tuple[Any, ...] = (built.resource,)
        elif function.decorated_by == "route":
            decorator = getattr(built.resource, (function.http_method or "").lower(), None)
            arguments = (function.http_path,)
        else:
            return None
        if callable(decorator):
            decorator(*arguments, **keywords)
    except Exception as error:  # the decorator speaks: these arguments cannot work
        return f"{type(error).__name__}: {error}"
    return None


_CLIENT = (
    "Endpoint(id=…) and Endpoint(image=…) call something outside this project. "
    "Use Endpoint(name=…) to decorate your own code."
)


def _plain_arguments(
    config: Config, vocabulary: Vocabulary
) -> tuple[list[Any] | Invalid, dict[str, Any], tuple[str, ...]]:
    """What is known of the arguments, by position and name, and the names of those that are not."""
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    unresolved = ["*"] if config.open_ended else []
    names = vocabulary.parameter_names(config.class_name) if config.arguments else ()
    for index, value in enumerate(config.arguments):
        name = names[index] if index < len(names) else None
        plain = _plain(value)
        if isinstance(plain, Invalid):
            return plain, {}, ()
        if plain is not None and name is not None:
            keywords[name] = plain.value
        elif plain is not None:
            arguments.append(plain.value)
        else:
            unresolved.append(name or "*")
    for name, value in config.keywords.items():
        plain = _plain(value)
        if isinstance(plain, Invalid):
            return plain, {}, ()
        if plain is None:
            unresolved.append(name)
        else:
            keywords[name] = plain.value
    return arguments, keywords, tuple(unresolved)


class _Plain(msgspec.Struct, frozen=True):
    value: Any


def _plain(value: Value) -> _Plain | Invalid | None:
    if isinstance(value, Invalid):
        return value
    try:
        return _Plain(known(value))
    except literals.NotPlain:
        return None


def _attempts(keywords: dict[str, Any], name: str | None, has_unresolved: bool) -> list[dict[str, Any]]:
    """The keywords as given; when some are missing because they are not known, also with a stand-in for the name."""
    if not has_unresolved:
        return [keywords]
    return [keywords, {**keywords, "name": name or "unnamed"}, {"name": name or "unnamed"}]


def _placeholder(config: Config, load_balanced: bool) -> ResourceConfig:
    balanced = load_balanced or is_load_balanced(config)
    return ResourceConfig(resource_type=config.class_name, name=config.variable, is_load_balanced=balanced)


def _as_used(
    config: ResourceConfig, default_name: str | None, *, load_balanced: bool, has_scaler: bool
) -> ResourceConfig:
    """An `Endpoint` is QB or LB by the way it is used; its scaler's default follows, unless one was declared."""
    name = config.name or default_name
    if not load_balanced or config.is_load_balanced:
        return dataclasses.replace(config, name=name)
    scaler = config.scaler_type if has_scaler else "REQUEST_COUNT"
    return dataclasses.replace(config, name=name, is_load_balanced=True, scaler_type=scaler)
