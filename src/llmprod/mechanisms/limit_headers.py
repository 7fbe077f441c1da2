"""What providers' response headers tell of their rate limits, in all their spellings.

======================================== ================================================== ========================
provider                                 headers                                            reset
======================================== ================================================== ========================
OpenAI, Azure, Groq, vLLM gateways       ``x-ratelimit-remaining-requests`` / ``-tokens``   ``6m0s``, ``120ms``
Anthropic                                ``anthropic-ratelimit-input-tokens-remaining`` …   RFC 3339
Mistral                                  ``x-ratelimit-remaining-req-minute``,              seconds
                                         ``ratelimitbysize-remaining``
Cerebras                                 ``x-ratelimit-remaining-requests-day`` …           seconds
Fireworks                                ``x-ratelimit-remaining-tokens-prompt``,           none
                                         ``-tokens-generated``
Together                                 ``x-ratelimit-remaining``,                         seconds
                                         ``x-tokenlimit-remaining``
OpenRouter, GitHub                       ``x-ratelimit-remaining``                          epoch seconds or ms
IETF drafts                              ``ratelimit: "default";r=50;t=30``,                seconds
                                         ``ratelimit-remaining``
======================================== ================================================== ========================

What is not understood is left out: a header must never break a call. Pools of their own (Anthropic's priority tier,
cache-adjusted counts) are left out too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["LimitReading", "limit_readings"]

_PLAIN = re.compile(r"(?:x-)?ratelimit(bysize)?-(limit|remaining|reset)(?:-([a-z0-9-]+))?\Z")
_ANTHROPIC = re.compile(r"anthropic-ratelimit-([a-z-]+)-(limit|remaining|reset)\Z")
_TOGETHER = re.compile(r"x-tokenlimit-(limit|remaining|reset)\Z")
_NAMES = {
    "": "requests", "requests": "requests", "req": "requests", "request": "requests",
    "tokens": "tokens", "token": "tokens",
    "input-tokens": "input_tokens", "tokens-prompt": "input_tokens", "tokens-input": "input_tokens",
    "output-tokens": "output_tokens", "tokens-generated": "output_tokens", "tokens-output": "output_tokens",
}  # fmt: skip
_PERIODS = {
    "second": 1.0, "1s": 1.0, "minute": 60.0, "1m": 60.0, "hour": 3600.0, "1h": 3600.0, "day": 86400.0, "1d": 86400.0,
    "month": 2592000.0,
}  # fmt: skip
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:d|h|ms|us|µs|ns|m|s))+\Z")
_PIECE = re.compile(r"(\d+(?:\.\d+)?)(d|h|ms|us|µs|ns|m|s)")
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PARAMETER = re.compile(r"(?:^|[;,\s])(limit|remaining|reset|[rtqw])\s*=\s*([0-9.]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReading:
    """What a provider says of one of its limits.

    Attributes:
        dimension: ``requests``, ``input_tokens``, ``output_tokens`` or ``tokens``.
        remaining: what is left.
        limit: the whole allowance, where told.
        reset: seconds until it is whole again, where told.
        period: seconds that the allowance is for, where the header's name or a policy tells.
    """

    dimension: str
    remaining: float
    limit: float | None = None
    reset: float | None = None
    period: float | None = None


def limit_readings(headers: Mapping[str, str], *, now: float | None = None) -> tuple[LimitReading, ...]:
    """Return what ``headers`` (names in lower case) tell of the provider's rate limits; empty if nothing.

    Args:
        headers: the response's headers.
        now: seconds since 1970, for resets told as a date; by default the response's own ``date`` header, which
            needs no synchronized clocks.
    """
    found: dict[tuple[str, float | None], dict[str, str]] = {}
    for name, value in headers.items():
        if "limit" in name and (at := _place(name)) is not None:
            dimension, period, field = at
            found.setdefault((dimension, period), {}).setdefault(field, value)
    _ietf(headers, found)
    if not found:
        return ()
    return tuple(
        LimitReading(
            dimension=dimension,
            remaining=remaining,
            limit=_number(fields.get("limit")),
            reset=_reset(fields.get("reset"), headers, now),
            period=period,
        )
        for (dimension, period), fields in found.items()
        if (remaining := _number(fields.get("remaining"))) is not None
    )


def _place(name: str) -> tuple[str, float | None, str] | None:
    """Return the dimension, the period and the field that a header tells of."""
    if match := _PLAIN.match(name):
        suffix = match[3] or ("tokens" if match[1] else "")
        head, _, last = suffix.rpartition("-")
        period = _PERIODS.get(last)
        if period is not None:
            suffix = head or ("tokens" if match[1] else "")
        dimension = _NAMES.get(suffix)
        return None if dimension is None else (dimension, period, match[2])
    if match := _ANTHROPIC.match(name):
        dimension = _NAMES.get(match[1])
        return None if dimension is None else (dimension, None, match[2])
    if match := _TOGETHER.match(name):
        return "tokens", None, match[1]
    return None


def _ietf(headers: Mapping[str, str], found: dict[tuple[str, float | None], dict[str, str]]) -> None:
    """Read ``RateLimit`` and ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers), old and new syntax."""
    told = headers.get("ratelimit")
    if told is None:
        return
    # Of several policies the first is the one that is nearest to its limit, or the only one understood everywhere.
    long = {"r": "remaining", "t": "reset", "q": "limit"}
    first: dict[str, str] = {}
    pairs: list[tuple[str, str]] = _PARAMETER.findall(told)
    for key, value in pairs:
        first.setdefault(long.get(key, key), value)
    told_of: list[tuple[str, str]] = _PARAMETER.findall(headers.get("ratelimit-policy", ""))
    policy = dict(reversed(told_of))
    if "q" in policy:
        first.setdefault("limit", policy["q"])
    window = _number(policy.get("w") or first.pop("w", None))
    if "remaining" in first:
        found.setdefault(("requests", window or None), {}).update(first)


def _number(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value.partition(",")[0].partition(";")[0])
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _reset(value: str | None, headers: Mapping[str, str], now: float | None) -> float | None:
    """Seconds until a reset told as a duration, as seconds, as seconds or milliseconds since 1970, or as a date."""
    if value is None:
        return None
    value = value.strip()
    if _DURATION.match(value):
        return sum(float(number) * _UNITS[unit] for number, unit in _PIECE.findall(value))
    number = _number(value)
    if number is not None and number < 1e8:
        return number
    if number is not None:
        at = number / 1000 if number >= 1e11 else number
    else:
        try:
            moment = datetime.fromisoformat(value)
            at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    if now is None:
        try:
            now = parsedate_to_datetime(headers["date"]).timestamp()
        except (KeyError, ValueError, TypeError, OverflowError):
            return None
    return max(0.0, at - now)
