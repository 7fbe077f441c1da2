"""Tool calls put together from a stream's pieces, which servers number and name in many ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json

from llmprod.events import Event, ToolCallDelta, ToolCallDone
from llmprod.types import ToolCall

__all__ = ["ToolCalls"]


@dataclass(slots=True)
class _Open:
    """A call that is being written. ``given`` is the server's id, ``id`` that or one made up."""

    part: int
    id: str
    given: str
    name: str
    pieces: list[str] = field(default_factory=list[str])
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    told: bool = False
    """It was handed out whole and has not changed since."""

    def complete(self) -> bool:
        """True if the arguments are JSON by themselves, so that more of them would be another call's."""
        try:
            from_json("".join(self.pieces))
        except ValueError:
            return False
        return True


class ToolCalls:
    """The calls of one answer.

    A piece belongs to the call at its ``index``, unless it brings another id or another name: then it begins a new
    call there (Ollama and others number all calls 0). Without an index it belongs to the call with its id, else to
    its place in the list. A call without an id gets ``call_<n>``, counted on over the conversation, so that two turns
    never share one.

    Args:
        format: key of the calls' ``meta``.
        earlier: tool calls in the conversation so far.
    """

    def __init__(self, format: str, earlier: int) -> None:  # noqa: A002
        self._format = format
        self._earlier = earlier
        self._calls: list[_Open] = []
        self._at: dict[int, _Open] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def feed(self, delta: Any, place: int, new_part: Callable[[], int]) -> Event | None:
        """Take one piece, ``place``-th in its list, and return what it adds.

        Raises:
            AttributeError, TypeError: it has not the form of a tool call.
        """
        custom = delta.get("custom")
        function: Any = delta.get("function") or custom or {}
        given, name = delta.get("id") or "", function.get("name") or ""
        arguments = function.get("input" if custom else "arguments")
        if arguments is None:
            arguments = ""
        elif not isinstance(arguments, str):
            arguments = to_json(arguments).decode()
        index = delta.get("index")
        if not isinstance(index, int):
            index = next((at for at, call in self._at.items() if given and call.given == given), place)
        call = self._at.get(index)
        if call is None or _begins(call, given, name, arguments):
            number = self._earlier + len(self._calls)
            call = _Open(new_part(), given or f"call_{number}", given, name)
            self._calls.append(call)
            self._at[index] = call
            event = ToolCallDelta(call.part, call.id, name or None, arguments)
        else:
            event = ToolCallDelta(call.part, arguments=arguments)
            if given and not call.given:
                call.given = call.id = event.id = given
            if name and not call.name:
                call.name = event.name = name
        if custom:
            call.meta["type"] = "custom"
        if "extra_content" in delta:
            call.meta["extra_content"] = delta["extra_content"]
        call.pieces.append(arguments)
        call.told = False
        return event if event.id or event.name or arguments else None

    def done(self) -> list[Event]:
        """Return the calls that are complete now and were not told before."""
        events: list[Event] = []
        for call in self._calls:
            if not call.told:
                call.told = True
                arguments = "".join(call.pieces) or ("" if call.meta.get("type") == "custom" else "{}")
                meta = {self._format: call.meta} if call.meta else {}
                events.append(ToolCallDone(ToolCall(call.id, call.name, arguments, meta=meta), call.part))
        return events


def _begins(call: _Open, given: str, name: str, arguments: str) -> bool:
    """True if a piece at an occupied index is a new call's first."""
    if given and call.given:
        return given != call.given
    if not name or not call.name:
        return False
    # No ids to go by: another name, or the same one again after arguments that are whole.
    return name != call.name or bool(arguments and call.complete())
