"""ThroughputGuard: a stream that crawls is given up, if it can be before anybody saw it."""

import gc

import anyio
import pytest

from llmprod import (
    AttemptTimeout,
    Deadline,
    DeadlineExceeded,
    EmbedRequest,
    Failover,
    IdleTimeout,
    InvalidArgument,
    Overloaded,
    ReadError,
    Retry,
    StreamInterrupted,
    classify,
)
from llmprod.decisions import CrawlStopped
from llmprod.errors import StreamTooSlow
from llmprod.events import Finish, TextDelta, ThinkingDelta, ToolCallDelta
from llmprod.mechanisms.resume_plan import ContinueText
from llmprod.provider import Capabilities
from llmprod.testing.scripted import CUT, HANG, Scripted
from llmprod.verdict import Action
from llmprod.wrappers._limited import LimitedSource
from llmprod.wrappers.resume import Resume
from llmprod.wrappers.throughput_guard import ThroughputGuard, _PacedSource
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import STREAM, WHOLE, context, states

CRAWL = [item for _ in range(100) for item in (2.0, "a")]


def fast(characters=400, pause=0.1):
    return [item for _ in range(characters // 4) for item in (pause, "word")]


async def test_a_crawl_from_the_start_fails_before_it_is_committed():
    provider, told = Scripted(CRAWL), context()
    with pytest.raises(StreamTooSlow) as caught:
        await ThroughputGuard()(provider).send(STREAM, told)
    # Two seconds to the first content, and five of waiting after it.
    assert anyio.current_time() == pytest.approx(7)
    assert (caught.value.provider, caught.value.in_stream) == ("scripted", True)
    assert str(caught.value) == ("scripted: the answer crawled (less than 4 characters/s over 5 s), inside the stream")
    assert [(entry.state, entry.error) for entry in told.trace.entries] == [("failed", "StreamTooSlow")]
    (decision,) = told.trace.decisions
    assert isinstance(decision, CrawlStopped)
    assert (decision.characters, decision.seconds, decision.held) == (2, 5.0, True)
    assert provider.in_flight == provider.open_sources == 0


async def test_so_a_failover_is_invisible():
    slow, good = Scripted(CRAWL, name="slow"), Scripted(["Hel", "lo"], name="good")
    response = await Retry()(Failover(ThroughputGuard()(slow), good)).send(STREAM, context())
    assert [event async for event in response if isinstance(event, TextDelta)] == [TextDelta("Hel"), TextDelta("lo")]
    assert states(response) == ["failed", "ok"]
    assert slow.calls == 1


async def test_a_crawl_later_is_an_interruption():
    provider = Scripted([*fast(40), *CRAWL])
    response = await ThroughputGuard()(provider).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, StreamTooSlow)
    assert caught.value.partial_text.startswith("word" * 10)
    decision = response.trace.decisions[-1]
    assert isinstance(decision, CrawlStopped)
    assert not decision.held
    assert decision.characters < 20
    assert provider.in_flight == provider.open_sources == 0


async def test_which_resume_mends_elsewhere():
    prefill = Capabilities(prefill=True)
    slow = Scripted([*fast(40), *CRAWL], name="slow", capabilities=prefill)
    good = Scripted([" and done"], name="good", capabilities=prefill)
    stack = Resume(ContinueText())(Failover(ThroughputGuard()(slow), ThroughputGuard()(good)))
    response = await (await stack.send(STREAM, context())).read()
    assert response.text.endswith(" and done")
    assert (response.provider, slow.calls) == ("good", 1)


async def test_a_stream_that_is_fast_enough_is_untouched():
    response = await ThroughputGuard()(Scripted(fast())).send(STREAM, context())
    events = [event async for event in response]
    plain = [event async for event in await Scripted(fast()).send(STREAM, context())]
    assert events == plain
    assert response.complete


async def test_no_more_is_held_than_the_first_window_needs():
    async with await ThroughputGuard()(Scripted(fast())).send(STREAM, context()):
        assert anyio.current_time() == pytest.approx(0.5), "five words of four characters are 4 characters/s over 5 s"


async def test_hold_bounds_what_is_held():
    async with await ThroughputGuard(hold=8)(Scripted(fast())).send(STREAM, context()):
        assert anyio.current_time() == pytest.approx(0.2)
    async with await ThroughputGuard(hold=0)(Scripted(fast())).send(STREAM, context()):
        assert anyio.current_time() == pytest.approx(0.3)


async def test_without_holding_a_crawl_is_always_an_interruption():
    response = await ThroughputGuard(hold=0)(Scripted(CRAWL)).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert caught.value.partial_text == "aaa"
    assert not response.trace.decisions[-1].held


async def test_a_stall_counts_as_waiting():
    with pytest.raises(StreamTooSlow):
        await ThroughputGuard()(Scripted(["abc", HANG])).send(STREAM, context())
    assert anyio.current_time() == pytest.approx(5)


async def test_a_reader_that_takes_its_time_is_not_a_slow_target():
    response = await ThroughputGuard()(Scripted(fast(40))).send(STREAM, context())
    async for _ in response:
        await anyio.sleep(100)
    assert response.complete


async def test_a_short_answer_is_none_too_slow():
    response = await ThroughputGuard()(Scripted([2.0, "Yes", 1.0, "."])).send(STREAM, context())
    assert (await response.read()).text == "Yes."


async def test_reasoning_and_arguments_count():
    steps = [
        item for n in range(30) for item in (0.5, ThinkingDelta("thinking"), 0.5, ToolCallDelta(1, "c", "f", "123"))
    ]
    response = await ThroughputGuard()(Scripted(steps)).send(STREAM, context())
    assert (await response.read()).complete


@pytest.mark.parametrize("error", [ReadError(in_stream=True), Overloaded(in_stream=True)])
async def test_another_failure_among_what_is_held_is_raised_as_itself(error):
    told = context()
    with pytest.raises(type(error)) as caught:
        await ThroughputGuard()(Scripted(["abc", error])).send(STREAM, told)
    assert caught.value is error
    assert [entry.state for entry in told.trace.entries] == ["failed"]


async def test_an_end_among_what_is_held_is_told_as_it_is():
    with pytest.raises(StreamInterrupted):
        await (await ThroughputGuard()(Scripted(["abc", CUT])).send(STREAM, context())).read()
    response = await ThroughputGuard()(Scripted(["abc", Finish("length")])).send(STREAM, context())
    assert (await response.read()).finish_reason == "length"


@pytest.mark.parametrize("request_", [WHOLE, EmbedRequest(inputs=("x",))], ids=["whole", "embed"])
async def test_what_does_not_stream_passes_untouched(request_):
    response = await ThroughputGuard()(Scripted([100.0, "Hi"])).send(request_, context())
    assert response.complete


async def test_it_shares_a_step_with_the_attempts_limits():
    provider = Scripted([*fast(40), HANG])
    stack = ThroughputGuard(over=60, characters_per_second=0.1)(AttemptTimeout(idle=5)(provider))
    response = await stack.send(STREAM, context())
    assert isinstance(response._source, _PacedSource)
    assert not isinstance(response._source._source, LimitedSource)
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, IdleTimeout)
    assert anyio.current_time() == pytest.approx(6)


