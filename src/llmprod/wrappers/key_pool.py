"""Several credentials for one deployment: a dead one is left out, and accounts whose quota is used up are left alone.

The mechanism and its source, Bifrost's taxonomy of errors, are in :mod:`llmprod.mechanisms.key_ring`. Failures that say
nothing about the credential (5xx, network, timeouts) go to a Retry or Failover outside: another key of the same
deployment would not mend them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.decisions import KeyQuarantined, QuotaPaused
from llmprod.errors import InvalidArgument, NoUsableKey, QuotaExhausted, Rejected
from llmprod.mechanisms.key_ring import KeyRing, KeyUse, QuotaGroup
from llmprod.provider import Provider
from llmprod.request import Request
from llmprod.response import Outcome, Response
from llmprod.verdict import Action, Classifier, Verdict, classify
from llmprod.wrapper import Wrapper
from llmprod.wrappers._router import Router

__all__ = ["KeyPool"]

K = TypeVar("K")


class KeyPool(Router):
    """A provider over several that differ in their credential alone.

    * A call goes to the usable credential with the fewest calls under way, in turn where they are equal.
    * A refused credential (verdict ``QUARANTINE_KEY``) is quarantined, and the next one is asked at once. An account
      without credit (:class:`QuotaExhausted`) takes all credentials of its group with it.
    * A throttled one (429) pauses its quota group for as long as the server asked; another group is asked at once.
    * One whose own limit or breaker refuses the call locally is passed over.
    * Every other failure is raised as it is.

    Each further credential needs leave of the call's cap of attempts, its deadline and the retry budget.

    Args:
        targets: one or more providers, alike but for their credential.
        labels: a name for each credential, to be shown (default ``key1``, ``key2`` …).
        quota_groups: for each credential its :class:`QuotaGroup`, or the name of one; default: each has its own.
        quarantine: seconds that a refused credential is left out at first (default 600), doubling with each refusal in
            a row; then one call at a time tries it, and a success clears it. For the last one left, 30 at first.
        quarantine_at_most: bound of that (default 3600).
        pause: seconds that a throttled group is left alone where the server does not say (default 5).
        ring: the state of another pool with the same credentials, to share it; takes the place of the options above.
        classify: what an error means (default :func:`llmprod.classify`).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is wrong.
    """

    label: ClassVar[str] = "KeyPool"

    def __init__(
        self,
        *targets: Provider,
        labels: Sequence[str] | None = None,
        quota_groups: Sequence[QuotaGroup | str | None] | None = None,
        quarantine: float = 600.0,
        quarantine_at_most: float = 3600.0,
        pause: float = 5.0,
        ring: KeyRing | None = None,
        classify: Classifier = classify,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(targets, classify=classify, clock=clock)
        self.clock = clock
        self._places: dict[int, int] = {id(target): place for place, target in enumerate(targets)}
        if len(self._places) != len(targets):
            raise InvalidArgument("targets", "the same provider twice", "a provider for each credential")
        if ring is None:
            ring = KeyRing(
                len(targets) if labels is None else labels,
                quota_groups=quota_groups,
                quarantine=quarantine,
                quarantine_at_most=quarantine_at_most,
                pause=pause,
                clock=clock,
            )
        elif not isinstance(ring, KeyRing):
            raise InvalidArgument("ring", type(ring).__name__, "a KeyRing, or None for one of its own")
        elif labels is not None or quota_groups is not None:
            raise InvalidArgument("ring", "a ring with labels or quota_groups", "one or the other: they are the ring's")
        if len(ring.keys) != len(targets):
            raise InvalidArgument("labels" if labels else "ring", f"{len(ring.keys)} keys", f"{len(targets)} of them")
        self.ring: KeyRing = ring

    @classmethod
    def of(cls, make: Callable[[K], Provider], keys: Sequence[K], **options: Any) -> KeyPool:
        """Make a pool from keys: ``KeyPool.of(lambda key: OpenAI("gpt-5", api_key=key), [one, other])``.

        Args:
            make: makes the provider, and the wrappers that each credential needs, from a key.
            keys: API keys, or functions that return one.
            options: those of :class:`KeyPool`.

        Raises:
            InvalidArgument: no keys, one string in place of several, or the same key twice.
        """
        if isinstance(keys, (str, bytes)) or not isinstance(keys, Sequence) or not keys:
            raise InvalidArgument("keys", type(keys).__name__, "a list of at least one key")  # never their value
        if any(key in keys[:place] for place, key in enumerate(keys)):
            raise InvalidArgument("keys", "the same key twice", "different keys")
        return cls(*map(make, keys), **options)

    def around(self, wrapper: Wrapper) -> KeyPool:
        """Return this pool with ``wrapper`` around each of its targets, and the same state."""
        return KeyPool(*map(wrapper, self.targets), ring=self.ring, classify=self.classify, clock=self.clock)

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.targets[0].name

    @property
    def ready(self) -> bool:
        """At least one credential is usable now; routers put a target that is not ready last."""
        return any(map(self.ring.usable, range(len(self.targets))))

    def order(self, request: Request, context: Context) -> Sequence[Provider]:
        """The usable ones, fewest calls under way first."""
        return [self.targets[place] for place in self.ring.order()]

    async def send(self, request: Request, context: Context) -> Response:
        """Return the first answer.

        Raises:
            NoUsableKey: every credential is quarantined or paused.
        """
        last: Exception | None = None
        refusals: list[Rejected] = []
        for target in self.order(request, context):
            place = self._places[id(target)]
            if not self.ring.usable(place):
                continue  # of a group that this call has found throttled, or being tried by another call
            times = self._times[id(target)]
            if last is not None and not context.extra_attempt("failover", self.name, needs=times.least(request)):
                raise last
            sent, started = context.call.sent, context.clock.now()
            use = self.ring.take(place)
            try:
                response = await self.ask(target, request, context)
            except Exception as error:
                if last is not None:
                    context.call.give_back(sent)
                if not self._goes_on(use, error, self.classify(error), context):
                    raise
                if isinstance(error, Rejected):
                    refusals.append(error)
                else:
                    last = error
                continue
            except BaseException:
                use.end()
                if last is not None:
                    context.call.give_back(sent)
                raise
            use.accepted()
            times.record(request, context.clock.now() - started)
            self._settle(response, use, context)
            return response
        raise self._refusal(last, refusals, context) from last

    def _settle(self, response: Response, use: KeyUse, context: Context) -> None:
        def ended(outcome: Outcome) -> None:
            if outcome.kind == "error" and isinstance(outcome.error, Exception):
                self._goes_on(use, outcome.error, self.classify(outcome.error), context)
            else:
                use.end()

        response.on_close(ended)

    def _goes_on(self, use: KeyUse, error: Exception, verdict: Verdict, context: Context) -> bool:
        """Note what a failure says about the credential; tell whether another one may do better."""
        kind = type(error).__name__
        if verdict.action is Action.QUARANTINE_KEY:
            label = use.label
            if isinstance(error, QuotaExhausted):
                left_out = use.exhausted()
            else:
                seconds = use.refused()
                left_out = [] if seconds is None else [(label, seconds)]
            for label, seconds in left_out:
                context.decided(KeyQuarantined, self.name, key=label, seconds=seconds, error=kind)
            return True
        if verdict.throttled and verdict.health == "up":  # an overloaded server (503, 529) is not the key's quota
            paused = use.throttled(verdict.retry_after)
            if paused is not None:
                context.decided(QuotaPaused, self.name, group=paused[0], seconds=paused[1])
            return True
        use.end()
        return isinstance(error, Rejected)

    def _refusal(self, last: Exception | None, refusals: list[Rejected], context: Context) -> Exception:
        if refusals and last is None:
            return min(refusals, key=lambda error: error.retry_after or 0.0)
        states = [f"{label} {state}" for label, state in self.ring.state().items() if state != "usable"]
        waits = [wait for wait in (self.ring.retry_after, *(error.retry_after for error in refusals)) if wait]
        refusal = NoUsableKey(
            refused=self.ring.all_refused,
            provider=self.name,
            retry_after=round(min(waits), 3) if waits else None,
            detail=", ".join(states) or None,
        )
        context.trace.skipped(self.name, context.elapsed, "no usable key", error="NoUsableKey")
        return refusal
