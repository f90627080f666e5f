"""Endpoint: one class for declaring what runs where, and for calling what runs elsewhere.

`@Endpoint(name=…)` on a function or class makes it queue-based; `api = Endpoint(name=…)` with `@api.post("/path")`
makes HTTP routes. With `id=` or `image=` it is a client of something that is not in this project.
"""

from __future__ import annotations

from flashmesh.functions import checks
from flashmesh.functions.declarations import declaration_of
from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.hardware import CudaVersion, DataCenter, GpuGroup, ServerlessScalerType
from flashmesh.functions.nearest import reject_unknown
from flashmesh.functions.remote import check_route, declare
from flashmesh.functions.resources import Resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from flashmesh.functions.config import ResourceConfig
    from flashmesh.functions.declarations import Declaration
    from flashmesh.functions.endpoint_client import EndpointClient, EndpointJob
    from flashmesh.functions.gpu_types import GpuType
    from flashmesh.functions.hardware import CpuInstanceType
    from flashmesh.functions.signatures import Decorator, Exceptions, RouteDecorator, RouteOrRequest
    from flashmesh.functions.templates import PodTemplate
    from flashmesh.functions.volumes import NetworkVolume


class _Declared(Resource):
    """The settings of an Endpoint; its name may be given by the function it decorates."""

    image_kind = "gpu"

    def _check_name(self) -> None:
        pass


