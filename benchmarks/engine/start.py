"""How long a start takes, and the first call after it: python -m benchmarks.engine.start --model … [--options …]"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

from llmprod import VLLM, AsyncClient


async def main() -> None:
    parser = argparse.ArgumentParser(description="Start an engine, ask it once, stop it.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--options", type=json.loads, default={}, help="options of VLLM as JSON")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    async with VLLM(options.model, **options.options) as local:
        times = local.start_times
        assert times is not None
        print(f"start {times!r}")
        async with AsyncClient(local) as client:
            response = await client.generate(
                "Say something.", max_tokens=options.tokens, extra={"vllm": {"ignore_eos": True}}
            )
        usage = response.usage
        assert usage is not None
        assert usage.total_output == options.tokens, usage
        print(f"first call {response.timing}, {usage.total_output} tokens")
        print(local.stats())
    if options.out:
        seconds = {name: round(value, 2) for name, value in vars(times).items()}
        found = {"options": options.options, "start": {**seconds, "total": round(times.total, 2)}}
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
