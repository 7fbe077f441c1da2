"""Checks of arguments, with one wording for all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from llmprod.errors import InvalidArgument

A_PROVIDER = "a provider such as OpenAI('gpt-5-mini'); model strings are for clients"


def whole(field: str, value: Any, least: int, *, optional: bool = False) -> None:
    """Require an int of at least ``least`` (or None, if optional)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgument(
            field, repr(value)[:40], f"an integer of at least {least}" + (", or None" if optional else "")
        )


def strings(field: str, value: Any) -> tuple[str, ...]:
    """Require a sequence of strings, which one string is not."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise InvalidArgument(field, type(value).__name__, "a sequence of strings")
    items = tuple(cast("Sequence[object]", value))
    for item in items:
        if not isinstance(item, str):
            raise InvalidArgument(field, f"an item of type {type(item).__name__}", "a sequence of strings")
    return cast("tuple[str, ...]", items)


def labels(field: str, value: Any) -> None:
    """Require a dict of strings by strings."""
    if not isinstance(value, Mapping):
        raise InvalidArgument(field, type(value).__name__, "a dict of strings by strings")
    for name, label in cast("Mapping[object, object]", value).items():
        if not isinstance(name, str) or not isinstance(label, str):
            raise InvalidArgument(field, f"{repr(name)[:40]}: {type(label).__name__}", "a dict of strings by strings")


def flag(field: str, value: Any, *, optional: bool = False) -> None:
    """Require a bool (or None, if optional)."""
    if value is not True and value is not False and not (value is None and optional):
        raise InvalidArgument(field, repr(value)[:40], "True or False" + (", or None" if optional else ""))


def type_of(value: object) -> str:
    """Return what an object is, for an error: its type, or which class where one was given instead of its instance."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def known(names: Collection[str], allowed: Collection[str], said: Mapping[str, str], others: str = "") -> None:
    """Require names of options; of a wrong one tell what it is called here, or the nearest and all.

    Args:
        names: what was given.
        allowed: the options' names.
        said: how what other libraries have by a name is said here.
        others: what else there is.
    """
    for name in names:
        if name in allowed:
            continue
        import difflib  # for an error alone

        near = difflib.get_close_matches(name, sorted(allowed), 1)
        meant = f"{near[0]}, perhaps; or one of " if near else ""
        raise InvalidArgument(name, "an unknown option", said.get(name) or meant + ", ".join(sorted(allowed)) + others)


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