class Endpoint:
    """Where functions run, or something to call.

    Args:
        name: of the endpoint; a decorated function's own name when left out. Routes need one.
        id: call the endpoint that has this id.
        image: call an endpoint made of this container image.
        gpu, cpu: hardware, one or several choices; neither means any GPU.
        workers: most workers, or (fewest, most).
        idle_timeout: seconds until an idle worker leaves.
        volume: one NetworkVolume or several.
        execution_timeout_ms: run-time limit of one call; 0 = none.
        max_concurrency: calls of an async function that one worker runs at the same time (1 when left out); with
            routes, requests and websockets that it serves at the same time (100 when left out).
        retries, retry_on, mode, queue_size, preload, gpu_share: as in `remote`.
        public: HTTP routes answer without a token.
        target: where it is deployed, instead of where the command says.
    Raises:
        TypeError: an unknown keyword; the message names the nearest.
        DeclarationError: values that cannot be used, or not together.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        id: str | None = None,
        gpu: GpuGroup | GpuType | str | Sequence[GpuGroup | GpuType | str] | None = None,
        cpu: CpuInstanceType | str | Sequence[CpuInstanceType | str] | None = None,
        workers: int | tuple[int, int] | None = None,
        idle_timeout: float = 60,
        dependencies: Iterable[str] | None = None,
        system_dependencies: Iterable[str] | None = None,
        accelerate_downloads: bool = True,
        volume: NetworkVolume | Sequence[NetworkVolume] | None = None,
        datacenter: DataCenter | str | Sequence[DataCenter | str] | None = None,
        env: Mapping[str, str] | None = None,
        gpu_count: int = 1,
        execution_timeout_ms: int = 0,
        flashboot: bool = True,
        image: str | None = None,
        scaler_type: ServerlessScalerType | str | None = None,
        scaler_value: int = 4,
        template: PodTemplate | None = None,
        min_cuda_version: CudaVersion | str | None = CudaVersion.V12_8,
        max_concurrency: int | None = None,
        retries: int = 0,
        retry_on: Exceptions = (),
        mode: str = "WARM",
        queue_size: int = 1000,
        preload: bool = True,
        gpu_share: bool | None = None,
        public: bool = False,
        python_version: str | None = None,
        target: str | None = None,
        **unknown: Any,
    ) -> None:
        reject_unknown("Endpoint", unknown, _keywords())
        _check_mode(name=name, id=id, image=image, gpu=gpu, cpu=cpu)
        minimum, maximum = checks.workers("workers", workers)
        self.name = name
        self.id = id
        self.image = image
        self.dependencies = None if dependencies is None else checks.texts("dependencies", dependencies)
        self.system_dependencies = (
            None if system_dependencies is None else checks.texts("system_dependencies", system_dependencies)
        )
        self.accelerate_downloads = accelerate_downloads
        self._qb_targets: list[Any] = []
        self._routes: list[dict[str, Any]] = []
        self._client: EndpointClient | None = None
        given: dict[str, Any] = {
            "name": name,
            "id": id,
            "gpus": gpu,
            "instanceIds": cpu,
            "gpuCount": gpu_count if cpu is None else None,
            "workersMin": minimum,
            "workersMax": maximum,
            "idle_timeout": idle_timeout,
            "volumes": volume,
            "datacenter": datacenter or None,
            "env": env,
            "execution_timeout_ms": execution_timeout_ms,
            "flashboot": flashboot,
            "image": image,
            "scaler_type": scaler_type,
            "scaler_value": scaler_value,
            "template": template,
            "max_concurrency": max_concurrency,
            "retries": retries,
            "retry_on": retry_on,
            "mode": mode,
            "queue_size": queue_size,
            "preload": preload,
            "gpu_share": gpu_share,
            "public": public,
            "python_version": python_version,
            "target": target,
        }
        self._settings = _Declared(min_cuda_version=min_cuda_version, **given)

    # What was declared, under Flash's names.

    @property
    def is_cpu(self) -> bool:
        return self._settings.is_cpu

    @property
    def is_client(self) -> bool:
        """Whether it calls something outside this project."""
        return self.id is not None or self.image is not None

    @property
    def is_load_balanced(self) -> bool:
        return bool(self._routes)

    @property
    def workers_min(self) -> int:
        return self._settings.workersMin

    @property
    def workers_max(self) -> int:
        return self._settings.workersMax

    @property
    def idle_timeout(self) -> float:
        return self._settings.idleTimeout

    @property
    def gpu_count(self) -> int:
        return self._settings.gpuCount

    @property
    def execution_timeout_ms(self) -> int:
        return self._settings.executionTimeoutMs

    @property
    def max_concurrency(self) -> int:
        if self.is_load_balanced and not self._settings.is_declared("max_concurrency"):
            from flashmesh.functions.config import LB_CONCURRENCY  # dataclasses are slow to import

            return LB_CONCURRENCY
        return self._settings.max_concurrency

    @property
    def flashboot(self) -> bool:
        return self._settings.flashboot

    @property
    def env(self) -> dict[str, str] | None:
        return self._settings.env

    @property
    def volume(self) -> list[NetworkVolume] | None:
        return self._settings.networkVolumes

    @property
    def template(self) -> PodTemplate | None:
        return self._settings.__dict__["template"]  # type: ignore[no-any-return]

    @property
    def min_cuda_version(self) -> CudaVersion | None:
        return self._settings.minCudaVersion

    @property
    def datacenter(self) -> list[DataCenter] | None:
        """Where it may run: what was declared, else every data centre on offer (None for CPU and for `id=`)."""
        if self._settings.datacenter or self.is_cpu or self.id is not None:
            return self._settings.datacenter
        return DataCenter.all()

    @property
    def scaler_value(self) -> int:
        return self._settings.scalerValue

    @property
    def scaler_type(self) -> ServerlessScalerType:
        """What was declared, else REQUEST_COUNT with routes and QUEUE_DELAY without."""
        if self.is_load_balanced and not self._settings.is_declared("scalerType"):
            return ServerlessScalerType.REQUEST_COUNT
        return self._settings.scalerType

    @property
    def route_declarations(self) -> list[Declaration]:
        """Every function registered by `.get`, `.post` and their siblings, in order."""
        return [route["declaration"] for route in self._routes]

    def to_config(self) -> ResourceConfig:
        """Every setting, in the form the rest of the product reads."""
        from dataclasses import replace  # slow to import

        from flashmesh.functions.normal_form import config_of

        return replace(
            config_of(self._settings, resource_type="Endpoint"),
            name=self.name,
            is_load_balanced=self.is_load_balanced,
            max_concurrency=self.max_concurrency,
            scaler_type=self.scaler_type.value,
            dependencies=tuple(self.dependencies or ()),
            system_dependencies=tuple(self.system_dependencies or ()),
            accelerate_downloads=self.accelerate_downloads,
        )

    # Declaring: a queue-based function or class, or HTTP routes.

    if TYPE_CHECKING:
        __call__: Decorator
    else:

        def __call__(self, target: Any) -> Any:
            """Decorate a function or class: calls to it wait in this endpoint's queue for a worker."""
            if self.is_client:
                raise DeclarationError(
                    f"Endpoint({self._client_mode}=…) is a client of something outside this project. "
                    "Use Endpoint(name=…) to decorate your own code."
                )
            if self._routes:
                raise DeclarationError(
                    "This Endpoint has HTTP routes. Use another one to decorate a function directly."
                )
            decorated = self._declare(target, decorated_by="endpoint")
            if self.name is None:
                self.name = target.__name__
            self._qb_targets.append(decorated)
            return decorated

    def get(self, path: str, data: Any = None, **options: Any) -> RouteOrRequest:
        """A decorator for a GET route; of a client, the request itself: `await endpoint.get("/path")`."""
        return self._route_or_request("GET", path, data, options)

    def post(self, path: str, data: Any = None, **options: Any) -> RouteOrRequest:
        """A decorator for a POST route; of a client, the request itself: `await endpoint.post("/path", data)`."""
        return self._route_or_request("POST", path, data, options)

    def put(self, path: str, data: Any = None, **options: Any) -> RouteOrRequest:
        """A decorator for a PUT route; of a client, the request itself."""
        return self._route_or_request("PUT", path, data, options)

    def delete(self, path: str, data: Any = None, **options: Any) -> RouteOrRequest:
        """A decorator for a DELETE route; of a client, the request itself."""
        return self._route_or_request("DELETE", path, data, options)

    def patch(self, path: str, data: Any = None, **options: Any) -> RouteOrRequest:
        """A decorator for a PATCH route; of a client, the request itself."""
        return self._route_or_request("PATCH", path, data, options)

    def head(self, path: str) -> RouteDecorator:
        """A decorator for a HEAD route."""
        decorator: RouteDecorator = self._route("HEAD", path)
        return decorator

    def options(self, path: str) -> RouteDecorator:
        """A decorator for an OPTIONS route."""
        decorator: RouteDecorator = self._route("OPTIONS", path)
        return decorator

    # Calling, with `id=` or `image=`.

    async def run(self, input_data: Any, *, webhook: str | None = None) -> EndpointJob:
        """Submit a job and return at once; `await job.wait()` waits for it."""
        return await self._as_client("run").run(input_data, webhook=webhook)

    async def runsync(self, input_data: Any, timeout: float = 60.0) -> EndpointJob:
        """Submit a job and wait up to `timeout` seconds for it."""
        return await self._as_client("runsync").runsync(input_data, timeout=timeout)

    async def cancel(self, job_id: str) -> EndpointJob:
        """Stop a job."""
        return await self._as_client("cancel").cancel(job_id)

    @property
    def _client_mode(self) -> str:
        return "id" if self.id is not None else "image"

    def _as_client(self, verb: str) -> EndpointClient:
        if not self.is_client:
            raise TypeError(
                f"Endpoint.{verb}() is for Endpoint(id=…) and Endpoint(image=…). "
                "Call the decorated function itself: `await f(x)`, or `f.spawn(x)` for a job."
            )
        if self._client is None:
            from flashmesh.functions.endpoint_client import EndpointClient  # only clients need HTTP

            self._client = EndpointClient(id=self.id, name=self.name)
        return self._client

    def _route_or_request(self, verb: str, path: str, data: Any, options: dict[str, Any]) -> RouteOrRequest:
        if self.is_client:
            return self._as_client(verb.lower()).request(verb, path, data, mode=self._client_mode, **options)
        if data is not None or options:
            raise TypeError(
                f"Endpoint.{verb.lower()}() with data is a request, which needs Endpoint(id=…) or Endpoint(image=…). "
                f'As a decorator it takes the path alone: @api.{verb.lower()}("{path}")'
            )
        decorator: RouteOrRequest = self._route(verb, path)
        return decorator

    def _route(self, verb: str, path: str) -> Any:
        if self.name is None:
            raise DeclarationError('HTTP routes need a named endpoint: Endpoint(name="my-api").')
        verb, path = check_route(verb, path)
        if self._qb_targets:
            raise DeclarationError("This Endpoint decorates a function directly. Use another one for HTTP routes.")

        def decorate(function: Any) -> Any:
            for route in self._routes:
                if (route["method"], route["path"]) == (verb, path):
                    raise DeclarationError(f"{verb} {path} is already {route['function_name']!r}. Choose another path.")
            decorated = self._declare(function, decorated_by="route", route=(verb, path))
            self._routes.append(
                {
                    "method": verb,
                    "path": path,
                    "function": decorated,
                    "function_name": function.__name__,
                    "declaration": declaration_of(decorated),
                }
            )
            return decorated

        return decorate

    def _declare(self, target: Any, **how: Any) -> Any:
        decorated = declare(
            self,
            dependencies=self.dependencies,
            system_dependencies=self.system_dependencies,
            accelerate_downloads=self.accelerate_downloads,
            **how,
        )(target)
        if self.max_concurrency > 1:
            decorated.__remote_config__["max_concurrency"] = self.max_concurrency
        return decorated

    def __repr__(self) -> str:
        return f"Endpoint(name={self.name!r})" if self.id is None else f"Endpoint(id={self.id!r})"


def _keywords() -> tuple[str, ...]:
    code = Endpoint.__init__.__code__
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]


def _check_mode(*, name: Any, id: Any, image: Any, gpu: Any, cpu: Any) -> None:
    if gpu is not None and cpu is not None:
        raise DeclarationError("gpu and cpu exclude each other. Give one of them, or neither for any GPU.")
    if id is not None and image is not None:
        raise DeclarationError("id and image exclude each other: id= calls an endpoint that exists, image= makes one.")
    if image is not None and name is None:
        raise DeclarationError('Endpoint(image=…) needs a name: Endpoint(name="…", image="…").')
