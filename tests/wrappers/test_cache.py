"""The cache: what is stored and for how long, what a stored answer looks like, and what happens without a store."""

import logging
import threading
from contextlib import suppress
from dataclasses import fields, replace
from decimal import Decimal
from typing import Annotated, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator

from llmprod import (
    Action,
    AllTargetsFailed,
    AsyncClient,
    AuthenticationFailed,
    BadRequest,
    Budget,
    BudgetLimit,
    Capabilities,
    CircuitOpen,
    Client,
    ContentFiltered,
    Context,
    ContextTooLong,
    ContextWindow,
    Deadline,
    Failover,
    GenerateRequest,
    InvalidArgument,
    KeyPool,
    LoopClock,
    Message,
    NotFound,
    Overloaded,
    Response,
    Retry,
    ServerError,
    Stack,
    Static,
    Usage,
    Verdict,
    describe,
    lint,
    resilient,
)
from llmprod.decisions import (
    CacheHit,
    CacheMiss,
    CacheRefreshed,
    CacheSkipped,
    CacheStoreChanged,
    CacheStored,
)
from llmprod.errors import NotCached, StoreUnavailable
from llmprod.events import (
    Finish,
    PartDone,
    RefusalDelta,
    Reset,
    Seam,
    Start,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallDone,
    UsageUpdate,
)
from llmprod.mechanisms.cache_key import normalised_prompt
from llmprod.schema import OutputSchema
from llmprod.stores.memory import MemoryStore
from llmprod.testing.scripted import Scripted
from llmprod.types import Image, Refusal, Thinking, ToolCall
from llmprod.wrappers._cache_entry import Entry, decode, encode
from llmprod.wrappers.cache import Cache
from tests.wrappers.cache_helpers import ASKED, STREAMED, caching, decided, kinds, memory
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, Drawn, ask, context

BOTH = pytest.mark.parametrize("request_", [ASKED, STREAMED], ids=["whole", "stream"])


def told(response: Any) -> dict[str, Any]:
    """What a reader sees of an answer, less what tells how the cache came by it."""
    return {
        name: getattr(response, name)
        for name in (
            "text", "parts", "thinking", "tool_calls", "refusal", "finish_reason", "raw_finish", "model", "response_id",
            "request_id", "logprobs", "embeddings", "dropped", "provider", "complete",
        )
    }  # fmt: skip


# ---- what a stored answer looks like ---------------------------------------------------------------------------------

CALL = ToolCall("call_1", "find", '{"q": "x"}', meta={"google": {"thought_signature": "s"}})
SCRIPTS: dict[str, list[Any]] = {
    "text": ["Hel", "lo"],
    "long": ["word " * 200, "and more"],
    "surrogate": ["a\ud800b", "\U0001f600"],
    "tools": [
        TextDelta("Looking.", 0), ToolCallDelta(1, "call_1", "find", ""), ToolCallDelta(1, arguments='{"q": '),
        ToolCallDelta(1, arguments='"x"}'), ToolCallDone(CALL, 1), ToolCallDelta(2, "call_2", "find", "{}"),
        UsageUpdate(Usage(input=3, output=9, server_tools={"web_search": 2})), Finish("tool_calls", "tool_use"),
    ],
    "thinking": [
        Start("model-2026", "resp_1"), ThinkingDelta("hm", 0), ThinkingDelta("m", 0),
        PartDone(Thinking("hmm", meta={"anthropic": {"signature": "xyz"}}), 0), TextDelta("So.", 1), Finish("stop"),
    ],
    "image": [PartDone(Image(data=bytes(range(256)), media_type="image/png"), 0), Finish("stop")],
    "logprobs": [
        TextDelta("Hi", 0, (TokenLogprob("Hi", -0.1, (("Hi", -0.1), ("Ho", -2.5))),)),
        TextDelta(" you", 0, (TokenLogprob(" you", -0.25),)), Finish("stop"),
    ],
    "restarted": [TextDelta("Wrong", 0), Reset("b", "ReadError"), TextDelta("Right", 0), Finish("stop")],
    "interleaved": [TextDelta("a", 0), TextDelta("b", 1), TextDelta("c", 0), Finish("stop")],
    "empty": [Finish("stop")],
}  # fmt: skip


@pytest.mark.parametrize("first", [ASKED, STREAMED], ids=["from-whole", "from-stream"])
@BOTH
@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_stored_answer_is_the_answer(script, first, request_):
    inner = Scripted(SCRIPTS[script])
    provider = caching(piece=50)(inner)
    made = await ask(provider, first)
    kept = await ask(provider, request_)
    assert inner.calls == 1
    assert told(kept) == told(made)
    assert made.cached is None
    assert kept.usage in (Usage(), None)
    assert kept.cached is not None
    assert kept.cached.usage == made.usage
    assert kept.cost == 0
    assert (kept.raw, kept.headers) == (None, {})


async def test_a_stored_answer_streams_in_pieces_in_the_order_of_its_events():
    inner = Scripted(SCRIPTS["tools"])
    provider = caching(piece=5)(inner)
    await ask(provider, STREAMED)
    events = [event async for event in await provider.send(STREAMED, context())]
    assert [type(event).__name__ for event in events] == [
        "Start", "TextDelta", "TextDelta", "ToolCallDelta", "ToolCallDelta", "ToolCallDone", "ToolCallDelta",
        "UsageUpdate", "Finish",
    ]  # fmt: skip
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["Looki", "ng."]
    deltas = [event for event in events if isinstance(event, ToolCallDelta) and event.part == 1]
    assert [(delta.id, delta.name, delta.arguments) for delta in deltas] == [
        ("call_1", "find", '{"q":'), (None, None, ' "x"}'),
    ]  # fmt: skip
    assert [event.usage for event in events if isinstance(event, UsageUpdate)] == [Usage()]


