"""Equal calls under way share one call upstream, whoever of them is cancelled, stops reading or is slow."""

import asyncio
import gc
import random
import threading
import time
import warnings
from dataclasses import replace
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from llmprod import (
    AsyncClient,
    BadRequest,
    BudgetExceeded,
    BulkheadFull,
    Deadline,
    DeadlineExceeded,
    LoopClock,
    Overloaded,
    ReadError,
    ServerError,
    StreamInterrupted,
    Usage,
)
from llmprod.decisions import CacheJoined, CacheMiss, CacheStored
from llmprod.events import Finish, Start, TextDelta, ToolCallDelta, ToolCallDone, UsageUpdate
from llmprod.stores.memory import MemoryStore
from llmprod.testing.scripted import HANG, Scripted
from llmprod.types import ToolCall
from tests.cancel_sweep import Stepper
from tests.wrappers.cache_helpers import ASKED, STREAMED, caching, decided, kinds, memory, sweep_shared
from tests.wrappers.helpers import EMBED, context

ANSWER = [0.5, "Hel", 0.5, "lo", 0.5, " there", 0.5]
TEXT = "Hello there"


async def read(provider, request, **options):
    response = await provider.send(request, context(**options))
    await response.read()
    return response


def idle(inner: Scripted, provider) -> None:
    """Nothing is under way any more."""
    assert (inner.in_flight, inner.open_sources) == (0, 0)
    assert provider._flights == {}
    assert provider._under_way == set()


@pytest.mark.parametrize("mix", ["whole", "streamed", "both"])
async def test_a_thousand_equal_calls_are_one(mix):
    inner = Scripted(ANSWER)
    cache = caching()
    provider = cache(inner)
    responses = []

    async def call(number: int) -> None:
        streamed = mix == "streamed" or (mix == "both" and number % 2 == 0)
        responses.append(await read(provider, STREAMED if streamed else ASKED))

    async with anyio.create_task_group() as group:
        for number in range(1000):
            group.start_soon(call, number)
    assert inner.calls == 1
    assert {response.text for response in responses} == {TEXT}
    assert {response.finish_reason for response in responses} == {"stop"}
    paid = [response for response in responses if response.cached is None]
    assert [response.usage for response in paid] == [Usage(input=1, output=7 - 4)]
    others = [response for response in responses if response.cached is not None]
    assert len(others) == 999
    for response in others:
        assert response.usage == Usage()
        assert response.cost == 0
        assert response.cached.joined
        assert response.cached.usage == paid[0].usage
        assert kinds(response) == ["CacheJoined"]
    stats = cache.stats()
    assert (stats.misses, stats.joined, stats.hits, stats.stored) == (1, 999, 0, 1)
    assert stats.tokens_saved == 999 * 4
    assert stats.hit_rate == 0.999
    idle(inner, provider)


async def test_embeddings_are_shared_too():
    inner = Scripted([1.0])
    provider = caching()(inner)
    responses = []

    async def call() -> None:
        responses.append(await read(provider, EMBED))

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(call)
    responses.append(await read(provider, EMBED))
    assert inner.calls == 1
    assert all(response.embeddings == [[1.0, 0.0]] for response in responses)


@pytest.mark.parametrize("stored", [False, True], ids=["joined", "stood in"])
async def test_vectors_that_one_caller_changes_stay_as_they_were_for_the_others(stored):
    store = memory()
    inner = Scripted([1.0], [1.0, Overloaded()])
    provider = caching(store=store, ttl=10, stale_if_error=60)(inner)
    if stored:
        await read(provider, EMBED)
        await anyio.sleep(20)
    responses = []

    async def call() -> None:
        responses.append(await read(provider, EMBED))
        responses[-1].embeddings[0][0] = 99.0 * len(responses)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
    assert [response.embeddings[0][0] for response in responses] == [99.0, 198.0, 297.0]
    assert len({id(vector) for response in responses for vector in response.embeddings}) == 3


