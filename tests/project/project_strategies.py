"""Any project there could be, for Hypothesis: every setting of every resource, every kind of function."""

import dataclasses
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flashmesh.functions.config import ResourceConfig, VolumeConfig
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.model import FunctionSpec, MethodSpec, ParameterSpec, Project, ResourceSpec
from flashmesh.project.naming import module_of

LARGE = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=60)
"""For tests of whole projects, which take a while to make up on a busy machine."""
NAMES = st.text("abcXYZ_019", min_size=1, max_size=8)
TEXTS = st.text(max_size=8)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
SETTINGS = st.dictionaries(NAMES.filter(lambda name: name != "env"), JSON, max_size=3)
SECRET = "hush-hush-very-secret-"
ENV = st.dictionaries(NAMES, TEXTS.map(SECRET.__add__), max_size=3)
TEMPLATES = st.none() | st.builds(lambda settings, env: {**settings, "env": env}, SETTINGS, ENV)
VOLUMES = st.builds(VolumeConfig, name=st.none() | NAMES, id=st.none() | NAMES, size_gb=st.integers(1, 999))
_MANY = st.lists(TEXTS, max_size=3).map(tuple)
_SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "env": ENV,
    "template": TEMPLATES,
    "extra": SETTINGS,
    "volumes": st.lists(VOLUMES, max_size=2).map(tuple),
}
_BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXTS,
    "int": st.integers(0, 2**31),
    "float": st.floats(0.1, 1e6),
    "bool": st.booleans(),
    "tuple[str, ...]": _MANY,
}


def configs() -> st.SearchStrategy[ResourceConfig]:
    """A configuration in which every field may have any value of its type."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in dataclasses.fields(ResourceConfig):
        kind = field.type.__name__ if field.type in (str, int, float, bool) else str(field.type)  # type: ignore[union-attr]
        plain = kind.removesuffix(" | None")
        found = _SPECIAL[field.name] if field.name in _SPECIAL else _BY_TYPE[plain]
        fields[field.name] = st.none() | found if plain != kind else found
    return st.builds(ResourceConfig, **fields)


PARAMETERS = st.lists(
    st.builds(
        ParameterSpec,
        name=NAMES,
        annotation=st.none() | TEXTS,
        default=st.none() | TEXTS,
        kind=st.sampled_from(["positional", "keyword", "var_positional", "var_keyword"]),
    ),
    max_size=3,
).map(tuple)
METHODS = st.builds(
    MethodSpec,
    name=NAMES,
    line=st.integers(1, 999),
    is_async=st.booleans(),
    is_generator=st.booleans(),
    doc=st.none() | TEXTS,
    parameters=PARAMETERS,
)
OVERRIDES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {}, optional={"retries": st.integers(0, 5), "mode": st.just("JOB"), "retry_on": _MANY, "preload": st.booleans()}
)


@st.composite
def functions(draw: st.DrawFn, file: str, name: str) -> FunctionSpec:
    is_class = draw(st.booleans())
    route = draw(st.none() | st.sampled_from([("POST", f"/{name}"), ("GET", f"/{name}/{{id}}")]))
    return FunctionSpec(
        id=FunctionId(f"{module_of(file)}.{name}"),
        name=name,
        module=module_of(file),
        file=file,
        line=draw(st.integers(1, 999)),
        qualname=name,
        kind="class" if is_class else "function",
        is_async=draw(st.booleans()),
        is_generator=draw(st.booleans()),
        methods=tuple(draw(st.lists(METHODS, max_size=2))) if is_class else (),
        http_method=route and route[0],
        http_path=route and route[1],
        decorated_by=draw(st.sampled_from(["remote", "endpoint", "route"])),
        local=draw(st.booleans()),
        accelerate_downloads=draw(st.booleans()),
        dependencies=draw(_MANY),
        system_dependencies=draw(_MANY),
        doc=draw(st.none() | TEXTS),
        parameters=draw(PARAMETERS),
        overrides=tuple(sorted(draw(OVERRIDES).items())),
    )


@st.composite
def projects(draw: st.DrawFn, max_resources: int = 4) -> Project:
    """Resources of files that do not exist: their code is nobody's concern here."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), max_size=max_resources, unique=True))
    resources = []
    for name in names:
        file = draw(st.sampled_from([f"{name}.py", f"sub/{name}.py", "shared.py"]))
        own = draw(st.lists(NAMES, min_size=1, max_size=2, unique=True))
        resources.append(
            ResourceSpec(
                name=EndpointName(f"resource_{name}"),
                file=file,
                variable=draw(st.none() | st.just(name)),
                config=dataclasses.replace(draw(configs()), name=name),
                functions=tuple(draw(functions(file, f"{name}_{one}")) for one in own),
                unresolved=draw(_MANY),
                line=draw(st.none() | st.integers(1, 99)),
            )
        )
    return Project(root=Path("/nowhere"), name=draw(NAMES), resources=tuple(resources), requirements=draw(_MANY))
