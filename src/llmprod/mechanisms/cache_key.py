"""Which requests are the same: a digest of everything that can change the answer.

The digest covers the whole request as canonical JSON (sorted keys, strings quoted, so that no two requests run into one
another), less the short list in :data:`LEFT_OUT`; what this code does not know is in it, not out of it. Beside the
request it covers the targets, the tenant, the prompt's name and version, and whatever versions the application names.
Nothing is folded: neither letter case nor white space nor the form of numbers, unless a rule for that is passed.

Listing what to leave out, rather than what to put in, is the lesson of caches that answered a request with the answer
to one that differed in a parameter which nobody had listed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import partial
from hashlib import blake2b, sha256
from types import CellType, CodeType
from typing import Any, TypeAlias, cast

from pydantic_core import PydanticSerializationError, to_jsonable_python

from llmprod.provider import Provider
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.schema import OutputSchema
from llmprod.types import Message, Text

__all__ = [
    "LEFT_OUT",
    "SCHEMA",
    "CacheKey",
    "Normalise",
    "Unkeyable",
    "normalised_prompt",
    "rule_identity",
    "target_identity",
]

SCHEMA = 1
"""Version of what is digested and how; another one is another cache."""

LEFT_OUT: Mapping[type, frozenset[str]] = {
    GenerateRequest: frozenset({"stream"}),  # a stored answer is replayed either way
    OutputSchema: frozenset({"adapter"}),  # reads the answer, here; what is sent is the schema beside it
}
"""The fields that change no answer. Outside the request, these are left out as well: deadline, priority, retrieval
lineage (the documents are in the prompt), the cache mode, and all tags but the scope's."""

Normalise: TypeAlias = Callable[[Request], Request]
"""Makes a request into the one whose key it shares. The request that is sent stays as it was."""


class Unkeyable(TypeError):
    """The request holds something of which no digest can be made, so it can't be cached."""


class CacheKey:
    """Makes keys: ``prefix:scope:digest``, in hexadecimal digits.

    Args:
        targets: what tells the targets apart; see :func:`target_identity`.
        versions: what else the answer depends on, by name, such as ``{"guard": "3"}``.
        normalise: the rule by which different requests are one.
        prefix: begins all keys.
        scope_rule: what the scopes are the values of, such as a tag's name: two tags' values are two scopes.
    """

    def __init__(
        self,
        targets: Sequence[Any] = (),
        *,
        versions: Mapping[str, str] | None = None,
        normalise: Normalise | None = None,
        prefix: str = "llmprod-cache",
        scope_rule: Any = None,
    ) -> None:
        rule = None if normalise is None else rule_identity(normalise)
        told = _encode([SCHEMA, _plain(list(targets)), _plain(versions or {}), rule, _plain(scope_rule)])
        self._base = blake2b(told.encode("utf-8", "surrogatepass"), digest_size=32)
        self._normalise = normalise
        self._prefix = f"{prefix}:{SCHEMA}:"
        self._scopes: dict[str, str] = {}

    def __call__(self, request: Request, *, scope: str = "", prompt: tuple[str, str] | None = None) -> str:
        """Return the key of ``request``.

        Args:
            request: the request.
            scope: whose cache it is; keys of two scopes are never equal.
            prompt: name and version of the prompt.

        Raises:
            Unkeyable: it holds an object that can't be written as JSON, or is no request of a model.
        """
        if self._normalise is not None:
            request = self._normalise(request)
        try:
            told = _encode([scope, prompt, _request(request)])
        except (RecursionError, ValueError, TypeError) as error:
            raise Unkeyable(type(error).__name__) from None
        digest = self._base.copy()
        digest.update(told.encode("utf-8", "surrogatepass"))
        return self.of_scope(scope) + digest.hexdigest()

    def of_scope(self, scope: str) -> str:
        """Return how all keys of ``scope`` begin, to clear them. The scope is in it as a digest alone."""
        made = self._scopes.get(scope)
        if made is None:
            named = blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() if scope else "-"
            made = f"{self._prefix}{named}:"
            if len(self._scopes) >= _SCOPES_AT_MOST:
                self._scopes.clear()
            self._scopes[scope] = made
        return made

    @property
    def prefix(self) -> str:
        """How all keys begin."""
        return self._prefix


_SCOPES_AT_MOST = 10_000
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":")).encode


def target_identity(leaf: Provider) -> list[Any]:
    """What makes a provider's answers its own: its class, name, address and headers, never its credential.

    A provider whose answers depend on more has that as ``cache_identity``: anything that JSON can hold.
    """
    return [
        type(leaf).__qualname__,
        leaf.name,
        getattr(leaf, "base_url", None),
        getattr(leaf, "cache_identity", None),
    ]