async def test_calls_that_differ_share_nothing():
    inner = Scripted(then=ANSWER)
    provider = caching()(inner)
    async with anyio.create_task_group() as group:
        group.start_soon(read, provider, ASKED)
        group.start_soon(read, provider, replace(ASKED, max_tokens=5))
    assert inner.calls == 2


async def test_streams_are_live_and_who_comes_late_gets_all_from_the_beginning():
    inner = Scripted(["a", 1.0, "b", 1.0, "c", 1.0])
    provider = caching()(inner)
    seen: dict[str, list[tuple[float, str]]] = {}
    begun = anyio.current_time()

    async def call(name: str, after: float) -> None:
        await anyio.sleep(after)
        response = await provider.send(STREAMED, context())
        seen[name] = [
            (round(anyio.current_time() - begun, 3), event.text)
            async for event in response
            if isinstance(event, TextDelta)
        ]

    async with anyio.create_task_group() as group:
        group.start_soon(call, "leader", 0)
        group.start_soon(call, "early", 0.5)
        group.start_soon(call, "late", 1.5)
    assert seen["leader"] == [(0, "a"), (1, "b"), (2, "c")]
    assert seen["early"] == [(0.5, "a"), (1, "b"), (2, "c")]
    assert seen["late"] == [(1.5, "a"), (1.5, "b"), (2, "c")]
    assert inner.calls == 1


async def test_all_readers_see_the_same_events_less_the_usage():
    call = ToolCall("call_1", "find", '{"a": 1}')
    events = [
        Start("m", "r1"), TextDelta("x", 0), ToolCallDelta(1, "call_1", "find", ""),
        ToolCallDelta(1, arguments='{"a": 1}'), ToolCallDone(call, 1), UsageUpdate(Usage(input=3, output=4)),
        Finish("tool_calls"),
    ]  # fmt: skip
    inner = Scripted([0.1, *events])
    provider = caching()(inner)
    seen = []

    async def one() -> None:
        response = await provider.send(STREAMED, context())
        seen.append([event async for event in response])

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(one)
    leader = max(seen, key=lambda events: sum(e.usage.total for e in events if isinstance(e, UsageUpdate)))
    assert leader == [Start("scripted"), *events]
    zeroed = [UsageUpdate(Usage()) if isinstance(event, UsageUpdate) else event for event in leader]
    assert [other for other in seen if other is not leader] == [zeroed, zeroed]


