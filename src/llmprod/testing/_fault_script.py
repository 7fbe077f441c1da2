"""Which behaviour applies to which request: scripts, outages, and the record that they see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeGuard, cast

from ._fault_connection import Outcome
from .behaviour import Behaviour, ErrorReply

HEALTHY = Behaviour()
"""A whole answer at once."""

UNAVAILABLE = Behaviour(error=ErrorReply(status=503))
"""What an outage answers unless told otherwise."""

ANY_MODEL = "*"
"""The key of a script by model that stands for all others."""


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """One request that the server received. The record of one that still runs has the outcome ``open``."""

    number: int
    """From 0, over all requests since the start or the last reset."""
    model_number: int
    """From 0, over the requests for the same model."""
    time: float
    """Seconds on the server's clock when it had arrived."""
    ended: float | None
    method: str
    path: str
    """With its query."""
    model: str | None
    stream: bool
    headers: Mapping[str, str] = field(repr=False)
    """Names are lower-case."""
    body: Mapping[str, object] = field(repr=False)
    """The JSON object sent; empty if it was none."""
    connection: int
    """From 1, in the order that connections were opened."""
    status: int | None
    """The status answered, None if no head was sent."""
    events: int
    """Content events written."""
    outcome: Outcome


ScriptFunction: TypeAlias = Callable[[RequestRecord], Behaviour]
ModelScript: TypeAlias = Behaviour | Sequence[Behaviour] | ScriptFunction
"""One behaviour for all; one for each request, the last for the rest; or a function of the request."""
Script: TypeAlias = ModelScript | Mapping[str, ModelScript]
"""A script, or one for each model (``"*"``: for the others)."""


class _Cursor:
    """A script and how far it was played."""

    __slots__ = ("_played", "_script")

    def __init__(self, script: ModelScript) -> None:
        if not isinstance(script, Behaviour) and not callable(script) and len(script) == 0:
            raise ValueError("script must hold at least one behaviour, got an empty sequence")
        self._script = script
        self._played = 0

    def next(self, record: RequestRecord) -> Behaviour:
        script = self._script
        number, self._played = self._played, self._played + 1
        if isinstance(script, Behaviour):
            return script
        if callable(script):
            return script(record)
        return script[min(number, len(script) - 1)]


@dataclass(frozen=True, slots=True)
class _Outage:
    start: float
    end: float
    behaviour: Behaviour
    model: str | None


class Director:
    """Holds the scripts and outages of a server and picks the behaviour for a request. Thread-safe."""

    def __init__(self, script: Script) -> None:
        self._initial = script
        self._lock = threading.Lock()
        self._cursors: Mapping[str, _Cursor] = {}
        self._outages: tuple[_Outage, ...] = ()
        self.reset()

    def reset(self) -> None:
        """Back to the first script, from its beginning, without outages."""
        cursors = _cursors(self._initial)
        with self._lock:
            self._cursors, self._outages = cursors, ()

    def install(self, script: Script, model: str | None) -> None:
        """Play `script` from now on."""
        cursors = _cursors(script)
        with self._lock:
            if model is not None:
                cursors = {**self._cursors, model: cursors[ANY_MODEL]}
            self._cursors = cursors

    def add_outage(self, start: float, end: float, behaviour: Behaviour, model: str | None) -> None:
        """Be out of order from `start` to `end` on the server's clock."""
        with self._lock:
            self._outages = (*self._outages, _Outage(start, end, behaviour, model))

    def end_outages(self, model: str | None) -> None:
        """Forget the outages of `model`, or all."""
        with self._lock:
            self._outages = tuple(o for o in self._outages if model is not None and o.model != model)

    def outage_of(self, record: RequestRecord) -> Behaviour | None:
        """The behaviour of the outage that a request falls into, if it does."""
        for outage in self._outages:
            if outage.start <= record.time < outage.end and outage.model in (None, record.model):
                return outage.behaviour
        return None

    def choose(self, record: RequestRecord) -> Behaviour:
        """The behaviour for a request. An outage does not use up a script's steps."""
        outage = self.outage_of(record)
        if outage is not None:
            return outage
        cursors = self._cursors
        cursor = cursors.get(record.model or "") or cursors.get(ANY_MODEL)
        return HEALTHY if cursor is None else cursor.next(record)


def _cursors(script: Script) -> dict[str, _Cursor]:
    if _is_by_model(script):
        return {model: _Cursor(part) for model, part in script.items()}
    return {ANY_MODEL: _Cursor(cast("ModelScript", script))}


def _is_by_model(script: Script) -> TypeGuard[Mapping[str, ModelScript]]:
    return isinstance(script, Mapping)
