"""PromptCaching: what goes over the wire, what comes of it, and what it tells."""

import json
import logging
from dataclasses import replace
from decimal import Decimal
from typing import Any

import anyio
import httpx
import pytest

from llmprod import (
    Anthropic,
    EmbedRequest,
    GenerateRequest,
    Google,
    InvalidArgument,
    LoopClock,
    Message,
    OpenAI,
    OpenAICompatible,
    Static,
    Tool,
)
from llmprod.decisions import CachedContentLost, PrefixVolatile
from llmprod.mechanisms.cache_ledger import PromptCacheStats
from llmprod.mechanisms.cache_prices import CachePrices
from llmprod.providers.openai_compatible import PROFILES
from llmprod.types import File, Image, Text, ToolCall
from llmprod.wrapper import Phase, Stack, lint
from llmprod.wrappers.attempt_timeout import AttemptTimeout
from llmprod.wrappers.prompt_caching import PromptCaching
from llmprod.wrappers.retry import Retry
from tests.wrappers.helpers import context
from tests.wrappers.vendors import AnthropicVendor, GoogleVendor, OpenAIVendor, google_error

LONG = "Answer as the handbook says. " * 400  # 2,900 tokens
OTHER = "Answer as the old book says. " * 400
MARK = {"cache_control": {"type": "ephemeral"}}
HOUR = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
BREAK = {"prompt_cache_breakpoint": {"mode": "explicit"}}
TOOLS = (
    Tool(name="search", description="Find", parameters={"type": "object", "properties": {"q": {"type": "string"}}}),
    Tool(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}),
)
PRICES = CachePrices(
    fresh=Decimal(2), read=Decimal("0.1"), write=Decimal("2.5"), write_1h=Decimal(4), output=Decimal(10)
)


def caching(**options: Any) -> PromptCaching:
    return PromptCaching(**{"clock": LoopClock(), **options})


def anthropic(vendor: AnthropicVendor, model: str = "claude-sonnet-5-5") -> Anthropic:
    return Anthropic(model, api_key="k", http=vendor.http())


def openai(vendor: OpenAIVendor, model: str, **options: Any) -> OpenAI:
    return OpenAI(model, api_key="k", http=vendor.http(), **options)


def ask(*said: str, system: str | None = LONG, **fields: Any) -> GenerateRequest:
    """A conversation: the user begins, and they take turns."""
    turns = [Message.assistant(text) if place % 2 else Message.user(text) for place, text in enumerate(said)]
    head = [] if system is None else [Message.system(system)]
    return GenerateRequest(messages=(*head, *turns), **fields)


async def send(provider: Any, request: Any, **options: Any) -> Any:
    response = await provider.send(request, context(**options))
    return await response.read()


# ---- Anthropic -------------------------------------------------------------------------------------------------------


async def test_anthropic_bytes() -> None:
    vendor = AnthropicVendor()
    await send(caching()(anthropic(vendor)), ask("Hello", tools=TOOLS[:1], max_tokens=9))
    expected = {
        "model": "claude-sonnet-5-5",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello", **MARK}]}],
        "system": [{"type": "text", "text": LONG, **MARK}],
        "tools": [{"name": "search", "input_schema": TOOLS[0].parameters, "description": "Find"}],
    }
    assert vendor.requests[0].content == json.dumps(expected, separators=(",", ":")).encode()


async def test_a_conversation_reads_all_but_its_last_turn() -> None:
    vendor, wrapper = AnthropicVendor(), caching(prices=PRICES)
    provider = wrapper(anthropic(vendor))
    said: list[str] = []
    for turn in range(6):
        said.append(f"Question {turn} " * 50)
        response = await send(provider, ask(*said))
        if turn:
            assert response.usage.cache_read > 2900
            assert response.usage.input == 0
        said.append("Yes.")
        await anyio.sleep(60)
    stats = wrapper.stats()
    assert (stats.calls, stats.misses, stats.unknown) == (6, 0, 0)
    assert stats.written == wrapper.stats("anthropic:claude-sonnet-5-5").written < 4100
    by_hand = (Decimal(stats.read) * PRICES.reading + stats.written * PRICES.writing + 60 * PRICES.answering) / 10**6
    assert stats.cost == by_hand
    assert stats.saved == (stats.read * Decimal("1.9") - stats.written * Decimal("0.5")) / 10**6
    assert stats.saved > 0