# ---- who goes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cancelled", "closed", "dropped"])
@pytest.mark.parametrize("events", range(7))
async def test_a_leader_that_goes_after_any_event_hands_over(events, way):
    inner = Scripted(ANSWER)
    provider = caching()(inner)
    texts = []

    async def leader(scope: anyio.CancelScope) -> None:
        response = await provider.send(STREAMED, context())
        for _ in range(events):
            await response.__anext__()
        if way == "cancelled":
            scope.cancel()
            await response.read()
            await anyio.lowlevel.checkpoint()  # the rest may have been there
            raise AssertionError("not cancelled")
        if way == "closed":
            await response.aclose()

    async def follower(request) -> None:
        await anyio.sleep(0.1)
        texts.append((await read(provider, request)).text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with anyio.create_task_group() as group:
            for request in (STREAMED, ASKED, STREAMED):
                group.start_soon(follower, request)
            scope = anyio.CancelScope()

            async def scoped() -> None:
                with scope:
                    await leader(scope)

            group.start_soon(scoped)
        gc.collect()
    assert texts == [TEXT] * 3
    assert inner.calls == 1
    idle(inner, provider)


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_a_leader_cancelled_at_any_await_hands_over(request_):
    async def run(place: int | None) -> int:
        inner = Scripted(ANSWER, then=ANSWER)
        provider = caching()(inner)
        texts = []

        async def follower(request) -> None:
            texts.append((await read(provider, request)).text)

        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()
            leading = Stepper(read(provider, request_), place, scope.cancel)

            async def lead() -> None:
                with scope:
                    await leading

            group.start_soon(lead)
            await anyio.sleep(0.1)
            group.start_soon(follower, STREAMED)
            group.start_soon(follower, ASKED)
        assert texts == [TEXT, TEXT]
        # At the very first await there was nobody yet to hand over to.
        assert inner.calls == (2 if place == 1 else 1)
        idle(inner, provider)
        return leading.count

    count = await run(None)
    assert count >= (1 if request_ is ASKED else 4)
    for place in range(1, count + 1):
        await run(place)


@pytest.mark.parametrize("moment", [0.1, 0.6, 1.1, 1.6, 1.9])
@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_a_leader_cancelled_at_any_time_hands_over_and_so_do_all_but_the_last(request_, moment):
    inner = Scripted(ANSWER)
    provider = caching()(inner)
    done = []

    async def call(end: float | None) -> None:
        with anyio.move_on_after(end if end is not None else 100):
            done.append((await read(provider, request_)).text)

    async with anyio.create_task_group() as group:
        for end in (moment, moment + 0.01, moment + 0.02, None):
            group.start_soon(call, end)
            await anyio.sleep(0.001)
    assert done == [TEXT]
    assert inner.calls == 1
    idle(inner, provider)


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_alone_and_cancelled_anywhere_nothing_is_left_and_nothing_stored(request_):
    def scenario():
        inner = Scripted(ANSWER)
        store = memory()
        provider = caching(store=store)(inner)
        told = context()

        async def run():
            response = await provider.send(request_, told)
            async with response:
                await response.read()
            return response

        def check():
            idle(inner, provider)
            assert [entry.state for entry in told.trace.entries] in ([], ["ok"], ["cancelled"])
            stored = any(isinstance(decision, CacheStored) for decision in told.trace.decisions)
            assert stored == (store.stats().items == 1)
            whole = [entry.state for entry in told.trace.entries] == ["ok"]
            assert whole or not stored

        return run(), check

    assert await sweep_shared(scenario) >= (1 if request_ is ASKED else 4)


async def test_the_last_reader_that_goes_ends_the_call_upstream():
    inner = Scripted(["a", HANG], then=["whole"])
    provider = caching()(inner)
    one = await provider.send(STREAMED, context())
    other = await provider.send(STREAMED, context())
    await one.aclose()
    assert inner.in_flight == 1
    await other.aclose()
    idle(inner, provider)
    assert (await read(provider, ASKED)).text == "whole"
    assert inner.calls == 2


async def test_the_call_ends_too_where_it_waits_for_its_reader():
    inner = Scripted([str(number % 10) for number in range(500)])
    provider = caching()(inner)
    response = await provider.send(STREAMED, context())
    await response.__anext__()
    await anyio.sleep(1)  # upstream is read as far ahead as it may be
    assert inner.in_flight == 1
    await response.aclose()
    idle(inner, provider)


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_each_answer_has_the_context_of_its_own_call(request_):
    provider = caching()(Scripted([1.0, "a"]))
    contexts, answers = [context(seconds=9), context()], []

    async def call(told) -> None:
        answers.append(await (await provider.send(request_, told)).read())

    async with anyio.create_task_group() as group:
        for told in contexts:
            group.start_soon(call, told)
    assert {id(response.context) for response in answers} == set(map(id, contexts))


async def test_who_stops_at_the_finish_has_the_answer_stored():
    inner = Scripted(["a", Finish("stop"), 0.5, UsageUpdate(Usage(input=5))])
    provider = caching()(inner)
    response = await provider.send(STREAMED, context())
    async for event in response:
        if isinstance(event, Finish):
            break
    await response.aclose()
    idle(inner, provider)
    again = await read(provider, ASKED)
    assert again.text == "a"
    assert again.cached.usage == Usage(input=5)
    assert inner.calls == 1


async def test_a_response_that_is_dropped_unread_ends_the_call():
    inner = Scripted(["a", HANG])
    provider = caching()(inner)
    with pytest.warns(ResourceWarning, match="dropped unread"):
        await provider.send(STREAMED, context())
    await anyio.sleep(0.1)
    idle(inner, provider)


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_a_failure_is_everybodys_and_each_has_an_error_of_its_own(request_):
    inner = Scripted([1.0, Overloaded(provider="p", status=529)])
    provider = caching()(inner)
    errors = []

    async def call() -> None:
        with pytest.raises(Overloaded) as caught:
            await read(provider, request_)
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(call)
    assert inner.calls == 1
    assert len({id(error) for error in errors}) == 20
    assert {str(error) for error in errors} == {str(errors[0])}
    idle(inner, provider)
    assert len(provider.wrapper.store._entries) == 0


async def test_a_foreign_exception_reaches_all():
    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__()

    inner = Scripted([1.0, Odd(1, 2)])
    provider = caching()(inner)
    caught = []

    async def call() -> None:
        with pytest.raises(Odd):
            await read(provider, ASKED)
        caught.append(1)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
    assert len(caught) == 3


async def test_a_stream_that_breaks_breaks_for_all_who_saw_it_and_is_asked_again_for_who_wanted_it_whole():
    inner = Scripted([0.5, "Hel", 0.5, ReadError(in_stream=True)], then=["Hello"])
    provider = caching()(inner)
    broke, whole = [], []

    async def streamed() -> None:
        with pytest.raises(StreamInterrupted) as caught:
            await read(provider, STREAMED)
        broke.append(caught.value)

    async def at_once() -> None:
        await anyio.sleep(0.1)
        whole.append(await read(provider, ASKED))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(streamed)
            group.start_soon(at_once)
    assert [error.partial_text for error in broke] == ["Hel"] * 3
    assert len({id(error.partial) for error in broke}) == 3
    assert all(isinstance(error.__cause__, ReadError) for error in broke)
    assert [response.text for response in whole] == ["Hello"] * 3
    assert inner.calls == 2
    idle(inner, provider)


@pytest.mark.parametrize("refusal", [BulkheadFull(), DeadlineExceeded(1.0)], ids=lambda error: type(error).__name__)
async def test_what_was_the_leaders_own_misfortune_is_tried_once_more_together(refusal):
    inner = Scripted([1.0, refusal], [1.0, "Hello"])
    provider = caching()(inner)
    outcomes = []

    async def call() -> None:
        try:
            outcomes.append((await read(provider, ASKED)).text)
        except type(refusal):
            outcomes.append("failed")

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(call)
    assert sorted(outcomes) == ["Hello"] * 49 + ["failed"]
    assert inner.calls == 2


@pytest.mark.parametrize("first", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_who_wants_it_whole_is_not_refused_because_it_may_not_be_streamed(first):
    other = ASKED if first is STREAMED else STREAMED

    async def choosy(request, told):
        await anyio.sleep(1)
        if request.stream is first.stream:
            raise BadRequest(param="stream")
        return await Scripted("x").send(request, told)

    inner = Scripted(then=choosy)
    provider = caching()(inner)
    got = []

    async def call(request) -> None:
        try:
            got.append((request.stream, (await read(provider, request)).text))
        except BadRequest:
            got.append((request.stream, "refused"))

    async with anyio.create_task_group() as group:
        group.start_soon(call, first)
        await anyio.sleep(0.5)
        for request in (first, other, other):
            group.start_soon(call, request)
    assert sorted(got) == sorted([(first.stream, "refused")] * 2 + [(other.stream, "x")] * 2)
    assert inner.calls == 2
    idle(inner, provider)


@pytest.mark.parametrize("without", [1, 2, 3, 20])
async def test_nobody_is_refused_for_the_budget_of_another(without):
    asked = []

    async def budgeted(request, told):
        user = told.tags["user"]
        asked.append(user)
        await anyio.sleep(1)
        if user.startswith("poor"):
            raise BudgetExceeded(limit=user)
        await anyio.sleep(1)
        return await Scripted("x").send(request, told)

    inner = Scripted(then=budgeted)
    provider = caching()(inner)
    got: dict[str, str] = {}

    async def call(user: str) -> None:
        try:
            got[user] = (await read(provider, ASKED, tags={"user": user})).text
        except BudgetExceeded as error:
            got[user] = str(error.limit)

    users = [f"poor {number}" for number in range(without)] + [f"rich {number}" for number in range(3)]
    async with anyio.create_task_group() as group:
        for user in users:
            group.start_soon(call, user)
    assert got.keys() == set(users)
    # On trio who comes first is drawn, and what a rich one has paid for is a poor one's too.
    assert all(told == "x" or (told == user and user.startswith("poor")) for user, told in got.items())
    assert len(asked) == len(set(asked))
    idle(inner, provider)


async def test_once_more_and_no_further():
    inner = Scripted([1.0, BulkheadFull()], [1.0, BulkheadFull()])
    provider = caching()(inner)
    failed = []

    async def call() -> None:
        with pytest.raises(BulkheadFull):
            await read(provider, ASKED)
        failed.append(1)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(call)
    assert len(failed) == 5
    assert inner.calls == 2


# ---- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
@pytest.mark.parametrize("first", ["short", "long"])
async def test_each_keeps_to_its_own_deadline(first, request_):
    inner = Scripted([2.0, "Hello", 1.0])
    provider = Deadline(600)(caching()(inner))
    ends = {}
    begun = anyio.current_time()

    async def call(name: str, seconds: float) -> None:
        try:
            ends[name] = (await read(provider, request_, seconds=seconds)).text
        except (DeadlineExceeded, StreamInterrupted):
            ends[name] = round(anyio.current_time() - begun, 1)

    limits = {"short": 1.0, "middle": 2.5, "long": 60.0}
    order = sorted(limits, key=lambda name: (name != first, name))
    async with anyio.create_task_group() as group:
        for name in order:
            group.start_soon(call, name, limits[name])
            await anyio.lowlevel.checkpoint()
    assert ends == {"short": 1.0, "middle": 2.5, "long": "Hello"}
    assert inner.calls == 1


async def test_the_shared_call_has_the_latest_deadline_of_its_readers():
    inner = Scripted([5.0, "Hello"])
    provider = caching()(inner)

    async def call(**options) -> None:
        await read(provider, ASKED, **options)

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: call(seconds=10))
        await anyio.sleep(1)
        shared = inner.contexts[0]
        assert round(shared.remaining) == 9
        group.start_soon(lambda: call(seconds=3))
        await anyio.sleep(0.1)
        assert round(shared.remaining) == 9
        group.start_soon(lambda: call(seconds=30))
        await anyio.sleep(0.1)
        assert round(shared.remaining) == 30
        group.start_soon(call)
        await anyio.sleep(0.1)
        assert shared.deadline is None


# ---- pace ------------------------------------------------------------------------------------------------------------


async def test_upstream_is_read_only_a_little_ahead_and_not_held_up_by_the_slow():
    inner = Scripted([str(number % 10) for number in range(500)])
    provider = caching()(inner)
    slow = await provider.send(STREAMED, context())
    quick = await provider.send(STREAMED, context())
    (flight,) = provider._flights.values()
    await anyio.sleep(1)
    assert 1 < len(flight.events) <= 70
    await quick.read()
    assert len(quick.text) == 500
    assert len(slow.text) == 0
    await slow.read()
    assert slow.text == quick.text
    assert inner.calls == 1


async def test_an_answer_longer_than_the_buffer_is_neither_joined_nor_stored_and_its_reader_gets_it_whole():
    inner = Scripted(["word "] * 300, then=["word "] * 300)
    provider = caching(buffer=2000)(inner)
    first = await provider.send(STREAMED, context())
    for _ in range(100):
        await first.__anext__()
    second = await provider.send(STREAMED, context())
    assert inner.calls == 2
    await first.read()
    await second.read()
    assert first.text == second.text == "word " * 300
    assert not decided(first, CacheStored)
    assert [decision.reason for decision in first.trace.decisions if hasattr(decision, "reason")] == [
        "absent", "too long",
    ]  # fmt: skip
    idle(inner, provider)


async def test_a_reader_too_far_behind_is_told_so_and_holds_nobody_up():
    inner = Scripted(["word "] * 300)
    provider = caching(buffer=5000)(inner)
    slow = await provider.send(STREAMED, context())
    quick = await provider.send(STREAMED, context())
    await slow.__anext__()
    await quick.read()
    assert quick.text == "word " * 300
    with pytest.raises(StreamInterrupted) as caught:
        await slow.read()
    assert "too far behind" in str(caught.value.__cause__)
    assert len(slow.text) < 1500
    idle(inner, provider)


async def test_a_whole_reader_of_a_stream_too_long_for_the_buffer_asks_for_itself():
    inner = Scripted([*["word "] * 100, 1.0, *["word "] * 200], then="short")
    provider = caching(buffer=8000)(inner)
    texts = {}

    async def call(name, request) -> None:
        texts[name] = (await read(provider, request)).text

    async with anyio.create_task_group() as group:
        group.start_soon(call, "streamed", STREAMED)
        await anyio.sleep(0.5)
        group.start_soon(call, "whole", ASKED)
    assert texts == {"streamed": "word " * 300, "whole": "short"}
    assert inner.calls == 2


# ---- without single flight, and over loops ---------------------------------------------------------------------------


async def test_single_flight_can_be_left_off():
    inner = Scripted(then=ANSWER)
    cache = caching(single_flight=False)
    provider = cache(inner)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(read, provider, STREAMED)
    assert inner.calls == 5
    assert (await read(provider, ASKED)).cached is not None
    idle(inner, provider)


async def test_sampled_answers_are_not_shared_unless_asked_for():
    sampled = replace(ASKED, temperature=0.7)
    for cache, calls in ((caching(), 5), (caching(sampled=True), 1)):
        inner = Scripted(then=ANSWER)
        provider = cache(inner)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(read, provider, sampled)
        assert inner.calls == calls


def test_two_event_loops_share_what_is_stored_and_no_call_under_way():
    inner = Scripted(then=[0.2, "Hello"])
    inner_client_cache = caching(store=None, now=lambda: 0.0)
    provider = inner_client_cache(inner)
    texts = []

    def run() -> None:
        async def main() -> None:
            client = AsyncClient(provider, clock=LoopClock())
            texts.append((await client.generate("Hi", temperature=0)).text)

        anyio.run(main)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run()
    assert texts == ["Hello"] * 4
    assert inner.calls == 3
    assert provider._flights == {}


# ---- asked anew -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_who_asks_anew_gets_no_answer_that_was_begun_before(request_):
    inner = Scripted([3.0, "old"], [1.0, "new"])
    store = memory()
    provider = caching(store=store)(inner)
    got: dict[str, str] = {}

    async def call(name: str, after: float, **options) -> None:
        await anyio.sleep(after)
        got[name] = (await read(provider, request_, **options)).text

    async with anyio.create_task_group() as group:
        group.start_soon(call, "first", 0)
        group.start_soon(call, "later", 1.5)
        for number in range(5):
            group.start_soon(partial(call, f"anew {number}", 1 + number / 10, cache="refresh"))
    assert inner.calls == 2
    assert got.pop("first") == "old"
    assert set(got.values()) == {"new"}
    assert (await read(provider, request_)).text == "new"  # and the old one, which came last, is not stored over it
    idle(inner, provider)


async def test_who_asks_anew_does_not_take_what_is_made_in_the_background():
    inner = Scripted("one", [3.0, "from before"], [1.0, "new"])
    provider = caching(ttl=10, stale_while_revalidate=60)(inner)
    await read(provider, ASKED)
    await anyio.sleep(20)
    assert (await read(provider, ASKED)).text == "one"
    await anyio.sleep(1)
    assert (await read(provider, ASKED, cache="refresh")).text == "new"
    await anyio.sleep(5)
    assert (await read(provider, ASKED)).text == "new"
    idle(inner, provider)


# ---- ends that no caller brings about -------------------------------------------------------------------------------


class Grave(BaseException):
    """As SystemExit is: no Exception."""


@pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])
@pytest.mark.parametrize("script", [[1.0, Grave()], [0.5, "a", 0.5, Grave()]], ids=["before", "within"])
async def test_what_is_no_exception_is_the_leaders_and_a_failure_to_the_others(script, request_):
    inner = Scripted(script)
    provider = caching()(inner)
    got = []

    async def call() -> None:
        try:
            await read(provider, request_)
        except BaseException as error:
            got.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
    assert sorted(got) in (["Grave", "ReadError", "ReadError"], ["Grave", "StreamInterrupted", "StreamInterrupted"])
    idle(inner, provider)


