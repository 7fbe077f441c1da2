"""From HTTP status, headers and machine codes to errors: what is alike in all APIs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from llmprod import errors
from llmprod.errors import CallError

__all__ = ["error_for", "retry_after"]

_CONTEXT = re.compile(
    r"context.?(?:length|limit|window)|maximum context|prompt is too long|input token count|number of tokens allowed"
    r"|reduce the length|exceeds? the (?:available )?context|too many (?:input )?tokens"
    r"|longer than the maximum model length"
    r"|exceeds? (?:the )?max(?:imum)?[ _]?(?:model|seq|input)",
    re.IGNORECASE,
)
_QUOTA_CODES = re.compile(
    r"insufficient_quota|billing|credit_balance|_spend_limit|_usage_limit_exceeded|quota_exceeded", re.IGNORECASE
)
_POLICY_CODES = re.compile(
    r"content_policy|content_filter|ResponsibleAIPolicy|moderation|bio_policy|misalignment_policy", re.IGNORECASE
)
_CONTEXT_CODES = {"context_length_exceeded", "string_above_max_length", "exceed_context_size_error"}


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds that ``retry-after-ms`` or ``retry-after`` (seconds or an HTTP date) asks to wait."""
    try:
        milliseconds = float(headers["retry-after-ms"])
        if milliseconds >= 0:
            return milliseconds / 1000
    except (KeyError, ValueError):
        pass
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - (time() if now is None else now)
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds < 10**9 else None


def error_for(
    status: int | None,
    *,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
    kind: str | None = None,
    message: str | None = None,
    param: str | None = None,
    request_id: str | None = None,
    wait: float | None = None,
    in_stream: bool = False,
) -> CallError:
    """Return the error for what a provider said.

    Args:
        status: HTTP status, or the one that ``kind`` implies inside a stream.
        headers: lower-case response headers.
        code: the provider's machine code, which decides first.
        kind: the provider's error type.
        message: its prose; consulted for a context overflow alone, where no API has a code for it.
        param: the parameter it complains about.
        request_id: its id of the request.
        wait: seconds to wait, where the body tells.
        in_stream: the error came inside a stream.
    """
    headers = headers or {}
    seconds = wait if wait is not None else retry_after(headers)
    fields: dict[str, Any] = {
        "status": status,
        "code": code or kind,
        "param": param,
        "request_id": request_id or headers.get("x-request-id") or headers.get("request-id"),
        "retry_after": seconds,
        "provider_message": message,
        "in_stream": in_stream,
    }
    return _kind(status, f"{code or ''} {kind or ''}", message or "", headers)(**fields)


def _kind(status: int | None, codes: str, message: str, headers: Mapping[str, str]) -> type[CallError]:
    words = set(codes.split())
    if _QUOTA_CODES.search(codes) or status == 402:
        return errors.QuotaExhausted
    if words & _CONTEXT_CODES or (status in (400, 413, 422, None) and _CONTEXT.search(message)):
        return errors.ContextTooLong
    if _POLICY_CODES.search(codes):
        return errors.ContentFiltered
    if status == 429 or "rate_limit" in codes:
        return errors.RateLimited
    if status in (503, 529) or "overloaded" in codes:
        return errors.Overloaded
    if status == 401:
        return errors.AuthenticationFailed
    if status == 403:
        return errors.PermissionDenied
    if status == 404:
        return errors.NotFound
    if status in (408, 409, 425) or (status is not None and status >= 500):
        # x-should-retry is OpenAI's and Anthropic's own verdict on their error.
        return errors.ProviderError if headers.get("x-should-retry") == "false" else errors.ServerError
    if status is not None and 400 <= status < 500:
        return errors.BadRequest
    return errors.ServerError if status is None else errors.ProtocolError
