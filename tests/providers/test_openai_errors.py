"""What OpenAI and its imitators say when they fail, and what it is taken for."""

import json
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from llmprod import errors
from llmprod.context import Context
from llmprod.providers._http import HTTPOptions
from llmprod.providers.openai import OpenAI
from llmprod.providers.openai_chat import ChatCodec
from llmprod.providers.openai_compatible import PROFILES, OpenAICompatible
from llmprod.providers.openai_responses import ResponsesCodec
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.verdict import Action, classify
from tests.providers.codec_drive import ASK, Scripted, decode_stream, raised, whole
from tests.providers.openai_scripts import RESPONSES, answered, named, responses_events, said, sse

CHAT = ChatCodec("m", PROFILES["generic"])
RESPONSES_CODEC = ResponsesCodec("m")


def told(
    message: str = "m", kind: str | None = None, code: Any = None, param: str | None = None, **more: Any
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, "param": param, **more}}


TABLE: list[tuple[int, Any, type[errors.CallError]]] = [
    (401, told(kind="invalid_request_error", code="invalid_api_key"), errors.AuthenticationFailed),
    (403, told(code="unsupported_country_region_territory"), errors.PermissionDenied),
    (404, told(code="model_not_found"), errors.NotFound),
    (429, told(kind="requests", code="rate_limit_exceeded"), errors.RateLimited),
    (429, told(kind="insufficient_quota", code="insufficient_quota"), errors.QuotaExhausted),
    (429, told(code="billing_hard_limit_reached"), errors.QuotaExhausted),
    (429, told(code="credit_balance_exhausted"), errors.QuotaExhausted),
    (429, told(code="organization_spend_limit_exceeded"), errors.QuotaExhausted),
    (429, told(code="project_spend_limit_exceeded"), errors.QuotaExhausted),
    (429, told(code="organization_usage_limit_exceeded"), errors.QuotaExhausted),
    (400, told(code="context_length_exceeded"), errors.ContextTooLong),
    (400, told("This model's maximum context length is 8192 tokens."), errors.ContextTooLong),
    (
        400,
        told("the request exceeds the available context size", "exceed_context_size_error", 400),
        errors.ContextTooLong,
    ),
    (400, told(code="content_policy_violation"), errors.ContentFiltered),
    (400, told(code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}), errors.ContentFiltered),
    (400, told(code=None, innererror={"code": "ResponsibleAIPolicyViolation"}), errors.ContentFiltered),
    (400, told(kind="invalid_request_error", param="temperature"), errors.BadRequest),
    (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, errors.BadRequest),
    (
        400,
        {"object": "error", "message": "bad", "type": "BadRequestError", "param": None, "code": 400},
        errors.BadRequest,
    ),
    (404, {"object": "error", "message": "no such model", "type": "NotFoundError", "code": 404}, errors.NotFound),
    (429, {"error": "Model is overloaded", "error_type": "overloaded"}, errors.RateLimited),
    (424, {"error": "Request failed during generation", "error_type": "generation"}, errors.BadRequest),
    (503, told(code="server_is_overloaded"), errors.Overloaded),
    (529, told(), errors.Overloaded),
    (500, told(kind="server_error"), errors.ServerError),
    (502, None, errors.ServerError),
    (504, {}, errors.ServerError),
    (500, [], errors.ServerError),
    (402, told("Insufficient credits", code=402), errors.QuotaExhausted),
    (403, told(code=403, metadata={"reasons": ["violence"], "flagged_input": "secret"}), errors.ContentFiltered),
    (404, [told(code=404, status="NOT_FOUND")], errors.NotFound),
    (400, {"error": "model requires more system memory"}, errors.BadRequest),
]


@pytest.mark.parametrize(("status", "body", "kind"), TABLE)
def test_statuses(status: int, body: Any, kind: type[errors.CallError]) -> None:
    for codec in (CHAT, RESPONSES_CODEC):
        error = codec.error(status, {"x-request-id": "req_1"}, body)
        assert type(error) is kind
        assert (error.status, error.request_id, error.in_stream) == (status, "req_1", False)


