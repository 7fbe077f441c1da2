"""What happened in a call, attempt by attempt; prints as a table and renders in a notebook. Never holds prompt text."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, Literal

from llmprod.errors import CallError
from llmprod.verdict import Action, classify

if TYPE_CHECKING:
    from llmprod.context import Context
    from llmprod.cost import Cost
    from llmprod.decisions import Decision
    from llmprod.provider import BaseProvider
    from llmprod.request import Request
    from llmprod.response import Outcome, Response
    from llmprod.usage import Usage

__all__ = ["Attempt", "AttemptEnd", "Trace"]

State = Literal["running", "ok", "failed", "interrupted", "cancelled", "closed", "abandoned", "skipped"]


@dataclass(slots=True)
class Attempt:
    """One attempt at one target, or the decision to skip it.

    Attributes:
        target: the target's name, such as ``openai:gpt-5``.
        started: seconds since the call began.
        wait: seconds of backoff before it.
        state: how it ended: ``ok``, ``failed`` (nothing was shown), ``interrupted`` (after content was shown),
            ``cancelled``, ``closed`` (the caller stopped reading), ``abandoned`` (dropped unread), ``skipped`` (the
            target was not asked), or still ``running``.
        seconds: how long it took until its end; None while running.
        ttft: seconds from its start to its first content; None where none came or the answer came whole.
        verdict: what its error meant to the wrappers.
        error: the error's class name.
        status: HTTP status.
        reason: in a few words, why it failed or was skipped.
        usage: tokens, as far as known.
        model: exact id of the model that answered; None where none did.
        cost: what it cost, once the call has ended; None where nothing in the stack counts costs.
    """

    target: str
    started: float
    wait: float = 0.0
    state: State = "running"
    seconds: float | None = None
    ttft: float | None = None
    verdict: Action | None = None
    error: str | None = None
    status: int | None = None
    reason: str | None = None
    usage: Usage | None = None
    model: str | None = None
    cost: Cost | None = None

    def failed(self, error: BaseException, now: float, *, state: State = "failed") -> None:
        """Note that the attempt ended in ``error``."""
        self.state = state
        self.seconds = now - self.started
        self.error = type(error).__name__
        if state == "failed":  # a cancelled or interrupted attempt leaves nothing to decide
            self.verdict = classify(error).action
        if isinstance(error, CallError):
            self.status, self.usage = error.status, error.usage or self.usage
            reason = error.code or error.detail
            self.reason = None if reason == self.error else reason

    def ended(self, outcome: Outcome, now: float) -> None:
        """Note how a response ended; the callback for ``response.on_close``."""
        if outcome.error is not None:
            state: State = "cancelled" if outcome.kind == "cancelled" else "interrupted"
            self.failed(outcome.error, now, state=state)
        else:
            self.state = outcome.kind if outcome.kind != "error" else "interrupted"
            self.seconds = now - self.started
        self.usage = outcome.usage or self.usage


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """An attempt that is over, for what counts its cost.

    Attributes:
        attempt: its entry in the trace.
        provider: who was asked.
        request: for what, as it was sent.
        response: the answer, as far as it came; None where nothing was shown.
        error: what ended it; None for an answer that is complete, and for one that was closed unread.
        context: what the attempt was made with.
    """

    attempt: Attempt
    provider: BaseProvider
    request: Request
    response: Response | None
    error: BaseException | None
    context: Context


class Trace:
    """The attempts of one call in order, and what was decided between them; ``print(response.trace)`` shows a table.

    Attributes:
        entries: attempts, and targets that were skipped.
        decisions: what the wrappers decided, in order; see :class:`llmprod.Decision`.
        costs_due: waits until costs are there that the price data was not loaded for yet; None where none are awaited.
    """

    __slots__ = ("_places", "_wait", "costs_due", "decisions", "entries")

    def __init__(self) -> None:
        self.entries: list[Attempt] = []
        self.decisions: list[Decision] = []
        self.costs_due: Callable[[], object] | None = None
        self._places: list[int] = []
        self._wait = 0.0

    @property
    def attempts(self) -> list[Attempt]:
        """Attempts that reached a target; skipped ones are in ``entries`` alone."""
        return [entry for entry in self.entries if entry.state != "skipped"]

    @property
    def cost(self) -> Cost | None:
        """What all attempts cost together, those that failed or lost too; None where nothing counts costs."""
        due = self.costs_due
        if due is not None:
            due()
        costs = [entry.cost for entry in self.entries if entry.cost is not None]
        return reduce(add, costs) if costs else None

    def begin(self, target: str, started: float) -> Attempt:
        """Open an attempt ``started`` seconds into the call."""
        attempt = Attempt(target, started, self._wait)
        self._wait = 0.0
        self.entries.append(attempt)
        return attempt

    def skipped(self, target: str, started: float, reason: str, *, error: str | None = None) -> None:
        """Note that a target was not asked, and why."""
        skip = Attempt(target, started, self._wait, state="skipped", seconds=0.0, reason=reason, error=error)
        self._wait = 0.0
        self.entries.append(skip)

    def decided(self, decision: Decision) -> None:
        """Note a decision; ``context.decided`` makes it and tells the listeners too."""
        self.decisions.append(decision)
        self._places.append(len(self.entries))

    def waited(self, seconds: float) -> None:
        """Note a backoff; it is shown with the entry that follows."""
        self._wait += seconds

    def rows(self) -> list[dict[str, Any]]:
        """Return the table as one dict an entry, for data frames and logs; costs in US dollars."""
        due = self.costs_due
        if due is not None:
            due()
        return [
            {
                "target": entry.target,
                "started": entry.started,
                "wait": entry.wait,
                "result": entry.state if entry.error is None else f"{entry.state}: {entry.error}",
                "status": entry.status,
                "reason": entry.reason,
                "verdict": entry.verdict.value if entry.verdict else None,
                "ttft": entry.ttft,
                "seconds": entry.seconds,
                "tokens": entry.usage.total if entry.usage else None,
                "model": entry.model,
                "cost": entry.cost.amount if entry.cost else None,
            }
            for entry in self.entries
        ]

    def __len__(self) -> int:
        return len(self.entries)

    def _cells(self) -> list[list[str]]:
        head = ["#", "at", "waited", "target", "result", "verdict", "ttft", "time", "tokens"]
        body = [
            [
                str(number),
                _seconds(row["started"]),
                _seconds(row["wait"]) if row["wait"] else "",
                row["target"],
                " ".join(str(item) for item in (row["result"], row["status"], row["reason"]) if item is not None),
                row["verdict"] or "",
                _seconds(row["ttft"]),
                _seconds(row["seconds"]),
                "" if row["tokens"] is None else str(row["tokens"]),
            ]
            for number, row in enumerate(self.rows(), 1)
        ]
        costs = [entry.cost for entry in self.entries if entry.cost is not None]
        if any(cost.known and cost.source != "unbilled" for cost in costs):
            head.append("cost")
            for row, entry in zip(body, self.entries, strict=True):
                row.append("" if entry.cost is None else str(entry.cost) if entry.cost.known else "unknown")
        return [head, *self._among(body, len(head))]

    def _among(self, body: list[list[str]], columns: int) -> list[list[str]]:
        """The attempts' rows, with those of the decisions where they were made."""
        merged: list[list[str]] = []
        decided = 0
        for place in range(len(body) + 1):
            while decided < len(self.decisions) and self._places[decided] <= place:
                decision = self.decisions[decided]
                if decision.shown:
                    told = ["", _seconds(decision.at), "", decision.target, str(decision)]
                    merged.append(told + [""] * (columns - len(told)))
                decided += 1
            if place < len(body):
                merged.append(body[place])
        return merged

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        )

    def __repr__(self) -> str:
        return f"<Trace of {len(self.attempts)} attempts>"

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        colours = {"ok": "#2e7d32", "skipped": "#757575", "running": "#1565c0"}
        states = {str(number): entry.state for number, entry in enumerate(self.entries, 1)}
        rows = "".join(
            f'<tr style="color:{colours.get(states[row[0]], "#c62828") if row[0] else "#757575"}">'
            + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in row)
            + "</tr>"
            for row in body
        )
        titles = "".join(f'<th style="text-align:left">{cell}</th>' for cell in head)
        return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
