"""The trace: what happened, attempt by attempt, without prompt text, as a table and as HTML."""

import pytest

from llmprod import (
    Action,
    AsyncClient,
    AttemptTimeout,
    Failover,
    LoopClock,
    Overloaded,
    ReadError,
    Retry,
    ServerError,
    StreamInterrupted,
    Trace,
)
from llmprod.testing.scripted import HANG, Scripted

SECRET = "sesame-4711"


async def test_every_attempt_is_told_with_its_time_wait_and_verdict():
    first = Scripted([1.0, ServerError(status=500, code="boom")], [HANG], name="a")
    second = Scripted([0.5, "Hi"], name="b")
    stack = Failover(*(AttemptTimeout(first_token=3)(target) for target in (first, second)))
    client = AsyncClient(stack, wrappers=[Retry(wait=lambda _: 2.0)], clock=LoopClock())
    async with client.stream(SECRET) as response:
        await response.read()
    rows = response.trace.rows()
    assert [(row["target"], row["result"], row["verdict"], row["reason"]) for row in rows] == [
        ("a", "failed: ServerError", "retry_same", "boom"),
        ("a", "failed: FirstTokenTimeout", "retry_other", "limit 3 s"),
        ("b", "ok", None, None),
    ]
    assert [row["started"] for row in rows] == pytest.approx([0, 3, 6])
    assert [row["wait"] for row in rows] == pytest.approx([0, 2, 0])
    assert [row["seconds"] for row in rows] == pytest.approx([1, 3, 0.5])
    assert rows[2]["ttft"] == pytest.approx(0.5)
    assert rows[2]["tokens"] == 2
    assert rows[0]["status"] == 500
    assert len(response.trace) == len(response.trace.attempts) == 3
    for shown in (str(response.trace), repr(response.trace), response.trace._repr_html_()):
        assert SECRET not in shown
    lines = str(response.trace).splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["#", "at", "waited", "target", "result", "verdict", "ttft", "time", "tokens"]
    assert all(line.index("failed") == lines[0].index("result") for line in lines[1:3])


async def test_the_trace_travels_with_the_error():
    client = AsyncClient(Scripted(["Hel", ReadError()], Overloaded()), wrappers=[], clock=LoopClock())
    with pytest.raises(StreamInterrupted) as caught:
        async with client.stream("Hi") as response:
            await response.read()
    assert [entry.state for entry in caught.value.trace.entries] == ["interrupted"]
    with pytest.raises(Overloaded) as caught:
        await client.generate("Hi")
    assert [(entry.state, entry.error) for entry in caught.value.trace.entries] == [("failed", "Overloaded")]


async def test_how_the_caller_ended_it_is_told():
    client = AsyncClient(Scripted(then=["a", "b"]), wrappers=[], clock=LoopClock())
    async with client.stream("Hi") as response:
        await response.__anext__()
    assert [entry.state for entry in response.trace.entries] == ["closed"]


def test_targets_that_were_not_asked_are_told_but_are_no_attempts():
    trace = Trace()
    trace.skipped("a", 0.0, "circuit open", error="CircuitOpen")
    trace.begin("b", 0.0).failed(Overloaded(status=529), 0.25)
    assert [entry.target for entry in trace.attempts] == ["b"]
    assert trace.attempts[0].verdict is Action.RETRY_SAME
    assert "skipped: CircuitOpen circuit open" in str(trace)
    assert "250 ms" in str(trace)


def test_html_is_escaped():
    trace = Trace()
    trace.begin('<script>alert("a")</script>', 0.0).failed(ServerError(detail="<b>&"), 1.0)
    page = trace._repr_html_()
    assert "<script>" not in page
    assert "<b>&" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;&amp;" in page
    assert page.count("<tr") == 2
    assert Trace()._repr_html_().count("<tr") == 1
