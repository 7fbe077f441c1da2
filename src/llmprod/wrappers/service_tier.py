"""Asks for a provider's cheap, usual or fast tier, and goes by the usual one where the cheap one has no room.

Which tier is called what, and the sources, are in :mod:`llmprod.mechanisms.flex`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.context import Context
from llmprod.decisions import TierGivenUp
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.backoff import Backoff
from llmprod.mechanisms.flex import FIELDS, FlexCapacity, Tier, no_room, tier_value, unknown_here
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.wrapper import Phase, WrappedProvider, Wrapper, leaves

__all__ = ["ServiceTier"]


class ServiceTier(Wrapper):
    """Which service tier a target's calls ask for.

    * ``standard``: the usual one, whatever the account's setting.
    * ``flex``: about half the price, served when there is room. Refused for want of it, a call tries again after a
      backoff, ``flex_tries`` times in all, and then goes by the standard tier; for ``flex_rest`` seconds the calls that
      follow do so at once. A model that has no flex is not asked for it again. Nothing of that reaches a Retry or a
      breaker outside.
    * ``priority``: dearer and faster.
    * ``auto``: flex where the call has a deadline that leaves room for it, and otherwise whatever the account's
      setting is. Never priority.

    Where a provider has no such tier, or the request names one in ``extra``, the request goes as it is. Flex can take
    many minutes: an :class:`llmprod.AttemptTimeout` outside has to allow for that.

    Args:
        tier: as above.
        flex_room: seconds that a call's deadline has to leave for ``auto`` to take flex (default 900: OpenAI advises
            15 minutes).
        flex_tries: calls at the flex tier before the standard one is asked (default 2).
        flex_rest: seconds for which flex is left alone after that (default 60).
        backoff: waits between the tries, as for throttling.
        clock: time, of the rest.

    Raises:
        InvalidArgument: naming the option that is wrong.
    """

    # Innermost but for the span: it stands before one provider, a refusal of flex is no failure for the breaker and no
    # reason for a limiter to pause, and its further tries belong to one attempt with one time limit.
    phase: ClassVar[Phase] = Phase.VENDOR

    def __init__(
        self,
        tier: Literal["standard", "flex", "priority", "auto"] = "auto",
        *,
        flex_room: float = 900.0,
        flex_tries: int = 2,
        flex_rest: float = 60.0,
        backoff: Backoff | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if tier not in ("standard", "flex", "priority", "auto"):
            raise InvalidArgument("tier", repr(tier)[:40], "standard, flex, priority, auto")
        _validate.seconds("flex_room", flex_room, zero=True)
        _validate.whole("flex_tries", flex_tries, 1)
        _validate.seconds("flex_rest", flex_rest, zero=True)
        self.tier: Literal["standard", "flex", "priority", "auto"] = tier
        self.flex_room = flex_room
        self.flex_tries = flex_tries
        self.flex_rest = flex_rest
        self.backoff: Backoff = backoff or Backoff()
        self.clock = clock

    def wrap(self, inner: Provider) -> Provider:
        """Ask ``inner`` for the tier."""
        return _TieredProvider(inner, self)

    def __repr__(self) -> str:
        return f"ServiceTier({self.tier})"


class _TieredProvider(WrappedProvider):
    wrapper: ServiceTier

    def __init__(self, inner: Provider, wrapper: ServiceTier) -> None:
        super().__init__(inner, wrapper)
        self._kind: str = getattr(next(leaves(inner)), "kind", "")
        self._field = FIELDS.get(self._kind, "service_tier")
        self._flex = FlexCapacity(wrapper.flex_rest, clock=wrapper.clock)

    async def send(self, request: Request, context: Context) -> Response:
        if not isinstance(request, GenerateRequest) or self._field in request.extra.get(self._kind, {}):
            return await self.inner.send(request, context)
        tier = self._tier(context)
        value = None if tier is None else tier_value(self._kind, tier)
        if value is None:
            return await self.inner.send(request, context)
        asking = self._asking(request, value)
        return await (self._try_flex(request, asking, context) if tier == "flex" else self.inner.send(asking, context))

    def _tier(self, context: Context) -> Tier | None:
        wanted = self.wrapper.tier
        if wanted == "auto":
            left = context.remaining
            roomy = left is not None and left >= self.wrapper.flex_room
            return "flex" if roomy and self._flex.open else None
        return "standard" if wanted == "flex" and not self._flex.open else wanted

    def _asking(self, request: GenerateRequest, value: str) -> GenerateRequest:
        own = request.extra.get(self._kind, {})
        return replace(request, extra={**request.extra, self._kind: {**own, self._field: value}})

    async def _try_flex(self, plain: GenerateRequest, asking: GenerateRequest, context: Context) -> Response:
        wrapper = self.wrapper
        tries = 0
        while True:
            tries += 1
            try:
                return await self.inner.send(asking, context)
            except Exception as error:
                offered = not unknown_here(error)
                if offered and not no_room(error):
                    raise
                again = offered and tries < wrapper.flex_tries
                asked = getattr(error, "retry_after", None) or 0.0
                delay = max(asked, wrapper.backoff.delay(tries, context.random, throttled=True)) if again else 0.0
                again = again and self._has_room(delay, context)
                if not context.extra_attempt("retry", self.name, needs=delay if again else 0.0):
                    raise
            if again:
                context.trace.waited(delay)
                await context.clock.sleep(delay)
                continue
            if offered:
                self._flex.full()
            else:
                self._flex.unknown()
            reason = "no capacity" if offered else "not offered"
            context.decided(TierGivenUp, self.name, tries=tries, reason=reason)
            standard = None if wrapper.tier == "auto" else tier_value(self._kind, "standard")
            return await self.inner.send(plain if standard is None else self._asking(plain, standard), context)

    def _has_room(self, delay: float, context: Context) -> bool:
        """One more try at flex, after a wait, must not take the time that the standard tier needs."""
        left = context.remaining
        return left is None or left - delay >= self.wrapper.flex_room
