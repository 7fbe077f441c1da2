"""What attempts cost, one by one and added up, and the table that sums are shown as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from llmprod.cost import Cost
from llmprod.trace import Attempt
from llmprod.usage import Usage

__all__ = ["CostEntry", "CostTable", "CostTotals", "money"]


@dataclass(slots=True, kw_only=True)
class CostEntry:
    """What one attempt cost. Treat it as frozen: one is made for every attempt, and freezing takes time.

    Attributes:
        at: when it began, in UTC.
        target: who was asked, as the trace calls it.
        model: exact id of the model that answered, or else of the one that was asked; None where nobody knows.
        cost: the money, or why it is not known.
        usage: the tokens that it is for; None where nothing is known.
        tags: the call's labels.
        prompt: name and version of the call's prompt.
        attempt: the attempt, with its state, times and error.
    """

    at: datetime
    target: str
    model: str | None
    cost: Cost
    usage: Usage | None
    tags: Mapping[str, str]
    prompt: tuple[str, str] | None
    attempt: Attempt


@dataclass(slots=True)
class CostTotals:
    """Sums over attempts.

    Attributes:
        attempts: how many.
        failed: those that gave no complete answer.
        input_tokens: prompt tokens, cached or not.
        cached_tokens: those of them that the provider's cache gave.
        output_tokens: answer tokens, thinking included.
        known: US dollars of all attempts whose cost is known, and what is known of the others.
        unpriced: attempts whose cost is not known.
        estimated: attempts whose usage was estimated.
    """

    attempts: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    known: Decimal = Decimal(0)
    unpriced: int = 0
    estimated: int = 0

    @property
    def cost(self) -> Decimal | None:
        """US dollars; None where no attempt's cost is known. With ``unpriced`` attempts among them, the least."""
        return None if self.attempts and self.attempts == self.unpriced and not self.known else self.known

    def add(self, entry: CostEntry) -> None:
        """Add an attempt."""
        self.attempts += 1
        self.failed += entry.attempt.state != "ok"
        usage = entry.usage
        if usage is not None:
            self.input_tokens += usage.total_input
            self.cached_tokens += usage.cached
            self.output_tokens += usage.total_output
        self.known += entry.cost.at_least
        self.unpriced += not entry.cost.known
        self.estimated += entry.cost.estimated

    def merge(self, other: CostTotals) -> None:
        """Add other sums."""
        self.attempts += other.attempts
        self.failed += other.failed
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.known += other.known
        self.unpriced += other.unpriced
        self.estimated += other.estimated


class CostTable:
    """Rows of a ledger; prints as a table and renders in a notebook.

    Attributes:
        columns: the names of what it is by.
    """

    def __init__(self, columns: tuple[str, ...], rows: Sequence[tuple[tuple[Any, ...], CostTotals]]) -> None:
        self.columns = columns
        self._rows = rows

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict a row, as ``pandas.DataFrame`` and ``polars.DataFrame`` take it; money as Decimal."""
        return [
            {
                **dict(zip(self.columns, key, strict=True)),
                "attempts": totals.attempts,
                "failed": totals.failed,
                "input_tokens": totals.input_tokens,
                "cached_tokens": totals.cached_tokens,
                "output_tokens": totals.output_tokens,
                "cost": totals.cost,
                "unpriced": totals.unpriced,
                "estimated": totals.estimated,
            }
            for key, totals in self._rows
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows())

    def _cells(self) -> list[list[str]]:
        whole = CostTotals()
        for _, totals in self._rows:
            whole.merge(totals)
        numbers = ["attempts", "failed", "input", "cached", "output", "cost", "unpriced", "estimated"]
        body = [[*map(_shown, key), *_numbers(totals)] for key, totals in self._rows]
        if len(self._rows) != 1:
            body.append([*(["total"] + [""] * (len(self.columns) - 1))[: len(self.columns)], *_numbers(whole)])
        return [[*self.columns, *numbers], *body]

    def __str__(self) -> str:
        cells, left = self._cells(), len(self.columns)
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place < left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        )

    def __repr__(self) -> str:
        return f"<CostTable by {', '.join(self.columns) or 'nothing'}: {len(self)} rows>"

    def _repr_html_(self) -> str:
        import html

        head, *body = self._cells()
        titles = "".join(f'<th style="text-align:left">{html.escape(cell)}</th>' for cell in head)
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
        return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return "-" if value is None else str(value)


def money(totals: CostTotals) -> str:
    """Show sums of money: ``~`` with estimates in them, ``≥`` with attempts of unknown cost beside them."""
    cost = totals.cost
    if cost is None:
        return "unknown"
    places = max(6, 1 - cost.adjusted()) if cost else 6  # what is little is not shown as nothing
    told = f"{'≥ ' if totals.unpriced else '~' if totals.estimated else ''}${cost:.{places}f}".rstrip("0")
    return told + "00"[: max(0, 2 - len(told.rpartition(".")[2]))]


def _numbers(totals: CostTotals) -> list[str]:
    return [
        str(totals.attempts),
        str(totals.failed),
        str(totals.input_tokens),
        str(totals.cached_tokens),
        str(totals.output_tokens),
        money(totals),
        str(totals.unpriced),
        str(totals.estimated),
    ]
