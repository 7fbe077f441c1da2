"""Which service tier a call asks for, what providers call it, and whether the cheap one has capacity.

Flex costs about half and is served when there is room: OpenAI refuses a call with a 429 "resource unavailable" when
there is none (not billed), and advises a timeout of 15 minutes. Sources: OpenAI's guide to flex processing, Google's to
flex inference, Anthropic's to service tiers, all of 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.errors import BadRequest, Overloaded, RateLimited
from llmprod.request import Request
from llmprod.usage import special_tier

__all__ = ["FIELDS", "FlexCapacity", "Tier", "asked_tier", "no_room", "tier_value", "unknown_here"]

Tier: TypeAlias = Literal["standard", "flex", "priority"]

_OPENAI: Mapping[Tier, str] = {"standard": "default", "flex": "flex", "priority": "priority"}
_VALUES: Mapping[str, Mapping[Tier, str]] = {
    "openai": _OPENAI,
    "openai-responses": _OPENAI,
    "azure": _OPENAI,
    "google": {"standard": "standard", "flex": "flex", "priority": "priority"},
    # Priority is capacity bought beforehand there; "auto" uses it as far as it goes.
    "anthropic": {"standard": "standard_only", "priority": "auto"},
}
FIELDS: Mapping[str, str] = {"google": "serviceTier"}
"""What the field is called, by provider; ``service_tier`` elsewhere."""

_LIMITS = frozenset({"rate_limit_exceeded", "rate_limit_error", "tokens", "requests", "RESOURCE_EXHAUSTED"})
"""Codes that say that this account asks too much, which another tier would not mend."""


def tier_value(provider: str, tier: Tier) -> str | None:
    """Return what a provider calls a tier; None where it has none such."""
    return _VALUES.get(provider, {}).get(tier)


def asked_tier(request: Request, provider: str | None) -> str | None:
    """Return the tier that a request asks a provider for, as prices call it; None for the standard one.

    What is asked may not be what is given: a provider that says nothing else is taken at this word.
    """
    own: Mapping[str, Any] = request.extra.get(provider or "", {})
    # Anthropic's tiers are bought beforehand; what costs more by the call there is the speed.
    field = "speed" if provider == "anthropic" else FIELDS.get(provider or "", "service_tier")
    tier = special_tier(own.get(field))
    return "priority" if tier == "fast" and provider != "anthropic" else tier


def no_room(error: BaseException) -> bool:
    """Tell whether a call at the flex tier was refused because there was no capacity for it."""
    if isinstance(error, RateLimited):
        return error.code not in _LIMITS
    return isinstance(error, Overloaded)


def unknown_here(error: BaseException) -> bool:
    """Tell whether the provider refused the tier itself, for this model or account."""
    return isinstance(error, BadRequest) and error.param in ("service_tier", "serviceTier")


class FlexCapacity:
    """Remembers that there was no room, so that the next calls don't wait for the same answer.

    Args:
        rest: seconds for which nobody asks for flex after a call gave it up (default 60).
        clock: time.

    Raises:
        InvalidArgument: ``rest`` is negative.
    """

    def __init__(self, rest: float = 60.0, *, clock: Clock = SYSTEM_CLOCK) -> None:
        _validate.seconds("rest", rest, zero=True)
        self._rest = rest
        self._clock = clock
        self._until = 0.0
        self.offered: bool = True
        """The provider has flex for this model, as far as is known."""

    @property
    def open(self) -> bool:
        """Worth asking for now."""
        return self.offered and self._clock.now() >= self._until

    def full(self) -> None:
        """A call gave it up."""
        self._until = self._clock.now() + self._rest

    def unknown(self) -> None:
        """The provider has no such tier for this model: nobody asks again."""
        self.offered = False
