"""Decorated classes: methods called where the class's workers are, objects made once."""

import asyncio
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from functions_fixtures import FakeCaller, installed

from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.instances import KEPT, Instances
from flashmesh.functions.remote import remote
from flashmesh.functions.resources import LiveServerless

resource = LiveServerless(name="classes")
made: list[Any] = []


class Base:
    def inherited(self) -> str:
        return "from the base"


@remote(resource)
class Counter(Base):
    """Counts."""

    step = 1

    def __init__(self, start: int = 0, *, label: str = "") -> None:
        made.append((start, label))
        self.value = start

    def inc(self, by: int = 1) -> int:
        """Add."""
        self.value += by
        return self.value

    async def get(self) -> int:
        return self.value

    def upto(self) -> Iterator[int]:
        yield from range(self.value)

    @staticmethod
    def shout(text: str) -> str:
        return text.upper()

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    @property
    def shown(self) -> str:
        return str(self.value)

    def _hidden(self) -> None:
        return None


@remote(resource, local=True)
class Near:
    def where(self) -> str:
        return "here"


def test_public_methods_are_served_private_ones_and_properties_are_not() -> None:
    assert list(Counter.__flash__.methods) == ["inherited", "inc", "get", "upto", "shout", "name"]
    methods = Counter.__flash__.methods
    assert methods["get"].is_async
    assert methods["upto"].is_generator
    assert not methods["inc"].is_async


def test_constructor_arguments_travel_with_each_call() -> None:
    with installed(FakeCaller()) as caller:
        counter = Counter(5, label="x")
        assert asyncio.run(counter.inc(2)) == "answered"
        assert counter.get.call() == "answered"
    call = caller.seen[0]
    assert (call.method, call.args, call.init) == ("inc", (2,), ((5,), {"label": "x"}))
    assert call.declaration is Counter.__flash__
    assert caller.seen[1].method == "get"


def test_nothing_is_constructed_where_the_class_does_not_run() -> None:
    made.clear()
    with installed(FakeCaller()):
        Counter(77).inc.call()
    assert made == []


def test_objects_with_equal_constructor_arguments_are_one_in_their_worker() -> None:
    """A model is loaded once, however many callers there are."""
    made.clear()
    with installed(FakeCaller(local=True)):
        assert asyncio.run(Counter(100).inc()) == 101
        assert asyncio.run(Counter(100).inc()) == 102
        assert asyncio.run(Counter(200).get()) == 200
        assert Counter(100).get.call() == 102
    assert made == [(100, ""), (200, "")]


def test_a_method_may_stream_and_fan_out() -> None:
    async def program() -> Any:
        return [item async for item in Counter(300).upto()][-1], await Counter(400).inc.map([1, 1])

    with installed(FakeCaller(local=True)):
        assert asyncio.run(program()) == (299, [401, 402])
        assert asyncio.run(Counter(1).shout("a")) == "A"
        assert asyncio.run(Counter(1).name()) == "Counter"
        assert asyncio.run(Counter(1).inherited()) == "from the base"


def test_a_method_may_be_spawned() -> None:
    with installed(FakeCaller(local=True)) as caller:
        assert Counter(3).inc.spawn(2).call.result() == "answered"
    assert caller.seen[0].method == "inc"


def test_a_local_class_never_leaves_the_process() -> None:
    with installed(FakeCaller()) as caller:
        assert asyncio.run(Near().where()) == "here"
        assert Near().where.spawn().call.result(5) == "here"
    assert caller.seen == []


def test_a_method_keeps_its_name_signature_and_doc() -> None:
    counter = Counter(1)
    assert counter.inc.__doc__ == "Add."
    assert str(inspect.signature(counter.inc)) == "(by: int = 1) -> int"
    assert inspect.iscoroutinefunction(counter.inc)
    assert counter.inc is counter.inc


def test_the_class_still_is_one() -> None:
    assert inspect.isclass(Counter)
    assert str(inspect.signature(Counter)) == "(start: int = 0, *, label: str = '') -> None"
    assert isinstance(Counter(1), Counter)
    assert (Counter.__name__, Counter.__doc__, Counter.__module__) == ("Counter", "Counts.", __name__)
    assert Counter.__wrapped__ is Counter.__flash__.target
    assert Counter.inc is Counter.__wrapped__.inc
    assert "classes" in repr(Counter(1))
    assert (Counter | None) is not None


def test_a_class_and_its_objects_pickle_by_reference() -> None:
    assert pickle.loads(pickle.dumps(Counter)) is Counter
    copy = pickle.loads(pickle.dumps(Counter(9, label="x")))
    with installed(FakeCaller()) as caller:
        copy.inc.call()
    assert caller.seen[0].init == ((9,), {"label": "x"})


@pytest.mark.parametrize("name", ["value", "_hidden", "shown", "nothing"])
def test_what_is_not_a_public_method_says_what_there_is(name: str) -> None:
    with pytest.raises(AttributeError, match="inc, get"):
        getattr(Counter(1), name)


def test_an_attribute_cannot_be_set_from_afar() -> None:
    with pytest.raises(AttributeError, match="lives in its worker"):
        Counter(1).value = 3


def test_deriving_from_a_decorated_class_says_what_to_derive_from() -> None:
    with pytest.raises(DeclarationError, match=r"Counter\.__wrapped__"):

        class More(Counter):
            pass

    @remote(resource)
    class Better(Counter.__wrapped__):
        def twice(self) -> int:
            return 2 * self.value

    assert "twice" in Better.__flash__.methods
    assert "inc" in Better.__flash__.methods


def test_a_constructor_that_fails_is_tried_again() -> None:
    attempts = []

    def make() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("disk")
        return "made"

    instances = Instances(make)
    with pytest.raises(OSError, match="disk"):
        instances.get()
    assert instances.get() == "made"
    assert instances.get() == "made"
    assert len(attempts) == 2


def test_the_number_of_kept_objects_is_bounded() -> None:
    instances = Instances(lambda x: [x])
    first = instances.get((0,))
    assert instances.get((0,)) is first
    for index in range(1, KEPT + 1):
        instances.get((index,))
    assert instances.get((0,)) is not first


def test_arguments_that_cannot_be_compared_count_as_different() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

    instances = Instances(lambda x: [x])
    assert instances.get((Odd(),)) is not instances.get((Odd(),))