@pytest.mark.parametrize("steps", range(4))
def test_a_loop_that_ends_at_once_is_not_held_up(steps):
    inner = Scripted([0.01, "x"])
    provider = caching(store=MemoryStore(), now=time.time)(inner)

    async def main() -> None:
        call = asyncio.create_task(read(provider, ASKED))

        async def end() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task(), watch}:
                task.cancel()

        watch = asyncio.current_task()
        await asyncio.create_task(end())
        done, _ = await asyncio.wait([call], timeout=10)
        assert done == {call}, "it waits for a task that never began"
        assert call.cancelled() or isinstance(call.exception(), ReadError)

    asyncio.run(main())
    idle(inner, provider)


# ---- leases over processes -------------------------------------------------------------------------------------------


async def test_with_a_lease_one_process_makes_the_answer():
    store = memory()
    inners = [Scripted(then=ANSWER) for _ in range(4)]
    providers = [caching(store=store, lease=60)(inner) for inner in inners]
    responses = []

    async def call(provider, request) -> None:
        responses.append(await read(provider, request))

    async with anyio.create_task_group() as group:
        for provider in providers:
            for request in (ASKED, STREAMED):
                group.start_soon(call, provider, request)
    assert sum(inner.calls for inner in inners) == 1
    assert {response.text for response in responses} == {TEXT}
    assert sum(response.cached is None for response in responses) == 1
    assert store.stats().items == 1  # the lease is given back


