"""Resume: what goes on after a break, by which plan, and what the reader sees of it."""

import gc
from dataclasses import replace
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprod import (
    AttemptTimeout,
    BadRequest,
    CircuitBreaker,
    Client,
    Context,
    Deadline,
    DeadlineExceeded,
    EmbedRequest,
    Failover,
    GenerateRequest,
    InvalidArgument,
    LoopClock,
    Message,
    Overloaded,
    ReadError,
    Retry,
    ServerError,
    StreamInterrupted,
    Text,
    Tool,
    ToolCall,
    TruncatedAnswer,
    Usage,
)
from llmprod.decisions import ResumeRefused, StreamHeld, StreamResumed
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
from llmprod.mechanisms.circuit_breaker import Breaker, BreakerOptions
from llmprod.mechanisms.resume_plan import ContinueText, Restart, SynthesizeToolUse, TruncateBeforeTool
from llmprod.mechanisms.retry_budget import RetryBudget
from llmprod.provider import Capabilities
from llmprod.schema import OutputSchema
from llmprod.testing.scripted import CUT, HANG, Scripted
from llmprod.wrappers.resume import Resume
from tests.cancel_sweep import sweep
from tests.wrappers.helpers import HI, STREAM, WHOLE, Drawn, context, states

PREFILL = Capabilities(prefill=True)
BROKEN = ReadError(in_stream=True)
WEATHER = Tool(name="weather", description="", parameters={"type": "object"})
CALL = (ToolCallDelta(1, "call_1", "weather", ""), ToolCallDelta(1, arguments='{"city": '))


def broken() -> ReadError:
    return ReadError(in_stream=True)


def scripted(*steps: Any, name: str = "a", **options: Any) -> Scripted:
    return Scripted(*steps, name=name, capabilities=PREFILL, **options)


async def read(provider: Any, request: GenerateRequest = STREAM, told: Context | None = None) -> tuple[Any, list[Any]]:
    """The response, and its events less start and usage."""
    response = await provider.send(request, told or context())
    events = [event async for event in response if not isinstance(event, (Start, UsageUpdate))]
    return response, events


