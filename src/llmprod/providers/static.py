"""A fixed answer: the last resort of a failover, and a stand-in in tests."""

from __future__ import annotations

from typing import ClassVar

from llmprod.context import Context
from llmprod.errors import InvalidArgument, InvalidOutput, UnsupportedParameter
from llmprod.events import Event, Finish, Start, TextDelta, UsageUpdate
from llmprod.provider import BaseProvider, Capabilities
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.schema import OutputSchema
from llmprod.usage import Usage

__all__ = ["Static"]


class Static(BaseProvider):
    """Answers every request with the same text, at once, at no cost.

    The text may be JSON that fits the output schema of your requests; to a request whose schema it doesn't fit, or
    which demands a tool call, it raises :class:`UnsupportedParameter` rather than a wrong answer.

    ``response.provider`` is ``static:<name>``, so a caller can tell it from a model's answer.

    Args:
        text: the answer.
        name: what traces call it (default ``answer``).

    Raises:
        InvalidArgument: ``text`` is no string, or empty.
    """

    free: ClassVar[bool] = True

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
        """Takes any prompt. A tool that must be called, or a schema that the text doesn't fit, it refuses."""
        return _CAPABILITIES

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        assert isinstance(request, GenerateRequest)
        if request.tool_choice not in (None, "auto", "none"):
            raise UnsupportedParameter(self._name, ("tool_choice",))
        if request.output is not None and not _fits(request.output, self.text):
            raise UnsupportedParameter(self._name, ("output",))
        events: list[Event] = [Start(self._name), TextDelta(self.text), UsageUpdate(Usage()), Finish("stop", "static")]
        return Response(
            provider=self._name, context=context, request=request, model=self._name, events=events, dropped=dropped
        )


def _fits(schema: OutputSchema, text: str) -> bool:
    try:
        schema.parse(text)
    except InvalidOutput:
        return False
    return True


_CAPABILITIES = Capabilities()
