"""The plans, without an event loop: what each comes to."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmprod import GenerateRequest, Message, OutputSchema, Text, Thinking, Tool, ToolCall
from llmprod.events import Finish, RefusalDelta, TextDelta, ThinkingDelta, ToolCallDelta, ToolCallDone
from llmprod.mechanisms.resume_plan import ContinueText, Restart, Step, SynthesizeToolUse, TruncateBeforeTool, step
from llmprod.mechanisms.shown import Shown

TOOL = Tool(name="f", parameters={"type": "object"})
REQUEST = GenerateRequest(messages=(Message.system("Be brief."), Message.user("Hi")), stream=True, tools=(TOOL,))
PLANS = (ContinueText(), SynthesizeToolUse(), TruncateBeforeTool(), TruncateBeforeTool(then="end"), Restart())


def shown(*events) -> Shown:
    seen = Shown()
    for event in events:
        seen.add(event)
    return seen


def test_the_prefix_and_its_space():
    todo = step(ContinueText(), shown(TextDelta("a "), TextDelta("b \n")), REQUEST, prefill=True)
    assert isinstance(todo, Step)
    assert (todo.prefix, todo.space) == ("a b", " \n")
    assert todo.request == replace(REQUEST, messages=(*REQUEST.messages, Message.assistant("a b")), prefill=True)


def test_texts_of_several_parts_are_one_prefix():
    todo = step(ContinueText(), shown(TextDelta("a", 0), TextDelta("b", 2)), REQUEST, prefill=True)
    assert isinstance(todo, Step)
    assert todo.prefix == "ab"


@pytest.mark.parametrize(("pieces", "reported", "left"), [(3, 0, 7), (3, 2, 7), (3, 5, 5), (3, 9, 1)])
def test_the_limit_is_what_is_left(pieces, reported, left):
    seen = shown(*[TextDelta("a")] * pieces)
    todo = step(ContinueText(), seen, replace(REQUEST, max_tokens=10), prefill=True, reported=reported)
    assert isinstance(todo, Step)
    assert todo.request is not None
    assert todo.request.max_tokens == left


@pytest.mark.parametrize("reported", [10, 11])
def test_nothing_is_left(reported):
    seen = shown(TextDelta("a"))
    todo = step(ContinueText(), seen, replace(REQUEST, max_tokens=10), prefill=True, reported=reported)
    assert todo == Step(ending=(Finish("length"),))


def test_a_dropped_call_takes_nothing_off_the_limit():
    seen = shown(TextDelta("a"), ToolCallDelta(1, "c", "f", '{"a'))
    todo = step(TruncateBeforeTool(), seen, replace(REQUEST, max_tokens=10), prefill=True, reported=8)
    assert isinstance(todo, Step)
    assert todo.request is not None
    assert (todo.request.max_tokens, todo.dropped) == (9, (1,))


def test_a_call_without_an_id_gets_one():
    todo = step(SynthesizeToolUse(), shown(ToolCallDelta(0, None, "f", "{}")), REQUEST, prefill=False)
    assert todo == Step(ending=(ToolCallDone(ToolCall("call_0", "f", "{}"), 0), Finish("tool_calls")))


def test_without_tools_of_our_own_any_name_will_do():
    seen = shown(ToolCallDelta(0, "c", "provider_tool", "{}"))
    assert isinstance(step(SynthesizeToolUse(), seen, replace(REQUEST, tools=()), prefill=False), Step)


def test_the_last_message_of_the_caller_is_not_lost():
    own = Message.assistant(Thinking("hm"), Text("Once", meta={"x": {"y": 1}}))
    request = replace(REQUEST, messages=(*REQUEST.messages, own))
    todo = step(ContinueText(), shown(TextDelta(" upon")), request, prefill=True)
    assert isinstance(todo, Step)
    assert todo.request is not None
    grown = Message.assistant(Thinking("hm"), Text("Once upon", meta={"x": {"y": 1}}))
    assert todo.request.messages == (*REQUEST.messages, grown)
    called = Message.assistant(ToolCall("c", "f", "{}"))
    request = replace(REQUEST, messages=(*REQUEST.messages, called))
    todo = step(ContinueText(), shown(TextDelta("upon")), request, prefill=True)
    assert isinstance(todo, Step)
    assert todo.request is not None
    assert todo.request.messages == (*REQUEST.messages, called, Message.assistant("upon"))


_events = st.lists(
    st.sampled_from([
        TextDelta("Hello "), TextDelta("world", 2), TextDelta(" "), ThinkingDelta("hm", 1), RefusalDelta("no", 1),
        ToolCallDelta(3, "c", "f", "{"), ToolCallDelta(3, arguments="}"), ToolCallDelta(4, "d", "f", '{"a": 1}'),
        ToolCallDelta(5, "e", "g", "{}"), ToolCallDone(ToolCall("h", "f", "{}"), 6),
    ]),
    max_size=6,
)  # fmt: skip


@given(
    events=_events,
    plan=st.sampled_from(PLANS),
    prefill=st.booleans(),
    schema=st.booleans(),
    choice=st.sampled_from([None, "auto", "required", "f"]),
    limit=st.sampled_from([None, 1, 100]),
)
def test_whatever_was_shown(events, plan, prefill, schema, choice, limit):
    output = OutputSchema.of({"type": "object"}) if schema else None
    request = replace(REQUEST, output=output, tool_choice=choice, max_tokens=limit)
    seen = shown(*events)
    todo = step(plan, seen, request, prefill=prefill)
    if isinstance(todo, str):
        assert not isinstance(plan, Restart)
        return
    left = seen.without(todo.dropped)
    if todo.reset:
        assert todo.request is request
        return
    if todo.request is None:
        # An answer that ends has no tool call that is broken, and says so where it is one of tool calls.
        *done, finish = todo.ending
        assert isinstance(finish, Finish)
        assert (finish.reason == "tool_calls") == bool(left.tool_calls)
        assert all(part.complete for part in left.tool_calls)
        assert {event.part for event in done} == {part.number for part in left.tool_calls if not part.closed}
        return
    # A prefix is text alone, for a target that takes it, and nothing else of the request has changed.
    assert prefill
    assert not schema
    assert choice in (None, "auto")
    assert left.only_text
    assert todo.prefix
    assert todo.prefix + todo.space == left.text
    assert todo.prefix == todo.prefix.rstrip()
    asked = todo.request
    assert asked.prefill
    assert asked.messages == (*request.messages, Message.assistant(todo.prefix))
    assert replace(asked, messages=request.messages, max_tokens=limit, prefill=False) == request
