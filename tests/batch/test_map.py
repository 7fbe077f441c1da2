"""client.map on a running loop: order, bounds, failures, inputs."""

import contextvars
import itertools
from decimal import Decimal

import anyio
import pytest
from pydantic import BaseModel

from llmprod import (
    AsyncClient,
    BadRequest,
    BatchItem,
    ClientClosed,
    CostMeter,
    EmbedRequest,
    GenerateRequest,
    InvalidArgument,
    InvalidOutput,
    Message,
    Overloaded,
    PriceBook,
    RateLimit,
    Retry,
    Simulated,
    Tool,
    Usage,
)
from llmprod.clock import LoopClock
from llmprod.events import Finish, TextDelta, ToolCallDone, UsageUpdate
from llmprod.testing import CUT, Scripted
from llmprod.types import ToolCall
from tests.batch.helpers import Timed, bare


async def read(results, seen):
    """Collect texts up to the end or an error."""
    async for result in results:
        seen.append(result.text)


async def test_results_come_in_the_order_of_the_input():
    provider = Timed()
    results = [result async for result in bare(provider).map(["3", "1", "2", "0"])]
    assert [result.text for result in results] == ["a 3", "a 1", "a 2", "a 0"]
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert [result.key for result in results] == ["0", "1", "2", "3"]
    assert anyio.current_time() - results[0].response.context.call.started == pytest.approx(3)
    assert provider.most == 4


async def test_a_result_tells_what_the_response_does():
    [result] = [result async for result in bare(Timed()).map(["1.5"])]
    assert result.ok
    assert result.error is None
    assert not result.restored
    assert (result.model, result.finish_reason, result.usage) == ("timed-1", "stop", Usage(input=1, output=2))
    assert result.parts == result.response.parts
    assert result.tool_calls == ()
    assert result.parsed is None
    assert result.embeddings is None
    assert result.seconds == pytest.approx(1.5)
    assert len(result.response.trace.attempts) == 1


@pytest.mark.parametrize("loaded", [True, False])
async def test_each_item_has_its_cost_and_the_run_its_sum(tmp_path, loaded):
    answered = ["Hi", UsageUpdate(Usage(input=999_992, output=1)), Finish("stop")]  # 1.25 dollars
    steps = [answered, Overloaded(), answered, BadRequest(), TimeoutError("mine"), [*answered[:1], CUT]]
    target = Scripted(*steps, then=answered, name="openai:gpt-5")
    prices = PriceBook(prices="snapshot")
    if loaded:
        prices.load()
    client = AsyncClient(Retry(clock=LoopClock())(target), cost_meter=CostMeter(prices), clock=LoopClock())
    items = ["one", "retried", "refused", "broken", BatchItem("never sent", options={"temperature": 9}), "cut"]
    results = client.map(items, concurrency=1, checkpoint=tmp_path / "x")
    read = [result async for result in results]
    dollar = Decimal("1.25")
    assert [result.cost for result in read[:3]] == [dollar, dollar, 0]
    assert read[3].cost is None
    assert read[4].cost == 0
    assert read[5].cost > dollar  # the first try was cut, and is estimated
    assert results.progress.cost == sum(result.cost or 0 for result in read) == client.costs.total
    assert results.progress.unpriced == 1
    again = client.map(["one"], checkpoint=tmp_path / "x")
    [restored] = [result async for result in again]
    assert restored.restored
    assert restored.cost == dollar
    assert (again.progress.cost, again.progress.unpriced) == (0, 0)


async def test_as_completed():
    results = [result.text async for result in bare(Timed()).map(["3", "1", "2", "0"], ordered=False)]
    assert results == ["a 0", "a 1", "a 2", "a 3"]


async def test_a_slow_first_item_stops_nobody_until_the_window_is_full():
    provider = Timed()
    prompts = ["100", *["1"] * 30]
    async with bare(provider).map(prompts, concurrency=3) as results:
        started = anyio.current_time()
        assert (await anext(results)).text == "a 100"
        assert anyio.current_time() - started == pytest.approx(100)
        assert len(provider.asked) == 12  # four times three were taken
        assert [result.text async for result in results] == ["a 1"] * 30
    assert provider.most == 3


