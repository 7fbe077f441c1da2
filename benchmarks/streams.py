"""Many streams at once in one process: ``python -m benchmarks.streams [--count N] [--engine httpx|pyreqwest]``."""

from __future__ import annotations

import argparse
import gc
import resource
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import anyio

from llmprod import AsyncClient, HTTPOptions, OpenAI, Static
from llmprod.testing.fault_server import words


async def measure(url: str, count: int, engine: str, *, tokens: int = 64, memory: bool = False) -> dict[str, Any]:
    """Open ``count`` streams at once, read them to their ends, and tell how many were whole and what they took."""
    wanted = words(tokens)
    client = AsyncClient(
        OpenAI("fault-model", base_url=f"{url}/v1", api_key="none", http=HTTPOptions(engine=engine)),
        fallbacks=[Static("lost")],
    )
    whole = 0
    peak = 0
    opened = anyio.Event()
    ready = 0
    waiting = anyio.Event()

    async def one() -> None:
        nonlocal whole, ready
        async with client.stream("Count.", max_tokens=256) as response:
            ready += 1
            if ready == count:
                opened.set()
            await waiting.wait()
            await response.read()
            whole += response.text == wanted

    await client.generate("Count.", max_tokens=256)
    gc.collect()
    if memory:
        tracemalloc.start()
        base = tracemalloc.get_traced_memory()[0]
    cpu, started = time.process_time(), time.monotonic()
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(one)
        await opened.wait()  # all are open at once, each with its first content there
        if memory:
            peak = tracemalloc.get_traced_memory()[0] - base
            tracemalloc.stop()
        waiting.set()
    await client.aclose()
    return {
        "streams": count,
        "whole": whole,
        "cpu_ms_a_stream": (time.process_time() - cpu) / count * 1000,
        "seconds": time.monotonic() - started,
        "kib_a_stream": peak / count / 1024,
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure and print; exits with 1 if a stream was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--engine", choices=["httpx", "pyreqwest"], default="httpx")
    options: Any = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "llmprod.testing.fault_server", "--words", "64", "--token-delay", "0.05"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    try:
        figures = anyio.run(measure, url, options.count, options.engine)
        figures["kib_a_stream"] = anyio.run(lambda: measure(url, options.count, options.engine, memory=True))[
            "kib_a_stream"
        ]
    finally:
        server.kill()
        server.communicate()
    for name, value in figures.items():
        print(f"{name:>16}  {value:.2f}" if isinstance(value, float) else f"{name:>16}  {value}")
    sys.exit(figures["whole"] != options.count)


if __name__ == "__main__":
    main()
