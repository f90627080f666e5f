"""Decorated classes: objects whose methods are called where the class's workers are."""

from __future__ import annotations

from types import FunctionType, MethodType

from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.handles import Callee, handle_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from inspect import Signature
    from typing import Any

    from flashmesh.functions.declarations import Body, Declaration


def class_handle(declaration: Declaration) -> type:
    """The class that stands in for the user's. It has the public methods and takes the constructor's arguments."""
    target = declaration.target
    namespace: dict[str, Any] = {
        "__doc__": target.__doc__,
        "__flash__": declaration,
        "__module__": target.__module__,
        "__qualname__": target.__qualname__,
        "__wrapped__": target,
    }
    for name, body in declaration.methods.items():
        namespace[name] = RemoteMethod(declaration, body)
    return type(declaration.name, (RemoteObject,), namespace)


class _ConstructorSignature:
    """The signature of the user's class, made when somebody asks: `inspect` is slow to import."""

    def __get__(self, instance: object, owner: Any) -> Signature:
        from inspect import signature

        return signature(owner.__wrapped__)


class RemoteObject:
    """An object of a decorated class, as its callers hold it.

    Every public method is a handle: `await c.inc(1)`, `c.inc.call(1)`, `c.inc.spawn(1)`, `c.inc.map(…)`. The object
    itself is made by the worker, once for each set of constructor arguments. Attributes stay there too.
    """

    __flash__: Declaration
    __signature__ = _ConstructorSignature()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["_init"] = (args, kwargs)

    def __init_subclass__(cls) -> None:
        if "__flash__" not in cls.__dict__:
            base = cls.__mro__[1].__name__
            raise DeclarationError(
                f"{cls.__name__} derives from {base}, which is decorated. Derive from {base}.__wrapped__ instead."
            )

    def __getattr__(self, name: str) -> Any:
        methods = ", ".join(self.__flash__.methods) or "none"
        raise AttributeError(
            f"{self.__flash__.name!r} has no public method {name!r} (it has: {methods}). "
            "Its attributes live in the worker: add a method that returns them.",
            name=name,
            obj=self,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{self.__flash__.name} lives in its worker, so {name!r} cannot be set here. Add a method that sets it."
        )

    def __reduce__(self) -> Any:
        args, kwargs = self.__dict__["_init"]
        return (_remade, (type(self), args, kwargs))

    def __repr__(self) -> str:
        return f"<{self.__flash__.name} on {self.__flash__.resource.name!r}>"


def _remade(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return cls(*args, **kwargs)


class RemoteMethod:
    """One method. Read from an object it is a handle, made at the first use and kept in the object."""

    __slots__ = ("_body", "_declaration")

    def __init__(self, declaration: Declaration, body: Body) -> None:
        self._declaration = declaration
        self._body = body

    def __get__(self, instance: RemoteObject | None, owner: type) -> Any:
        name = self._body.name
        function = getattr(self._declaration.target, name)
        if instance is None:
            return function
        callee = Callee(self._declaration, self._body, method=name, init=instance.__dict__["_init"])
        shown = MethodType(function, instance) if isinstance(function, FunctionType) else function
        handle = handle_of(callee, shown)
        instance.__dict__[name] = handle
        return handle
