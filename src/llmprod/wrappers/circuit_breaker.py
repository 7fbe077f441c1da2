"""Stops asking a target that keeps failing, and tries it again a few calls at a time.

The mechanism and its sources are in :mod:`llmprod.mechanisms.circuit_breaker`. What an error says about the target is
its verdict's ``health``; a cancelled or locally refused call says nothing and only gives its permit back (in Polly a
cancelled trial closes the circuit).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM, Clock, Random
from llmprod.context import Context
from llmprod.decisions import BreakerChanged
from llmprod.errors import CircuitOpen
from llmprod.mechanisms.circuit_breaker import Breaker, BreakerOptions, BreakerState, Permit
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Outcome, Response
from llmprod.verdict import Classifier, classify
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, deployment

__all__ = ["CircuitBreaker"]


class CircuitBreaker(Wrapper):
    """Refuse calls to a failing target with :class:`CircuitOpen`, without asking it.

    Args:
        failure_ratio: opens at this share of failures in the window (default 0.5).
        minimum_calls: … once the window holds as many calls (default 10).
        consecutive_failures: opens after as many failures in a row, whatever the ratio (default 5).
        slow_first_token: a stream's first token that took longer than these seconds was slow (default None: none is).
            Whole answers show no first token and are not measured.
        slow_ratio: opens at this share of slow first tokens in the window, of ``minimum_calls`` or more (default 0.8).
        window: seconds that a result counts (default 60).
        open_for: seconds open at first (default 5); doubles with each failed trial, half of it random.
        open_for_at_most: bound of that in seconds (default 300).
        outage_share: another bound, as a share of the outage so far, from twice ``open_for`` on (default 0.25).
        trials: calls let through at once while half-open (default 3).
        successes_to_close: successes among them that close the breaker (default 2).
        trial_for_at_most: seconds after which a trial that reported nothing is no longer waited for (default 60).
        breaker: a breaker to share with other stacks, with the options that it was made with. Without it every
            deployment (provider, base URL, model and credential) that this wrapper is put around has one breaker.
        classify: what an error says about the target (default :func:`llmprod.classify`).
        clock: the breaker's time.
        random: the breaker's chance.

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    phase: ClassVar[Phase] = Phase.CIRCUIT_BREAKER

    def __init__(
        self,
        *,
        failure_ratio: float = 0.5,
        minimum_calls: int = 10,
        consecutive_failures: int = 5,
        slow_first_token: float | None = None,
        slow_ratio: float = 0.8,
        window: float = 60.0,
        open_for: float = 5.0,
        open_for_at_most: float = 300.0,
        outage_share: float | None = 0.25,
        trials: int = 3,
        successes_to_close: int = 2,
        trial_for_at_most: float = 60.0,
        breaker: Breaker | None = None,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
        random: Random = SYSTEM_RANDOM,
    ) -> None:
        self.options: BreakerOptions = BreakerOptions(
            failure_ratio=failure_ratio,
            minimum_calls=minimum_calls,
            consecutive_failures=consecutive_failures,
            slow_first_token=slow_first_token,
            slow_ratio=slow_ratio,
            window=window,
            open_for=open_for,
            open_for_at_most=open_for_at_most,
            outage_share=outage_share,
            trials=trials,
            successes_to_close=successes_to_close,
            trial_for_at_most=trial_for_at_most,
        )
        self.breaker = breaker
        self.classify = classify
        self.clock = clock
        self.random = random
        self._breakers: dict[Hashable, Breaker] = {}

    def breaker_of(self, provider: Provider) -> Breaker:
        """Return the breaker of the deployment behind ``provider``, to watch it or to set it by hand."""
        if self.breaker is not None:
            return self.breaker
        key = deployment(provider)
        if key not in self._breakers:
            self._breakers[key] = Breaker(self.options, clock=self.clock, random=self.random)
        return self._breakers[key]

    def wrap(self, inner: Provider) -> Provider:
        """Guard ``inner`` with its deployment's breaker, or with the shared one."""
        return _CircuitBreakerProvider(inner, self)

    def __repr__(self) -> str:
        share, least, row = self.options.failure_ratio, self.options.minimum_calls, self.options.consecutive_failures
        return f"CircuitBreaker({share:g} of >= {least} or {row} in a row)"


class _CircuitBreakerProvider(WrappedProvider):
    wrapper: CircuitBreaker

    def __init__(self, inner: Provider, wrapper: CircuitBreaker) -> None:
        super().__init__(inner, wrapper)
        self.breaker = wrapper.breaker_of(inner)

    @property
    def ready(self) -> bool:
        """A call would be let through now; routers put a target that is not ready last."""
        return self.breaker.ready

    async def send(self, request: Request, context: Context) -> Response:
        permit = self.breaker.acquire(insist=context.insist)
        self._tell(context)
        if permit is None:
            raise self._refusal(context)
        started = context.clock.now()
        try:
            response = await self.inner.send(request, context)
        except Exception as error:
            self._report(permit, error)
            self._tell(context)
            raise
        except BaseException:
            permit.release()
            raise
        if not response.closed:
            permit.first_token(context.clock.now() - started)
            self._tell(context)
        response.on_close(lambda outcome: self._ended(permit, outcome, context))
        return response

    def _refusal(self, context: Context) -> CircuitOpen:
        state = self.breaker.state
        reason = {
            BreakerState.OPEN: "circuit open",
            BreakerState.ISOLATED: "circuit isolated by hand",
        }.get(state, "circuit half open, trials under way")
        context.trace.skipped(self.name, context.elapsed, reason, error="CircuitOpen")
        wait = None if state is BreakerState.ISOLATED else round(self.breaker.retry_after, 3)
        return CircuitOpen(provider=self.name, retry_after=wait, detail=reason)

    def _tell(self, context: Context) -> None:
        """Tell of changes of state that nobody has told of, whoever's call made them."""
        changes = self.breaker.changes
        while changes:
            before, after, reason = changes.popleft()
            context.decided(BreakerChanged, self.name, before=before.value, after=after.value, reason=reason)

    def _ended(self, permit: Permit, outcome: Outcome, context: Context) -> None:
        if outcome.kind == "ok":
            permit.success()
        elif outcome.kind == "error" and outcome.error is not None:
            self._report(permit, outcome.error)
        else:
            permit.release()
        self._tell(context)

    def _report(self, permit: Permit, error: BaseException) -> None:
        verdict = self.wrapper.classify(error)
        if verdict.health == "down":
            permit.refused() if verdict.throttled else permit.failure()
        elif verdict.health == "up":
            permit.success()
        else:
            permit.release()
