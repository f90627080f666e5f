"""A failure between processes: what a worker says about an exception, and the exception a caller makes of it.

An exception arrives as itself when the caller's process already has its class: nothing is imported for it, and its
`__init__` is not run. Otherwise it is a RemoteError with the type's name; so are those that would end the caller
(SystemExit, KeyboardInterrupt) or a loop of it (StopIteration). The remote traceback is attached either way, as a note
and as `remote_traceback`.
"""

import builtins
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final

import msgspec

from flashmesh.functions import errors
from flashmesh.functions.errors import FlashmeshError, NotEncodable, RemoteError
from flashmesh.wire import msgpack_values
from flashmesh.wire.answers import CODES
from flashmesh.wire.frames import Error

USER_ERROR: Final = RemoteError.code
"""The code of every exception that user code raised."""
TRACEBACK_LIMIT: Final = 64 * 1024
"""Characters of a traceback that travel; the middle of a longer one is left out."""
MESSAGE_LIMIT: Final = 16 * 1024
_OURS: Final = errors.__name__.partition(".")[0]
_PACKAGE: Final = str(Path(__file__).resolve().parents[1])


class ErrorInfo(msgspec.Struct, omit_defaults=True):
    """An exception in words. The payload of an ERROR.

    Attributes:
        code: a FlashmeshError's code; USER_ERROR for what user code raised.
        type: the class as a reader knows it: `ValueError`, `shop.OutOfStock`.
        module, qualname: where the class is found again.
        args, attributes: MessagePack of `exc.args` and of what else the instance holds; empty when they cannot travel.
        field: the path of a validation error. retry_after: seconds. status: the HTTP status, 0 = the code's own.
    """

    code: str = USER_ERROR
    type: str = ""
    message: str = ""
    traceback: str = ""
    module: str = ""
    qualname: str = ""
    args: bytes = b""
    attributes: bytes = b""
    field: str | None = None
    retry_after: float | None = None
    status: int = 0


def describe(
    exc: BaseException, *, code: str | None = None, hide_frames_of: Iterable[str] = (), main_module: str | None = None
) -> ErrorInfo:
    """What travels of an exception. Never raises, whatever the exception's own methods do.

    Args:
        code: default: the exception's own when it is ours, else USER_ERROR.
        hide_frames_of: folders whose frames are left out at the traceback's beginning, beside flashmesh's own.
        main_module: the module that `__main__` is called by other processes.
    """
    kind = _known_elsewhere(type(exc))
    module = main_module if kind.__module__ == "__main__" and main_module else kind.__module__
    name = kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"
    ours = isinstance(exc, FlashmeshError)
    retry_after = getattr(exc, "retry_after", None)
    field = getattr(exc, "field", None)
    return ErrorInfo(
        code=code or (exc.code if isinstance(exc, FlashmeshError) else USER_ERROR),
        type=kind.__name__ if ours and kind.__module__ == errors.__name__ else name,
        message=_shorten(_message(exc), MESSAGE_LIMIT),
        traceback=_shorten(format_remote(exc, hide_frames_of), TRACEBACK_LIMIT),
        module=module,
        qualname=kind.__qualname__,
        args=_encoded_args(exc),
        attributes=_encoded_attributes(exc),
        field=field if ours and isinstance(field, str) else None,
        retry_after=float(retry_after) if ours and isinstance(retry_after, int | float) else None,
        status=exc.status if isinstance(exc, FlashmeshError) else 0,
    )


def _known_elsewhere(kind: type[BaseException]) -> type[BaseException]:
    """An error of ours as other processes can know it: a class of functions/errors.py, not one of an inner module."""
    if kind.__module__.partition(".")[0] != _OURS:
        return kind
    return next((base for base in kind.__mro__ if base.__module__ == errors.__name__), kind)


def pack(info: ErrorInfo) -> bytes:
    """The payload of an ERROR frame."""
    return msgspec.msgpack.encode(info)


