"""The embedded engine: what it answers, on its own loop, to callers on asyncio, on trio and in threads."""

from __future__ import annotations

import copy
import json
import re
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field

from llmprod import (
    VLLM,
    AsyncClient,
    BadRequest,
    Client,
    ContextTooLong,
    EngineStartFailed,
    Failover,
    InvalidArgument,
    NotFound,
    OutputSchema,
    Static,
    TextDelta,
    ThinkingDelta,
    Tool,
    UnsupportedParameter,
    describe,
    standard,
)
from tests.engine.engines import PLACES, engine, in_order_of_priority, sober, tool
from tests.engine.schemas import schemas
from tests.engine.weather import WEATHER, asks_for_the_weather

# What vLLM and torch warn of inside this process is theirs; ours stay errors.
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default", "error:::llmprod", "error::pytest.PytestUnhandledThreadExceptionWarning"),
]
once = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""For tests of the engine's behaviour under load, which the caller's event loop has no part in."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


ANIMAL = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0}


def release(local: VLLM) -> tuple[int, ...]:
    """Return the running vLLM's release, such as (0, 32)."""
    current = local._engine.current
    assert current is not None
    return tuple(int(part) for part in current.modules.version.split(".")[:2])


def body(**fields: Any) -> dict[str, dict[str, Any]]:
    return {"vllm": fields}


# ---- text -----------------------------------------------------------------------------------------------------------