async def test_an_endless_input_is_taken_as_there_is_room():
    taken = itertools.count()
    provider = Timed()

    def endless():
        while True:
            next(taken)
            yield "1"

    async with bare(provider).map(endless(), concurrency=5) as results:
        for _ in range(50):
            await anext(results)
            await anyio.sleep(7)  # a reader slower than the model
        assert next(taken) <= 50 + 4 * 5
        await anyio.sleep(1000)  # who stops reading holds everything back
        assert next(taken) <= 51 + 4 * 5
        assert provider.in_flight == 0
    assert provider.most <= 5


async def test_ten_thousand_items_with_a_bounded_number_at_once():
    provider = Timed()
    async with bare(provider).map((f"1 {number}" for number in range(10_000)), concurrency=100) as results:
        seen = [result.text async for result in results]
    assert seen == [f"a 1 {number}" for number in range(10_000)]
    assert provider.most == 100


async def test_a_failed_item_stops_no_other():
    prompts = ["1", "2 fail", "", "1", "0 fail"]
    results = [result async for result in bare(Timed()).map(prompts)]
    assert [result.ok for result in results] == [True, False, False, True, False]
    assert isinstance(results[1].error, Overloaded)
    assert results[1].seconds == pytest.approx(2)
    assert results[1].response is None
    assert results[1].text == ""
    assert isinstance(results[2].error, InvalidArgument)
    assert results[2].error.field == "messages"


async def test_what_a_provider_of_ones_own_raises_is_the_items_error():
    provider = Scripted("one", ZeroDivisionError("a bug"), "three")
    results = [result async for result in bare(provider).map(["a", "b", "c"], concurrency=1)]
    assert [type(result.error).__name__ for result in results] == ["NoneType", "ZeroDivisionError", "NoneType"]


@pytest.mark.parametrize("ordered", [True, False])
async def test_raise_at_the_first_failure_cancels_the_rest(ordered):
    provider = Timed()
    seen = []
    results = bare(provider).map(
        itertools.chain(["5", "2 fail"], itertools.repeat("60")), concurrency=4, ordered=ordered, on_error="raise"
    )
    with pytest.raises(Overloaded) as raised:
        await read(results, seen)
    assert seen == (["a 5"] if ordered else [])
    assert raised.value.__notes__ == ["in item 1 of client.map"]
    assert (provider.in_flight, len(provider.asked)) == (0, 4)
    assert provider.cancelled == (2 if ordered else 3)
    assert [result async for result in results] == []


async def test_options_are_for_all_and_an_items_own_come_first():
    provider = Scripted(then="ok")
    request = GenerateRequest(messages=(Message.user("whole"),), temperature=0, stream=True)
    items = [
        "text",
        Message.user("message"),
        [Message.user("one"), {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}],
        request,
        BatchItem("own", key="mine", options={"max_tokens": 7, "tags": {"user": "ann"}}),
        BatchItem(request, options={"temperature": 0.5, "system": "Rhyme."}),
    ]
    client = bare(provider)
    options = {"max_tokens": 20, "temperature": 1.0, "system": "Be brief.", "deadline": 9, "stop": "x"}
    results = [result async for result in client.map(items, concurrency=1, **options)]
    assert [result.key for result in results] == ["0", "1", "2", "3", "mine", "5"]
    asked = provider.requests
    assert [item.max_tokens for item in asked] == [20, 20, 20, 20, 7, 20]
    assert [item.temperature for item in asked] == [1, 1, 1, 0, 1, 0.5]
    assert [item.messages[0].text for item in asked] == ["Be brief."] * 5 + ["Rhyme."]
    assert {item.stop for item in asked} == {("x",)}
    assert not any(item.stream for item in asked)
    assert [len(item.messages) for item in asked] == [2, 2, 4, 2, 2, 2]
    assert {round(context.remaining or 0) for context in provider.contexts} == {9}
    assert [context.tags.get("user") for context in provider.contexts] == [None] * 4 + ["ann", None]


