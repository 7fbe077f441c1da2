"""Google's errors, as a response's body or as a chunk of a stream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from llmprod.errors import CallError
from llmprod.providers._errors import error_for

__all__ = ["error_from"]

_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)s\Z")


def error_from(status: int | None, headers: Mapping[str, str], body: Any, *, in_stream: bool = False) -> CallError:
    """Return the error that a body tells; ``status`` is None where HTTP said 200.

    ``code`` is ErrorInfo's ``reason``, else the status word (``RESOURCE_EXHAUSTED`` …). A quota of the day reads
    ``quota_exceeded_per_day`` and a missing billing account ``billing_required``: both stand for what the API tells
    in other fields.
    """
    items = _list(body)  # a stream's error comes as a list of one
    error = _dict(_dict(items[0] if items else body).get("error"))
    word = error.get("status") if isinstance(error.get("status"), str) else None
    message = error.get("message") if isinstance(error.get("message"), str) else None
    reason, wait, per_day = _details(error.get("details"))
    if status is None:
        code = error.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else _STATUS.get(word or "", 500)
    if per_day:
        reason = "quota_exceeded_per_day"
    elif word == "FAILED_PRECONDITION" and message and "billing" in message.lower():
        reason = "billing_required"
    # A wrong key is a 400 here, and 499 is the server's own way of giving up.
    meant = 401 if reason in ("API_KEY_INVALID", "API_KEY_EXPIRED") else 500 if status == 499 else status
    result = error_for(meant, headers=headers, code=reason, kind=word, message=message, wait=wait, in_stream=in_stream)
    result.status = status
    return result


def _details(details: Any) -> tuple[str | None, float | None, bool]:
    """Return the reason, the seconds to wait, and whether a quota of the day is used up."""
    reason: str | None = None
    wait: float | None = None
    per_day = False
    for detail in map(_dict, _list(details)):
        kind = str(detail.get("@type", ""))
        if kind.endswith("ErrorInfo") and isinstance(detail.get("reason"), str):
            reason = detail["reason"]
        elif kind.endswith("RetryInfo"):
            match = _DURATION.match(str(detail.get("retryDelay", "")))
            wait = float(match[1]) if match else wait
        elif kind.endswith("QuotaFailure"):
            violations = map(_dict, _list(detail.get("violations")))
            per_day = per_day or any("PerDay" in str(violation.get("quotaId")) for violation in violations)
    return reason, wait, per_day


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return cast("Sequence[Any]", value) if isinstance(value, list) else ()
