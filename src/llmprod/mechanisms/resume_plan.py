"""How an interrupted answer can go on: four plans, what each needs, and what is to be asked.

The plans are those of awaken, a Rust runtime for agents (ContinueText, SynthesizeToolUse, TruncateBeforeTool,
WholeRestart). Two rules are from Anthropic's fallback middleware: every hop patches the *original* request, so hops
never compound, and seams are visible. What each plan refuses are the faults that LiteLLM's mid-stream fallback had:
continuing inside a tool call (#31067), prefill for a model without it (#27967), a system prompt of its own (#18229),
and an empty partial taken for a fresh start (PR #32835).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

from llmprod.errors import InvalidArgument
from llmprod.events import Event, Finish, ToolCallDone
from llmprod.mechanisms.shown import Shown
from llmprod.request import GenerateRequest
from llmprod.types import Message, Text, ToolCall

__all__ = ["ContinueText", "Plan", "Restart", "Step", "SynthesizeToolUse", "TruncateBeforeTool", "step"]


@dataclass(frozen=True, slots=True)
class ContinueText:
    """A target that can continue a prefix writes on from the text that was shown.

    Fits an answer of text alone: no tool call, reasoning or refusal was shown, no output schema was asked for, no tool
    call is demanded, and a target declares ``Capabilities.prefill``.
    """

    label: ClassVar[str] = "ContinueText"


@dataclass(frozen=True, slots=True)
class SynthesizeToolUse:
    """The answer broke after its tool calls were complete: end it with ``tool_calls``, and ask nobody.

    Fits where every tool call shown has a name and complete JSON, and nothing came after them. Calls that the model
    might have added are for its next turn.
    """

    label: ClassVar[str] = "SynthesizeToolUse"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateBeforeTool:
    """The answer broke inside its last tool call: drop that call; what came before stands.

    Fits where exactly one tool call is incomplete, and it is the last thing shown. After complete calls the answer ends
    with ``tool_calls``.

    Attributes:
        then: after text, ``continue`` as :class:`ContinueText` does, under its conditions; or ``end`` the answer with
            the finish reason ``pause``: the model had more to say, and goes on when it is asked again.
    """

    label: ClassVar[str] = "TruncateBeforeTool"
    then: Literal["continue", "end"] = "continue"

    def __post_init__(self) -> None:
        if self.then not in ("continue", "end"):
            raise InvalidArgument("then", repr(self.then)[:40], "continue, end")


@dataclass(frozen=True, slots=True)
class Restart:
    """Begin again: a ``Reset`` event tells the reader to forget what was shown, and a whole new answer follows.

    Fits always. ``text_stream()`` can't take text back and raises; read the events, or the response once it is whole.
    """

    label: ClassVar[str] = "Restart"


Plan: TypeAlias = ContinueText | SynthesizeToolUse | TruncateBeforeTool | Restart
"""One way to go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a plan comes to.

    Attributes:
        request: what is to be asked; None where the answer ends without.
        ending: events that end the answer where nothing is asked.
        dropped: numbers of the parts that are dropped.
        reset: the answer starts over.
        prefix: text that the request's target continues, without the white space at its end.
        space: that white space.
    """

    request: GenerateRequest | None = None
    ending: tuple[Event, ...] = ()
    dropped: tuple[int, ...] = ()
    reset: bool = False
    prefix: str = ""
    space: str = ""


def step(plan: Plan, shown: Shown, request: GenerateRequest, *, prefill: bool, reported: int = 0) -> Step | str:
    """Return what ``plan`` comes to, or in fixed words why it does not fit.

    Args:
        plan: the plan.
        shown: what the reader has seen.
        request: the original request.
        prefill: a target can continue a prefix.
        reported: tokens that the providers told this answer took so far.
    """
    if isinstance(plan, Restart):
        return Step(request=request, reset=True)
    if isinstance(plan, SynthesizeToolUse):
        return _synthesize(shown, request)
    if isinstance(plan, TruncateBeforeTool):
        return _truncate(plan, shown, request, prefill=prefill)
    return _continue(shown, request, prefill=prefill, tokens=max(reported, shown.deltas))


def _synthesize(shown: Shown, request: GenerateRequest) -> Step | str:
    calls = shown.tool_calls
    if not calls:
        return "no tool call"
    if not all(part.complete for part in calls):
        return "a tool call is incomplete"
    if shown.last is not calls[-1]:
        return "something follows the tool calls"
    known = {tool.name for tool in request.tools}
    if known and not all(part.name in known for part in calls):
        return "a tool call has no known name"
    return Step(ending=(*_closed(shown), Finish("tool_calls")))


def _truncate(plan: TruncateBeforeTool, shown: Shown, request: GenerateRequest, *, prefill: bool) -> Step | str:
    broken = [part for part in shown.tool_calls if not part.complete]
    if len(broken) != 1 or shown.last is not broken[0]:
        return "not one broken tool call at the end"
    dropped = (broken[0].number,)
    left = shown.without(dropped)
    if left.tool_calls:
        ended = _synthesize(left, request)
        return ended if isinstance(ended, str) else replace(ended, dropped=dropped)
    if not left.text.strip():
        return "no text before the tool call"
    if plan.then == "end":
        return Step(ending=(Finish("pause"),), dropped=dropped)
    going_on = _continue(left, request, prefill=prefill, tokens=left.deltas)
    return going_on if isinstance(going_on, str) else replace(going_on, dropped=dropped)


def _continue(shown: Shown, request: GenerateRequest, *, prefill: bool, tokens: int) -> Step | str:
    if not shown.only_text:
        return "more than text was shown"
    prefix = shown.text.rstrip()
    if not prefix:
        return "no text was shown"
    if request.output is not None:
        return "an output schema"
    if request.tool_choice not in (None, "auto", "none"):
        return "a tool call is demanded"
    if not prefill:
        return "no target can continue a prefix"
    limit = request.max_tokens
    if limit is not None and (limit := limit - tokens) < 1:
        return Step(ending=(Finish("length"),))
    # White space at the end of a prefix is refused by Anthropic and trimmed by many chat templates.
    space = shown.text[len(prefix) :]
    asked = replace(request, messages=_prefixed(request.messages, prefix), max_tokens=limit, prefill=True)
    return Step(request=asked, prefix=prefix, space=space)


def _prefixed(messages: tuple[Message, ...], prefix: str) -> tuple[Message, ...]:
    """The original messages and one assistant message, which a prefill of the caller's own grows into."""
    last = messages[-1]
    if last.role == "assistant" and last.parts and isinstance(last.parts[-1], Text):
        own = last.parts[-1]
        grown = replace(own, text=own.text + prefix)
        return (*messages[:-1], Message("assistant", (*last.parts[:-1], grown)))
    return (*messages, Message.assistant(prefix))


def _closed(shown: Shown) -> tuple[Event, ...]:
    """The ends of complete tool calls that have not been told."""
    return tuple(
        ToolCallDone(ToolCall(part.id or f"call_{part.number}", part.name, part.text), part.number)
        for part in shown.tool_calls
        if not part.closed
    )
