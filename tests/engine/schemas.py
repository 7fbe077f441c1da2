"""JSON schemas of many shapes whose every text is short, so that even a random model ends its answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

FIELDS = ["id", "name", "kind", "size", "tags", "owner", "flag", "at", "parts", "note"]
FORMATS = ["uuid"]  # of the others, xgrammar lets more through than they are: 001.002.003.004, or February 30
PATTERNS = ["^[a-z]{2,5}$", "^[0-9]{4}-[0-9]{2}$", "^(on|off)$", "^#[0-9a-f]{6}$"]
WORDS = ["red", "green", "blue", "north", "south", "yes", "no", "maybe", "alpha", "omega"]


def schemas(count: int, seed: int = 7) -> Iterator[dict[str, Any]]:
    """Yield objects of one to five fields, nested up to three deep."""
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        yield _object(chance, depth=0, definitions=None)


def _object(chance: random.Random, depth: int, definitions: dict[str, Any] | None) -> dict[str, Any]:
    top = definitions is None
    shared: dict[str, Any] = {} if definitions is None else definitions
    fields = chance.sample(FIELDS, chance.randint(1, 5 - depth))
    properties = {field: _value(chance, depth + 1, shared) for field in fields}
    required = fields if chance.random() < 0.6 else chance.sample(fields, chance.randint(1, len(fields)))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": sorted(required, key=fields.index),
        "additionalProperties": False,
    }
    if top and shared:
        schema["$defs"] = shared
    return schema


def _value(chance: random.Random, depth: int, definitions: dict[str, Any]) -> dict[str, Any]:
    kinds = [
        "string",
        "enum",
        "integer",
        "boolean",
        "null",
        "const",
        "pattern",
        "bounded",
        "choice",
        "number",
        "format",
    ]
    if depth < 3:
        kinds += ["object", "array", "array", "union", "ref", "optional"]
    kind = chance.choice(kinds)
    if kind == "string":
        return {"type": "string", "minLength": chance.randint(0, 2), "maxLength": chance.randint(3, 10)}
    if kind == "enum":
        return {"enum": chance.sample(WORDS, chance.randint(1, 4))}
    if kind == "integer":
        low = chance.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 900)}
    if kind == "boolean":
        return {"type": "boolean"}
    if kind == "null":
        return {"type": "null"}
    if kind == "const":
        return {"const": chance.choice([*WORDS, 7, True, None])}
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": chance.choice(PATTERNS),
        }
    if kind == "bounded":
        return {"type": "integer", "exclusiveMinimum": 0, "maximum": chance.choice([9, 99, 1000])}
    if kind == "number":
        low = chance.randint(-5, 5)
        return {"type": "number", "minimum": low, "maximum": low + chance.randint(1, 90)}
    if kind == "format":
        return {"type": "string", "format": chance.choice(FORMATS)}
    if kind == "choice":
        return {"enum": [1, 2, 3, "four", None][: chance.randint(2, 5)]}
    if kind == "object":
        return _object(chance, depth, definitions)
    if kind == "array":
        items = _value(chance, depth + 1, definitions)
        return {"type": "array", "items": items, "minItems": chance.randint(0, 1), "maxItems": chance.randint(1, 3)}
    if kind == "union":
        return {"anyOf": [_value(chance, depth + 1, definitions), _value(chance, depth + 1, definitions)]}
    if kind == "optional":
        return {"anyOf": [_value(chance, depth + 1, definitions), {"type": "null"}]}
    name = f"def{len(definitions)}"
    definitions[name] = {}  # its place is taken before it refers to others
    definitions[name] = _value(chance, depth + 1, definitions)
    return {"$ref": f"#/$defs/{name}"}
