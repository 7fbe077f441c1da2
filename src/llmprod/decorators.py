"""The same wrappers on a function that calls a model by itself, whichever SDK or HTTP client it uses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast, overload

from llmprod._background import background
from llmprod._functions.call import FunctionStack
from llmprod._functions.provider import FunctionProvider, Kind, kind_of, name_of
from llmprod._functions.streams import AsyncStream, SyncStream
from llmprod._validate import type_of
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.decisions import Listener
from llmprod.errors import InvalidArgument
from llmprod.presets import standard
from llmprod.provider import Provider
from llmprod.wrapper import Phase, Stack, Wrapper
from llmprod.wrappers.failover import Failover

__all__ = ["resilient"]

F = TypeVar("F", bound=Callable[..., Any])
_FUNCTION = "a function, a coroutine function, a generator function or an asynchronous generator function"


@overload
def resilient(
    *wrappers: Wrapper,
    fallbacks: Sequence[Callable[..., Any]] = (),
    name: str | None = None,
    stream: bool | None = None,
    check_complete: bool = True,
    listeners: Sequence[Listener] = (),
    clock: Clock = SYSTEM_CLOCK,
    random: Random = SYSTEM_RANDOM,
) -> Callable[[F], F]: ...


@overload
def resilient(function: F, /) -> F: ...


def resilient(
    *wrappers: Any,
    fallbacks: Sequence[Callable[..., Any]] = (),
    name: str | None = None,
    stream: bool | None = None,
    check_complete: bool = True,
    listeners: Sequence[Listener] = (),
    clock: Clock = SYSTEM_CLOCK,
    random: Random = SYSTEM_RANDOM,
) -> Any:
    """Put wrappers around a function that calls a model; signature, return value and exceptions stay as they were.

    ``@resilient`` alone applies the standard stack; ``@resilient(Retry(3), AttemptTimeout(total=30))`` just these
    wrappers, outermost first. Works on functions, coroutine functions, generators, asynchronous generators and
    methods; a function that returns an SDK's stream hands out that stream's items through the wrappers. What happened
    in a call is seen with :func:`llmprod.capture`.

    The function may be called several times for one call of the caller's. A plain function or generator runs in
    worker threads, and the wrappers around it on a background event loop, so the caller needs none. A thread can't be
    stopped: one whose time is up is left behind and ends when the function's own call returns.

    Args:
        *wrappers: such as ``Retry(3)``; with none, the standard stack.
        fallbacks: functions with the same parameters, asked in order when those before can't serve the call. Wrappers
            from the rate limit inwards (breaker, attempt timeout) stand around each of them, the others around all.
        name: what traces and errors call the function (default: its own name).
        stream: calls return a stream, so limits on its first content apply. By default known of generators and of
            calls with ``stream=True``.
        check_complete: a vendor's SDK answer that is cut off, or reports a failure inside, counts as failed, though the
            SDK hands it out like any other (default True).
        listeners: functions that are told every :class:`Decision` as it is made, with the call's context.
        clock: time, for tests.
        random: chance, for tests.

    Raises:
        InvalidArgument: naming the argument, when the function is decorated.
    """
    bare = len(wrappers) == 1 and not isinstance(wrappers[0], Wrapper) and _is_function(wrappers[0])
    chosen = () if bare else _checked(wrappers)

    def decorate(function: Any) -> Any:
        if isinstance(function, (classmethod, staticmethod)):
            method = cast("classmethod[Any, ..., Any]", function)
            return type(method)(decorate(method.__func__))
        _require_function("function", function)
        kind = kind_of(function)
        label = name or name_of(function)
        as_items = kind in ("items", "async_items")
        providers = [FunctionProvider(function, name=label, as_items=as_items, check=check_complete)]
        for place, other in enumerate(fallbacks):
            _require_fallback(f"fallbacks[{place}]", other, kind)
            providers.append(FunctionProvider(other, name=name_of(other), as_items=as_items, check=check_complete))
        stack = FunctionStack(
            _stacked(chosen, providers, clock, random),
            name=label,
            kind=kind,
            stream=True if as_items else stream,
            listeners=tuple(listeners),
            clock=clock,
            random=random,
        )
        decorated: Any = functools.wraps(function)(_FORMS[kind](stack))
        decorated.__llmprod__ = stack
        return decorated

    if isinstance(fallbacks, str) or not isinstance(fallbacks, Sequence):
        raise InvalidArgument("fallbacks", type(fallbacks).__name__, "a list of functions with the same parameters")
    if isinstance(listeners, str) or not isinstance(listeners, Sequence) or not all(map(callable, listeners)):
        raise InvalidArgument("listeners", type(listeners).__name__, "a list of functions")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise InvalidArgument("name", "empty" if name == "" else type(name).__name__, "a non-empty string, or None")
    if bare:
        return decorate(wrappers[0])
    return decorate


# ---- arguments -------------------------------------------------------------------------------------------------------


def _is_function(value: object) -> bool:
    return isinstance(value, (classmethod, staticmethod)) or (callable(value) and not isinstance(value, type))


def _require_function(field: str, value: object) -> None:
    if not callable(value) or isinstance(value, (type, Wrapper, Provider)):
        raise InvalidArgument(field, type_of(value), _FUNCTION)


def _require_fallback(field: str, value: object, kind: Kind) -> None:
    _require_function(field, value)
    if kind in ("sync", "items") and kind_of(cast("Callable[..., Any]", value)) not in ("sync", "items"):
        raise InvalidArgument(field, "an asynchronous function", "a synchronous one, as the decorated function is")


def _checked(wrappers: Sequence[Any]) -> tuple[Wrapper, ...]:
    """Return the wrappers one by one, those inside a Stack too."""
    flat: list[Wrapper] = []
    for wrapper in wrappers:
        if not isinstance(wrapper, Wrapper):
            raise InvalidArgument("wrappers", type_of(wrapper), "wrappers such as Retry(3) or AttemptTimeout(total=30)")
        flat.extend(_checked(wrapper.wrappers) if isinstance(wrapper, Stack) else (wrapper,))
    return tuple(flat)


def _stacked(wrappers: tuple[Wrapper, ...], targets: Sequence[Provider], clock: Clock, random: Random) -> Provider:
    if not wrappers:
        return standard(targets[0], targets[1:], clock=clock, random=random)
    if len(targets) == 1:
        return Stack(*wrappers)(targets[0])
    split = next((place for place, wrapper in enumerate(wrappers) if wrapper.phase > Phase.ROUTE), len(wrappers))
    outer, inner = wrappers[:split], wrappers[split:]
    return Stack(*outer)(Failover(*(Stack(*inner)(target) for target in targets)))


# ---- what takes the function's place ---------------------------------------------------------------------------------


def _function(stack: FunctionStack) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        response = background().run(stack.send, args, kwargs)
        return response.raw if response.closed else SyncStream(response=response)

    return call


def _coroutine_function(stack: FunctionStack) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        response = await stack.send(args, kwargs)
        return response.raw if response.closed else AsyncStream(response=response)

    return call


def _generator_function(stack: FunctionStack) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return SyncStream(lambda: background().run(stack.send, args, kwargs))

    return call


def _async_generator_function(stack: FunctionStack) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return AsyncStream(lambda: stack.send(args, kwargs))

    return call


_FORMS: dict[Kind, Callable[[FunctionStack], Callable[..., Any]]] = {
    "sync": _function,
    "async": _coroutine_function,
    "items": _generator_function,
    "async_items": _async_generator_function,
}
