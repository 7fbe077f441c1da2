"""The script as a strip along time, above it the clock, below it what the breakers did."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from llmprod.mechanisms.circuit_breaker import BreakerState

from .runner import Board, TargetState
from .servers import LENGTH, SCRIPTS, Fault

LABELS = 11
MARKS = {
    BreakerState.CLOSED: ("━", "not dim green"),
    BreakerState.HALF_OPEN: ("━", "not dim gold3"),
    BreakerState.OPEN: ("━", "not dim red1"),
}


def strips(board: Board, width: int) -> Iterable[Text]:
    """Seven lines."""
    columns = width - LABELS
    cursor = min(columns - 1, int(board.elapsed / board.seconds * columns))
    yield _clock(board.seconds, columns, cursor)
    for target in board.targets:
        yield _faults(target, columns, cursor)
        yield _breaker(target, board.seconds, columns)
        yield _now(target, width)


def _clock(seconds: float, columns: int, cursor: int) -> Text:
    line = [" "] * columns
    for tenth in range(0, 10, 2):
        for place, letter in enumerate(f"{seconds * tenth / 10:g} s"):
            line[tenth * columns // 10 + place] = letter
    line[cursor] = "▼"
    text = Text(" " * LABELS + "".join(line), "dim")
    text.stylize("not dim bold white", LABELS + cursor, LABELS + cursor + 1)
    return text


def _faults(target: TargetState, columns: int, cursor: int) -> Text:
    text = Text(f"{target.name:<{LABELS}}", "bold")
    at = 0
    for fault in SCRIPTS[target.route]:
        start, end = (round(time / LENGTH * columns) for time in (fault.start, fault.end))
        text.append("·" * (start - at), "not bold bright_black")
        text.append(f"{fault.short:^{end - start}.{end - start}}", _style(fault, cursor, start, end))
        at = end
    return text.append("·" * (columns - at), "not bold bright_black")


def _style(fault: Fault, cursor: int, start: int, end: int) -> str:
    if cursor < start:
        return f"not bold {fault.colour} on grey15"
    return f"bold black on {fault.colour}" if cursor < end else f"not bold black on {fault.colour}"


def _breaker(target: TargetState, seconds: float, columns: int) -> Text:
    """One mark a column that is past: the worst state seen in it."""
    order = list(MARKS)
    worst: dict[int, BreakerState] = {}
    for time, state in target.history:
        column = int(time / seconds * columns)
        worst[column] = max(worst.get(column, state), state, key=order.index)
    text = Text(f"{'breaker':<{LABELS}}", "dim")
    state = BreakerState.CLOSED
    for column in range(min(columns, max(worst, default=-1) + 1)):
        state = worst.get(column, state)
        text.append(*MARKS[state])
    return text


def _now(target: TargetState, width: int) -> Text:
    text = Text(f"{'now':<{LABELS}}", "dim", no_wrap=True, overflow="ellipsis")
    fault = target.fault
    if fault is None:
        return text.append("healthy", "not dim green")
    share = "" if fault.share == 1 else f" ({fault.share:.0%} of requests)"
    text.append(fault.what, f"not dim {fault.colour}").append(share)
    text.truncate(width, overflow="ellipsis")
    return text
