"""The exceptions that functions raise, turned into this library's errors and back.

Wrappers decide by the library's errors; the caller gets the SDK's own exception, so that the ``except`` clauses around
a call keep working when it is decorated. Recognised by class names and attributes: no SDK is imported. What isn't
recognised is the application's own and passes through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from json import JSONDecodeError
from typing import Any, cast

from llmprod import errors
from llmprod._functions.sdk import get
from llmprod.errors import CallError, LLMProdError
from llmprod.providers import _anthropic_errors, _google_errors
from llmprod.providers._openai_errors import openai_error
from llmprod.trace import Trace

__all__ = ["explain", "for_caller"]

_SDKS = frozenset({"openai", "anthropic", "google", "mistralai", "cohere", "groq", "litellm", "together", "ollama"})
_HTTP = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "urllib"})

_CONNECT_TIMEOUT = {"ConnectTimeout", "ConnectTimeoutError", "ConnectionTimeoutError", "PoolTimeout"}
_TIMEOUT = {"TimeoutException", "Timeout", "TimeoutError", "ServerTimeoutError"}
_CONNECT = {"ConnectError", "ProxyError", "ClientConnectorError", "NewConnectionError", "SSLError", "URLError"}
_STATUS = {"HTTPStatusError", "HTTPError", "ClientResponseError"}
_READ = {
    "NetworkError", "ProtocolError", "ConnectionError", "ChunkedEncodingError", "IncompleteRead", "StreamError",
    "ClientPayloadError", "ClientConnectionError",
}  # fmt: skip
_NO_ANSWER = {"DecodingError", "ContentDecodingError", "JSONDecodeError", "InvalidJSONError"}


def explain(error: BaseException, *, target: str, in_stream: bool = False) -> Exception | None:
    """Return the library's error for an SDK's, or None where ``error`` is none of an SDK's or is ours already."""
    if isinstance(error, LLMProdError):
        return None
    known = _of_sdk(error, in_stream) or _of_http(error, in_stream) or _of_python(error, in_stream)
    if known is None:
        return None
    known.provider = target
    known.in_stream = in_stream
    known.silent = not in_stream and isinstance(known, (errors.CallTimeout, errors.ConnectError))
    known.__cause__ = error
    setattr(known, _MARK, True)
    return known


_MARK = "_explains_its_cause"


def for_caller(error: BaseException, trace: Trace) -> BaseException:
    """Return what the caller is to see: the SDK's own exception where ``error`` explains one, else ``error``.

    The SDK's exception gets a note that sums the attempts up, and the trace as ``llmprod_trace``.
    """
    if isinstance(error, LLMProdError):
        error.trace = trace
    own = error.__cause__ if getattr(error, _MARK, False) else None
    if not isinstance(own, Exception):
        return error
    try:
        own.llmprod_trace = trace  # type: ignore[attr-defined]
        own.add_note(_summary(trace))
    except (AttributeError, TypeError):  # a class without room for attributes
        pass
    return own


def _summary(trace: Trace) -> str:
    entries = trace.entries
    told = ", ".join(
        " ".join(str(word) for word in (entry.error or entry.state, entry.status) if word is not None)
        for entry in entries
    )
    count = len(trace.attempts)
    return f"llmprod: {count} attempt{'' if count == 1 else 's'}: {told}"


# ---- what there is to look at ----------------------------------------------------------------------------------------


def _names(error: BaseException, roots: frozenset[str]) -> set[str]:
    """Names of those of the error's classes that come from one of the packages ``roots``."""
    return {kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in roots}


def _headers(response: Any) -> dict[str, str]:
    headers = get(response, "headers")
    if not isinstance(headers, Mapping):
        items = get(headers, "items")
        if not callable(items):
            return {}
        headers = dict(cast("Any", items()))
    told = cast("Mapping[Any, Any]", headers)
    return {str(name).lower(): str(value) for name, value in told.items()}


def _status(error: BaseException) -> int | None:
    for holder in (error, get(error, "response")):
        for name in ("status_code", "status", "code"):
            status = get(holder, name)
            if isinstance(status, int) and 300 <= status < 600:
                return status
    return None


def _body(response: Any) -> Any:
    """Return the JSON of a response that has been read."""
    try:
        return response.json()
    except Exception:  # noqa: BLE001 - not read, not JSON, not a method: there is nothing to learn from it
        return None


# ---- by where it comes from ------------------------------------------------------------------------------------------


