"""Bulkhead: who gets a permit, who waits, who is given up, and what the limit learns."""

import gc

import anyio
import pytest

from llmprod import (
    AttemptTimeout,
    Deadline,
    DeadlineExceeded,
    Failover,
    FirstTokenTimeout,
    InvalidArgument,
    LoopClock,
    Overloaded,
    RateLimited,
    ReadError,
    ServerError,
    StreamInterrupted,
    describe,
)
from llmprod.decisions import CallShed, CallWaited, ConcurrencyChanged
from llmprod.errors import BulkheadFull, Shed
from llmprod.mechanisms.concurrency_limit import AIMDLimit, ConcurrencyLimit, FixedLimit, QueueLimit
from llmprod.mechanisms.gradient2 import Gradient2
from llmprod.testing.scripted import HANG, Scripted
from llmprod.wrappers.bulkhead import Bulkhead
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import EMBED, STREAM, WHOLE, ask, context


def bulkhead(limit=1, **options) -> Bulkhead:
    return Bulkhead(limit, clock=LoopClock(), **options)


def idle(stack) -> bool:
    return stack.limit.in_flight == 0 and len(stack.line) == 0


class Caller:
    """Calls in the background, and what became of them, in the order in which they ended."""

    def __init__(self, group, stack) -> None:
        self.group, self.stack = group, stack
        self.ended: list[tuple[str, str, float]] = []

    async def _call(self, name, told, request) -> None:
        try:
            await (await self.stack.send(request, told)).read()
            how = "ok"
        except Exception as error:
            how = type(error).__name__
        self.ended.append((name, how, round(anyio.current_time() - self.began, 3)))

    async def call(self, name, request=WHOLE, **options):
        """Begin a call and let it come as far as it gets."""
        if not hasattr(self, "began"):
            self.began = anyio.current_time()
        told = context(**options)
        self.group.start_soon(self._call, name, told, request)
        await anyio.sleep(0.001)
        return told

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.ended]


# ---- permits and the line -------------------------------------------------------------------------------------------


async def test_as_many_calls_as_allowed_are_under_way_and_the_others_wait_in_order():
    provider = Scripted(then=[1.0, "Hi"])
    stack = bulkhead(2)(provider)
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        for name in "abcde":
            told = await caller.call(name)
        assert provider.in_flight == 2
        assert len(stack.line) == 3
    assert caller.names == list("abcde")
    assert [round(at) for *_, at in caller.ended] == [1, 1, 2, 2, 3]
    (waited,) = told.trace.decisions
    assert isinstance(waited, CallWaited)
    assert waited.seconds == pytest.approx(2, abs=0.01)
    assert idle(stack)


async def test_a_call_that_finds_room_decides_nothing():
    told = context()
    await bulkhead(1)(Scripted("Hi")).send(WHOLE, told)
    assert told.trace.decisions == []


async def test_a_higher_priority_goes_first():
    stack = bulkhead(1)(Scripted(then=[1.0, "Hi"]))
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        for name, priority in [("first", 0), ("low", -1), ("usual", 0), ("urgent", 5), ("usual too", 0)]:
            await caller.call(name, priority=priority)
    assert caller.names == ["first", "urgent", "usual", "usual too", "low"]


async def test_a_full_line_refuses_at_once():
    stack = bulkhead(1, at_most_waiting=1)(Scripted(then=[1.0, "Hi"]))
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        await caller.call("served")
        await caller.call("waits")
        told = await caller.call("refused")
        assert caller.ended == [("refused", "BulkheadFull", 0.002)]
    (shed,) = told.trace.decisions
    assert isinstance(shed, CallShed)
    assert (shed.reason, shed.waited) == ("queue full", 0)
    assert caller.names == ["refused", "served", "waits"]
    assert idle(stack)


