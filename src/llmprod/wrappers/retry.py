"""Tries again after a failure that may pass, with full-jitter backoff, never sooner than the server asked.

tenacity runs the attempts, with our own stop, wait and retry callables: it is entered after the first failure alone
(a call that succeeds pays nothing), with a fresh instance a call (a shared one corrupts its state under concurrency),
and no classifier is asked about a BaseException (tenacity's own predicates can swallow a cancellation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from llmprod import _validate
from llmprod.context import Context
from llmprod.mechanisms.backoff import Backoff
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Response
from llmprod.verdict import Action, Classifier, classify
from llmprod.wrapper import Phase, WrappedProvider, Wrapper

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["Retry"]


class Retry(Wrapper):
    """Ask again while the verdict is ``RETRY_SAME``, up to ``attempts`` times in all.

    Before content of a stream was shown, a retry is invisible; after that nothing is retried here.

    Args:
        attempts: attempts in all, the first included (default 3, as Google's SRE book advises).
        backoff: waits between attempts (:class:`~llmprod.mechanisms.backoff.Backoff`; full jitter from 0.5 s, from
            1 s when throttled).
        retry_after_at_most: give up rather than wait longer than this for a server that asked for it, in seconds
            (default 60). What a server asks for is waited in full, never shortened.
        wait: a tenacity ``wait_*`` strategy instead of ``backoff``.
        classify: what an error means (default :func:`llmprod.classify`).

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    phase: ClassVar[Phase] = Phase.RETRY

    def __init__(
        self,
        attempts: int = 3,
        *,
        backoff: Backoff | None = None,
        retry_after_at_most: float = 60.0,
        wait: Callable[[RetryCallState], float] | None = None,
        classify: Classifier = classify,
    ) -> None:
        _validate.whole("attempts", attempts, 1)
        _validate.seconds("retry_after_at_most", retry_after_at_most, zero=True)
        self.attempts = attempts
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

    async def send(self, request: Request, context: Context) -> Response:
        context.call.retries_left = self.wrapper.attempts - 1
        try:
            try:
                return await self.inner.send(request, context)
            except Exception as error:
                if not self._worth_another(error, context):
                    raise
                first = error
            return await self._retry(first, request, context)
        finally:
            context.call.retries_left = 0  # a Failover outside must not leave a failure to us

    def _worth_another(self, error: BaseException | None, context: Context) -> bool:
        # tenacity asks about a cancellation too; whatever the classifier says, that is never an attempt to repeat.
        if not isinstance(error, Exception) or context.call.retries_left < 1:
            return False
        verdict = self.wrapper.classify(error)
        return verdict.action is Action.RETRY_SAME and (verdict.retry_after or 0.0) <= self.wrapper.retry_after_at_most

    async def _retry(self, first: Exception, request: Request, context: Context) -> Response:
        from tenacity import AsyncRetrying

        pending: list[Exception] = [first]

        async def attempt() -> Response:
            if pending:  # tenacity's first attempt is the failure that brought us here
                raise pending.pop()
            context.call.retries_left -= 1
            return await self.inner.send(request, context)

        def wait(state: RetryCallState) -> float:
            verdict = self.wrapper.classify(_error(state))
            if self.wrapper.wait is not None:
                delay = self.wrapper.wait(state)
            else:
                delay = self.wrapper.backoff.delay(state.attempt_number, context.random, throttled=verdict.throttled)
            return max(delay, verdict.retry_after or 0.0)

        def too_late(state: RetryCallState) -> bool:
            remaining = context.remaining
            return remaining is not None and state.upcoming_sleep >= remaining

        async def sleep(seconds: float) -> None:
            context.trace.waited(seconds)
            await context.clock.sleep(seconds)

        retrying = AsyncRetrying(
            retry=lambda state: self._worth_another(state.outcome.exception() if state.outcome else None, context),
            wait=wait,
            stop=too_late,
            sleep=sleep,
            reraise=True,
        )
        return await retrying(attempt)


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error
