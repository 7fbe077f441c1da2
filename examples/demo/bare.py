"""The other side: a bare HTTP client, written as people write it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from time import monotonic

import httpx

from .score import Ending, Result, Step, judge
from .traffic import Call


class Bare:
    """POST, ``raise_for_status``, ``json`` or the lines of the stream until ``[DONE]`` or its end."""

    def __init__(self, url: str, *, timeout: float) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout)

    async def generate(self, prompt: str) -> str:
        response = await self._client.post("/chat/completions", json=_body(prompt, stream=False))
        response.raise_for_status()
        return response.json()["choices"][0]["message"]["content"]

    async def stream(self, prompt: str) -> AsyncIterator[str]:
        async with self._client.stream("POST", "/chat/completions", json=_body(prompt, stream=True)) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    return
                chunk = json.loads(line.removeprefix("data: "))
                yield chunk["choices"][0]["delta"].get("content") or ""

    async def aclose(self) -> None:
        await self._client.aclose()


def _body(prompt: str, *, stream: bool) -> dict[str, object]:
    return {"model": "sim", "messages": [{"role": "user", "content": prompt}], "stream": stream}


async def ask(bare: Bare, call: Call) -> Result:
    """Make a call and judge what came of it."""
    started = monotonic()
    ttft: float | None = None
    shown = ""
    try:
        if call.stream:
            async for piece in bare.stream(call.prompt):
                if piece and ttft is None:
                    ttft = monotonic() - started
                shown += piece
        else:
            shown = await bare.generate(call.prompt)
        ending, note = judge(call, shown, ("primary",))
    except Exception as error:
        ending, note = Ending.PARTIAL if shown else Ending.ERROR, _named(error)
    good = ending is Ending.RIGHT
    step = Step("openai", "ok" if good else note, "ok" if good else "failed")
    return Result(call, ending, monotonic() - started, ttft, "openai" if good else None, note, (step,))


def _named(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return type(error).__name__