async def test_a_turn_of_fifty_blocks_is_still_found() -> None:
    vendor = AnthropicVendor()
    provider = caching()(anthropic(vendor))
    request = ask("Go")
    await send(provider, request)
    messages = list(request.messages)
    for number in range(24):
        call = ToolCall(f"t{number}", "search", "{}")
        messages += [Message.assistant(call), Message.tool(call, f"result {number}")]
    response = await send(provider, GenerateRequest(messages=tuple(messages), tools=()))
    blocks = [block for turn in vendor.bodies[-1]["messages"] for block in turn["content"]]
    marks = [place for place, block in enumerate(blocks) if "cache_control" in block]
    assert marks == [18, 33, 48]
    assert response.usage.cache_read > 2900
    longest = [b - a for a, b in zip([0, *marks], marks, strict=False)]
    assert max(longest) <= 20


async def test_nothing_is_marked_below_the_minimum() -> None:
    vendor = AnthropicVendor()
    await send(caching()(anthropic(vendor)), ask("Hello", system="Be brief."))
    assert b"cache_control" not in vendor.requests[0].content
    await send(caching()(anthropic(vendor, "claude-haiku-4-5")), ask("Hello"))  # 2,900 of 4,096
    assert b"cache_control" not in vendor.requests[1].content


async def test_tools_alone_are_marked() -> None:
    vendor = AnthropicVendor()
    tool = Tool(name="long", description=LONG, parameters={"type": "object"})
    await send(caching(conversations=False)(anthropic(vendor)), ask("Hello", system=None, tools=(*TOOLS, tool)))
    assert ["cache_control" in one for one in vendor.bodies[0]["tools"]] == [False, False, True]
    assert vendor.bodies[0]["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]


@pytest.mark.parametrize(
    "request_",
    [
        ask("Hello", extra={"anthropic": {"cache_control": {"type": "ephemeral", "ttl": "1h"}}}),
        ask("Hello", extra={"anthropic": {"system": [{"type": "text", "text": LONG, **HOUR}]}}),
        GenerateRequest(messages=(Message("system", (Text(LONG, meta={"anthropic": HOUR}),)), Message.user("Hello"))),
        GenerateRequest(
            messages=(Message.user(LONG),),
            tools=(Tool(name="t", parameters={"type": "object"}, meta={"anthropic": HOUR}),),
        ),
    ],
    ids=["automatic", "system", "part", "tool"],
)
async def test_marks_by_hand_are_left_alone(request_: GenerateRequest) -> None:
    bare, wrapped = AnthropicVendor(), AnthropicVendor()
    await send(anthropic(bare), request_)
    await send(caching()(anthropic(wrapped)), request_)
    assert wrapped.requests[0].content == bare.requests[0].content
    assert wrapped.requests[0].content.count(b'"cache_control"') == 1


async def test_an_hour_where_the_gaps_are_longer_than_five_minutes() -> None:
    vendor = AnthropicVendor()
    provider = caching()(anthropic(vendor))
    for number in range(6):
        await send(provider, ask(f"Question {number}"))
        await anyio.sleep(900)
    kinds = [body["system"][0]["cache_control"] for body in vendor.bodies]
    assert kinds[0] == MARK["cache_control"]
    assert kinds[-1] == HOUR["cache_control"]
    assert (await send(provider, ask("Last"))).usage.cache_read > 2800
    await anyio.sleep(2)
    for _ in range(200):  # traffic picks up, and five minutes are enough again
        await send(provider, ask("Often"))
        await anyio.sleep(1)
    assert vendor.bodies[-1]["system"][0]["cache_control"] == MARK["cache_control"]


@pytest.mark.parametrize("ttl", ["5m", "1h"])
async def test_a_lifetime_that_was_asked_for(ttl: str) -> None:
    vendor = AnthropicVendor()
    await send(caching(ttl=ttl)(anthropic(vendor)), ask("Hello"))
    body = vendor.bodies[0]
    assert [body["system"][0]["cache_control"], body["messages"][0]["content"][0]["cache_control"]] == [
        (HOUR if ttl == "1h" else MARK)["cache_control"]
    ] * 2


async def test_slow_conversations_get_an_hour_and_it_comes_first() -> None:
    vendor = AnthropicVendor()
    provider = caching()(anthropic(vendor))
    said: list[str] = []
    for turn in range(8):
        said += [f"Question {turn}"]
        await send(provider, ask(*said))
        said += ["Yes."]
        await anyio.sleep(1200)
    last = vendor.bodies[-1]
    assert last["system"][0]["cache_control"]["ttl"] == "1h"
    assert last["messages"][-1]["content"][-1]["cache_control"]["ttl"] == "1h"


async def test_questions_that_nobody_continues_are_not_written() -> None:
    vendor = AnthropicVendor()
    wrapper = caching()
    provider = wrapper(anthropic(vendor))
    for number in range(30):
        await send(provider, ask(f"Question {number} " * 300))
    first, last = vendor.bodies[0], vendor.bodies[-1]
    assert "cache_control" in first["messages"][0]["content"][0]
    assert "cache_control" not in last["messages"][0]["content"][0]
    assert "cache_control" in last["system"][0]


@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "gpt-5.6"])
async def test_where_nothing_ever_comes_again_the_fee_is_not_paid_for_ever(model: str) -> None:
    vendor: Any = AnthropicVendor() if model.startswith("claude") else OpenAIVendor(breakpoints=True)
    provider = caching(lint=False)(anthropic(vendor) if model.startswith("claude") else openai(vendor, model))
    window = 600 if model.startswith("claude") else 3600

    async def written(number: int) -> int:
        await anyio.sleep(window / 30)
        response = await send(provider, ask("Hello", system=f"It is {number}. {LONG}"))
        return int(response.usage.cache_written)

    first = [await written(number) for number in range(60)]
    assert all(first[:30])
    assert not any(first[31:])
    await anyio.sleep(window)
    assert await written(60)  # tried anew
    for _ in range(60):  # what comes again is worth it
        await anyio.sleep(window / 30)
        response = await send(provider, ask("Hello"))
    assert response.usage.cache_read > 2800


