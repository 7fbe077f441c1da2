"""Steady traffic of streams and whole answers, and what became of each call."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from llmprod import AsyncClient, CallError, Provider, Response, StreamInterrupted

PIECES = 24
HOSTED_TEXT = " ".join(f"word{number}" for number in range(PIECES))
"""What the hosted model always says; the fault server sends a word an event."""


@dataclass(slots=True)
class Call:
    """One call.

    Attributes:
        begun: seconds on the traffic's clock.
        stream: it was streamed.
        result: ``right``, ``wrong``, ``interrupted``, or the class of its error.
        first: seconds to the first content; of a whole answer, to the answer.
        seconds: how long it took.
        provider: who answered (in the end).
        first_provider: who showed the first content of a stream.
        resumed: a stream that broke went on.
        attempts: that reached a provider.
    """

    begun: float
    stream: bool
    result: str = "running"
    first: float = 0.0
    seconds: float = 0.0
    provider: str = ""
    first_provider: str = ""
    resumed: bool = False
    attempts: int = 0
    trace: str = field(default="", repr=False)


def right(response: Response) -> bool:
    """The answer is whole, and the one that its provider gives."""
    usage = response.usage
    if response.provider.startswith("vllm"):
        return response.complete and response.finish_reason in ("stop", "length") and len(response.text) > 0
    return response.complete and response.text == HOSTED_TEXT and usage is not None


class Traffic:
    """Calls at a steady rate, streams and whole answers in turn, whatever becomes of those before."""

    def __init__(self, stack: Provider, *, rate: float = 10.0, streams: float = 0.5) -> None:
        self._stack = stack
        self._rate = rate
        self._streams = streams
        self.calls: list[Call] = []
        self._began = 0.0
        self._stopped = False

    def now(self) -> float:
        """Seconds since the traffic began."""
        return time.monotonic() - self._began

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Traffic]:
        """Let calls come while the block runs; leaves when the last of them has ended."""
        self._began, self._stopped = time.monotonic(), False
        async with AsyncClient(self._stack) as client, anyio.create_task_group() as group:
            group.start_soon(self._arrivals, client, group)
            try:
                yield self
            finally:
                self._stopped = True

    async def _arrivals(self, client: AsyncClient, group: Any) -> None:
        number = 0
        while not self._stopped:
            group.start_soon(self.one, client, number, (number * self._streams) % 1 < self._streams)
            number += 1
            await anyio.sleep(max(0.0, number / self._rate - self.now()))

    async def one(self, client: AsyncClient, number: int, stream: bool) -> Call:
        """Make a call and note what became of it."""
        call = Call(self.now(), stream)
        self.calls.append(call)
        options: dict[str, Any] = {"max_tokens": PIECES, "temperature": 0, "extra": {"vllm": {"ignore_eos": True}}}
        prompt = f"Say the words, number {number}."
        response: Response | None = None
        try:
            if stream:
                async with client.stream(prompt, **options) as response:
                    async for _ in response:
                        if not call.first:
                            call.first, call.first_provider = self.now() - call.begun, response.provider
            else:
                response = await client.generate(prompt, **options)
                call.first, call.first_provider = self.now() - call.begun, response.provider
            call.provider = response.provider
            call.resumed = any(type(decision).__name__ == "StreamResumed" for decision in response.trace.decisions)
            call.result = "right" if right(response) or (call.resumed and response.complete) else "wrong"
        except StreamInterrupted as error:
            call.result, call.trace = "interrupted", str(error.trace)
        except CallError as error:
            call.result, call.trace = type(error).__name__, str(error.trace)
        call.seconds = self.now() - call.begun
        if response is not None:
            call.attempts = response.context.call.attempts
        return call

    async def until(self, found: Callable[[Call], bool], *, since: float, within: float = 300.0) -> Call:
        """Wait for an answered call that began at ``since`` or later and is such a one."""
        with anyio.fail_after(within):
            while True:
                for call in self.calls:
                    if call.begun >= since and call.first and found(call):
                        return call
                await anyio.sleep(0.01)

    def tally(self) -> Counter[str]:
        """How the calls ended."""
        return Counter("resumed" if call.resumed and call.result == "right" else call.result for call in self.calls)


def lost(calls: list[Call]) -> list[Call]:
    """Calls that ended neither in a right answer nor as a stream that was marked as interrupted."""
    return [call for call in calls if call.result not in ("right", "interrupted")]


def local(call: Call) -> bool:
    """The engine showed its first content."""
    return call.first_provider.startswith("vllm")


def quantile(values: list[float], share: float) -> float:
    """A quantile; 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0
