"""Decisions: what a listener is told, and what a printed trace shows of them."""

import logging
from dataclasses import fields

import pytest

import llmprod.decisions
from llmprod import (
    AsyncClient,
    Context,
    GenerateRequest,
    InvalidArgument,
    Message,
    ServerError,
    capture,
    resilient,
    standard,
)
from llmprod.decisions import CallWaited, ChaosInjected, Decision, RetryScheduled
from llmprod.testing.scripted import Scripted


def flaky() -> Scripted:
    return Scripted(ServerError(retry_after=0.001), then="Hi")


async def test_a_listener_is_told_each_decision_with_its_call():
    told: list[tuple[Decision, Context]] = []
    client = AsyncClient(flaky(), listeners=[lambda *what: told.append(what)], tags={"user": "u"})
    response = await client.generate("Hello")
    assert [type(decision) for decision, _ in told] == [RetryScheduled]
    decision, context = told[0]
    assert decision is response.trace.decisions[0]
    assert (decision.target, decision.round, decision.error) == ("scripted", 2, "ServerError")
    assert context.tags == {"user": "u"}


async def test_a_broken_listener_breaks_no_call_and_leaks_nothing(caplog):
    def broken(decision, context):
        raise ValueError("the prompt was: secret")

    with caplog.at_level(logging.ERROR, logger="llmprod"):
        response = await AsyncClient(flaky(), listeners=[broken]).generate("Hello")
    assert response.text == "Hi"
    assert "a listener raised ValueError on RetryScheduled" in caplog.text
    assert "secret" not in caplog.text


async def test_decorated_functions_have_listeners_too():
    told = []
    tries = iter([ServerError(retry_after=0.001), None])

    @resilient(listeners=[lambda decision, context: told.append(decision)])
    async def ask() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "Hi"

    with capture() as calls:
        assert await ask() == "Hi"
    assert told == calls[-1].trace.decisions != []


@pytest.mark.parametrize("given", ["f", [1], None])
def test_listeners_are_functions(given):
    with pytest.raises(InvalidArgument, match=r"listeners(\[0\])?: got "):
        AsyncClient(Scripted(), listeners=given)
    with pytest.raises(InvalidArgument, match="listeners: got "):
        resilient(listeners=given)(lambda: 1)


async def test_priority_is_an_integer():
    client = AsyncClient(Scripted(then="Hi"))
    assert (await client.generate("Hello", priority=-3)).context.priority == -3
    with pytest.raises(InvalidArgument, match="priority: got "):
        await client.generate("Hello", priority="high")


def test_a_trace_shows_decisions_where_they_were_made():
    context = Context.new()
    context.decided(CallWaited, "a", seconds=0.25)
    context.trace.begin("a", 0.3)
    context.decided(RetryScheduled, "a", round=2, delay=1.0, error="ServerError")  # the waited column tells it
    context.decided(ChaosInjected, "a", kind="<b>")
    context.trace.begin("a", 1.3)
    lines = str(context.trace).splitlines()
    assert [line[:1] for line in lines] == ["#", " ", "1", " ", "2"]
    assert "CallWaited: seconds 0.25" in lines[1]
    assert "ChaosInjected: kind <b>" in lines[3]
    assert "&lt;b&gt;" in context.trace._repr_html_()
    assert len(context.trace.rows()) == 2
    assert len(context.trace.decisions) == 3


RECORDS = [
    kind
    for kind in vars(llmprod.decisions).values()
    if isinstance(kind, type) and issubclass(kind, Decision) and kind is not Decision
]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_says_who_decided_and_is_listed(kind):
    assert kind.wrapper
    assert kind.__name__ in llmprod.decisions.__all__
    assert kind.__dataclass_params__.frozen
    values = {item.name: None for item in fields(kind)} | {"at": 0.0, "target": "a"}
    assert not hasattr(kind(**values), "__dict__")


async def test_a_call_without_trouble_decides_nothing():
    request = GenerateRequest(messages=(Message.user("Hi"),))
    response = await standard(Scripted(then="Hi"), [Scripted(name="b")]).send(request, Context.new())
    assert response.trace.decisions == []
