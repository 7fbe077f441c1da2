"""What all providers over several targets share: whom to leave out, when to move on, and what the failure of all means.

Which target comes first is the subclass's decision (:meth:`Router.order`). Candidates are filtered by capability
before they are asked (OpenRouter's ``require_parameters``, Vercel's ``has``); a target that stayed silent is not asked
again in the same call; one that asked for a wait is left alone by all calls; and when every candidate's breaker is open
the one nearest to recovery is asked all the same (Envoy's panic threshold): refusing everybody helps nobody.

A target that would have to be waited for (an engine that is still starting, a line before a full one) is told whether
somebody else can be asked, and gives way at once if so; when nobody else has served the call, it is waited for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from llmprod._validate import A_PROVIDER
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.decisions import LeastBadTried, TargetPaused
from llmprod.errors import (
    AllTargetsFailed,
    CircuitOpen,
    ContextTooLong,
    InvalidArgument,
    Rejected,
    UnsupportedParameter,
)
from llmprod.mechanisms.attempt_time import AttemptTime
from llmprod.provider import Capabilities, Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.verdict import Action, Classifier, Verdict, classify
from llmprod.wrapper import Phase, leaves
from llmprod.wrappers._giving_way import Way, gives_way, refused, way_of

__all__ = ["Router"]

_PAUSE_AT_MOST = 60.0
"""Seconds that one answer may keep all calls off a target, however long it asked for."""


class _Tried:
    """What became of one call's round over the targets."""

    __slots__ = ("asked", "before", "failed", "gave_way", "last", "window")

    def __init__(self, sent: int) -> None:
        self.before = sent
        self.gave_way: tuple[Provider, Way] | None = None
        self.failed: list[tuple[Provider, Exception, Verdict]] = []
        self.last: Exception | None = None
        self.asked = 0
        self.window = 0

    def further(self, context: Context) -> bool:
        """An attempt now would be a further one. The round's first is covered by the leave that the round has."""
        # A target may be a stack with a Retry in it, which asked and was refused in the end.
        return self.asked > 0 or context.call.sent > self.before

    def gives_way(self, target: Provider) -> None:
        """Keep in mind who gave way, if that is why ``target`` just refused; a line is shorter than a start."""
        way = way_of(self.failed[-1][1])
        if way is not None and (self.gave_way is None or (way == "full" and self.gave_way[1] != "full")):
            self.gave_way = target, way

    def note(self, target: Provider, error: Exception, verdict: Verdict) -> None:
        self.failed.append((target, error, verdict))