async def test_stable_messages_of_ones_own() -> None:
    vendor = AnthropicVendor()
    document = Message.user(LONG)
    provider = caching(stable=lambda request: 2, conversations=False)(anthropic(vendor))
    await send(provider, GenerateRequest(messages=(Message.system("Be brief."), document, Message.user("Why?"))))
    assert vendor.bodies[0]["messages"][0]["content"] == [
        {"type": "text", "text": LONG, **MARK},
        {"type": "text", "text": "Why?"},
    ]


# ---- OpenAI ----------------------------------------------------------------------------------------------------------


async def test_openai_bytes_before_5_6() -> None:
    vendor = OpenAIVendor(breakpoints=False)
    await send(caching(retention="24h")(openai(vendor, "gpt-5.4")), ask("Hello"))
    body = vendor.bodies[0]
    key = body.pop("prompt_cache_key")
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")
    assert body == {
        "model": "gpt-5.4",
        "messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "Hello"}],
        "prompt_cache_retention": "24h",
    }


async def test_keys_tell_applications_and_prefixes_apart_and_nothing_else() -> None:
    async def key(request: GenerateRequest, **options: Any) -> str:
        vendor = OpenAIVendor(breakpoints=False)
        await send(caching(**options)(openai(vendor, "gpt-5.4")), request)
        return str(vendor.bodies[0]["prompt_cache_key"])

    same = await key(ask("Hello"))
    assert same == await key(ask("Something else"))
    assert same != await key(ask("Hello"), app="other")
    assert same != await key(ask("Hello", system=OTHER))
    assert await key(ask("Hello", system="Short.")) != await key(ask("Bye", system="Short."))


async def test_a_busy_prefix_gets_several_keys_and_a_conversation_keeps_its_own() -> None:
    vendor = OpenAIVendor(breakpoints=False)
    provider = caching()(openai(vendor, "gpt-5.4"))
    for number in range(120):
        await send(provider, ask(f"Question {number}"))
    keys = [body["prompt_cache_key"] for body in vendor.bodies]
    assert len(set(keys[:15])) == 1
    assert len(set(keys[60:])) == 8
    assert len({key[:32] for key in keys}) == 1
    await send(provider, ask("Question 119", "Yes.", "And now?"))
    assert vendor.bodies[-1]["prompt_cache_key"] == keys[-1]