async def interrupted(provider: Any, request: GenerateRequest = STREAM, told: Context | None = None):
    response = await provider.send(request, told or context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    return caught.value


def decided(response: Any, kind: type) -> list[Any]:
    return [decision for decision in response.trace.decisions if isinstance(decision, kind)]


# ---- continuing text ------------------------------------------------------------------------------------------------


async def test_text_goes_on_in_its_part_with_a_visible_seam():
    inner = scripted(["Hello ", "wor", broken()], ["ld", "!"])
    response, events = await read(Resume(ContinueText())(inner))
    assert response.text == "Hello world!"
    assert response.parts == (Text("Hello world!"),)
    assert response.finish_reason == "stop"
    assert response.complete
    assert events == [
        TextDelta("Hello "), TextDelta("wor"), Seam("a", "ReadError"), TextDelta("ld"), TextDelta("!"), Finish("stop"),
    ]  # fmt: skip
    assert states(response) == ["interrupted", "ok"]
    assert [(d.plan, d.error) for d in decided(response, StreamResumed)] == [("ContinueText", "ReadError")]


async def test_the_original_request_is_patched_and_nothing_else_of_it_changes():
    asked = GenerateRequest(
        messages=(Message.system("Be brief."), *HI),
        stream=True,
        tools=(WEATHER,),
        seed=3,
        max_tokens=100,
        stop=("END",),
    )
    inner = scripted(["One ", "two", broken()], [" three ", broken()], ["four"])
    response, _ = await read(Resume(ContinueText(), resumes=2)(inner), asked)
    assert response.text == "One two three four"
    first, second, third = inner.requests
    assert first == asked
    assert second == replace(
        asked, messages=(*asked.messages, Message.assistant("One two")), prefill=True, max_tokens=98
    )
    # The second hop is one prefix with all the text, not a prefix after a prefix.
    assert third == replace(
        asked, messages=(*asked.messages, Message.assistant("One two three")), prefill=True, max_tokens=97
    )


async def test_a_prefill_of_the_callers_own_grows():
    asked = replace(STREAM, messages=(*HI, Message.assistant("Once ")), prefill=True)
    inner = scripted(["upon ", "a", broken()], [" time"])
    response, _ = await read(Resume(ContinueText())(inner), asked)
    assert response.text == "upon a time"
    assert inner.requests[1].messages == (*HI, Message.assistant("Once upon a"))


@pytest.mark.parametrize(
    ("shown", "continuation", "joined"),
    [
        ("Hello ", [" world"], "Hello world"),
        ("Hello ", ["world"], "Hello world"),
        ("Hello", [" world"], "Hello world"),
        ("Hello ", [" ", "world"], "Hello world"),
        ("a\n", ["\n", "\nb"], "a\n\nb"),
        ("a\n", ["\n    b"], "a\n    b"),
        ("a\n\n", ["\nb"], "a\n\nb"),
        ("a\n\n", [" b"], "a\n\nb"),
        ("a ", ["\n\nb"], "a \n\nb"),
        ("a \n", [" \n", "b"], "a \nb"),
    ],
)
async def test_white_space_is_joined_once(shown, continuation, joined):
    inner = scripted([shown, broken()], continuation)
    response, _ = await read(Resume(ContinueText())(inner))
    assert inner.requests[1].messages[-1].text == shown.rstrip()
    assert response.text == joined


async def test_white_space_alone_ends_a_continuation():
    response, _ = await read(Resume(ContinueText())(scripted(["Hello ", broken()], [" ", "\n"])))
    assert response.text == "Hello \n"


ECHO = "The quick brown fox "


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
async def test_a_prefix_that_is_said_again_is_dropped(chunk):
    again = "The quick brown fox jumps."
    pieces = [again[place : place + chunk] for place in range(0, len(again), chunk)]
    response, _ = await read(Resume(ContinueText())(scripted([ECHO, broken()], pieces)))
    assert response.text == "The quick brown fox jumps."


async def test_a_prefix_said_again_without_its_leading_space():
    response, _ = await read(Resume(ContinueText())(scripted(["\n\n" + ECHO, broken()], [ECHO, "jumps."])))
    assert response.text == "\n\nThe quick brown fox jumps."


@pytest.mark.parametrize(
    ("shown", "continuation"),
    [
        ("Ha", "Ha"),
        ("very ", "very good"),
        ("|---|---|---|---|", "|---|---|---|---|\n"),
        ("la la la la la la la ", "la la la la la la la la"),
        ("The quick brown fox", "The quick brown cat"),
        ("The quick brown fox", " The quick brown fox"),
        ("The quick brown fox", "The quick"),
    ],
)
async def test_text_that_only_looks_like_a_repetition_stays(shown, continuation):
    response, _ = await read(Resume(ContinueText())(scripted([shown, broken()], [continuation])))
    assert response.text == shown + continuation[len(shown) - len(shown.rstrip()) if continuation[0] == " " else 0 :]


async def test_a_repetition_that_its_limit_cuts_short_is_dropped():
    again = ["The quick brown f", UsageUpdate(Usage(input=1, output=4)), Finish("length")]
    response, _ = await read(Resume(ContinueText())(scripted([ECHO, broken()], again)))
    assert (response.text, response.finish_reason) == (ECHO, "length")


async def test_text_goes_on_in_a_new_part_where_its_part_was_closed():
    cited = Text("One.", meta={"x": {"citations": [1]}})
    inner = scripted(["One.", PartDone(cited, 0), broken()], [" Two."])
    response, events = await read(Resume(ContinueText())(inner))
    assert response.parts == (cited, Text(" Two."))
    assert TextDelta(" Two.", 1) in events


async def test_a_continued_part_that_is_told_whole_keeps_its_first_half():
    cited = PartDone(Text("two.", meta={"x": {"citations": [1]}}), 0)
    response, _ = await read(Resume(ContinueText())(scripted(["One, ", broken()], ["two.", cited])))
    assert response.parts == (Text("One, two.", meta={"x": {"citations": [1]}}),)


async def test_tools_that_follow_the_text_get_parts_of_their_own():
    call = ToolCall("c", "weather", "{}")
    inner = scripted(
        ["Let me ", broken()],
        ["look.", ToolCallDelta(1, "c", "weather"), ToolCallDone(call, 1), Finish("tool_calls")],
    )
    response, _ = await read(Resume(ContinueText())(inner), replace(STREAM, tools=(WEATHER,)))
    assert response.parts == (Text("Let me look."), call)


async def test_a_continuation_that_begins_with_a_tool_call_does_not_overwrite_the_text():
    call = ToolCall("c", "weather", "{}")
    inner = scripted(
        ["Let me look.", broken()],
        [ToolCallDelta(0, "c", "weather"), ToolCallDone(call, 0), TextDelta("So.", 1), Finish("tool_calls")],
    )
    response, _ = await read(Resume(ContinueText())(inner), replace(STREAM, tools=(WEATHER,)))
    assert response.parts == (Text("Let me look."), call, Text("So."))


async def test_logprobs_follow_the_text():
    def said(*tokens: str) -> list[TextDelta]:
        return [TextDelta(token, logprobs=(TokenLogprob(token, -1.0),)) for token in tokens]

    inner = scripted([*said("The quick ", "brown fox ", "is "), broken()], said("The quick brown fox", " is", " red."))
    response, _ = await read(Resume(ContinueText())(inner), replace(STREAM, logprobs=0))
    assert response.text == "The quick brown fox is red."
    assert "".join(item.token for item in response.logprobs) == response.text


@pytest.mark.parametrize(
    ("shown", "change", "reason"),
    [
        (["Let me", *CALL], {"tools": (WEATHER,)}, "more than text was shown"),
        ([ThinkingDelta("hm"), TextDelta("So", 1)], {}, "more than text was shown"),
        ([RefusalDelta("No")], {}, "more than text was shown"),
        ([" \n"], {}, "no text was shown"),
        (['{"a"'], {"output": OutputSchema.of({"type": "object"})}, "an output schema"),
        (["So"], {"tools": (WEATHER,), "tool_choice": "required"}, "a tool call is demanded"),
    ],
)
async def test_where_text_can_not_be_continued(shown, change, reason):
    inner = scripted([*shown, broken()])
    error = await interrupted(Resume(ContinueText())(inner), replace(STREAM, **change))
    assert isinstance(error.__cause__, ReadError)
    (refusal,) = decided(error, ResumeRefused)
    assert refusal.reason == f"ContinueText: {reason}"
    assert error.__cause__.__notes__ == [f"not resumed: ContinueText: {reason}"]
    assert inner.calls == 1


async def test_a_target_without_prefill_is_not_asked():
    a = Scripted(["Hel", broken()], name="a")
    b = Scripted(name="b")
    error = await interrupted(Resume(ContinueText())(Failover(a, b)))
    assert (a.calls, b.calls) == (1, 0)
    assert decided(error, ResumeRefused)[0].reason == "ContinueText: no target can continue a prefix"


async def test_of_several_targets_only_one_with_prefill_is_asked():
    a = Scripted(["Hel", broken()], name="a")
    b = Scripted(name="b")
    c = scripted(["lo"], name="c")
    response, events = await read(Resume(ContinueText())(Failover(a, b, c)))
    assert response.text == "Hello"
    assert (a.calls, b.calls, c.calls) == (1, 0, 1)
    assert Seam("c", "ReadError") in events
    assert (response.provider, response.model) == ("c", "c")


async def test_another_deployment_of_the_same_name_goes_on():
    a, b = scripted(["Hel", broken()], name="m"), scripted(["lo"], name="m")
    response, _ = await read(Resume(ContinueText())(Failover(a, b)))
    assert (response.text, a.calls, b.calls) == ("Hello", 1, 1)


async def test_the_one_that_broke_is_asked_where_nobody_else_can():
    a, b = scripted(["Hel", broken()], ["lo"], name="a"), Scripted(name="b")
    response, _ = await read(Resume(ContinueText())(Failover(a, b)))
    assert (response.text, a.calls, b.calls) == ("Hello", 2, 0)


async def test_who_was_passed_over_is_there_for_the_next_plan():
    # The second target says that it continues a prefix, and does not; the first alone has the tools for a new answer.
    a = Scripted(["Hel", broken()], ["Hello"], name="a", capabilities=PREFILL)
    fewer = replace(PREFILL, parameters=PREFILL.parameters - {"seed"})

    class Picky(Scripted):
        @property
        def capabilities(self) -> Capabilities:
            return PREFILL if self.calls == 0 else fewer

    b = Picky(BadRequest(), name="b")
    stack = Resume(ContinueText(), Restart())(Failover(a, b))
    response, _ = await read(stack, replace(STREAM, seed=1))
    assert (response.text, a.calls, b.calls) == ("Hello", 2, 1)


async def test_a_plan_that_added_nothing_comes_last():
    inner = scripted([ECHO, broken()], [ECHO, broken()], ["New"])
    response, events = await read(Resume(ContinueText(), Restart(), resumes=2)(inner))
    assert response.text == "New"
    assert [type(event) for event in events if isinstance(event, (Seam, Reset))] == [Seam, Reset]


async def test_a_target_that_stalled_is_not_asked_again():
    a = scripted(["Hel", HANG], name="a")
    b = scripted(["lo"], name="b")
    stack = Resume(ContinueText())(Failover(AttemptTimeout(idle=5)(a), b))
    response, events = await read(stack)
    assert (response.text, a.calls, b.calls) == ("Hello", 1, 1)
    assert Seam("b", "IdleTimeout") in events


async def test_a_refusal_of_prefill_is_never_the_callers():
    a = scripted(["Hel", broken()], BadRequest(provider="a", code="no_prefill"))
    error = await interrupted(Resume(ContinueText())(a))
    assert isinstance(error.__cause__, ReadError)
    assert error.partial_text == "Hel"
    assert error.__cause__.__notes__ == [
        "ContinueText failed: a: request refused as invalid code no_prefill",
        "not resumed: ContinueText: BadRequest",
    ]


async def test_the_next_plan_follows_one_whose_request_was_refused():
    a = scripted(["Hel", broken()], BadRequest(provider="a"), ["Good ", "day"])
    response, events = await read(Resume(ContinueText(), Restart())(a))
    assert response.text == "Good day"
    assert events[:2] == [TextDelta("Hel"), Reset("a", "ReadError")]
    assert a.requests[2] == STREAM


async def test_a_continuation_that_thinks_first_is_none():
    a = scripted(["Hel", broken()], [ThinkingDelta("The user …"), "Hello"], ["Hello"])
    response, _ = await read(Resume(ContinueText(), Restart())(a))
    assert (response.text, response.thinking) == ("Hello", "")
    assert a.open_sources == a.in_flight == 0
    assert states(response) == ["interrupted", "closed", "ok"]


async def test_a_continuation_gets_retries_like_any_attempt():
    a = scripted(["Hel", broken()], ServerError(), Overloaded(), ["lo"])
    response, _ = await read(Resume(ContinueText())(Retry(3)(a)))
    assert response.text == "Hello"
    assert states(response) == ["interrupted", "failed", "failed", "ok"]


async def test_the_limit_of_tokens_was_reached_when_it_broke():
    inner = scripted(["a", "b", UsageUpdate(Usage(input=3, output=2)), broken()])
    response, _ = await read(Resume(ContinueText())(inner), replace(STREAM, max_tokens=2))
    assert (response.text, response.finish_reason, inner.calls) == ("ab", "length", 1)
    assert response.usage == Usage(input=3, output=2)


async def test_nothing_but_the_end_was_lost():
    response, events = await read(Resume(ContinueText())(scripted(["Hello.", CUT], [Finish("stop")])))
    assert (response.text, response.complete) == ("Hello.", True)
    assert events[-2:] == [Seam("a", "TruncatedAnswer"), Finish("stop")]


# ---- tool calls -----------------------------------------------------------------------------------------------------

TOOLS = replace(STREAM, tools=(WEATHER,))
WHOLE_CALL = (*CALL, ToolCallDelta(1, arguments='"Oslo"}'))


@pytest.mark.parametrize("done", [False, True], ids=["by its JSON", "told"])
async def test_a_complete_tool_call_ends_the_answer(done):
    call = ToolCall("call_1", "weather", '{"city": "Oslo"}')
    inner = scripted(["So:", *WHOLE_CALL, *([ToolCallDone(call, 1)] if done else []), broken()])
    response, events = await read(Resume(SynthesizeToolUse())(inner), TOOLS)
    assert response.parts == (Text("So:"), call)
    assert (response.finish_reason, response.complete, inner.calls) == ("tool_calls", True, 1)
    assert Seam("a", "ReadError") in events
    assert sum(isinstance(event, ToolCallDone) for event in events) == 1
    assert response.usage is not None
    assert response.usage.estimated


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (["text"], "no tool call"),
        (CALL, "a tool call is incomplete"),
        ((ToolCallDelta(0, "c", "weather", ""),), "a tool call is incomplete"),
        ((ToolCallDelta(0, "c", None, "{}"),), "a tool call is incomplete"),
        ((ToolCallDelta(0, "c", "weather", "[1]"),), "a tool call is incomplete"),
        ((ToolCallDelta(0, "c", "wea", "{}"),), "a tool call has no known name"),
        ((ToolCallDelta(0, "c", "weather", "{}"), TextDelta("So", 1)), "something follows the tool calls"),
        ((*WHOLE_CALL, ToolCallDelta(2, "call_2", "weather", "{")), "a tool call is incomplete"),
    ],
)
async def test_where_tool_use_can_not_be_synthesized(shown, reason):
    error = await interrupted(Resume(SynthesizeToolUse())(scripted([*shown, broken()])), TOOLS)
    assert decided(error, ResumeRefused)[0].reason == f"SynthesizeToolUse: {reason}"


