"""The words before the run and the table after it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import stack
from .runner import Board
from .score import Ending, Score, percentile

COLOURS = {
    Ending.RIGHT: "green",
    Ending.LAST_RESORT: "deep_sky_blue1",
    Ending.PARTIAL: "gold3",
    Ending.ERROR: "dark_orange",
    Ending.SILENT: "bold red1",
}


def introduce(console: Console, board: Board) -> None:
    console.print(
        f"{board.total} calls in {board.seconds:g} s, timed like a sample of the Azure LLM inference trace 2023"
        " (CC-BY-4.0), to two simulated providers on loopback sockets that break by a script. A bare HTTP client makes"
        " the same calls at the same time to servers with the same script.",
        highlight=False,
    )
    console.print(stack.SHORTENED, style="dim", highlight=False)


def summarize(console: Console, board: Board, *, interrupted: bool) -> None:
    """Print the table and what it means."""
    ours, bare = board.ours, board.bare
    if not ours.calls:
        console.print("Interrupted before the first answer.")
        return
    title = f"{ours.calls} calls, the same for both" + (" (interrupted)" if interrupted else "")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("")
    table.add_column(ours.name, justify="right", style="bold")
    table.add_column(bare.name, justify="right")
    for ending in Ending:
        table.add_row(Text(ending.value, COLOURS[ending]), _counted(ours, ending), _counted(bare, ending))
    table.add_section()
    table.add_row(*("seconds: p50 / p95 / p99" if not place else "" for place in range(3)), style="dim")
    both = ours.right & bare.right
    table.add_row("  to the first token", _spread(ours.ttfts()), _spread(bare.ttfts()))
    table.add_row("  whole call", _spread(ours.times()), _spread(bare.times()))
    table.add_row("  whole call, if both right", _spread(ours.times(both)), _spread(bare.times(both)))
    table.add_row("attempts per call", *(f"{score.attempts_per_call:.2f}" for score in (ours, bare)))
    table.add_row("served by", _shares(ours), _shares(bare))
    console.print(table)
    console.print(
        "Times are those of right answers; llmprod's tail is the calls it rescued.", style="dim", highlight=False
    )
    for line in _told(board):
        console.print(line, highlight=False)


def _counted(score: Score, ending: Ending) -> str:
    return f"{score.endings[ending]}  {score.share(ending):6.1%}"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return " / ".join(f"{percentile(values, share):.2f}" for share in (0.5, 0.95, 0.99))


def _shares(score: Score) -> str:
    served = score.served_by()
    return "\n".join(f"{name} {count / score.calls:.0%}" for name, count in served.most_common()) or "–"


def _told(board: Board) -> list[str]:
    """What the numbers mean, in a few sentences made from them."""
    ours, bare = board.ours, board.bare
    lines = []
    silent = bare.notes(Ending.SILENT)
    if silent:
        lines.append(
            f"The bare client took {bare.silent} wrong answers for right ones: {_listed(silent)}. A stream that ends"
            " cleanly without its finish, or a web page with status 200, raises nothing."
        )
    errors = bare.notes(Ending.ERROR) + bare.notes(Ending.PARTIAL)
    if errors:
        lines.append(f"It failed with {_listed(errors)}: it asks once, and one place alone.")
    partial = ours.endings[Ending.PARTIAL]
    if partial:
        noun = "stream" if partial == 1 else "streams"
        lines.append(
            f"llmprod: {partial} {noun} broke after text had been shown ({_listed(ours.notes(Ending.PARTIAL))});"
            " the caller got StreamInterrupted with the partial text. They don't count as success."
        )
    failovers = sum(result.failed_over for result in ours.results)
    opened = ", ".join(f"{target.name} {target.opened}×" for target in board.targets)
    lines.append(
        f"llmprod: {failovers} calls were answered by another target than the first; breakers opened: {opened}."
    )
    if ours.silent:
        lines.append(
            f"[bold red]llmprod was silently wrong {ours.silent} times: {_listed(ours.notes(Ending.SILENT))}.[/]"
        )
    return lines


def _listed(notes) -> str:
    return ", ".join(f"{count} × {note}" for note, count in notes.most_common())
