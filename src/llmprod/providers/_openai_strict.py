"""JSON Schemas in the subset that OpenAI's strict mode takes.

Strict mode wants every object closed (``additionalProperties: false``) and every property required, and knows only
some keywords. What it makes the model write always fits the caller's own schema too, so nothing is lost by asking
for more. A constraint that strict mode can't enforce is told to the model in the description. A schema whose meaning
would change (free-form objects, tuples, ``not`` …) is not converted, and is sent with ``strict: false``.

Source: OpenAI's guide "Structured model outputs", section on supported schemas.
"""

from __future__ import annotations

from typing import Any, cast

from llmprod.providers._json import as_dict, as_list

__all__ = ["strict_schema"]

_IMPOSSIBLE = frozenset({
    "not", "if", "then", "else", "patternProperties", "prefixItems", "dependentRequired", "dependentSchemas",
    "unevaluatedProperties", "unevaluatedItems", "additionalItems", "$dynamicRef", "$anchor",
})  # fmt: skip
_DROPPED = frozenset({"default", "discriminator", "examples", "$schema", "$id", "$comment", "readOnly", "writeOnly"})
_TOLD = frozenset({
    "minLength", "maxLength", "uniqueItems", "minProperties", "maxProperties", "propertyNames", "contains",
    "minContains", "maxContains", "contentMediaType", "contentEncoding",
})  # fmt: skip
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})


class _NotStrictError(Exception):
    """The schema has no equal in strict mode."""


def strict_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return ``schema`` as strict mode wants it, or None where that would change its meaning.

    The schema passed in is left as it is.
    """
    root = schema
    reference = schema.get("$ref")
    if isinstance(reference, str):  # the root itself must be an object: pydantic writes recursive models as a $ref
        target = _follow(schema, reference)
        root = {**{key: value for key, value in schema.items() if key != "$ref"}, **target}
    if root.get("type") != "object":
        return None
    try:
        return _convert(root)
    except _NotStrictError:
        return None


def _follow(schema: dict[str, Any], reference: str) -> dict[str, Any]:
    place: Any = schema
    for name in reference.removeprefix("#/").split("/"):
        place = as_dict(place).get(name)
    return as_dict(place)


def _convert(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, dict):  # true and false are schemas too
        raise _NotStrictError
    source = cast("dict[str, Any]", schema)
    if not _IMPOSSIBLE.isdisjoint(source):
        raise _NotStrictError
    parts = as_list(source.get("allOf"))
    if "allOf" in source:
        if len(parts) != 1:
            raise _NotStrictError
        source = {**{key: value for key, value in source.items() if key != "allOf"}, **as_dict(parts[0])}
        return _convert(source)
    result: dict[str, Any] = {}
    told: list[str] = []
    for key, value in source.items():
        if key in _TOLD or (key == "format" and value not in _FORMATS):
            told.append(f"{key}: {value}")
        elif key in ("properties", "$defs", "definitions"):
            result[key] = {name: _convert(inner) for name, inner in as_dict(value).items()}
        elif key in ("anyOf", "oneOf"):
            # Strict mode has no oneOf. Alternatives told apart by a constant, as pydantic's are, mean the same.
            result["anyOf"] = [_convert(inner) for inner in as_list(value)]
        elif key == "items":
            result[key] = _convert(value)
        elif key not in _DROPPED:
            result[key] = value
    if source.get("type") == "object" or "properties" in source:
        _close(source, result)
    if "$ref" in result and len(result) > 1:
        result["anyOf"] = [{"$ref": result.pop("$ref")}]
    if told:
        note = f"({', '.join(told)})"
        result["description"] = f"{result['description']} {note}" if result.get("description") else note
    return result


def _close(source: dict[str, Any], result: dict[str, Any]) -> None:
    """Make an object admit its own properties alone, and require them all."""
    if "properties" not in source or source.get("additionalProperties", False) is not False:
        raise _NotStrictError
    result["additionalProperties"] = False
    result["required"] = list(result["properties"])
