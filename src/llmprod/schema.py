"""Tools and output schemas: JSON Schema by hand or from Python types, checked before a request is sent."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import ValidationError, from_json

from llmprod.errors import InvalidArgument, InvalidOutput

__all__ = ["OutputSchema", "Tool", "check_schema"]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}
_RESERVED = {"auto", "none", "required"}


def check_schema(field: str, schema: object) -> dict[str, Any]:
    """Return ``schema`` if it is a JSON Schema object as far as its structure shows.

    Raises:
        InvalidArgument: it isn't one; the message tells where.
    """
    if not isinstance(schema, dict):
        raise InvalidArgument(field, type(schema).__name__, "a JSON Schema as a dict")
    schema = cast("dict[str, Any]", schema)
    kind: Any = schema.get("type", [])
    names: list[Any] = kind if type(kind) is list else [kind]  # pyright: ignore[reportUnknownVariableType]
    for name in names:
        if not isinstance(name, str) or name not in _TYPES:
            raise InvalidArgument(f"{field}.type", repr(name)[:40], ", ".join(sorted(_TYPES)))
    for key in ("properties", "$defs", "definitions", "patternProperties"):
        if key in schema:
            if not isinstance(schema[key], dict):
                raise InvalidArgument(f"{field}.{key}", type(schema[key]).__name__, "a dict of schemas")
            for name, inner in schema[key].items():
                _check_inner(f"{field}.{key}.{name}", inner)
    for key in ("items", "additionalProperties", "not"):
        if key in schema:
            _check_inner(f"{field}.{key}", schema[key])
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if key in schema:
            if not isinstance(schema[key], list) or not schema[key]:
                raise InvalidArgument(f"{field}.{key}", type(schema[key]).__name__, "a list of at least one schema")
            for place, inner in enumerate(schema[key]):
                _check_inner(f"{field}.{key}[{place}]", inner)
    required: Any = schema.get("required", [])
    listed: list[Any] = required if type(required) is list else [None]  # pyright: ignore[reportUnknownVariableType]
    if not all(isinstance(name, str) for name in listed):
        raise InvalidArgument(f"{field}.required", str(type(required)), "a list of property names")
    if "enum" in schema and not isinstance(schema["enum"], list):
        raise InvalidArgument(f"{field}.enum", type(schema["enum"]).__name__, "a list")
    return schema


def _check_inner(field: str, schema: object) -> None:
    if not isinstance(schema, bool):
        check_schema(field, schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may ask for.

    Attributes:
        name: letters, digits, ``_`` and ``-``, at most 64; not auto, none or required, which ``tool_choice`` uses.
        description: what it does and when to use it.
        parameters: JSON Schema of the arguments, an object.
        strict: let the provider enforce the schema, where it can.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any]
    strict: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name) or self.name in _RESERVED:
            raise InvalidArgument(
                "tool.name", repr(self.name)[:70], "letters, digits, _ and -, at most 64; not auto, none, required"
            )
        check_schema(f"tool {self.name}.parameters", self.parameters)
        if self.parameters.get("type", "object") != "object":
            raise InvalidArgument(f"tool {self.name}.parameters.type", repr(self.parameters["type"]), "object")

    @classmethod
    def from_function(cls, function: Callable[..., Any], *, strict: bool | None = None) -> Tool:
        """Take name, description and parameters from a function's name, docstring and annotations."""
        fields: dict[str, Any] = {}
        signature = inspect.signature(function, eval_str=True)
        for name, parameter in signature.parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise InvalidArgument(
                    f"tool {function.__name__}.{name}", "a variadic parameter", "named parameters only"
                )
            kind = Any if parameter.annotation is parameter.empty else parameter.annotation
            fields[name] = (kind, ... if parameter.default is parameter.empty else parameter.default)
        schema = create_model(function.__name__, **fields).model_json_schema()
        schema.pop("title", None)
        return cls(name=function.__name__, description=inspect.getdoc(function) or "", parameters=schema, strict=strict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSchema:
    """The JSON that the answer must be.

    Attributes:
        name: a short name for it, which some APIs want.
        schema: JSON Schema.
        strict: let the provider enforce it, where it can (default True).
        adapter: validates the answer into the Python type it came from; None for a plain schema.
    """

    name: str
    schema: dict[str, Any]
    strict: bool = True
    adapter: TypeAdapter[Any] | None = None

    @classmethod
    def of(cls, output: object, *, name: str | None = None) -> OutputSchema:
        """Take a pydantic model, dataclass, TypedDict or any type that pydantic knows, or a JSON Schema as a dict.

        Raises:
            InvalidArgument: it is neither.
        """
        if isinstance(output, OutputSchema):
            return output
        if isinstance(output, Mapping):
            schema = check_schema("output", dict(cast("Mapping[str, Any]", output)))
            if not schema:
                raise InvalidArgument("output", "an empty dict", "a JSON Schema or a type")
            return cls(name=name or str(schema.get("title", "output")), schema=schema)
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", output))
            schema = adapter.json_schema()
        except (PydanticUserError, TypeError, NameError) as error:
            raise InvalidArgument(
                "output", repr(output)[:80], "a type that pydantic knows, or a JSON Schema as a dict"
            ) from error
        given = name or getattr(output, "__name__", "output")
        return cls(name=re.sub(r"[^a-zA-Z0-9_-]", "_", str(given))[:64], schema=schema, adapter=adapter)

    def parse(self, text: str) -> Any:
        """Parse an answer.

        Raises:
            InvalidOutput: it is no JSON, or does not fit the type. A plain dict schema checks only that it is JSON.
        """
        try:
            return self.adapter.validate_json(text) if self.adapter else from_json(text)
        except ValidationError as error:
            places = ", ".join(
                ".".join(map(str, item["loc"])) or "the whole" for item in error.errors(include_input=False)[:5]
            )
            raise InvalidOutput(detail=f"{error.error_count()} errors for {self.name}: {places}") from None
        except ValueError:
            raise InvalidOutput(detail=f"no JSON, {len(text)} chars") from None
