"""The providers against vLLM's own server: not a server of ours, and its answers are not scripted by us."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field

from llmprod import (
    Anthropic,
    AsyncClient,
    BadRequest,
    CallError,
    Chaos,
    Client,
    ContextTooLong,
    ContinueText,
    NotFound,
    OpenAICompatible,
    Resume,
    Seam,
    TextDelta,
    standard,
)
from tests.engine.engines import plain, sober
from tests.engine.weather import asks_for_the_weather

pytestmark = pytest.mark.vllm


class Animal(BaseModel):
    name: str = Field(max_length=8)  # a random model may write without end
    legs: int = Field(ge=0, le=8)


def chat(url: str, model: str = "tiny") -> AsyncClient:
    return AsyncClient(OpenAICompatible(model, profile="vllm", base_url=f"{url}/v1"))


RUNNING = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
GENERATED = ("vllm:generation_tokens_total",)


def measured(url: str, names: tuple[str, ...]) -> float:
    """Return a sum of the engine's own metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


async def until_running(url: str, holds: Callable[[float], bool]) -> None:
    """Wait until that holds for the number of requests that the engine works on or holds."""
    with anyio.fail_after(120):
        while not holds(measured(url, RUNNING)):  # noqa: ASYNC110 - another process's state
            await anyio.sleep(0.1)


async def test_whole_answer(vllm_server: str) -> None:
    async with chat(vllm_server) as client:
        response = await client.generate("Say something.", max_tokens=16, seed=1, temperature=0)
    assert response.complete
    assert response.text
    assert response.finish_reason == "length"
    assert response.model == "tiny"
    assert response.usage is not None
    assert response.usage.total_output == 16
    assert response.usage.total_input > 0


async def test_stream_equals_whole(vllm_server: str) -> None:
    extra = {"vllm-server": {"ignore_eos": True}}
    options: dict[str, Any] = {"max_tokens": 300, "seed": 7, "temperature": 0, "extra": extra}
    async with chat(vllm_server) as client:
        whole = await client.generate("Count.", **options)
        async with client.stream("Count.", **options) as stream:
            pieces = [event.text async for event in stream if isinstance(event, TextDelta)]
    assert len(pieces) > 1, "not all at once; a busy server makes one piece of several tokens, not of all these"
    assert "".join(pieces) == stream.text == whole.text
    assert stream.parts == whole.parts
    assert stream.finish_reason == whole.finish_reason
    assert stream.usage is not None
    assert whole.usage is not None
    assert (stream.usage.total_input, stream.usage.total_output) == (whole.usage.total_input, whole.usage.total_output)


async def test_synchronous_client(vllm_server: str) -> None:
    def both() -> tuple[str, str]:
        with Client(f"vllm-server:tiny@{vllm_server}/v1") as client:
            whole = client.generate("Count.", max_tokens=8, temperature=0)
            with client.stream("Count.", max_tokens=8, temperature=0) as stream:
                return whole.text, "".join(stream.text_stream())

    whole, streamed = await anyio.to_thread.run_sync(both)
    assert whole == streamed != ""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_tool_call(vllm_server: str, stream: bool) -> None:
    async with chat(vllm_server) as client:
        await asks_for_the_weather(client, "vllm-server", stream=stream)


async def test_json_schema(vllm_server: str, tiny_model: Path) -> None:
    extra = {"vllm-server": {"logit_bias": sober(tiny_model)}}
    async with chat(vllm_server) as client:
        response = await client.generate("An animal.", output=Animal, max_tokens=400, extra=extra)
    assert isinstance(response.parsed, Animal)


async def test_logprobs(vllm_server: str) -> None:
    async with chat(vllm_server) as client:
        whole = await client.generate("Count.", max_tokens=6, temperature=0, logprobs=3)
        async with client.stream("Count.", max_tokens=6, temperature=0, logprobs=3) as stream:
            await stream.read()
    assert len(whole.logprobs) == len(stream.logprobs) == 6
    assert all(token.logprob <= 0 and len(token.top) == 3 for token in whole.logprobs)
    assert [token.token for token in whole.logprobs] == [token.token for token in stream.logprobs]


