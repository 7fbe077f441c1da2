"""Anthropic's errors, as a response's body or as an event inside a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from llmprod.errors import CallError
from llmprod.providers._errors import error_for

__all__ = ["error_from"]

_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Inside a stream the HTTP status is 200; the type implies the one that was meant."""


def error_from(status: int | None, headers: Mapping[str, str], body: Any, *, in_stream: bool = False) -> CallError:
    """Return the error that a body tells; ``status`` is None where HTTP said 200.

    ``code`` is ``error.details.error_code``, else ``error.type``; an empty credit balance, which the API reports in
    prose alone, reads ``credit_balance_too_low``.
    """
    fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    told = fields.get("error", fields)
    error = cast("dict[str, Any]", told) if isinstance(told, dict) else {"message": told}
    details = error.get("details")
    code = cast("dict[str, Any]", details).get("error_code") if isinstance(details, dict) else None
    kind, message = _text(error.get("type")), _text(error.get("message"))
    if message and "credit balance is too low" in message.lower():
        code = "credit_balance_too_low"
    return error_for(
        _STATUS.get(kind or "", 500) if status is None else status,
        headers=headers,
        code=_text(code),
        kind=kind,
        message=message,
        request_id=_text(fields.get("request_id")),
        in_stream=in_stream,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
