"""What requests to OpenAI's two APIs have in common: schemas, media, embeddings, and what callers add by hand."""

from __future__ import annotations

import mimetypes
from typing import Any, cast

from llmprod.errors import InvalidArgument, ProtocolError, UnsupportedParameter
from llmprod.events import Event, Start, UsageUpdate
from llmprod.providers._codec import Decoded
from llmprod.providers._json import as_dict, as_list
from llmprod.providers._merge import merge
from llmprod.providers._openai_errors import is_error, openai_error
from llmprod.providers._openai_strict import strict_schema
from llmprod.providers._openai_usage import usage_of
from llmprod.request import EmbedRequest, Request
from llmprod.schema import OutputSchema, Tool
from llmprod.types import Audio, File, Image, Text, ToolResult

__all__ = [
    "add_extra", "cache_mark", "decode_embeddings", "embed_body", "file_name", "function_of", "output_of", "sound_of",
]  # fmt: skip

_OURS = ("stream", "n")
"""Body fields that decide how the answer is read: not for callers to set."""
_SOUNDS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav", "x-m4a": "m4a", "mp4": "m4a"}


def add_extra(body: dict[str, Any], request: Request, kind: str) -> None:
    """Merge ``request.extra[kind]`` into the body, last of all: objects key by key, anything else replaced.

    Raises:
        InvalidArgument: it sets ``stream``, or asks for several choices with ``n``.
    """
    extra = request.extra.get(kind)
    if not extra:
        return
    for name in _OURS:
        if name in extra and extra[name] not in ((None, 1) if name == "n" else ()):
            raise InvalidArgument(
                f"extra[{kind!r}].{name}", repr(extra[name])[:40], "one answer, streamed by stream=True"
            )
    merge(body, extra)


def function_of(tool: Tool, *, adapt: bool, default: bool | None) -> dict[str, Any]:
    """Return name, description, parameters and ``strict`` of a tool.

    Args:
        tool: the tool.
        adapt: convert the schema to OpenAI's strict mode; where it has no equal there, ``strict`` becomes False.
        default: ``strict`` of a tool that leaves it open; None leaves it out.
    """
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    parameters, strict = tool.parameters, default if tool.strict is None else tool.strict
    if strict and adapt:
        converted = strict_schema({"type": "object", **parameters})
        parameters, strict = (parameters, False) if converted is None else (converted, True)
    function["parameters"] = parameters
    if strict is not None:
        function["strict"] = strict
    return function


def output_of(output: OutputSchema, *, adapt: bool) -> dict[str, Any]:
    """Return name, schema and ``strict`` of the output that is asked for; ``adapt`` as in :func:`function_of`."""
    schema, strict = output.schema, output.strict
    if strict and adapt:
        converted = strict_schema(schema)
        schema, strict = (schema, False) if converted is None else (converted, True)
    return {"name": output.name, "schema": schema, "strict": strict}


def cache_mark(part: Text | Image | File | ToolResult, fmt: str) -> dict[str, Any]:
    """Return the ``prompt_cache_breakpoint`` of a part's ``meta[fmt]``, if there is one; GPT-5.6 and later take it."""
    mark = part.meta.get(fmt, {}).get("prompt_cache_breakpoint")
    return {} if mark is None else {"prompt_cache_breakpoint": mark}


def sound_of(part: Audio, target: str) -> dict[str, Any]:
    """Return a recording's bytes and format.

    Raises:
        UnsupportedParameter: it is a URL; the API takes bytes alone.
    """
    if part.data is None:
        raise UnsupportedParameter(target, ("audio url",))
    kind = (part.media_type or "").partition(";")[0].rpartition("/")[2].lower()
    return {"data": part.base64, "format": _SOUNDS.get(kind, kind)}


def file_name(part: File) -> str:
    """Return the document's name, which the APIs want with its bytes; made up from the media type if it has none."""
    return part.name or f"file{mimetypes.guess_extension(part.media_type or '') or ''}"


# ---- embeddings -----------------------------------------------------------------------------------------------------


def embed_body(request: EmbedRequest, model: str, kind: str) -> dict[str, Any]:
    """Return the body of ``POST /embeddings``."""
    body: dict[str, Any] = {"model": model, "input": list(request.inputs), "encoding_format": "float"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    add_extra(body, request, kind)
    return body


def decode_embeddings(request: EmbedRequest, body: Any) -> Decoded:
    """Return the vectors in the order of the inputs, whatever order they came in.

    Raises:
        CallError: an error in spite of a status of 200.
        ProtocolError: not one vector of numbers for each input.
    """
    if is_error(body):
        raise openai_error(None, {}, body)
    answer = as_dict(body)
    vectors: dict[int, list[float]] = {}
    for place, item in enumerate(as_list(answer.get("data"))):
        index, vector = as_dict(item).get("index", place), as_dict(item).get("embedding")
        if not isinstance(vector, list) or not vector or not isinstance(index, int) or index in vectors:
            raise ProtocolError(detail="an embedding that is no list of numbers, or has another's index", status=200)
        vectors[index] = cast("list[float]", vector)
    wanted = len(request.inputs)
    if sorted(vectors) != list(range(wanted)):
        raise ProtocolError(detail=f"{len(vectors)} embeddings for {wanted} inputs", status=200)
    events: list[Event] = [Start(answer.get("model") or None, answer.get("id") or None)]
    usage = usage_of(answer.get("usage"))
    if usage is not None:
        events.append(UsageUpdate(usage))
    return Decoded(events=events, embeddings=[vectors[index] for index in range(wanted)])