async def test_stop(vllm_server: str) -> None:
    async with chat(vllm_server) as client:
        free = await client.generate("Count.", max_tokens=24, temperature=0)
        mark = free.text[len(free.text) // 2 :][:4]
        stopped = await client.generate("Count.", max_tokens=24, temperature=0, stop=mark)
    assert stopped.finish_reason == "stop"
    assert mark not in stopped.text


async def test_errors_are_classified(vllm_server: str) -> None:
    async with chat(vllm_server, "no-such-model") as client:
        with pytest.raises(NotFound):
            await client.generate("Hello.", max_tokens=4)
    async with chat(vllm_server) as client:
        with pytest.raises(ContextTooLong):
            await client.generate("word " * 4000, max_tokens=4)
        with pytest.raises(BadRequest) as caught:
            await client.generate("Hello.", max_tokens=4, extra={"vllm-server": {"temperature": -3}})
    assert "Hello" not in str(caught.value)


async def test_cancelled_stream_frees_the_engine(vllm_server: str) -> None:
    before = measured(vllm_server, GENERATED)
    async with chat(vllm_server) as client:
        async with anyio.create_task_group() as group:

            async def read() -> None:
                async with client.stream(
                    "Go on.", max_tokens=1900, extra={"vllm-server": {"ignore_eos": True}}
                ) as stream:
                    await stream.read()

            for _ in range(4):
                group.start_soon(read)
            await until_running(vllm_server, lambda number: number == 4)
            group.cancel_scope.cancel()
        await until_running(vllm_server, lambda number: number == 0)
        assert measured(vllm_server, GENERATED) - before < 4 * 1900 / 2, "they were not computed to their ends"


async def test_32_streams_at_once(vllm_server: str) -> None:
    whole = []
    async with chat(vllm_server) as client, anyio.create_task_group() as group:

        async def one(number: int) -> None:
            options: dict[str, Any] = {
                "max_tokens": 16,
                "temperature": 0,
                "extra": {"vllm-server": {"ignore_eos": True}},
            }
            async with client.stream(f"Number {number}.", **options) as stream:
                await stream.read()
            assert stream.usage is not None
            whole.append(stream.usage.total_output)

        for number in range(32):
            group.start_soon(one, number)
    assert whole == [16] * 32


# ---- its Anthropic-compatible endpoint ------------------------------------------------------------------------------


def messages(url: str) -> AsyncClient:
    return AsyncClient(Anthropic("tiny", base_url=url, api_key="none"))


async def test_anthropic_whole_and_stream(vllm_server: str) -> None:
    async with messages(vllm_server) as client:
        whole = await client.generate("Count.", max_tokens=16, temperature=0)
        async with client.stream("Count.", max_tokens=16, temperature=0) as stream:
            await stream.read()
    assert whole.text == stream.text != ""
    assert whole.finish_reason == stream.finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.total_output == 16
    assert stream.usage is not None
    assert stream.usage.total_output == 16


async def test_anthropic_same_answer_as_chat(vllm_server: str) -> None:
    async with messages(vllm_server) as ours, chat(vllm_server) as theirs:
        first = await ours.generate("Count.", max_tokens=16, temperature=0)
        second = await theirs.generate("Count.", max_tokens=16, temperature=0)
    assert first.text == second.text


async def test_anthropic_errors(vllm_server: str) -> None:
    async with messages(vllm_server) as client:
        with pytest.raises(CallError) as caught:
            await client.generate("word " * 4000, max_tokens=4)
    assert isinstance(caught.value, BadRequest)


# ---- embeddings -----------------------------------------------------------------------------------------------------


async def test_embeddings(vllm_embedding_server: str) -> None:
    client = AsyncClient(OpenAICompatible("tiny", profile="vllm", base_url=f"{vllm_embedding_server}/v1"))
    async with client:
        response = await client.embed(["a cat", "a dog", "a cat"])
    first, second, third = response.embeddings or ()
    assert len(first) == len(second) == 256
    assert first == pytest.approx(third, abs=1e-3)
    assert first != pytest.approx(second, abs=1e-3)
    assert response.usage is not None
    assert response.usage.total_input > 0


async def test_the_official_sdk_agrees(vllm_server: str) -> None:
    openai = pytest.importorskip("openai")
    options: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 16}
    async with openai.AsyncOpenAI(base_url=f"{vllm_server}/v1", api_key="none") as sdk, chat(vllm_server) as client:
        theirs = await sdk.chat.completions.create(**options, temperature=0)
        ours = await client.generate("Count.", max_tokens=16, temperature=0)
    assert ours.text == theirs.choices[0].message.content
    assert ours.raw_finish == theirs.choices[0].finish_reason
    assert ours.usage is not None
    assert ours.usage.total_input == theirs.usage.prompt_tokens
    assert json.dumps(ours.raw["usage"]["completion_tokens"]) == str(theirs.usage.completion_tokens)


async def test_a_broken_stream_is_continued_by_the_engine(vllm_server: str, tiny_model: Path) -> None:
    """The stream is cut on our side after nine pieces; the engine writes on from its own words."""
    extra = {"vllm-server": {"logit_bias": plain(tiny_model)}}
    options: dict[str, Any] = {"max_tokens": 24, "seed": 7, "temperature": 0, "extra": extra}
    model = OpenAICompatible("tiny", profile="vllm", base_url=f"{vllm_server}/v1")
    once = Chaos(cut=9, cut_rate=1.0, seed=1)
    async with AsyncClient(standard(once(model), extra=[Resume(ContinueText())])) as client:
        whole = await chat(vllm_server).generate("Count.", **options)
        async with client.stream("Count.", **options) as stream:
            events = []
            async for event in stream:
                events.append(event)
                once.enabled = False
    (seam,) = (place for place, event in enumerate(events) if isinstance(event, Seam))
    shown = "".join(event.text for event in events[:seam] if isinstance(event, TextDelta))
    assert shown
    assert whole.text.startswith(shown)
    assert stream.complete
    # The cut falls between a piece and the count of its tokens: where a busy machine made one piece of several, the
    # engine is asked for as many tokens more.
    shorter, longer = sorted((stream.text, whole.text), key=len)
    assert longer.startswith(shorter)
    assert len(shorter) > len(shown)
    assert stream.usage is not None
    assert [entry.state for entry in stream.trace.attempts] == ["interrupted", "ok"]
