"""What a hit in memory costs: ``python -m benchmarks.cache [--rounds N] [--json FILE]``.

CPU time of one call that the cache answers, beside the same call without a cache to a provider that answers at once:
the best of several rounds in one process. The answer has 64 words, the prompt about as many. LiteLLM's and LangChain's
caches in memory are measured in the same rounds, where they are installed: with their own clients, whose first call is
answered by a server on loopback. Nothing else goes over the network.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.wrappers import Instant
from llmprod import (
    AsyncClient,
    Context,
    Event,
    Finish,
    GenerateRequest,
    Message,
    Request,
    Response,
    Start,
    TextDelta,
    Usage,
    UsageUpdate,
)
from llmprod.wrappers.cache import Cache

_PROMPT = "Count to sixty-four, please, and write each number as a word. " * 5
_ASKED = GenerateRequest(messages=(Message.user(_PROMPT),), max_tokens=256, temperature=0)
_STREAM = GenerateRequest(messages=(Message.user(_PROMPT),), max_tokens=256, temperature=0, stream=True)

Call = Callable[[], Awaitable[Any]]


def _sent(provider: Any, request: GenerateRequest) -> Call:
    async def call() -> None:
        response = await provider.send(request, Context.new(tags={"tenant": "t"}))
        async for _ in response:
            pass

    return call


def _asked(client: AsyncClient, *, stream: bool) -> Call:
    async def whole() -> None:
        await client.generate(_PROMPT, max_tokens=256, temperature=0)

    async def streamed() -> None:
        async with client.stream(_PROMPT, max_tokens=256, temperature=0) as response:
            async for _ in response:
                pass

    return streamed if stream else whole


class _Short(Instant):
    """Answers at once, a whole answer in one piece, as the APIs do."""

    async def _send(self, request: Request, context: Context, dropped: tuple[str, ...]) -> Response:
        if request.stream:
            return await super()._send(request, context, dropped)
        return Response(provider=self.name, context=context, request=request, events=_PIECE)


_PIECE: list[Event] = [
    Start("instant"), TextDelta("word " * 64), UsageUpdate(Usage(input=10, output=64)), Finish("stop"),
]  # fmt: skip


def _ours() -> dict[str, dict[str, Call]]:
    bare, cached, missed = _Short(), Cache()(_Short()), Cache()(_Short())
    fresh = iter(range(10**9))

    def miss(stream: bool) -> Call:
        async def call() -> None:
            asked = GenerateRequest(
                messages=(Message.user(_PROMPT),), max_tokens=256, temperature=0, seed=next(fresh), stream=stream
            )
            async for _ in await missed.send(asked, Context.new(tags={"tenant": "t"})):
                pass

        return call

    plain, kept = AsyncClient(_Short(), wrappers=[]), AsyncClient(_Short(), wrappers=[Cache()])
    return {
        "bare provider": {"whole": _sent(bare, _ASKED), "stream": _sent(bare, _STREAM)},
        "Cache, hit": {"whole": _sent(cached, _ASKED), "stream": _sent(cached, _STREAM)},
        "Cache, miss": {"whole": miss(False), "stream": miss(True)},
        "AsyncClient": {"whole": _asked(plain, stream=False), "stream": _asked(plain, stream=True)},
        "AsyncClient, hit": {"whole": _asked(kept, stream=False), "stream": _asked(kept, stream=True)},
    }


def _litellm(url: str) -> dict[str, Call]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network for prices
    import litellm
    from litellm.caching.caching import Cache as LiteCache

    litellm.cache = LiteCache(type="local")
    litellm.telemetry = False
    options: dict[str, Any] = {
        "model": "openai/m", "api_base": url + "/v1", "api_key": "k", "caching": True, "max_tokens": 256,
        "temperature": 0, "messages": [{"role": "user", "content": _PROMPT}],
    }  # fmt: skip

    async def whole() -> None:
        await litellm.acompletion(**options)

    async def stream() -> None:
        async for _ in await litellm.acompletion(**options, stream=True):
            pass

    return {"whole": whole, "stream": stream}


def _langchain(url: str) -> dict[str, Call]:
    from langchain_core.caches import InMemoryCache
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="m", base_url=url + "/v1", api_key="k", temperature=0, max_tokens=256, cache=InMemoryCache()
    )

    async def whole() -> None:
        await model.ainvoke(_PROMPT)

    return {"whole": whole}  # streams pass its cache by


async def _cost(call: Call, count: int) -> float:
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        for _ in range(count):
            await call()
        return (time.process_time() - started) / count * 1e6
    finally:
        gc.enable()


async def measure(url: str, rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Return microseconds of CPU a call, by what is called and how."""
    calls = _ours()
    for name, make in (("LiteLLM, local cache, hit", _litellm), ("LangChain, InMemoryCache, hit", _langchain)):
        try:
            modes = make(url)
        except ImportError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        calls[name] = {}
        for mode, call in modes.items():
            try:
                for _ in range(3):
                    await call()
                    await asyncio.sleep(0.1)  # LiteLLM stores in a task of its own
            except Exception as error:
                print(f"{name}, {mode}: left out: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                calls[name][mode] = call
    best: dict[str, dict[str, float]] = {name: {} for name in calls}
    for _ in range(rounds):
        for name, modes in calls.items():
            for mode, call in modes.items():
                few = count if name.startswith(("bare", "Cache", "Async")) else max(10, count // 10)
                cost = await _cost(call, few)
                best[name][mode] = min(cost, best[name].get(mode, cost))
    return best


def table(best: dict[str, dict[str, float]]) -> str:
    """Return the figures as a Markdown table; over the bare call, and as multiples of our client's hit."""
    lines = ["| | whole, µs | × our client's hit | 64-event stream, µs | × our client's hit |", "|---|---|---|---|---|"]
    ours = best["AsyncClient, hit"]
    for name, cost in best.items():
        cells = [f"{cost[mode]:.1f} | {cost[mode] / ours[mode]:.2f}" if mode in cost else "– | –" for mode in ours]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    over = {mode: best["Cache, hit"][mode] - best["bare provider"][mode] for mode in ours}
    lines.append(f"\nA hit over the bare call: whole {over['whole']:.1f} µs, stream {over['stream']:.1f} µs.")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--json", metavar="FILE")
    options: Any = parser.parse_args()
    logging.disable(logging.WARNING)
    server = subprocess.Popen(
        [sys.executable, "-m", "llmprod.testing.fault_server", "--words", "64"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        best = asyncio.run(measure(url, options.rounds, options.calls))
    finally:
        server.kill()
        server.communicate()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(best, file, indent=1)
            file.write("\n")
    print(table(best))


if __name__ == "__main__":
    main()
