"""What was shown, against the response's own account of the same events."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llmprod import Context, GenerateRequest, Message, Refusal, Response, Text, Thinking, ToolCall, Usage
from llmprod.events import (
    Event,
    PartDone,
    RefusalDelta,
    Reset,
    Seam,
    Start,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallDone,
    UsageUpdate,
)
from llmprod.mechanisms.shown import Shown, characters
from llmprod.response import WrappedSource

REQUEST = GenerateRequest(messages=(Message.user("Hi"),), stream=True)


class Silent:
    async def __anext__(self) -> Event:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        pass


class Machine(RuleBasedStateMachine):
    """Parts keep their kind, as every provider's do."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = Shown()
        self.response = Response(provider="p", context=Context.new(), request=REQUEST, source=WrappedSource(Silent()))
        self.used: set[int] = set()
        self.highest = -1

    def see(self, event: Event) -> None:
        self.shown.add(event)
        self.response._absorb(event)
        self.highest = max(self.highest, getattr(event, "part", -1))

    @rule(text=st.text(max_size=3), part=st.sampled_from([0, 4]))
    def text(self, text: str, part: int) -> None:
        if part not in self.used:
            self.see(TextDelta(text, part))

    @rule(part=st.sampled_from([0, 4]))
    def text_done(self, part: int) -> None:
        self.used.add(part)
        self.see(PartDone(Text("done", meta={"x": {"y": 1}}), part))

    @rule(text=st.text(max_size=3))
    def thinking(self, text: str) -> None:
        self.see(ThinkingDelta(text, 1))

    @rule(text=st.text(max_size=3))
    def refusal(self, text: str) -> None:
        self.see(RefusalDelta(text, 2))

    @rule(
        call=st.sampled_from([None, "a"]), name=st.sampled_from([None, "f"]), text=st.sampled_from(["{", '"a":1', "}"])
    )
    def tool(self, call: str | None, name: str | None, text: str) -> None:
        if 3 not in self.used:
            self.see(ToolCallDelta(3, call, name, text))

    @rule(part=st.sampled_from([3, 5]))
    def tool_done(self, part: int) -> None:
        self.used.add(part)
        self.see(ToolCallDone(ToolCall("a", "f", "{}"), part))

    @rule()
    def tool_whole(self) -> None:
        self.used.add(6)
        self.see(PartDone(ToolCall("b", "g", "{}"), 6))

    @rule(part=st.integers(0, 6))
    def seam(self, part: int) -> None:
        self.see(Seam("t", "r", (part,)))
        self.used.discard(part)

    @rule()
    def reset(self) -> None:
        self.see(Reset("t", "r"))
        self.used.clear()
        self.highest = -1

    @rule()
    def nothing(self) -> None:
        self.see(Start("m"))
        self.see(UsageUpdate(Usage()))

    @invariant()
    def the_response_says_the_same(self) -> None:
        shown, response = self.shown, self.response
        assert shown.text == response.text
        assert shown.only_text == all(isinstance(part, Text) for part in response.parts)
        assert [(part.name, part.text) for part in shown.tool_calls] == [
            (call.name, call.arguments) for call in response.tool_calls
        ]
        assert sum(isinstance(part, (Thinking, Refusal)) for part in response.parts) == sum(
            part.kind == "other" for part in shown.parts.values()
        )
        assert shown.next_number == self.highest + 1
        for part, call in zip(shown.tool_calls, response.tool_calls, strict=True):
            if part.complete:
                assert call.name
                assert isinstance(call.input, dict)

    def teardown(self) -> None:
        self.response._settle("closed")


TestMachine = Machine.TestCase


@pytest.mark.parametrize(
    ("event", "count"),
    [
        (TextDelta("abc"), 3),
        (ThinkingDelta("ab"), 2),
        (RefusalDelta("a"), 1),
        (ToolCallDelta(0, "id", "name", "{}"), 2),
        (ToolCallDone(ToolCall("id", "name", "{}"), 0), 0),
        (UsageUpdate(Usage()), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_characters(event, count):
    assert characters(event) == count
