"""Tools and output schemas: JSON Schema by hand or from Python types, checked before a request is sent."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import ValidationError, from_json, to_jsonable_python

from llmprod.errors import InvalidArgument, InvalidOutput

if TYPE_CHECKING:
    from pydantic import TypeAdapter  # imported where used: most of a client's import time otherwise

__all__ = ["OutputSchema", "Tool", "check_schema"]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}
_RESERVED = {"auto", "none", "required"}
_NO_META: dict[str, Mapping[str, Any]] = {}


def _short(name: object) -> str:
    """The name in the letters that all providers take."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", str(name))[:64]


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
    required = cast("object", schema.get("required", []))
    if not isinstance(required, list) or not all(isinstance(name, str) for name in cast("list[object]", required)):
        raise InvalidArgument(f"{field}.required", repr(schema["required"])[:40], "a list of property names")
    enum = cast("object", schema.get("enum", []))
    if not isinstance(enum, list):
        raise InvalidArgument(f"{field}.enum", type(enum).__name__, "a list")
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
        meta: what one wire format alone knows of a tool, by the format's name, such as
            ``{"anthropic": {"cache_control": {"type": "ephemeral"}}}``; goes into the tool as it is sent there.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any]
    strict: bool | None = None
    meta: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NO_META)

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
        """Take name, description and parameters from a function's name, docstring and annotations.

        Raises:
            InvalidArgument: the parameters have no JSON Schema.
        """
        from pydantic import PydanticUserError, TypeAdapter

        tool = getattr(function, "__name__", type(function).__name__)
        try:
            parameters = inspect.signature(function, eval_str=True).parameters.values()
            # A dataclass, not a model: a model reserves names such as schema, json and copy.
            fields = [_field(tool, parameter) for parameter in parameters]
            schema = TypeAdapter[Any](make_dataclass("Parameters", fields, kw_only=True)).json_schema()
        except (PydanticUserError, TypeError, NameError, SyntaxError, AttributeError) as error:
            told = f"parameters that have no JSON Schema ({type(error).__name__})"
            raise InvalidArgument(f"tool {tool}", told, "annotated parameters of types that pydantic knows") from error
        schema.pop("title", None)
        for parameter in parameters:
            if parameter.default is not parameter.empty:
                # Not as the dataclass's own default, which may not be mutable. One that is no JSON stays untold.
                with contextlib.suppress(ValueError):
                    schema["properties"][parameter.name]["default"] = to_jsonable_python(parameter.default)
        return cls(name=tool, description=inspect.getdoc(function) or "", parameters=schema, strict=strict)


def _field(tool: str, parameter: inspect.Parameter) -> tuple[str, Any, Any]:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise InvalidArgument(f"tool {tool}.{parameter.name}", "a variadic parameter", "named parameters only")
    kind = Any if parameter.annotation is parameter.empty else parameter.annotation
    default = parameter.default
    return parameter.name, kind, field() if default is parameter.empty else field(default_factory=lambda: default)


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
            return cls(name=_short(name or schema.get("title", "output")), schema=schema)
        from pydantic import PydanticUserError, TypeAdapter

        try:
            adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", output))
            schema = adapter.json_schema()
        except (PydanticUserError, TypeError, NameError, SyntaxError, AttributeError) as error:
            raise InvalidArgument(
                "output", repr(output)[:80], "a type that pydantic knows, or a JSON Schema as a dict"
            ) from error
        return cls(name=_short(name or getattr(output, "__name__", "output")), schema=schema, adapter=adapter)

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
