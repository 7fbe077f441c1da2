"""A broken tool call is dropped: what stands, and how the answer ends."""

import pytest

from llmprod import GenerateRequest, InvalidArgument, Message, Tool, ToolCall
from llmprod.events import Finish, TextDelta, ToolCallDelta, ToolCallDone
from llmprod.mechanisms.resume_plan import ContinueText, Step, TruncateBeforeTool, step
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.mechanisms.shown import Shown

TOOL = Tool(name="f", parameters={"type": "object"})
REQUEST = GenerateRequest(messages=(Message.user("Hi"),), stream=True, tools=(TOOL,))
WHOLE, BROKEN = ToolCallDelta(1, "c1", "f", '{"a": 1}'), ToolCallDelta(2, "c2", "f", '{"a')


def shown(*events) -> Shown:
    seen = Shown()
    for event in events:
        seen.add(event)
    return seen


def truncated(*events, then="continue", request=REQUEST, prefill=True):
    return step(TruncateBeforeTool(then=then), shown(*events), request, prefill=prefill)


@pytest.mark.parametrize("then", ["continue", "end"])
def test_after_a_complete_call_the_answer_ends_with_it(then):
    assert truncated(TextDelta("a"), WHOLE, BROKEN, then=then) == Step(
        ending=(ToolCallDone(ToolCall("c1", "f", '{"a": 1}'), 1), Finish("tool_calls")), dropped=(2,)
    )


def test_after_a_call_of_an_unknown_tool_it_can_not_end():
    other = GenerateRequest(messages=REQUEST.messages, stream=True, tools=(Tool(name="g", parameters={}),))
    assert isinstance(truncated(WHOLE, BROKEN, request=other), str)


def test_after_text_it_can_pause():
    assert truncated(TextDelta("a"), BROKEN, then="end") == Step(ending=(Finish("pause"),), dropped=(2,))
    assert isinstance(truncated(BROKEN, then="end"), str)
    assert isinstance(truncated(TextDelta(" \n"), BROKEN, then="end"), str)


def test_after_text_it_can_go_on():
    todo = truncated(TextDelta("a"), BROKEN)
    assert isinstance(todo, Step)
    assert (todo.prefix, todo.dropped, todo.ending) == ("a", (2,), ())
    assert isinstance(truncated(TextDelta("a"), BROKEN, prefill=False), str)


@pytest.mark.parametrize("events", [(), (TextDelta("a"),), (WHOLE,), (BROKEN, TextDelta("a", 3))])
def test_without_one_broken_call_at_the_end_it_does_not_fit(events):
    assert isinstance(truncated(*events), str)


def test_a_choice_of_tools_that_is_no_demand_may_be_continued():
    for choice in (None, "auto", "none"):
        request = GenerateRequest(messages=REQUEST.messages, stream=True, tools=(TOOL,), tool_choice=choice)
        assert isinstance(step(ContinueText(), shown(TextDelta("a")), request, prefill=True), Step)
    for choice in ("required", "f"):
        request = GenerateRequest(messages=REQUEST.messages, stream=True, tools=(TOOL,), tool_choice=choice)
        assert isinstance(step(ContinueText(), shown(TextDelta("a")), request, prefill=True), str)


@pytest.mark.parametrize("then", ["stop", "", None, "END"])
def test_any_other_end_is_refused(then):
    with pytest.raises(InvalidArgument) as caught:
        TruncateBeforeTool(then=then)
    assert caught.value.field == "then"


def test_pieces_are_counted_whatever_they_are_of():
    seen = shown(TextDelta("a"), TextDelta("b"), WHOLE, BROKEN)
    assert seen.pieces == 4
    assert Shown().pieces == 0
    assert Shown().last is None


def test_the_kind_of_an_attempt_is_a_retry_unless_said():
    made = RetryBudget(0.0, reserve=0, failover_ratio=1.0)
    made.deposit()
    assert made.balance() == 0
    assert not made.withdraw()
