"""Requests as digests, results as JSON lines.

A digest covers what is asked, and of which model; not how (deadline, tags, priority).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any, cast

from pydantic_core import to_json

from llmprod._parts import decoded_part, encoded_part
from llmprod.batch.records import BatchResult, StoredError
from llmprod.errors import LLMProdError
from llmprod.request import Request
from llmprod.usage import Usage

__all__ = ["decoded", "digest", "encoded"]

# Adapters hold validators, which the schema beside them determines; batches are never streamed.
_UNTOLD = {"adapter", "stream"}


def digest(request: Request, model: str) -> str:
    """32 hexadecimal digits that differ where the request or the model does."""
    told = json.dumps([model, _plain(request)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in cast("Mapping[object, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in cast("list[Any]", value)]
    if is_dataclass(value):
        # Defaults are left out, so that a field added to a request in a later version changes no digest.
        told: dict[str, Any] = {"": type(value).__name__}
        for item in fields(value):
            inner = getattr(value, item.name)
            if item.name not in _UNTOLD and inner is not item.default and inner not in ((), {}):
                told[item.name] = _plain(inner)
        return told
    return to_json(value, fallback=repr).decode()


def encoded(result: BatchResult, digest: str) -> bytes:
    """One line of a checkpoint."""
    told: dict[str, Any] = {"key": result.key, "digest": digest, "ok": result.ok, "index": result.index}
    if result.error is not None:
        told["error"] = _error(result.error)
    if result.model is not None:
        told["model"] = result.model
    if result.finish_reason is not None:
        told["finish_reason"] = result.finish_reason
    if result.usage is not None:
        told["usage"] = {
            item.name: value
            for item in fields(Usage)
            if (value := getattr(result.usage, item.name)) is not None and (item.name == "cost" or value not in (0, {}))
        }
    if result.cost is not None:
        told["cost"] = str(result.cost)
    told["seconds"] = round(result.seconds, 6)
    if result.embeddings is not None:
        told["embeddings"] = result.embeddings
    else:
        told["parts"] = [encoded_part(part) for part in result.parts]
    try:
        return to_json(told, fallback=_other) + b"\n"
    except ValueError:  # lone surrogates, which UTF-8 can't hold but JSON's escapes can
        return json.dumps(told, default=_other, separators=(",", ":")).encode() + b"\n"


def _other(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)  # a library's own arrays and numbers


def _error(error: Exception | StoredError) -> dict[str, str]:
    if isinstance(error, StoredError):
        return {"type": error.type, "message": error.message}
    return {"type": type(error).__name__, "message": str(error) if isinstance(error, LLMProdError) else ""}


def decoded(told: Mapping[str, Any], *, index: int | None = None) -> BatchResult:
    """The result of a checkpoint's line.

    Raises:
        KeyError, TypeError, ValueError: the line holds something else.
    """
    error = told.get("error")
    return BatchResult(
        index=told["index"] if index is None else index,
        key=told["key"],
        parts=tuple(decoded_part(part) for part in told.get("parts", ())),
        finish_reason=told.get("finish_reason"),
        usage=_usage(told["usage"]) if "usage" in told else None,
        cost=Decimal(told["cost"]) if "cost" in told else None,
        model=told.get("model"),
        embeddings=told.get("embeddings"),
        error=None if error is None else StoredError(error["type"], error["message"]),
        restored=True,
        seconds=told["seconds"],
    )


def _usage(told: Mapping[str, Any]) -> Usage:
    cost = told.get("cost")
    return Usage(**{**told, "cost": Decimal(cost)} if cost is not None else told)