async def test_breakpoints_from_5_6_on() -> None:
    vendor, wrapper = OpenAIVendor(breakpoints=True), caching()
    provider = wrapper(openai(vendor, "gpt-5.6-terra"))
    first = await send(provider, ask("One"))
    second = await send(provider, ask("One", "Yes.", "Two"))
    assert first.usage.cache_write > 2800
    body = vendor.bodies[1]
    assert body["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": LONG, **BREAK}]},
        {"role": "user", "content": [{"type": "text", "text": "One", **BREAK}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two"},
    ]
    assert body.keys() == {"model", "messages", "prompt_cache_key"}
    assert second.usage.cache_read == first.usage.total_input
    # Without the marks nothing would be found: the rule that costs so many so much.
    bare = OpenAIVendor(breakpoints=True)
    await send(openai(bare, "gpt-5.6-terra"), ask("One"))
    assert (await send(openai(bare, "gpt-5.6-terra"), ask("Two"))).usage.cache_read == 0
    assert (await send(provider, ask("Two"))).usage.cache_read > 2800
    assert wrapper.stats().misses == 0


async def test_one_shot_prompts_are_not_written_from_5_6_on() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    provider = caching(conversations=False)(openai(vendor, "gpt-5.6"))
    response = await send(provider, ask("Hello " * 800, system="Be brief."))
    assert vendor.bodies[0]["prompt_cache_options"] == {"mode": "explicit"}
    assert response.usage.cache_write == 0
    response = await send(provider, ask("Hello " * 800))
    assert 0 < response.usage.cache_write < 3000
    assert (await send(provider, ask("Bye " * 800))).usage.cache_write == 0


async def test_options_and_retention_never_go_together() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    own = {"prompt_cache_retention": "24h"}
    provider = caching(conversations=False, retention="24h")(openai(vendor, "gpt-5.6"))
    await send(provider, ask("Hello"))
    assert "prompt_cache_retention" not in vendor.bodies[0]
    await send(provider, ask("Hello", extra={"openai": own}))
    assert vendor.bodies[1]["prompt_cache_retention"] == "24h"
    assert "prompt_cache_options" not in vendor.bodies[1]
    older = OpenAIVendor(breakpoints=False)
    options = {"prompt_cache_options": {"mode": "implicit"}}
    await send(caching(retention="24h")(openai(older, "gpt-5.4")), ask("Hello", extra={"openai": options}))
    assert "prompt_cache_retention" not in older.bodies[0]


async def test_what_stands_in_extra_wins() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    own = {"prompt_cache_key": "mine", "prompt_cache_options": {"mode": "implicit"}}
    await send(caching()(openai(vendor, "gpt-5.6")), ask("Hello", extra={"openai": own}))
    body = vendor.bodies[0]
    assert (body["prompt_cache_key"], body["prompt_cache_options"]) == ("mine", {"mode": "implicit"})
    assert b"breakpoint" not in vendor.requests[0].content


async def test_results_and_images_can_carry_a_breakpoint() -> None:
    vendor = OpenAIVendor(breakpoints=True)
    call = ToolCall("t1", "search", "{}")
    image = Image(data=b"png", media_type="image/png")
    said = (Message.system(LONG), Message.user("Look", image), Message.assistant(call), Message.tool(call, "Found"))
    provider = caching()(openai(vendor, "gpt-5.6"))
    await send(provider, GenerateRequest(messages=said))
    await send(provider, GenerateRequest(messages=(*said, Message.assistant("It is."), Message.user("Sure?"))))
    first, second = (body["messages"] for body in vendor.bodies)
    assert first[1]["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}, **BREAK},
    ]
    assert second[3]["content"] == [{"type": "text", "text": "Found", **BREAK}]


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
async def test_a_profile_with_a_key_alone(responses: bool) -> None:
    from dataclasses import replace

    vendor = OpenAIVendor(breakpoints=False)
    if responses:  # the other API of OpenAI, whose answer does not matter here
        model: Any = openai(vendor, "gpt-5.6", api="responses")
        kind, breakpoint_ = "openai-responses", True
    else:
        profile = replace(PROFILES["generic"], kind="mistral", prompt_cache="key")
        model = OpenAICompatible("mistral-large", base_url="http://x/v1", profile=profile, http=vendor.http())
        kind, breakpoint_ = "mistral", False
    provider = caching()(model)
    if responses:
        vendor.answer = lambda request: httpx.Response(500, json={"error": {"message": "no"}})  # type: ignore[method-assign]
        with pytest.raises(Exception, match="server error"):
            await send(provider, ask("Hello"))
        system = vendor.bodies[0]["input"][0]
        assert system["content"] == [{"type": "input_text", "text": LONG, **BREAK}]
    else:
        await send(provider, ask("Hello"))
    assert model.kind == kind
    assert len(vendor.bodies[0]["prompt_cache_key"]) == 32
    assert (b"breakpoint" in vendor.requests[0].content) is breakpoint_


@pytest.mark.parametrize("profile", ["generic", "vllm", "azure"])
async def test_other_servers_get_their_requests_as_they_are(profile: str) -> None:
    bare, wrapped = OpenAIVendor(breakpoints=False), OpenAIVendor(breakpoints=False)
    for vendor, around in ((bare, lambda model: model), (wrapped, caching())):
        model = OpenAICompatible("m", base_url="http://x/v1", profile=profile, api_key="k", http=vendor.http())
        await send(around(model), ask("Hello", tools=TOOLS))
    assert wrapped.requests[0].content == bare.requests[0].content


# ---- Gemini ----------------------------------------------------------------------------------------------------------


def google(vendor: GoogleVendor) -> Google:
    return Google("gemini-2.5-flash", api_key="k", base_url="https://g.test/v1beta", http=vendor.http())


async def test_gemini_is_left_alone_unless_asked() -> None:
    bare, wrapped = GoogleVendor(), GoogleVendor()
    await send(google(bare), ask("Hello", tools=TOOLS))
    await send(caching()(google(wrapped)), ask("Hello", tools=TOOLS))
    assert [request.content for request in wrapped.requests] == [request.content for request in bare.requests]


async def test_gemini_keeps_content_and_it_is_deleted_on_close() -> None:
    vendor, wrapper = GoogleVendor(), caching(keep_content=600)
    provider = wrapper(google(vendor))
    for said in ("One", "Two"):
        response = await send(provider, ask(said, tools=TOOLS[:1]))
        assert response.usage.cache_read > 2800
    made, used = vendor.bodies[0], vendor.bodies[1]
    assert made == {
        "model": "models/gemini-2.5-flash",
        "ttl": "600s",
        "systemInstruction": {"parts": [{"text": LONG}]},
        "tools": [
            {
                "functionDeclarations": [
                    {"name": "search", "description": "Find", "parametersJsonSchema": TOOLS[0].parameters}
                ]
            }
        ],
    }
    assert used == {"contents": [{"role": "user", "parts": [{"text": "One"}]}], "cachedContent": "cachedContents/c0"}
    assert len(vendor.requests) == 3
    assert vendor.requests[0].headers["x-goog-api-key"] == "k"
    await provider.aclose()
    assert vendor.deleted == ["cachedContents/c0"]
    assert wrapper.stats().read > 5600


async def test_gemini_content_of_one_text_and_another_meta_is_another() -> None:
    vendor = GoogleVendor()
    provider = caching(keep_content=600, stable=lambda _: 2)(google(vendor))
    film = File(url="https://files.test/v1", media_type="video/mp4")
    for start in ("0s", "60s", "0s"):
        clip = replace(film, meta={"google": {"videoMetadata": {"startOffset": start}}})
        request = ask("What happens?")
        system, *rest = request.messages
        await send(provider, replace(request, messages=(system, Message("user", (clip,)), *rest)))
    used = [body["cachedContent"] for body in vendor.bodies if "cachedContent" in body]
    assert used == ["cachedContents/c0", "cachedContents/c1", "cachedContents/c0"]


async def test_gemini_content_is_made_anew_before_it_ends() -> None:
    vendor = GoogleVendor()
    provider = caching(keep_content=600)(google(vendor))
    await send(provider, ask("One"))
    await anyio.sleep(590)
    await send(provider, ask("Two"))
    assert [body["cachedContent"] for body in vendor.bodies if "contents" in body] == [
        "cachedContents/c0",
        "cachedContents/c1",
    ]


async def test_gemini_content_that_is_gone_costs_one_more_attempt() -> None:
    vendor = GoogleVendor()
    provider = caching(keep_content=600)(google(vendor))
    await send(provider, ask("One"))
    vendor.contents.clear()
    response = await send(provider, ask("Two"))
    assert response.text == "Yes."
    lost = [decision for decision in response.trace.decisions if isinstance(decision, CachedContentLost)]
    assert [(one.error, one.made) for one in lost] == [("PermissionDenied", True)]
    assert "systemInstruction" in vendor.bodies[-1]


async def test_gemini_content_that_can_not_be_made() -> None:
    vendor = GoogleVendor()
    vendor.refuses = lambda: httpx.Response(400, json=google_error(400, "INVALID_ARGUMENT", "too small"))
    provider = caching(keep_content=600)(google(vendor))
    for _ in range(3):
        response = await send(provider, ask("One"))
        assert response.text == "Yes."
    assert len([request for request in vendor.requests if request.url.path.endswith("cachedContents")]) == 1
    await provider.aclose()
    assert vendor.deleted == []


async def test_gemini_while_one_makes_it_nobody_waits() -> None:
    vendor = GoogleVendor()
    model = google(vendor)
    make = model.keep_content

    async def slowly(*args: Any) -> tuple[str, int]:
        await anyio.sleep(30)
        return await make(*args)

    model.keep_content = slowly  # type: ignore[method-assign]
    provider = caching(keep_content=600)(model)
    async with anyio.create_task_group() as group:
        group.start_soon(send, provider, ask("One"))
        await anyio.sleep(1)
        started = anyio.current_time()
        await send(provider, ask("Two"))
        assert anyio.current_time() == started
        group.cancel_scope.cancel()
    await send(provider, ask("Three"))  # a cancelled maker leaves the place to the next
    assert "cachedContents/c0" in vendor.contents


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": TOOLS, "tool_choice": "required"},
        {"extra": {"google": {"cachedContent": "cachedContents/mine"}}},
        {"system": "Short."},
    ],
    ids=["forced tool", "own content", "short"],
)
async def test_gemini_what_can_not_be_kept(fields: dict[str, Any]) -> None:
    vendor = GoogleVendor()
    vendor.answer = lambda request: httpx.Response(429, json=google_error(429, "RESOURCE_EXHAUSTED", "no"))  # type: ignore[method-assign]
    with pytest.raises(Exception, match="rate limit"):
        await send(caching(keep_content=600)(google(vendor)), ask("Hello", **fields))
    assert [request.url.path.rpartition(":")[2] for request in vendor.requests] == ["generateContent"]