def test_what_an_error_carries() -> None:
    error = CHAT.error(
        429, {"retry-after": "2"}, told("Your prompt 'secret'", "requests", "rate_limit_exceeded", "messages")
    )
    assert (error.code, error.param, error.retry_after) == ("rate_limit_exceeded", "messages", 2.0)
    assert error.provider_message == "Your prompt 'secret'"
    assert "secret" not in f"{error}{error!r}"
    assert CHAT.error(429, {"apim-request-id": "az_1"}, None).request_id == "az_1"
    assert classify(CHAT.error(500, {"x-should-retry": "false"}, None)) != classify(CHAT.error(500, {}, None))


IN_STREAM: list[tuple[Any, type[errors.CallError], int]] = [
    (told(kind="server_error"), errors.ServerError, 500),
    (told(code="rate_limit_exceeded"), errors.RateLimited, 429),
    (told(code="insufficient_quota"), errors.QuotaExhausted, 429),
    (told(code="server_is_overloaded"), errors.Overloaded, 503),
    (told(code="context_length_exceeded"), errors.ContextTooLong, 400),
    (told(kind="overloaded_error"), errors.Overloaded, 503),
    (told(kind="invalid_request_error"), errors.BadRequest, 400),
    (told(kind="authentication_error"), errors.AuthenticationFailed, 401),
    (told(code=502), errors.ServerError, 502),
    (told(code="429"), errors.RateLimited, 429),
    (told(code=402), errors.QuotaExhausted, 402),
    (told(code=403, metadata={"reasons": ["violence"]}), errors.ContentFiltered, 403),
    (told(kind="BadRequestError", code=400), errors.BadRequest, 400),
    (told(http_status_code=422), errors.BadRequest, 422),
    ({"object": "error", "message": "m", "type": "InternalServerError", "code": 500}, errors.ServerError, 500),
    ({"error": "Model is overloaded", "error_type": "overloaded"}, errors.Overloaded, 503),
    ({"error": "an error was encountered while running the model"}, errors.ServerError, 500),
    (told(kind="of_a_kind_yet_unknown"), errors.ServerError, 500),
    ([told(code=503)], errors.Overloaded, 503),
]


@pytest.mark.parametrize(("event", "kind", "status"), IN_STREAM)
@pytest.mark.parametrize("first", [True, False])
def test_errors_inside_a_stream(event: Any, kind: type[errors.CallError], status: int, first: bool) -> None:
    before = [] if first else [{"choices": [{"delta": {"content": "a"}}]}]
    error = raised(lambda: decode_stream(CHAT, [sse([*before, event])]))
    assert (type(error), error.status, error.in_stream) == (kind, status, True)


@pytest.mark.parametrize(("body", "kind", "status"), IN_STREAM)
def test_errors_in_a_200_body(body: Any, kind: type[errors.CallError], status: int) -> None:
    error = raised(lambda: whole(CHAT, body))
    assert (type(error), error.status, error.in_stream) == (kind, status, False)
    assert type(raised(lambda: CHAT.decode(EmbedRequest(inputs=("a",)), body))) is kind


def test_an_error_beside_a_finish_reason() -> None:
    event = {**told(code=502), "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}
    assert raised(lambda: decode_stream(CHAT, [sse([event])])).status == 502


def test_an_event_named_error() -> None:
    error = raised(lambda: decode_stream(CHAT, [b'event: error\ndata: {"message": "m", "code": 503}\n\n']))
    assert (type(error), error.status) == (errors.Overloaded, 503)


# ---- Responses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"type": "error", "code": "server_error", "message": "m", "param": None}, errors.ServerError),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "m", "param": None}, errors.RateLimited),
        (
            {"type": "error", "error": {"type": "invalid_request_error", "code": "insufficient_quota"}},
            errors.QuotaExhausted,
        ),
        ({"type": "error", "code": None, "message": "m", "param": None}, errors.ServerError),
        (told(code="rate_limit_exceeded"), errors.RateLimited),
    ],
)
def test_error_events_of_responses(event: dict[str, Any], kind: type[errors.CallError]) -> None:
    events = responses_events(RESPONSES["text"])[:6]
    body = b"".join([named(events), b"event: error\ndata: ", json.dumps(event).encode(), b"\n\n"])
    error = raised(lambda: decode_stream(RESPONSES_CODEC, [body]))
    assert type(error) is kind
    assert error.in_stream
    assert error.status is not None


