"""Progress as plain lines, where no live view is possible: pipes, CI, small terminals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .runner import Board
from .score import Ending, Score


async def show(board: Board, write: Callable[[str], None]) -> None:
    """Write a line every few seconds until cancelled."""
    every = max(1.0, board.seconds / 9)
    while True:
        await asyncio.sleep(every)
        write(line(board))


def line(board: Board) -> str:
    faults = ", ".join(f"{target.name} {target.fault.short}" for target in board.targets if target.fault)
    breakers = ", ".join(f"{target.name} {target.breaker.value}" for target in board.targets)
    return (
        f"{board.elapsed:4.0f} s  {_counts(board.ours)}  |  {_counts(board.bare)}  |  breakers: {breakers}"
        f"  |  now: {faults or 'no fault'}"
    )


def _counts(score: Score) -> str:
    ends = score.endings
    return (
        f"{score.name}: {ends[Ending.RIGHT]} right of {score.calls}, {ends[Ending.PARTIAL]} broken,"
        f" {ends[Ending.ERROR]} errors, {ends[Ending.SILENT]} silently wrong"
    )