# ---- what it tells ---------------------------------------------------------------------------------------------------


async def test_a_volatile_beginning_is_told_once_for_each_prompt(caplog: pytest.LogCaptureFixture) -> None:
    vendor = AnthropicVendor()
    provider = caching()(anthropic(vendor))

    async def told(second: int, prompt: tuple[str, str] | None) -> list[Any]:
        request = ask("Hello", system=f"It is 2026-11-28 10:00:{second:02}. {LONG}")
        response = await send(provider, request, prompt=prompt)
        return [(one.kind, one.place) for one in response.trace.decisions if isinstance(one, PrefixVolatile)]

    with caplog.at_level(logging.WARNING, logger="llmprod"):
        assert await told(1, ("support", "1")) == []
        assert await told(2, ("support", "1")) == [("timestamp", "messages[0]")]
        assert await told(3, ("support", "1")) == []
        assert await told(4, None) == []
        assert await told(5, None) == [("timestamp", "messages[0]")]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "handbook" not in caplog.text
    assert "10:00" not in caplog.text


async def test_other_prompts_under_one_name_are_no_finding() -> None:
    provider = caching()(anthropic(AnthropicVendor()))
    for system in (LONG, OTHER, LONG + "More."):
        response = await send(provider, ask("Hello", system=system))
        assert response.trace.decisions == []


