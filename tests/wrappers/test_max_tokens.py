"""MaxTokens: requests get a limit, and streams that find no end are given one."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from llmprod import Failover, InvalidArgument, Retry, StreamInterrupted, Usage
from llmprod.decisions import AnswerLimited, RunawayStopped
from llmprod.errors import RunawayAnswer
from llmprod.events import Finish, ThinkingDelta, ToolCallDelta, UsageUpdate
from llmprod.mechanisms.answer_length import AnswerLengths
from llmprod.mechanisms.budget import BudgetLimit
from llmprod.provider import PARAMETERS, Capabilities
from llmprod.testing.scripted import HANG, Scripted
from llmprod.verdict import Action, classify
from llmprod.wrapper import Phase
from llmprod.wrappers.budget import Budget
from llmprod.wrappers.max_tokens import MaxTokens
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, ask, context


def asked(wrapper: MaxTokens, provider: Scripted, request: Any = WHOLE, **options: Any) -> Any:
    async def run() -> int | None:
        response = await ask(wrapper(provider), request, **options)
        told = [decision for decision in response.trace.decisions if isinstance(decision, AnswerLimited)]
        got = getattr(provider.requests[-1], "max_tokens", None)
        assert [decision.max_tokens for decision in told] == (
            [got] if got != getattr(request, "max_tokens", None) else []
        )
        return got

    return run()


def told(tokens: int, reason: Any = "stop") -> list[Any]:
    return ["Hi", UsageUpdate(Usage(input=1, output=tokens)), Finish(reason)]


def test_options_are_checked():
    for options, field in [
        ({"default": 0}, "default"),
        ({"ceiling": 1.5}, "ceiling"),
        ({"by": [1]}, "by"),
        ({"by": {"a": 0}}, "by['a']"),
        ({"tag": ""}, "tag"),
        ({"learn": 1}, "learn"),
        ({"stop_length": None}, "stop_length"),
        ({"stop_repetition": 1}, "stop_repetition"),
        ({"stop_repetition": {"often": 1}}, "stop_repetition"),
        ({"stop_repetition": {"repeats": 1}}, "repeats"),
    ]:
        with pytest.raises(InvalidArgument) as caught:
            MaxTokens(**options)
        assert caught.value.field == field


def test_it_says_what_it_is():
    made = MaxTokens(500, by={"title": 40}, learn=True, ceiling=2000)
    assert repr(made) == "MaxTokens(500, title: 40, learned, at most 2000)"
    assert Phase.OUTPUT_GUARD < made.phase < Phase.BUDGET


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "tags", "set_", "sent"),
    [
        ({}, {}, None, None),
        ({"default": 500}, {}, None, 500),
        ({"default": 500}, {}, 80, 80),
        ({"default": 500, "by": {"title": 40}}, {"endpoint": "title"}, None, 40),
        ({"default": 500, "by": {"title": 40}}, {"endpoint": "other"}, None, 500),
        ({"by": {"x": 40}, "tag": "team"}, {"team": "x"}, None, 40),
        ({"ceiling": 300}, {}, None, 300),
        ({"ceiling": 300}, {}, 900, 300),
        ({"ceiling": 300}, {}, 90, 90),
        ({"default": 500, "ceiling": 300}, {}, None, 300),
    ],
)
async def test_the_limit_that_is_sent(options, tags, set_, sent):
    request = replace(WHOLE, max_tokens=set_)
    assert await asked(MaxTokens(**options), Scripted("Hi"), request, tags=tags) == sent


async def test_a_limit_is_learned_for_each_endpoint_and_prompt():
    wrapper = MaxTokens(4000, learn=AnswerLengths(minimum=3))
    provider = Scripted(*[told(400)] * 4, then=told(10))
    prompt = {"tags": {"endpoint": "a"}, "prompt": ("summary", "1")}
    assert [await asked(wrapper, provider, **prompt) for _ in range(4)] == [4000, 4000, 4000, 600]
    assert await asked(wrapper, provider, tags={"endpoint": "b"}) == 4000
    assert await asked(wrapper, provider, tags={"endpoint": "a"}, prompt=("other", "1")) == 4000
    assert await asked(wrapper, provider, replace(WHOLE, max_tokens=9000), **prompt) == 9000, "a caller's own stands"


async def test_only_complete_answers_teach_and_cut_ones_teach_more():
    lengths = AnswerLengths(minimum=1)
    wrapper = MaxTokens(learn=lengths)
    stream = await wrapper(Scripted(["Hello", UsageUpdate(Usage(output=1)), HANG])).send(STREAM, context())
    await stream.aclose()
    assert lengths.limit("\x1f") is None
    await ask(wrapper(Scripted(told(400, "length"))))
    assert lengths.limit("\x1f") == 1200


async def test_a_learned_limit_is_no_higher_than_the_one_given():
    lengths = AnswerLengths(minimum=1)
    lengths.learn("\x1f", 9000)
    assert await asked(MaxTokens(500, learn=lengths), Scripted("Hi")) == 500


async def test_what_has_no_place_for_a_limit_is_left_alone():
    bare = Capabilities(parameters=PARAMETERS - {"max_tokens"}, embeddings=True)
    assert await asked(MaxTokens(500), Scripted("Hi", capabilities=bare)) is None
    first, second = Scripted("Hi"), Scripted("Hi", capabilities=bare)
    await ask(MaxTokens(500)(Failover(first, second)))
    assert first.requests[0].max_tokens is None
    assert (await ask(MaxTokens(500)(Scripted([Finish("stop")])), EMBED)).embeddings


async def test_a_budget_inside_reserves_by_it():
    budget = Budget(BudgetLimit("0.00006", per="call"), price={"scripted": (0, 1)}, tokens=lambda request: 0)
    assert (await ask(MaxTokens(50)(budget(Scripted(told(20)))))).complete


# ---- runaways -------------------------------------------------------------------------------------------------------


def endless(piece: Any, count: int = 5000) -> list[Any]:
    return ["Once upon a time. ", *[piece] * count, UsageUpdate(Usage(input=1, output=count)), Finish("length")]


async def stopped(wrapper: MaxTokens, step: list[Any], request: Any = STREAM) -> tuple[StreamInterrupted, Scripted]:
    provider = Scripted(step)
    with pytest.raises(StreamInterrupted) as caught:
        await ask(wrapper(Retry()(provider)), request)
    assert provider.in_flight == provider.open_sources == 0, "it goes on upstream"
    assert provider.calls == 1
    return caught.value, provider


@pytest.mark.parametrize(
    "piece",
    [
        "and so on ",
        ThinkingDelta("Wait, let me think. ", part=3),
        ToolCallDelta(part=1, arguments='{"a": 1}, '),
    ],
    ids=["text", "thinking", "arguments"],
)
async def test_a_loop_is_stopped_and_what_arrived_is_kept(piece):
    error, _ = await stopped(MaxTokens(), endless(piece))
    cause = error.__cause__
    assert isinstance(cause, RunawayAnswer)
    assert cause.reason == "repetition"
    assert classify(cause).action is Action.FATAL
    assert error.partial_text.startswith("Once upon a time. ")
    assert error.partial is not None
    assert not error.partial.complete
    (found,) = [decision for decision in error.trace.decisions if isinstance(decision, RunawayStopped)]
    assert found.reason == "repetition"
    assert 3000 <= found.characters <= 3300
    assert "so on" not in str(error) + str(cause)


async def test_one_that_waits_after_the_loop_is_stopped_without_waiting_for_more():
    error, _ = await stopped(MaxTokens(), ["x", *["la "] * 1100, HANG])
    assert isinstance(error.__cause__, RunawayAnswer)


async def test_thresholds_can_be_set_or_the_look_out_left_off():
    step = endless("and so on ", 400)
    assert (await ask(MaxTokens(stop_repetition={"characters": 5000})(Scripted(step)), STREAM)).complete
    assert (await ask(MaxTokens(stop_repetition=False)(Scripted(endless("and so on "))), STREAM)).complete


async def test_a_stream_far_longer_than_it_may_be_is_stopped():
    pieces = [f"{number} is a number. " for number in range(1000)]
    error, _ = await stopped(MaxTokens(100), pieces)
    assert isinstance(error.__cause__, RunawayAnswer)
    assert error.__cause__.reason == "length"
    assert 1800 < len(error.partial_text) < 1850
    assert (await ask(MaxTokens(100, stop_length=False)(Scripted(pieces)), STREAM)).complete
    assert (await ask(MaxTokens()(Scripted(pieces)), STREAM)).complete, "without a limit no length is too much"


async def test_a_provider_that_counts_beyond_the_limit_is_stopped_when_it_goes_on():
    step = ["a", UsageUpdate(Usage(output=101)), "b", "c", HANG]
    error, _ = await stopped(MaxTokens(100), step)
    assert error.partial_text == "ab"
    assert (await ask(MaxTokens(100)(Scripted(told(101))), STREAM)).complete, "one that is over is an answer"


async def test_events_that_came_together_are_looked_at_too():
    class Burst:
        def __init__(self, source: Any) -> None:
            self.source, self.ready = source, []

        def poll(self) -> Any:
            return self.ready.pop(0) if self.ready else None

        async def __anext__(self) -> Any:
            for _ in range(50):
                self.ready.append(await self.source.__anext__())
            return self.ready.pop(0)

        async def aclose(self) -> None:
            await self.source.aclose()

    provider = Scripted(endless("and so on "))

    async def bursts(request: Any, told: Any) -> Any:
        response = await provider.send(request, told)
        response.transform(Burst)
        return response

    outer = Scripted(bursts)
    with pytest.raises(StreamInterrupted):
        await ask(MaxTokens()(outer), STREAM)
    assert provider.open_sources == 0


async def test_a_whole_answer_stands_as_it_came():
    assert (await ask(MaxTokens(10)(Scripted(endless("and so on "))))).complete


async def test_a_budget_counts_what_arrived_of_it():
    limit = BudgetLimit("0.1", per=1e9)
    budget = Budget(limit, price={"scripted": (0, 1)}, tokens=lambda request: 0)
    with pytest.raises(StreamInterrupted):
        await ask(MaxTokens(4000)(budget(Scripted(endless("and so on ")))), STREAM)
    from llmprod.mechanisms.budget_store import Bound

    (level,) = await budget.store.spent([Bound(limit, limit.key({}))])
    assert level.reserved == 0
    assert Decimal(3000) / 2 <= Decimal(level.spent) / 1000 <= Decimal(3300) / 2
