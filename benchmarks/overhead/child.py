"""One library in a process of its own: ``python -m benchmarks.overhead.child NAME WHOLE_URL STREAM_URL``.

Reads ``mode count`` lines from standard input and answers each with the CPU seconds a call.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time


async def _serve(name: str, whole_url: str, stream_url: str) -> None:
    from benchmarks.overhead.targets import TARGETS
    from llmprod.testing.fault_server import words

    whole, _, close_whole = TARGETS[name](whole_url)
    _, stream, close_stream = TARGETS[name](stream_url)
    wanted = words(64)
    for call in (whole, stream):
        for _ in range(5):
            got = await call()
            if got != wanted:
                raise SystemExit(f"{name}: {len(got)} characters instead of {len(wanted)}")
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        mode, count = line.split()
        call = whole if mode == "whole" else stream
        gc.collect()
        started = time.process_time()
        for _ in range(int(count)):
            await call()
        print((time.process_time() - started) / int(count), flush=True)
    await close_whole()
    await close_stream()


if __name__ == "__main__":
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    asyncio.run(_serve(*sys.argv[1:4]))
