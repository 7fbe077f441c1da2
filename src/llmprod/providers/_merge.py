"""Merging what a caller adds by hand into a body that a codec wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

__all__ = ["merge"]


def merge(body: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Put ``extra`` into ``body``: objects are merged key by key, anything else replaces what was there."""
    for key, value in extra.items():
        old = body.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            new = dict(cast("dict[str, Any]", old))
            merge(new, cast("Mapping[str, Any]", value))
            body[key] = new
        else:
            body[key] = value
