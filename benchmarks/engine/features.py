"""What prefix caching and n-gram speculation gain: python -m benchmarks.engine.features --model … --out …"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from llmprod import VLLM, AsyncClient, NGram

SAID = "the fox saw the hen and the hen saw the farmer and the farmer saw the fox again"
WORDS = SAID.split(" ")


def text(words: int, start: int) -> str:
    """Return so many words that begin like no other text."""
    return f"{start} " + " ".join(WORDS[(start + place) % len(WORDS)] for place in range(words))


async def prefix_caching(local: VLLM, words: int) -> dict[str, Any]:
    """Time to the first token of long prompts: never seen, and with all but the last question seen before."""
    client = AsyncClient(local)

    async def ttft(prompt: str) -> float:
        async with client.stream(prompt, max_tokens=4, temperature=0, extra={"vllm": {"ignore_eos": True}}) as stream:
            await stream.read()
        assert stream.timing.ttft is not None
        return stream.timing.ttft

    await ttft(text(words, 999))
    cold = [await ttft(text(words, 1000 + 31 * number) + f" Question {number}?") for number in range(12)]
    shared = text(words, 7)
    await ttft(shared)
    warm = [await ttft(shared + f" Question {number}?") for number in range(12)]
    stats = local.stats()
    return {
        "prompt_words": words,
        "ttft_cold_ms": round(1000 * statistics.median(cold), 2),
        "ttft_warm_ms": round(1000 * statistics.median(warm), 2),
        "cached_tokens": stats.cached_tokens,
        "prompt_tokens_computed": stats.prompt_tokens,
    }


async def repetitive(local: VLLM, level: int, tokens: int) -> dict[str, Any]:
    """Speed on prompts whose words come again and again."""
    client = AsyncClient(local)

    async def one(number: int) -> int:
        response = await client.generate(
            text(120, number), max_tokens=tokens, temperature=0, extra={"vllm": {"ignore_eos": True}}
        )
        return response.usage.total_output if response.usage else 0

    await asyncio.gather(*(one(number) for number in range(level)))
    started = time.monotonic()
    counts = await asyncio.gather(*(one(100 + number) for number in range(2 * level)))
    seconds = time.monotonic() - started
    stats = local.stats()
    return {
        "at_once": 2 * level,
        "tokens_per_second": round(sum(counts) / seconds, 1),
        "draft_tokens": stats.draft_tokens,
        "acceptance_rate": stats.acceptance_rate,
    }


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--words", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, extra in (("plain", {}), ("ngram", {"speculative": NGram(tokens=4)})):
        try:
            local = VLLM(options.model, **options.options, **extra)
            await local.start()
            results[f"{name} start"] = repr(local.start_times)
            if name == "plain":
                results["prefix caching"] = await prefix_caching(local, options.words)
            for level in (1, 8):
                results[f"{name}, repetitive, {2 * level} at once"] = await repetitive(local, level, options.tokens)
            await local.stop()
        except Exception as error:
            traceback.print_exc()
            results[f"{name} failed"] = f"{type(error).__name__}: {error}"
    print(json.dumps(results, indent=1))
    options.out.write_text(json.dumps(results, indent=1))
    if any(name.endswith(" failed") for name in results):
        sys.exit(1)


if __name__ == "__main__":
    asyncio.run(main())
