"""Makes JSON that fits a JSON Schema, for the simulated model. What can't be made is an error, never a wrong value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib import import_module
from random import Random
from typing import Any, cast

from llmprod.errors import BadRequest

__all__ = ["instance_of"]

_DEEP = 4
"""From this depth on only what is required is made, so that recursive schemas end."""
_TOO_DEEP = 24

_FORMATS = {
    "date-time": "2026-01-15T09:30:00Z",
    "date": "2026-01-15",
    "time": "09:30:00Z",
    "duration": "PT1H30M",
    "email": "simulated@example.com",
    "idn-email": "simulated@example.com",
    "hostname": "simulated.example.com",
    "uri": "https://example.com/simulated",
    "url": "https://example.com/simulated",
    "iri": "https://example.com/simulated",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "ipvanyaddress": "192.0.2.1",
    "binary": "simulated",
    "json-string": "{}",
}
_WORDS = ("simulated", "simulated value", "simulated text", "a simulated string")
_BY_KEYWORD = {
    "properties": "object", "required": "object", "additionalProperties": "object", "items": "array",
    "prefixItems": "array", "minLength": "string", "pattern": "string", "format": "string", "minimum": "number",
    "maximum": "number",
}  # fmt: skip


def instance_of(schema: Mapping[str, Any], random: Random) -> Any:
    """Return a value that fits ``schema``, the same for the same state of ``random``.

    Raises:
        BadRequest: the schema asks for what this generator can't make.
    """
    return _Maker(schema, random).make(schema, 0)


def _cannot(what: str) -> BadRequest:
    return BadRequest(detail=f"the simulation can't make {what}")


class _Maker:
    def __init__(self, root: Mapping[str, Any], random: Random) -> None:
        self._root = root
        self._random = random

    def make(self, schema: Any, depth: int) -> Any:
        if depth > _TOO_DEEP:
            raise _cannot("a schema that refers to itself without end")
        if not isinstance(schema, Mapping) or not schema:
            return _WORDS[0]
        schema = self._resolve(cast("Mapping[str, Any]", schema))
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._random.choice(schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._one_of(schema, key, depth)
        kind = schema.get("type") or next((_BY_KEYWORD[key] for key in _BY_KEYWORD if key in schema), "string")
        if isinstance(kind, list):
            kinds = cast("list[str]", kind)
            kind = next((name for name in kinds if name != "null"), "null") if depth < _DEEP else kinds[-1]
        return getattr(self, f"_{kind}")(schema, depth)

    def _resolve(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow references and merge ``allOf``."""
        for _ in range(_TOO_DEEP):
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = _merge(self._look_up(schema["$ref"]), rest)
            elif "allOf" in schema:
                merged: Mapping[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
                for part in schema["allOf"]:
                    merged = _merge(self._resolve(part), merged)
                schema = merged
            else:
                return schema
        raise _cannot("a reference that leads to itself")

    def _look_up(self, reference: str) -> Mapping[str, Any]:
        if not reference.startswith("#"):
            raise _cannot("a reference to another document")
        node: Any = self._root
        for step in reference.strip("#/").split("/") if reference != "#" else ():
            node = cast("dict[str, Any]", node).get(step.replace("~1", "/").replace("~0", "~")) if node else None
        if not isinstance(node, Mapping):
            raise _cannot("a reference that leads nowhere")
        return cast("Mapping[str, Any]", node)

    def _one_of(self, schema: Mapping[str, Any], key: str, depth: int) -> Any:
        rest = {name: value for name, value in schema.items() if name != key}
        options = [_merge(option, rest) for option in cast("list[dict[str, Any]]", schema[key])]
        if depth >= _DEEP:  # the shallowest, so that recursion ends
            options.sort(key=lambda option: "$ref" in option or option.get("type") in ("object", "array"))
            return self.make(options[0], depth + 1)
        full = [option for option in options if option.get("type") != "null"] or options
        self._random.shuffle(full)
        if any(option.get("type") in ("number", "integer") for option in full):
            # A number that may be written as a string: pydantic's schema of a Decimal doesn't say which strings.
            full.sort(key=lambda option: option.get("type") == "string")
        failure = _cannot("any of the alternatives")
        for option in full:
            try:
                return self.make(option, depth + 1)
            except BadRequest as error:
                failure = error
        raise failure

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required = set(schema.get("required", ()))
        made = {
            name: self.make(inner, depth + 1)
            for name, inner in properties.items()
            if name in required or (depth < _DEEP and self._random.random() < 0.5)
        }
        others = schema.get("additionalProperties", True)
        for name in sorted(required - set(made)):
            made[name] = self.make(others, depth + 1)
        least = schema.get(
            "minProperties", 1 if not properties and isinstance(others, Mapping) and depth < _DEEP else 0
        )
        for name in properties:
            if len(made) < least and name not in made:
                made[name] = self.make(properties[name], depth + 1)
        while len(made) < least:
            if others is False:
                raise _cannot("more properties than the schema has")
            made[f"simulated_{len(made) + 1}"] = self.make(others, depth + 1)
        return made

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        made = [self.make(inner, depth + 1) for inner in schema.get("prefixItems", ())]
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", max(least, 3))
        wanted = (
            least
            if depth >= _DEEP
            else self._random.randint(min(max(least, 1), most), max(least, min(most, least + 2, 3)))
        )
        if schema.get("items") is False:
            wanted = min(wanted, len(made))
        for _ in range(200):
            if len(made) >= wanted:
                break
            item = self.make(schema.get("items", True), depth + 1)
            if schema.get("uniqueItems") and item in made:
                if isinstance(item, str) and "enum" not in schema.get("items", {}):
                    item = f"{item} {len(made) + 1}"
                if item in made:
                    continue
            made.append(item)
        if len(made) < least:
            raise _cannot("that many different items")
        return made

    def _string(self, schema: Mapping[str, Any], depth: int) -> str:
        del depth
        if "pattern" in schema:
            return self._matching(schema)
        form = schema.get("format")
        text = _FORMATS[form] if form in _FORMATS else self._random.choice(_WORDS)
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if form not in _FORMATS:
            while len(text) < least:
                text += f" {self._random.choice(_WORDS)}"
            text = text[: int(min(most, max(least, len(text))))]
        if not least <= len(text) <= most:
            raise _cannot(f"a {form} of that length")
        return text

    def _matching(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        for extra in range(60):
            text = _pattern(schema["pattern"], self._random, extra)
            if least <= len(text) <= most and re.search(schema["pattern"], text):
                return text
        raise _cannot("a string of that length and pattern")

    def _number(self, schema: Mapping[str, Any], depth: int, *, whole: bool = False) -> float:
        del depth
        low, high = _bounds(schema, whole=whole)
        step = schema.get("multipleOf")
        if step:
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if first > last:
                raise _cannot("a number within those bounds")
            number = self._random.randint(first, last) * step
            return int(number) if whole else round(number, 9)
        if low > high:
            raise _cannot("a number within those bounds")
        if whole:
            return self._random.randint(math.ceil(low), math.floor(high))
        return min(high, max(low, round(self._random.uniform(low, high), 2)))

    def _integer(self, schema: Mapping[str, Any], depth: int) -> float:
        return self._number(schema, depth, whole=True)

    def _boolean(self, schema: Mapping[str, Any], depth: int) -> bool:
        del schema, depth
        return self._random.random() < 0.5

    def _null(self, schema: Mapping[str, Any], depth: int) -> None:
        del schema, depth


def _merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both schemas at once, as far as their structure shows; ``second`` wins."""
    merged = {**first, **second}
    if "properties" in first and "properties" in second:
        merged["properties"] = {**first["properties"], **second["properties"]}
    if "required" in first and "required" in second:
        merged["required"] = [*first["required"], *second["required"]]
    return merged


def _bounds(schema: Mapping[str, Any], *, whole: bool) -> tuple[float, float]:
    gap = 1 if whole else 1e-6
    lows = [schema[key] + more for key, more in (("minimum", 0), ("exclusiveMinimum", gap)) if key in schema]
    highs = [schema[key] - less for key, less in (("maximum", 0), ("exclusiveMaximum", gap)) if key in schema]
    low = max(lows) if lows else None
    high = min(highs) if highs else None
    if low is None:
        low = 0 if high is None or high >= 0 else high - 100
    return low, low + 100 if high is None else high


def _pattern(pattern: str, random: Random, extra: int) -> str:
    """A string that matches; ``extra`` repetitions more than the least, so that a minimum length can be met."""
    parser: Any = import_module("re._parser")  # the standard library's own parser of expressions; it has no public name
    try:
        return _expression(parser.parse(pattern), random, extra)
    except (NotImplementedError, parser.error):
        raise _cannot("a string for that pattern") from None


def _expression(parsed: Any, random: Random, extra: int) -> str:
    made: list[str] = []
    for operation, value in parsed:
        name = str(operation)
        if name == "LITERAL":
            made.append(chr(value))
        elif name == "NOT_LITERAL":
            made.append("s" if value != ord("s") else "t")
        elif name == "ANY":
            made.append("s")
        elif name == "IN":
            made.append(_member(value, random))
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = value
            made.extend(_expression(inner, random, extra) for _ in range(min(int(most), int(least) + extra)))
        elif name in ("SUBPATTERN", "ATOMIC_GROUP"):
            made.append(_expression(value[-1] if name == "SUBPATTERN" else value, random, extra))
        elif name == "BRANCH":
            made.append(_expression(random.choice(value[1]), random, extra))
        elif name not in ("AT", "ASSERT", "ASSERT_NOT"):  # anchors add nothing; the caller checks the result
            raise NotImplementedError(name)
    return "".join(made)


def _member(choices: list[tuple[Any, Any]], random: Random) -> str:
    kinds = {"CATEGORY_DIGIT": "0123456789", "CATEGORY_WORD": "simulated", "CATEGORY_SPACE": " "}
    if str(choices[0][0]) == "NEGATE":
        raise NotImplementedError
    name, value = random.choice(choices)
    if str(name) == "RANGE":
        return chr(random.randint(*value))
    if str(name) == "CATEGORY":
        if str(value) not in kinds:
            raise NotImplementedError
        return random.choice(kinds[str(value)])
    return chr(value)
