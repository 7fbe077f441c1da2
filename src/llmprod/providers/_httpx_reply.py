"""Reading a body that httpx, httpx2 or httpcore hand out as nested generators, and closing it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from llmprod._loops import close_later
from llmprod.providers._http_errors import is_transport, raise_ours
from llmprod.providers._inflate import Inflater, inflater

__all__ = ["GeneratorReply"]


class GeneratorReply:
    """A reply whose body is an asynchronous iterator.

    Args:
        status: the status code.
        headers: names in lower case.
        body: the bytes as they came: a library's own decoder may hold an event back.
        close: closes what the body belongs to.
        loop: where :meth:`abandon` closes it.
    """

    __slots__ = ("_body", "_close", "_closed", "_ended", "_inflater", "_loop", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        body: AsyncIterator[bytes],
        close: Callable[[], Awaitable[Any]],
        loop: Any,
    ) -> None:
        self.status = status
        self.headers = headers
        self._body = body
        self._close = close
        self._loop = loop
        self._closed = self._ended = False
        self._inflater: Inflater | None = inflater(headers.get("content-encoding"))

    async def chunk(self) -> bytes:
        """Return the next bytes of the body."""
        while True:
            try:
                data = await self._body.__anext__()
            except StopAsyncIteration:
                self._ended = True
                return self._inflater.end() if self._inflater else b""
            except Exception as error:  # noqa: BLE001 - re-raised as ours, or as it is
                self._ended = True
                raise_ours(error, begun=True)
            if self._inflater is not None:
                data = self._inflater.feed(data)
            if data:
                return data

    async def aclose(self) -> None:
        """Release the connection: for reuse if the body was read to its end."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._close()
            # The body is nested generators; left as they are, trio complains of each. A closed one ends at once.
            while not self._ended:
                await self._body.__anext__()
        except StopAsyncIteration:
            pass
        except Exception as error:  # what a connection that broke says of it
            if not is_transport(error):
                raise

    def abandon(self) -> None:
        """Close soon."""
        close_later(self._loop, self.aclose)
