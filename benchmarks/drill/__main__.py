"""usage: python -m benchmarks.drill [--model FOLDER] [--options JSON] [--rate 10] [--seconds 3] [--out FILE]

Local and hosted together under steady traffic, while one or the other fails. Hosted is the library's fault server on a
loopback socket, local a real engine in this process. Needs an environment with vLLM (`make test-vllm` makes one for the
CPU). Without --model it makes the tiny random one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.drill import scenarios
from benchmarks.drill.scenarios import FAULTS, HEALTHY, Burst, Outage
from llmprod import VLLM, standard
from llmprod.testing import FaultServer

CPU = {"max_model_len": 2048, "enforce_eager": True, "start_method": "fork", "kv_cache_gib": 1, "max_num_seqs": 32}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Local and hosted together, while one or the other fails.")
    parser.add_argument("--model", help="a folder or a name (default: the tiny random model)")
    parser.add_argument("--options", type=json.loads, default=CPU, help="options of VLLM as JSON")
    parser.add_argument("--rate", type=float, default=10.0, help="calls a second")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of an outage of the hosted provider")
    parser.add_argument("--calls", type=int, default=300, help="calls of the burst")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/drill.json"))
    return parser.parse_args()


async def main(options: argparse.Namespace, model: str) -> None:
    engine = VLLM(model, **options.options)
    found: list[Outage | Burst] = []
    await engine.start()  # before the server listens: a forked engine would hold its socket open
    try:
        with FaultServer(HEALTHY) as server:
            hosted_first, engine_first = scenarios.stacks(engine, server)
            print(scenarios.HEAD)
            for fault in FAULTS:
                outage, _ = await scenarios.hosted_dies(
                    hosted_first, server, fault, rate=options.rate, seconds=options.seconds
                )
                print(outage.row(), flush=True)
                found.append(outage)
            outage, _ = await scenarios.engine_is_killed(engine_first, engine, rate=options.rate)
            print(outage.row(), flush=True)
            found.append(outage)
            print(f"\n{scenarios.BURST_HEAD}")
            for what, stack in (("engine alone", standard(engine)), ("local_first", engine_first)):
                came = await scenarios.burst(what, stack, engine, calls=options.calls)
                print(came.row(), flush=True)
                found.append(came)
    finally:
        await engine.stop()
    options.out.write_text(json.dumps(scenarios.record(*found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    asked = arguments()
    with tempfile.TemporaryDirectory() as folder:
        if asked.model is None:
            subprocess.run([sys.executable, "tools/make_tiny_model.py", folder], check=True)
        asyncio.run(main(asked, asked.model or folder))
