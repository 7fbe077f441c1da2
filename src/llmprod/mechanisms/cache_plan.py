"""Where a prompt is marked for a provider's prompt cache.

Anthropic: up to four marks; each writes an entry, and each looks back over 20 blocks for one that is there. The first
stands at the end of what is stable (tools, system messages), the others at the end of the conversation and every 15
blocks before it, so that a turn of up to some 50 blocks still finds the entry of the turn before. An entry of an hour
has to stand before those of five minutes.

OpenAI from GPT-5.6 on: entries are found *only* at a mark; the newest message has one by itself. So the end of the
stable prefix is marked, and the message that was the newest one a turn ago. An assistant's message can't carry a mark.

A plan is made from sizes alone, without I/O or clock; :func:`marked` puts it into a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from llmprod.mechanisms.cache_habits import Lifetime
from llmprod.mechanisms.prefix_chain import Cut, part_tokens
from llmprod.request import GenerateRequest
from llmprod.types import File, Image, Message, Part, Refusal, Text, Thinking, ToolCall, ToolResult

__all__ = ["Mark", "anthropic_marks", "breakpoint_marks", "has_marks", "marked"]

TOOLS = -1
"""The ``message`` of a mark on the last tool."""

_MOST_MARKS = 4
_LOOK_BACK = 20
_STEP = 15  # room for blocks that this plan can't see, such as those of other formats' parts
_CARRIERS = (Text, Image, File, ToolCall, ToolResult)


@dataclass(frozen=True, slots=True)
class Mark:
    """The part after which an entry ends.

    Attributes:
        message: its place in ``request.messages``; -1 for the last tool.
        part: its place in the message.
        lifetime: ``5m`` or ``1h``, for providers that let one choose.
        tokens: about how many tokens the entry has.
    """

    message: int
    part: int
    lifetime: Lifetime = "5m"
    tokens: float = 0.0


def anthropic_marks(
    request: GenerateRequest,
    cuts: Sequence[Cut],
    stable: int,
    *,
    minimum: int,
    conversation: bool,
    lifetimes: tuple[Lifetime, Lifetime] = ("5m", "5m"),
) -> list[Mark]:
    """Plan the marks of a request to Anthropic, in the order of the prompt.

    Args:
        request: the request.
        cuts: its :func:`prefix_chain`.
        stable: how many of its leading messages are stable.
        minimum: fewer tokens than this are not marked: the API would skip them without a word.
        conversation: mark the end of the conversation too.
        lifetimes: of the stable prefix, and of the conversation.
    """
    long, short = lifetimes
    marks: list[Mark] = []
    end = _end_of_stable(request, cuts, stable, long)
    if end is not None and end.tokens >= minimum:
        marks.append(end)
    if not conversation:
        return marks
    after = end.message if end is not None else TOOLS
    blocks = _blocks(request, cuts)
    # The end is written; the marks before it are there to look back from.
    step = _STEP if len(blocks) > _LOOK_BACK else max(1, len(blocks))
    rolling: list[Mark] = []
    used: set[tuple[int, int]] = set()
    for place in range(len(blocks) - 1, -1, -step):
        if len(marks) + len(rolling) == _MOST_MARKS:
            break
        found = next((block for block in reversed(blocks[: place + 1]) if block.carries), None)
        if found is None or found.message <= after or found.tokens < minimum:
            break
        if (found.message, found.part) not in used:
            used.add((found.message, found.part))
            rolling.append(Mark(found.message, found.part, short, found.tokens))
    return [*marks, *reversed(rolling)]


def breakpoint_marks(
    request: GenerateRequest, cuts: Sequence[Cut], stable: int, *, minimum: int, conversation: bool
) -> list[Mark]:
    """Plan the breakpoints of a request to OpenAI, from GPT-5.6 on; arguments as in :func:`anthropic_marks`."""
    marks: list[Mark] = []
    end = _end_of_stable(request, cuts, stable, "5m")
    if end is not None and end.message != TOOLS and end.tokens >= minimum:
        marks.append(end)
    if not conversation:
        return marks
    asked = _asked_before(request.messages)
    if asked is None or (end is not None and asked <= end.message) or cuts[asked + 1].tokens < minimum:
        return marks
    part = _last_carrier(request.messages[asked].parts, (Text, Image, File, ToolResult))
    return marks if part is None else [*marks, Mark(asked, part, tokens=cuts[asked + 1].tokens)]


def _asked_before(messages: Sequence[Message]) -> int | None:
    """The message before the model's last answer: the newest one of the call before this."""
    answered = False
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].role == "assistant":
            answered = True
        elif answered:
            return place
    return None


