"""A function as POSTed to the functions API, and what that asks of this server. Pure.

What is refused says which field: unknown ones, values out of range, and combinations that make no sense here. Nothing
is silently dropped: fields that only a cluster can act on (`image`, `resources`, `imagePullSecrets`, scaling metrics)
are kept and shown.
"""

import dataclasses
import hashlib
import re
import shlex
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from flashmesh.functions.errors import MalformedRequest, ValidationError
from flashmesh.gateway.functions.external.addresses import Target, parse_target
from flashmesh.kit.ids import BuildId, EndpointName, FunctionId
from flashmesh.queueing.plan import EndpointPlan

TIMEOUT_MS: Final = 30_000
CONCURRENCY: Final = 4
QUEUE_SIZE: Final = 100
MAX_RETRIES: Final = 3
IDLE_MS: Final = 60_000
"""How long a process beyond the smallest number may be idle before it leaves."""
LONGEST_TIMEOUT_MS: Final = 24 * 3600 * 1000
ENV_BYTES: Final = 64 * 1024
RESERVED_ENV: Final = frozenset({"FUNCTION_NAME", "EXECUTION_ID", "PORT", "INPUT_FILE", "OUTPUT_FILE", "CALLBACK_URL"})
"""Set by the server for a command; a spec that sets one is refused rather than ignored."""

T = TypeVar("T", bound=Struct)
Mode = Literal["EXTERNAL", "JOB"]
RuntimeMode = Literal["HTTP", "STDIO", "FILE"]
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z][a-zA-Z0-9._-]{0,62}\Z")]
Count = Annotated[int, Meta(ge=1, le=10_000)]
TimeoutMs = Annotated[int, Meta(ge=1, le=LONGEST_TIMEOUT_MS)]
Retries = Annotated[int, Meta(ge=0, le=100)]