async def test_a_lease_goes_on_to_the_next_when_its_holder_fails():
    store = memory()
    bad, good = Scripted([1.0, ServerError()]), Scripted(ANSWER)
    one, other = (caching(store=store, lease=60)(inner) for inner in (bad, good))
    texts = []

    async def fails() -> None:
        with pytest.raises(ServerError):
            await read(one, ASKED)

    async def works() -> None:
        await anyio.sleep(0.1)
        begun = anyio.current_time()
        texts.append((await read(other, ASKED)).text)
        assert anyio.current_time() - begun < 5

    async with anyio.create_task_group() as group:
        group.start_soon(fails)
        group.start_soon(works)
    assert texts == [TEXT]
    assert store.stats().items == 1


async def test_a_lease_whose_holder_died_ends_by_itself():
    store = memory()
    inner = Scripted(ANSWER)
    provider = caching(store=store, lease=30)(inner)
    key, _ = provider._shelf.key(ASKED, context())
    await store.add(f"{key}:lease", b"of the dead", ttl=30)
    begun = anyio.current_time()
    assert (await read(provider, ASKED)).text == TEXT
    assert 30 <= anyio.current_time() - begun < 35


async def test_who_waits_for_another_process_keeps_to_its_deadline_and_leaves_nothing():
    store = memory()
    inner = Scripted()
    provider = Deadline(600)(caching(store=store, lease=60)(inner))
    key, _ = provider.inner._shelf.key(ASKED, context())
    await store.add(f"{key}:lease", b"another", ttl=60)
    begun = anyio.current_time()
    with pytest.raises(DeadlineExceeded):
        await read(provider, ASKED, seconds=2)
    assert anyio.current_time() - begun == pytest.approx(2)
    idle(inner, provider.inner)
    assert await store.get(f"{key}:lease") == b"another"


