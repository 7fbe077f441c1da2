"""vLLM's OpenAI-compatible application, called in memory: the seam to HTTP without a socket.

httpx's ASGITransport reads an answer to its end before it hands out the first byte; here the body crosses as the
application sends it. A call that nobody waits for any more is told to the application as a disconnected client
(``http.disconnect``), which makes vLLM abort its sequences. Its task is never cancelled: vLLM would leave the handler
of a whole answer running.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from llmprod.errors import EngineDied, ReadError
from llmprod.providers._http import HeaderList
from llmprod.providers._vllm.intake import Passage

if TYPE_CHECKING:
    from llmprod.providers._vllm.crossing import Channel
    from llmprod.providers._vllm.incarnation import Incarnation

__all__ = ["InMemory", "InMemoryReply"]

_Message: TypeAlias = MutableMapping[str, Any]
_END = b""
_ADDRESS = "http://vllm"


class _Exchange:
    """One request inside the application; lives on the engine's loop."""

    __slots__ = (
        "_answered", "_body", "_channel", "_gone", "_passage", "_scope", "_sent", "_task", "_told", "incarnation",
    )  # fmt: skip

    def __init__(
        self, incarnation: Incarnation, path: str, headers: HeaderList, body: bytes, channel: Channel[Any]
    ) -> None:
        self.incarnation = incarnation
        self._body = body
        self._channel = channel
        self._sent = self._answered = self._told = False
        self._gone: asyncio.Event | None = None
        self._passage: Passage | None = None
        self._task: asyncio.Task[None] | None = None
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "server": ("vllm", 80),
            "client": ("127.0.0.1", 0),
            "headers": [
                (b"host", b"vllm"),
                (b"content-length", str(len(body)).encode()),
                *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers),
            ],
        }

    def start(self) -> None:
        self._gone = asyncio.Event()
        if self.incarnation.dead:  # since the caller looked; its application would wait for answers for ever
            self.died()
            return
        self.incarnation.entered(self)
        self._passage = self.incarnation.intake.enter(self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def leave(self) -> None:
        """Nobody reads the answer any more."""
        if self._gone is not None:
            self._gone.set()

    def died(self) -> None:
        """The engine is gone: tell the reader, whatever the application makes of it."""
        self._tell(EngineDied(silent=not self._answered))
        self.leave()

    async def _run(self) -> None:
        assert self._gone is not None
        try:
            if self._gone.is_set():  # while it waited
                return
            await self.incarnation.app(self._scope, self._receive, self._send)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the application's own; it goes to the reader
            self._tell(_broken(error, self.incarnation))
        finally:
            if self._passage is not None:
                self._passage.over()
            self.incarnation.left(self)
            self._tell(_END)

    async def _receive(self) -> _Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        assert self._gone is not None
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: _Message) -> None:
        if message["type"] == "http.response.start":
            self._answered = True
            self._channel.send((message["status"], message.get("headers", ())))
        elif message["type"] == "http.response.body":
            if message.get("body"):
                self._channel.send(bytes(message["body"]))
            if not message.get("more_body"):
                self._tell(_END)

    def _tell(self, item: Any) -> None:
        if not self._told:
            self._told = True
            self._channel.send(item)


def _broken(error: Exception, incarnation: Incarnation) -> Exception:
    if incarnation.dead:
        return EngineDied()
    broken = ReadError(detail=f"vLLM raised {type(error).__name__}")
    broken.__cause__ = error
    return broken


class InMemoryReply:
    """The application's answer, read on the caller's loop."""

    __slots__ = ("_channel", "_ended", "_exchange", "headers", "status")

    def __init__(self, exchange: _Exchange, channel: Channel[Any], status: int, headers: Any) -> None:
        self._exchange = exchange
        self._channel = channel
        self._ended = False
        self.status: int = status
        self.headers: dict[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers
        }

    async def chunk(self) -> bytes:
        """Return what has come since the last call; ``b""`` at the end.

        Raises:
            EngineDied: the engine ended.
            ReadError: the application failed.
        """
        if self._ended:
            return _END
        item = await self._channel.receive()
        pieces: list[bytes] = []
        while True:
            if isinstance(item, Exception):
                if pieces:
                    self._channel.arrived(item)  # what came before it is read first
                    break
                self._ended = True
                raise _in_stream(item)
            if not item:
                self._ended = True
                break
            pieces.append(item)
            item = self._channel.ready()
            if item is None:
                break
        data = b"".join(pieces)
        if self._exchange.incarnation.dead and b'"error"' in data:
            # vLLM tells of its death as of a server's error; that it was the engine's is known here.
            self._ended = True
            raise _in_stream(EngineDied())
        return data

    async def aclose(self) -> None:
        """Stop reading: the engine drops what it still computes."""
        self.abandon()

    def abandon(self) -> None:
        """The same without awaiting, from any thread."""
        if not self._ended:
            self._ended = True
            self._exchange.incarnation.soon(self._exchange.leave)


def _in_stream(error: Exception) -> Exception:
    if isinstance(error, (EngineDied, ReadError)):
        error.in_stream = True
    return error


class InMemory:
    """An engine in the sense of :mod:`llmprod.providers._http`: posts to the application of one incarnation."""

    __slots__ = ("_incarnation",)

    def __init__(self, incarnation: Incarnation) -> None:
        self._incarnation = incarnation

    async def post(self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None) -> InMemoryReply:
        """Send and return once the application has answered with a status.

        Raises:
            EngineDied: the engine ended before.
            ReadError: the application failed.
        """
        incarnation = self._incarnation
        channel = incarnation.crossing.channel()
        exchange = _Exchange(incarnation, url.removeprefix(_ADDRESS), headers, body, channel)
        if not incarnation.soon(exchange.start):
            raise EngineDied(silent=True)
        try:
            first = await channel.receive()
        except BaseException:
            incarnation.soon(exchange.leave)
            raise
        if isinstance(first, Exception):
            raise first
        if not isinstance(first, tuple):
            raise ReadError(detail="vLLM's application ended without an answer", silent=True)
        status, head = cast("tuple[int, Any]", first)
        return InMemoryReply(exchange, channel, status, head)

    async def aclose(self) -> None:
        """Nothing of its own to close."""
