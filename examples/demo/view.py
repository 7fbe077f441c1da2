"""The live view."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmprod.mechanisms.circuit_breaker import BreakerState

from . import timeline
from .report import COLOURS
from .runner import Board
from .score import Ending, Result, Score, percentile

WIDTH, HEIGHT = 78, 23
FRAMES = 8
BREAKERS = {
    BreakerState.CLOSED: ("●", "closed", "green"),
    BreakerState.OPEN: ("○", "open", "red"),
    BreakerState.HALF_OPEN: ("◐", "half open", "yellow"),
}


def fits(console: Console) -> bool:
    """Whether the terminal is large enough."""
    return console.width >= WIDTH and console.height >= HEIGHT


async def show(board: Board, console: Console) -> None:
    """Draw until cancelled."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(render(board, console.width, console.height), refresh=True)
            await asyncio.sleep(1 / FRAMES)


def render(board: Board, width: int, height: int) -> RenderableType:
    """One frame. The latest calls get the lines that are left over."""
    parts: list[RenderableType] = [
        _head(board, width),
        *timeline.strips(board, width),
        Text(),
        _targets(board, width),
        Text(),
        _scores(board, width),
        *(_bar(score, board.total, width) for score in (board.ours, board.bare)),
    ]
    used = 20
    if height >= 28:
        parts.append(Text())
        used += 1
    return Group(*parts, *_latest(board, width, height - used))


def _head(board: Board, width: int) -> Text:
    left = Text.assemble(("llmprod", "bold"), f"  standard stack, {board.total} calls timed like a trace")
    done = min(board.elapsed, board.seconds)
    right = f"{done:4.1f} of {board.seconds:g} s" if not done >= board.seconds else "waiting for the last calls"
    gap = max(1, width - left.cell_len - len(right))
    return left.append(" " * gap).append(right, "bold")


def _targets(board: Board, width: int) -> Table:
    table = _table(width)
    table.add_column(Text("target", "dim"), min_width=10)
    table.add_column(Text("breaker", "dim"), min_width=13)
    for heading in ("in flight", "attempts", "ok", "failed", "passed over", "answered"):
        table.add_column(Text(heading, "dim"), justify="right", min_width=6)
    served = board.ours.served_by()
    rows = [(target.name, _breaker(target), str(target.in_flight)) for target in board.targets]
    for name, breaker, in_flight in (*rows, ("static", Text("last resort", "dim"), "")):
        steps = board.ours.steps[name]
        share = served[name] / board.ours.calls if board.ours.calls else 0.0
        table.add_row(
            Text(name, "bold"), breaker, in_flight, str(steps["ok"] + steps["failed"]), str(steps["ok"]),
            _count(steps["failed"], "yellow"), _count(steps["skipped"], "cyan"), f"{share:.0%}",
        )  # fmt: skip
    return table


def _breaker(target) -> Text:
    mark, word, colour = BREAKERS[target.breaker]
    left = f" {target.opens_in:.1f} s" if target.breaker is BreakerState.OPEN else ""
    return Text(f"{mark} {word}{left}", colour)


HEADINGS = {
    Ending.RIGHT: "\nright",
    Ending.LAST_RESORT: "last\nresort",
    Ending.PARTIAL: "broken,\nmarked",
    Ending.ERROR: "clear\nerror",
    Ending.SILENT: "silently\nwrong",
}


def _scores(board: Board, width: int) -> Table:
    table = _table(width)
    table.add_column("", min_width=10)
    for ending, heading in HEADINGS.items():
        table.add_column(Text(heading, COLOURS[ending]), justify="right", min_width=9 if ending is Ending.RIGHT else 5)
    for heading in ("first token", "whole call"):
        table.add_column(Text(f"{heading}\np50 / p95 s", "dim"), justify="right", min_width=11)
    for score in (board.ours, board.bare):
        counts = [_count(score.endings[ending], COLOURS[ending]) for ending in HEADINGS]
        counts[0].append(f" {score.share(Ending.RIGHT):4.0%}", "dim")
        table.add_row(Text(score.name, "bold"), *counts, _pair(score.ttfts()), _pair(score.times()))
    return table


def _pair(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{percentile(values, 0.5):.2f} / {percentile(values, 0.95):.2f}"


def _bar(score: Score, total: int, width: int) -> Text:
    """All calls of the run as a line; each ended one has the colour of its ending."""
    bar = Text(f"{score.name:<11}")
    length, drawn, seen = width - 11, 0, 0
    for ending in HEADINGS:
        seen += score.endings[ending]
        until = round(seen / total * length)
        bar.append("█" * (until - drawn), COLOURS[ending])
        drawn = until
    return bar.append("─" * (length - drawn), "bright_black")


def _latest(board: Board, width: int, lines: int) -> Iterable[Text]:
    title, aside = "latest calls that met a fault", "the same call, bare"
    gap = " " * (width - len(title) - len(aside))
    yield Text.assemble((title, "bold"), gap, (aside, "dim"))
    for result in list(board.ours.troubled)[::-1][: max(0, lines - 1)]:
        yield _call(result, board.bare.by_call.get(result.call.number), width)


def _call(result: Result, bare: Result | None, width: int) -> Text:
    kind = "stream" if result.call.stream else "whole "
    line = Text.assemble((f"#{result.call.number:<4}{kind} ", "dim"))
    for place, step in enumerate(result.steps):
        line.append(" → " if place else "", "dim")
        if step.wait:
            line.append(f"waited {step.wait:.1f} s, ", "dim")
        colour = {"ok": "green", "failed": "yellow", "skipped": "cyan"}[step.state]
        line.append(f"{step.target} ").append(step.label, colour)
    if result.ending is Ending.PARTIAL:
        line.append(" → partial, marked", COLOURS[Ending.PARTIAL])
    line.append(f"  {result.seconds:.2f} s", "dim")
    other = Text("…", "dim") if bare is None else Text(bare.note or "right", COLOURS[bare.ending])
    room = width - other.cell_len - 2
    line.truncate(room, overflow="ellipsis")
    return line.append(" " * (room - line.cell_len + 2)).append_text(other)


def _count(number: int, colour: str) -> Text:
    return Text(str(number), colour if number else "bright_black")


def _table(width: int) -> Table:
    return Table(box=None, padding=(0, 1 if width < 90 else 2, 0, 0), pad_edge=False, header_style="", width=width)