async def test_cancelled_anywhere_the_lease_is_given_back():
    def scenario():
        store = memory()
        inner = Scripted(ANSWER)
        provider = caching(store=store, lease=60)(inner)

        def check():
            idle(inner, provider)
            assert not [key for key in store._entries if key.endswith(":lease")]

        return read(provider, STREAMED), check

    await sweep_shared(scenario)


@pytest.mark.parametrize("moment", [0.05, 0.15, 0.25, 1.0])
async def test_who_is_cancelled_gives_the_lease_back_to_a_store_that_takes_its_time(moment):
    class Slow(MemoryStore):
        async def add(self, key, value, *, ttl=None):
            await anyio.sleep(0.1)
            added = await super().add(key, value, ttl=ttl)
            await anyio.sleep(0.1)
            return added

        async def delete(self, key, *, only=None):
            await anyio.sleep(0.1)
            return await super().delete(key, only=only)

    store = Slow(clock=LoopClock())
    inner, other = Scripted([5.0, "x"]), Scripted("y")
    provider = caching(store=store, lease=60)(inner)
    with anyio.move_on_after(moment):
        await read(provider, ASKED)
    begun = anyio.current_time()
    assert (await read(caching(store=store, lease=60)(other), ASKED)).text == "y"
    assert anyio.current_time() - begun < 2
    idle(inner, provider)


