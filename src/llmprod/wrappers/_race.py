"""A call's primary and its hedge, side by side.

The primary runs in the caller's own task, the timer and the hedge in the one child of a task group that is closed
before the call returns. Who commits first wins, decided without an await in between. Errors of either side are kept and
raised outside the group, so that no ExceptionGroup reaches anybody.
"""

from __future__ import annotations

from typing import Literal, cast

import anyio

from llmprod.context import Context
from llmprod.decisions import HedgeEnded, HedgeStarted
from llmprod.errors import AllTargetsFailed
from llmprod.mechanisms.hedge_delay import HedgeDelay
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.verdict import Action, Classifier
from llmprod.wrappers._lanes import LaneState, join, lane, lost, part
from llmprod.wrappers._router import _summary


class Race:
    """One hedged call.

    Args:
        provider: asked by both sides.
        request: what for.
        context: the call.
        delay: learns how long the primary took.
        budget: the hedges' own.
        classify: what an error means.
        free: names of targets whose answers are fixed, which win no race.
        counted: every target counts its attempts in the call's state; without that each side is taken to have sent.
    """

    def __init__(
        self,
        provider: Provider,
        request: Request,
        context: Context,
        *,
        delay: HedgeDelay,
        budget: RetryBudget,
        classify: Classifier,
        free: frozenset[str],
        counted: bool,
    ) -> None:
        self._provider = provider
        self._request = request
        self._context = context
        self._delay = delay
        self._budget = budget
        self._classify = classify
        self._free = free
        self._counted = counted
        self._lane, self._primary = lane(context)
        self._hedge: LaneState | None = None
        self._primary_scope = anyio.CancelScope()
        self._hedge_scope = anyio.CancelScope()
        self._waited = 0.0
        self._started = False
        self._running = False
        self._withdrawn = False
        self._winner: Literal["primary", "hedge", "none"] = "none"
        self._response: Response | None = None
        self._spare: Response | None = None
        self._failed: Exception | None = None
        self._hedge_failed: Exception | None = None
        self._fatal: Exception | None = None

    async def run(self, delay: float) -> Response:
        """Return the first committed answer."""
        self._waited = delay
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._second)
                await self._first()
            await self._choose_spare()
        except BaseExceptionGroup as several:
            await self._abandon()
            raise _leaf(several) from None
        except BaseException:
            await self._abandon()
            raise
        finally:
            self._end()
        response, error = self._response, self._failure()
        self._failed = self._hedge_failed = self._fatal = None  # what refers to itself by a traceback stays for long
        if response is not None:
            response.context = self._context
            return response
        assert error is not None
        raise error

    async def _first(self) -> None:
        clock = self._context.clock
        started = clock.now()
        response: Response | None = None
        error: Exception | None = None
        with self._primary_scope:
            try:
                response = await self._provider.send(self._request, self._lane)
            except Exception as raised:  # noqa: BLE001 - raised by run(), outside the task group
                error = raised
        took = clock.now() - started
        part(self._primary)  # it asks nobody any more
        if response is not None:
            if response.provider not in self._free:
                self._delay.record(self._request, took)
            await self._committed("primary", response)
            return
        self._delay.at_least(self._request, took)
        if error is not None:
            self._failed = error
            if not self._running or self._classify(error).action is Action.FATAL:
                self._hedge_scope.cancel()

    async def _second(self) -> None:
        with self._hedge_scope:
            await self._context.clock.sleep(self._waited)
            context, state = lane(self._context, self._begins)
            if not self._leave(context, state):
                return
            self._running = True
            response: Response | None = None
            try:
                response = await self._provider.send(self._request, context)
            except Exception as error:  # noqa: BLE001 - raised by run(), outside the task group
                if self._sent(state) and self._response is None:
                    self._hedge_failed = error
                    if self._classify(error).action is Action.FATAL:
                        self._fatal = error
                        self._primary_scope.cancel()
            finally:
                self._running = False
                part(state)
            if response is not None:
                await self._committed("hedge", response)

    def _leave(self, context: Context, state: LaneState) -> bool:
        """Ask both budgets for leave."""
        call, name = self._context.call, self._provider.name
        if not self._budget.withdraw("hedge"):
            return False
        join(self._primary, state)
        withdraws = call.budget is not None
        if not context.extra_attempt("hedge", name, needs=self._delay.least(self._request)):
            self._budget.refund()
            part(state)
            return False
        self._withdrawn = withdraws
        self._hedge = state
        if not self._counted:
            self._begins(name)
        return True

    def _begins(self, target: str) -> None:
        """Tell of the hedge when it reaches a target; one that finds none was no hedge."""
        if not self._started and target not in self._free:
            self._started = True
            self._context.decided(HedgeStarted, target, delay=self._waited)

    async def _committed(self, side: Literal["primary", "hedge"], response: Response) -> None:
        """Take a side's answer, or close it where the other was first."""
        fixed = response.provider in self._free
        if self._response is not None or self._fatal is not None:
            await response.aclose()
        elif not fixed or self._alone(side):
            self._winner, self._response = side, response
            (self._hedge_scope if side == "primary" else self._primary_scope).cancel()
        elif side == "primary":
            self._spare = response  # a last resort's answer must not beat the model that is still at work
        else:
            await response.aclose()

    def _alone(self, side: Literal["primary", "hedge"]) -> bool:
        return not self._running if side == "primary" else self._failed is not None

    async def _choose_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is None:
            return
        if self._response is None and self._fatal is None:
            self._winner, self._response = "primary", spare
        else:
            await spare.aclose()

    def _failure(self) -> Exception | None:
        """What it means that there is no answer: a fatal failure, or those of both as of one round over the targets."""
        first, second = self._failed, self._hedge_failed
        if self._fatal is not None or first is None or second is None or self._hedge is None:
            return self._fatal or first
        if self._classify(first).action is Action.FATAL:
            return first
        told = (*_said(first, self._primary, self._provider), *_said(second, self._hedge, self._provider))
        return AllTargetsFailed(told, _summary([self._classify(first), self._classify(second)]))

    async def _abandon(self) -> None:
        """Close what nobody will get."""
        self._winner = "none"
        response, spare, self._response = self._response, self._spare, None
        try:
            if spare is not None:
                await spare.aclose()
        finally:
            if response is not None:
                await response.aclose()

    def _sent(self, state: LaneState) -> bool:
        return state.own > 0 or not self._counted

    def _end(self) -> None:
        """Give back leave for what was no further attempt, and tell how the race went."""
        hedge, call = self._hedge, self._context.call
        if hedge is None:
            return
        if not (self._sent(hedge) and self._sent(self._primary)):
            self._budget.refund()
            if self._withdrawn and call.budget is not None:
                call.budget.refund()
        if self._started:
            name = self._provider.name if self._response is None else self._response.provider
            self._context.decided(HedgeEnded, name, winner=self._winner, wasted=self._meter(hedge))

    def _meter(self, hedge: LaneState) -> int | None:
        """Note in the trace why the loser ended and what it probably cost; return its tokens."""
        if self._winner == "primary":
            loser, reason = hedge, "lost to the primary"
        elif self._winner == "hedge":
            loser, reason = self._primary, "lost to the hedge"
        elif self._fatal is not None:
            loser, reason = self._primary, "the hedge failed for good"
        elif self._failed is not None:
            loser, reason = hedge, "the primary failed for good"
        else:
            return None  # the caller gave up
        winner = hedge if loser is self._primary else self._primary
        return lost(loser, winner, reason, self._request, self._response)


def _said(error: Exception, state: LaneState, provider: Provider) -> tuple[tuple[str, Exception], ...]:
    if isinstance(error, AllTargetsFailed):
        return error.attempts
    entries = state.trace.entries
    return ((entries[-1].target if entries else provider.name, error),)


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what broke a task group: the first of its exceptions that is no cancellation, if there is one."""
    cancelled = anyio.get_cancelled_exc_class()
    first: BaseException | None = None
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting[:0] = cast("BaseExceptionGroup[BaseException]", error).exceptions
        elif not isinstance(error, cancelled):
            return error
        else:
            first = first or error
    return first or group
