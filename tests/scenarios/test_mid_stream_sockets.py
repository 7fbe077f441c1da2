"""Streams that break in the middle over real sockets: what Resume makes of the bytes of three wire formats."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from llmprod import (
    Anthropic,
    AsyncClient,
    AttemptTimeout,
    Capabilities,
    Failover,
    OpenAI,
    OpenAICompatible,
    Retry,
    Stack,
    StreamInterrupted,
    Tool,
)
from llmprod.events import Reset, Seam
from llmprod.mechanisms.resume_plan import ContinueText, Restart, SynthesizeToolUse, TruncateBeforeTool
from llmprod.testing.fault_server import (
    Answer,
    Behaviour,
    Cut,
    ErrorReply,
    FaultServer,
    Malformed,
    RequestRecord,
    Stall,
    StreamError,
    ToolCall,
    words,
)
from llmprod.wrappers.resume import Resume
from llmprod.wrappers.throughput_guard import ThroughputGuard

TEXT = words(12)
CALL = ToolCall(id="call_1", name="weather", arguments={"city": "Oslo", "unit": "celsius", "days": 3})
WEATHER = Tool(name="weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
PACE = Behaviour(answer=Answer(text=TEXT), token_delay=0.005)

Make = Callable[[str], Any]
APIS: dict[str, Make] = {
    "anthropic": lambda url: Anthropic("claude-haiku-4-5", base_url=url, api_key="none"),
    "vllm": lambda url: OpenAICompatible("model", base_url=f"{url}/v1", profile="vllm"),
}
FAULTS = {
    "reset": replace(PACE, cut=Cut(after=5)),
    "clean end": replace(PACE, cut=Cut(after=5, how="clean")),
    "closed": replace(PACE, cut=Cut(after=5, how="close")),
    "error event": replace(PACE, stream_error=StreamError(at=5)),
    "malformed": replace(PACE, malformed=Malformed(at=5)),
    "stall": replace(PACE, stall=Stall(after=5)),
}


def prefix_of(record: RequestRecord) -> str | None:
    """The text that the server is asked to continue, from the body that was sent."""
    last: Any = record.body["messages"][-1]  # type: ignore[index]
    if last["role"] != "assistant":
        return None
    content = last["content"]
    if isinstance(content, str):
        assert record.body["continue_final_message"] is True
        assert record.body["add_generation_prompt"] is False
        return content
    return "".join(block["text"] for block in content)


def continuing(answer: Answer = PACE.answer) -> Callable[[RequestRecord], Behaviour]:
    """A healthy server that says the text from where the prefix ends."""

    def behave(record: RequestRecord) -> Behaviour:
        prefix = prefix_of(record)
        if prefix is None:
            return replace(PACE, answer=answer)
        assert TEXT.startswith(prefix)
        assert prefix == prefix.rstrip()
        return replace(PACE, answer=replace(answer, text=TEXT[len(prefix) :]))

    return behave


def stack(resume: Resume, *targets: Any, idle: float = 60) -> AsyncClient:
    limited = [AttemptTimeout(idle=idle)(target) for target in targets]
    return AsyncClient(Stack(resume, Retry(2))(Failover(*limited)))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("api", APIS)
async def test_text_is_continued_by_the_fallback(api: str, fault: str) -> None:
    with FaultServer(FAULTS[fault]) as bad, FaultServer(continuing()) as good:
        idle = 1.5 if fault == "stall" else 60
        client = stack(Resume(ContinueText()), APIS[api](bad.url), APIS[api](good.url), idle=idle)
        async with client.stream("Say twelve words.", system="Be brief.", max_tokens=50) as response:
            events = [event async for event in response]
        await client.aclose()
        assert response.text == TEXT
        assert sum(isinstance(event, Seam) for event in events) == 1
        assert response.usage is not None
        assert (bad.request_count, good.request_count) == (1, 1)
        sent = good.requests[0].body
        first = bad.requests[0].body
        if api == "anthropic":
            assert sent["system"] == first["system"]
        assert sent["messages"][:-1] == first["messages"]  # type: ignore[index]
        # At least as many tokens as events were shown are taken off the limit.
        assert sent["max_tokens"] == 50 - 5


@pytest.mark.parametrize("api", APIS)
async def test_a_fallback_that_refuses_prefill(api: str) -> None:
    def refuses(record: RequestRecord) -> Behaviour:
        return Behaviour(error=ErrorReply(kind="prefill_rejected")) if prefix_of(record) is not None else PACE

    with FaultServer(FAULTS["reset"]) as bad, FaultServer(refuses) as good:
        client = stack(Resume(ContinueText()), APIS[api](bad.url), APIS[api](good.url))
        with pytest.raises(StreamInterrupted) as caught:
            async with client.stream("Say twelve words.") as response:
                await response.read()
        assert len(caught.value.partial_text.split()) == 5
        assert type(caught.value.__cause__).__name__ == "ReadError"
        await client.aclose()
        client = stack(Resume(ContinueText(), Restart()), APIS[api](bad.url), APIS[api](good.url))
        async with client.stream("Say twelve words.") as response:
            events = [event async for event in response]
        await client.aclose()
        assert response.text == TEXT
        assert sum(isinstance(event, Reset) for event in events) == 1


async def test_a_fallback_without_prefill_is_not_asked_for_it() -> None:
    with FaultServer(FAULTS["reset"]) as bad, FaultServer(continuing()) as good:
        targets = (APIS["anthropic"](bad.url), OpenAI("m", base_url=f"{good.url}/v1", api_key="none"))
        client = stack(Resume(ContinueText(), Restart(), resumes=2), *targets)
        async with client.stream("Say twelve words.") as response:
            events = [event async for event in response]
        await client.aclose()
        # The first target alone can continue, and cuts again; then the answer starts over, at the other one.
        assert [type(event) for event in events if isinstance(event, (Seam, Reset))] == [Seam, Reset]
        assert (response.text, response.provider) == (TEXT, "openai:m")
        assert all(record.body["messages"][-1]["role"] == "user" for record in good.requests)  # type: ignore[index]


def _tool_events(make: Make) -> int:
    """How many events the call makes on the wire."""
    with FaultServer(Behaviour(answer=Answer(text=TEXT, tool_calls=[CALL]))) as server:

        async def run() -> None:
            async with AsyncClient(make(server.url)) as client, client.stream("?", tools=[WEATHER]) as response:
                await response.read()

        anyio.run(run)
        return server.requests[0].events - 12


@pytest.mark.parametrize("api", APIS)
async def test_a_tool_call_is_whole_or_not_there(api: str) -> None:
    answer = Answer(text=TEXT, tool_calls=[CALL])
    pieces = await anyio.to_thread.run_sync(_tool_events, APIS[api])
    assert pieces >= 2
    plans = (SynthesizeToolUse(), TruncateBeforeTool())
    for shown in range(1, pieces + 1):
        broken = replace(PACE, answer=answer, cut=Cut(after=12 + shown))
        with FaultServer(broken) as bad, FaultServer(continuing(answer)) as good:
            client = stack(Resume(*plans), APIS[api](bad.url), APIS[api](good.url))
            async with client.stream("Weather?", tools=[WEATHER]) as response:
                await response.read()
            await client.aclose()
            assert response.text == TEXT
            (call,) = response.tool_calls
            assert call.input == {"city": "Oslo", "unit": "celsius", "days": 3}
            assert response.finish_reason == "tool_calls"
            assert good.request_count == (shown < pieces), "whole arguments need nobody"


@pytest.mark.parametrize("api", APIS)
async def test_a_break_among_held_words_is_invisible(api: str) -> None:
    with FaultServer(FAULTS["error event"]) as bad, FaultServer(continuing()) as good:
        client = stack(Resume(hold=60), APIS[api](bad.url), APIS[api](good.url))
        async with client.stream("Say twelve words.") as response:
            events = [event async for event in response]
        await client.aclose()
        assert response.text == TEXT
        assert not any(isinstance(event, (Seam, Reset)) for event in events)


@pytest.mark.parametrize("api", APIS)
async def test_a_crawl_is_left_before_it_is_seen(api: str) -> None:
    with FaultServer(replace(PACE, token_delay=0.7)) as bad, FaultServer(continuing()) as good:
        guard = ThroughputGuard(characters_per_second=20, over=2)
        targets = [guard(AttemptTimeout()(APIS[api](url))) for url in (bad.url, good.url)]
        async with AsyncClient(Retry(2)(Failover(*targets))) as client, client.stream("Say twelve words.") as response:
            await response.read()
        assert response.text == TEXT
        assert [entry.error for entry in response.trace.entries] == ["StreamTooSlow", None]


async def test_capabilities_say_what_a_compatible_server_can_do() -> None:
    """vLLM's own Messages API continues a final message too; who knows it of his server says so."""
    able = Capabilities(prefill=True)
    with FaultServer(FAULTS["reset"]) as bad, FaultServer(continuing()) as good:
        targets = [Anthropic("Qwen/Qwen3-8B", base_url=url, capabilities=able) for url in (bad.url, good.url)]
        client = stack(Resume(ContinueText()), *targets)
        async with client.stream("Say twelve words.") as response:
            await response.read()
        await client.aclose()
        assert response.text == TEXT