async def test_the_first_decision_of_who_joins_tells_so():
    inner = Scripted([1.0, "a"])
    provider = caching()(inner)
    async with anyio.create_task_group() as group:
        group.start_soon(read, provider, ASKED)
        await anyio.sleep(0.5)
        response = await read(provider, ASKED)
    assert decided(response, CacheJoined)
    assert not decided(response, CacheMiss)
    assert len(response.trace.entries) == 0


@pytest.mark.parametrize("seed", range(40))
async def test_whoever_comes_and_goes_who_stays_gets_all_of_it(seed):
    chance = random.Random(seed)
    inner = Scripted(
        then=[*ANSWER[:3], ToolCallDelta(1, "c", "f", "{"), 0.4, ToolCallDelta(1, arguments="}"), *ANSWER[3:]]
    )
    store = memory()
    provider = caching(store=store, lease=chance.choice([None, 60.0]), ttl=chance.choice([1.5, 100]))(inner)
    stayed, left = [], []

    async def call(after: float, patience: float | None, streamed: bool, pace: float, closes: bool) -> None:
        await anyio.sleep(after)
        with anyio.move_on_after(100 if patience is None else patience):
            response = await provider.send(STREAMED if streamed else ASKED, context())
            async with response:
                async for _ in response:
                    await anyio.sleep(pace)
                    if closes and chance.random() < 0.2:
                        left.append("closed")
                        return
            stayed.append(response)
            return
        left.append("cancelled")

    async with anyio.create_task_group() as group:
        for _ in range(chance.randint(2, 15)):
            group.start_soon(
                call,
                chance.uniform(0, 4) if chance.random() < 0.7 else 0.0,
                chance.uniform(0, 3) if chance.random() < 0.5 else None,
                chance.random() < 0.6,
                chance.choice([0.0, 0.0, 0.3]),
                chance.random() < 0.2,
            )
    for response in stayed:
        assert response.text == TEXT
        assert [part.arguments for part in response.tool_calls] == ["{}"]
        assert response.complete
    expired = 0 if provider.wrapper.ttl == 100 else 4
    assert inner.calls <= 1 + len(left) + expired
    await anyio.sleep(1)
    idle(inner, provider)
    assert not [key for key in store._entries if key.endswith(":lease")]
    if stayed and expired == 0:
        kept = await read(provider, ASKED)
        assert (kept.text, kept.cached is not None) == (TEXT, True)