def unpack(payload: bytes, code: str = "INTERNAL") -> ErrorInfo:
    """The info of an ERROR frame's payload; of an empty or unreadable one, what its `code` says."""
    if payload:
        try:
            return msgspec.msgpack.decode(payload, type=ErrorInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass  # another version's: the code still tells what happened
    return of_code(code)


def of_code(code: str, message: str | None = None) -> ErrorInfo:
    """The info of one of our own errors by its code, with that class's own words unless `message` is given."""
    kind = CODES.get(code, FlashmeshError)
    info = describe(kind(message))
    info.code, info.traceback = code, ""
    return info


def of_frame(frame: Error) -> ErrorInfo:
    """What an ERROR frame says."""
    return unpack(frame.payload, frame.code)


def format_remote(exc: BaseException, hide_frames_of: Iterable[str] = ()) -> str:
    """The traceback as text, from the first frame of user code on; causes and groups included."""
    hidden = (_PACKAGE, *map(str, hide_frames_of))
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None and _is_hidden(tb.tb_frame, hidden):
        tb = tb.tb_next
    if tb is None or _is_hidden(tb.tb_frame, hidden):  # raised by the machinery, not by a line of the user's
        if isinstance(exc, FlashmeshError):
            return ""
        tb = None
    try:
        text = "".join(traceback.TracebackException(type(exc), exc, tb, compact=True).format())
        return text + _next_step(exc)
    except Exception:  # the exception's own __str__, or a cause's, is broken
        return f"{type(exc).__name__}\n"


def _next_step(exc: BaseException) -> str:
    """What helps against a package that is absent where the function ran, for instance one its image had elsewhere."""
    top = (exc.name or "").partition(".")[0] if isinstance(exc, ModuleNotFoundError) else ""
    if not top or top in sys.stdlib_module_names:
        return ""
    return f"If `{top}` is a package: add it to `dependencies=` or install it.\n"


def _is_hidden(frame: FrameType, folders: tuple[str, ...]) -> bool:
    name = frame.f_code.co_filename
    return name.startswith("<frozen") or any(name.startswith(folder) for folder in folders)


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # user code
        return object.__repr__(exc)


def _shorten(text: str, limit: int) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates do not travel
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def _encoded_args(exc: BaseException) -> bytes:
    args = exc.args
    if isinstance(exc, BaseExceptionGroup):
        return b""  # its text travels in the traceback
    if isinstance(exc, OSError) and exc.filename is not None and len(args) == 2:
        args = (*args, exc.filename)  # OSError keeps the file name out of its args
    try:
        return _encode_small(list(args))
    except (NotEncodable, TypeError):
        pass
    try:
        return _encode_small([value if _travels(value) else repr(value) for value in args])
    except Exception:  # a repr of the user's
        return b""


def _travels(value: object) -> bool:
    try:
        msgpack_values.encode(value)
    except NotEncodable:
        return False
    return True


def _encoded_attributes(exc: BaseException) -> bytes:
    """What the instance holds besides its args; what cannot travel is left out."""
    held = {key: value for key, value in getattr(exc, "__dict__", {}).items() if key not in _NOT_HELD}
    try:
        return _encode_small({key: value for key, value in held.items() if _travels(value)}) if held else b""
    except NotEncodable:
        return b""


def _encode_small(value: Any) -> bytes:
    data = msgpack_values.encode(value)
    return data if len(data) <= TRACEBACK_LIMIT * 4 else b""


_NOT_HELD: Final = frozenset({"__notes__", "remote_traceback"})


def restore(
    info: ErrorInfo, *, main_module: str | None = None, trusted_modules: Mapping[str, ModuleType] = sys.modules
) -> BaseException:
    """The exception to raise for it, without importing anything.

    Args:
        main_module: the module that this process runs as `__main__`: its classes are found there.
        trusted_modules: where classes may be looked up.
    Returns:
        An instance of the exception's own class, or a RemoteError. `remote_traceback` holds the remote text, which is
        also its note.
    """
    kind = _find_class(info, main_module, trusted_modules)
    exc = _rebuild(kind, info) if kind is not None else None
    if exc is None:
        exc = _unknown_class(info)
    _attach(exc, info)
    return exc


_NEVER: Final = (StopIteration, StopAsyncIteration, BaseExceptionGroup)
"""Not raised as themselves: the first two would be taken for a loop's end, a group's members do not travel."""


def _find_class(
    info: ErrorInfo, main_module: str | None, modules: Mapping[str, ModuleType]
) -> type[BaseException] | None:
    if info.module == "builtins":
        found: Any = getattr(builtins, info.qualname, None)
    else:
        name = "__main__" if main_module is not None and info.module == main_module else info.module
        found = modules.get(name) or modules.get(info.module)
        for part in info.qualname.split("."):
            found = getattr(found, "__dict__", {}).get(part)  # no __getattr__ of a module, no descriptors: nothing runs
    return found if isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, _NEVER) else None


