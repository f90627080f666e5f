"""Failures between processes: described once, restored as themselves where that is possible."""

import sys
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import (
    FlashmeshError,
    QueueFull,
    RemoteError,
    TimedOut,
    ValidationError,
    WorkerLost,
)
from flashmesh.wire.failures import (
    ErrorInfo,
    describe,
    http_status,
    of_code,
    of_frame,
    pack,
    restore,
    to_http,
    unpack,
)
from flashmesh.wire.frames import Error


class OutOfStockError(Exception):
    def __init__(self, item: str, *, left: int) -> None:
        super().__init__(f"{item}: {left} left")
        self.item = item
        self.left = left
        self.connection = object()


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("broken")

    __repr__ = __str__


class Picky(Exception):
    def __new__(cls, *args: Any) -> "Picky":
        if len(args) != 2:
            raise TypeError("two arguments")
        return super().__new__(cls, *args)

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


def raised(exc: BaseException, **options: Any) -> ErrorInfo:
    try:
        raise exc
    except BaseException as error:
        return unpack(pack(describe(error, **options)))


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("bad", 1),
        KeyError("k"),
        ZeroDivisionError(),
        FileNotFoundError(2, "No such file", "data.csv"),
        UnicodeDecodeError("utf8", b"\xff", 0, 1, "bad"),
        ConnectionResetError(104, "reset"),
        TimeoutError("late"),
        NotImplementedError,
    ],
    ids=repr,
)
def test_builtin_exceptions_arrive_as_themselves(exc: Any) -> None:
    """Same class, same args, same text, same file name."""
    exc = exc() if isinstance(exc, type) else exc
    back = restore(raised(exc))
    assert type(back) is type(exc)
    assert back.args == exc.args
    assert str(back) == str(exc)
    assert getattr(back, "filename", None) == getattr(exc, "filename", None)


def test_a_users_exception_arrives_as_itself_with_its_attributes() -> None:
    """Its constructor is not run, attributes that cannot travel are left out, the remote traceback is attached."""
    back = restore(raised(OutOfStockError("tea", left=2)))
    assert isinstance(back, OutOfStockError)
    assert (str(back), back.item, back.left) == ("tea: 2 left", "tea", 2)
    assert not hasattr(back, "connection")
    assert "OutOfStockError: tea: 2 left" in back.remote_traceback
    assert "Remote traceback" in back.__notes__[0]
    assert __file__ in back.__notes__[0]


def test_a_class_this_process_does_not_have_is_a_remote_error() -> None:
    """Nothing is imported to find it; its name, message and traceback are kept."""
    info = raised(OutOfStockError("tea", left=2))
    info.module = "a_module_nobody_imported"
    info.type = "a_module_nobody_imported.OutOfStockError"
    back = restore(info)
    assert isinstance(back, RemoteError)
    assert back.type_name == "a_module_nobody_imported.OutOfStockError"
    assert "tea: 2 left" in str(back)
    assert "raise exc" in back.remote_traceback
    assert "a_module_nobody_imported" not in sys.modules


def test_names_that_are_no_exception_classes_are_never_called() -> None:
    """A function, a module attribute or a lazy module's attribute are not used, whatever the bytes say."""
    lazy = types.ModuleType("lazy")
    lazy.__getattr__ = lambda name: pytest.fail("a module's __getattr__ ran")
    modules = {**sys.modules, "lazy": lazy}
    for module, name in (
        ("os", "system"),
        ("builtins", "eval"),
        ("sys", "modules"),
        ("lazy", "Error"),
        ("os", "path.x"),
    ):
        info = ErrorInfo(type="X", message="m", module=module, qualname=name)
        assert isinstance(restore(info, trusted_modules=modules), RemoteError)


def test_what_would_end_the_caller_arrives_as_a_remote_error() -> None:
    """sys.exit() in a function does not exit its caller, nor does a StopIteration end its loop."""
    for exc in (SystemExit(3), KeyboardInterrupt(), StopIteration(1), StopAsyncIteration(), GeneratorExit()):
        info = raised(exc)
        assert info.code == "USER_ERROR"
        back = restore(info)
        assert isinstance(back, RemoteError)
        assert back.type_name == type(exc).__name__


def test_classes_of_a_script_are_found_under_both_names() -> None:
    """`__main__` of a script is the worker's module, and the worker's module is the caller's `__main__`."""
    main = types.ModuleType("__main__")
    main.Trouble = type("Trouble", (Exception,), {"__module__": "__main__"})
    info = raised(main.Trouble("x"), main_module="shop.jobs")
    assert (info.module, info.type) == ("shop.jobs", "shop.jobs.Trouble")
    back = restore(info, main_module="shop.jobs", trusted_modules={"__main__": main})
    assert type(back) is main.Trouble
    assert isinstance(restore(info, main_module="other", trusted_modules={"__main__": main}), RemoteError)