async def test_a_broken_tool_call_is_dropped_and_the_text_goes_on():
    call = ToolCall("call_9", "weather", '{"city": "Rome"}')
    inner = scripted(["Let me look. ", *CALL, broken()], [ToolCallDelta(0, "call_9", "weather"), ToolCallDone(call, 0)])
    response, events = await read(Resume(TruncateBeforeTool())(inner), TOOLS)
    assert response.tool_calls == (call,)
    assert response.text == "Let me look. "
    assert Seam("a", "ReadError", (1,)) in events
    assert ToolCallDone(call, 2) in events, "a new number, so that nothing is taken for the dropped call"
    assert inner.requests[1].messages[-1].text == "Let me look."


async def test_a_broken_tool_call_is_dropped_and_the_answer_ends():
    inner = scripted(["Let me look.", *CALL, broken()])
    response, events = await read(Resume(TruncateBeforeTool(then="end"))(inner), TOOLS)
    assert (response.text, response.tool_calls, response.finish_reason) == ("Let me look.", (), "pause")
    assert Seam("a", "ReadError", (1,)) in events
    assert inner.calls == 1


async def test_complete_tool_calls_before_a_broken_one_stand():
    inner = scripted([*WHOLE_CALL, ToolCallDelta(2, "call_2", "weather", '{"ci'), broken()])
    response, _ = await read(Resume(TruncateBeforeTool())(inner), TOOLS)
    assert response.tool_calls == (ToolCall("call_1", "weather", '{"city": "Oslo"}'),)
    assert (response.finish_reason, inner.calls) == ("tool_calls", 1)


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        (["text"], "not one broken tool call at the end"),
        (CALL, "no text before the tool call"),
        ((*CALL, ToolCallDelta(2, "d", "weather", "{")), "not one broken tool call at the end"),
        ((ThinkingDelta("hm", 0), *CALL), "no text before the tool call"),
        (("So", *CALL, TextDelta("so", 2)), "not one broken tool call at the end"),
    ],
)
async def test_where_a_tool_call_can_not_be_dropped(shown, reason):
    error = await interrupted(Resume(TruncateBeforeTool())(scripted([*shown, broken()])), TOOLS)
    assert decided(error, ResumeRefused)[0].reason == f"TruncateBeforeTool: {reason}"


