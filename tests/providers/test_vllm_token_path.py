"""The token path without vLLM: options, readings, and requests to an engine that a test plays."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from llmprod import (
    VLLM,
    BadRequest,
    CallError,
    ContextTooLong,
    DeadlineExceeded,
    EngineDied,
    InvalidArgument,
    Overloaded,
    ServerError,
    UnsupportedParameter,
)
from llmprod.mechanisms.engine_meter import EngineMeter
from llmprod.providers._vllm.home import Home
from llmprod.providers._vllm.sampling import Sampling, SamplingKeywords, Structured, token_ids
from llmprod.providers._vllm.token_reading import before, check_scorable, piece_of, prompt_tokens_of, shared_start
from llmprod.providers._vllm.token_records import CompletionChoice

# ---- options --------------------------------------------------------------------------------------------------------


def test_keywords_are_the_fields() -> None:
    assert set(SamplingKeywords.__annotations__) == {item.name for item in fields(Sampling)}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": "12"}, "stop_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": True}, "prompt_logprobs"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {1: 200}}, "logit_bias"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"structured": {"type": "object"}}, "structured"),
        ({"extra": ["x"]}, "extra"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Sampling(**options)
    assert caught.value.field == name


@pytest.mark.parametrize(
    "given", [{}, {"regex": "a", "choice": ["b"]}, {"regex": ""}, {"choice": []}, {"choice": "ab"}, {"grammar": 3}]
)
def test_wrong_structures(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="structured"):
        Structured(**given)


def test_structures_in_vllms_words() -> None:
    class Animal(BaseModel):
        legs: int

    assert Structured(json_schema=Animal).fields()["json"]["properties"]["legs"] == {"title": "Legs", "type": "integer"}
    assert Structured(json_schema={"type": "object"}).fields() == {"json": {"type": "object"}}
    assert Structured(choice=("a", "b")).fields() == {"choice": ["a", "b"]}
    assert Structured(regex="a+").fields() == {"regex": "a+"}
    assert Structured(grammar="root ::= 'a'").fields() == {"grammar": "root ::= 'a'"}


def test_only_what_differs_from_the_defaults_is_passed() -> None:
    modules: Any = FakeModules()
    plain = Sampling().for_vllm(modules, stream=False)
    assert plain == {"max_tokens": None, "output_kind": "final"}
    given = Sampling(
        n=2, stop="x", stop_token_ids=(3,), include_stop=True, top_k=4, structured=Structured(regex="a"),
        extra={"flat_logprobs": True},
    ).for_vllm(modules, stream=True)  # fmt: skip
    assert given == {
        "max_tokens": None, "output_kind": "delta", "n": 2, "stop": ["x"], "stop_token_ids": [3], "top_k": 4,
        "include_stop_str_in_output": True, "structured_outputs": {"regex": "a"}, "flat_logprobs": True,
    }  # fmt: skip
    for extra, hint in (({"n": 2}, "n="), ({"output_kind": 1}, "stream_complete"), ({"new": 1}, "9.9")):
        with pytest.raises(InvalidArgument, match=hint):
            Sampling(extra=extra).for_vllm(modules, stream=False)


def test_token_ids() -> None:
    assert token_ids("ids", range(3)) == (0, 1, 2)
    assert token_ids("ids", iter([4, 5])) == (4, 5)
    for wrong in ("12", b"12", {1: 2}, None, [1.5], [], [-1]):
        with pytest.raises(InvalidArgument, match="ids: got"):
            token_ids("ids", wrong)


# ---- readings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "wholes", "start"),
    [
        ([1, 2, 3], [[1, 2, 3, 4], [1, 2, 3, 5, 6]], 3),
        ([1, 2, 3], [[1, 2, 3, 4], [1, 2, 7]], 2),
        ([1, 2, 3], [[1, 9], [1, 2, 7]], 1),
        ([1, 2], [[5]], 0),
        ([], [[5]], 0),
        ([1, 2], [], 2),
    ],
)
def test_scores_start_where_no_continuation_changes_the_prompt(
    prompt: list[int], wholes: list[list[int]], start: int
) -> None:
    assert shared_start(prompt, wholes) == start


def test_what_cannot_be_scored() -> None:
    check_scorable([1], [[1, 2]], 1, 3)
    for prompt, wholes, start, name in (
        ([], [[1]], 0, "prompt"),
        ([1], [[1, 2], [1]], 1, r"continuations\[1\]"),
    ):
        with pytest.raises(InvalidArgument, match=name):
            check_scorable(prompt, wholes, start, None)
    with pytest.raises(ContextTooLong):
        check_scorable([1], [[1, 2, 3]], 1, 3)


def test_special_tokens_before_a_text() -> None:
    assert before([0, 5, 6], [5, 6]) == [0]
    assert before([0, 5, 6, 1], [5, 6]) == [0]
    assert before([5, 6], [5, 6]) == []
    assert before([7, 8], [5]) == []


def entry(logprob: float, rank: int | None, text: str | None = "x") -> Any:
    return SimpleNamespace(logprob=logprob, rank=rank, decoded_token=text)


def sequence(**values: Any) -> Any:
    base: dict[str, Any] = {
        "index": 0, "text": "", "token_ids": [], "logprobs": None, "finish_reason": None, "stop_reason": None,
    }  # fmt: skip
    return SimpleNamespace(**{**base, **values})


def test_a_sampled_token_beside_the_likeliest() -> None:
    logprobs = [{9: entry(-5.0, 40, "low"), 1: entry(-0.1, 1, "a"), 2: entry(-0.2, 2, None)}]
    choice = piece_of(CompletionChoice, sequence(token_ids=[9], logprobs=logprobs, finish_reason="length"), 2)
    (token,) = choice.logprobs
    assert (token.token_id, token.text, token.logprob, token.rank) == (9, "low", -5.0, 40)
    assert [(one.token_id, one.text) for one in token.top] == [(1, "a"), (2, "")]
    assert piece_of(CompletionChoice, sequence(token_ids=[9], logprobs=logprobs), None).logprobs == ()
    assert piece_of(CompletionChoice, sequence(token_ids=[9], logprobs=logprobs), 0).logprobs[0].top == ()


def test_the_prompts_first_token_has_no_probability() -> None:
    output = SimpleNamespace(prompt_logprobs=[None, {7: entry(-1.0, 1)}], prompt_token_ids=[3, 7])
    first, second = prompt_tokens_of(output, 0)
    assert first is None
    assert second is not None
    assert second.token_id == 7
    assert prompt_tokens_of(output, None) == ()


@pytest.mark.parametrize("word", ["abort", "error"])
def test_a_sequence_that_was_cut_off_is_no_answer(word: str) -> None:
    with pytest.raises(ServerError, match=word):
        piece_of(CompletionChoice, sequence(finish_reason=word, text="half"), None)


# ---- requests to an engine that the test plays ----------------------------------------------------------------------


class FakeModules:
    version = "9.9"
    on_cpu = True
    RequestOutputKind = SimpleNamespace(DELTA="delta", FINAL_ONLY="final")

    class SamplingParams(dict[str, Any]):
        def __init__(self, n: int = 1, flat_logprobs: bool = False, **given: Any) -> None:
            super().__init__(given, **({"n": n} if n != 1 else {}))
            if flat_logprobs:
                self["flat_logprobs"] = True

    StructuredOutputsParams = dict

    @staticmethod
    def parse_model_prompt(config: object, prompt: dict[str, Any]) -> dict[str, Any]:
        return prompt


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


class VLLMClientError(Exception):
    parameter = "temperature"


class QueueOverflowError(Exception):
    http_status = 503


@dataclass
class FakeEngine:
    """Says each of a prompt's tokens back, and waits before the one that is 99."""

    closed: list[str] = field(default_factory=list[str])
    aborted: list[str] = field(default_factory=list[str])
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    error: Callable[[], Exception] | None = None
    model_config: Any = None

    @property
    def renderer(self) -> FakeEngine:
        return self

    async def render_cmpl_async(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        (prompt,) = prompts
        return [{**prompt, "prompt_token_ids": prompt.get("prompt_token_ids") or [*prompt["prompt"].encode()]}]

    async def generate(
        self, prompt: dict[str, Any], params: dict[str, Any], name: str, **options: Any
    ) -> AsyncGenerator[Any]:
        self.asked.append({"prompt": prompt, "params": params, "name": name, **options})
        ids, said = prompt["prompt_token_ids"], list[int]()
        try:
            if self.error is not None:
                raise self.error()
            for number in ids:
                if number == 99:
                    await asyncio.sleep(3600)
                said.append(number)
                if params["output_kind"] == "delta":
                    yield self.output(ids, [number], None if len(said) < len(ids) else "stop")
                    await asyncio.sleep(0)
            if params["output_kind"] == "final":
                yield self.output(ids, said, "stop")
        finally:
            self.closed.append(name)

    def output(self, ids: list[int], said: list[int], finish: str | None) -> Any:
        written = sequence(text=bytes(said).decode("latin-1"), token_ids=said, finish_reason=finish)
        return SimpleNamespace(
            outputs=[written], prompt_token_ids=ids, prompt_logprobs=None, num_cached_tokens=1, finished=bool(finish)
        )

    async def abort(self, name: str) -> None:
        self.aborted.append(name)


class FakeIncarnation:
    def __init__(self, home: Home) -> None:
        self.crossing = home.crossing
        self.soon = home.crossing.soon
        self.meter = EngineMeter()
        self.modules = FakeModules()
        self.engine = FakeEngine()
        self.dead = False
        self.adapters = {"red": "the red adapter"}
        self.inside: set[Any] = set()

    def entered(self, call: Any) -> None:
        self.inside.add(call)
        self.meter.call_began()

    def left(self, call: Any) -> None:
        self.inside.discard(call)
        self.meter.call_ended()

    def check_prompt_logprobs(self) -> None:
        raise UnsupportedParameter("vllm", ("prompt_logprobs here",))

    def die(self) -> None:
        self.dead = True
        for call in list(self.inside):
            call.died()


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    home = Home("played-engine")
    yield home
    home.loop.call_soon_threadsafe(home.loop.stop)
    home.thread.join(120)
    home.loop.close()


class Played(VLLM):
    incarnation: Any

    async def _ready(self, context: Any) -> Any:
        return self.incarnation


@pytest.fixture
def local(home: Home) -> Played:
    provider = Played("some/model", price_per_hour=1)
    provider.incarnation = FakeIncarnation(home)
    return provider


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(120):
        while not true():  # noqa: ASYNC110 - a state of another thread
            await anyio.sleep(0.005)


async def streamed(local: Played, prompt: list[int]) -> None:
    async with local.stream_complete(prompt) as stream:
        async for _ in stream:
            pass


async def test_complete(local: Played) -> None:
    completion = await local.complete([72, 105], max_tokens=5, stop="x")
    assert completion.text == "Hi"
    assert completion.token_ids == completion.prompt_token_ids == (72, 105)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.cache_read == completion.cached == 1
    assert completion.usage.total == 4
    assert local.incarnation.meter.in_flight == 0, "the call is out before its caller goes on"
    (asked,) = local.incarnation.engine.asked
    assert asked["priority"] == 0
    assert asked["lora_request"] is None
    assert asked["name"] == f"tokens-{completion.request_id}"
    assert (await local.complete("Hi")).prompt_token_ids == (72, 105)


async def test_stream(local: Played) -> None:
    stream = local.stream_complete([72, 105, 33])
    with pytest.raises(RuntimeError, match="async with"):
        await anext(stream)
    async with stream:
        first = await anext(stream)
        assert (first.text, first.token_ids, first.finish_reason) == ("H", (72,), None)
        assert stream.completion.choices[0].finish_reason is None
        assert [delta.text async for delta in stream] == ["i", "!"]
    assert stream.completion.text == "Hi!"
    assert stream.completion.choices[0].finish_reason == "stop"
    assert stream.completion.cost is not None
    assert "Hi!" not in repr(stream) + repr(stream.completion) + repr(first)
    with pytest.raises(RuntimeError, match="once"):
        await stream.__aenter__()


async def test_whoever_leaves_aborts(local: Played) -> None:
    engine, meter = local.incarnation.engine, local.incarnation.meter

    async def closed(reached: int) -> None:
        assert len(engine.asked) > reached, "it has not come so far"
        await until(lambda: len(engine.closed) == len(engine.asked) and meter.in_flight == 0)

    async with anyio.create_task_group() as group:
        group.start_soon(local.complete, [72, 99])
        await until(lambda: bool(engine.asked))
        group.cancel_scope.cancel()
    await closed(0)

    reached = len(engine.asked)
    for limit in (0.05, 1.0, 10.0):  # on a busy machine the engine may not be asked within the first
        with pytest.raises(DeadlineExceeded, match=rf"vllm:some/model.*limit {limit:g} s"):
            await local.complete([72, 99], deadline=limit)
        if len(engine.asked) > reached:
            break
    await closed(reached)

    reached = len(engine.asked)
    async with local.stream_complete([72, 99]) as stream:
        await anext(stream)
    await closed(reached)

    async def read(stream: Any) -> None:
        async for _ in stream:
            pass

    reached = len(engine.asked)
    for limit in (0.05, 1.0, 10.0):
        async with local.stream_complete([72, 99], deadline=limit) as late:
            with pytest.raises(DeadlineExceeded):
                await read(late)
            assert [delta async for delta in late] == []
        if late.completion.token_ids:
            break
    assert late.completion.text == "H"
    await closed(reached)

    reached = len(engine.asked)
    forgotten = await local.stream_complete([72, 99]).__aenter__()
    await anext(forgotten)
    del forgotten
    gc.collect()
    await closed(reached)
    assert engine.aborted == engine.closed, "each by its name as well"


async def test_what_was_cancelled_before_it_began_is_counted_out(local: Played) -> None:
    for _ in range(50):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await local.complete([72, 99])
        with anyio.move_on_after(0):
            await local.complete([72, 99])
    meter = local.incarnation.meter
    await until(lambda: meter.in_flight == 0)
    assert not local.incarnation.inside


async def test_a_poll_of_a_stream_that_times_out_loses_nothing(local: Played) -> None:
    async with local.stream_complete([72, 99]) as stream:
        await anext(stream)
        with anyio.move_on_after(0.02) as scope:
            await anext(stream)
        assert scope.cancelled_caught
        assert not local.incarnation.engine.closed, "only leaving the block ends it"


async def test_death_ends_what_is_under_way_at_once(local: Played) -> None:
    died: list[EngineDied] = []

    async def one(stream: bool) -> None:
        with pytest.raises(EngineDied) as caught:
            await (streamed(local, [72, 99]) if stream else local.complete([72, 99]))
        died.append(caught.value)

    incarnation = local.incarnation
    async with anyio.create_task_group() as group:
        group.start_soon(one, True)
        group.start_soon(one, False)
        await until(lambda: len(incarnation.inside) == 2 and len(incarnation.engine.asked) == 2)
        await anyio.sleep(0.05)
        incarnation.soon(incarnation.die)
    assert sorted(error.in_stream for error in died) == [False, True]
    assert sorted(error.silent for error in died) == [False, True]
    await until(lambda: incarnation.meter.in_flight == 0)
    with pytest.raises(EngineDied):
        await local.complete([72])


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (lambda: VLLMClientError("secretword"), BadRequest, 400),
        (lambda: ValueError("secretword is longer than the maximum model length of 5"), ContextTooLong, 400),
        (lambda: QueueOverflowError("busy"), Overloaded, 503),
        (lambda: RuntimeError("secretword"), ServerError, 500),
        (lambda: caused(EngineGenerateError(), VLLMClientError("secretword")), BadRequest, 400),
        (lambda: EngineDeadError("secretword"), EngineDied, None),
    ],
    ids=["client", "too long", "full", "broken", "wrapped", "dead"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_errors(
    local: Played, error: Callable[[], Exception], kind: type[CallError], status: int | None, stream: bool
) -> None:
    local.incarnation.engine.error = error
    with pytest.raises(kind) as caught:
        await (streamed(local, [72]) if stream else local.complete([72]))
    told = caught.value
    assert type(told) is kind
    assert told.status == status
    assert "secretword" not in str(told) + repr(told)
    assert (told.provider, told.model) == ("vllm", "some/model")
    assert local.incarnation.meter.in_flight == 0


async def test_priority_adapter_and_isolation(home: Home) -> None:
    options: dict[str, Any] = {"scheduling_policy": "priority", "loras": {"red": "some/adapter"}}
    base = Played("some/model", isolate_prefixes_by="tenant", **options)
    base.incarnation = FakeIncarnation(home)
    red = base.adapter("red")
    asked = base.incarnation.engine.asked
    for tenant in ("a", "a", "b"):
        assert (await red.complete([72], priority=3, tags={"tenant": tenant})).model == "red"
    assert [one["priority"] for one in asked] == [-3, -3, -3]
    assert {one["lora_request"] for one in asked} == {"the red adapter"}
    salts = [one["prompt"]["cache_salt"] for one in asked]
    assert salts[0] == salts[1] != salts[2]
    with pytest.raises(UnsupportedParameter, match="prompt_logprobs"):
        await base.complete([72], prompt_logprobs=0)


async def test_wrong_calls_never_reach_the_engine(local: Played) -> None:
    with pytest.raises(InvalidArgument, match="priority: got 2 with scheduling_policy='fcfs'"):
        await local.complete([72], priority=2)
    for prompt in ([], [-1], None, 5, b"x"):
        with pytest.raises(InvalidArgument, match="prompt: got"):
            await local.complete(prompt)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="temperature"):
        local.stream_complete("x", temperature=-1)
    with pytest.raises(InvalidArgument, match="deadline"):
        await local.complete("x", deadline=-1)
    with pytest.raises(InvalidArgument, match="tags"):
        await local.complete("x", tags={"tenant": 5})  # type: ignore[dict-item]
    for call in (local.rank("q", ["d"]), local.classify(["t"]), local.embed_tokens([[1]])):
        with pytest.raises(InvalidArgument, match="runner: got 'generate'; allowed: 'pooling'"):
            await call
    with pytest.raises(InvalidArgument, match="continuations"):
        await local.score("x", "abc")
    assert local.incarnation.engine.asked == []