async def test_a_whole_request_keeps_its_own_instructions():
    provider = Scripted(then="ok")
    request = GenerateRequest(messages=(Message.system("Mine."), Message.user("x")))
    async for result in bare(provider).map([request], system="Shared."):
        assert result.ok
    assert [message.text for message in provider.requests[0].messages] == ["Mine.", "x"]


async def test_embeddings():
    client = bare(Simulated("instant"))
    items = [EmbedRequest(inputs=(f"text {number}", "another"), dimensions=8) for number in range(3)]
    results = [result async for result in client.map(items, deadline=10)]
    assert [[len(vector) for vector in result.embeddings] for result in results] == [[8, 8]] * 3
    assert results[0].embeddings[0] != results[1].embeddings[0]
    assert results[0].embeddings[1] == results[1].embeddings[1]
    [wrong] = [result async for result in client.map(items[:1], max_tokens=9)]
    assert isinstance(wrong.error, InvalidArgument)
    assert wrong.error.field == "max_tokens"


class City(BaseModel):
    name: str


async def test_an_answer_is_parsed_and_one_that_does_not_fit_has_failed():
    provider = Scripted('{"name": "Bern"}', "no city", [TextDelta('{"name": "B'), Finish("length")])
    results = [result async for result in bare(provider).map(["a", "b", "c"], output=City, concurrency=1)]
    assert results[0].parsed == City(name="Bern")
    assert [type(result.error) for result in results[1:]] == [InvalidOutput, InvalidOutput]
    assert [result.text for result in results[1:]] == ["no city", '{"name": "B']
    assert results[1].response is not None


async def test_tool_calls_beside_a_schema_are_no_failure():
    provider = Scripted([ToolCallDone(ToolCall("1", "look", "{}"), 0), Finish("tool_calls")])
    look = Tool(name="look", parameters={"type": "object"})
    [result] = [result async for result in bare(provider).map(["a"], output=City, tools=[look])]
    assert result.ok
    assert [call.name for call in result.tool_calls] == ["look"]
    assert result.parsed is None


async def test_a_rate_limit_of_the_stack_is_kept_to():
    provider = Timed()
    sent = []
    limit = RateLimit(requests_per_minute=60, burst=5, clock=LoopClock())
    async with bare(provider, wrappers=[limit]).map(["0"] * 100, concurrency=40) as results:
        started = anyio.current_time()
        async for result in results:
            assert result.ok, result.error
            sent.append(result.response.trace.attempts[0].started + result.response.context.call.started - started)
    sent.sort()
    # Never more than the burst and what has been earned since.
    assert all(sent[place + 10] - sent[place] >= 10 - 5 - 0.01 for place in range(90))
    assert sent[-1] == pytest.approx(95, abs=2)


async def test_the_model_says_how_many_at_once_it_wants():
    class Wide(Timed):
        batch_concurrency = 7

    wide, narrow = Wide(), Timed()
    async for _ in bare(wide).map(["1"] * 50):
        wide.batch_concurrency = 9  # as an engine that has started
    assert wide.most == 9
    async for _ in bare(narrow).map(["1"] * 50):
        pass
    assert narrow.most == 32
    async for _ in AsyncClient(wide, fallbacks=[narrow], clock=LoopClock()).map(["1"] * 50, concurrency=3):
        pass
    assert wide.most == 9


async def test_an_async_input_is_iterated_and_closed_in_one_task():
    log = []

    async def source():
        async with anyio.create_task_group():  # may only be left by the task that entered it
            try:
                for number in itertools.count():
                    await anyio.sleep(0.1)
                    yield f"1 {number}"
            finally:
                log.append("closed")

    async with bare(Timed()).map(source(), concurrency=2) as results:
        for number in range(20):
            assert (await anext(results)).text == f"a 1 {number}"
    assert log == ["closed"]


