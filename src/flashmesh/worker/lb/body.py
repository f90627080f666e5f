"""A request's body as arguments of a declared HTTP route: JSON, MessagePack, raw bytes, forms and uploads."""

import inspect
import json
from typing import Any

from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError
from starlette.datastructures import FormData
from starlette.datastructures import UploadFile as StarletteUpload
from starlette.requests import Request

from flashmesh.functions.errors import MalformedRequest, ValidationError
from flashmesh.wire.arguments import Binder
from flashmesh.wire.frames import JSON
from flashmesh.wire.media import body_media
from flashmesh.worker.lb.signature import Parameter, is_file, is_list, is_upload, with_parameters

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class BodyReader:
    """Fills the body parameters of one route. Made once per route."""

    def __init__(self, parameters: tuple[Parameter, ...], name: str) -> None:
        self._parameters = {
            parameter.name: parameter
            for parameter in parameters
            if parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        }
        self._all = parameters
        self._name = name
        self._binders: dict[frozenset[str], Binder] = {}
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        self._uploads = [name for name, parameter in self._parameters.items() if is_upload(parameter.annotation)]

    async def read(self, request: Request) -> dict[str, Any]:
        """Arguments by name. Raises ValidationError, MalformedRequest, UnsupportedMedia, PayloadTooLarge."""
        content_type = request.headers.get("content-type", "")
        kind = content_type.split(";", 1)[0].strip().lower()
        if kind == _FORMS[0]:
            return await self._from_form(await _form(request))
        body = await request.body()
        if kind == _FORMS[1] and body.lstrip()[:1] not in (b"{", b"["):  # `curl -d '{…}'` calls JSON a form
            return await self._from_form(await _form(request))
        return self._from_body(body, body_media(content_type, request.headers.get("content-encoding")), request)

    def schema(self) -> dict[str, Any]:
        """JSON schema of a JSON body."""
        return self._binder(frozenset(self._uploads)).parameters_schema()

    @property
    def names(self) -> list[str]:
        return list(self._parameters)

    def parameter(self, name: str) -> Parameter:
        return self._parameters[name]

    def _from_body(self, body: bytes, media: str, request: Request) -> dict[str, Any]:
        asked = {name: values for name in self._parameters if (values := request.query_params.getlist(name))}
        if asked and media == JSON:
            asked = {name: values for name, values in asked.items() if name not in _keys(body)}
        found = {name: self._convert(name, values) for name, values in asked.items()}
        without = frozenset({*found, *self._uploads})
        if len(without) == len(self._parameters) and not body.strip():
            return found | self._absent_uploads()
        if media == JSON and not body.strip():
            body = b"{}"
        bound = self._binder(without).bind(body, media)
        names = [name for name in self._parameters if name not in without]
        return found | dict(zip(names, bound.args, strict=False)) | dict(bound.kwargs) | self._absent_uploads()

    def _absent_uploads(self) -> dict[str, Any]:
        for name in self._uploads:
            self._default(name)  # a required upload was not sent
        return {}

    async def _from_form(self, form: FormData) -> dict[str, Any]:
        only = next(iter(self._parameters)) if len(self._parameters) == 1 else None
        if only is not None and only not in form and not is_file(self._parameters[only].annotation):
            return {only: self._validate(only, dict(form))}  # one model: the form's fields are its fields
        found: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            values = form.getlist(name)
            if not values:
                if (default := self._default(name)) is not Parameter.empty:
                    found[name] = default
            elif is_upload(parameter.annotation):
                found[name] = self._uploaded(name, values)
            elif is_file(parameter.annotation):
                found[name] = await _contents(values, as_list=is_list(parameter.annotation))
            else:
                found[name] = self._convert(name, [value for value in values if isinstance(value, str)])
        return found

    def _uploaded(self, name: str, values: list[Any]) -> Any:
        if not all(isinstance(value, StarletteUpload) for value in values):
            raise ValidationError(f"`{name}` must be a file of a multipart form.", field=name)
        return values if is_list(self._parameters[name].annotation) else values[-1]

    def _default(self, name: str) -> Any:
        default = self._parameters[name].default
        if default is Parameter.empty:
            raise ValidationError(f"`{name}` is missing.", field=name)
        return default

    def _convert(self, name: str, values: list[str]) -> Any:
        """The value of texts from a form or query."""
        annotation = self._parameters[name].annotation
        if is_list(annotation):
            return self._validate(name, values)
        text = values[-1] if values else ""
        try:
            return self._validate(name, text)
        except ValidationError:
            parsed = _parsed(text)
            if parsed is None:
                raise
            return self._validate(name, parsed)

    def _validate(self, name: str, value: Any) -> Any:
        annotation = self._parameters[name].annotation
        if annotation is Parameter.empty:
            return value
        adapter = self._adapters.get(name)
        if adapter is None:
            adapter = self._adapters[name] = TypeAdapter(annotation)
        try:
            return adapter.validate_python(value)
        except PydanticError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in (name, *first["loc"]))
            raise ValidationError(f"`{where}`: {first['msg']}.", field=where) from None

    def _binder(self, without: frozenset[str]) -> Binder:
        binder = self._binders.get(without)
        if binder is None:
            parameters = tuple(parameter for parameter in self._all if parameter.name not in without)
            binder = self._binders[without] = Binder(with_parameters(_ordered(parameters), self._name))
        return binder


def _ordered(parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    """The same with keyword-only parameters where a default would come before a required one."""
    try:
        inspect.Signature(list(parameters))
    except ValueError:
        return tuple(
            parameter.replace(kind=Parameter.KEYWORD_ONLY)
            if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
            else parameter
            for parameter in parameters
        )
    return parameters


async def _form(request: Request) -> FormData:
    try:
        return await request.form()
    except Exception as error:
        if type(error).__name__ in ("MultiPartException", "HTTPException"):
            detail = getattr(error, "detail", None) or getattr(error, "message", error)
            raise MalformedRequest(f"The form cannot be read: {detail}.") from error
        raise


async def _contents(values: list[Any], *, as_list: bool) -> Any:
    contents = [value.encode() if isinstance(value, str) else await value.read() for value in values]
    return contents if as_list else contents[-1]


def _keys(body: bytes) -> frozenset[str]:
    parsed = _parsed(body)
    if isinstance(parsed, dict) and isinstance(parsed.get("input"), dict):
        parsed = parsed["input"]
    return frozenset(parsed) if isinstance(parsed, dict) else frozenset()


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
