"""Bounds the calls that are under way at one target, and those that wait for their turn.

Without it a target that slows down collects calls until memory, sockets and patience run out, the healthy targets'
share among them. The line is short, first come first served within a priority, and every wait in it is bounded: a call
that can no longer be answered before its deadline is given up *before* it is sent (deadline check at dequeue), so that
a backlog is not worked off for callers who have left, and one whose turn is expected too late is refused when it comes.
resilience4j's and Polly's bulkheads have the bounds, not the checks.

How many calls at once is a number, or a limit that adapts: see :mod:`llmprod.mechanisms.concurrency_limit` and
:mod:`llmprod.mechanisms.gradient2`. A permit is held until the response has ended, for a stream until it is read.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn
from weakref import WeakKeyDictionary

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.decisions import CallShed, CallWaited, ConcurrencyChanged
from llmprod.errors import BulkheadFull, CallTimeout, InvalidArgument, Shed
from llmprod.mechanisms.attempt_time import AttemptTime
from llmprod.mechanisms.concurrency_limit import ConcurrencyLimit, ConcurrencyPermit, FixedLimit
from llmprod.provider import Provider
from llmprod.request import EmbedRequest, Request
from llmprod.response import Outcome, Response
from llmprod.verdict import Classifier, classify
from llmprod.wrapper import Phase, WrappedProvider, Wrapper
from llmprod.wrappers._line import Line, Place

__all__ = ["Bulkhead"]

_SOON = 1e-6
_NEWEST = 0.1
_ROOM = 2.0


class _Waiting(Line):
    """A line, and who of it has to go because somebody of a higher priority came to a full one."""

    __slots__ = ("displaced",)

    def __init__(self) -> None:
        super().__init__()
        self.displaced: set[Place] = set()

    def ahead(self, priority: int) -> int:
        """Return how many a newcomer of this priority would stand behind."""
        return sum(place.priority >= priority for place in self.places)

    def make_room(self, newcomer: Place, at_most: int) -> bool:
        """Keep to ``at_most``: the last one goes. False if that is the newcomer."""
        if len(self) - len(self.displaced) <= at_most:
            return True
        last = next(place for place in reversed(self.places) if place not in self.displaced)
        if last is newcomer:
            return False
        self.displaced.add(last)
        last.wake()
        return True


_lines: WeakKeyDictionary[ConcurrencyLimit, _Waiting] = WeakKeyDictionary()
"""One line for each limit: stacks that share permits wait together, or a permit would go to whoever looks first."""


class Bulkhead(Wrapper):
    """Let ``limit`` calls be under way at once; refuse with :class:`BulkheadFull` what finds no room in the line.

    Args:
        limit: calls at once: a number, which each wrapped target has for itself, or a limit such as
            :class:`Gradient2` or :class:`QueueLimit`, which all targets and stacks that get it share, with one line
            (default 100, as many as httpx keeps connections).
        at_most_waiting: calls that may wait for their turn (default 100). Where as many wait, the last of them with
            a lower priority makes room for a newcomer, else the newcomer is refused at once. 0: nobody waits.
        wait_at_most: seconds that a call may wait before it is refused (default 10); None: as long as its deadline
            allows.
        classify: what an error says about the target (default :func:`llmprod.classify`).
        clock: time of the observed durations.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    phase: ClassVar[Phase] = Phase.BULKHEAD

    def __init__(
        self,
        limit: int | ConcurrencyLimit = 100,
        *,
        at_most_waiting: int = 100,
        wait_at_most: float | None = 10.0,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not isinstance(limit, ConcurrencyLimit) and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise InvalidArgument("limit", repr(limit)[:40], "a positive integer, or a limit such as Gradient2()")
        if isinstance(limit, int):
            _validate.whole("limit", limit, 1)
        _validate.whole("at_most_waiting", at_most_waiting, 0)
        _validate.seconds("wait_at_most", wait_at_most, optional=True, zero=True)
        self.limit: int | ConcurrencyLimit = limit
        self.at_most_waiting: int = at_most_waiting
        self.wait_at_most: float | None = wait_at_most
        self.classify = classify
        self.clock: Clock = clock

    def wrap(self, inner: Provider) -> Provider:
        """Bound ``inner``'s calls, with permits of its own or with the shared limit's."""
        return BulkheadProvider(inner, self)

    def __repr__(self) -> str:
        limit = f"{self.limit} at once" if isinstance(self.limit, int) else type(self.limit).__name__
        return f"Bulkhead({limit}, {self.at_most_waiting} waiting)"


def _whole(request: Request) -> bool:
    """Its time until it is answered depends on the answer's length."""
    return not request.stream and not isinstance(request, EmbedRequest)


class BulkheadProvider(WrappedProvider):
    wrapper: Bulkhead

    def __init__(self, inner: Provider, wrapper: Bulkhead) -> None:
        super().__init__(inner, wrapper)
        limit = wrapper.limit
        self.limit: ConcurrencyLimit = limit if isinstance(limit, ConcurrencyLimit) else FixedLimit(limit)
        self.line: _Waiting = _lines.setdefault(self.limit, _Waiting())
        self._times = AttemptTime(clock=wrapper.clock)
        self._held: float | None = None
        self._told = self.limit.limit

    async def send(self, request: Request, context: Context) -> Response:
        permit = None if self.line.places else self.limit.acquire()
        if permit is None:
            permit = await self._wait(request, context)
        began = self.wrapper.clock.now()
        try:
            response = await self.inner.send(request, context)
        except Exception as error:
            self._failed(permit, error, context)
            raise
        except BaseException:
            remaining = context.remaining
            if remaining is not None and remaining <= 0:
                permit.expired(self.wrapper.clock.now() - began, whole=_whole(request))
                self._tell(context)
            self._release(permit)
            raise
        seconds = self.wrapper.clock.now() - began
        try:
            self._times.record(request, seconds)
            permit.answered(seconds, whole=_whole(request))
            self._tell(context)
        finally:
            response.on_close(lambda outcome: self._ended(permit, outcome, began, context))
        return response

    async def _wait(self, request: Request, context: Context) -> ConcurrencyPermit:
        line, clock = self.line, self.wrapper.clock
        joined = clock.now()
        patience = self.wrapper.wait_at_most
        if self._comes_too_late(line, request, context):
            self._refuse("too late", 0.0, context)
        place = line.join(context.priority)
        try:
            if not line.make_room(place, self.wrapper.at_most_waiting):
                self._refuse("queue full", 0.0, context)
            while True:
                waited = clock.now() - joined
                if place in line.displaced:
                    self._refuse("queue full", waited, context)
                # What is left for waiting if the answer is to come before the deadline.
                spare = context.remaining
                if spare is not None:
                    spare -= self._times.least(request)
                    if spare <= _SOON:
                        self._refuse("too late", waited, context)
                if place.first and (permit := self.limit.acquire()) is not None:
                    break
                left = None if patience is None else patience - waited
                if left is not None and left <= _SOON:
                    self._refuse("waited too long", waited, context)
                again = self.limit.ask_again if place.first else None
                bounds = [bound for bound in (left, spare, again) if bound is not None]
                await place.wait(min(bounds) if bounds else None)
        finally:
            line.displaced.discard(place)
            place.leave()
        if waited > 0:
            context.decided(CallWaited, self.name, seconds=waited)
        return permit

    def _comes_too_late(self, line: _Waiting, request: Request, context: Context) -> bool:
        """Tell whether a newcomer's turn comes when there is no time left for an answer.

        Little's law: each place frees one turn in the time that a call holds it. A whole answer is left twice the usual
        time: with just once, half of those that waited would be sent in vain.
        """
        remaining = context.remaining
        if remaining is None or self._held is None:
            return False
        room = _ROOM * self._held if _whole(request) else self._times.least(request)
        return self._held * line.ahead(context.priority) / self.limit.limit + room > remaining

    def _refuse(self, reason: str, waited: float, context: Context) -> NoReturn:
        context.decided(CallShed, self.name, reason=reason, waited=waited)
        if reason == "too late":
            raise Shed(provider=self.name, detail="its deadline leaves no time for an answer")
        raise BulkheadFull(provider=self.name, detail=reason, retry_after=self._retry_after())

    def _retry_after(self) -> float | None:
        """Seconds in which a place is expected to be free: as long as a call holds one, over the calls at once."""
        return None if self._held is None else round(self._held / self.limit.limit, 3)

    # ---- what a call reports ----------------------------------------------------------------------------------------

    def _failed(self, permit: ConcurrencyPermit, error: BaseException, context: Context) -> None:
        try:
            verdict = self.wrapper.classify(error)
            # A limit of time that passed is a drop as well (Netflix's Limiter.Listener); the call's own
            # deadline is one where others' answers had long been there, see ConcurrencyPermit.expired.
            if verdict.throttled or (isinstance(error, CallTimeout) and verdict.health == "down"):
                permit.dropped()
                self._tell(context)
        finally:
            self._release(permit)

    def _ended(self, permit: ConcurrencyPermit, outcome: Outcome, began: float, context: Context) -> None:
        held = self.wrapper.clock.now() - began
        self._held = held if self._held is None else self._held + _NEWEST * (held - self._held)
        if outcome.kind == "error" and outcome.error is not None:
            self._failed(permit, outcome.error, context)
        else:
            self._release(permit)

    def _release(self, permit: ConcurrencyPermit) -> None:
        permit.release()
        self.line.wake()

    def _tell(self, context: Context) -> None:
        """Note a limit that has moved since it was last told."""
        before, self._told = self._told, self.limit.limit
        if self._told != before:
            context.decided(ConcurrencyChanged, self.name, before=before, after=self._told)
            self.line.wake()