async def test_misses_are_counted_and_believed() -> None:
    vendor, wrapper = AnthropicVendor(), caching()
    provider = wrapper(anthropic(vendor))
    await send(provider, ask("Hello"))
    vendor.entries.clear()  # the provider forgot
    await send(provider, ask("Hello"))
    stats = wrapper.stats()
    assert (stats.misses, stats.read) == (1, 0)
    assert 2800 < stats.missed < 3000


async def test_sorted_tools() -> None:
    vendor = AnthropicVendor()
    provider = caching(sort_tools=True)(anthropic(vendor))
    turned = Tool(name="add", parameters=dict(reversed(TOOLS[1].parameters.items())))
    await send(provider, ask("Hello", tools=TOOLS))
    await send(provider, ask("Hello", tools=(turned, TOOLS[0])))
    assert vendor.requests[0].content == vendor.requests[1].content
    assert [tool["name"] for tool in vendor.bodies[0]["tools"]] == ["add", "search"]


async def test_without_prices_or_usage_money_is_unknown() -> None:
    wrapper = caching()
    await send(wrapper(anthropic(AnthropicVendor())), ask("Hello"))
    assert (wrapper.stats().saved, wrapper.stats().unpriced) == (None, 1)
    named = caching(prices={"claude-other": PRICES})
    await send(named(anthropic(AnthropicVendor())), ask("Hello"))
    assert (named.stats().saved, named.stats().unpriced) == (None, 1)
    silent = caching(prices=PRICES)
    await send(silent(Static("Yes.")), ask("Hello"))
    assert silent.stats().calls + silent.stats().unknown == 1
    assert silent.stats("nobody") == PromptCacheStats()


