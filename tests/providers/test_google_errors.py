"""What Google's errors become."""

from typing import Any

import pytest

from llmprod import errors
from llmprod.providers.google import GoogleCodec
from llmprod.request import EmbedRequest
from tests.providers import google_scripts as scripts
from tests.providers.codec_drive import ASK, frames, raised, streamed

CODEC = GoogleCodec("gemini-3-flash")
TYPE = "type.googleapis.com/google.rpc."


def told(code: int, status: str, message: str = "secret prose", *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def quota(name: str) -> dict[str, Any]:
    return {"@type": f"{TYPE}QuotaFailure", "violations": [{"quotaMetric": "m", "quotaId": name}]}


RETRY = {"@type": f"{TYPE}RetryInfo", "retryDelay": "14.5s"}
BAD_KEY = {"@type": f"{TYPE}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
MINUTE = quota("GenerateRequestsPerMinutePerProjectPerModel")
DAY = quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier")
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."

BODIES = [
    (told(400, "INVALID_ARGUMENT"), errors.BadRequest, "INVALID_ARGUMENT"),
    (told(400, "INVALID_ARGUMENT", TOO_LONG), errors.ContextTooLong, "INVALID_ARGUMENT"),
    (told(400, "INVALID_ARGUMENT", "API key not valid.", BAD_KEY), errors.AuthenticationFailed, "API_KEY_INVALID"),
    (
        told(400, "FAILED_PRECONDITION", "Enable billing on your project."),
        errors.QuotaExhausted,
        "billing_required",
    ),
    (told(400, "FAILED_PRECONDITION", "Not in your country."), errors.BadRequest, "FAILED_PRECONDITION"),
    (told(401, "UNAUTHENTICATED"), errors.AuthenticationFailed, "UNAUTHENTICATED"),
    (told(403, "PERMISSION_DENIED"), errors.PermissionDenied, "PERMISSION_DENIED"),
    (told(404, "NOT_FOUND"), errors.NotFound, "NOT_FOUND"),
    (told(429, "RESOURCE_EXHAUSTED", "x", MINUTE, RETRY), errors.RateLimited, "RESOURCE_EXHAUSTED"),
    (told(429, "RESOURCE_EXHAUSTED", "x", MINUTE, DAY, RETRY), errors.QuotaExhausted, "quota_exceeded_per_day"),
    (told(499, "CANCELLED"), errors.ServerError, "CANCELLED"),
    (told(500, "INTERNAL"), errors.ServerError, "INTERNAL"),
    (told(503, "UNAVAILABLE", "The model is overloaded."), errors.Overloaded, "UNAVAILABLE"),
    (told(504, "DEADLINE_EXCEEDED"), errors.ServerError, "DEADLINE_EXCEEDED"),
]


@pytest.mark.parametrize(("body", "kind", "code"), BODIES)
def test_bodies(body: dict[str, Any], kind: type[errors.CallError], code: str) -> None:
    status = body["error"]["code"]
    for form in (body, [body]):  # streams wrap their errors in a list
        error = CODEC.error(status, {}, form)
        assert type(error) is kind
        assert (error.status, error.code) == (status, code)
        assert error.retry_after == (14.5 if "RetryInfo" in str(body) else None)
        assert "secret" not in str(error) + repr(error)
        assert error.provider_message == body["error"]["message"]


@pytest.mark.parametrize(("body", "kind", "code"), BODIES)
def test_inside_a_stream(body: dict[str, Any], kind: type[errors.CallError], code: str) -> None:
    start = scripts.stream(scripts.ANSWERS["text"])[:2]
    for events in ([body], [*start, body]):
        error = raised(lambda events=events: streamed(CODEC, frames(events, named=False)))
        assert type(error) is kind
        assert error.in_stream
        assert error.status == body["error"]["code"]


def test_the_status_word_implies_the_number() -> None:
    error = raised(lambda: CODEC.decode(ASK, {"error": {"status": "UNAVAILABLE"}}))
    assert type(error) is errors.Overloaded
    assert error.status == 503
    assert raised(lambda: CODEC.decode(ASK, [{"error": {"message": "x"}}])).status == 500
    assert type(raised(lambda: CODEC.decode(EmbedRequest(inputs=("a",)), BODIES[-2][0]))) is errors.Overloaded


def test_headers() -> None:
    assert CODEC.error(503, {"retry-after": "3"}, None).retry_after == 3
    assert CODEC.error(429, {"retry-after": "3"}, told(429, "RESOURCE_EXHAUSTED", "x", RETRY)).retry_after == 14.5


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        [3],
        "text",
        {},
        {"error": "busy"},
        {"error": {"details": [3, {"@type": 1, "violations": 3}]}},
        {"detail": 1},
    ],
)
def test_bodies_of_other_makes(body: object) -> None:
    assert type(CODEC.error(502, {}, body)) is errors.ServerError
    assert type(CODEC.error(400, {}, body)) is errors.BadRequest