class Router(ABC):
    """A provider over several targets.

    Args:
        targets: one or more providers.
        classify: what an error means.
        clock: time, for how long attempts take.

    Raises:
        InvalidArgument: no target, or something that is no provider.
    """

    phase: ClassVar[Phase] = Phase.ROUTE
    label: ClassVar[str]

    def __init__(
        self, targets: Sequence[Provider], *, classify: Classifier = classify, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if not targets:
            raise InvalidArgument("targets", "nothing", "at least one provider")
        for target in targets:
            if not isinstance(target, Provider):
                raise InvalidArgument("targets", type(target).__name__, A_PROVIDER)
        self.targets: tuple[Provider, ...] = tuple(targets)
        self.classify = classify
        self._capabilities = targets[0].capabilities
        for target in targets[1:]:
            self._capabilities |= target.capabilities
        self._free = {id(target) for target in targets if all(getattr(leaf, "free", False) for leaf in leaves(target))}
        self._times: dict[int, AttemptTime] = {id(target): AttemptTime(clock=clock) for target in targets}
        self._paused: dict[int, tuple[float, Exception]] = {}
        # Targets that may have to be waited for: told whether somebody else would be asked instead.
        self._yielding = {id(target) for target in targets if gives_way(target)}

    @property
    def name(self) -> str:
        """The targets' names, best first."""
        return " | ".join(target.name for target in self.targets)

    @property
    def capabilities(self) -> Capabilities:
        """What at least one target can do."""
        return self._capabilities

    @abstractmethod
    def order(self, request: Request, context: Context) -> Sequence[Provider]:
        """Return the targets in the order in which they are to be asked."""

    def leaves_to_retry(self, failures: int, verdict: Verdict, context: Context) -> bool:
        """Tell whether a target's failure, its ``failures``-th in the call, goes to a Retry outside at once."""
        return False

    async def ask(self, target: Provider, request: Request, context: Context) -> Response:
        """Send to one target; a subclass measures here."""
        return await target.send(request, context)

    async def send(self, request: Request, context: Context) -> Response:
        """Return the first answer."""
        tried = _Tried(context.call.sent)
        order = self.order(request, context)
        for place, target in enumerate(order):
            if self._left_out(target, request, context, tried):
                continue
            if not self._may_ask(target, request, context, tried):
                if (said := context.call.errors.get(id(target))) is not None:
                    tried.note(target, said, self.classify(said))
                continue
            told = context
            if id(target) in self._yielding and (tried.gave_way or self._others(order[place + 1 :], request, context)):
                told = context.but(alternatives=True)
            response = await self._try(target, request, told, tried)
            if response is not None:
                return response
            if told is not context:
                tried.gives_way(target)
        beside = context.lane is not None and context.lane.other is not None and context.lane.other.asking is not None
        if beside and not tried.failed:
            raise Rejected(provider=self.name, detail="asked by the attempt beside this one")
        least_bad = None if beside else self._least_bad(tried)
        if least_bad is not None and self._may_ask(least_bad[0], request, context, tried):
            target, error = least_bad
            context.decided(LeastBadTried, target.name, retry_after=error.retry_after)
            response = await self._try(target, request, context.but(insist=True), tried)
            if response is not None:
                return response
        patient = None if beside else self._to_be_waited_for(tried, context)
        if patient is not None and self._may_ask(patient, request, context, tried):
            response = await self._try(patient, request, context, tried)
            if response is not None:
                return response
        raise self._failure(tried)

    def _left_out(self, target: Provider, request: Request, context: Context, tried: _Tried) -> bool:
        call = context.call
        if id(target) in call.silent:
            return True
        lane = context.lane
        if lane is not None and lane.other is not None and lane.other.asking == id(target):
            return True  # the attempt beside this one is there already
        if (lack := _lack(target, request, tried.window)) is not None:
            reason, refusal = lack
            context.trace.skipped(target.name, context.elapsed, reason, error=type(refusal).__name__)
            tried.note(target, refusal, self.classify(refusal))
            return True
        if (hold := self._hold(target, context)) is not None:
            left, asked_for_it = hold
            context.trace.skipped(
                target.name, context.elapsed, f"asked for {left:.3g} s more", error=type(asked_for_it).__name__
            )
            tried.note(target, asked_for_it, replace(self.classify(asked_for_it), retry_after=left))
            return True
        if tried.failed:
            context.check(target.name)
        return False

    def _others(self, later: Sequence[Provider], request: Request, context: Context) -> bool:
        """Tell whether one of ``later`` could serve the request, fixed answers not counted."""
        return any(
            id(target) not in context.call.silent
            and id(target) not in self._free
            and not target.capabilities.missing(request)
            and self._hold(target, context) is None
            for target in later
        )

    def _may_ask(self, target: Provider, request: Request, context: Context, tried: _Tried) -> bool:
        if id(target) in self._free or not tried.further(context):
            return True
        return context.extra_attempt("failover", target.name, needs=self._times[id(target)].least(request))

    async def _try(self, target: Provider, request: Request, context: Context, tried: _Tried) -> Response | None:
        """Return the target's answer, or None after a failure that others may make good."""
        call = context.call
        lane = context.lane
        sent = call.sent
        paid = call.attempts > 0 and id(target) not in self._free and tried.further(context)  # by leave of the budget
        started = context.clock.now()
        if lane is not None:
            lane.asking = id(target)
        try:
            response = await self.ask(target, request, context)
        except Exception as error:
            self._not_asked(paid, sent, context)
            verdict = self.classify(error)
            if verdict.action is Action.FATAL:
                raise
            tried.note(target, error, verdict)
            if refused(error):
                return None
            tried.asked += 1
            tried.last = call.errors[id(target)] = error
            if self._goes_up(target, error, verdict, context, tried):
                raise
            return None
        except BaseException:
            self._not_asked(paid, sent, context)
            raise
        self._times[id(target)].record(request, context.clock.now() - started)
        return response

    def _not_asked(self, paid: bool, sent: int, context: Context) -> None:
        """After a failure: free the lane, and give leave back if the attempt was over before a provider was asked."""
        if context.lane is not None:
            context.lane.asking = None
        if paid:
            context.call.give_back(sent)

    def _goes_up(self, target: Provider, error: Exception, verdict: Verdict, context: Context, tried: _Tried) -> bool:
        """Note what the failure means for this and other calls; tell whether it is left to a Retry outside."""
        call = context.call
        if isinstance(error, ContextTooLong):
            tried.window = max(tried.window, target.capabilities.context_window or 2**62)
        if verdict.action is not Action.RETRY_SAME:
            call.silent.add(id(target))
            return False
        failures = call.failures[id(target)] = call.failures.get(id(target), 0) + 1
        if verdict.retry_after:
            now = context.clock.now()
            call.held[id(target)] = (now + verdict.retry_after, error)
            pause = min(verdict.retry_after, _PAUSE_AT_MOST)
            if len(self.targets) > 1:
                if self._paused.get(id(target), (0.0, error))[0] < now + pause:  # a shorter wait shortens no longer one
                    self._paused[id(target)] = (now + pause, error)
                context.decided(TargetPaused, target.name, seconds=pause)
            return False
        return self.leaves_to_retry(failures, verdict, context) and _best_left_to_retry(tried, context)

    def _hold(self, target: Provider, context: Context) -> tuple[float, Exception] | None:
        """Tell how many seconds longer ``target`` wants to be left alone, and the error that said so."""
        until, error = context.call.held.get(id(target), (0.0, None))
        if error is None or until - context.clock.now() <= 1e-6:
            until, error = self._paused.get(id(target), (0.0, None))
        left = until - context.clock.now()
        return (left, error) if error is not None and left > 1e-6 else None

    def _least_bad(self, tried: _Tried) -> tuple[Provider, CircuitOpen] | None:
        """Return the target nearest to recovery where breakers alone stood in the way of all that fit."""
        if tried.asked or len(self.targets) < 2:
            return None
        opened: list[tuple[Provider, CircuitOpen]] = []
        for target, error, _ in tried.failed:
            if isinstance(error, CircuitOpen):
                opened.append((target, error))
            elif not isinstance(error, (UnsupportedParameter, ContextTooLong)):
                return None
        return min(opened, key=lambda item: item[1].retry_after or 0.0, default=None)

    def _to_be_waited_for(self, tried: _Tried, context: Context) -> Provider | None:
        """Return the target to wait for, where one gave way to others and none of those has served the call."""
        if tried.gave_way is None or context.alternatives:
            return None
        again = any(verdict.action is Action.RETRY_SAME and not refused(error) for _, error, verdict in tried.failed)
        return None if again and _best_left_to_retry(tried, context) else tried.gave_way[0]

    def _failure(self, tried: _Tried) -> Exception:
        unfit = all(
            isinstance(error, (UnsupportedParameter, ContextTooLong))
            for _, error, _ in tried.failed
            if error is not tried.last
        )
        if tried.last is not None and tried.asked == 1 and unfit:
            return tried.last  # the only target that could have served the request says why it did not
        verdict = _summary([verdict for *_, verdict in tried.failed])
        return AllTargetsFailed(tuple((target.name, error) for target, error, _ in tried.failed), verdict)

    async def aclose(self) -> None:
        """Close all targets."""
        failure: Exception | None = None
        for target in self.targets:
            try:
                await target.aclose()
            except Exception as error:  # noqa: BLE001 - the others are to be closed all the same
                failure = failure or error
        if failure is not None:
            raise failure

    def __repr__(self) -> str:
        return f"{self.label}({', '.join(map(repr, self.targets))})"


def _best_left_to_retry(tried: _Tried, context: Context) -> bool:
    """Tell whether a failure is better left to a Retry outside than to a target that gave way and can be waited for.

    It is where that target is starting, which may take minutes, and a Retry may soon ask the others again. What the
    Retry would refuse for want of leave would be lost.
    """
    if tried.gave_way is None:
        return True
    call = context.call
    if tried.gave_way[1] == "full" or call.retries_left <= 0 or (call.cap is not None and call.attempts >= call.cap):
        return False
    if call.budget is None:
        return True
    has_leave = call.budget.withdraw("retry")
    if has_leave:
        call.budget.refund()
    return has_leave


def _lack(target: Provider, request: Request, window: int) -> tuple[str, Exception] | None:
    """Tell why ``target`` can't serve ``request``, or None if it may."""
    missing = target.capabilities.missing(request)
    if missing:
        return f"lacks {', '.join(missing)}", UnsupportedParameter(target.name, missing)
    if window and (target.capabilities.context_window or 0) <= window:
        return "context window not known to be larger", ContextTooLong(provider=target.name, detail="not asked")
    return None


def _summary(verdicts: list[Verdict]) -> Verdict:
    """What the failure of all means: another round may help if at least one target may be asked again."""
    again = [verdict for verdict in verdicts if verdict.action is Action.RETRY_SAME]
    if not again:
        waits = [verdict.retry_after for verdict in verdicts if verdict.retry_after is not None]
        return Verdict(action=Action.RETRY_OTHER, retry_after=min(waits, default=None))
    soonest = min(again, key=lambda verdict: verdict.retry_after or 0.0)
    return replace(soonest, throttled=all(verdict.throttled for verdict in again), health="unknown")