async def test_the_deadline_holds():
    response = await Deadline(3)(ThroughputGuard()(Scripted([*fast(40), HANG]))).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    with pytest.raises(DeadlineExceeded):
        await Deadline(3)(ThroughputGuard()(Scripted(["a", HANG]))).send(STREAM, context())


def test_its_verdict_is_another_target():
    verdict = classify(StreamTooSlow())
    assert (verdict.action, verdict.health) == (Action.RETRY_OTHER, "down")


async def test_dropped_unread():
    provider = Scripted(fast())
    response = await ThroughputGuard()(provider).send(STREAM, context())
    with pytest.warns(ResourceWarning, match="dropped unread"):  # noqa: PT031
        del response
        gc.collect()
    assert provider.in_flight == provider.open_sources == 0


@pytest.mark.parametrize(
    "steps", [CRAWL, fast(40), ["abc", 0.5, ReadError(in_stream=True)]], ids=["crawl", "fast", "cut"]
)
async def test_cancelled_anywhere(steps):
    def scenario():
        provider, told = Scripted(steps), context()

        async def run():
            try:
                async with await Deadline(60)(ThroughputGuard()(AttemptTimeout()(provider))).send(
                    STREAM, told
                ) as response:
                    await response.read()
            except (StreamTooSlow, ReadError):
                pass

        def check():
            assert provider.in_flight == provider.open_sources == 0
            assert {entry.state for entry in told.trace.entries} <= {
                "ok",
                "failed",
                "interrupted",
                "cancelled",
                "closed",
            }

        return run(), check

    assert await sweep(scenario) >= 3


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"characters_per_second": 0}, "characters_per_second"),
        ({"over": 0.5}, "over"),
        ({"over": 61}, "over"),
        ({"hold": -1}, "hold"),
    ],
)
def test_wrong_options(options, field):
    with pytest.raises(InvalidArgument) as caught:
        ThroughputGuard(**options)
    assert caught.value.field == field


def test_its_repr():
    assert repr(ThroughputGuard()) == "ThroughputGuard(4 characters/s over 5 s)"