# ---- starting over --------------------------------------------------------------------------------------------------


async def test_a_restart_forgets_everything():
    inner = scripted([ThinkingDelta("hm"), TextDelta("Wrong", 1, (TokenLogprob("Wrong", -1.0),)), broken()], ["Right"])
    asked = replace(STREAM, output=OutputSchema.of({"type": "string"}))
    response, events = await read(Resume(Restart())(inner), asked)
    assert response.parts == (Text("Right"),)
    assert response.logprobs == []
    assert events[2] == Reset("a", "ReadError")
    assert inner.requests == [asked, asked]


async def test_text_alone_can_not_tell_a_restart():
    inner = scripted(["Wrong", broken()], ["Right"])
    response = await Resume(Restart())(inner).send(STREAM, context())
    pieces = response.text_stream()
    assert await anext(pieces) == "Wrong"
    with pytest.raises(StreamInterrupted, match="started over"):
        await anext(pieces)
    assert inner.open_sources == inner.in_flight == 0


def test_nor_can_it_in_synchronous_code():
    inner = scripted(["Wrong", broken()], ["Right"])
    with Client(Resume(Restart())(inner)) as client, client.stream("Hi") as response:
        pieces = response.text_stream()
        assert next(pieces) == "Wrong"
        with pytest.raises(StreamInterrupted, match="started over"):
            next(pieces)
    assert inner.open_sources == inner.in_flight == 0