def _rebuild(kind: type[BaseException], info: ErrorInfo) -> BaseException | None:
    """An instance with the same args and attributes. `__init__` is not run: its signature need not match the args."""
    if issubclass(kind, FlashmeshError) and kind.__module__ == errors.__name__:
        return _own(kind, info)
    args = _decoded(info.args)
    if not isinstance(args, list):
        args = [info.message] if info.message else []
    attributes = _decoded(info.attributes)
    try:
        exc = kind.__new__(kind, *args)
        # Built-in layouts (OSError, UnicodeError, StopIteration, SystemExit) fill their fields in their own __init__.
        base = next(base for base in kind.__mro__ if base.__module__ == "builtins" and "__init__" in vars(base))
        base.__init__(exc, *args)  # type: ignore[misc]
        if isinstance(attributes, dict):
            exc.__dict__.update(attributes)
    except Exception:  # a class that cannot be made this way; its name and message still arrive
        return None
    return exc


def _decoded(data: bytes) -> Any:
    if not data:
        return None
    try:
        return msgpack_values.decode(data)
    except (FlashmeshError, ValueError, TypeError):
        return None


def _own(kind: type[FlashmeshError], info: ErrorInfo) -> FlashmeshError:
    if issubclass(kind, RemoteError):
        attributes = _decoded(info.attributes)
        name = attributes.get("type_name", "") if isinstance(attributes, dict) else ""
        return RemoteError(info.message, type_name=str(name), remote_traceback=info.traceback)
    exc = kind(info.message)
    if isinstance(exc, errors.ValidationError):
        exc.field = info.field
    if isinstance(exc, errors.QueueFull) and info.retry_after is not None:
        exc.retry_after = info.retry_after
    return exc


def _unknown_class(info: ErrorInfo) -> BaseException:
    if info.code != USER_ERROR and info.code in CODES:
        return _own(CODES[info.code], info)
    message = f"{info.type}: {info.message}" if info.message else info.type
    return RemoteError(message or None, type_name=info.type, remote_traceback=info.traceback)


def _attach(exc: BaseException, info: ErrorInfo) -> None:
    if not info.traceback:
        return
    try:
        exc.remote_traceback = info.traceback  # type: ignore[attr-defined]
        exc.add_note(f"\nRemote traceback:\n{info.traceback.rstrip()}")
    except (AttributeError, TypeError):
        pass  # a class that takes no attributes


def http_status(info: ErrorInfo) -> int:
    """The status our own faces answer a failure with: the error's own, its code's, or 500."""
    if info.code == USER_ERROR:
        return 500
    kind = CODES.get(info.code)
    return kind.status if kind is not None else info.status or 500


def to_http(info: ErrorInfo) -> dict[str, Any]:
    """The failure as a JSON object: type, message, traceback, code, and the field of a validation error."""
    shown: dict[str, Any] = {
        "type": info.type, "message": info.message, "traceback": info.traceback, "code": info.code,
    }  # fmt: skip
    if info.field is not None:
        shown["field"] = info.field
    return shown


def of_ours(error: FlashmeshError) -> ErrorInfo:
    """The ErrorInfo of an error that our own code found, without a traceback: it would show our code only."""
    return ErrorInfo(
        code=error.code,
        type=type(error).__name__,
        message=str(error),
        field=getattr(error, "field", None),
        retry_after=getattr(error, "retry_after", None),
        status=error.status,
    )
