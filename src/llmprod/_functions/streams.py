"""The streams that callers of decorated functions read: the function's own items, and its SDK's conveniences."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any

from llmprod._background import background
from llmprod._functions.call import END, next_item
from llmprod._functions.sdk import get, string
from llmprod.response import Response

__all__ = ["AsyncStream", "SyncStream"]

_FINAL = frozenset({
    "until_done", "get_final_message", "get_final_text", "get_final_completion", "get_final_response",
    "get_final_chat_completion",
})  # fmt: skip
"""Methods of the SDKs' streams that read the rest by themselves; here it is read through the wrappers first."""


def _text_of(event: Any) -> str:
    """Return the text that Anthropic's ``text_stream`` makes of an event."""
    return string(get(get(event, "delta"), "text")) if get(event, "type") == "content_block_delta" else ""


class SyncStream(Generator[Any, None, None]):
    """Items for synchronous code; the stack runs on the background event loop.

    Has what a generator has, closes as a context manager, and shows the attributes of the SDK's stream within.

    Args:
        start: opens the stream; called at the first item, as a generator starts.
        response: the stream, where it is open already.
    """

    def __init__(self, start: Callable[[], Response] | None = None, *, response: Response | None = None) -> None:
        self._loop = background()  # known beforehand: a finaliser must not wait for the lock under which it is made
        self._start = start
        self._response = response

    def __next__(self) -> Any:
        if self._response is None:
            if self._start is None:
                raise StopIteration
            start, self._start = self._start, None
            self._response = start()
        item = self._loop.run(next_item, self._response)
        if item is END:
            raise StopIteration
        return item

    def send(self, value: Any, /) -> Any:
        """As ``next``; a model's answer takes nothing in."""
        if value is not None:
            raise TypeError("a decorated stream takes no values")
        return next(self)

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:
        """Close the stream and raise."""
        self.close()
        raise typ if val is None else val

    def close(self) -> None:
        """Stop reading and release what the stream holds."""
        self._start = None
        if self._response is not None and not self._response.closed:
            self._loop.run(self._response.aclose)

    def __enter__(self) -> SyncStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        response = getattr(self, "_response", None)
        if response is not None and not response.closed:
            self._loop.close_later(response.aclose)

    def __getattr__(self, name: str) -> Any:
        inner = _inner(self, name)
        if name == "text_stream":
            return self._texts()
        found = getattr(inner, name)
        return self._after_the_rest(found) if name in _FINAL else found

    def _texts(self) -> Iterator[str]:
        return (text for event in self if (text := _text_of(event)))

    def _after_the_rest(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def read_then(*args: Any, **kwargs: Any) -> Any:
            for _ in self:
                pass
            return method(*args, **kwargs)

        return read_then

    def __repr__(self) -> str:
        return _shown(self, self._response)


class AsyncStream(AsyncGenerator[Any, None]):
    """Items for asynchronous code; otherwise as :class:`SyncStream`."""

    def __init__(
        self, start: Callable[[], Awaitable[Response]] | None = None, *, response: Response | None = None
    ) -> None:
        self._start = start
        self._response = response

    async def __anext__(self) -> Any:
        if self._response is None:
            if self._start is None:
                raise StopAsyncIteration
            start, self._start = self._start, None
            self._response = await start()
        item = await next_item(self._response)
        if item is END:
            raise StopAsyncIteration
        return item

    async def asend(self, value: Any, /) -> Any:
        """As ``anext``; a model's answer takes nothing in."""
        if value is not None:
            raise TypeError("a decorated stream takes no values")
        return await self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:
        """Close the stream and raise."""
        await self.aclose()
        raise typ if val is None else val

    async def aclose(self) -> None:
        """Stop reading and release what the stream holds."""
        self._start = None
        if self._response is not None:
            await self._response.aclose()

    async def close(self) -> None:
        """As ``aclose``, by the name that the SDKs' streams give it."""
        await self.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __getattr__(self, name: str) -> Any:
        inner = _inner(self, name)
        if name == "text_stream":
            return self._texts()
        found = getattr(inner, name)
        return self._after_the_rest(found) if name in _FINAL else found

    async def _texts(self) -> AsyncIterator[str]:
        async for event in self:
            if text := _text_of(event):
                yield text

    def _after_the_rest(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def read_then(*args: Any, **kwargs: Any) -> Any:
            async for _ in self:
                pass
            return await method(*args, **kwargs)

        return read_then

    def __repr__(self) -> str:
        return _shown(self, self._response)


def _inner(stream: SyncStream | AsyncStream, name: str) -> Any:
    """Return the function's own stream, if it has begun and ``name`` is for others to see."""
    response = stream.__dict__.get("_response")
    if response is None or response.raw is None or name.startswith("_"):
        raise AttributeError(f"{type(stream).__name__!r} object has no attribute {name!r}")
    return response.raw


def _shown(stream: object, response: Response | None) -> str:
    state = "not begun" if response is None else repr(response).removeprefix("<").removesuffix(">")
    return f"<{type(stream).__name__}: {state}>"