async def test_a_full_line_gives_way_to_a_higher_priority():
    provider = Scripted(then=[1.0, "Hi"])
    stack = bulkhead(1, at_most_waiting=2)(provider)
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        for name, priority in [("served", 0), ("waits", 0), ("low", -1)]:
            await caller.call(name, priority=priority)
        told = await caller.call("urgent", priority=1)
        assert caller.ended[-1][:2] == ("low", "BulkheadFull")  # the lowest, and of those the last
        await caller.call("usual", priority=0)
        assert caller.ended[-1][:2] == ("usual", "BulkheadFull")  # no higher than who waits
        await caller.call("urgent too", priority=1)
        assert caller.ended[-1][:2] == ("waits", "BulkheadFull")
        assert len(stack.line) == 2
    assert caller.names == ["low", "usual", "waits", "served", "urgent", "urgent too"]
    assert [type(decision) for decision in told.trace.decisions] == [CallWaited]
    assert idle(stack)
    assert stack.line.displaced == set()


async def test_several_at_once_displace_as_many():
    stack = bulkhead(1, at_most_waiting=2)(Scripted(then=[1.0, "Hi"]))
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        for name in ("served", "a", "b"):
            await caller.call(name)
        for name in ("x", "y", "z"):
            group.start_soon(caller._call, name, context(priority=1), WHOLE)
        await anyio.sleep(0.01)
        assert sorted(caller.names)[:2] == ["a", "b"]  # and one of the three, whichever came last
        assert len(caller.names) == 3
        assert len(stack.line) == 2
    assert idle(stack)


async def test_without_a_line_nobody_waits():
    stack = bulkhead(1, at_most_waiting=0)(Scripted(then=[1.0, "Hi"]))
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        await caller.call("served")
        await caller.call("refused")
    assert caller.ended[0][:2] == ("refused", "BulkheadFull")


async def test_a_wait_has_a_limit():
    stack = bulkhead(1, wait_at_most=2)(Scripted([5.0, "Hi"], "Hi"))
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        await caller.call("served")
        told = await caller.call("waits")
    assert caller.ended[0][:2] == ("waits", "BulkheadFull")
    (shed,) = told.trace.decisions
    assert (shed.reason, shed.waited) == ("waited too long", pytest.approx(2))
    assert idle(stack)


async def test_who_leaves_the_line_makes_room_for_the_next():
    stack = bulkhead(1, wait_at_most=None)(Scripted([5.0, "Hi"], then="Hi"))
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        await caller.call("served")
        with anyio.move_on_after(1) as scope:
            async with anyio.create_task_group() as within:
                await Caller(within, stack).call("leaves", priority=9)
                await caller.call("waits")
        assert scope.cancelled_caught
        assert len(stack.line) == 1
    assert caller.names == ["served", "waits"]
    assert idle(stack)


async def test_the_error_says_when_a_place_is_expected_to_be_free():
    stack = bulkhead(2, at_most_waiting=0)(Scripted(then=[2.0, "Hi"]))
    await ask(stack)
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        await caller.call("a")
        await caller.call("b")
        with pytest.raises(BulkheadFull) as caught:
            await ask(stack)
        assert caught.value.retry_after == pytest.approx(1.0, rel=0.05)
    assert caught.value.provider == "scripted"


async def test_a_failover_takes_what_finds_no_room():
    full, other = bulkhead(1, at_most_waiting=0)(Scripted(then=[1.0, "A"], name="a")), Scripted(then="B", name="b")
    async with anyio.create_task_group() as group:
        group.start_soon(ask, full)
        await anyio.sleep(0.1)
        assert (await ask(Failover(full, other))).text == "B"


# ---- the deadline, at dequeue ---------------------------------------------------------------------------------------


async def measured(stack, request, times=20) -> None:
    for _ in range(times):
        await ask(stack, request)


async def test_a_call_that_has_no_time_left_for_an_answer_is_never_sent():
    provider = Scripted(then=[0.5, "Hi", 1.0, "there"])
    stack = bulkhead(1)(provider)
    await measured(stack, STREAM)
    asked = provider.calls
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        await caller.call("served", STREAM)  # holds the permit for 1.5 s
        told = await caller.call("hopeless", STREAM, seconds=1.8)  # would have 0.3 s; a first token takes 0.5
        await caller.call("in time", STREAM, seconds=2.3)
    by_name = {name: (how, at) for name, how, at in caller.ended}
    assert by_name["hopeless"][0] == "Shed"
    assert by_name["hopeless"][1] == pytest.approx(1.3, abs=0.05)  # as soon as it was hopeless, not at its deadline
    assert by_name["in time"][0] == "ok"
    assert provider.calls == asked + 2
    (shed,) = told.trace.decisions
    assert (shed.reason, shed.waited) == ("too late", pytest.approx(1.3, abs=0.05))


