"""The demo with a real provider: a few small prompts, their answers and their traces."""

from __future__ import annotations

import asyncio

from rich import box
from rich.console import Console
from rich.table import Table

from llmprod import AsyncClient, InvalidArgument, LLMProdError, Response

LIMIT = 600
PROMPTS = (
    ("generate", "In one sentence: why do ships float?"),
    ("stream", "Count from one to twenty in words, separated by commas."),
    ("stream", "In two sentences: what does a circuit breaker in software do?"),
)


def main(console: Console, model: str) -> int:
    """Ask ``model``; return the exit status."""
    try:
        client = AsyncClient(model)
    except InvalidArgument as error:  # an unknown prefix, or no key: nothing was sent
        console.print(f"Can't use {model!r}; nothing was sent. {error}", style="red", markup=False, highlight=False)
        return 2
    console.print(f"{len(PROMPTS)} small prompts to {model}, through this stack:", highlight=False)
    console.print(client.describe(), style="dim", markup=False, highlight=False)
    try:
        return asyncio.run(_run(console, client))
    except KeyboardInterrupt:
        return 130


async def _run(console: Console, client: AsyncClient) -> int:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("call", "result", "finish", "first token", "total", "tokens in / out"):
        table.add_column(heading, no_wrap=True)
    failed = 0
    async with client:
        for kind, prompt in PROMPTS:
            console.rule(f"{kind}: {prompt}", align="left", style="dim")
            try:
                response = await _ask(console, client, kind, prompt)
            except LLMProdError as error:
                failed += 1
                console.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False)
                _told(console, error.trace)
                table.add_row(kind, type(error).__name__, "", "", "", "")
                continue
            _told(console, response.trace)
            timing, usage = response.timing, response.usage
            table.add_row(
                kind,
                "ok",
                str(response.finish_reason),
                "" if timing.ttft is None else f"{timing.ttft:.2f} s",
                f"{timing.total:.2f} s",
                f"{usage.total_input} / {usage.total_output}" if usage else "not told",
            )
    console.print(table)
    return 1 if failed else 0


async def _ask(console: Console, client: AsyncClient, kind: str, prompt: str) -> Response:
    if kind == "generate":
        response = await client.generate(prompt, max_tokens=LIMIT)
        console.print(response.text, markup=False, highlight=False)
        return response
    async with client.stream(prompt, max_tokens=LIMIT) as response:
        try:
            async for piece in response.text_stream():
                console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        finally:
            console.print()
    return response


def _told(console: Console, trace) -> None:
    if trace is not None:
        console.print(str(trace), style="dim", markup=False, highlight=False, soft_wrap=True)