async def test_embeddings_pass() -> None:
    from llmprod.testing.scripted import Scripted

    scripted = Scripted(then="Hi")
    await send(caching()(scripted), EmbedRequest(inputs=("a",)))
    assert scripted.calls == 1


async def test_streams_settle_at_their_end() -> None:
    from llmprod.events import Finish, UsageUpdate
    from llmprod.testing.scripted import Scripted
    from llmprod.usage import Usage

    wrapper = caching(prices=PRICES)
    provider = wrapper(Scripted(then=["Hi", UsageUpdate(Usage(input=5, cache_read=2000, output=1)), Finish("stop")]))
    response = await provider.send(ask("Hello", stream=True), context())
    assert wrapper.stats() == PromptCacheStats()
    await response.read()
    assert (wrapper.stats().calls, wrapper.stats().read) == (1, 2000)


def test_where_it_stands() -> None:
    model = anthropic(AnthropicVendor())
    assert PromptCaching.phase is Phase.VENDOR
    assert lint(Stack(Retry(), AttemptTimeout(), PromptCaching())(model)) == []
    assert repr(PromptCaching()) == "PromptCaching(auto)"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("app", ""),
        ("stable", 3),
        ("conversations", "never"),
        ("ttl", "2h"),
        ("retention", "1h"),
        ("requests_per_key", 0),
        ("keep_content", 0),
        ("sort_tools", 1),
        ("lint", None),
        ("prices", 3),
        ("prices", {"m": 3}),
        ("warmth", {}),
    ],
)
def test_wrong_options(option: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as told:
        PromptCaching(**{option: value})
    assert told.value.field.startswith(option)


async def test_cancelled_anywhere_nothing_is_left() -> None:
    from tests.cancel_sweep import sweep

    def scenario() -> Any:
        vendor = GoogleVendor()
        model = google(vendor)
        make = model.keep_content

        async def slowly(*args: Any) -> tuple[str, int]:
            await anyio.sleep(1)
            made = await make(*args)
            await anyio.sleep(1)
            return made

        model.keep_content = slowly  # type: ignore[method-assign]
        provider = caching(keep_content=600)(model)
        kept = provider._kept  # type: ignore[attr-defined]

        async def run() -> None:
            await send(provider, ask("One"))

        def check() -> None:
            # A maker that was cancelled leaves the place to the next call; what it may have made ends by itself.
            assert None not in {content.name for content in kept._kept.values()}

        return run(), check

    assert await sweep(scenario) >= 2