async def test_a_hopeless_call_does_not_even_wait():
    stack = bulkhead(1)(Scripted(then=[1.0, "Hi"]))
    await measured(stack, WHOLE)
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack)
        await anyio.sleep(0.1)
        with pytest.raises(Shed, match="deadline"):
            await ask(stack, seconds=0.5)


async def test_a_call_whose_turn_would_come_too_late_is_refused_when_it_comes():
    stack = bulkhead(1)(Scripted(then=[1.0, "Hi"]))
    await measured(stack, WHOLE)
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        for name in "abcd":
            await caller.call(name, seconds=5.0)  # d: two are ahead in line, and twice a second for its answer
        told = await caller.call("e", seconds=4.5)  # three are ahead
        await caller.call("urgent", seconds=4.5, priority=1)
    by_name = {name: (how, at) for name, how, at in caller.ended}
    assert by_name["e"] == ("Shed", pytest.approx(0, abs=0.01))
    assert [by_name[name][0] for name in ("a", "b", "c", "d", "urgent")] == ["ok"] * 5
    (shed,) = told.trace.decisions
    assert (shed.reason, shed.waited) == ("too late", 0.0)
    assert idle(stack)


async def test_a_deadline_that_passes_where_answers_had_long_been_there_counts_as_a_refusal():
    limit = AIMDLimit(initial=4, maximum=4, clock=LoopClock())
    stack = Deadline(10)(bulkhead(limit)(Scripted(*[[0.5, "Hi"]] * 20, then=HANG)))
    await measured(stack, WHOLE)
    with pytest.raises(DeadlineExceeded):
        await ask(stack, seconds=0.2)
    assert limit.limit == 4  # in a hurry, which says nothing of the target
    with pytest.raises(DeadlineExceeded):
        await ask(stack, seconds=5)
    assert limit.limit == 3
    assert limit.in_flight == 0


async def test_a_call_that_needs_not_wait_is_sent_however_tight_its_deadline():
    stack = bulkhead(1)(Scripted(then=[1.0, "Hi"]))
    await measured(stack, STREAM)
    assert (await ask(stack, STREAM, seconds=0.5)).text == "Hi"  # the deadline is the Deadline wrapper's to enforce


async def test_before_anything_was_measured_a_call_waits_until_its_deadline():
    stack = Deadline(2)(bulkhead(1)(Scripted([5.0, "Hi"], "Hi")))
    async with anyio.create_task_group() as group:
        group.start_soon(ask, stack.inner)
        await anyio.sleep(0.1)
        with pytest.raises((DeadlineExceeded, Shed)):
            await ask(stack)
    assert idle(stack.inner)


# ---- permits come back, whatever the way ----------------------------------------------------------------------------


async def test_a_stream_holds_its_permit_until_it_was_read():
    stack = bulkhead(1)(Scripted(then=["a", "b"]))
    response = await stack.send(STREAM, context())
    assert stack.limit.in_flight == 1
    await response.read()
    assert stack.limit.in_flight == 0


@pytest.mark.parametrize("way", ["closed", "abandoned", "broken", "cancelled"])
async def test_a_stream_gives_its_permit_back_however_it_ends(way):
    stack = bulkhead(1)(Scripted(["a", HANG] if way == "cancelled" else ["a", ReadError()]))
    response = await stack.send(STREAM, context())
    if way == "closed":
        await response.aclose()
    elif way == "abandoned":
        with pytest.warns(ResourceWarning):  # noqa: PT031
            del response
            gc.collect()
    elif way == "broken":
        with pytest.raises(StreamInterrupted):
            await response.read()
    else:
        with anyio.move_on_after(1):
            await response.read()
    assert idle(stack)