async def test_a_restart_may_be_whole():
    whole = Scripted(name="b")

    async def answer(request: Any, told: Context) -> Any:
        return await Scripted(["All."], name="b").send(replace(request, stream=False), told)

    whole = Scripted(answer, name="b")
    response, _ = await read(Resume(Restart())(Failover(AttemptTimeout(idle=1)(scripted(["Par", HANG])), whole)))
    assert (response.text, response.provider) == ("All.", "b")


async def test_a_continuation_after_a_restart_counts_the_new_answer_alone():
    inner = scripted(["a"] * 5 + [broken()], ["b", "c", broken()], ["d"])
    response, _ = await read(Resume(Restart(), resumes=2)(inner))
    assert response.text == "d"
    asked = replace(STREAM, max_tokens=10)
    inner = scripted([ThinkingDelta("x"), *["a"] * 5, broken()], ["b", "c", broken()], ["d"])
    response, _ = await read(Resume(ContinueText(), Restart(), resumes=2)(inner), asked)
    assert response.text == "bcd"
    assert inner.requests[2].max_tokens == 8


# ---- holding back ---------------------------------------------------------------------------------------------------


async def test_a_break_among_held_characters_is_invisible():
    inner = scripted(["Hel", "lo", broken()], ["Hello ", "world"])
    response, events = await read(Resume(hold=6)(inner))
    assert events == [TextDelta("Hello "), TextDelta("world"), Finish("stop")]
    assert response.text == "Hello world"
    assert [d.events for d in decided(response, StreamHeld)] == [3]
    assert states(response) == ["failed", "ok"]
    assert inner.requests == [STREAM, STREAM]


async def test_a_break_after_them_is_not():
    error = await interrupted(Resume(hold=5)(scripted(["Hel", "lo", broken()])))
    assert error.partial_text == "Hello"