EVENTS = st.lists(
    st.one_of(
        st.builds(TextDelta, st.text(st.characters(), max_size=6), st.integers(0, 2)),
        st.builds(ThinkingDelta, st.text(max_size=6), st.integers(3, 4)),
        st.builds(ToolCallDelta, st.just(5), st.none() | st.text(max_size=2), st.none() | st.text(max_size=2),
                  st.text(max_size=6)),
        st.builds(ToolCallDone, st.builds(ToolCall, st.text(max_size=3), st.just("f"), st.text(max_size=6)),
                  st.just(6)),
        st.builds(UsageUpdate, st.builds(Usage, input=st.integers(0, 9), output=st.integers(0, 9))),
        st.builds(Reset, st.just("t"), st.just("e")),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=200)
@given(EVENTS, st.integers(1, 7), st.booleans())
def test_any_answer_is_the_same_from_the_store(events, piece, streamed):
    async def run() -> None:
        provider = Cache(piece=piece, early=0)(Scripted([*events, Finish("stop")]))
        request = STREAMED if streamed else ASKED
        made = await ask(provider, request)
        for again in (ASKED, STREAMED):
            kept = await ask(provider, again)
            assert kept.cached is not None
            assert told(kept) == told(made)
            assert kept.cached.usage == made.usage

    anyio.run(run)


@pytest.mark.parametrize("late", [False, True])
async def test_usage_with_every_piece_is_stored_once_and_where_it_was_last(late):
    pieces: list[Any] = [each for n in range(3000) for each in (TextDelta("ab"), UsageUpdate(Usage(output=n)))]
    script = [*pieces, Finish("stop"), UsageUpdate(Usage(output=9))] if late else [*pieces, Finish("stop")]
    store = memory()
    provider = caching(store=store)(Scripted(script))
    made = await ask(provider, STREAMED)
    assert store.stats().bytes < 7000 + 1000
    events = [event async for event in await provider.send(STREAMED, context())]
    kinds_ = [type(event).__name__ for event in events if not isinstance(event, TextDelta)]
    assert kinds_ == (["Start", "Finish", "UsageUpdate"] if late else ["Start", "UsageUpdate", "Finish"])
    kept = await ask(provider, ASKED)
    assert kept.text == made.text
    assert kept.cached.usage == made.usage


async def test_embeddings_are_kept():
    inner = Scripted("x")
    provider = caching()(inner)
    made = await ask(provider, EMBED)
    kept = await ask(provider, EMBED)
    assert kept.embeddings == made.embeddings == [[1.0, 0.0]]
    assert kept.cached is not None
    assert (await ask(caching()(Scripted("y")), EMBED)).cached is None


async def test_embeddings_whose_one_event_is_their_usage_are_kept():
    async def vectors(request, told_):
        return Response(
            provider="p", context=told_, request=request, events=[UsageUpdate(Usage(input=3))], embeddings=[[1.0]]
        )

    provider = caching()(Scripted(vectors))
    assert (await ask(provider, EMBED)).usage == Usage(input=3)
    kept = await ask(provider, EMBED)
    assert (kept.embeddings, kept.usage, kept.cached.usage) == ([[1.0]], Usage(), Usage(input=3))


@pytest.mark.parametrize("looked_at", [1, 2, 10])
async def test_what_a_wrapper_inside_has_looked_at_is_stored_all_the_same(looked_at):
    inner = Scripted(["Hello", " there"])

    async def looking(request, told_):
        response = await inner.send(request, told_)
        for _ in range(looked_at):
            with suppress(StopAsyncIteration):
                await anext(response)
        return response

    provider = caching()(Scripted(looking))
    made = await ask(provider, ASKED)
    kept = await ask(provider, ASKED)
    assert (kept.text, kept.finish_reason) == (made.text, made.finish_reason) == ("Hello there", "stop")
    assert kept.cached is not None


async def test_a_stored_answer_has_to_fit_the_type_of_who_asks():
    def at_least(number: int):
        def check(value: int) -> int:
            if value < number:
                raise ValueError("too small")
            return value

        return replace(ASKED, output=OutputSchema.of(dict[str, Annotated[int, AfterValidator(check)]]))

    inner = Scripted('{"a": 1}', '{"a": 5}')
    provider = caching()(inner)
    assert (await ask(provider, at_least(0))).parsed == {"a": 1}
    asked = await ask(provider, at_least(3))
    assert decided(asked, CacheMiss)[0].reason == "unfit"
    assert asked.parsed == {"a": 5}
    for number in (0, 3):
        kept = await ask(provider, at_least(number))
        assert (kept.parsed, kept.cached is not None) == ({"a": 5}, True)


async def test_a_validator_that_fails_otherwise_costs_no_answer():
    def broken(value: int) -> int:
        raise KeyError("secret")

    asked = replace(ASKED, output=OutputSchema.of(dict[str, Annotated[int, AfterValidator(broken)]]))
    first = await ask(caching()(Scripted('{"a": 1}')), asked)
    assert first.text == '{"a": 1}'
    assert [decision.reason for decision in decided(first, CacheSkipped)] == ["invalid output"]


async def test_the_parsed_answer_is_parsed_from_the_store():
    asked = replace(ASKED, output=OutputSchema.of(dict[str, int]))
    provider = caching()(Scripted('{"a": 1}'))
    assert (await ask(provider, asked)).parsed == {"a": 1}
    assert (await ask(provider, asked)).parsed == {"a": 1}


# ---- for how long ----------------------------------------------------------------------------------------------------


@BOTH
async def test_fresh_until_the_time_to_live_is_over(request_):
    inner = Scripted("one", "two")
    cache = caching(ttl=100)
    provider = cache(inner)
    first = await ask(provider, request_)
    assert kinds(first) == ["CacheMiss", "CacheStored"]
    assert decided(first, CacheMiss)[0].reason == "absent"
    assert decided(first, CacheStored)[0].ttl == 100
    await anyio.sleep(99)
    kept = await ask(provider, request_)
    assert kept.text == "one"
    (hit,) = decided(kept, CacheHit)
    assert hit.age == pytest.approx(99)
    assert not hit.stale
    assert "refusal" not in hit.values()
    assert kept.cached.age == pytest.approx(99)
    assert len(kept.trace.entries) == 0
    await anyio.sleep(1)
    assert (await ask(provider, request_)).text == "two"
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.hit_rate) == (1, 2, 2, 1 / 3)