@pytest.mark.parametrize("error", [ServerError(), RateLimited(), ValueError()], ids=lambda error: type(error).__name__)
async def test_a_failed_call_gives_its_permit_back(error):
    stack = bulkhead(1)(Scripted(error))
    with pytest.raises(type(error)):
        await ask(stack)
    assert idle(stack)


async def test_a_classifier_that_fails_loses_no_permit():
    def broken(_):
        raise LookupError

    stack = Bulkhead(1, classify=broken)(Scripted(ServerError()))
    with pytest.raises(LookupError):
        await ask(stack)
    assert idle(stack)


# ---- one limit for several stacks -----------------------------------------------------------------------------------


async def test_stacks_that_share_a_limit_stand_in_one_line():
    limit = FixedLimit(1)
    one, other = bulkhead(limit)(Scripted(then=[1.0, "A"])), bulkhead(limit)(Scripted(then=[1.0, "B"]))
    assert one.line is other.line
    async with anyio.create_task_group() as group:
        ones, others = Caller(group, one), Caller(group, other)
        others.ended = ones.ended
        await ones.call("a1")
        await others.call("b1")
        await ones.call("a2", priority=1)
        await others.call("b2")
        assert limit.in_flight == 1
    assert ones.names == ["a1", "a2", "b1", "b2"]


async def test_each_target_of_a_number_has_permits_of_its_own():
    wrapper = bulkhead(1, at_most_waiting=0)
    one, other = wrapper(Scripted([1.0, "A"])), wrapper(Scripted("B"))
    async with anyio.create_task_group() as group:
        group.start_soon(ask, one)
        await anyio.sleep(0.1)
        assert (await ask(other)).text == "B"


# ---- what the limit learns ------------------------------------------------------------------------------------------


class Told(ConcurrencyLimit):
    """Writes down what it is told."""

    limit = 10

    def __init__(self) -> None:
        super().__init__()
        self.told: list[object] = []

    def _answered(self, seconds, in_flight):
        self.told.append(None if seconds is None else (round(seconds, 3), in_flight))

    def _dropped(self):
        self.told.append("dropped")


async def test_streams_and_embeddings_are_timed_to_their_first_content_and_whole_answers_are_not():
    limit = Told()
    stack = bulkhead(limit)(Scripted([0.5, "a", 3.0, "b"], [0.7, "whole"], [0.2, "vector"]))
    response = await stack.send(STREAM, context())
    assert limit.told == [(0.5, 1)]
    await response.read()
    await ask(stack, WHOLE)
    assert limit.told == [(0.5, 1), None]
    await stack.send(EMBED, context())
    assert limit.told == [(0.5, 1), None, (0.2, 1)]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RateLimited(), ["dropped"]),
        (Overloaded(), ["dropped"]),
        (FirstTokenTimeout(3.0), ["dropped"]),
        (ServerError(), []),
        (ReadError(), []),
        (DeadlineExceeded(3.0), []),
        (BulkheadFull(), []),
        (ValueError(), []),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, Exception) else "",
)
async def test_what_an_error_tells_the_limit(error, told):
    limit = Told()
    with pytest.raises(type(error)):
        await ask(bulkhead(limit)(Scripted(error)))
    assert limit.told == told


async def test_a_timeout_inside_counts_and_a_cancelled_call_says_nothing():
    limit = Told()
    stack = bulkhead(limit)(AttemptTimeout(first_token=2)(Scripted([HANG], [HANG])))
    with pytest.raises(FirstTokenTimeout):
        await ask(stack, STREAM)
    assert limit.told == ["dropped"]
    with anyio.move_on_after(1):
        await ask(stack, STREAM)
    assert limit.told == ["dropped"]
    assert idle(stack)


async def test_an_overload_told_inside_the_stream_counts():
    limit = Told()
    stack = bulkhead(limit)(Scripted(["a", Overloaded(in_stream=True)]))
    with pytest.raises(StreamInterrupted):
        await ask(stack, STREAM)
    assert limit.told == [(0.0, 1), "dropped"]