FAILURES: list[tuple[str, type[errors.CallError]]] = [
    ("server_error", errors.ServerError),
    ("rate_limit_exceeded", errors.RateLimited),
    ("invalid_prompt", errors.BadRequest),
    ("data_residency_mismatch", errors.PermissionDenied),
    ("bio_policy", errors.ContentFiltered),
    ("misalignment_policy_violation", errors.ContentFiltered),
    ("image_content_policy_violation", errors.ContentFiltered),
    ("vector_store_timeout", errors.ServerError),
    ("invalid_image", errors.BadRequest),
    ("failed_to_download_image", errors.BadRequest),
    ("something_new", errors.ServerError),
]


@pytest.mark.parametrize(("code", "kind"), FAILURES)
def test_failed_responses(code: str, kind: type[errors.CallError]) -> None:
    body = answered(said("It"), status="failed", error={"code": code, "message": "m"})
    for error in (
        raised(lambda: whole(RESPONSES_CODEC, body)),
        raised(lambda: decode_stream(RESPONSES_CODEC, [named(responses_events(body))])),
    ):
        assert type(error) is kind
        assert error.code == code
        assert error.usage is not None


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_failed_without_a_reason(status: str) -> None:
    assert type(raised(lambda: whole(RESPONSES_CODEC, answered(status=status)))) is errors.ServerError


# ---- over HTTP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_through_the_provider(stream: bool) -> None:
    body = json.dumps(told("secret prompt", "requests", "rate_limit_exceeded")).encode()
    async with httpx.AsyncClient(transport=Scripted([body], kind="application/json", status=429)) as client:
        async with aclosing(OpenAI("gpt-5.6", api_key="sk-secret-key", http=HTTPOptions(client=client))) as provider:
            with pytest.raises(errors.RateLimited) as caught:
                await provider.send(GenerateRequest(messages=ASK.messages, stream=stream), Context.new())
    error = caught.value
    assert (error.provider, error.model, error.code) == ("openai", "gpt-5.6", "rate_limit_exceeded")
    assert "secret" not in f"{error}{error!r}{provider!r}"


async def test_an_error_as_the_first_event_is_raised_by_send() -> None:
    async with httpx.AsyncClient(transport=Scripted([sse([told(code="server_is_overloaded")])])) as client:
        async with aclosing(
            OpenAICompatible("m", base_url="http://server/v1", http=HTTPOptions(client=client))
        ) as provider:
            with pytest.raises(errors.Overloaded) as caught:
                await provider.send(GenerateRequest(messages=ASK.messages, stream=True), Context.new())
    assert caught.value.in_stream
    assert classify(caught.value).action is Action.RETRY_SAME


async def test_an_error_after_text_interrupts() -> None:
    pieces = [sse([event], done=False) for event in ({"choices": [{"delta": {"content": "It is"}}]}, told(code=502))]
    async with httpx.AsyncClient(transport=Scripted(pieces)) as client:
        async with aclosing(
            OpenAICompatible("m", base_url="http://server/v1", http=HTTPOptions(client=client))
        ) as provider:
            response = await provider.send(GenerateRequest(messages=ASK.messages, stream=True), Context.new())
            with pytest.raises(errors.StreamInterrupted) as caught:
                await response.read()
    assert caught.value.status == 502
    assert response.text == "It is"
