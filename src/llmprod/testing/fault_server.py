"""A real-socket server of model APIs that fails on demand, for tests, demos and benchmarks.

It speaks, by path, OpenAI Chat Completions, Responses and embeddings, Anthropic Messages and Google Gemini,
whole and streamed, over HTTP/1.1 on a loopback socket, and controls every byte: it can reset a connection
after the fortieth word, end a chunked body properly without the finish, drip, stall, or never answer.

    with FaultServer([Behaviour(error=ErrorReply(kind="rate_limit", retry_after=2)), Behaviour()]) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=1)
        ...
        assert [record.status for record in server.requests] == [429, 200]

``with`` runs it in a thread of its own, for clients of any kind; ``async with`` in the running asyncio loop.
By hand or for a benchmark, in its own process: ``python -m llmprod.testing.fault_server --help``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from ._fault_connection import Connection, Outcome
from ._fault_desk import Desk
from ._fault_script import (
    ANY_MODEL,
    HEALTHY,
    UNAVAILABLE,
    Director,
    ModelScript,
    RequestRecord,
    Script,
    ScriptFunction,
)
from ._fault_thread import LoopThread
from .behaviour import (
    Answer,
    Behaviour,
    Cut,
    Delay,
    Drip,
    End,
    ErrorKind,
    ErrorReply,
    Lognormal,
    Malformed,
    Quirks,
    RawReply,
    SseStyle,
    Stall,
    StreamError,
    TokenCounts,
    ToolCall,
    words,
)

__all__ = [
    "ANY_MODEL",
    "HEALTHY",
    "UNAVAILABLE",
    "Answer",
    "Behaviour",
    "Cut",
    "Delay",
    "Drip",
    "End",
    "ErrorKind",
    "ErrorReply",
    "FaultServer",
    "Lognormal",
    "Malformed",
    "ModelScript",
    "Outcome",
    "Quirks",
    "RawReply",
    "RequestRecord",
    "Script",
    "ScriptFunction",
    "SseStyle",
    "Stall",
    "StreamError",
    "TokenCounts",
    "ToolCall",
    "words",
]

_BACKLOG = 4096


class FaultServer:
    """A server of model APIs on ``127.0.0.1`` that does to each request what its script says.

    `script` is one `Behaviour` for all requests, a sequence (one a request, the last for the rest), a
    function of the `RequestRecord`, or a mapping from model name to one of these. `port` 0 takes a free one.
    `flush_each` writes each stream event by itself even when no delay separates it from the last. `keep` is
    how many requests are remembered. All random delays come from `seed`. Methods and properties may be
    used from any thread.
    """

    def __init__(
        self,
        script: Script = HEALTHY,
        *,
        port: int = 0,
        seed: int = 0,
        flush_each: bool = False,
        keep: int = 10_000,
        models: Sequence[str] = ("fault-model",),
    ) -> None:
        self._director = Director(script)
        self._desk = Desk(self._director, seed=seed, flush_each=flush_each, keep=keep, models=models)
        self._port = port
        self._flush_each = flush_each
        self._listener: asyncio.Server | None = None
        self._thread: LoopThread | None = None

    # What happened

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``, without a path."""
        if self._listener is None:
            raise RuntimeError("the fault server is not running: enter it with `with` or `async with`")
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[RequestRecord]:
        """What was asked, in order of arrival; at most the `keep` latest."""
        return self._desk.records()

    @property
    def request_count(self) -> int:
        """How many requests arrived since the start or the last reset."""
        return self._desk.request_count

    @property
    def connections(self) -> int:
        """How many connections were opened since the start or the last reset."""
        return self._desk.opened_count

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._desk.live)

    @property
    def in_flight(self) -> int:
        """How many requests are being answered now."""
        return self._desk.in_flight

    @property
    def clock(self) -> float:
        """Seconds since the start or the last reset."""
        return self._desk.clock

    # What shall happen

    def behave(self, script: Script, *, model: str | None = None) -> None:
        """Play `script` from now on: for all models, or for `model` beside what the others do."""
        if model is not None and isinstance(script, Mapping):
            raise ValueError("behave: a script by model can't be given for one model")
        self._director.install(script, model)

    def down(self, behaviour: Behaviour = UNAVAILABLE, *, model: str | None = None) -> None:
        """Be out of order from now until `up`."""
        self._director.add_outage(-math.inf, math.inf, behaviour, model)

    def up(self, *, model: str | None = None) -> None:
        """End outages, begun or planned."""
        self._director.end_outages(model)

    def outage(self, start: float, end: float, behaviour: Behaviour = UNAVAILABLE, *, model: str | None = None) -> None:
        """Be out of order between two times on `clock`."""
        if not start <= end:
            raise ValueError(f"outage: start must not be after end, got {start!r} and {end!r}")
        self._director.add_outage(start, end, behaviour, model)

    def reset(self) -> None:
        """As just started: first script, no outages, no records, counters and clock at zero.

        Open connections stay open; requests in flight go on, but are not in `requests` any more.
        """
        self._director.reset()
        self._desk.reset()

    # Running

    def __enter__(self) -> Self:
        """Run in a thread of its own."""
        self._refuse_second_start()
        thread = LoopThread(self, "llmprod-fault-server")
        thread.start_and_wait()
        self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    async def __aenter__(self) -> Self:
        """Run in the running asyncio loop."""
        self._refuse_second_start()
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._close()

    def _refuse_second_start(self) -> None:
        if self._listener is not None:
            raise RuntimeError("the fault server is running already")

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            lambda: Connection(self._desk, loop, flush_each=self._flush_each),
            "127.0.0.1",
            self._port,
            backlog=_BACKLOG,
        )
        self._port = listener.sockets[0].getsockname()[1]
        self._desk.reset()
        self._listener = listener

    async def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.close()
        for connection in list(self._desk.live):
            connection.abort()
        while self._desk.live:  # noqa: ASYNC110 - each is gone after a turn of the loop
            await asyncio.sleep(0)


if __name__ == "__main__":
    from ._fault_main import main

    main()