async def test_held_back_until_there_is_enough_or_the_end():
    inner = scripted([1.0, "Hel", 1.0, "lo", 1.0, " world", 1.0, "!"])
    async with await Resume(hold=6)(inner).send(STREAM, context()):
        assert anyio.current_time() == pytest.approx(3)


async def test_a_short_answer_is_held_to_its_end():
    response, events = await read(Resume(hold=100)(scripted(["Hi"])))
    assert (response.text, response.complete) == ("Hi", True)
    assert events[-1] == Finish("stop")


async def test_a_break_while_holding_that_is_not_asked_again_is_the_attempts_own_error():
    with pytest.raises(ReadError):
        await Resume(hold=10, resumes=0)(scripted(["Hel", broken()])).send(STREAM, context())
    with pytest.raises(Overloaded):
        await Resume(hold=10)(scripted(["Hel", broken()], Overloaded())).send(STREAM, context())
    with pytest.raises(TruncatedAnswer):
        await Resume(hold=10)(scripted(["Hel", CUT], ["Hel", CUT])).send(STREAM, context())


async def test_a_call_whose_first_hop_was_held_sums_its_usage():
    inner = scripted(["a", UsageUpdate(Usage(input=7, output=1)), broken()], ["b"])
    response, _ = await read(Resume(hold=3)(inner))
    assert response.usage == Usage(input=8, output=2)


# ---- what is counted ------------------------------------------------------------------------------------------------


async def test_usage_is_the_sum_of_all_hops():
    told = UsageUpdate(Usage(input=10, cache_read=5, output=2))
    inner = scripted(["a", "b", told, broken()], ["c", UsageUpdate(Usage(input=12, output=4)), Finish("stop")])
    response, _ = await read(Resume(ContinueText())(inner))
    assert response.usage == Usage(input=22, cache_read=5, output=6)
    assert [entry.usage for entry in response.trace.entries] == [told.usage, Usage(input=12, output=4)]


async def test_usage_that_was_not_told_is_estimated_by_what_was_seen():
    inner = scripted(["a", "b", broken()], ["c"])
    response, _ = await read(Resume(ContinueText())(inner), replace(STREAM, messages=(Message.user("x" * 40),)))
    assert response.usage == Usage(input=10 + 1, output=2 + 1, estimated=True)


async def test_usage_told_too_early_is_raised_to_what_was_seen():
    early = UsageUpdate(Usage(input=10, output=1))
    inner = scripted([early, "a", "b", "c", broken()], ["d", Finish("stop")])
    response, _ = await read(Resume(ContinueText())(inner))
    # The first hop's prompt is known; the second told nothing: one token, and its prompt is estimated.
    assert response.usage == Usage(input=10 + 1, output=3 + 1, estimated=True)


async def test_an_interruption_that_stands_tells_what_both_hops_used():
    told = UsageUpdate(Usage(input=10, output=1))
    inner = scripted(["a", told, broken()], ["b", told, broken()])
    error = await interrupted(Resume(ContinueText())(inner))
    assert error.partial_text == "ab"
    assert error.usage == Usage(input=20, output=2)


async def test_resumes_bounds_them():
    inner = scripted(["a", broken()], ["b", broken()], ["c", broken()])
    error = await interrupted(Resume(ContinueText(), resumes=2)(inner))
    assert (error.partial_text, inner.calls) == ("abc", 3)
    assert decided(error, ResumeRefused)[-1].reason == "ContinueText: no leave to ask again"


async def test_ending_without_asking_is_not_counted():
    inner = scripted(["Let", broken()], [" me", ToolCallDelta(1, "c", "weather", "{}"), broken()])
    response, _ = await read(Resume(ContinueText(), SynthesizeToolUse())(inner), TOOLS)
    assert response.parts == (Text("Let me"), ToolCall("c", "weather", "{}"))


async def test_it_needs_leave_of_the_cap_and_the_budget():
    inner = scripted(["a", broken()], ["b"])
    error = await interrupted(Resume(ContinueText())(Retry(1, attempts_at_most=1)(inner)))
    assert (error.partial_text, inner.calls) == ("a", 1)
    empty = RetryBudget(ratio=0.0, reserve=0, clock=LoopClock())
    inner = scripted(["a", broken()], ["b"])
    error = await interrupted(Resume(ContinueText())(Retry(3, budget=empty)(inner)))
    assert (error.partial_text, inner.calls) == ("a", 1)


