"""Tries again after a failure that may pass, with full-jitter backoff, never sooner than the server asked.

One plan of attempts for a call: a cap (gRPC allows five), a retry budget that all calls share (Finagle), and no attempt
that can't be over before the deadline. Retry sets them; Failover, Hedge and Resume ask the same plan for leave.

tenacity runs the attempts, with our own stop, wait and retry callables: it is entered after the first failure alone
(a call that succeeds pays nothing), with a fresh instance a call (a shared one corrupts its state under concurrency),
and no classifier is asked about a BaseException (tenacity's own predicates can swallow a cancellation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.decisions import AttemptRefused, RetryScheduled
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.attempt_time import AttemptTime
from llmprod.mechanisms.backoff import Backoff
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.verdict import Action, Classifier, classify
from llmprod.wrapper import Phase, WrappedProvider, Wrapper

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["Retry"]

_SPREAD, _SPREAD_AT_MOST = 0.1, 5.0
"""What is added to a wait that the server asked for: up to a tenth of it, and 5 s as in AWS's retries of 2026."""

_CAP = 5
"""Attempts a call: gRPC's limit (A6, client-side maximum of ``maxAttempts``)."""


class Retry(Wrapper):
    """Ask again while the verdict is ``RETRY_SAME``, up to ``attempts`` times in all.

    Before content of a stream was shown, a retry is invisible; after that nothing is retried here.

    Args:
        attempts: attempts in all, the first included (default 3, as Google's SRE book advises).
        backoff: waits between attempts (:class:`~llmprod.mechanisms.backoff.Backoff`; full jitter from 0.5 s, from
            1 s when throttled).
        attempts_at_most: attempts in all that may reach a provider, those of Failover, Hedge and Resume included
            (default 5 as in gRPC, or ``attempts`` if that is more).
        budget: leave for further attempts, shared with other stacks by passing the same object; by default each
            wrapped provider gets a :class:`RetryBudget` of its own.
        retry_after_at_most: give up rather than wait longer than this for a server that asked for it, in seconds
            (default 60). What a server asks for is waited in full, never shortened.
        wait: a tenacity ``wait_*`` strategy instead of ``backoff``.
        classify: what an error means (default :func:`llmprod.classify`).
        clock: the budget's time.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    phase: ClassVar[Phase] = Phase.RETRY

    def __init__(
        self,
        attempts: int = 3,
        *,
        backoff: Backoff | None = None,
        attempts_at_most: int | None = None,
        budget: RetryBudget | None = None,
        retry_after_at_most: float = 60.0,
        wait: Callable[[RetryCallState], float] | None = None,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _validate.whole("attempts", attempts, 1)
        _validate.whole("attempts_at_most", attempts_at_most, 1, optional=True)
        if budget is not None and not isinstance(budget, RetryBudget):
            raise InvalidArgument("budget", type(budget).__name__, "a RetryBudget, or None for one of its own")
        _validate.seconds("retry_after_at_most", retry_after_at_most, zero=True)
        self.attempts = attempts
        self.attempts_at_most: int = max(attempts, _CAP) if attempts_at_most is None else attempts_at_most
        self.budget = budget
        self.clock = clock
        self.backoff: Backoff = backoff or Backoff()
        self.retry_after_at_most = retry_after_at_most
        self.wait = wait
        self.classify = classify

    def wrap(self, inner: Provider) -> Provider:
        """Retry ``inner``'s calls."""
        return _RetryProvider(inner, self)

    def __repr__(self) -> str:
        return f"Retry({self.attempts} attempts)"


class _RetryProvider(WrappedProvider):
    wrapper: Retry

    def __init__(self, inner: Provider, wrapper: Retry) -> None:
        super().__init__(inner, wrapper)
        self.budget = wrapper.budget or RetryBudget(clock=wrapper.clock)
        self._time = AttemptTime(clock=wrapper.clock)

    async def send(self, request: Request, context: Context) -> Response:
        call = context.call
        call.retries_left = self.wrapper.attempts - 1
        if call.budget is None:
            call.cap, call.budget = self.wrapper.attempts_at_most, self.budget
            self.budget.deposit()
        try:
            try:
                started = context.clock.now()
                response = await self.inner.send(request, context)
                self._time.record(request, context.clock.now() - started)
                return response
            except Exception as error:
                if not self._worth_another(error, context):
                    raise
                first = error
            return await self._retry(first, request, context)
        finally:
            call.retries_left = 0  # a Failover outside must not leave a failure to us

    def _worth_another(self, error: BaseException | None, context: Context) -> bool:
        # tenacity asks about a cancellation too; whatever the classifier says, that is never an attempt to repeat.
        if not isinstance(error, Exception) or context.call.retries_left < 1:
            return False
        verdict = self.wrapper.classify(error)
        if verdict.action is not Action.RETRY_SAME:
            return False
        if (verdict.retry_after or 0.0) <= self.wrapper.retry_after_at_most:
            return True
        context.decided(AttemptRefused, self.name, kind="retry", reason="retry_after")
        return False

    async def _retry(self, first: Exception, request: Request, context: Context) -> Response:
        from tenacity import AsyncRetrying

        call = context.call
        pending: list[Exception] = [first]

        def give_back() -> None:
            if call.attempts and call.budget is not None:  # a call's first attempt took no leave
                call.budget.refund()

        async def attempt() -> Response:
            if pending:  # tenacity's first attempt is the failure that brought us here
                raise pending.pop()
            call.retries_left -= 1
            attempts = call.attempts
            try:
                return await self.inner.send(request, context)
            finally:
                if call.attempts == attempts:
                    give_back()  # refused or cancelled before a provider was asked

        def wait(state: RetryCallState) -> float:
            verdict = self.wrapper.classify(_error(state))
            if self.wrapper.wait is not None:
                delay = self.wrapper.wait(state)
            else:
                delay = self.wrapper.backoff.delay(state.attempt_number, context.random, throttled=verdict.throttled)
            asked = verdict.retry_after
            # All calls that were told to wait as long would come back at one moment.
            return (
                delay
                if asked is None
                else max(delay, asked + context.random.random() * min(_SPREAD * asked, _SPREAD_AT_MOST))
            )

        def no_leave(state: RetryCallState) -> bool:
            needs = state.upcoming_sleep + self._time.least(request)
            if not context.extra_attempt("retry", self.name, needs=needs):
                return True
            context.decided(
                RetryScheduled,
                self.name,
                round=state.attempt_number + 1,
                delay=state.upcoming_sleep,
                error=type(_error(state)).__name__,
            )
            return False

        async def sleep(seconds: float) -> None:
            context.trace.waited(seconds)
            try:
                await context.clock.sleep(seconds)
            except BaseException:
                give_back()
                raise

        retrying = AsyncRetrying(
            retry=lambda state: self._worth_another(state.outcome.exception() if state.outcome else None, context),
            wait=wait,
            stop=no_leave,
            sleep=sleep,
            reraise=True,
        )
        return await retrying(attempt)


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error
