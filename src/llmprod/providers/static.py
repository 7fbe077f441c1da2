"""A fixed answer: the last resort of a failover, and a stand-in in tests."""

from __future__ import annotations

from llmprod.context import Context
from llmprod.errors import InvalidArgument
from llmprod.events import Event, Finish, Start, TextDelta, UsageUpdate
from llmprod.provider import BaseProvider, Capabilities
from llmprod.request import Request
from llmprod.response import Response
from llmprod.usage import Usage

__all__ = ["Static"]


class Static(BaseProvider):
    """Answers every request with the same text, at once, at no cost.

    ``response.provider`` is ``static:<name>``, so a caller can tell it from a model's answer.

    Args:
        text: the answer.
        name: what traces call it (default ``answer``).

    Raises:
        InvalidArgument: ``text`` is no string, or empty.
    """

    def __init__(self, text: str, *, name: str = "answer") -> None:
        if not isinstance(text, str) or not text:
            raise InvalidArgument("text", "empty" if text == "" else type(text).__name__, "a non-empty string")
        self.text = text
        self._name = f"static:{name}"

    @property
    def name(self) -> str:
        """``static:<name>``."""
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        """Takes any prompt; promises neither tools nor a schema, which a fixed text can't honour."""
        return _CAPABILITIES

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        events: list[Event] = [Start(self._name), TextDelta(self.text), UsageUpdate(Usage()), Finish("stop", "static")]
        return Response(
            provider=self._name, context=context, request=request, model=self._name, events=events, dropped=dropped
        )


_CAPABILITIES = Capabilities(
    # Sampling and limits have nothing to act on; a tool call or a schema would be a promise.
    parameters=Capabilities().parameters - {"tools", "tool_choice", "output", "logprobs"},
)
