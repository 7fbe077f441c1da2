"""A process that uses a disk store until it is done or killed; its arguments are the folder, a name, and how often.

It reads and writes the same keys as its siblings, and says what it has written, what was wrong and which leases it got.
Now and then it deletes one of the first keys; the last ones stay.
"""

import random
import sys

import anyio

from llmprod.stores.disk import DiskStore

KEYS = 20
STAY = 10
"""The keys from this one on are never deleted."""


def value(key: str, by: str, size: int) -> bytes:
    return (f"{key}|{by}|".encode() * (size // 5 + 1))[:size] + f"|{key}|{by}".encode()


def right(key: str, got: bytes) -> bool:
    """Whether ``got`` is, whole, what somebody set under ``key``."""
    by = got.rpartition(b"|")[2].decode()
    return got == value(key, by, len(got) - len(f"|{key}|{by}"))


async def main(folder: str, name: str, rounds: int) -> None:
    store = DiskStore(folder, timeout=60)
    chance = random.Random(name)
    print("ready", flush=True)
    for number in range(rounds):
        key = f"key {chance.randrange(KEYS)}"
        size = chance.choice((0, 10, 1000, 5000, 40_000, 100_000))
        await store.set(key, value(key, f"{name}.{number}", size))
        print(f"set {number} {key}", flush=True)
        key = f"key {chance.randrange(KEYS)}"
        got = await store.get(key)
        if got is not None and not right(key, got):
            print(f"wrong {key}", flush=True)
        if await store.add(f"lease {number}", name.encode()):
            print(f"lease {number}", flush=True)
        if number % 10 == 9:
            await store.delete(f"key {chance.randrange(STAY)}")
    await store.aclose()
    print("done", flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
