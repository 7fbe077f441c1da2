"""What the fault proxy does to the bytes of one direction: Toxiproxy's toxics, each a field."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["HEALTHY", "Toxics"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Toxics:
    """What is done to the bytes of one direction. Without arguments nothing; the fields combine.

    Counts of bytes are of each connection by itself, from its beginning.
    """

    latency: float = 0.0
    """Seconds by which each piece comes later; pieces under way together are late together."""
    jitter: float = 0.0
    """At most so many seconds more or less, drawn for each piece; the order stays."""
    bandwidth: float | None = None
    """Bytes a second."""
    slice: int | None = None
    """Pass data on in pieces of so many bytes; 1 with a ``slice_gap`` is a slow drip."""
    slice_variation: int = 0
    """So many bytes more or less, drawn for each piece."""
    slice_gap: float = 0.0
    """Seconds between the pieces."""
    reset_after: int | None = None
    """Reset the connection (RST on both sides) after so many bytes."""
    close_after: int | None = None
    """Close the connection properly (FIN) after so many bytes: limited data, an answer cut short."""
    half_close_after: int | None = None
    """End this direction alone (FIN) after so many bytes; the other goes on."""
    stall_after: int | None = None
    """Pass on nothing more after so many bytes, and keep the connection open."""
    stall_for: float = math.inf
    """Seconds after which a stall is over."""
    slow_close: float = 0.0
    """Seconds by which the end of the connection comes later."""
    toxicity: float = 1.0
    """Share of the connections that are spoiled; drawn once for each."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            least = 1 if field.name == "slice" else 0
            above = field.name in ("bandwidth", "stall_for")
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= least
            if not good or (above and not value > 0) or (field.name == "toxicity" and value > 1):
                allowed = "more than 0" if above else "from 0 to 1" if field.name == "toxicity" else f"at least {least}"
                raise ValueError(f"{field.name}: got {value!r}; allowed: {allowed}")
            if field.name.endswith("_after") and not isinstance(value, int):
                raise ValueError(f"{field.name}: got {value!r}; allowed: a whole number of bytes")


HEALTHY = Toxics()
"""Bytes pass as they came."""
