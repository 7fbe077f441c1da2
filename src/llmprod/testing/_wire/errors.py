"""Errors in each API's own form and with its own status, type and code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast, get_args

from ..behaviour import ErrorKind, ErrorReply
from .call import Call, JsonObject, compact
from .routes import Api, Family
from .sse import Event


class _Form(NamedTuple):
    """How one API words one kind of error. Gemini's `type` is its status word."""

    status: int
    type: str
    code: str | None
    message: str


_FORMS: Mapping[Family, Mapping[ErrorKind, _Form]] = {
    "openai": {
        "authentication": _Form(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
        "content_filter": _Form(
            400, "invalid_request_error", "content_policy_violation", "Your request was rejected by the safety system."
        ),
        "context_length": _Form(
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "This model's maximum context length is 8192 tokens. Please reduce the length of the messages.",
        ),
        "invalid_request": _Form(400, "invalid_request_error", None, "Invalid request."),
        "not_found": _Form(404, "invalid_request_error", "model_not_found", "The model does not exist."),
        "overloaded": _Form(503, "server_error", "server_is_overloaded", "The server is overloaded."),
        "permission": _Form(403, "permission_error", "unsupported_country_region_territory", "Not permitted."),
        "prefill_rejected": _Form(
            400, "invalid_request_error", None, "The last message must not be from the assistant."
        ),
        "quota": _Form(429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
        "rate_limit": _Form(429, "requests", "rate_limit_exceeded", "Rate limit reached."),
        "server_error": _Form(500, "server_error", None, "The server had an error."),
        "timeout": _Form(504, "server_error", "timeout", "The request timed out."),
    },
    "anthropic": {
        "authentication": _Form(401, "authentication_error", None, "invalid x-api-key"),
        "content_filter": _Form(400, "invalid_request_error", None, "Output blocked by content filtering policy"),
        "context_length": _Form(
            400, "invalid_request_error", None, "prompt is too long: 210000 tokens > 200000 maximum"
        ),
        "invalid_request": _Form(400, "invalid_request_error", None, "Invalid request."),
        "not_found": _Form(404, "not_found_error", None, "model: not found"),
        "overloaded": _Form(529, "overloaded_error", None, "Overloaded"),
        "permission": _Form(403, "permission_error", None, "Not permitted."),
        "prefill_rejected": _Form(
            400,
            "invalid_request_error",
            None,
            "This model does not support assistant message prefill. The conversation must end with a user message.",
        ),
        "quota": _Form(429, "rate_limit_error", "enforced_spend_limit_reached", "The spend limit was reached."),
        "rate_limit": _Form(429, "rate_limit_error", None, "This request would exceed your rate limit."),
        "server_error": _Form(500, "api_error", None, "Internal server error"),
        "timeout": _Form(504, "timeout_error", None, "The request timed out."),
    },
    "google": {
        "authentication": _Form(400, "INVALID_ARGUMENT", "API_KEY_INVALID", "API key not valid."),
        "content_filter": _Form(400, "INVALID_ARGUMENT", None, "The prompt was blocked by safety settings."),
        "context_length": _Form(
            400,
            "INVALID_ARGUMENT",
            None,
            "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).",
        ),
        "invalid_request": _Form(400, "INVALID_ARGUMENT", None, "Request contains an invalid argument."),
        "not_found": _Form(404, "NOT_FOUND", None, "The model is not found."),
        "overloaded": _Form(503, "UNAVAILABLE", None, "The model is overloaded. Please try again later."),
        "permission": _Form(403, "PERMISSION_DENIED", None, "Not permitted."),
        "prefill_rejected": _Form(400, "INVALID_ARGUMENT", None, "Please ensure that the last turn is from the user."),
        "quota": _Form(
            429, "RESOURCE_EXHAUSTED", "GenerateRequestsPerDayPerProjectPerModel", "You exceeded your current quota."
        ),
        "rate_limit": _Form(429, "RESOURCE_EXHAUSTED", None, "Resource has been exhausted."),
        "server_error": _Form(500, "INTERNAL", None, "An internal error has occurred."),
        "timeout": _Form(504, "DEADLINE_EXCEEDED", None, "The deadline expired."),
    },
}

_KINDS: Mapping[int, ErrorKind] = {
    400: "invalid_request",
    401: "authentication",
    403: "permission",
    404: "not_found",
    408: "timeout",
    429: "rate_limit",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}


def error_status(family: Family, error: ErrorReply) -> int:
    """The status of an error reply."""
    return error.status if error.status is not None else _form(family, error).status


def error_headers(family: Family, error: ErrorReply) -> list[tuple[str, str]]:
    """The headers that tell when to come back, and the reply's own."""
    headers: list[tuple[str, str]] = []
    if family != "google":
        if error.retry_after_ms is not None:
            headers.append(("retry-after-ms", f"{error.retry_after_ms:g}"))
        if error.retry_after is not None:
            headers.append(("retry-after", _seconds(error.retry_after)))
    return [*headers, *error.headers]


def error_body(family: Family, error: ErrorReply) -> bytes:
    """The body of an error reply."""
    if error.body is not None:
        return error.body
    return compact(_error_object(family, error)).encode()


def error_event(call: Call, error: ErrorReply) -> Event:
    """The error as an event of a stream."""
    if error.body is not None:
        return Event(error.body.decode(), "error" if call.family == "anthropic" else None)
    if call.api is Api.RESPONSES:
        form = _form("openai", error)
        fields: JsonObject = {"code": form.code or form.type, "message": form.message, "param": None}
        return Event(compact({"type": "error", "sequence_number": 0, **fields}), "error")
    name = "error" if call.family == "anthropic" else None
    return Event(compact(_error_object(call.family, error)), name)


def _error_object(family: Family, error: ErrorReply) -> JsonObject:
    form = _form(family, error)
    if family == "anthropic":
        inner: JsonObject = {"type": form.type, "message": form.message}
        if form.code is not None:
            inner["details"] = {"error_code": form.code}
        return {"type": "error", "error": inner, "request_id": "req_fault"}
    if family == "google":
        google: JsonObject = {"code": form.status, "message": form.message, "status": form.type}
        if details := _google_details(form, error):
            google["details"] = details
        return {"error": google}
    return {"error": {"message": form.message, "type": form.type, "param": None, "code": form.code}}


def _google_details(form: _Form, error: ErrorReply) -> list[JsonObject]:
    details: list[JsonObject] = []
    prefix = "type.googleapis.com/google.rpc."
    if form.code is not None and form.status == 429:
        details.append({"@type": f"{prefix}QuotaFailure", "violations": [{"quotaId": form.code}]})
    elif form.code is not None:
        details.append({"@type": f"{prefix}ErrorInfo", "reason": form.code, "domain": "googleapis.com"})
    delay = error.retry_after
    if delay is None and error.retry_after_ms is not None:
        delay = error.retry_after_ms / 1000
    if delay is not None:
        details.append({"@type": f"{prefix}RetryInfo", "retryDelay": f"{_seconds(delay)}s"})
    return details


def _form(family: Family, error: ErrorReply) -> _Form:
    """The table's words with the reply's own in their place."""
    kind = error.kind
    if kind is None:
        default: ErrorKind = "server_error"
        kind = _KINDS.get(error.status, default) if error.status is not None else default
    if kind not in get_args(ErrorKind):
        raise ValueError(f"unknown error kind {kind!r}; known: {', '.join(cast('tuple[str]', get_args(ErrorKind)))}")
    form = _FORMS[family][kind]
    return _Form(
        error.status if error.status is not None else form.status,
        error.type if error.type is not None else form.type,
        error.code if error.code is not None else form.code,
        error.message if error.message is not None else form.message,
    )


def _seconds(value: float | str) -> str:
    """Whole seconds as an integer, else milliseconds kept."""
    if isinstance(value, str):
        return value
    return str(int(value)) if value == int(value) else f"{value:.3f}"