async def test_a_breaker_sees_the_hop_that_broke_and_the_one_that_did_not():
    breaker = Breaker(BreakerOptions(), clock=LoopClock(), random=Drawn())
    inner = scripted(["a", broken()], ["b"])
    response, _ = await read(Resume(ContinueText())(CircuitBreaker(breaker=breaker)(inner)))
    assert response.complete
    assert (sum(breaker._good._counts), sum(breaker._bad._counts)) == (1, 1)


async def test_it_settles_once():
    outcomes: list[Any] = []
    response = await Resume(ContinueText())(scripted(["a", broken()], ["b"])).send(STREAM, context())
    response.on_close(outcomes.append)
    await response.read()
    await response.aclose()
    assert [outcome.kind for outcome in outcomes] == ["ok"]
    assert outcomes[0].usage == response.usage


# ---- what is left alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [WHOLE, EmbedRequest(inputs=("x",))], ids=["whole", "embed"])
async def test_what_does_not_stream_passes_untouched(request_):
    response = await Resume(Restart(), hold=9)(Scripted(["Hi"])).send(request_, context())
    assert response.complete
    with pytest.raises(ReadError):
        await Resume(Restart(), hold=9)(Scripted(["Hi", broken()])).send(request_, context())


async def test_a_failure_before_content_is_not_its_business():
    with pytest.raises(Overloaded):
        await Resume(Restart())(scripted(Overloaded())).send(STREAM, context())


@pytest.mark.parametrize("error", [ValueError("the reader's own"), BadRequest(in_stream=True)])
async def test_a_final_break_is_not_resumed(error):
    inner = scripted(["Hel", error])
    caught = await interrupted(Resume(Restart())(inner))
    assert caught.__cause__ is error
    assert inner.calls == 1
    assert decided(caught, ResumeRefused)[0].reason == "the break is final"


async def test_a_break_after_the_end_changes_nothing():
    caught = await interrupted(Resume(Restart())(scripted(["Hello", Finish("stop"), broken()])))
    assert decided(caught, ResumeRefused)[0].reason == "the answer was complete"


async def test_a_call_without_a_break_is_as_it_was():
    response, events = await read(Resume(Restart(), hold=3)(scripted(["Hel", "lo", " you"])))
    plain, plain_events = await read(scripted(["Hel", "lo", " you"]))
    assert events == plain_events
    assert (response.usage, response.parts, response.model) == (plain.usage, plain.parts, plain.model)
    assert response.trace.decisions == []


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Resume(), "plans"),
        (lambda: Resume(ContinueText), "plans"),
        (lambda: Resume("restart"), "plans"),
        (lambda: Resume(Restart(), hold=-1), "hold"),
        (lambda: Resume(Restart(), resumes=1.5), "resumes"),
        (lambda: TruncateBeforeTool(then="stop"), "then"),
    ],
    ids=["none", "a class", "a string", "hold", "resumes", "then"],
)
def test_wrong_options(make, field):
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert caught.value.field == field


def test_its_repr():
    assert repr(Resume(ContinueText(), Restart(), hold=40)) == "Resume(ContinueText, Restart, hold=40)"


# ---- time and cancellation ------------------------------------------------------------------------------------------


async def test_the_deadline_holds_over_the_hops():
    inner = scripted(["Hel", 3.0, broken()], [3.0, "lo", HANG])
    response = await Deadline(10)(Resume(ContinueText())(inner)).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert caught.value.partial_text == "Hello"
    assert anyio.current_time() == pytest.approx(10)
    assert inner.open_sources == inner.in_flight == 0


async def test_no_hop_is_asked_for_after_the_deadline():
    inner = scripted(["Hel", 3.0, broken()], [10.0, "lo"])
    response = await Deadline(5)(Resume(ContinueText())(inner)).send(STREAM, context())
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert anyio.current_time() == pytest.approx(5)
    assert inner.open_sources == inner.in_flight == 0


async def test_closed_in_the_middle_of_a_continuation():
    inner = scripted(["Hel", broken()], ["lo", HANG])
    response = await Resume(ContinueText())(inner).send(STREAM, context())
    async for event in response:
        if event == TextDelta("lo"):
            break
    await response.aclose()
    assert states(response) == ["interrupted", "closed"]
    assert inner.open_sources == inner.in_flight == 0


async def test_dropped_unread():
    inner = scripted(["Hel", "lo"])
    response = await Resume(ContinueText())(inner).send(STREAM, context())
    with pytest.warns(ResourceWarning, match="dropped unread"):  # noqa: PT031
        del response
        gc.collect()
    assert inner.open_sources == inner.in_flight == 0


