"""A closed loop of callers, and what is measured of it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Measured:
    """One round of one target.

    Attributes:
        target: who answered.
        mode: ``stream`` or ``whole``.
        concurrency: calls at once.
        calls, tokens: answered.
        seconds: from the first call to the last answer.
        cpu: CPU seconds of this process (the engine's own processes are not in it).
        ttft: seconds to the first token of each stream.
    """

    target: str
    mode: str
    concurrency: int
    calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    ttft: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Answer tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = asdict(self) | {"tokens_per_second": round(self.speed, 1)}
        ordered = sorted(values.pop("ttft"))
        if ordered:
            values["ttft_p50_ms"] = round(1000 * ordered[len(ordered) // 2], 2)
            values["ttft_p95_ms"] = round(1000 * ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 2)
        values["cpu_us_per_token"] = round(1e6 * self.cpu / self.tokens, 1) if self.tokens else None
        for name in ("seconds", "cpu"):
            values[name] = round(values[name], 3)
        return values


Ask = Callable[[int, int], Awaitable[tuple[int, float | None]]]
"""Asks for answer number n of so many tokens; returns the tokens it got and the seconds to the first."""


async def closed_loop(
    target: str, mode: str, ask: Ask, lengths: Sequence[int], concurrency: int, base: int
) -> Measured:
    """Let ``concurrency`` callers work off answers of the given lengths, each taking the next one when it is done."""
    measured = Measured(target, mode, concurrency)
    numbers = iter(range(len(lengths)))
    cpu, started = time.process_time(), time.monotonic()

    async def caller() -> None:
        for number in numbers:
            tokens, ttft = await ask(base + number, lengths[number])
            measured.calls += 1
            measured.tokens += tokens
            if ttft is not None:
                measured.ttft.append(ttft)

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    measured.seconds = time.monotonic() - started
    measured.cpu = time.process_time() - cpu
    return measured


async def batches(target: str, ask: Ask, lengths: Sequence[int], size: int, base: int) -> Measured:
    """Work off the same in batches: the next one begins when the whole batch is done."""
    measured = Measured(target, "whole", size)
    cpu, started = time.process_time(), time.monotonic()
    for first in range(0, len(lengths), size):
        batch = range(first, min(first + size, len(lengths)))
        for tokens, _ in await asyncio.gather(*(ask(base + number, lengths[number]) for number in batch)):
            measured.calls += 1
            measured.tokens += tokens
    measured.seconds = time.monotonic() - started
    measured.cpu = time.process_time() - cpu
    return measured


def median(rounds: Sequence[Measured]) -> Measured:
    """Return the round of middle speed, with every round's first tokens."""
    ordered = sorted(rounds, key=lambda measured: measured.speed)
    middle = ordered[len(ordered) // 2]
    return Measured(
        middle.target, middle.mode, middle.concurrency, middle.calls, middle.tokens, middle.seconds,
        statistics.median(measured.cpu for measured in rounds),
        [value for measured in rounds for value in measured.ttft],
    )  # fmt: skip