async def test_whole_answer_and_what_the_engine_tells_of_it(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        response = await client.generate("Say something.", max_tokens=16, temperature=0)
    assert response.complete
    assert response.text
    assert response.finish_reason == "length"
    assert response.usage is not None
    assert response.usage.total_output == 16
    assert response.usage.total_input > 0
    timing = response.timing
    assert timing.queue is not None
    assert timing.queue >= 0
    assert timing.prefill is not None
    assert 0 < timing.prefill < timing.total
    assert timing.decode is not None
    assert 0 < timing.decode < timing.total
    assert isinstance(response.cost, Decimal)
    assert 0 < response.cost < Decimal("3.6")
    assert response.request_id
    assert local.state == "ready"


async def test_stream_equals_whole(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        whole = await client.generate("Count.", **GREEDY)
        async with client.stream("Count.", **GREEDY) as stream:
            pieces = [event.text async for event in stream if isinstance(event, TextDelta)]
    assert "".join(pieces) == stream.text == whole.text
    assert stream.finish_reason == whole.finish_reason
    assert stream.usage is not None
    assert whole.usage is not None
    assert stream.usage.total == whole.usage.total
    assert stream.timing.ttft is not None
    assert stream.timing.decode is not None
    assert stream.cost is not None


@once
async def test_first_token_comes_long_before_the_last(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        for _ in range(5):  # a release may compile something at the first long answer, and the machine be busy
            async with client.stream("Go on.", max_tokens=400, extra=body(ignore_eos=True)) as stream:
                pieces = [event async for event in stream if isinstance(event, TextDelta)]
            assert stream.timing.ttft is not None
            if len(pieces) > 1 and stream.timing.ttft < stream.timing.total / 4:
                break
        else:
            pytest.fail(f"all at once, or as good as that: {stream.timing}, {len(pieces)} pieces")


async def test_seed_stop_and_system(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        one, two, other = [
            (await client.generate("Invent.", max_tokens=24, temperature=1.0, seed=seed)).text for seed in (1, 1, 2)
        ]
        assert one == two != other
        free = await client.generate("Count.", **GREEDY)
        mark = free.text[len(free.text) // 2 :][:4]
        stopped = await client.generate("Count.", stop=mark, **GREEDY)
        assert stopped.finish_reason == "stop"
        assert mark not in stopped.text
        plain = await client.generate("Count.", **GREEDY)
        instructed = await client.generate("Count.", system="Be brief.", **GREEDY)
        assert plain.usage is not None
        assert instructed.usage is not None
        assert instructed.usage.total_input > plain.usage.total_input


async def test_logprobs(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        whole = await client.generate("Count.", max_tokens=6, temperature=0, logprobs=3)
        async with client.stream("Count.", max_tokens=6, temperature=0, logprobs=3) as stream:
            await stream.read()
    assert len(whole.logprobs) == 6
    assert all(token.logprob <= 0 and len(token.top) == 3 for token in whole.logprobs)
    said, streamed = ([token.token for token in answer.logprobs] for answer in (whole, stream))
    if release(local) >= (0, 32):
        assert streamed == said
    else:  # older ones leave out the chunks of tokens that are no whole character, with their probabilities
        rest = iter(said)
        assert streamed
        assert all(token in rest for token in streamed)


async def test_a_repeated_prompt_is_read_from_the_prefix_cache(local: VLLM, anyio_backend: str) -> None:
    prompt = f"On {anyio_backend}. " + "A long story about a fox. " * 60
    async with AsyncClient(local) as client:
        first = await client.generate(prompt, max_tokens=2)
        again = await client.generate(prompt, max_tokens=2)
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.cache_read > first.usage.cache_read
    assert again.usage.total_input == first.usage.total_input
    assert local.stats().cached_tokens > 0


async def test_tenants_share_no_prefix(local: VLLM, anyio_backend: str) -> None:
    isolated = copy.copy(local)  # the same engine
    isolated.isolate_prefixes_by = "tenant"
    prompt = f"On {anyio_backend}. " + "What one tenant wrote, another must not find by its speed. " * 30
    async with AsyncClient(isolated) as client:
        used = []
        for tenant in ("a", "a", "b"):
            response = await client.generate(prompt, max_tokens=2, tags={"tenant": tenant})
            assert response.usage is not None
            used.append(response.usage.cache_read)
    assert used[0] == used[2] == 0
    assert used[1] > 0


# ---- tools ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_tool_call_by_vllms_own_parser(local: VLLM, stream: bool) -> None:
    async with AsyncClient(local) as client:
        await asks_for_the_weather(client, "vllm", stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("choice", ["get_weather", "required"])
async def test_forced_tool_with_strict_arguments(local: VLLM, tiny_model: Path, choice: str, stream: bool) -> None:
    strict = Tool(name=WEATHER.name, description=WEATHER.description, parameters=WEATHER.parameters, strict=True)
    async with AsyncClient(local) as client:
        options: dict[str, Any] = {
            "tools": [strict],
            "tool_choice": choice,
            "max_tokens": 300,
            "extra": body(logit_bias=sober(tiny_model)),
        }
        for _ in range(5):  # the model is random: it may call on and on until its tokens are used up
            if stream:
                async with client.stream("Weather?", **options) as response:
                    await response.read()
            else:
                response = await client.generate("Weather?", **options)
            if response.finish_reason != "length":
                break
    assert response.tool_calls
    for call in response.tool_calls:
        assert call.name == "get_weather"
        assert set(call.input) == {"city"}


async def test_tools_without_a_parser_are_refused_before_anything_runs(thinking: VLLM) -> None:
    async with AsyncClient(thinking) as client:
        with pytest.raises(UnsupportedParameter) as caught:
            await client.generate("Weather?", tools=[WEATHER])
    assert "tool_call_parser" in str(caught.value)


# ---- thinking -------------------------------------------------------------------------------------------------------


def thoughtful(model: Path, **fields: Any) -> dict[str, Any]:
    """Return options with which a random model thinks for some tokens, and then ends its thinking."""
    vocabulary = {
        word["content"]: word["id"] for word in json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    }
    bias = sober(model) | {str(vocabulary["</think>"]): 6, str(vocabulary["<think>"]): -100}
    return {"max_tokens": 400, "seed": 3, "temperature": 1.0, "extra": body(logit_bias=bias, **fields)}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_reasoning_is_told_apart_and_free_of_the_grammar(thinking: VLLM, tiny_model: Path, stream: bool) -> None:
    options = thoughtful(tiny_model, structured_outputs={"choice": ["the answer"]})
    async with AsyncClient(thinking) as client:
        if stream:
            async with client.stream("Why?", **options) as response:
                events = [event async for event in response]
            thoughts = [place for place, event in enumerate(events) if isinstance(event, ThinkingDelta)]
            said = [place for place, event in enumerate(events) if isinstance(event, TextDelta)]
            assert thoughts  # one or more, as they come
            assert max(thoughts) < min(said)
        else:
            response = await client.generate("Why?", **options)
    assert response.thinking
    assert "</think>" not in response.thinking
    assert response.text == "the answer"
    assert response.finish_reason == "stop"


async def test_a_schema_holds_after_the_thinking(thinking: VLLM, tiny_model: Path) -> None:
    async with AsyncClient(thinking) as client:
        response = await client.generate("An animal.", output=OutputSchema.of(ANIMAL), **thoughtful(tiny_model))
    assert response.thinking
    assert set(response.parsed) == {"name", "legs"}


async def test_thinking_turned_off(thinking: VLLM, tiny_model: Path) -> None:
    options = thoughtful(
        tiny_model,
        structured_outputs={"choice": ["the answer"]},
        chat_template_kwargs={"enable_thinking": False},
    )
    async with AsyncClient(thinking) as client:
        response = await client.generate("Why?", **options)
    assert (response.thinking, response.text) == ("", "the answer")


# ---- structured outputs ---------------------------------------------------------------------------------------------


class Animal(BaseModel):
    name: str = Field(max_length=8)
    legs: int = Field(ge=0, le=8)


async def test_a_model_of_the_applications_own(local: VLLM, tiny_model: Path) -> None:
    async with AsyncClient(local) as client:
        response = await client.generate(
            "An animal.", output=Animal, max_tokens=200, extra=body(logit_bias=sober(tiny_model))
        )
    assert isinstance(response.parsed, Animal)


@once
async def test_200_schemas_hold(local: VLLM, tiny_model: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    wrong: list[str] = []
    kinds: dict[str | None, int] = {}
    extra = body(logit_bias=sober(tiny_model))

    async with AsyncClient(local) as client:

        async def one(number: int, schema: dict[str, Any]) -> None:
            response = await client.generate(
                "Make one up.", output=OutputSchema.of(schema), max_tokens=1200, temperature=1.0, extra=extra
            )
            kinds[response.finish_reason] = kinds.get(response.finish_reason, 0) + 1
            try:
                jsonschema.validate(response.parsed, schema, format_checker=jsonschema.FormatChecker())
            except Exception as error:
                wrong.append(
                    f"{number}: {type(error).__name__} {response.finish_reason} {schema} {response.text[:200]}"
                )

        limiter = anyio.Semaphore(32)

        async def limited(number: int, schema: dict[str, Any]) -> None:
            async with limiter:
                await one(number, schema)

        async with anyio.create_task_group() as group:
            for number, schema in enumerate(schemas(200)):
                group.start_soon(limited, number, schema)
    assert wrong == []
    assert kinds == {"stop": 200}


async def test_regex_choice_and_grammar(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        by_regex = await client.generate(
            "A code.", max_tokens=40, extra=body(structured_outputs={"regex": "[A-Z]{3}-[0-9]{4}"})
        )
        assert re.fullmatch("[A-Z]{3}-[0-9]{4}", by_regex.text)
        by_choice = await client.generate(
            "Yes?", max_tokens=10, extra=body(structured_outputs={"choice": ["yes", "no"]})
        )
        assert by_choice.text in ("yes", "no")
        grammar = 'root ::= "SELECT " column " FROM t"\ncolumn ::= "a" | "b"'
        by_grammar = await client.generate("SQL.", max_tokens=40, extra=body(structured_outputs={"grammar": grammar}))
        assert by_grammar.text in ("SELECT a FROM t", "SELECT b FROM t")


# ---- adapters, embeddings -------------------------------------------------------------------------------------------


async def test_adapters_by_name(local: VLLM) -> None:
    red, blue = local.adapter("red"), local.adapter("blue")
    assert (red.name, blue.name) == ("vllm:red", "vllm:blue")
    assert len({local.identity, red.identity, blue.identity}) == 3
    answers = {}
    for provider in (local, red, blue, red):
        async with AsyncClient(provider) as client:
            answer = (await client.generate("Count.", **GREEDY)).text
            assert answers.setdefault(provider.name, answer) == answer
    assert len(set(answers.values())) == 3
    with pytest.raises(InvalidArgument, match="red"):
        local.adapter("green")


async def test_embeddings(embedding: VLLM) -> None:
    async with AsyncClient(embedding) as client:
        response = await client.embed(["a cat", "a dog", "a cat"])
        with pytest.raises(UnsupportedParameter):
            await client.generate("Hello.")
    first, second, third = response.embeddings or ()
    assert len(first) == len(second)
    assert first == pytest.approx(third, abs=1e-3)
    assert first != pytest.approx(second, abs=1e-3)
    assert response.usage is not None
    assert response.usage.total_input > 0


# ---- errors ---------------------------------------------------------------------------------------------------------


async def test_errors_are_classified_and_tell_no_prompt(local: VLLM) -> None:
    async with AsyncClient(local) as client:
        with pytest.raises(ContextTooLong) as too_long:
            await client.generate("secretword " * 4000, max_tokens=4)
        with pytest.raises(BadRequest) as bad:
            await client.generate("secretword", max_tokens=4, extra=body(temperature=-3))
        with pytest.raises((NotFound, BadRequest)):
            await client.generate("secretword", max_tokens=4, extra=body(model="no-such-model"))
        for caught in (too_long, bad):
            assert "secretword" not in str(caught.value) + repr(caught.value)
        assert caught.value.request_id
        assert (await client.generate("Still there?", max_tokens=4, extra=body(min_tokens=4))).usage.output == 4


async def test_capabilities_are_the_models_own(local: VLLM, embedding: VLLM) -> None:
    assert local.capabilities.context_window == local.options.max_model_len
    assert not local.capabilities.images
    assert local.capabilities.generate
    assert embedding.capabilities.embeddings
    assert not embedding.capabilities.generate


# ---- many callers ---------------------------------------------------------------------------------------------------


@once
async def test_64_streams_at_once_share_the_batch(local: VLLM) -> None:
    counts: list[int] = []
    together: list[int] = []
    async with AsyncClient(local) as client, anyio.create_task_group() as group:

        async def one(number: int) -> None:
            async with client.stream(f"Number {number}.", max_tokens=48, extra=body(ignore_eos=True)) as stream:
                together.extend([local.stats().running async for _ in stream])
            assert stream.usage is not None
            counts.append(stream.usage.total_output)

        for number in range(64):
            group.start_soon(one, number)
    assert max(together) > 8, "they are computed together"
    assert counts == [48] * 64


@once
async def test_priority_goes_first(local: VLLM) -> None:
    async with AsyncClient(local) as client:

        async def ask(tokens: int, priority: int) -> None:
            await client.generate("Go on.", priority=priority, max_tokens=tokens, extra=body(ignore_eos=True))

        await in_order_of_priority(local, PLACES, ask)


def test_three_clients_on_one_engine(local: VLLM) -> None:
    """On asyncio, on trio and synchronously, in three threads at once; each call's answer is counted."""
    answers: dict[str, list[str]] = {"asyncio": [], "trio": [], "sync": []}

    async def asynchronous(name: str) -> None:
        async with AsyncClient(local) as client:
            for _ in range(5):
                answers[name].append((await client.generate("Count.", **GREEDY)).text)
                async with client.stream("Count.", **GREEDY) as stream:
                    answers[name].append((await stream.read()).text)

    def synchronous() -> None:
        with Client(local) as client:
            for _ in range(5):
                answers["sync"].append(client.generate("Count.", **GREEDY).text)
                with client.stream("Count.", **GREEDY) as stream:
                    answers["sync"].append("".join(stream.text_stream()))

    threads = [
        threading.Thread(target=lambda: anyio.run(asynchronous, "asyncio", backend="asyncio")),
        threading.Thread(target=lambda: anyio.run(asynchronous, "trio", backend="trio")),
        threading.Thread(target=synchronous),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert {name: len(texts) for name, texts in answers.items()} == {"asyncio": 10, "trio": 10, "sync": 10}
    assert len({text for texts in answers.values() for text in texts}) == 1
    assert local.state == "ready", "closing the clients has left the engine to the fixture, which holds it"


@once
async def test_costs_add_up_to_the_busy_time(local: VLLM) -> None:
    """How near is shown by ``test_engine_share``; here a busy machine may tell of the last tokens late."""
    before = local.stats().busy_seconds
    costs: list[Decimal] = []
    async with AsyncClient(local) as client, anyio.create_task_group() as group:

        async def one(number: int) -> None:
            options: dict[str, Any] = {"max_tokens": 20 + 3 * number, "extra": body(ignore_eos=True)}
            if number % 2:
                response = await client.generate(f"Tell {number} things.", **options)
            else:
                async with client.stream(f"Tell {number} things.", **options) as response:
                    await response.read()
            assert response.cost is not None
            costs.append(response.cost)

        for number in range(24):
            group.start_soon(one, number)
    spent = Decimal("3.6") / 3600 * Decimal(local.stats().busy_seconds - before)
    assert len(costs) == 24
    assert float(sum(costs)) == pytest.approx(float(spent), rel=0.4)
    assert len({round(cost, 12) for cost in costs}) > 12, "each pays for what was computed for it"


async def test_behind_a_router(local: VLLM) -> None:
    async with AsyncClient(Failover(local, Static("sorry"))) as client:
        response = await client.generate("Count.", **GREEDY)
    assert response.text != "sorry"
    assert response.provider == local.name


async def test_below_the_standard_stack(local: VLLM) -> None:
    stack = standard(local, [Static("sorry")])
    shown = describe(stack)
    assert local.name in shown
    assert "secret" not in shown
    async with AsyncClient(stack) as client:
        assert (await client.generate("Count.", **GREEDY)).provider == local.name


@once
async def test_an_adapter_that_cannot_be_loaded_is_named_and_others_live(
    local: VLLM, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="green"):
        engine(tiny_model, loras={"green": str(tmp_path / "nowhere")})
    tool("make_tiny_lora.py", str(tiny_model), str(tmp_path / "green"))
    weights = tmp_path / "green" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])  # as after a copy that was cut off
    broken = engine(tiny_model, loras={"green": str(tmp_path / "green")})
    try:
        with pytest.raises(EngineStartFailed, match="green"):
            await broken.start()
        assert broken.state == "failed"
    finally:
        await broken.stop()
    async with AsyncClient(local) as client:
        assert (await client.generate("Still there?", max_tokens=4, extra=body(min_tokens=4))).usage.output == 4
