"""What OpenAI and its imitators say when they fail, turned into this library's errors.

The forms met in practice: ``{"error": {message, type, param, code}}`` (OpenAI, Azure, llama.cpp), a number as ``code``
(OpenRouter, vLLM), ``{"object": "error", …}`` (vLLM before 0.10), ``http_status_code`` and ``error_type`` (TGI), a bare
string (Ollama in a stream), ``{"detail": …}`` (FastAPI), and any of them in a list of one (Google's gateway).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from llmprod.errors import CallError, ProtocolError
from llmprod.providers._errors import error_for
from llmprod.providers._json import as_dict, as_list

__all__ = ["is_error", "openai_error", "unexpected"]

_IMPLIED = {
    "rate_limit_exceeded": 429, "rate_limit_error": 429, "insufficient_quota": 429, "tokens": 429, "requests": 429,
    "server_is_overloaded": 503, "overloaded": 503, "overloaded_error": 503, "service_unavailable": 503,
    "slow_down": 503, "insufficient_system_resource": 503, "timeout": 504, "timeout_error": 504,
    "vector_store_timeout": 504, "invalid_api_key": 401, "authentication_error": 401, "permission_error": 403,
    "data_residency_mismatch": 403, "model_not_found": 404, "not_found_error": 404, "NotFoundError": 404,
    "invalid_request_error": 400, "BadRequestError": 400, "context_length_exceeded": 400, "invalid_prompt": 400,
    "bio_policy": 400, "misalignment_policy_violation": 400, "exceed_context_size_error": 400, "validation": 422,
    "invalid_image": 400, "invalid_image_format": 400, "invalid_base64_image": 400, "invalid_image_url": 400,
    "image_too_large": 400, "image_too_small": 400, "image_parse_error": 400, "image_content_policy_violation": 400,
    "invalid_image_mode": 400, "image_file_too_large": 400, "unsupported_image_media_type": 400,
    "empty_image_file": 400, "failed_to_download_image": 400, "image_file_not_found": 400,
}  # fmt: skip
"""The status that a code or type implies where the HTTP status was 200. Anything else is taken for a 500."""


def unexpected(detail: str, *, in_stream: bool) -> ProtocolError:
    """Return the error for JSON that has not the form of an answer."""
    return ProtocolError(detail=detail, in_stream=in_stream, status=200)


def is_error(body: Any) -> bool:
    """True if a JSON value that came with a 200 reports a failure."""
    if isinstance(body, list):
        items = as_list(body)
        return len(items) == 1 and is_error(items[0])
    found = as_dict(body)
    return bool(found.get("error")) or found.get("object") == "error" or found.get("type") == "error"


def openai_error(status: int | None, headers: Mapping[str, str], body: Any, *, in_stream: bool = False) -> CallError:
    """Return the error for what the server said.

    Args:
        status: the HTTP status; None where that was a success, so that the body alone tells.
        headers: lower-case response headers.
        body: parsed JSON, or None where it was none.
        in_stream: the error came inside a stream.
    """
    told = _told(body)
    code, kind = _word(told.get("code")), _word(told.get("type")) or _word(told.get("error_type"))
    if as_list(as_dict(told.get("metadata")).get("reasons")):
        kind = "moderation"  # OpenRouter's 403: the upstream's filter, and not the key, refused
    inner = _word(as_dict(told.get("innererror")).get("code"))
    if status is None:
        status = _number(told) or _IMPLIED.get(code or "") or _IMPLIED.get(kind or "") or 500
    message = told.get("message")
    param = told.get("param")
    return error_for(
        status,
        headers=headers,
        code=code or inner,
        kind=kind if code is None or inner is None else inner,
        message=message if isinstance(message, str) else None,
        param=param if isinstance(param, str) else None,
        request_id=headers.get("x-request-id") or headers.get("apim-request-id"),
        in_stream=in_stream,
    )


def _told(body: Any) -> dict[str, Any]:
    """Return the object that holds code, type and message, wherever the server put it."""
    items = as_list(body)
    outer = as_dict(items[0] if items else body)
    error = outer.get("error")
    if isinstance(error, dict):
        return cast("dict[str, Any]", error)
    if isinstance(error, str):
        return {**outer, "message": error, "type": outer.get("error_type")}
    if isinstance(outer.get("detail"), str):
        return {**outer, "message": outer["detail"]}
    return {**outer, "type": None} if outer.get("type") == "error" else outer


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and value and not value.isdigit() else None


def _number(told: dict[str, Any]) -> int | None:
    """Return an HTTP status that the body holds, as number or digits."""
    for name in ("http_status_code", "status_code", "code", "status"):
        value = told.get(name)
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    return None
