"""A small HTTP server on loopback that answers as OpenAI's Chat Completions do, for experiments with load.

When a request is answered, and how, is the experiment's; this is the wire alone, and light, so that two cores carry a
server and its clients. (The fault server of :mod:`llmprod.testing` is for faults byte by byte.)
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from llmprod.testing._wire.http import HttpRequest, RequestReader

Reply = Callable[[int, bytes, Mapping[str, str]], None]
"""Answers a request: status, body, further headers. Without effect once the client is gone."""
Serve = Callable[[HttpRequest, Reply], None]
"""Is told each request, and replies at once or later."""

_PHRASES = {200: "OK", 429: "Too Many Requests", 503: "Service Unavailable"}


class _Connection(asyncio.Protocol):
    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._reader = RequestReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None  # whoever is serving it goes on: a model's server has no way to stop

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (request := self._reader.next_request()) is not None:
            self._serve(request, self._reply)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if self._transport is None:
            return
        lines = [f"HTTP/1.1 {status} {_PHRASES[status]}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
        self._transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


async def listen(serve: Serve) -> tuple[asyncio.Server, str]:
    """Serve on a free port of 127.0.0.1; return the server and its address, without a path."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(serve), "127.0.0.1", 0, backlog=4096)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answer(model: str, text: str, *, input_tokens: int, output_tokens: int) -> bytes:
    """Return the body of a whole answer."""
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"},
            ],
            "usage": {
                "prompt_tokens": input_tokens,
                "completion_tokens": output_tokens,
                "total_tokens": input_tokens + output_tokens,
            },
        }
    ).encode()


def refusal(kind: str, code: str, message: str) -> bytes:
    """Return the body of an error."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


async def read_line() -> str:
    """Return the next line of standard input, without holding the loop up."""
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return line.strip()


def say(value: Any) -> None:
    """Write a line to standard output."""
    print(value if isinstance(value, str) else json.dumps(value), flush=True)


class Child:
    """A Python module in a process of its own, spoken to by lines."""

    def __init__(self, module: str, *arguments: str) -> None:
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def tell(self, line: str) -> None:
        """Write a line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """Return its next line, empty if it ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.communicate()
