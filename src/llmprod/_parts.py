"""Parts of an answer as JSON, and back; bytes as base64."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from llmprod.types import Audio, File, Image, Opaque, Part, Refusal, Text, Thinking, ToolCall, ToolResult

__all__ = ["decoded_part", "encoded_part"]

_KINDS: dict[str, type] = {
    "text": Text, "thinking": Thinking, "refusal": Refusal, "tool_call": ToolCall, "tool_result": ToolResult,
    "image": Image, "audio": Audio, "file": File, "opaque": Opaque,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encoded_part(part: Part) -> dict[str, Any]:
    """Return ``part`` as what JSON can hold."""
    told: dict[str, Any] = {"type": _NAMES[type(part)]}
    for item in fields(part):
        value = getattr(part, item.name)
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        elif isinstance(value, tuple):
            value = [encoded_part(inner) for inner in cast("tuple[Part, ...]", value)]
        if value is not None and value != {}:
            told[item.name] = value
    return told


def decoded_part(told: Mapping[str, Any]) -> Part:
    """Return the part that :func:`encoded_part` told of.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    values = dict(told)
    kind = _KINDS[values.pop("type")]
    if isinstance(values.get("data"), str):
        values["data"] = base64.b64decode(values["data"])
    if isinstance(values.get("content"), list):
        values["content"] = tuple(decoded_part(inner) for inner in values["content"])
    return cast("Part", kind(**values))
