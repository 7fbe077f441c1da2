"""What travels with a call: its deadline, its tags, its time and chance, and the record of what happened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.decisions import AttemptRefused, Decision, Listener
from llmprod.errors import DeadlineExceeded, InvalidArgument
from llmprod.trace import AttemptEnd, Trace

if TYPE_CHECKING:
    from llmprod.provider import Provider
    from llmprod.request import Request
    from llmprod.response import Outcome, Response

__all__ = ["CacheMode", "CallState", "Context", "Extra", "ExtraAttempts", "Fare", "Lane", "Toll"]

Extra: TypeAlias = Literal["retry", "failover", "hedge", "resume"]
"""What a call may want a further attempt for."""

CacheMode: TypeAlias = Literal["bypass", "refresh", "only"]
"""How a call uses a cache: not at all, to store a new answer there, or to answer from it alone."""


class ExtraAttempts(Protocol):
    """What gives leave for further attempts; :class:`llmprod.RetryBudget` does."""

    def withdraw(self, kind: Extra) -> bool:
        """Take leave for one further attempt; False if there is none."""
        ...

    def refund(self) -> None:
        """Give leave back for an attempt that did not reach a provider."""
        ...


class Fare(Protocol):
    """What one attempt was let through for; exactly one of these is called, and none awaits."""

    def refund(self) -> None:
        """The attempt was not made."""
        ...

    def failed(self, error: BaseException) -> None:
        """It ended in an error or a cancellation before there was an answer."""
        ...

    def ended(self, response: Callable[[], Response | None], outcome: Outcome) -> None:
        """Its answer has ended, in whatever way; ``response()`` is None where it was dropped unread."""
        ...


class Toll(Protocol):
    """What has to be paid before each attempt of a call, whoever makes it; see :class:`llmprod.Budget`."""

    async def admit(self, provider: Provider, request: Request, context: Context) -> Fare:
        """Return when ``provider`` may be asked; raise :class:`llmprod.Rejected` if it may not."""
        ...


@dataclass(slots=True, eq=False)
class Lane:
    """One of several attempts of a call that run side by side (a hedged call's primary and its hedge).

    Attributes:
        other: the lane beside it, whose target it must not ask.
        asking: ``id`` of the target that this lane is asking.
    """

    other: Lane | None = None
    asking: int | None = None


@dataclass(slots=True)
class CallState:
    """The mutable part, one for a call however many wrappers and attempts it passes.

    Attributes:
        started: the clock's time when the call began.
        trace: every attempt.
        retries_left: rounds that a Retry outside still has, so that a Failover inside knows whether to leave a
            transient failure to it.
        failures: failed attempts by ``id`` of the target.
        errors: the last failure by ``id`` of the target.
        silent: ``id`` of targets that are not to be asked again in this call.
        held: by ``id`` of a target that asked for a wait: when on the clock it ends, and the error that asked.
        attempts: attempts that reached a provider so far, each of which may be billed.
        cap: no more attempts than this; None for no cap.
        budget: gives leave for each attempt after the first; None where nothing asks for leave.
    """

    started: float
    trace: Trace = field(default_factory=Trace)
    retries_left: int = 0
    failures: dict[int, int] = field(default_factory=dict[int, int])
    errors: dict[int, Exception] = field(default_factory=dict[int, Exception])
    silent: set[int] = field(default_factory=set[int])
    held: dict[int, tuple[float, Exception]] = field(default_factory=dict[int, tuple[float, Exception]])
    attempts: int = 0
    cap: int | None = None
    budget: ExtraAttempts | None = None

    @property
    def sent(self) -> int:
        """Attempts that reached a provider, less those of an attempt beside this one (of a hedge)."""
        return self.attempts

    def give_back(self, sent: int) -> None:
        """Give leave back for an attempt that is over, if none reached a provider since there were ``sent``."""
        if self.sent == sent and self.budget is not None:
            self.budget.refund()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Passed explicitly along every ``send``; make one with :meth:`new`.

    Attributes:
        clock: the call's time.
        random: the call's chance.
        call: what the attempts of the call share.
        deadline: absolute time, on ``clock``, at which the call must be over; None for no limit.
        connect_timeout: seconds that opening a connection may take, for providers that open one.
        idle_timeout: seconds that the body of a whole answer, once begun, may stand still.
        tags: the caller's labels (user, tenant, endpoint, session …), for limits, budgets and telemetry.
        prompt: name and version of the prompt, for telemetry and evaluation.
        lineage: ids of the retrieved documents that the prompt was built from.
        priority: who goes first where calls wait in line; higher first, 0 for most.
        listeners: are told every decision of the call.
        lane: which of several attempts side by side this is; None where there is but one.
        insist: ask even a target whose circuit breaker is open, because all are.
        alternatives: another target will be asked if this one refuses, so one that would have to be waited for, such
            as an engine that is still starting, refuses at once.
        cache: how the call uses a cache, if not as usual: ``bypass`` (neither read nor stored), ``refresh`` (asked
            anew and stored) or ``only`` (answered from the cache or not at all).
        tolls: are paid before each attempt at a provider that costs something.
        meters: are told the end of every attempt, for its cost. They must not raise.
    """

    clock: Clock
    random: Random
    call: CallState
    deadline: float | None = None
    connect_timeout: float | None = None
    idle_timeout: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    prompt: tuple[str, str] | None = None
    lineage: tuple[str, ...] = ()
    priority: int = 0
    listeners: tuple[Listener, ...] = ()
    lane: Lane | None = None
    insist: bool = False
    alternatives: bool = False
    cache: CacheMode | None = None
    tolls: tuple[Toll, ...] = ()
    meters: tuple[Callable[[AttemptEnd], None], ...] = ()

    @classmethod
    def new(
        cls,
        *,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
        seconds: float | None = None,
        tags: Mapping[str, str] | None = None,
        prompt: tuple[str, str] | None = None,
        lineage: tuple[str, ...] = (),
        priority: int = 0,
        listeners: tuple[Listener, ...] = (),
        cache: CacheMode | None = None,
    ) -> Context:
        """Begin a call that must be over in ``seconds`` (None: no limit).

        Raises:
            InvalidArgument: ``seconds`` is not a positive number, ``priority`` no integer, or ``cache`` no such mode.
        """
        if cache is not None and cache not in ("bypass", "refresh", "only"):
            raise InvalidArgument("cache", repr(cache)[:40], "bypass, refresh, only, or None")
        _validate.seconds("seconds", seconds, optional=True)
        _validate.whole("priority", priority, -(2**31))
        now = clock.now()
        return cls(
            clock=clock,
            random=random,
            call=CallState(now),
            deadline=None if seconds is None else now + seconds,
            tags=tags or {},
            prompt=prompt,
            lineage=lineage,
            priority=priority,
            listeners=listeners,
            cache=cache,
        )

    @property
    def trace(self) -> Trace:
        """The call's attempts."""
        return self.call.trace

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return self.clock.now() - self.call.started

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, negative once it is past; None without one."""
        return None if self.deadline is None else self.deadline - self.clock.now()

    def within(self, seconds: float) -> Context:
        """Return a context whose deadline is at most ``seconds`` from now."""
        deadline = self.clock.now() + seconds
        return self if self.deadline is not None and self.deadline <= deadline else self.but(deadline=deadline)

    def but(self, **changes: Any) -> Context:
        """Return a copy with ``changes``: ``dataclasses.replace``, less the time that it takes in every call."""
        made = object.__new__(Context)
        for name, value in zip(_FIELDS, _values(self), strict=True):
            _set(made, name, value)
        for name, value in changes.items():
            _set(made, name, value)
        return made

    def check(self, target: str) -> None:
        """Raise DeadlineExceeded if the deadline is past."""
        if self.deadline is not None and self.deadline <= self.clock.now():
            raise DeadlineExceeded(detail=f"before asking {target}")

    def decided(self, kind: type[Decision], target: str, /, **values: Any) -> None:
        """Note a decision in the trace and tell the listeners: ``context.decided(CallWaited, name, seconds=0.2)``."""
        decision = kind(at=self.elapsed, target=target, **values)
        self.call.trace.decided(decision)
        for listener in self.listeners:
            try:
                listener(decision, self)
            except Exception as error:  # noqa: BLE001 - a broken listener must not break calls
                _log.error("a listener raised %s on %s", type(error).__name__, type(decision).__name__)

    def extra_attempt(self, kind: Extra, target: str, *, needs: float = 0.0) -> bool:
        """Ask for leave to make one more attempt; a refusal is noted.

        Args:
            kind: what it is for.
            target: the target that it would go to.
            needs: seconds that it needs at least, waits before it included; compared with the time left.
        """
        call = self.call
        reason: Literal["attempts", "budget", "deadline"]
        if call.cap is not None and call.attempts >= call.cap:
            reason = "attempts"
        elif self.deadline is not None and self.deadline - self.clock.now() <= needs:
            reason = "deadline"
        elif (
            # A call's first attempt is free of it; a hedge is no first one, even where the primary still waits in line.
            call.budget is not None and (call.attempts or kind == "hedge") and not call.budget.withdraw(kind)
        ):
            reason = "budget"
        else:
            return True
        self.decided(AttemptRefused, target, kind=kind, reason=reason)
        return False


_log = logging.getLogger("llmprod")
_FIELDS = tuple(item.name for item in fields(Context))
_values = attrgetter(*_FIELDS)
_set = object.__setattr__