def test_exceptions_that_fight_back_still_arrive() -> None:
    """A broken __str__, a picky constructor and args that cannot be sent end in words, never in another exception."""
    assert restore(raised(Broken("x"))).args == ("x",)
    assert isinstance(restore(raised(Picky(1, 2))), Picky | RemoteError)
    assert "object object" in restore(raised(ValueError(object()))).args[0]
    assert isinstance(restore(raised(type("Local", (Exception,), {})("x"))), RemoteError)


def test_groups_and_causes_are_in_the_traceback() -> None:
    """The text holds every member of a group and the cause with its own lines."""

    def fail() -> None:
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise ExceptionGroup("several", [ValueError("one"), TypeError("two")]) from error

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    info = describe(caught.value)
    for part in ("KeyError: 'cause'", "direct cause", "ValueError: one", "TypeError: two", "raise KeyError"):
        assert part in info.traceback
    back = restore(info)
    assert isinstance(back, RemoteError)
    assert back.type_name == "ExceptionGroup"


def test_the_traceback_begins_at_user_code() -> None:
    """Frames of flashmesh, and of folders that are named, are not shown above the first line of the user's."""
    import json

    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    shown = describe(caught.value).traceback
    assert shown.index(__file__) < shown.index("json")
    hidden = describe(caught.value, hide_frames_of=[__file__]).traceback
    assert __file__ not in hidden
    assert "JSONDecodeError" in hidden
    with pytest.raises(FlashmeshError) as ours:
        of = restore(of_code("WORKER_LOST"))
        raise of
    assert describe(ours.value, hide_frames_of=[__file__]).traceback == ""


def test_the_traceback_of_an_absent_package_ends_in_what_to_do() -> None:
    """A package, that is; a name the standard library lacks needs no advice. The message stays Python's."""
    info = raised(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert info.traceback.endswith("If `torch` is a package: add it to `dependencies=` or install it.\n")
    assert info.message == "No module named 'torch.nn'"
    assert "dependencies" not in raised(ModuleNotFoundError("No module named 'os.x'", name="os.x")).traceback


def test_our_own_errors_keep_what_they_carry() -> None:
    """Class, code, field and retry_after; a nested RemoteError keeps the type it speaks of."""
    back = restore(raised(ValidationError("bad", field="x.y")))
    assert isinstance(back, ValidationError)
    assert (str(back), back.field) == ("bad", "x.y")
    full = restore(raised(QueueFull(retry_after=3.5)))
    assert isinstance(full, QueueFull)
    assert full.retry_after == 3.5
    nested = restore(raised(RemoteError("a.B: x", type_name="a.B")))
    assert isinstance(nested, RemoteError)
    assert nested.type_name == "a.B"
    assert isinstance(restore(raised(TimedOut())), TimeoutError)


def test_a_code_alone_is_enough() -> None:
    """An ERROR without payload, or with one of another version, becomes the code's class with its own words."""
    for payload in (b"", b"\xc1nonsense"):
        back = restore(of_frame(Error("e", "WORKER_LOST", payload=payload)))
        assert isinstance(back, WorkerLost)
        assert "retries=" in str(back)
    assert isinstance(restore(of_code("A_CODE_OF_THE_FUTURE", "words")), FlashmeshError)
    assert str(restore(of_code("TIMEOUT", "words"))) == "words"


def test_http_shows_what_happened_and_where() -> None:
    """A user's exception is 500 with type, message and traceback; ours have their own status, and the field if any."""
    info = raised(OutOfStockError("tea", left=2))
    assert http_status(info) == 500
    shown = to_http(info)
    assert shown.keys() == {"type", "message", "traceback", "code"}
    assert shown["type"] == f"{__name__}.OutOfStockError"
    assert to_http(raised(ValueError("x")))["type"] == "ValueError"
    bad = raised(ValidationError("bad", field="x"))
    assert http_status(bad) == 422
    assert to_http(bad)["field"] == "x"
    assert http_status(of_code("QUEUE_FULL")) == 429
    assert http_status(ErrorInfo(code="UNKNOWN", status=418)) == 418
    nested = raised(ValidationError("bad", field="x"), code="USER_ERROR")
    assert http_status(nested) == 500


def test_long_texts_are_cut_in_the_middle() -> None:
    """A message of a megabyte does not travel whole; its beginning and end do."""
    info = raised(ValueError("a" * 1_000_000 + "end"))
    assert len(pack(info)) < 300_000
    assert info.message.endswith("end")
    assert "left out" in info.message


@given(st.binary(max_size=100))
def test_any_bytes_are_some_error(payload: bytes) -> None:
    """Unpacking and restoring garbage gives an exception to raise."""
    assert isinstance(restore(unpack(payload, "WORKER_LOST")), BaseException)


@given(st.lists(st.one_of(st.integers(), st.text(), st.binary(), st.none()), max_size=4))
def test_any_args_survive(args: list[Any]) -> None:
    """Whatever an exception was made with, lone surrogates included."""
    back = restore(raised(RuntimeError(*args)))
    assert type(back) is RuntimeError
    assert len(back.args) == len(args)
