"""JSON Schema as Anthropic's structured outputs take it.

They want every object closed and refuse the keywords of validation that constrained decoding can't honour. Those are
moved into the description, where the model reads them; the answer is validated against the full schema on our side.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic_core import to_json

__all__ = ["closed_schema"]

_REFUSED = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems",
    "uniqueItems", "minProperties", "maxProperties",
)  # fmt: skip
_MAPS = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf")


def closed_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of ``schema`` in the subset that is taken."""
    result = dict(schema)
    told = {name: result.pop(name) for name in _REFUSED if name in result}
    if result.get("minItems", 0) not in (0, 1):  # the two that are taken
        told["minItems"] = result.pop("minItems")
    if told:
        words = ", ".join(f"{name}: {to_json(value).decode()}" for name, value in told.items())
        given = result.get("description")
        result["description"] = f"{given} ({words})" if given else words
    for name in _MAPS:
        if isinstance(result.get(name), dict):
            inner = cast("dict[str, Any]", result[name])
            result[name] = {key: _inner(value) for key, value in inner.items()}
    for name in _LISTS:
        if isinstance(result.get(name), list):
            result[name] = [_inner(value) for value in cast("list[Any]", result[name])]
    if "oneOf" in result:
        result["anyOf"] = result.pop("oneOf")
    if "items" in result:
        result["items"] = _inner(result["items"])
    if "properties" in result:
        # Only where nothing is said: an object that is meant to be open is refused by the API, rather than closed here.
        result.setdefault("additionalProperties", False)
    return result


def _inner(schema: Any) -> Any:
    return closed_schema(cast("dict[str, Any]", schema)) if isinstance(schema, dict) else schema