def _of_sdk(error: BaseException, in_stream: bool) -> CallError | None:
    names = _names(error, _SDKS)
    if not names:
        foreign = isinstance(get(error, "status_code"), int) and get(get(error, "response"), "headers") is not None
        if foreign and not _names(error, _HTTP):  # an SDK that isn't listed, built as they all are
            return openai_error(_status(error), _headers(get(error, "response")), _told(error), in_stream=in_stream)
        return _malformed(error, in_stream)
    headers = _headers(get(error, "response"))
    if "APITimeoutError" in names or "Timeout" in names:
        return _caused(error, in_stream) or errors.CallTimeout(detail="the SDK's own timeout")
    if "APIConnectionError" in names:
        return _caused(error, in_stream) or errors.ReadError(detail=type(error).__name__)
    if "APIResponseValidationError" in names or "UnknownApiResponseError" in names:
        return errors.ProtocolError(detail=type(error).__name__, status=_status(error))
    if not names & {"APIError", "ApiError", "APIStatusError", "SDKError", "ResponseError"}:
        return _malformed(error, in_stream)
    status = _status(error)
    module = type(error).__module__.partition(".")[0]
    if module == "anthropic" or _anthropic_like(error):
        return _anthropic_errors.error_from(status, headers, get(error, "body"), in_stream=in_stream)
    if module == "google":
        details = get(error, "details")
        body: Any = details if get(details, "error") is not None else {"error": details}
        return _google_errors.error_from(status, headers, body, in_stream=in_stream)
    return openai_error(status, headers, _told(error), in_stream=in_stream)


def _anthropic_like(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] == "anthropic" for kind in type(error).__mro__)


def _told(error: BaseException) -> dict[str, Any]:
    """Return the error object of an OpenAI-like exception, which keeps it bare, whole or only as attributes."""
    body = get(error, "body")
    if isinstance(body, Mapping):
        told = cast("Mapping[str, Any]", body)
        return dict(told) if "error" in told else {"error": dict(told)}
    attributes = {name: get(error, name) for name in ("code", "type", "param", "message")}
    return {"error": {name: value for name, value in attributes.items() if value is not None}}


def _caused(error: BaseException, in_stream: bool) -> CallError | None:
    cause = error.__cause__
    return None if cause is None else _of_http(cause, in_stream) or _of_python(cause, in_stream)


def _of_http(error: BaseException, in_stream: bool) -> CallError | None:
    names = _names(error, _HTTP)
    if not names:
        return None
    detail = type(error).__name__
    if names & _CONNECT_TIMEOUT:
        return errors.ConnectTimeout(detail=detail)
    if names & _TIMEOUT:
        return errors.IdleTimeout(detail=detail) if in_stream else errors.CallTimeout(detail=detail)
    if names & _NO_ANSWER:
        return errors.ProtocolError(detail=detail)
    if names & _STATUS:
        status = _status(error)
        if status is not None:
            response = get(error, "response")
            headers = _headers(response) or _headers(error)
            return openai_error(status, headers, _body(response), in_stream=in_stream)
    if names & _CONNECT:
        return errors.ConnectError(detail=detail)
    return errors.ReadError(detail=detail) if names & _READ else None


def _of_python(error: BaseException, in_stream: bool) -> CallError | None:
    detail = type(error).__name__
    if isinstance(error, TimeoutError) or detail == "TooSlowError":
        return errors.IdleTimeout(detail=detail) if in_stream else errors.CallTimeout(detail=detail)
    if isinstance(error, ConnectionRefusedError) or detail == "gaierror":
        return errors.ConnectError(detail=detail)
    if isinstance(error, ConnectionError) or detail in ("IncompleteRead", "BrokenResourceError", "EndOfStream"):
        return errors.ReadError(detail=detail)
    return None


def _malformed(error: BaseException, in_stream: bool) -> CallError | None:
    """An SDK lets its JSON parser's exception through: the answer is none. The application's own JSON is its affair."""
    if isinstance(error, (JSONDecodeError, UnicodeDecodeError)) and any(
        module.partition(".")[0] in _SDKS for module in _modules(error)
    ):
        return errors.ProtocolError(detail=f"{type(error).__name__} inside the SDK", in_stream=in_stream)
    return None


def _modules(error: BaseException) -> Iterator[str]:
    step = error.__traceback__
    while step is not None:
        yield str(step.tb_frame.f_globals.get("__name__", ""))
        step = step.tb_next