@BOTH
async def test_stale_is_given_at_once_and_made_anew_once_in_the_background(request_):
    inner = Scripted("one", [5.0, "two"])
    cache = caching(ttl=100, stale_while_revalidate=50)
    provider = cache(inner)
    await ask(provider, request_)
    await anyio.sleep(120)
    responses = []

    async def call() -> None:
        responses.append(await ask(provider, request_))

    begun = anyio.current_time()
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(call)
    assert anyio.current_time() == begun
    assert {response.text for response in responses} == {"one"}
    assert all(response.cached.stale for response in responses)
    assert sum(len(decided(response, CacheRefreshed)) for response in responses) == 1
    assert all(len(response.trace.entries) == 0 for response in responses)  # the refresh is no call of theirs
    await anyio.sleep(1)
    assert inner.calls == 2
    assert (await ask(provider, request_)).text == "one"
    await anyio.sleep(5)
    fresh = await ask(provider, request_)
    assert fresh.text == "two"
    assert not fresh.cached.stale
    stats = cache.stats()
    assert (stats.refreshed, stats.stale, stats.misses) == (1, 11, 1)
    assert (provider._flights, provider._under_way) == ({}, set())


async def test_past_the_stale_window_it_is_a_miss():
    inner = Scripted("one", "two")
    provider = caching(ttl=100, stale_while_revalidate=50)(inner)
    await ask(provider, ASKED)
    await anyio.sleep(150)
    second = await ask(provider, ASKED)
    assert second.text == "two"


async def test_a_store_that_keeps_longer_than_told_makes_nothing_fresher():
    inner = Scripted("one", "two")
    store = MemoryStore()  # its time stands still
    provider = caching(ttl=100, stale_while_revalidate=50, store=store)(inner)
    await ask(provider, ASKED)
    await anyio.sleep(150)
    second = await ask(provider, ASKED)
    assert second.text == "two"
    assert [decision.reason for decision in decided(second, CacheMiss)] == ["expired"]


async def test_the_shorter_time_to_live_counts_of_who_stored_it_and_who_asks():
    store = memory()
    inner = Scripted("one", "two", BadRequest(), "three")
    long, short = caching(store=store, ttl=1000)(inner), caching(store=store, ttl=10, negative_ttl=0)(inner)
    await ask(long, ASKED)
    await anyio.sleep(5)
    assert (await ask(short, ASKED)).text == "one"
    await anyio.sleep(6)
    assert (await ask(short, ASKED)).text == "two"
    await anyio.sleep(11)
    with pytest.raises(BadRequest):
        await ask(long, ASKED)
    assert (await ask(short, ASKED)).text == "three"


@pytest.mark.parametrize(("ahead", "kept"), [(30, True), (3600, False), (1e9, False)])
async def test_an_answer_of_a_clock_that_was_wrong_is_not_fresh_until_that_time(ahead, kept):
    inner = Scripted("one", "two")
    store = memory()
    await ask(caching(store=store, ttl=100, now=lambda: 1e9 + ahead)(inner), ASKED)
    assert (await ask(caching(store=store, ttl=100, now=lambda: 1e9)(inner), ASKED)).text == ("one" if kept else "two")


async def test_a_refresh_that_fails_leaves_the_stale_answer():
    inner = Scripted("one", Overloaded(), "three")
    provider = caching(ttl=100, stale_while_revalidate=50)(inner)
    await ask(provider, ASKED)
    await anyio.sleep(110)
    assert (await ask(provider, ASKED)).text == "one"
    await anyio.sleep(1)
    assert (await ask(provider, ASKED)).text == "one"
    await anyio.sleep(1)
    assert (await ask(provider, ASKED)).text == "three"


async def test_a_refresh_that_is_refused_does_not_take_the_place_of_the_answer():
    inner = Scripted("one", BadRequest(), "three")
    provider = caching(ttl=100, stale_while_revalidate=50)(inner)
    await ask(provider, ASKED)
    await anyio.sleep(110)
    await ask(provider, ASKED)
    await anyio.sleep(1)
    assert (await ask(provider, ASKED)).text == "one"


async def test_a_refresh_in_the_background_has_a_time_limit_and_ends_with_the_client():
    hang = [1e9, "never"]
    inner = Scripted("one", hang, hang, hang)
    provider = Deadline(20)(caching(ttl=100, stale_while_revalidate=1000)(inner))
    await ask(provider, ASKED)
    await anyio.sleep(110)
    await ask(provider, ASKED)
    await anyio.sleep(10)
    assert inner.in_flight == 1
    assert inner.contexts[-1].tags == {}
    await anyio.sleep(11)
    assert inner.in_flight == 0
    await ask(provider, ASKED)
    await anyio.sleep(1)
    assert inner.in_flight == 1
    await provider.aclose()
    assert (inner.in_flight, inner.closed) == (0, 1)


async def test_a_refresh_in_the_background_is_as_the_callers_call_but_none_of_it():
    inner = Scripted("one", "two")
    heard: list[str] = []
    provider = caching(ttl=100, stale_while_revalidate=1000)(inner)
    await ask(provider, ASKED)
    await anyio.sleep(110)
    given = context(
        tags={"user": "u"}, prompt=("p", "1"), priority=3, seconds=7, listeners=(lambda d, _: heard.append(str(d)),)
    )
    await provider.send(ASKED, replace(given, prompt=None, insist=True))
    await anyio.sleep(1)
    own = inner.contexts[1]
    kept = {item.name for item in fields(Context)} - {"call", "deadline", "lane", "insist", "alternatives", "cache"}
    assert all(getattr(own, name) == getattr(replace(given, prompt=None), name) for name in kept)
    assert own.call is not given.call
    assert (own.insist, own.deadline) == (False, given.deadline)
    assert any(text.startswith("CacheStored") for text in heard)
    assert len(given.trace.entries) == 0


async def test_a_refresh_in_the_background_outlives_the_call_that_began_it():
    inner = Scripted("one", [5.0, "two"])
    provider = caching(ttl=100, stale_while_revalidate=1000)(inner)
    await ask(provider, ASKED, tags={"user": "u"})
    await anyio.sleep(110)
    with anyio.CancelScope() as scope:
        await ask(provider, ASKED, tags={"user": "u"})
        scope.cancel()
        await anyio.sleep(1)
    await anyio.sleep(6)
    assert inner.contexts[-1].tags == {"user": "u"}
    assert (await ask(provider, ASKED)).text == "two"


