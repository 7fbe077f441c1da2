"""Which messages of a history are left out when it grows too long for the model's window.

A history is a row of exchanges, each begun by the user; within one, the model may call tools in several steps. An
exchange goes as a whole, and so does a step, so that no answer stands without its question and no tool result without
its call. Instructions (system messages), the last user turn and the step that follows it last stay always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from llmprod.types import Message, ToolCall, ToolResult

__all__ = ["TrimPolicy", "trim_history"]

TrimPolicy: TypeAlias = Literal["oldest", "middle"]
"""``oldest``: the oldest exchanges first. ``middle``: likewise, but the first stays, which often states the task."""


def trim_history(
    messages: Sequence[Message], sizes: Sequence[float], room: float, policy: TrimPolicy = "oldest"
) -> list[int]:
    """Return the places of the messages to keep, so that they fit into ``room`` if leaving out what may be can do it.

    Args:
        messages: the history.
        sizes: each message's tokens.
        room: tokens that all may have together.
        policy: what goes first.
    """
    kept = dict.fromkeys(range(len(messages)))
    total = sum(sizes)
    for unit in _droppable(messages, policy):
        if total <= room:
            break
        for place in unit:
            del kept[place]
            total -= sizes[place]
    return list(kept)


def _droppable(messages: Sequence[Message], policy: TrimPolicy) -> Iterator[list[int]]:
    exchanges = _exchanges(messages)
    if not exchanges:
        return
    steps = _steps(messages, exchanges[-1])
    first = policy == "middle"
    units = exchanges[first:-1] + steps[(first and len(exchanges) == 1) : -1]
    dropped = {place for unit in units for place in unit}
    for group in _linked(messages, units):
        if dropped.issuperset(group):
            yield group


def _exchanges(messages: Sequence[Message]) -> list[list[int]]:
    """Split into exchanges: places of what is no instruction, begun anew at each user turn."""
    exchanges: list[list[int]] = []
    asking = False
    for place, message in enumerate(messages):
        if message.role == "system":
            continue
        user = message.role == "user" and not any(isinstance(part, ToolResult) for part in message.parts)
        if not exchanges or (user and not asking):
            exchanges.append([])
        exchanges[-1].append(place)
        asking = user
    return exchanges


def _steps(messages: Sequence[Message], exchange: list[int]) -> list[list[int]]:
    """Split what follows the user's turn into the model's steps, each with the results of its calls."""
    steps: list[list[int]] = []
    for place in exchange:
        role = messages[place].role
        if role == "assistant":
            steps.append([place])
        elif steps:
            steps[-1].append(place)
    return steps


def _linked(messages: Sequence[Message], units: list[list[int]]) -> Iterator[list[int]]:
    """Yield units in order, those joined by a tool call and its result as one, with the partners that lie elsewhere."""
    partners = _partners(messages)
    unit_of = {place: at for at, unit in enumerate(units) for place in unit}
    done: set[int] = set()
    for unit in units:
        if unit[0] in done:
            continue
        group: set[int] = set()
        todo = list(unit)
        while todo:
            place = todo.pop()
            if place in group:
                continue
            group.add(place)
            if place in unit_of:
                todo.extend(units[unit_of[place]])
            todo.extend(partners.get(place, ()))
        done |= group
        yield sorted(group)


def _partners(messages: Sequence[Message]) -> dict[int, list[int]]:
    """Return which messages hold the calls and results of one another; ids that come again belong to the last call."""
    partners: dict[int, list[int]] = {}
    calls: dict[str, int] = {}
    for place, message in enumerate(messages):
        for part in message.parts:
            if isinstance(part, ToolCall):
                calls[part.id] = place
            elif isinstance(part, ToolResult) and (call := calls.get(part.call_id)) is not None:
                partners.setdefault(call, []).append(place)
                partners.setdefault(place, []).append(call)
    return partners
