"""An open stream for code that does not await."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmprod._background import Background
from llmprod.events import Event, Reset, TextDelta, TokenLogprob
from llmprod.response import Cached, Response, Timing, started_over
from llmprod.trace import Trace
from llmprod.types import Part, ToolCall
from llmprod.usage import FinishReason, Usage

__all__ = ["SyncResponse"]


class SyncResponse:
    """An open stream for synchronous code: a context manager, and an iterator of events.

    The accessors are those of :class:`Response`, which is at ``response``.
    """

    def __init__(self, response: Response, loop: Background) -> None:
        self.response = response
        self._loop = loop

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = self._loop.run(_next, self.response)
        if event is None:
            raise StopIteration
        return event

    def text_stream(self) -> Iterator[str]:
        """Iterate over the text alone, piece by piece; raises StreamInterrupted where it breaks or starts over."""
        begun = False
        for event in self:
            if isinstance(event, TextDelta):
                begun = True
                yield event.text
            elif isinstance(event, Reset) and begun:
                self.close()
                raise started_over(self.response)

    def read(self) -> SyncResponse:
        """Read to the end and return this response."""
        self._loop.run(self.response.read)
        return self

    def close(self) -> None:
        """Stop reading and release the connection."""
        if not self.response.closed:
            self._loop.run(self.response.aclose)

    def __enter__(self) -> SyncResponse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        response = getattr(self, "response", None)
        if response is not None and not response.closed:
            self._loop.close_later(response.aclose)

    @property
    def text(self) -> str:
        """The text so far."""
        return self.response.text

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts so far."""
        return self.response.parts

    @property
    def thinking(self) -> str:
        """The readable reasoning so far."""
        return self.response.thinking

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the model asks for."""
        return self.response.tool_calls

    @property
    def refusal(self) -> str | None:
        """The model's refusal, where it declined in the provider's refusal field."""
        return self.response.refusal

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Log probabilities of the tokens so far, if asked for."""
        return self.response.logprobs

    @property
    def parsed(self) -> Any:
        """The answer parsed by its output schema."""
        return self.response.parsed

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended."""
        return self.response.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Tokens."""
        return self.response.usage

    @property
    def model(self) -> str | None:
        """Exact id of the model that answered."""
        return self.response.model

    @property
    def provider(self) -> str:
        """Name of the target that answered."""
        return self.response.provider

    @property
    def request_id(self) -> str | None:
        """The provider's id of the HTTP request, for its support."""
        return self.response.request_id

    @property
    def headers(self) -> Mapping[str, str]:
        """The HTTP response's headers, lower-case; empty without HTTP."""
        return self.response.headers

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of request fields left out because the target can't honour them."""
        return self.response.dropped

    @property
    def cached(self) -> Cached | None:
        """How a cache came by the answer; None where it was made for this call."""
        return self.response.cached

    @property
    def complete(self) -> bool:
        """True once the whole answer has arrived."""
        return self.response.complete

    @property
    def closed(self) -> bool:
        """True once the response has ended in any way."""
        return self.response.closed

    @property
    def timing(self) -> Timing:
        """Where the time went."""
        return self.response.timing

    @property
    def trace(self) -> Trace:
        """What happened in the call."""
        return self.response.trace

    def __repr__(self) -> str:
        return repr(self.response)


async def _next(response: Response) -> Event | None:
    # StopAsyncIteration can't cross a future.
    try:
        return await response.__anext__()
    except StopAsyncIteration:
        return None
