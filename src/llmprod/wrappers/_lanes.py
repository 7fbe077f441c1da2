"""One call seen from one of several attempts that run side by side.

Wrappers inside must not mistake the other side's attempts for their own: a timeout marks the last attempt of the trace
as its own, a router gives leave back where the count of attempts did not change. So each side has a trace and a count
of its own, which pass everything on to the call's; what is known about the targets is shared as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from math import ceil

from llmprod.context import CallState, Context, Lane
from llmprod.decisions import Decision
from llmprod.request import Request
from llmprod.response import Response
from llmprod.trace import Attempt, Trace
from llmprod.usage import Usage

_SHARED = tuple(item.name for item in fields(CallState) if item.name not in ("attempts", "cap", "trace"))


class LaneTrace(Trace):
    """The attempts of one side; they are in the call's trace too.

    Args:
        whole: the call's trace.
        begins: is told each target before it is asked.
    """

    __slots__ = ("_begins", "_whole")

    def __init__(self, whole: Trace, begins: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._whole = whole
        self._begins = begins
        self.decisions = whole.decisions

    def begin(self, target: str, started: float) -> Attempt:
        """Open an attempt in both."""
        if self._begins is not None:
            self._begins(target)
        attempt = self._whole.begin(target, started)
        self.entries.append(attempt)
        return attempt

    def skipped(self, target: str, started: float, reason: str, *, error: str | None = None) -> None:
        """Note in both that a target was not asked."""
        self._whole.skipped(target, started, reason, error=error)
        self.entries.append(self._whole.entries[-1])

    def decided(self, decision: Decision) -> None:
        """Note a decision in the call's trace, whose list is ours."""
        self._whole.decided(decision)

    def waited(self, seconds: float) -> None:
        """Note a backoff in the call's trace."""
        self._whole.waited(seconds)


class LaneState(CallState):
    """The call's state with a trace and a count of attempts of one side.

    Attributes:
        own: attempts of this side that reached a provider.
        beside: the state of the side beside it.
    """

    __slots__ = ("_cap", "_lane", "_whole", "beside", "own")

    def __init__(self, whole: CallState, lane: Lane, trace: LaneTrace) -> None:
        for name in _SHARED:
            setattr(self, name, getattr(whole, name))
        self._whole = whole
        self._lane = lane
        self._cap = whole.cap
        self.trace: Trace = trace
        self.beside: LaneState | None = None
        self.own = 0

    @property
    def attempts(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Attempts of the call, those of the other side among them."""
        return self._whole.attempts

    @attempts.setter
    def attempts(self, value: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.own += value - self._whole.attempts
        self._whole.attempts = value

    @property
    def sent(self) -> int:
        """Attempts of this side alone."""
        return self.own

    @property
    def cap(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The call's cap, less what the side beside is about to use of it."""
        if self._cap is None or self.beside is None:
            return self._cap
        return self._cap - self.beside.pending

    @cap.setter
    def cap(self, value: int | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._cap = value

    @property
    def pending(self) -> int:
        """1 where this side is on its way to a provider, in a queue before it perhaps, and is not counted yet."""
        entries = self.trace.entries
        running = bool(entries) and entries[-1].state == "running"
        return int(not running and (self._lane.asking is not None or not self.own))


def lane(context: Context, begins: Callable[[str], None] | None = None) -> tuple[Context, LaneState]:
    """Return a context for one side of ``context``'s call, and its state."""
    side = Lane()
    state = LaneState(context.call, side, LaneTrace(context.call.trace, begins))
    return context.but(lane=side, call=state), state


def join(one: LaneState, other: LaneState) -> None:
    """Let each know of the other, so that they never ask one target at once."""
    one.beside, other.beside = other, one
    one._lane.other, other._lane.other = other._lane, one._lane


def part(state: LaneState) -> None:
    """Undo :func:`join`: nothing is beside it any more."""
    beside = state.beside
    if beside is not None:
        state.beside = beside.beside = None
        state._lane.other = beside._lane.other = None


def lost(loser: LaneState, winner: LaneState, reason: str, request: Request, answer: Response | None) -> int | None:
    """Note in the trace why a side ended and what it probably cost; return its tokens, None where none are known."""
    attempt = loser.trace.entries[-1] if loser.trace.entries else None
    if attempt is None or attempt.state not in ("cancelled", "closed", "ok"):
        return None  # it had failed, or was still on its way to a target
    attempt.reason = reason
    attempt.error = None  # the cancellation was ours
    if attempt.usage is None:
        attempt.usage = _probable(attempt, winner.trace.entries, request, None if answer is None else answer.usage)
    return None if attempt.usage is None else attempt.usage.total


def _probable(lost: Attempt, won: list[Attempt], request: Request, told: Usage | None) -> Usage | None:
    """Estimate what an attempt was billed that nobody told the usage of; None where there is nothing to go by.

    The prompt, as it was counted for the winner or from its length. Of a stream no more than the first token was made,
    since it lost by that; of a whole answer as much of the winner's as the time allowed.
    """
    from llmprod.mechanisms.token_estimate import rough_tokens

    prompt = told.total_input if told is not None and told.total_input else ceil(rough_tokens(request))
    output = int(lost.ttft is not None)
    if told is not None and not request.stream and won and won[-1].seconds:
        output = round(told.total_output * min(1.0, (lost.seconds or 0.0) / won[-1].seconds))
    return Usage(input=prompt, output=output, estimated=True) if prompt + output else None