@pytest.mark.parametrize(("drawn", "calls"), [(1 - 1e-9, 2), (0.1, 1)])
async def test_an_answer_is_made_anew_before_it_expires_by_chance(drawn, calls):
    # It took 2 s and has 10 s left: early with exp(-10 / 2), so if 1 - draw is below 0.7 %.
    inner = Scripted([2.0, "one"], [2.0, "two"])
    provider = caching(ttl=100, early=1.0)(inner)
    await ask(provider, ASKED)
    await anyio.sleep(90)
    kept = await ask(provider, ASKED, random=Drawn(drawn))
    assert kept.text == "one"
    assert not kept.cached.stale
    await anyio.sleep(5)
    assert inner.calls == calls
    assert [decision.reason for decision in decided(kept, CacheRefreshed)] == ["early"] * (calls - 1)
    assert (await ask(provider, ASKED)).text == ("two" if calls == 2 else "one")


OUTAGES = [
    Overloaded(),
    ServerError(),
    CircuitOpen(),
    AllTargetsFailed((("a", NotFound()), ("b", Overloaded())), Verdict(action=Action.FATAL)),
]
MATTERS = [BadRequest(), ContextTooLong(), NotFound(), AuthenticationFailed(), ContentFiltered(), ValueError("mine")]


@BOTH
@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: type(error).__name__)
async def test_a_stale_answer_stands_in_while_the_target_is_down(error, request_):
    inner = Scripted("one", error, [1.0, error], "two")
    cache = caching(ttl=100, stale_if_error=1000, negative_ttl=0)
    provider = cache(inner)
    await ask(provider, request_)
    await anyio.sleep(200)
    kept = await ask(provider, request_)
    assert (kept.text, kept.cached.stale) == ("one", True)
    assert kinds(kept) == ["CacheMiss", "CacheHit"]
    assert decided(kept, CacheMiss)[0].reason == "expired"
    responses = []

    async def call() -> None:
        responses.append(await ask(provider, request_))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
    assert [response.text for response in responses] == ["one"] * 3
    assert inner.calls == 3
    assert (await ask(provider, request_)).text == "two"
    stats = cache.stats()
    assert (stats.stale, stats.hits, stats.misses, stats.joined) == (4, 4, 2, 0)


@pytest.mark.parametrize("error", MATTERS, ids=lambda error: type(error).__name__)
async def test_a_refusal_that_somebody_must_act_on_is_not_hidden(error):
    provider = caching(ttl=100, stale_if_error=1000, negative_ttl=0)(Scripted("one", error))
    await ask(provider, ASKED)
    await anyio.sleep(200)
    with pytest.raises(type(error)):
        await ask(provider, ASKED)


async def test_past_that_window_the_failure_is_raised():
    provider = caching(ttl=100, stale_if_error=1000)(Scripted("one", Overloaded()))
    await ask(provider, ASKED)
    await anyio.sleep(1100)
    with pytest.raises(Overloaded):
        await ask(provider, ASKED)


@BOTH
@pytest.mark.parametrize("kind", [BadRequest, ContextTooLong])
async def test_a_lasting_refusal_is_not_asked_for_again_for_a_while(kind, request_):
    error = kind(provider="p", model="m", status=400, code="c", param="x", request_id="r", provider_message="why")
    inner = Scripted(error, "now it fits")
    cache = caching(negative_ttl=30, stale_while_revalidate=1000, early=1.0)
    provider = cache(inner)
    with pytest.raises(kind) as first:
        await ask(provider, request_)
    for _ in range(2):
        with pytest.raises(kind) as again:
            await ask(provider, request_)
        assert str(again.value) == str(first.value)
        assert again.value.provider_message == "why"
    assert inner.calls == 1
    stats = cache.stats()
    assert (stats.refusals, stats.hits, stats.misses, stats.stored) == (2, 2, 1, 1)
    await anyio.sleep(30)
    assert (await ask(provider, request_)).text == "now it fits"


async def test_a_prompt_too_long_for_all_targets_is_not_sent_to_them_again():
    one = Scripted(ContextTooLong(status=400), capabilities=Capabilities(context_window=10))
    other = Scripted(ContextTooLong(status=413), name="other", capabilities=Capabilities(context_window=20))
    provider = caching()(Failover(one, other))
    caught = []
    for _ in range(2):
        with pytest.raises(AllTargetsFailed) as raised:
            await ask(provider, ASKED)
        caught.append(raised.value)
    assert (one.calls, other.calls) == (1, 1)
    assert str(caught[0]) == str(caught[1])
    assert caught[0].verdict.action == caught[1].verdict.action
    assert [target for target, _ in caught[1].attempts] == ["scripted", "other"]


@pytest.mark.parametrize("refused", [ASKED, STREAMED], ids=["whole", "stream"])
async def test_a_refusal_to_stream_is_none_to_answer_whole(refused):
    other = ASKED if refused is STREAMED else STREAMED
    inner = Scripted(BadRequest(param="stream"), "x", BadRequest(param="stream"))
    provider = caching()(inner)
    for _ in range(2):
        with pytest.raises(BadRequest):
            await ask(provider, refused)
    assert (await ask(provider, other)).text == "x"
    assert (await ask(provider, refused)).text == "x"  # an answer is an answer either way
    assert inner.calls == 2


async def test_where_one_target_may_still_serve_it_all_are_asked_again():
    one = Scripted(ContextTooLong(), ContextTooLong(), capabilities=Capabilities(context_window=10))
    other = Scripted(NotFound(), "yes", name="other", capabilities=Capabilities(context_window=20))
    provider = caching()(Failover(one, other))
    with pytest.raises(AllTargetsFailed):
        await ask(provider, ASKED)
    assert (await ask(provider, ASKED)).text == "yes"


@pytest.mark.parametrize("error", [ContentFiltered(), NotFound(), Overloaded(), BadRequest(in_stream=True)])
async def test_other_failures_are_asked_again(error):
    provider = caching()(Scripted(error, "yes"))
    with pytest.raises(type(error)):
        await ask(provider, ASKED)
    assert (await ask(provider, ASKED)).text == "yes"


