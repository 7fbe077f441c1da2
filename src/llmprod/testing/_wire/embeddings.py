"""Embeddings in OpenAI's and Gemini's form. The same text has the same unit vector always."""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Mapping
from typing import cast

from ..behaviour import Answer
from .call import JsonObject
from .routes import Api


def embed(api: Api, body: Mapping[str, object], answer: Answer, model: str) -> JsonObject:
    """The whole answer to an embedding request."""
    if api is Api.EMBEDDINGS:
        return _openai(body, answer, model)
    if api is Api.GEMINI_EMBED:
        return {"embedding": _gemini_values(body, answer)}
    requests = body.get("requests")
    items = cast("list[dict[str, object]]", requests) if isinstance(requests, list) else []
    return {"embeddings": [_gemini_values(item, answer) for item in items]}


def vector(text: str, dimensions: int) -> list[float]:
    """The unit vector of a text: float32 values, drawn from a generator that the text seeds."""
    source = random.Random(text)
    raw = [source.gauss(0.0, 1.0) for _ in range(dimensions)]
    norm = math.sqrt(sum(value * value for value in raw)) or 1.0
    form = f"<{dimensions}f"
    return list(struct.unpack(form, struct.pack(form, *(value / norm for value in raw))))


def _openai(body: Mapping[str, object], answer: Answer, model: str) -> JsonObject:
    dimensions = _dimensions(body.get("dimensions"), answer)
    encoded = body.get("encoding_format") == "base64"
    data: list[JsonObject] = []
    for index, text in enumerate(_inputs(body.get("input"))):
        values = vector(text, dimensions)
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *values)).decode() if encoded else values
        data.append({"object": "embedding", "index": index, "embedding": packed})
    response: JsonObject = {"object": "list", "data": data, "model": answer.model or model}
    if answer.usage is not None:
        response["usage"] = {"prompt_tokens": answer.usage.input, "total_tokens": answer.usage.input}
    return response


def _inputs(given: object) -> list[str]:
    """A text, texts, tokens or lists of tokens, as one string each."""
    if not isinstance(given, list):
        return [str(given)]
    items = cast("list[object]", given)
    if items and all(isinstance(item, int) for item in items):
        return [str(items)]
    return [str(item) for item in items]


def _gemini_values(body: Mapping[str, object], answer: Answer) -> JsonObject:
    config = body.get("embedContentConfig")
    asked = body.get("outputDimensionality")
    if asked is None and isinstance(config, dict):
        asked = cast("dict[str, object]", config).get("outputDimensionality")
    return {"values": vector(str(body.get("content")), _dimensions(asked, answer))}


def _dimensions(asked: object, answer: Answer) -> int:
    return asked if isinstance(asked, int) and asked > 0 else answer.dimensions