async def test_an_input_that_fails_is_told_after_what_came_before_it():
    def source():
        yield from ("1", "2")
        raise OSError("the file is gone")

    seen = []
    results = bare(Timed()).map(source())
    with pytest.raises(OSError, match="gone"):
        await read(results, seen)
    assert seen == ["a 1", "a 2"]
    assert [result async for result in results] == []


async def test_nothing_to_do():
    assert [result async for result in bare(Timed()).map([])] == []
    assert [result async for result in bare(Timed()).map(iter(()), ordered=False)] == []


async def test_one_batch_can_be_another_ones_input():
    client = bare(Timed())

    async def then(results):
        async for result in results:
            yield f"1 {result.text}"

    texts = [result.text async for result in client.map(then(client.map(["2", "1"])))]
    assert texts == ["a 1 a 2", "a 1 a 1"]


async def test_several_readers_share_the_results():
    results = bare(Timed()).map([f"1 {number}" for number in range(100)], concurrency=4)
    seen = []

    async def reader():
        async for result in results:
            seen.append(result.index)  # noqa: PERF401

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(reader)
    assert sorted(seen) == list(range(100))


async def test_a_closed_client_says_so():
    client = bare(Timed())
    results = client.map(["1"] * 100, concurrency=2)
    await anext(results)
    await client.aclose()
    with pytest.raises(ClientClosed):
        await read(results, [])
    with pytest.raises(ClientClosed):
        client.map(["1"])


SPEAKER = contextvars.ContextVar("SPEAKER", default="nobody")


async def test_context_variables_follow():
    async def say(request, context):
        return await Scripted(SPEAKER.get()).send(request, context)

    SPEAKER.set("Ada")
    [result] = [result async for result in bare(Scripted(then=say)).map(["x"])]
    assert result.text == "Ada"


@pytest.mark.parametrize(
    "given", ["Hello", b"bytes", Message.user("Hello"), {"role": "user", "content": "x"}, BatchItem("x"), 7, None]
)
async def test_one_request_is_not_several(given):
    with pytest.raises(InvalidArgument, match="requests: got"):
        bare(Timed()).map(given)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"ordered": 1}, "ordered"),
        ({"on_error": "stop"}, "on_error"),
        ({"progress": "yes"}, "progress"),
        ({"checkpoint": 3}, "checkpoint"),
        ({"checkpoint": ""}, "checkpoint"),
        ({"max_token": 3}, "max_token"),
        ({"temperature": 3}, "temperature"),
        ({"deadline": -1}, "deadline"),
        ({"tags": {"user": 3}}, "tags"),
        ({"extra": {"openai": {}}}, "extra['openai']"),
    ],
)
async def test_wrong_arguments_are_told_at_once(options, field):
    with pytest.raises(InvalidArgument) as raised:
        bare(Timed()).map(["1"], **options)
    assert raised.value.field == field


async def test_wrong_options_of_an_item_are_the_items():
    items = [
        BatchItem("1", options={"temperature": 3}),
        BatchItem("1", options={"max_token": 3}),
        BatchItem("1", options={"deadline": -1}),
        GenerateRequest(messages=(Message.user("1"),), extra={"openai": {"x": 1}}),
    ]
    results = [result async for result in bare(Timed()).map(items)]
    assert [result.error.field for result in results] == ["temperature", "max_token", "deadline", "extra['openai']"]
    for wrong in ({"key": ""}, {"key": 3}, {"options": ["x"]}):
        with pytest.raises(InvalidArgument):
            BatchItem("1", **wrong)


async def test_nothing_shows_a_prompt_or_an_answer():
    secret = "1 my-secret"
    results = bare(Timed()).map([BatchItem(secret, key="my-secret"), BatchItem("1 fail my-secret", key="k")])
    shown = repr(results) + repr(BatchItem(secret))
    async for result in results:
        shown += repr(result) + str(result.error)
    assert "my-secret" not in shown
    assert repr(results) == "<Batch 2 of 2 done, 1 failed>"