async def test_without_negative_caching_every_refusal_is_asked_for():
    inner = Scripted(BadRequest(), "yes")
    provider = caching(negative_ttl=0)(inner)
    with pytest.raises(BadRequest):
        await ask(provider, ASKED)
    assert (await ask(provider, ASKED)).text == "yes"


# ---- what is stored --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (["cut", Finish("length")], "finish length"),
        (["no", Finish("content_filter")], "finish content_filter"),
        (["no", Finish("refusal")], "finish refusal"),
        (["?", Finish("unknown")], "finish unknown"),
        ([RefusalDelta("I can't."), Finish("stop")], "refusal"),
        ([PartDone(Refusal("I can't."), 0), Finish("stop")], "refusal"),
        (["one ", Seam("b", "ReadError"), "two", Finish("stop")], "interrupted"),
    ],
)
async def test_only_complete_and_approved_answers_are_stored(script, reason, request_):
    store = memory()
    provider = caching(store=store)(Scripted(script, "next"))
    first = await ask(provider, request_)
    assert [decision.reason for decision in decided(first, CacheSkipped)] == [reason]
    assert store.stats().items == 0
    assert (await ask(provider, request_)).text == "next"


async def test_reasons_to_end_can_be_named():
    provider = caching(finish=["length"])(Scripted(["cut", Finish("length")], "x", "y"))
    assert (await ask(provider, ASKED)).text == (await ask(provider, ASKED)).text == "cut"
    other = replace(ASKED, seed=1)
    assert [(await ask(provider, other)).text for _ in range(2)] == ["x", "y"]


async def test_what_does_not_fit_its_schema_is_not_stored():
    asked = replace(ASKED, output=OutputSchema.of(dict[str, int]))
    provider = caching()(Scripted("no JSON", '{"a": 1}'))
    first = await ask(provider, asked)
    assert [decision.reason for decision in decided(first, CacheSkipped)] == ["invalid output"]
    assert (await ask(provider, asked)).parsed == {"a": 1}


async def test_a_fixed_answer_is_not_stored():
    model = Scripted(Overloaded(), "from the model")
    provider = caching()(Failover(model, Static("Sorry.")))
    first = await ask(provider, ASKED)
    assert first.text == "Sorry."
    assert [decision.reason for decision in decided(first, CacheSkipped)] == ["fixed answer"]
    assert (await ask(provider, ASKED)).text == "from the model"


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (WHOLE, False), (STREAM, False), (replace(WHOLE, temperature=0.2), False), (replace(WHOLE, seed=0), True),
        (replace(WHOLE, temperature=1.0, seed=5), True), (replace(WHOLE, temperature=0), True), (EMBED, True),
    ],
)  # fmt: skip
async def test_sampled_answers_are_stored_only_if_asked_for(request_, kept):
    for sampled in (False, True):
        inner = Scripted(then="Hello")
        cache = caching(sampled=sampled)
        provider = cache(inner)
        response = await ask(provider, request_)
        await ask(provider, request_)
        assert inner.calls == (1 if kept or sampled else 2)
        assert cache.stats().skipped == (0 if kept or sampled else 2)
        reasons = [decision.reason for decision in decided(response, CacheSkipped)]
        assert reasons == ([] if kept or sampled else ["sampled"])


async def test_a_request_without_a_key_is_not_cached():
    inner = Scripted("a", "b")
    provider = caching()(inner)
    odd = replace(ASKED, extra={"scripted": {"a": object()}})
    assert [(await ask(provider, odd)).text for _ in range(2)] == ["a", "b"]


async def test_an_answer_that_is_no_json_is_not_stored():
    odd = PartDone(Thinking("x", meta={"a": {"b": object()}}), 0)
    provider = caching()(Scripted([odd, Finish("stop")], "b"))
    first = await ask(provider, ASKED)
    assert [decision.reason for decision in decided(first, CacheSkipped)] == ["not JSON"]
    assert (await ask(provider, ASKED)).text == "b"


async def test_an_answer_too_deep_for_json_is_given_and_not_stored():
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    provider = caching()(Scripted([PartDone(Thinking("x", meta={"a": deep}), 0), Finish("stop")], "b"))
    first = await ask(provider, ASKED)
    assert [decision.reason for decision in decided(first, CacheSkipped)] == ["not JSON"]
    assert (await ask(provider, ASKED)).text == "b"


# ---- what the caller asks of it --------------------------------------------------------------------------------------


@BOTH
async def test_bypass_neither_reads_nor_stores(request_):
    inner = Scripted("one", "two", "three")
    provider = caching()(inner)
    await ask(provider, request_)
    assert (await ask(provider, request_, cache="bypass")).text == "two"
    assert (await ask(provider, request_)).text == "one"


@BOTH
async def test_refresh_asks_anew_and_stores(request_):
    inner = Scripted("one", "two")
    provider = caching()(inner)
    await ask(provider, request_)
    fresh = await ask(provider, request_, cache="refresh")
    assert fresh.text == "two"
    assert decided(fresh, CacheMiss)[0].reason == "refresh"
    assert (await ask(provider, request_)).text == "two"
    assert inner.calls == 2


@BOTH
async def test_only_asks_nobody(request_):
    inner = Scripted("one")
    provider = caching(ttl=100, stale_if_error=1000)(inner)
    with pytest.raises(NotCached, match="absent"):
        await ask(provider, request_, cache="only")
    await ask(provider, request_)
    assert (await ask(provider, request_, cache="only")).text == "one"
    await anyio.sleep(500)
    kept = await ask(provider, request_, cache="only")
    assert (kept.text, kept.cached.stale) == ("one", True)
    await anyio.sleep(1000)
    with pytest.raises(NotCached):
        await ask(provider, request_, cache="only")
    with pytest.raises(NotCached, match="sampled"):
        await ask(provider, WHOLE, cache="only")
    assert inner.calls == 1


async def test_the_clients_hand_the_mode_on():
    inner = Scripted("one", "two", "three")
    client = AsyncClient(caching()(inner))
    texts = [
        (await client.generate("Hi", temperature=0, **options)).text
        for options in ({}, {}, {"cache": "bypass"}, {"cache": "refresh"}, {"cache": None}, {"cache": "only"})
    ]
    assert texts == ["one", "one", "two", "three", "three", "three"]
    with pytest.raises(InvalidArgument, match="cache: got"):
        await client.generate("Hi", cache="sometimes")
    with pytest.raises(InvalidArgument, match="cache: got"):
        await client.embed("Hi", cache=["x"])


