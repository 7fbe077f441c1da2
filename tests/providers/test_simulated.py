"""Simulated: says that it is one, answers by the seed, fails at its rates, takes its time, honours what is asked."""

import math
from collections import Counter
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, Optional
from uuid import UUID

import anyio
import pytest
from pydantic import BaseModel, Field

from llmprod import (
    BadRequest,
    Context,
    ContextTooLong,
    EmbedRequest,
    GenerateRequest,
    LoopClock,
    Message,
    OutputSchema,
    Overloaded,
    ReadError,
    Simulated,
    StreamInterrupted,
    TextDelta,
    Thinking,
    Tool,
    describe,
)
from tests.virtual_time import anyio_backend as anyio_backend

HI = (Message.user("Hi"),)


async def ask(provider: Simulated, text: str = "Hi", **options):
    request = GenerateRequest(messages=(Message.user(text),), **options)
    response = await provider.send(request, Context.new(clock=LoopClock()))
    return await response.read()


async def test_it_says_that_it_is_a_simulation():
    provider = Simulated("small/eu")
    response = await ask(provider, reasoning_effort="low")
    assert response.text.startswith("[simulated] ")
    assert response.thinking.startswith("[simulated] ")
    assert provider.name == response.model == response.provider == "simulated:small/eu"
    assert "no real model" in repr(provider)
    assert "simulated" in describe(provider)
    assert response.usage.estimated


async def test_failures_come_at_their_rates():
    rates = {"rate_limited": 0.2, "overloaded": 0.1, "server_error": 0.1, "refused": 0.1, "cut": 0.2}
    provider = Simulated("instant", seed=3, failures=rates, retry_after=7)
    seen, told = Counter(), set()
    for _ in range(1000):
        try:
            await ask(provider)
            seen["ok"] += 1
        except Exception as error:
            seen[type(error).__name__] += 1
            told.add((error.target, error.retry_after))
    expected = {
        "RateLimited": 200,
        "Overloaded": 100,
        "ServerError": 100,
        "ConnectError": 100,
        "ReadError": 200,
        "ok": 300,
    }
    assert set(seen) == set(expected)
    for kind, number in expected.items():
        assert seen[kind] == pytest.approx(number, abs=4 * math.sqrt(number))
    assert told == {("simulated:instant", None), ("simulated:instant", 7)}
    assert provider.in_flight == 0


async def test_a_cut_stream_shows_a_part_and_breaks():
    provider = Simulated("instant", failures={"cut": 1})
    whole = (await ask(Simulated("instant"))).text
    with pytest.raises(StreamInterrupted) as caught:
        await ask(provider, stream=True)
    assert isinstance(caught.value.__cause__, ReadError)
    assert 0 < len(caught.value.partial_text) < len(whole)
    assert whole.startswith(caught.value.partial_text)
    assert provider.in_flight == 0


async def test_silence_lasts_ten_minutes():
    with pytest.raises(ReadError) as caught:
        await ask(Simulated(failures={"silent": 1}))
    assert caught.value.silent
    assert anyio.current_time() == pytest.approx(600)


async def test_times_are_those_of_the_options():
    provider = Simulated(ttft=2, ttft_spread=0, tokens_per_second=10, answer_tokens=200)
    whole = await ask(provider)
    stream = await ask(provider, stream=True)
    assert stream.text == whole.text
    assert stream.timing.ttft == pytest.approx(2)
    tokens = stream.usage.output
    for response in (whole, stream):
        assert response.timing.total == pytest.approx(2 + tokens / 10, rel=0.1)
    assert stream.timing.tokens_per_second == pytest.approx(10, rel=0.1)
    slow = await ask(Simulated(ttft=2, ttft_spread=0, failures={"slow": 1}), stream=True)
    assert slow.timing.ttft == pytest.approx(20)


