"""A response settles exactly once, however it ends, and never passes a part for the whole."""

import gc

import anyio
import pytest
from pydantic import BaseModel

from llmprod import (
    Context,
    Finish,
    GenerateRequest,
    InvalidArgument,
    InvalidOutput,
    LoopClock,
    Message,
    Outcome,
    OutputSchema,
    Overloaded,
    PartDone,
    ReadError,
    RefusalDelta,
    Reset,
    Response,
    Start,
    StreamInterrupted,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolCallDone,
    TruncatedAnswer,
    Usage,
    UsageUpdate,
    WrappedSource,
)
from llmprod.testing.scripted import CUT, HANG, Scripted

REQUEST = GenerateRequest(messages=(Message.user("Hi"),), stream=True)


async def opened(*items) -> tuple[Scripted, Response, list[Outcome]]:
    provider = Scripted(list(items))
    response = await provider.send(REQUEST, Context.new(clock=LoopClock()))
    outcomes: list[Outcome] = []
    response.on_close(outcomes.append)
    return provider, response, outcomes


def whole(*events, request=REQUEST) -> Response:
    return Response(provider="a", context=Context.new(), request=request, events=events)


def released(provider: Scripted) -> bool:
    return provider.in_flight == 0 and provider.open_sources == 0


# ---- how it ends ----------------------------------------------------------------------------------------------------


async def test_exhaustion_settles_as_ok():
    provider, response, outcomes = await opened("Hel", "lo")
    assert [event.text async for event in response if isinstance(event, TextDelta)] == ["Hel", "lo"]
    assert outcomes == [Outcome("ok", None, Usage(input=1, output=2), "stop")]
    assert response.complete
    assert response.closed
    assert released(provider)
    await response.aclose()
    assert [event async for event in response] == []
    assert len(outcomes) == 1


async def test_an_error_settles_as_error_and_is_raised_again_by_every_further_reading():
    cause = ReadError(provider="a", status=502, in_stream=True)
    provider, response, outcomes = await opened("Hel", UsageUpdate(Usage(output=1)), cause)
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    error = caught.value
    assert error.__cause__ is cause
    assert error.partial is response
    assert (error.partial_text, error.usage, error.status) == ("Hel", Usage(output=1), 502)
    assert outcomes == [Outcome("error", cause, Usage(output=1), None)]
    assert (response.complete, response.closed, response.text) == (False, True, "Hel")
    assert released(provider)
    for again in (response.read, response.__anext__):
        with pytest.raises(StreamInterrupted) as caught:
            await again()
        assert caught.value is error
    assert len(outcomes) == 1


async def test_an_end_without_finish_is_an_error():
    provider, response, outcomes = await opened("Hel", CUT)
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert isinstance(caught.value.__cause__, TruncatedAnswer)
    assert [outcome.kind for outcome in outcomes] == ["error"]
    assert released(provider)


def test_a_whole_answer_without_finish_is_no_answer():
    with pytest.raises(TruncatedAnswer):
        whole(TextDelta("Hel"))


async def test_closing_settles_as_closed_and_keeps_what_arrived():
    provider, response, outcomes = await opened("Hel", "lo")
    async with response:
        await response.__anext__()  # Start
        await response.__anext__()
    assert [outcome.kind for outcome in outcomes] == ["closed"]
    assert (response.text, response.complete) == ("Hel", False)
    assert released(provider)


async def test_closing_after_the_finish_leaves_a_complete_answer():
    provider, response, outcomes = await opened("Hello")
    async with response:
        async for event in response:
            if isinstance(event, Finish):
                break
    assert [outcome.kind for outcome in outcomes] == ["ok"]
    assert response.complete
    assert released(provider)


async def test_cancellation_settles_as_cancelled_and_the_rest_is_never_passed_for_the_whole():
    provider, response, outcomes = await opened("Hel", HANG)
    with anyio.move_on_after(5) as scope:
        await response.read()
    assert scope.cancelled_caught
    assert [outcome.kind for outcome in outcomes] == ["cancelled"]
    assert released(provider)
    with pytest.raises(StreamInterrupted, match="reading was cancelled") as caught:
        await response.read()
    assert caught.value.partial_text == "Hel"


async def test_dropping_it_unread_settles_as_abandoned_and_warns():
    provider, response, outcomes = await opened("Hel", "lo")
    with pytest.warns(ResourceWarning, match="dropped unread"):  # noqa: PT031
        del response
        gc.collect()
    assert [outcome.kind for outcome in outcomes] == ["abandoned"]
    assert released(provider)


async def test_a_source_that_fails_to_close_changes_nothing():
    class Stuck(WrappedSource):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError("close failed")

    for items, expected in ((("Hel", ReadError()), "error"), (("Hel", HANG), "cancelled"), (("Hel", "lo"), "closed")):
        provider, response, outcomes = await opened(*items)
        response.transform(Stuck)
        with anyio.move_on_after(1):
            if expected == "closed":
                await response.aclose()
            elif expected == "error":
                with pytest.raises(StreamInterrupted):
                    await response.read()
            else:
                await response.read()
        assert [outcome.kind for outcome in outcomes] == [expected]
        assert released(provider)


# ---- callbacks ------------------------------------------------------------------------------------------------------