def _end_of_stable(request: GenerateRequest, cuts: Sequence[Cut], stable: int, lifetime: Lifetime) -> Mark | None:
    for place in range(min(stable, len(request.messages)) - 1, -1, -1):
        message = request.messages[place]
        part = _last_carrier(message.parts, _CARRIERS) if message.role != "assistant" else None
        if part is not None:
            return Mark(place, part, lifetime, cuts[place + 1].tokens)
    return Mark(TOOLS, len(request.tools) - 1, lifetime, cuts[0].tokens) if request.tools else None


def _last_carrier(parts: Sequence[Part], kinds: tuple[type, ...]) -> int | None:
    for place in range(len(parts) - 1, -1, -1):
        if _carries(parts[place], kinds):
            return place
    return None


def _carries(part: Part, kinds: tuple[type, ...]) -> bool:
    return isinstance(part, kinds) and (not isinstance(part, Text) or part.text.strip() != "")


@dataclass(slots=True)
class _Block:
    message: int
    part: int
    carries: bool
    tokens: float


def _blocks(request: GenerateRequest, cuts: Sequence[Cut]) -> list[_Block]:
    """The conversation's blocks as the codec renders them: turns of one role merged, tool results first in a turn."""
    messages = request.messages
    upto = len(messages) - 1 if request.prefill else len(messages)
    blocks: list[_Block] = []
    turn: list[tuple[Part, _Block]] = []
    role = ""
    tokens = cuts[0].tokens + sum(
        cuts[place + 1].tokens - cuts[place].tokens
        for place, message in enumerate(messages)
        if message.role == "system"
    )

    def close() -> None:
        nonlocal tokens
        turn.sort(key=lambda item: not isinstance(item[0], ToolResult))
        for part, block in turn:
            tokens += part_tokens(part)
            block.tokens = tokens
            blocks.append(block)
        turn.clear()

    for place in range(upto):
        message = messages[place]
        if message.role == "system":
            continue
        speaker = "assistant" if message.role == "assistant" else "user"
        if speaker != role:
            close()
            role = speaker
        for number, part in enumerate(message.parts):
            if isinstance(part, (Text, Refusal)) and not part.text:
                continue
            carries = not isinstance(part, Thinking) and _carries(part, _CARRIERS)
            turn.append((part, _Block(place, number, carries, 0.0)))
    close()
    return blocks


# ---- in the request -------------------------------------------------------------------------------------------------


def has_marks(request: GenerateRequest, fmt: str, extra: str, name: str) -> bool:
    """Tell whether the caller has placed marks by hand, or replaces what marks would stand on.

    Args:
        request: the request.
        fmt: the wire format's name in the parts' ``meta``.
        extra: the provider's name in ``request.extra``.
        name: what a mark is called: ``cache_control`` or ``prompt_cache_breakpoint``.
    """
    own = request.extra.get(extra, {})
    if any(key in own for key in (name, "system", "messages", "input", "tools", "prompt_cache_options")):
        return True
    tools = (tool.meta for tool in request.tools)
    parts = (getattr(part, "meta", {}) for message in request.messages for part in _all_parts(message))
    return any(name in meta.get(fmt, {}) for metas in (tools, parts) for meta in metas)


def _all_parts(message: Message) -> Iterator[Part]:
    for part in message.parts:
        yield part
        if isinstance(part, ToolResult) and not isinstance(part.content, str):
            yield from part.content


def marked(request: GenerateRequest, marks: Sequence[Mark], fmt: str, name: str, value: Any) -> GenerateRequest:
    """Return the request with its marks, each in the ``meta`` of its part.

    Args:
        request: the request, which is left as it is.
        marks: from :func:`anthropic_marks` or :func:`breakpoint_marks`.
        fmt: the wire format's name in ``meta``.
        name: what a mark is called there.
        value: the mark, or a function of the :class:`Mark` that returns it.
    """
    if not marks:
        return request
    tools, messages = list(request.tools), list(request.messages)
    for mark in marks:
        told: Any = value(mark) if callable(value) else value
        if mark.message == TOOLS:
            tools[-1] = replace(tools[-1], meta=_with(tools[-1].meta, fmt, name, told))
            continue
        parts = list(messages[mark.message].parts)
        part = cast("Text", parts[mark.part])  # all kinds that carry a mark have a meta
        parts[mark.part] = replace(part, meta=_with(part.meta, fmt, name, told))
        messages[mark.message] = Message(messages[mark.message].role, tuple(parts))
    return replace(request, tools=tuple(tools), messages=tuple(messages))


def _with(meta: Mapping[str, Mapping[str, Any]], fmt: str, name: str, value: Any) -> Mapping[str, Mapping[str, Any]]:
    return {**meta, fmt: {**meta.get(fmt, {}), name: value}}