async def test_first_token_times_are_lognormal_around_the_median():
    provider = Simulated(ttft=1, ttft_spread=0.5, tokens_per_second=math.inf, failures={})
    times = sorted([(await ask(provider, stream=True)).timing.ttft for _ in range(300)])
    assert times[150] == pytest.approx(1, rel=0.15)
    assert times[285] == pytest.approx(math.exp(0.5 * 1.645), rel=0.25)


async def test_a_slow_reader_finds_the_rest_waiting():
    provider = Simulated(ttft=1, ttft_spread=0, tokens_per_second=10, answer_tokens=30)
    async with await provider.send(
        GenerateRequest(messages=HI, stream=True), Context.new(clock=LoopClock())
    ) as response:
        await anyio.sleep(1000)
        started = anyio.current_time()
        await response.read()
        assert anyio.current_time() == started


async def test_beyond_its_capacity_it_refuses_or_slows_down():
    refusing = Simulated(capacity=2, ttft=1, failures={})
    seen = Counter()

    async def one(provider: Simulated) -> None:
        try:
            seen[(await ask(provider, stream=True)).finish_reason] += 1
        except Overloaded:
            seen["overloaded"] += 1

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one, refusing)
    assert seen == {"stop": 2, "overloaded": 3}

    slowing = Simulated(capacity=1, at_capacity="slow", ttft=1, ttft_spread=0, tokens_per_second=math.inf)
    times: list[float] = []

    async def timed() -> None:
        times.append((await ask(slowing)).timing.total)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(timed)
    assert times == pytest.approx([1, 2, 3])
    assert refusing.in_flight == slowing.in_flight == 0


async def test_limits_cut_and_tell():
    whole = await ask(Simulated("instant"))
    short = await ask(Simulated("instant"), max_tokens=5)
    assert (short.finish_reason, short.usage.output) == ("length", 5)
    assert whole.text.startswith(short.text)
    first_word = whole.text.split()[1]
    stopped = await ask(Simulated("instant"), stop=(first_word,))
    assert (stopped.text, stopped.finish_reason) == ("[simulated] ", "stop")
    with pytest.raises(ContextTooLong):
        await ask(Simulated("instant", context_window=100), "a" * 500)
    with pytest.raises(ContextTooLong):
        await ask(Simulated("instant", context_window=100), max_tokens=99)


async def test_thinking_comes_first_and_is_counted_apart():
    response = await ask(Simulated("instant"), reasoning_effort="high", stream=True)
    assert isinstance(response.parts[0], Thinking)
    assert response.usage.reasoning == 64
    assert not (await ask(Simulated("instant"), reasoning_effort="none")).thinking


async def test_logprobs():
    response = await ask(Simulated("instant"), logprobs=3)
    assert "".join(token.token for token in response.logprobs) == response.text
    for token in response.logprobs:
        assert token.logprob < 0
        assert len(token.top) == 3
        assert list(token.top) == sorted(token.top, key=lambda pair: -pair[1])
    assert (await ask(Simulated("instant"), logprobs=0)).logprobs[0].top == ()


def weather(city: str, unit: Literal["C", "F"] = "C") -> str:
    """The weather."""


def stocks(symbol: str) -> str:
    """The price."""


TOOLS = (Tool.from_function(weather), Tool.from_function(stocks))


@pytest.mark.parametrize(
    ("text", "options", "names"),
    [
        ("Hi", {}, []),
        ("What does weather say?", {}, ["weather"]),
        ("weather, and stocks", {}, ["weather", "stocks"]),
        ("weather, and stocks", {"parallel_tool_calls": False}, ["weather"]),
        ("weather", {"tool_choice": "none"}, []),
        ("Hi", {"tool_choice": "stocks"}, ["stocks"]),
    ],
)
async def test_which_tools_it_calls(text, options, names):
    response = await ask(Simulated("instant"), text, tools=TOOLS, **options)
    assert [call.name for call in response.tool_calls] == names
    assert response.finish_reason == ("tool_calls" if names else "stop")
    assert len({call.id for call in response.tool_calls}) == len(names)