async def test_callbacks_run_in_their_order_and_late_ones_at_once():
    _, response, _ = await opened("Hi")
    order: list[str] = []
    for name in "abc":
        response.on_close(lambda _, name=name: order.append(name))
    await response.read()
    assert order == ["a", "b", "c"]
    response.on_close(lambda outcome: order.append(outcome.kind))
    assert order == ["a", "b", "c", "ok"]


def failing(_: Outcome) -> None:
    raise ZeroDivisionError


async def test_a_callback_that_raises_stops_no_other_and_is_told():
    _, response, outcomes = await opened("Hi")
    response.on_close(failing)
    after: list[Outcome] = []
    response.on_close(after.append)
    with pytest.raises(ZeroDivisionError):
        await response.read()
    assert len(outcomes) == len(after) == 1
    assert (await response.read()).text == "Hi"


async def test_a_callback_that_raises_hides_neither_error_nor_cancellation():
    _, response, _ = await opened("Hi", ReadError())
    response.on_close(failing)
    with pytest.raises(StreamInterrupted) as caught:
        await response.read()
    assert "ZeroDivisionError" in caught.value.__cause__.__notes__[0]

    provider, response, _ = await opened("Hi", HANG)
    response.on_close(failing)
    with anyio.move_on_after(1) as scope:
        await response.read()
    assert scope.cancelled_caught
    assert released(provider)


# ---- what it holds --------------------------------------------------------------------------------------------------


async def test_a_whole_answer_replays_as_events():
    events = [Start("m", "r"), TextDelta("Hi"), UsageUpdate(Usage(output=1)), Finish("stop", "end_turn")]
    response = whole(*events)
    assert response.complete
    assert [event async for event in response] == events
    assert (await response.read()).text == "Hi"
    assert (response.model, response.response_id, response.raw_finish) == ("m", "r", "end_turn")


async def test_text_alone_as_a_stream():
    _, response, _ = await opened(ThinkingDelta("hm", 0), TextDelta("a", 1), TextDelta("b", 1))
    assert [text async for text in response.text_stream()] == ["a", "b"]


async def test_deltas_and_whole_parts_build_the_same_answer():
    call = ToolCall("c1", "add", '{"a":1}')
    signed = Thinking("hmm", meta={"anthropic": {"signature": "s"}})
    _, response, _ = await opened(
        ThinkingDelta("hm", 0), ThinkingDelta("m", 0), PartDone(signed, 0),
        TextDelta("So", 1, (TokenLogprob("So", -0.5),)), RefusalDelta("no", 2),
        ToolCallDelta(3, "c1", "add"), ToolCallDelta(4, "c2", "sub", "{}"), ToolCallDelta(3, arguments='{"a":'),
        ToolCallDelta(3, arguments="1}"), ToolCallDone(call, 3),
    )  # fmt: skip
    await response.read()
    assert response.parts[:2] == (signed, Text("So"))
    assert response.tool_calls == (call, ToolCall("c2", "sub", "{}"))
    assert (response.thinking, response.text, response.refusal) == ("hmm", "So", "no")
    assert response.logprobs == [TokenLogprob("So", -0.5)]
    assert Message.assistant(*response.parts).parts == response.parts


async def test_a_reset_forgets_what_was_before():
    _, response, _ = await opened(
        TextDelta("Hel", 0, (TokenLogprob("Hel", -1),)), Reset("b", "cut"), TextDelta("Hello")
    )
    await response.read()
    assert (response.text, response.logprobs) == ("Hello", [])


class City(BaseModel):
    name: str


async def test_parsed_answers():
    asked = GenerateRequest(messages=REQUEST.messages, output=OutputSchema.of(City))
    done = [TextDelta('{"name":'), TextDelta('"Ulm"}')]
    assert whole(*done, Finish("stop"), request=asked).parsed == City(name="Ulm")
    for cut in ("length", "content_filter"):
        with pytest.raises(InvalidOutput, match=f"ended with {cut}"):
            _ = whole(*done, Finish(cut), request=asked).parsed
    with pytest.raises(InvalidArgument, match=r"^output: got None"):
        _ = whole(*done, Finish("stop")).parsed
    provider = Scripted(done)
    response = await provider.send(
        GenerateRequest(messages=REQUEST.messages, output=asked.output, stream=True), Context.new()
    )
    with pytest.raises(InvalidArgument, match="still open"):
        _ = response.parsed
    assert (await response.read()).parsed == City(name="Ulm")


async def test_timing():
    provider = Scripted([2.0, "a", 1.0, "b", 1.0, UsageUpdate(Usage(output=10)), Finish("stop")])
    response = await provider.send(REQUEST, Context.new(clock=LoopClock()))
    assert response.timing.ttft == pytest.approx(2)
    await response.read()
    assert response.timing.total == pytest.approx(4)
    assert response.timing.tokens_per_second == pytest.approx(5)
    await anyio.sleep(100)
    assert response.timing.total == pytest.approx(4)


async def test_before_content_a_stream_is_not_handed_out():
    provider = Scripted([Start("m"), 1.0, Overloaded()], [Start("m"), CUT], [HANG])
    with pytest.raises(Overloaded):
        await provider.send(REQUEST, Context.new(clock=LoopClock()))
    assert released(provider)
    with pytest.raises(TruncatedAnswer):
        await provider.send(REQUEST, Context.new())
    assert released(provider)
    with anyio.move_on_after(1) as scope:
        await provider.send(REQUEST, Context.new())
    assert scope.cancelled_caught
    assert released(provider)