STACKS = {
    "continue": (lambda: Resume(ContinueText()), [["Hel", 0.5, broken], ["l", 0.5, "o"]], STREAM),
    "hold": (lambda: Resume(hold=4), [["Hel", 0.5, broken], ["Hel", 0.5, "lo"]], STREAM),
    "restart": (lambda: Resume(Restart()), [["Hel", broken], [0.5, "Hello"]], STREAM),
    "synthesize": (lambda: Resume(SynthesizeToolUse()), [[*WHOLE_CALL, 0.5, broken]], TOOLS),
    "all": (
        lambda: Resume(ContinueText(), Restart(), hold=4, resumes=3),
        [["He", broken], ["Hello", broken], [ThinkingDelta("x"), 0.5], ["Bye", 0.5]],
        STREAM,
    ),
}


@pytest.mark.parametrize("stack", STACKS)
async def test_cancelled_anywhere(stack):
    build, steps, request = STACKS[stack]

    def scenario():
        played = [[item() if item is broken else item for item in step] for step in steps]
        inner = scripted(*played)
        breaker = Breaker(BreakerOptions(), clock=LoopClock(), random=Drawn())
        provider = Deadline(60)(build()(Retry(2)(CircuitBreaker(breaker=breaker)(AttemptTimeout()(inner)))))
        told = context()

        async def run():
            async with await provider.send(request, told) as response:
                await response.read()

        def check():
            assert (inner.in_flight, inner.open_sources) == (0, 0)
            ended = [entry.state for entry in told.trace.entries]
            assert set(ended) <= {"ok", "interrupted", "cancelled", "closed", "failed"}
            assert sum(breaker._good._counts) == ended.count("ok")
            assert sum(breaker._bad._counts) == ended.count("interrupted") + ended.count("failed")
            assert breaker._trials == []

        return run(), check

    assert await sweep(scenario) >= 2


# ---- any text, cut anywhere -----------------------------------------------------------------------------------------


class Model(Scripted):
    """Says ``text`` in pieces, from where the prefix ends; each call breaks after its number of characters."""

    def __init__(self, text: str, cuts: list[int], sizes: list[int]) -> None:
        super().__init__(name="model", capabilities=PREFILL)
        self.text = text
        self.cuts = cuts
        self.sizes = sizes

    def _step(self) -> Any:
        request = self.requests[-1]
        assert isinstance(request, GenerateRequest)
        prefix = request.messages[-1].text if request.prefill else ""
        assert self.text.startswith(prefix), "the prefix is the text so far, without anything lost or said twice"
        rest = self.text[len(prefix) :]
        cut = self.cuts[self.calls - 1] if self.calls <= len(self.cuts) else None
        rest, breaks = (rest, False) if cut is None else (rest[:cut], bool(rest))
        pieces: list[Any] = []
        while rest:
            size = self.sizes[len(pieces) % len(self.sizes)]
            pieces.append(rest[:size])
            rest = rest[size:]
        return [*pieces, broken()] if breaks else [*(pieces or [""])]


def _square(text: str) -> bool:
    """The text begins with something of 16 characters or more, said twice: what can't be told from a repetition."""
    return any(
        len(text[:size].lstrip()) >= 16 and text.startswith((text[:size], text[:size].lstrip()), size)
        for size in range(16, len(text))
    )


_texts = st.text(alphabet="ab \n", min_size=1, max_size=60) | st.text(min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(
    text=_texts,
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_the_joined_text_is_the_whole_text(text, cuts, sizes):
    async def run() -> None:
        stack = Resume(ContinueText(), resumes=len(cuts))(Model(text, cuts, sizes))
        response = await stack.send(STREAM, Context.new())
        try:
            await response.read()
        except StreamInterrupted as error:
            # Only white space was shown, which is nothing to continue.
            assert not error.partial_text.strip()  # noqa: PT017
            assert text.startswith(error.partial_text)  # noqa: PT017
            return
        assert response.text == text

    if not _square(text):
        anyio.run(run)


@settings(max_examples=200, deadline=None)
@given(
    shown=st.text(alphabet="abcdefgh \n", min_size=16, max_size=60),
    rest=st.text(alphabet="ijklm \n", max_size=30),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_a_prefix_said_again_is_never_shown_twice(shown, rest, sizes):
    """A model that begins again from the start of what was shown."""

    class Repeats(Model):
        def _step(self) -> Any:
            step = super()._step()
            if self.calls == 1:
                return step
            self.cuts = []
            self.requests[-1] = STREAM
            again = super()._step()
            self.requests[-1] = replace(STREAM, prefill=False)
            return again

    from llmprod.mechanisms.splice import _repeats

    prefix = shown.rstrip()

    async def run() -> None:
        model = Repeats(shown + rest, [len(shown)], sizes)
        response = await Resume(ContinueText())(model).send(STREAM, Context.new())
        await response.read()
        assert response.text == shown + rest

    if len(prefix.lstrip()) >= 16 and not _repeats(prefix) and not _repeats(prefix.lstrip()):
        anyio.run(run)
