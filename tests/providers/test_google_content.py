"""Content that the Gemini API keeps: made, named, deleted; and what goes wrong with it."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from llmprod import (
    BadRequest,
    ConnectError,
    GenerateRequest,
    Google,
    HTTPOptions,
    InvalidArgument,
    Message,
    ProtocolError,
    Tool,
)
from llmprod.testing.fault_server import FaultServer

REQUEST = GenerateRequest(
    messages=(Message.system("Be brief."), Message.user("A document"), Message.user("A question")),
    tools=(Tool(name="search", parameters={"type": "object"}),),
)


def model(answer: Callable[[httpx.Request], httpx.Response]) -> Google:
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Google("tunedModels/mine", api_key="k", base_url="http://g/v1beta", http=HTTPOptions(client=client))


async def test_a_document_is_kept_too() -> None:
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json={"name": "cachedContents/x-1"})

    assert await model(answer).keep_content(REQUEST, 2, 90.5) == ("cachedContents/x-1", 0)
    assert seen == [
        {
            "model": "tunedModels/mine",
            "ttl": "90.5s",
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [{"role": "user", "parts": [{"text": "A document"}]}],
            "tools": [{"functionDeclarations": [{"name": "search"}]}],
        }
    ]


@pytest.mark.parametrize(
    "body",
    [{}, {"name": None}, {"name": "models/x"}, {"name": "cachedContents/../models"}, [], "x", {"usageMetadata": 3}],
    ids=repr,
)
async def test_answers_without_a_name(body: Any) -> None:
    with pytest.raises(ProtocolError) as told:
        await model(lambda request: httpx.Response(200, json=body)).keep_content(REQUEST, 1, 60)
    assert told.value.provider == "google"


async def test_refusals_are_the_apis() -> None:
    refused = {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "too small"}}
    google = model(lambda request: httpx.Response(400, json=refused))
    with pytest.raises(BadRequest) as told:
        await google.keep_content(REQUEST, 1, 60)
    assert (told.value.provider, told.value.model) == ("google", "tunedModels/mine")
    with pytest.raises(BadRequest):
        await google.drop_content("cachedContents/x")


@pytest.mark.parametrize("name", ["", "x", "cachedContents/", "cachedContents/a/b", "models/x", "cachedContents/a?b=c"])
async def test_only_its_own_names_are_deleted(name: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise AssertionError("sent")

    with pytest.raises(InvalidArgument):
        await model(answer).drop_content(name)


async def test_a_deletion_is_a_delete_on_a_real_socket_too() -> None:
    with FaultServer() as server:
        google = Google("gemini-3-flash", api_key="k", base_url=f"{server.url}/v1beta")
        with pytest.raises(Exception) as told:
            await google.drop_content("cachedContents/x")
        assert getattr(told.value, "status", None) in (404, 405, 501)
        await google.aclose()
        url = server.url
    with pytest.raises(ConnectError):
        await Google("m", api_key="k", base_url=url).drop_content("cachedContents/x")
