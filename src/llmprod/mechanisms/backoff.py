"""Exponential backoff with full jitter.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: ``U(0, min(cap, base * 2**n))``;
a longer base for throttling than for transient faults as in botocore's standard mode of 2026.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmprod import _validate
from llmprod.clock import Random

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before the next attempt.

    Attributes:
        base: first upper bound in seconds after a transient fault (default 0.5).
        cap: highest upper bound after transient faults (default 8).
        throttle_base: first upper bound after the target said that it is asked too much (default 1).
        throttle_cap: highest upper bound then (default 20).
    """

    base: float = 0.5
    cap: float = 8.0
    throttle_base: float = 1.0
    throttle_cap: float = 20.0

    def __post_init__(self) -> None:
        for field in ("base", "cap", "throttle_base", "throttle_cap"):
            _validate.seconds(f"backoff.{field}", getattr(self, field), zero=True)

    def delay(self, failures: int, random: Random, *, throttled: bool = False) -> float:
        """Return seconds to wait after the ``failures``-th failure (1 or more)."""
        base, cap = (self.throttle_base, self.throttle_cap) if throttled else (self.base, self.cap)
        return random.random() * min(cap, base * 2.0 ** min(failures - 1, 60))
