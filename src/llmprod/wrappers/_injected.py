"""What Chaos injects: errors that say so, answers, and streams that break or drip."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

from llmprod.clock import Clock
from llmprod.context import Context
from llmprod.decisions import ChaosInjected
from llmprod.errors import (
    AttemptTimedOut,
    CallError,
    ConnectError,
    ConnectTimeout,
    InvalidArgument,
    Overloaded,
    RateLimited,
    ReadError,
    ServerError,
)
from llmprod.events import CONTENT, Event, Finish, Item, Start, TextDelta, UsageUpdate
from llmprod.request import GenerateRequest, Request
from llmprod.response import EventSource, Response, WrappedSource
from llmprod.usage import Usage

INJECTED = "injected_by_chaos"
"""The ``code`` of injected errors."""
_BY_CHAOS = "injected by Chaos"

Fault: TypeAlias = Exception | type[Exception] | Callable[[], Exception]
"""An error to raise: a copy of it, one made of the class, or one made by the function."""
Made: TypeAlias = Callable[[Request, Context], Response]

MIX: tuple[Fault, ...] = (
    lambda: RateLimited(status=429),
    lambda: Overloaded(status=529),
    lambda: ServerError(status=500),
    lambda: ReadError(silent=True),
    lambda: ConnectError(silent=True),
    lambda: ConnectTimeout(silent=True),
    lambda: AttemptTimedOut(silent=True),
)
"""What a provider in trouble does, each way as likely."""


def faults_of(fault: Any) -> tuple[Fault, ...]:
    """Return the errors to choose from."""
    if fault is None:
        return MIX
    faults: tuple[Any, ...] = tuple(cast("Any", fault)) if isinstance(fault, Sequence) else (fault,)
    for item in faults:
        if isinstance(item, Exception) or (callable(item) and not isinstance(item, type)):
            continue
        if not (isinstance(item, type) and issubclass(item, Exception) and _can_be_made(item)):
            allowed = "an exception, a class of them that needs no arguments, or a function that makes one"
            raise InvalidArgument("fault", repr(cast("object", item))[:40], allowed)
    if not faults:
        raise InvalidArgument("fault", "an empty sequence", "one exception or more")
    return faults


def _can_be_made(kind: type[Exception]) -> bool:
    try:
        kind()
    except TypeError:
        return False
    return True


def outcome_of(outcome: Any) -> Made | tuple[Event, ...] | None:
    """Return the function that answers, or the events of the answer."""
    if outcome is None:
        return None
    if callable(outcome) and not inspect.iscoroutinefunction(cast("object", outcome)):
        return cast("Made", outcome)
    if isinstance(outcome, str) and outcome:
        return (Start("chaos"), TextDelta(outcome), UsageUpdate(Usage()), Finish("stop", INJECTED))
    events = tuple(cast("list[Event]", outcome)) if isinstance(outcome, (list, tuple)) else ()
    if not any(isinstance(event, Finish) for event in events):
        raise InvalidArgument(
            "outcome",
            type(cast("object", outcome)).__name__,
            "a non-empty text, events with a Finish, or a function (not async) of the request and the context",
        )
    return events


def made(fault: Fault, target: str) -> Exception:
    """Return the error to raise."""
    error = _copied(fault) if isinstance(fault, Exception) else fault()
    if isinstance(error, CallError):
        return marked(error, target)
    error.add_note(_BY_CHAOS)
    return error


def _copied(error: Exception) -> Exception:
    """A copy, since an error gathers notes, a traceback and a trace; the error itself where it can't be copied."""
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001 - its class takes other arguments than it keeps
        return error


def marked(error: CallError, target: str) -> CallError:
    """Return ``error``, which now says that it was injected."""
    error.provider = error.provider or target
    error.code = error.code or INJECTED
    error.detail = _BY_CHAOS if error.detail is None else f"{error.detail}; {_BY_CHAOS}"
    return error


def counted_in(request: Request) -> frozenset[type]:
    """Return the kinds of events that are counted: content, or the items of a decorated function's stream."""
    return CONTENT if isinstance(request, GenerateRequest) else _ITEMS


_ITEMS = frozenset[type]({Item, Finish})


class DripSource(WrappedSource):
    """Each counted event comes ``seconds`` later."""

    __slots__ = ("_clock", "_context", "_counted", "_seconds", "_target", "_told")

    def __init__(
        self, source: EventSource, target: str, context: Context, counted: frozenset[type], seconds: float
    ) -> None:
        super().__init__(source)
        self._counted = counted
        self._target = target
        self._context = context
        self._clock: Clock = context.clock
        self._seconds = seconds
        self._told = False

    async def __anext__(self) -> Event:
        event = self._poll() or await self._next()
        if type(event) in self._counted:
            if not self._told:
                self._told = True
                self._context.decided(ChaosInjected, self._target, kind="drip", seconds=self._seconds)
            await self._clock.sleep(self._seconds)
        return event


class CutSource(WrappedSource):
    """Breaks after ``cut`` counted events, at the latest where the answer would end."""

    __slots__ = ("_context", "_counted", "_cut", "_left", "_target")

    def __init__(self, source: EventSource, target: str, context: Context, counted: frozenset[type], cut: int) -> None:
        super().__init__(source)
        self._counted = counted
        self._target = target
        self._context = context
        self._cut = self._left = cut

    async def __anext__(self) -> Event:
        if self._left:
            event = self._poll() or await self._next()
            if type(event) not in self._counted:
                return event
            if type(event) is not Finish:
                self._left -= 1
                return event
        self._context.decided(ChaosInjected, self._target, kind="cut", events=self._cut - self._left)
        raise marked(ReadError(in_stream=True), self._target)
