"""What PromptCaching and ServiceTier put into bodies is what the vendors' SDKs send for the same arguments."""

from __future__ import annotations

import json
import typing
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from google.genai import types as google_types
from openai.types import chat, responses
from pydantic import ConfigDict, TypeAdapter, with_config

from llmprod import Anthropic, Context, GenerateRequest, Google, HTTPOptions, Message, OpenAI, Tool
from llmprod.types import Image, ToolCall
from llmprod.wrappers.prompt_caching import PromptCaching
from llmprod.wrappers.service_tier import ServiceTier

LONG = "Answer as the handbook says. " * 400
CALL = ToolCall("call_1", "search", '{"q": "x"}')
REQUEST = GenerateRequest(
    messages=(
        Message.system(LONG),
        Message.user("Look", Image(data=b"png", media_type="image/png")),
        Message.assistant("I will.", CALL),
        Message.tool(CALL, "Found it"),
        Message.assistant("It is there."),
        Message.user("Where?"),
    ),
    tools=(Tool(name="search", description="Find", parameters={"type": "object", "properties": {}}),),
    max_tokens=100,
)


async def sent(provider: Any, request: GenerateRequest = REQUEST, tier: Any = "flex") -> dict[str, Any]:
    """The body that goes out of both wrappers."""
    seen: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content))
        return httpx2.Response(500, json={"error": {"message": "enough"}})

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    wrapped = ServiceTier(tier)(PromptCaching(ttl="1h", retention="24h")(provider(HTTPOptions(client=client))))
    with pytest.raises(Exception, match="server error"):
        await wrapped.send(request, Context.new())
    await client.aclose()
    assert len(seen) == 1
    return typing.cast("dict[str, Any]", seen[0])


def known(kind: Any, value: dict[str, Any]) -> None:
    """The SDK's type knows every key of the value, and takes it."""
    unknown = value.keys() - typing.get_type_hints(kind).keys()
    assert not unknown, f"{kind.__name__} has no {unknown}"
    TypeAdapter(with_config(ConfigDict(arbitrary_types_allowed=True))(kind)).validate_python(value)


