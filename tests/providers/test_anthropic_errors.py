"""What Anthropic's errors become."""

from typing import Any

import pytest

from llmprod import errors
from llmprod.providers.anthropic import AnthropicCodec
from tests.providers import anthropic_scripts as scripts
from tests.providers.codec_drive import ASK, frames, raised, streamed

CODEC = AnthropicCodec("claude-opus-5-5")


def told(kind: str, message: str = "secret prose", **more: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **more}, "request_id": "req_9"}


def spend(code: str) -> dict[str, Any]:
    return {"details": {"error_visibility": "user_facing", "error_code": code}}


STATUSES = [
    (400, told("invalid_request_error"), errors.BadRequest),
    (400, told("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), errors.ContextTooLong),
    (
        400,
        told("invalid_request_error", "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
        errors.ContextTooLong,
    ),
    (400, told("invalid_request_error", "Your credit balance is too low to access the API."), errors.QuotaExhausted),
    (401, told("authentication_error"), errors.AuthenticationFailed),
    (402, told("billing_error"), errors.QuotaExhausted),
    (403, told("permission_error"), errors.PermissionDenied),
    (404, told("not_found_error"), errors.NotFound),
    (409, told("conflict_error"), errors.ServerError),
    (413, told("request_too_large"), errors.BadRequest),
    (429, told("rate_limit_error"), errors.RateLimited),
    (429, told("rate_limit_error", **spend("ramp_limit_exceeded")), errors.RateLimited),
    (429, told("rate_limit_error", **spend("enforced_spend_limit_reached")), errors.QuotaExhausted),
    (429, told("rate_limit_error", **spend("contract_spend_limit_reached")), errors.QuotaExhausted),
    (429, told("rate_limit_error", **spend("linked_organization_spend_limit_reached")), errors.QuotaExhausted),
    (500, told("api_error"), errors.ServerError),
    (504, told("timeout_error"), errors.ServerError),
    (529, told("overloaded_error"), errors.Overloaded),
]


@pytest.mark.parametrize(("status", "body", "kind"), STATUSES)
def test_statuses(status: int, body: dict[str, Any], kind: type[errors.CallError]) -> None:
    error = CODEC.error(status, {}, body)
    assert type(error) is kind
    assert error.status == status
    assert error.request_id == "req_9"
    assert body["error"]["message"] not in str(error) + repr(error)
    assert error.provider_message


@pytest.mark.parametrize(("status", "body", "kind"), STATUSES)
def test_inside_a_stream_the_type_implies_the_status(
    status: int, body: dict[str, Any], kind: type[errors.CallError]
) -> None:
    start = scripts.stream(scripts.MESSAGES["text"])[:4]
    for named in (True, False):
        error = raised(lambda named=named: streamed(CODEC, frames([*start, body], named=named)))
        assert type(error) is kind
        assert error.in_stream
        assert error.status == status


def test_codes() -> None:
    assert CODEC.error(529, {}, told("overloaded_error")).code == "overloaded_error"
    assert CODEC.error(429, {}, told("rate_limit_error", **spend("ramp_limit_exceeded"))).code == "ramp_limit_exceeded"
    error = CODEC.error(429, {"retry-after": "7", "request-id": "req_h"}, {"error": {"type": "rate_limit_error"}})
    assert error.retry_after == 7
    assert error.request_id == "req_h"
    assert type(CODEC.error(500, {"x-should-retry": "false"}, told("api_error"))) is errors.ProviderError


@pytest.mark.parametrize("body", [None, [], "text", 3, {}, {"error": "busy"}, {"error": None}, {"detail": "busy"}])
def test_bodies_of_other_makes(body: object) -> None:
    assert type(CODEC.error(502, {}, body)) is errors.ServerError
    assert type(CODEC.error(400, {}, body)) is errors.BadRequest


def test_an_error_in_a_success() -> None:
    error = raised(lambda: CODEC.decode(ASK, told("overloaded_error")))
    assert type(error) is errors.Overloaded
    assert error.status == 529
    untyped = frames([{"error": {"type": "api_error", "message": "x"}}], named=False)
    assert type(raised(lambda: streamed(CODEC, untyped))) is errors.ServerError
    unknown = frames([{"type": "error", "error": {"type": "a_new_error", "message": "x"}}], named=True)
    assert raised(lambda: streamed(CODEC, unknown)).status == 500