def test_the_synchronous_client_caches_too_and_its_threads_share_calls():
    inner = Scripted([0.2, "one"], "two")
    texts: list[str] = []
    with Client(Cache()(inner)) as client:
        threads = [
            threading.Thread(target=lambda: texts.append(client.generate("Hi", temperature=0).text)) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == ["one"] * 20
        assert inner.calls == 1
        with client.stream("Hi", temperature=0) as response:
            assert "".join(response.text_stream()) == "one"
            assert response.cached is not None
        assert client.generate("Hi", temperature=0, cache="refresh").text == "two"


# ---- whose answers ---------------------------------------------------------------------------------------------------

TAGS = st.dictionaries(st.sampled_from(["tenant", "user", "session"]), st.sampled_from(["", "a", "b", "a\x1fb"]))


@settings(max_examples=60)
@given(st.lists(TAGS, min_size=2, max_size=5), st.sampled_from(["tenant", ("tenant", "user"), None]))
def test_nobody_gets_an_answer_of_another_scope(calls, scope):
    def whose(tags: dict[str, str]) -> Any:
        names = (scope,) if isinstance(scope, str) else scope or ()
        return tuple(tags.get(name, "") for name in names)

    async def run() -> None:
        model = Scripted(then=answer)
        provider = Cache(scope=scope)(model)
        made: dict[Any, str] = {}
        for tags in calls:
            response = await ask(provider, ASKED, tags=tags)
            mine = whose(tags)
            if mine in made:
                assert response.cached is not None
                assert response.text == made[mine]
            else:
                assert response.cached is None
                made[mine] = response.text

    async def answer(request, told_):
        return await Scripted([str(told_.tags)])._send(request, told_, ())

    anyio.run(run)


async def test_calls_of_two_tenants_share_no_call_under_way():
    inner = Scripted(then=[1.0, "x"])
    provider = caching()(inner)

    async def call(tenant: str) -> None:
        await ask(provider, ASKED, tags={"tenant": tenant})

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(call, f"tenant-{number % 4}")
    assert inner.calls == 4


async def test_a_scope_can_be_a_function_and_can_be_forgotten():
    inner = Scripted(then="x")
    cache = caching(scope=lambda told_: told_.tags.get("org", "").lower())
    provider = cache(inner)
    for org in ("A", "a", "b", ""):
        await ask(provider, ASKED, tags={"org": org})
    assert inner.calls == 3
    assert await cache.clear("a") == 1
    assert await cache.clear("a") == 0
    assert await cache.clear("") == 1
    assert await cache.clear() == 1


@pytest.mark.parametrize("value", [None, 5, b"a", ["a"], object()])
async def test_a_scope_is_a_str(value):
    for cache in (caching(scope=lambda _told: value), caching(), caching(scope=("tenant", "user"))):
        with pytest.raises(InvalidArgument, match="scope: got"):
            await ask(cache(Scripted("x")), ASKED, tags={"tenant": value})


async def test_a_tenant_and_a_user_of_one_name_share_nothing():
    store = memory()
    inner = Scripted(then="x")
    told_ = {"tenant": "42", "user": "42"}
    scopes: list[Any] = ["tenant", "user", ("tenant", "user"), None, lambda call: call.tags["user"]]
    for scope in scopes:
        await ask(caching(store=store, scope=scope)(inner), ASKED, tags=told_)
    assert inner.calls == len(scopes)
    await ask(caching(store=store)(inner), ASKED)  # not what scope=None let everybody have
    assert inner.calls == len(scopes) + 1


async def test_two_tags_are_forgotten_by_their_values():
    cache = caching(scope=("tenant", "user"))
    provider = cache(Scripted(then="x"))
    await ask(provider, ASKED, tags={"tenant": "t", "user": "u"})
    assert await cache.clear("t") == 0
    assert await cache.clear("t", "u") == 1


async def test_prompt_versions_and_targets_part_the_answers_of_one_store():
    store = memory()
    inner = Scripted(then="x")
    providers = [
        caching(store=store)(inner),
        caching(store=store, versions={"guard": "1"})(inner),
        caching(store=store, versions={"guard": "2"})(inner),
        caching(store=store)(Failover(inner, Scripted(name="other"))),
        caching(store=store, normalise=normalised_prompt)(inner),
    ]
    for provider in providers:
        await ask(provider, ASKED)
    await ask(providers[0], ASKED, prompt=("p", "1"))
    await ask(providers[0], ASKED, prompt=("p", "2"))
    assert inner.calls == 7
    for provider in providers:
        assert (await ask(provider, ASKED)).cached is not None
    assert (await ask(caching(store=store)(inner), ASKED)).cached is not None


async def test_what_may_answer_in_a_targets_place_and_what_trims_prompts_part_the_answers_of_one_store():
    store = memory()
    main, small = Scripted(then="from main"), Scripted(then="from small", name="small")

    def budget(cheaper):
        return Budget(BudgetLimit(100), price=lambda *_: Decimal(0), cheaper=cheaper)

    stacks = [
        main,
        budget(None)(main),  # the same, which changes nothing
        budget(small)(main),
        budget(Scripted(name="other"))(main),
        ContextWindow(windows=1000)(main),  # likewise
        ContextWindow(windows=1000, trim="oldest")(main),
        ContextWindow(windows=1000, trim="middle")(main),
        ContextWindow(windows=1000, trim=lambda messages, fits: messages)(main),
    ]
    kept = [(await ask(caching(store=store)(stack), ASKED)).cached is not None for stack in stacks]
    assert kept == [False, True, False, False, True, False, False, False]


async def test_a_rule_makes_different_prompts_one_and_sends_what_was_written():
    inner = Scripted(then="x")
    provider = caching(normalise=normalised_prompt)(inner)
    for text in ("  What IS it? ", "what is it?"):
        await ask(provider, GenerateRequest(messages=(Message.user(text),), temperature=0))
    assert [request.messages[0].text for request in inner.requests] == ["  What IS it? "]


async def test_keys_of_one_deployment_share_their_answers():
    one, other = Scripted(then="x", name="m"), Scripted(then="x", name="m")
    store = memory()
    await ask(caching(store=store)(KeyPool(one, other)), ASKED)
    assert (await ask(caching(store=store)(one), ASKED)).cached is not None


# ---- a store that is damaged, or away --------------------------------------------------------------------------------

ENTRY = Entry(1.0, 2.0, 0.5, "p", [Start("m"), TextDelta("Hello"), UsageUpdate(Usage()), Finish("stop")], usage=Usage())


def test_a_stored_value_that_is_damaged_in_any_byte_is_none():
    value = encode(ENTRY, "key")
    assert decode(value, "key") is not None
    for place in range(len(value)):
        for bit in (0, 3, 7):
            broken = bytearray(value)
            broken[place] ^= 1 << bit
            assert decode(bytes(broken), "key") is None
        assert decode(value[:place], "key") is None
    assert decode(value + b" ", "key") is None
    assert decode(value, "other") is None


@given(st.binary(max_size=40))
def test_what_no_cache_wrote_is_none(value):
    assert decode(value, "key") is None
    assert decode(encode(ENTRY, "key")[:8] + value, "key") is None


@pytest.mark.parametrize("body", [b"null", b"[]", b"{}", b'{"at":1,"ttl":1,"took":0,"by":"p","events":[["x"]]}',
                                  b'{"at":1,"ttl":1,"took":0,"by":"p","events":[["s","m",null]]}',
                                  b'{"at":1,"ttl":1,"took":0,"by":"p","error":{"type":"Exception"}}',
                                  b'{"at":1,"ttl":1,"took":0,"by":"p","error":{"type":"os"}}'])  # fmt: skip
def test_a_value_of_another_shape_is_none(body):
    from llmprod.wrappers._cache_entry import _FORMAT, _checksum

    assert decode(_FORMAT + _checksum(body, "key") + body, "key") is None


DAMAGE = {
    "cut": lambda value: value[:-1],
    "another version": lambda value: b"LPC\x02" + value[4:],
    "empty": lambda value: b"",
    "text": lambda value: value.decode("latin-1"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_answer_is_a_miss_and_written_anew(damage):
    store = memory()
    inner = Scripted("one", "two")
    provider = caching(store=store)(inner)
    await ask(provider, ASKED)
    ((key, (value, *rest)),) = store._entries.items()
    store._entries[key] = (damage(value), *rest)
    second = await ask(provider, ASKED)
    assert second.text == "two"
    assert decided(second, CacheMiss)[0].reason == "unreadable"
    assert (await ask(provider, ASKED)).text == "two"


class Failing(MemoryStore):
    """Away while ``error`` is set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.error: Exception | None = None
        self.asked = 0

    def _check(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    async def get(self, key):
        await anyio.lowlevel.checkpoint()
        self._check()
        return await super().get(key)

    async def set(self, key, value, *, ttl=None):
        self._check()
        await super().set(key, value, ttl=ttl)

    async def add(self, key, value, *, ttl=None):
        self._check()
        return await super().add(key, value, ttl=ttl)

    async def delete(self, key, *, only=None):
        self._check()
        return await super().delete(key, only=only)


@pytest.mark.parametrize("error", [StoreUnavailable("Failing", "away"), ConnectionError("secret-address")])
@pytest.mark.parametrize("lease", [None, 60.0])
async def test_a_store_that_is_away_costs_calls_and_breaks_none(error, lease, caplog):
    store = Failing()
    provider = caching(store=store, lease=lease)(Scripted(then="x"))
    await ask(provider, ASKED)
    store.error = error
    with caplog.at_level(logging.WARNING, logger="llmprod"):
        lost = await ask(provider, ASKED)
        asked = store.asked
        quiet = [await ask(provider, ASKED) for _ in range(5)]
        assert store.asked == asked  # it is left alone for a while
        store.error = None
        await anyio.sleep(20)
        back = await ask(provider, ASKED)
    assert all(response.text == "x" for response in (lost, *quiet, back))
    assert [(d.state, d.error) for d in decided(lost, CacheStoreChanged)] == [("lost", type(error).__name__)]
    assert [(d.state, d.error) for d in decided(back, CacheStoreChanged)] == [("back", None)]
    assert not any(decided(response, CacheStoreChanged) for response in quiet)
    assert back.cached is not None
    assert len(caplog.records) == 2
    assert "secret-address" not in caplog.text


async def test_an_outage_of_the_store_is_told_once_however_long_it_lasts(caplog):
    store = Failing()
    store.error = StoreUnavailable("Failing", "away")
    provider = caching(store=store)(Scripted(then="x"))
    told_ = []
    with caplog.at_level(logging.WARNING, logger="llmprod"):
        for _ in range(10):
            told_ += decided(await ask(provider, ASKED), CacheStoreChanged)
            await anyio.sleep(15)
    assert len(told_) == len(caplog.records) == 1
    assert store.asked == 10  # the answer is not offered where the lookup has just failed


async def test_a_store_that_can_be_read_and_not_written_gives_what_it_has():
    store = Failing(clock=LoopClock())
    provider = caching(store=store)(Scripted("x", "y", "z"))
    await ask(provider, ASKED)

    async def full(key, value, *, ttl=None):
        raise StoreUnavailable("Failing", "full")

    store.set = full
    other = replace(ASKED, seed=1)
    assert (await ask(provider, other)).text == "y"
    await anyio.sleep(20)
    assert (await ask(provider, ASKED)).text == "x"


async def test_a_wrong_option_of_a_store_is_not_taken_for_an_outage():
    store = Failing()
    store.error = InvalidArgument("store", "trio", "asyncio")
    with pytest.raises(InvalidArgument, match="store: got trio"):
        await ask(caching(store=store)(Scripted("x")), ASKED)


class Stalling(Failing):
    """Never answers what is named."""

    stalls: frozenset[str] = frozenset()

    async def get(self, key):
        return await self._wait("get") or await super().get(key)

    async def set(self, key, value, *, ttl=None):
        await self._wait("set")
        await super().set(key, value, ttl=ttl)

    async def add(self, key, value, *, ttl=None):
        await self._wait("add")
        return await super().add(key, value, ttl=ttl)

    async def delete(self, key, *, only=None):
        await self._wait("delete")
        return await super().delete(key, only=only)

    async def _wait(self, name: str) -> None:
        if name in self.stalls:
            await anyio.sleep_forever()


@BOTH
@pytest.mark.parametrize("stalls", ["get", "set", "add", "delete"])
async def test_a_store_that_never_answers_holds_up_a_call_for_seconds(stalls, request_):
    store = Stalling(clock=LoopClock())
    store.stalls = frozenset({stalls})
    provider = caching(store=store, lease=60)(Scripted(then="x"))
    begun = anyio.current_time()
    assert (await ask(provider, request_)).text == "x"
    assert anyio.current_time() - begun <= 10
    begun = anyio.current_time()
    assert (await ask(provider, request_)).text == "x"
    assert anyio.current_time() - begun <= 1  # it is left alone for a while


async def test_who_stops_reading_is_not_held_up_for_ever_by_a_store_that_never_answers():
    store = Stalling(clock=LoopClock())
    store.stalls = frozenset({"set"})
    provider = caching(store=store)(Scripted(then="x"))
    with anyio.move_on_after(1):
        await ask(provider, replace(STREAM, temperature=0))
    assert anyio.current_time() <= 10


async def test_a_store_that_takes_its_time_makes_one_call_of_many_all_the_same():
    inner = Scripted([1.0, "x"])
    store = Failing()
    provider = caching(store=store)(inner)
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask, provider, ASKED)
    assert inner.calls == 1


# ---- figures, telemetry, composition ---------------------------------------------------------------------------------


async def test_money_saved_is_counted_where_a_price_is_known():
    def prices(usage, *, provider, model):
        assert (provider, model) == ("scripted", "scripted")
        return None if usage is None else Decimal("0.5") * usage.total

    cache = caching(prices=prices)
    provider = cache(Scripted(["a", "b"]))
    for _ in range(3):
        await ask(provider, ASKED)
    stats = cache.stats()
    assert (stats.tokens_saved, stats.money_saved, stats.unpriced) == (6, Decimal("3.0"), 0)
    assert isinstance(stats.money_saved, Decimal)


async def test_what_an_answer_cost_is_kept_with_it():
    class Costs:
        name = "costs"
        capabilities = Scripted().capabilities

        def __init__(self) -> None:
            self.inner = Scripted(then="a")

        async def send(self, request, told_):
            response = await self.inner.send(request, told_)
            response.on_close(lambda _: setattr(response, "cost", Decimal("0.25")))
            return response

        async def aclose(self) -> None: ...

    for request in (ASKED, STREAMED):
        cache = caching()
        provider = cache(Costs())
        made = await ask(provider, request)
        assert made.cost == Decimal("0.25")
        assert (await ask(provider, request)).cost == 0
        assert cache.stats().money_saved == Decimal("0.25")


async def test_prices_that_raise_spoil_no_answer():
    def prices(usage, **_):
        raise ValueError("no")

    cache = caching(prices=prices)
    provider = cache(Scripted("a"))
    await ask(provider, ASKED)
    assert (await ask(provider, ASKED)).text == "a"
    assert cache.stats().unpriced == 1


async def test_no_text_of_a_prompt_or_answer_is_in_keys_decisions_or_logs(caplog):
    store = Failing(clock=LoopClock())
    seen = []
    secret = GenerateRequest(messages=(Message.system("secret"), Message.user("secret")), temperature=0)
    with caplog.at_level(logging.DEBUG):
        cache = caching(store=store, ttl=100, stale_while_revalidate=100)
        provider = cache(Scripted("secret", "secret", BadRequest(provider_message="secret")))
        for _ in range(3):
            response = await ask(
                provider, secret, tags={"tenant": "secret"}, listeners=(lambda d, _: seen.append(repr(d)),)
            )
            await anyio.sleep(60)
        store.error = StoreUnavailable("s", "w")
        with pytest.raises(BadRequest):
            await ask(provider, secret)
    assert response.cached
    assert seen
    assert "secret" not in caplog.text
    assert not any("secret" in text for text in (*seen, *store._entries, repr(cache), repr(provider), repr(response)))


def test_it_stands_in_its_place():
    stack = Stack(Deadline(60), Cache(), Retry())
    assert lint(stack(Scripted())) == []
    assert "Cache(MemoryStore, 86400 s)" in describe(stack(Scripted()))
    assert lint(Retry()(Cache()(Scripted())))
    told_ = repr(Cache(ttl=5, stale_if_error=60, stale_while_revalidate=1, sampled=True))
    assert told_ == "Cache(MemoryStore, 5 s, stale_while_revalidate=1 s, stale_if_error=60 s, sampled=True)"


def test_decorated_functions_are_refused_when_they_are_decorated():
    with pytest.raises(InvalidArgument, match="a decorated function"):

        @resilient(Cache())
        def ask_model() -> str:
            return "x"


async def test_an_unknown_kind_of_request_is_refused():
    with pytest.raises(InvalidArgument, match="request: got str"):
        await caching()(Scripted()).send("x", context())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"store": {}}, "store"), ({"ttl": 0}, "ttl"), ({"ttl": -1}, "ttl"), ({"ttl": float("inf")}, "ttl"),
        ({"stale_while_revalidate": -1}, "stale_while_revalidate"), ({"stale_if_error": "x"}, "stale_if_error"),
        ({"negative_ttl": -1}, "negative_ttl"), ({"sampled": 1}, "sampled"), ({"early": -1}, "early"),
        ({"scope": ""}, "scope"), ({"scope": ()}, "scope"), ({"scope": ("a", "")}, "scope"), ({"scope": 1}, "scope"),
        ({"normalise": "lower"}, "normalise"), ({"versions": {"a": 1}}, "versions"), ({"finish": "stop"}, "finish"),
        ({"finish": ["done"]}, "finish"), ({"single_flight": None}, "single_flight"), ({"lease": 0}, "lease"),
        ({"piece": 0}, "piece"), ({"buffer": 0}, "buffer"), ({"prices": 1}, "prices"), ({"now": 1}, "now"),
    ],
)  # fmt: skip
def test_options_are_checked(options, field):
    with pytest.raises(InvalidArgument) as caught:
        Cache(**options)
    assert caught.value.field == field