class Twin:
    """A transport that keeps what an SDK sends."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.client = httpx2.Client(transport=httpx2.MockTransport(self._answer))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(json.loads(request.content))
        return httpx2.Response(400, json={"error": {"message": "enough"}})


async def test_anthropic() -> None:
    body = await sent(lambda http: Anthropic("claude-sonnet-5-5", api_key="k", http=http), tier="priority")
    twin = Twin()
    with pytest.raises(anthropic.BadRequestError):
        anthropic.Anthropic(api_key="k", http_client=twin.client, max_retries=0).messages.create(**body)
    assert twin.bodies == [body]
    known(anthropic.types.TextBlockParam, body["system"][0])
    known(anthropic.types.TextBlockParam, body["messages"][-1]["content"][-1])
    assert body["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert body["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert body["service_tier"] == "auto"
    tool = GenerateRequest(
        messages=(Message.user("x"),), tools=(Tool(name="t", description=LONG, parameters={"type": "object"}),)
    )
    body = await sent(lambda http: Anthropic("claude-sonnet-5-5", api_key="k", http=http), tool)
    known(anthropic.types.ToolParam, body["tools"][0])
    assert body["tools"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


@pytest.mark.parametrize("model", ["gpt-5.4", "gpt-5.6-terra"])
async def test_chat_completions(model: str) -> None:
    body = await sent(lambda http: OpenAI(model, api_key="k", http=http))
    twin = Twin()
    with pytest.raises(openai.BadRequestError):
        openai.OpenAI(api_key="k", http_client=twin.client, max_retries=0).chat.completions.create(**body)
    assert twin.bodies == [body]
    assert body["service_tier"] == "flex"
    assert ("prompt_cache_retention" in body) is (model == "gpt-5.4")
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    for part in parts:
        kinds = {
            "text": chat.ChatCompletionContentPartTextParam,
            "image_url": chat.ChatCompletionContentPartImageParam,
        }
        known(kinds[part["type"]], part)
    marked = sum("prompt_cache_breakpoint" in part for part in parts)
    assert marked == (2 if model == "gpt-5.6-terra" else 0)


async def test_responses() -> None:
    body = await sent(lambda http: OpenAI("gpt-5.6-terra", api="responses", api_key="k", http=http))
    twin = Twin()
    with pytest.raises(openai.BadRequestError):
        openai.OpenAI(api_key="k", http_client=twin.client, max_retries=0).responses.create(**body)
    assert twin.bodies == [body]
    assert body["service_tier"] == "flex"
    assert len(body["prompt_cache_key"]) == 32
    system, user = body["input"][0]["content"], body["input"][1]["content"]
    known(responses.ResponseInputTextParam, system[-1])
    known(responses.ResponseInputImageParam, user[-1])
    assert system[-1]["prompt_cache_breakpoint"] == {"mode": "explicit"}
    output = next(item for item in body["input"] if item.get("type") == "function_call_output")["output"]
    known(responses.ResponseInputTextParam, output[-1])
    assert output[-1]["prompt_cache_breakpoint"] == {"mode": "explicit"}


async def test_one_shot_options() -> None:
    seen: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content))
        return httpx2.Response(500, json={})

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    for api in ("chat", "responses"):
        model = OpenAI("gpt-5.6", api=api, api_key="k", http=HTTPOptions(client=client))  # type: ignore[arg-type]
        with pytest.raises(Exception, match="server error"):
            await PromptCaching(conversations=False)(model).send(REQUEST, Context.new())
    await client.aclose()
    known(chat.completion_create_params.PromptCacheOptions, seen[0]["prompt_cache_options"])
    known(responses.response_create_params.PromptCacheOptions, seen[1]["prompt_cache_options"])


async def test_gemini() -> None:
    body = await sent(lambda http: Google("gemini-3.8-flash", api_key="k", http=http))
    assert google_types.ServiceTier(body["serviceTier"]) is google_types.ServiceTier.FLEX


async def test_cached_content_of_gemini() -> None:
    """The body that makes it is the SDK's, but for the ways of writing a role and a name."""
    seen: list[tuple[str, str, Any]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append((request.method, request.url.path, json.loads(request.content) if request.content else None))
        return httpx2.Response(200, json={"name": "cachedContents/abc", "usageMetadata": {"totalTokenCount": 2900}})

    from google import genai

    sync = httpx2.Client(transport=httpx2.MockTransport(answer))
    sdk = genai.Client(
        api_key="k",
        http_options=google_types.HttpOptions(base_url="http://test", api_version="v1beta", httpx_client=sync),
    )
    declaration = {"name": "search", "description": "Find", "parametersJsonSchema": REQUEST.tools[0].parameters}
    sdk.caches.create(
        model="gemini-2.5-flash",
        config=google_types.CreateCachedContentConfig(
            ttl="600s",
            system_instruction=LONG,
            tools=[
                google_types.Tool(
                    function_declarations=[
                        google_types.FunctionDeclaration(
                            name="search",
                            description="Find",
                            parameters_json_schema=declaration["parametersJsonSchema"],
                        )
                    ]
                )
            ],
        ),
    )
    sdk.caches.delete(name="cachedContents/abc")
    client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    tool = Tool(name="search", description="Find", parameters={"type": "object", "properties": {"q": {}}})
    ours = Google("gemini-2.5-flash", api_key="k", base_url="http://test/v1beta", http=HTTPOptions(client=client))
    request = GenerateRequest(messages=REQUEST.messages, tools=(tool,))
    assert await ours.keep_content(request, 1, 600) == ("cachedContents/abc", 2900)
    await ours.drop_content("cachedContents/abc")
    await client.aclose()
    (method, path, theirs), (gone, gone_path, _), (our_method, our_path, made), (our_gone, our_gone_path, nothing) = (
        seen
    )
    assert (method, path) == (our_method, our_path) == ("POST", "/v1beta/cachedContents")
    assert (gone, gone_path) == (our_gone, our_gone_path) == ("DELETE", "/v1beta/cachedContents/abc")
    assert nothing is None
    theirs["systemInstruction"].pop("role", None)
    # Here, unlike elsewhere, the SDK leaves the schema's name in its own spelling; the API takes both.
    spelled = theirs["tools"][0]["functionDeclarations"][0]
    spelled["parametersJsonSchema"] = spelled.pop("parameters_json_schema")
    assert spelled["parametersJsonSchema"] == {"type": "object", "properties": {}}
    spelled["parametersJsonSchema"] = tool.parameters
    assert made == theirs