async def test_a_tools_result_is_answered_in_text():
    provider = Simulated("instant")
    first = await ask(provider, tools=TOOLS, tool_choice="required")
    (call,) = first.tool_calls
    if call.name == "weather":
        assert call.input.get("unit") in (None, "C", "F")
    messages = (*HI, Message.assistant(*first.parts), Message.tool(call, {"celsius": 18}))
    second = await provider.send(GenerateRequest(messages=messages, tools=TOOLS), Context.new())
    assert '{"celsius":18}' in second.text
    assert second.text.startswith("[simulated] ")


class Node(BaseModel):
    value: int = Field(ge=3, lt=5)
    children: list["Node"] = []
    parent: Optional["Node"] = None


class Everything(BaseModel):
    kind: Literal["x", "y"]
    share: float = Field(gt=0, le=1)
    below: float = Field(lt=-5)
    words: list[str] = Field(min_length=2, max_length=4)
    when: datetime
    id: UUID
    node: Node
    pair: tuple[int, str]
    counts: dict[str, int] = Field(min_length=2)
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}\d{3,5}-(x|yz)$")]
    short: Annotated[str, Field(min_length=3, max_length=4)]
    long: Annotated[str, Field(min_length=100)]
    sevens: int = Field(multiple_of=7, ge=10, le=20)
    some: set[Literal[1, 2, 3]] = Field(min_length=2)
    either: int | Node | None
    amount: Decimal
    nothing: None


@pytest.mark.parametrize(
    "output", [Node, Everything, list[Everything], dict[str, bool], int, Literal["a"]], ids=range(6)
)
async def test_answers_fit_their_schema(output):
    provider = Simulated("instant")
    schema = OutputSchema.of(output)
    for number in range(50):
        response = await ask(provider, str(number), output=schema, stream=True)
        assert response.finish_reason == "stop"
        response.parsed  # noqa: B018 - raises if it does not fit


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "https://example.com/schema"},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "object", "properties": {}, "additionalProperties": False, "minProperties": 1},
    ],
    ids=range(6),
)
async def test_a_schema_that_it_can_not_fit_is_an_error_and_never_a_wrong_answer(schema):
    with pytest.raises(BadRequest, match="the simulation can't make"):
        await ask(Simulated("instant"), output=OutputSchema(name="a", schema=schema))


async def test_embeddings_of_similar_texts_lie_close():
    texts = ("the cat sat on the mat", "the cat sits on a mat", "quarterly revenue rose sharply")
    request = EmbedRequest(inputs=(*texts, texts[0]), dimensions=128)
    response = await Simulated("instant").send(request, Context.new())
    one, two, other, again = response.embeddings

    def near(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert one == again
    assert len(one) == 128
    assert near(one, one) == pytest.approx(1)
    assert near(one, two) > 0.5 > near(one, other)
    assert response.usage.input > 0


async def test_tokens_are_events_and_usage_counts_them():
    provider = Simulated("instant")
    response = await provider.send(GenerateRequest(messages=HI, stream=True), Context.new())
    pieces = [event.text async for event in response if isinstance(event, TextDelta)]
    assert len(pieces) == response.usage.output > 4
    assert response.usage.input > 0


async def test_two_of_one_kind_fail_independently_and_one_seed_fails_alike():
    async def pattern(name: str, seed: int) -> list[bool]:
        provider, made = Simulated(name, seed=seed, failures={"server_error": 0.5}, ttft=0), []
        for _ in range(30):
            try:
                await ask(provider)
                made.append(True)
            except Exception:
                made.append(False)
        return made

    assert await pattern("small/a", 1) == await pattern("small/a", 1)
    assert await pattern("small/a", 1) != await pattern("small/b", 1)
    assert await pattern("small/a", 1) != await pattern("small/a", 2)