async def test_a_limit_that_moves_is_told_and_lets_more_through():
    limit = AIMDLimit(initial=2)
    stack = bulkhead(limit)(Scripted([1.0, "Hi"], [9.0, "Hi"], then=[2.0, "Hi"]))
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        first = await caller.call("a")
        for name in "bcd":
            await caller.call(name)
        await anyio.sleep(1.1)
        assert limit.limit == 3
        assert limit.in_flight == 3  # b, and both that waited
    (changed,) = first.trace.decisions
    assert isinstance(changed, ConcurrencyChanged)
    assert (changed.before, changed.after) == (2, 3)
    told = context()
    refusing = bulkhead(limit)(Scripted(RateLimited()))
    with pytest.raises(RateLimited):
        await refusing.send(WHOLE, told)
    (changed,) = told.trace.decisions
    assert changed.after == int(changed.before * 0.9)


async def test_an_engine_whose_queue_drains_lets_waiting_calls_in_without_any_call_ending():
    waiting = 0
    limit = QueueLimit(lambda: waiting, initial=1, interval=0.25, clock=LoopClock())
    stack = bulkhead(limit, wait_at_most=None)(Scripted(then=[60.0, "Hi"]))
    async with anyio.create_task_group() as group:
        caller = Caller(group, stack)
        waiting = 2
        await caller.call("a")
        await caller.call("b")
        await anyio.sleep(5)
        assert limit.in_flight == 1
        waiting = 0
        await anyio.sleep(1)
        assert limit.in_flight == 2


@pytest.mark.parametrize(("places", "least", "most"), [(10, 12, 30), (1000, 60, 80)], ids=["queues", "roomy"])
async def test_gradient2_stops_where_the_target_begins_to_queue(places, least, most):
    """A server with so many places; a call beyond them waits there, and its first token with it."""
    room = anyio.Semaphore(places)
    served = Scripted(then="Hi")

    async def serve(request, told):
        async with room:
            await anyio.sleep(0.5)
            return await served.send(request, told)

    limit = Gradient2(initial=8, minimum=4, clock=LoopClock())
    stack = bulkhead(limit, wait_at_most=None)(Scripted(then=serve))
    end = anyio.current_time() + 90

    async def client():
        while anyio.current_time() < end:
            await ask(stack, STREAM)

    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(client)
    assert least <= limit.limit <= most
    assert idle(stack)


# ---- cancelled at every await ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
async def test_cancelled_anywhere(request_, waits):
    def scenario():
        limit = Told()
        limit.limit = 1
        provider = Scripted(then=[0.5, "Hel", 0.5, "lo", 0.5])
        stack = bulkhead(limit)(provider)
        told = context()

        async def run():
            held = limit.acquire() if waits else None
            try:
                async with anyio.create_task_group() as group:
                    if held is not None:
                        group.start_soon(give_back, held, stack)
                    response = await stack.send(request_, told)
                    async with response:
                        await response.read()
            finally:
                if held is not None:
                    held.release()

        def check():
            assert idle(stack)
            assert [provider.in_flight, provider.open_sources] == [0, 0]
            answered = [entry for entry in told.trace.entries if entry.state == "ok" or entry.ttft is not None]
            assert len(limit.told) == len(answered)
            assert "dropped" not in limit.told

        return run(), check

    assert await sweep(scenario) >= 2


async def give_back(permit, stack):
    await anyio.sleep(0.3)
    permit.release()
    stack.line.wake()


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limit", 0),
        ("limit", True),
        ("limit", 2.5),
        ("limit", None),
        ("at_most_waiting", -1),
        ("wait_at_most", -1),
        ("wait_at_most", "10"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidArgument, match=rf"{field}: got .*; allowed: "):
        Bulkhead(**{field: value})


def test_it_says_what_it_is():
    assert describe(Bulkhead()(Scripted())).startswith("Bulkhead(100 at once, 100 waiting)")
    assert repr(Bulkhead(Gradient2(), at_most_waiting=5)) == "Bulkhead(Gradient2, 5 waiting)"