class Resources(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Kept for a cluster; a command on this machine is not limited by them."""

    cpu: str | None = None
    memory: str | None = None


class ScalingMetric(Struct, forbid_unknown_fields=True, omit_defaults=True):
    type: str
    target: str | None = None
    resource: str | None = None


class ConcurrencyControl(Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    mode: Literal["FIXED", "STATIC_PER_POD", "ADAPTIVE_PER_POD"] = "FIXED"
    target_in_flight_per_pod: Annotated[int, Meta(ge=1)] | None = None
    min_target_in_flight_per_pod: Annotated[int, Meta(ge=1)] | None = None
    max_target_in_flight_per_pod: Annotated[int, Meta(ge=1)] | None = None
    upscale_cooldown_ms: Annotated[int, Meta(ge=0)] | None = None
    downscale_cooldown_ms: Annotated[int, Meta(ge=0)] | None = None
    high_load_threshold: float | None = None
    low_load_threshold: float | None = None


class ScalingConfig(Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Replicas are processes of a command. The number follows the queue between min and max."""

    strategy: Literal["INTERNAL", "HPA"] = "INTERNAL"
    min_replicas: Annotated[int, Meta(ge=0, le=1000)] = 0
    max_replicas: Annotated[int, Meta(ge=1, le=1000)] | None = None
    idle_timeout_ms: Annotated[int, Meta(ge=0, le=LONGEST_TIMEOUT_MS)] = IDLE_MS
    metrics: list[ScalingMetric] = []
    concurrency_control: ConcurrencyControl | None = None


class FunctionSpec(Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/functions`."""

    name: Name
    image: str | None = None
    command: list[str] | str | None = None
    env: dict[str, str] = {}
    resources: Resources | None = None
    timeout_ms: TimeoutMs = TIMEOUT_MS
    """Run-time limit of one call."""
    concurrency: Count = CONCURRENCY
    """Calls in flight, over all processes of the function."""
    queue_size: Annotated[int, Meta(ge=1, le=1_000_000)] = QUEUE_SIZE
    max_retries: Retries | UnsetType = UNSET
    """Extra attempts. Set explicitly it also covers the function's own failures and its time limit."""
    endpoint_url: str | None = None
    execution_mode: str | None = None
    runtime_mode: RuntimeMode = "HTTP"
    runtime_command: str | None = None
    scaling_config: ScalingConfig | None = None
    image_pull_secrets: list[str] = []


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """A checked spec: what the server acts on."""

    spec: FunctionSpec
    mode: Mode
    target: Target | None
    """Where to POST, for `endpointUrl`."""
    argv: tuple[str, ...]
    """What to start, for `command`."""
    degraded: str | None = None
    """Why the mode is another one than was asked for."""

    @property
    def name(self) -> FunctionId:
        return FunctionId(self.spec.name)

    @property
    def max_retries(self) -> int:
        return MAX_RETRIES if isinstance(self.spec.max_retries, UnsetType) else self.spec.max_retries

    @property
    def per_call(self) -> bool:
        """Whether every call gets a process of its own."""
        return bool(self.argv) and (self.mode == "JOB" or self.spec.runtime_mode == "FILE")

    @property
    def processes_max(self) -> int:
        """Most processes kept. One takes them all over HTTP; on stdin each takes one call at a time."""
        asked = self.spec.scaling_config.max_replicas if self.spec.scaling_config else None
        default = self.spec.concurrency if self.spec.runtime_mode == "STDIO" else 1
        return min(asked or default, self.spec.concurrency)

    @property
    def processes_min(self) -> int:
        scaling = self.spec.scaling_config
        return min(scaling.min_replicas, self.processes_max) if scaling else 0

    @property
    def idle_s(self) -> float:
        scaling = self.spec.scaling_config
        return (scaling.idle_timeout_ms if scaling else IDLE_MS) / 1000

    @property
    def calls_per_process(self) -> int:
        """So that all processes together never run more than `concurrency` calls."""
        if self.target is not None or self.per_call:
            return self.spec.concurrency
        return 1 if self.spec.runtime_mode == "STDIO" else max(1, self.spec.concurrency // self.processes_max)


def parse(body: bytes) -> FunctionSpec:
    """A POSTed spec. Raises MalformedRequest (not JSON), ValidationError naming the field."""
    return _decode(body, FunctionSpec)


def check(spec: FunctionSpec) -> External:
    """What it asks for. Raises ValidationError naming the field that makes no sense."""
    argv = _argv(spec)
    if spec.endpoint_url is not None and argv:
        raise ValidationError("command: give either `endpointUrl` or `command`, not both", field="command")
    if spec.endpoint_url is None and not argv:
        raise ValidationError(
            "endpointUrl: give `endpointUrl` (an HTTP address that is running) or `command` (this machine starts it). "
            "An `image` alone needs a cluster: deploy it there and give its address",
            field="endpointUrl",
        )
    target = None if spec.endpoint_url is None else parse_target(spec.endpoint_url)
    _check_env(spec.env)
    _check_scaling(spec)
    mode, degraded = _mode(spec, has_command=bool(argv))
    if target is not None and spec.runtime_mode != "HTTP":
        raise ValidationError(
            f"runtimeMode: {spec.runtime_mode} is how a `command` is spoken to; an `endpointUrl` is HTTP",
            field="runtimeMode",
        )
    return External(spec=spec, mode=mode, target=target, argv=argv, degraded=degraded)


def _mode(spec: FunctionSpec, *, has_command: bool) -> tuple[Mode, str | None]:
    asked = spec.execution_mode
    if asked in (None, "EXTERNAL", "POOL"):
        return "EXTERNAL", None
    if asked == "DEPLOYMENT":
        return "EXTERNAL", None if has_command else "this server manages no containers; calls go to endpointUrl"
    if asked in ("JOB", "REMOTE"):
        if not has_command:
            raise ValidationError(
                f"executionMode: {asked} means a process for each call, which needs `command`", field="executionMode"
            )
        if spec.runtime_mode == "HTTP":
            raise ValidationError(
                f"executionMode: {asked} needs `runtimeMode` STDIO or FILE; a server started for one call is slower "
                "than either",
                field="executionMode",
            )
        return "JOB", None
    if asked == "WARM" and has_command:
        return "EXTERNAL", None
    if asked in ("WARM", "LOCAL"):
        raise ValidationError(
            f"executionMode: {asked} is for Python functions of a project; a POSTed function is EXTERNAL",
            field="executionMode",
        )
    raise ValidationError(
        f"executionMode: {asked!r} is unknown. Use EXTERNAL (or POOL, DEPLOYMENT), or JOB (or REMOTE)",
        field="executionMode",
    )


def _argv(spec: FunctionSpec) -> tuple[str, ...]:
    """`runtimeCommand` is what runs the function; `command` where it is absent. Never through a shell."""
    field, given = ("runtimeCommand", spec.runtime_command) if spec.runtime_command else ("command", spec.command)
    if given is None:
        return ()
    try:
        argv = tuple(shlex.split(given)) if isinstance(given, str) else tuple(given)
    except ValueError as error:
        raise ValidationError(f"{field}: {error}", field=field) from error
    if not argv:
        return ()
    if not argv[0] or any("\0" in word for word in argv):
        raise ValidationError(f"{field}: it names no program", field=field)
    return argv


def _check_env(env: dict[str, str]) -> None:
    for name, value in env.items():
        field = f"env.{name}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) or "\0" in value:
            raise ValidationError(f"{field}: not the name of a variable, or its value holds a zero byte", field=field)
        if name in RESERVED_ENV:
            raise ValidationError(f"{field}: the server sets this variable itself. Use another name", field=field)
    if sum(len(name) + len(value) for name, value in env.items()) > ENV_BYTES:
        raise ValidationError(f"env: more than {ENV_BYTES} characters in all", field="env")


def _check_scaling(spec: FunctionSpec) -> None:
    scaling = spec.scaling_config
    if scaling and scaling.max_replicas is not None and scaling.min_replicas > scaling.max_replicas:
        field = "scalingConfig.minReplicas"
        raise ValidationError(f"{field}: more than `maxReplicas`", field=field)


def build_of(spec: FunctionSpec, created_at: float) -> BuildId:
    """Tells one registration of a name from the next."""
    return BuildId(hashlib.blake2b(msgspec.json.encode((spec, created_at)), digest_size=6).hexdigest())


def plan_of(external: External, build: BuildId) -> EndpointPlan:
    """What the dispatcher needs."""
    spec = external.spec
    alone = external.target is not None or external.per_call
    return EndpointPlan(
        name=EndpointName(spec.name),
        build=build,
        functions=frozenset({external.name}),
        workers_min=0 if alone else external.processes_min,
        workers_max=1 if alone else external.processes_max,
        max_concurrency=external.calls_per_process,
        queue_size=spec.queue_size,
        execution_timeout_ms=spec.timeout_ms,
        retries=0 if isinstance(spec.max_retries, UnsetType) else spec.max_retries,
        max_retries=external.max_retries,
        mode="EXTERNAL",
    )


def response(external: External) -> dict[str, Any]:
    """FunctionResponse. Values of `env` are not shown: they may be secrets."""
    spec = external.spec
    body: dict[str, Any] = {
        **msgspec.to_builtins(spec),
        "image": spec.image or "",
        "timeoutMs": spec.timeout_ms,
        "concurrency": spec.concurrency,
        "queueSize": spec.queue_size,
        "maxRetries": external.max_retries,
        "runtimeMode": spec.runtime_mode,
        "executionMode": external.mode,
        "requestedExecutionMode": spec.execution_mode or external.mode,
        "effectiveExecutionMode": external.mode,
    }
    if spec.env:
        body["env"] = dict.fromkeys(spec.env, "***")
    if external.argv:
        body["command"] = list(external.argv)
    if external.degraded:
        body["degradationReason"] = external.degraded
    return body


class Patch(Struct, rename="camel", forbid_unknown_fields=True):
    """What may be changed of a POSTed function while it is served."""

    concurrency: Count | UnsetType = UNSET
    timeout_ms: TimeoutMs | UnsetType = UNSET
    max_retries: Retries | UnsetType = UNSET


class ProjectPatch(Struct, rename="camel", forbid_unknown_fields=True):
    """What may be changed of a project's endpoint. `mode` and `executionMode` mean the same."""

    mode: str | UnsetType = UNSET
    execution_mode: str | UnsetType = UNSET
    workers_min: Annotated[int, Meta(ge=0, le=1000)] | UnsetType = UNSET
    workers_max: Annotated[int, Meta(ge=1, le=1000)] | UnsetType = UNSET


def parse_body(body: bytes, kind: type[T]) -> T:
    """A Patch, ProjectPatch or another struct. Raises MalformedRequest, ValidationError naming the field."""
    return _decode(body, kind)


def patched(spec: FunctionSpec, patch: Patch) -> FunctionSpec:
    changes = {name: value for name, value in msgspec.structs.asdict(patch).items() if value is not UNSET}
    return msgspec.structs.replace(spec, **changes)


_UNKNOWN: Final = re.compile(r"unknown field `([^`]*)`")
_MISSING: Final = re.compile(r"missing required field `([^`]*)`")
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`$")


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        if not body.isascii():
            body.decode()  # Raw fields are not looked into
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _naming_the_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from error


def _naming_the_field(message: str) -> ValidationError:
    at = _PATH.search(message)
    path = at.group(1) if at else ""
    text = message[: at.start()] if at else message
    found = _UNKNOWN.search(text) or _MISSING.search(text)
    if found:
        path = f"{path}.{found.group(1)}".lstrip(".")
        text = "unknown field" if "unknown" in text else "it is required"
    return ValidationError(f"{path or 'the body'}: {text}", field=path or None)
