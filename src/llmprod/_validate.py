"""Checks of arguments, with one wording for all of them."""

from __future__ import annotations

import math
from typing import Any

from llmprod.errors import InvalidArgument


def whole(field: str, value: Any, least: int, *, optional: bool = False) -> None:
    """Require an int of at least ``least`` (or None, if optional)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgument(
            field, repr(value)[:40], f"an integer of at least {least}" + (", or None" if optional else "")
        )


def flag(field: str, value: Any, *, optional: bool = False) -> None:
    """Require a bool (or None, if optional)."""
    if value is not True and value is not False and not (value is None and optional):
        raise InvalidArgument(field, repr(value)[:40], "True or False" + (", or None" if optional else ""))


def between(field: str, value: Any, low: float, high: float, *, optional: bool = False) -> None:
    """Require a finite number from ``low`` to ``high`` (or None, if optional)."""
    if value is None and optional:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (math.isfinite(value) and low <= value <= high)
    ):
        span = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a number of at least {low:g}"
        raise InvalidArgument(field, repr(value)[:40], span + (", or None" if optional else ""))


def seconds(field: str, value: Any, *, optional: bool = False, zero: bool = False) -> None:
    """Require a positive number of seconds (or None for no limit, if optional)."""
    if value is None and optional:
        return
    good = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
    if not good or (value == 0 and not zero):
        least = "0 or more seconds" if zero else "more than 0 seconds"
        raise InvalidArgument(field, repr(value)[:40], least + (", or None for no limit" if optional else ""))
