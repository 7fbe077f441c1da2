"""Engines for the tests: tiny random models on the CPU, or what the environment names (for a machine with a GPU).

``LLMPROD_ENGINE_MODEL`` may name another model, and ``LLMPROD_ENGINE_OPTIONS`` hold options of :class:`llmprod.VLLM` as
JSON, such as ``{"load_format": "dummy", "quantization": "fp8"}``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from llmprod import VLLM

ROOT = Path(__file__).resolve().parents[2]
OTHER_MODEL = os.environ.get("LLMPROD_ENGINE_MODEL")
OTHER_OPTIONS: dict[str, Any] = json.loads(os.environ.get("LLMPROD_ENGINE_OPTIONS", "{}"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

PRECISE: dict[str, Any] = {} if OTHER_MODEL else {"dtype": "float32"}
"""An option that makes a greedy or seeded answer the same in every batch, on every CPU, and read from the cache or not.

In bf16 the last bits depend on all three, and of a random model's two likeliest tokens the other may become the first.
"""

PLACES = 64
"""How many requests the shared engine computes together."""

CPU: dict[str, Any] = {
    "max_model_len": 2048,
    "enforce_eager": True,  # a tiny model gains nothing by compilation
    "start_method": "fork",  # starts in 10 seconds instead of 20
    "kv_cache_gib": 1,
    "progress": False,
    **PRECISE,
}


def tool(name: str, *arguments: str) -> None:
    """Run one of the repository's tools."""
    done = subprocess.run([sys.executable, str(ROOT / "tools" / name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def engine(model: Path | str, **options: Any) -> VLLM:
    """Return a provider with the usual options."""
    base = OTHER_OPTIONS if OTHER_MODEL else CPU
    return VLLM(OTHER_MODEL or str(model), **{**base, "progress": False, **options})


def sober(model: Path | str) -> dict[str, int]:
    """Return a ``logit_bias`` that keeps a random model to words of printable ASCII.

    Grammars allow more inside JSON than a test can read: a raw control character, which no parser takes; blanks, which
    have no end; and half characters, which come out as several U+FFFD, more than ``maxLength`` allows. From those no
    engine gets back to the tokens that it said, either.
    """
    vocabulary: dict[str, int] = json.loads((Path(model) / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    blank = chr(0x120)  # how byte-level BPE writes it
    printable = {*map(chr, range(0x21, 0x7F)), blank}
    return {
        str(number): -100 for word, number in vocabulary.items() if not set(word) <= printable or set(word) == {blank}
    }


def plain(model: Path | str) -> dict[str, int]:
    """Return a ``logit_bias`` that keeps a random model to words of small letters, each of them one token.

    Where such a text is cut, its tokens are those that were said: an engine that goes on from it goes on the same.
    """
    tokenizer = json.loads((Path(model) / "tokenizer.json").read_text("utf-8"))
    words: dict[str, int] = tokenizer["model"]["vocab"] | {
        word["content"]: word["id"] for word in tokenizer["added_tokens"]
    }
    return {str(number): -100 for word, number in words.items() if not re.fullmatch(chr(0x120) + "[a-z]{2,}", word)}


async def until(true: Callable[[], object], seconds: float = 300.0) -> None:
    """Wait until it is true; the limit is for what never comes, even where a start takes a minute."""
    with anyio.fail_after(seconds):
        while not true():  # noqa: ASYNC110 - a state that is told nowhere
            await anyio.sleep(0.05)


async def in_order_of_priority(local: VLLM, places: int, ask: Callable[[int, int], Awaitable[object]]) -> None:
    """Require that of those who wait for a place in the batch, the ones with a higher priority get it first.

    ``ask(tokens, priority)`` asks for so many tokens. Long answers hold all places until the others wait; then one
    place is given up, and they go through it one after the other.
    """
    order: list[int] = []
    async with anyio.create_task_group() as holding:
        place = anyio.CancelScope()

        async def hold(scope: anyio.CancelScope) -> None:
            with scope:
                await ask(1900, 0)

        async def one(priority: int) -> None:
            await ask(3, priority)
            order.append(priority)

        for number in range(places):
            holding.start_soon(hold, place if number == 0 else anyio.CancelScope())
        await until(lambda: local.stats().running == places)
        for waiting, priority in enumerate((0, 0, 0, 5, 9, 5), start=1):
            holding.start_soon(one, priority)
            await until(lambda waiting=waiting: local.stats().waiting == waiting)
        place.cancel()
        await until(lambda: len(order) == 6)
        holding.cancel_scope.cancel()
    assert order == [9, 5, 5, 0, 0, 0]


def processes(parent: int | None = None) -> list[int]:
    """Return the ids of the living processes below ``parent`` (this one), at any depth."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    left = list(children.get(parent or os.getpid(), ()))
    while left:
        one = left.pop()
        found.append(one)
        left.extend(children.get(one, ()))
    return found


def alive(pid: int) -> bool:
    """Say whether the process runs: one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def gone(pids: list[int]) -> None:
    """Require that the processes end soon (a busy machine has a minute); end those that don't."""
    limit = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
