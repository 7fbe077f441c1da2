"""usage: python -m benchmarks.engine [--model FOLDER] [--options JSON] [--concurrency 1,8,32,64] [--rounds 3] …

Needs an environment with vLLM (`make test-vllm` makes one for the CPU). Without --model it makes the tiny random one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engine import targets
from benchmarks.engine.load import Measured, batches, closed_loop, median
from llmprod import VLLM

CPU = {"max_model_len": 2048, "enforce_eager": True, "start_method": "fork", "kv_cache_gib": 1}
OURS_ALONE = ("start_method", "kv_cache_gib", "one_process", "warm", "env")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The embedded engine beside vLLM's own ways to be used.")
    parser.add_argument("--model", help="a folder or a name (default: the tiny random model)")
    parser.add_argument("--options", type=json.loads, default=CPU, help="options of VLLM as JSON")
    parser.add_argument("--concurrency", default="1,8,32,64")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--calls", type=int, default=4, help="calls for each of the callers")
    parser.add_argument("--least", type=int, default=16, help="calls in a round at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-server", action="store_true", help="leave out vllm serve")
    parser.add_argument("--no-batches", action="store_true", help="leave out static batches")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


async def one_engine(local: VLLM, options: argparse.Namespace, levels: list[int]) -> list[Measured]:
    """Measure bare AsyncLLM and this library on the same engine, in turns."""
    bare = targets.Bare(local)
    await bare.start()
    found: list[Measured] = []
    base = 0
    for level in levels:
        calls = max(options.least, options.calls * level)
        lengths = [options.tokens] * calls
        rounds: dict[tuple[str, str], list[Measured]] = {}
        for turn in range(options.rounds + 1):
            plan: list[tuple[str, str, Any, bool]] = []
            for mode in ("stream", "whole"):
                stream = mode == "stream"
                plan += [
                    ("bare AsyncLLM", mode, bare.ask(stream), True),
                    ("VLLM, standard stack", mode, targets.ours(local, "vllm", stream=stream, standard=True), False),
                    ("VLLM, no wrappers", mode, targets.ours(local, "vllm", stream=stream, standard=False), False),
                ]
            plan.append(("Client, threads", "whole", targets.threads(local, level), False))
            if turn % 2:
                plan.reverse()
            for name, mode, ask, at_home in plan:
                base += calls
                work = (name, mode, ask, lengths, level, base)
                measured = await (bare.run(closed_loop, *work) if at_home else closed_loop(*work))
                if turn:  # the first turn warms up
                    rounds.setdefault((name, mode), []).append(measured)
        found += [median(measured) for measured in rounds.values()]
        show(found, level)
    return found


async def how_batches_compare(local: VLLM, options: argparse.Namespace) -> list[Measured]:
    """Answers of mixed lengths: continuously, in static batches, one by one."""
    bare = targets.Bare(local)
    await bare.start()
    chance = random.Random(1)
    lengths = [chance.randint(16, 256) for _ in range(128)]
    ask = bare.ask(False)
    found: list[Measured] = []
    for size in (8, 32):
        found.append(await bare.run(batches, f"static batches of {size}", ask, lengths, size, 10_000_000))
        found.append(
            await bare.run(closed_loop, f"continuous, {size} at once", "whole", ask, lengths, size, 11_000_000)
        )
    mapped = targets.ours(local, "vllm", stream=False, standard=True)
    found.append(await closed_loop("VLLM, 32 at once", "whole", mapped, lengths, 32, 12_000_000))
    found.append(await bare.run(closed_loop, "one by one", "whole", ask, lengths[:32], 1, 13_000_000))
    return found


async def by_server(url: str, options: argparse.Namespace, levels: list[int]) -> list[Measured]:
    """Measure ``vllm serve`` through OpenAI's SDK and through this library."""
    found: list[Measured] = []
    base = 20_000_000
    async with targets.openai_sdk(url) as sdk:
        for level in levels:
            calls = max(options.least, options.calls * level)
            rounds: dict[tuple[str, str], list[Measured]] = {}
            for turn in range(options.rounds + 1):
                for mode in ("stream", "whole"):
                    for name, ask in (
                        ("vllm serve, openai SDK", sdk(mode == "stream")),
                        ("vllm serve, OpenAICompatible", targets.compatible(url, stream=mode == "stream")),
                    ):
                        base += calls
                        measured = await closed_loop(name, mode, ask, [options.tokens] * calls, level, base)
                        if turn:
                            rounds.setdefault((name, mode), []).append(measured)
            found += [median(measured) for measured in rounds.values()]
            show(found, level)
    return found


def show(found: list[Measured], level: int) -> None:
    """Print the rows of one concurrency."""
    for measured in found:
        if measured.concurrency == level:
            row = measured.summary()
            ttft = f"ttft {row['ttft_p50_ms']} / {row['ttft_p95_ms']} ms" if "ttft_p50_ms" in row else ""
            cpu = f"cpu {row['cpu_us_per_token']:7} us/tok"
            print(
                f"{level:4d}  {measured.mode:6s}  {measured.target:30s} {measured.speed:9.1f} tok/s  {cpu}  {ttft}",
                flush=True,
            )


def make_tiny(folder: str) -> None:
    """Write the tiny random model."""
    tool = Path(__file__).resolve().parents[2] / "tools" / "make_tiny_model.py"
    subprocess.run([sys.executable, str(tool), folder], check=True, capture_output=True)


async def main() -> None:
    options = arguments()
    levels = [int(level) for level in options.concurrency.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            make_tiny(folder)
            model = folder
        local = VLLM(model, **options.options)
        await local.start()
        version = local._engine.current.modules.version
        times = repr(local.start_times)
        print(f"vLLM {version}; {times}")
        results: dict[str, Any] = {"vllm": version, "start": times, "options": options.options, "rows": []}
        found = await one_engine(local, options, levels)
        if not options.no_batches:
            mixed = await how_batches_compare(local, options)
            for measured in mixed:
                print(f"mixed lengths  {measured.target:30s} {measured.speed:9.1f} tok/s")
            results["mixed"] = [measured.summary() for measured in mixed]
        await local.stop()
        if not options.no_server:
            theirs = {name: value for name, value in options.options.items() if name not in OURS_ALONE}
            with targets.server(model, targets.cli_options(theirs)) as url:
                found += await by_server(url, options, levels)
        results["rows"] = [measured.summary() for measured in found]
        bare = {(m.mode, m.concurrency): m.speed for m in found if m.target == "bare AsyncLLM"}
        for measured in found:
            if (measured.mode, measured.concurrency) in bare and measured.target != "bare AsyncLLM":
                share = measured.speed / bare[measured.mode, measured.concurrency]
                row = f"{measured.concurrency:4d}  {measured.mode:6s}  {measured.target:30s}"
                print(f"{row} {share:6.1%} of bare AsyncLLM")
        if options.out:
            options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