def rule_identity(rule: Callable[..., Any]) -> list[Any]:
    """What tells a rule from others: its name, and for what has none of its own (a lambda, a partial) what it does."""
    if isinstance(rule, partial):
        return ["partial", rule_identity(rule.func), _told_of(rule.args), _told_of(rule.keywords)]
    name = getattr(rule, "__qualname__", None)
    code = getattr(rule, "__code__", None)
    if name is None or code is None:
        kind = type(rule)
        return [kind.__module__, name or kind.__qualname__, _told_of(getattr(rule, "__dict__", None))]
    told: list[Any] = [rule.__module__, name]
    if "<" in name:
        cells = [_held(cell) for cell in getattr(rule, "__closure__", None) or ()]
        cells = [None if held is rule else held for held in cells]  # it calls itself
        told += [_code(code), _told_of(cells), _told_of(getattr(rule, "__defaults__", None))]
    return told


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty: the function is made before the name within it
        return None


def _code(code: CodeType) -> list[Any]:
    constants = [
        _code(each) if isinstance(each, CodeType) else sorted(map(repr, each)) if isinstance(each, frozenset)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        else repr(each)
        for each in code.co_consts
    ]  # fmt: skip
    return [code.co_code.hex(), list(code.co_names), constants]


def _told_of(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_told_of(inner) for inner in cast("Sequence[Any]", value)]
    try:
        return rule_identity(value) if callable(value) else _plain(value)
    except (Unkeyable, RecursionError, ValueError):
        return type(value).__qualname__


# ---- canonical form --------------------------------------------------------------------------------------------------


def _known(kind: type) -> tuple[tuple[str, Any], ...]:
    left_out = LEFT_OUT.get(kind, frozenset())
    return tuple(
        (item.name, item.default_factory() if item.default_factory is not MISSING else item.default)
        for item in fields(kind)
        if item.name not in left_out
    )


_FIELDS: dict[type, tuple[tuple[str, Any], ...]] = {
    kind: _known(kind) for kind in (GenerateRequest, EmbedRequest, OutputSchema)
}
_GENERATE = tuple((name, default) for name, default in _FIELDS[GenerateRequest] if name != "messages")


def _request(request: Request) -> dict[str, Any]:
    """The request, what is as by default left out."""
    if type(request) is GenerateRequest:
        told: dict[str, Any] = {"messages": [_message(message) for message in request.messages]}
        for name, default in _GENERATE:
            value = getattr(request, name)
            if value is not default and not (value is None or value == () or value == {}):
                told[name] = value if type(value) in _SIMPLE else _plain(value)
        return told
    if type(request) is EmbedRequest:
        return _dataclass(request)
    raise Unkeyable(type(request).__name__)


def _message(message: Message) -> list[Any]:
    told: list[Any] = [message.role]
    for part in message.parts:
        if type(part) is Text and not part.meta:
            told.append(part.text)  # the other parts are dicts
        else:
            told.append(_dataclass(part))
    return told


_SIMPLE = frozenset({str, int, float, bool, type(None)})


def _plain(value: Any) -> Any:
    """What ``value`` is in JSON. No two values that differ on the wire are alike in it."""
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind in _SIMPLE:
        return value
    if isinstance(value, Mapping):
        items: Any = value  # pyright: ignore[reportUnknownVariableType]
        told = {name: _plain(inner) for name, inner in items.items()}
        if type(told.get("properties")) is dict:
            # A model that is held to a schema writes its properties in their order, and what it has written by then
            # decides what it writes next: reasons before a verdict, or after it.
            told["properties"] = {"": "in order", "of": [[name, inner] for name, inner in told["properties"].items()]}
        if all(type(name) is str for name in told) and "" not in told:
            return told
        # The empty name marks what is no plain dict, so a dict that has it, or other names, is told as pairs.
        return {"": "dict", "of": sorted([type(name).__name__, str(name), _encode(told[name])] for name in told)}
    if kind is list or kind is tuple:
        return [_plain(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, (bytes, bytearray)):
        return {"": "bytes", "sha256": sha256(value).hexdigest()}
    if is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value)
    try:
        plain = to_jsonable_python(value)
    except (PydanticSerializationError, UnicodeDecodeError):
        raise Unkeyable(kind.__name__) from None
    return {"": kind.__qualname__, "of": plain if type(plain) in _SIMPLE else _plain(plain)}


def _dataclass(value: Any) -> dict[str, Any]:
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    known = _FIELDS.get(kind)
    if known is None:
        known = _known(kind)
        if kind.__module__.startswith("llmprod."):  # an application may make classes without end
            _FIELDS[kind] = known
    told: dict[str, Any] = {"": kind.__qualname__}
    for name, default in known:
        inner = getattr(value, name)
        if inner is not default and not (inner is None and default is None):
            told[name] = inner if type(inner) in _SIMPLE else _plain(inner)
    return told


# ---- rules -----------------------------------------------------------------------------------------------------------


def normalised_prompt(request: Request) -> Request:
    """Fold letter case and white space of the last user message's text: for questions, not for code or data.

    " What IS this?" and "what is this?" then share an answer; everything else must still be equal.
    """
    if isinstance(request, EmbedRequest):
        return request
    for place in range(len(request.messages) - 1, -1, -1):
        message = request.messages[place]
        if message.role == "user":
            parts = tuple(
                replace(part, text=" ".join(part.text.split()).casefold()) if isinstance(part, Text) else part
                for part in message.parts
            )
            folded = Message("user", parts)
            return replace(request, messages=(*request.messages[:place], folded, *request.messages[place + 1 :]))
    return request
