"""What calls cost, added up by model, labels and time, in bounded memory.

Each attempt is added once, to the minute that it began in. Minutes that are older than two hours are added to their
hour, hours older than two weeks to their day, days older than a year to what is simply earlier: nothing is lost from
the total, only its place in time gets coarser.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal

from llmprod import _validate
from llmprod.cost_table import CostEntry, CostTable, CostTotals, money
from llmprod.errors import InvalidArgument

__all__ = ["OTHER", "Ledger", "Per"]

Per = Literal["minute", "hour", "day"]

OTHER: Final = "(other)"
"""Stands for the labels of attempts that there was no row left for."""

_SECONDS: Mapping[Per, int] = {"minute": 60, "hour": 3600, "day": 86400}
_KEPT: Mapping[Per, int] = {"minute": 120, "hour": 14 * 24, "day": 366}
_COARSER: Mapping[Per, Per | None] = {"minute": "hour", "hour": "day", "day": None}
_FIXED = ("model", "target")
_PROMPT = ("prompt", "prompt_version")
_FOLD_AT = 32
_MODELS_BEYOND = 1000  # rows without labels beyond the bound: more models than that are a server's that makes names up

_Key = tuple[str | None, ...]


class Ledger:
    """Totals of what attempts cost. ``print(ledger)`` shows them by model.

    Attempts may be added in any thread: adding takes no lock that anybody waits for.

    Args:
        labels: names of the tags that totals are kept by (default endpoint, user and tenant).
        rows_at_most: how many rows are kept, of all times together (default 20,000). Beyond it the oldest times get
            coarser early; if that is not enough, further attempts go without their labels, as ``(other)``, and after
            1,000 such rows without their model.

    Raises:
        InvalidArgument: naming the argument.
    """

    def __init__(self, *, labels: Sequence[str] = ("endpoint", "user", "tenant"), rows_at_most: int = 20_000) -> None:
        self.labels: tuple[str, ...] = _validate.strings("labels", labels)
        _validate.whole("rows_at_most", rows_at_most, 1)
        self.columns: tuple[str, ...] = (*_FIXED, *self.labels, *_PROMPT)
        if len(set(self.columns)) < len(self.columns):
            raise InvalidArgument("labels", ", ".join(self.labels)[:60], "different names, other than model and prompt")
        self._most = rows_at_most
        self._rows = 0
        self._new: deque[CostEntry] = deque()
        self._due: deque[Callable[[], bool]] = deque()
        self._lock = threading.Lock()
        self._periods: dict[Per, dict[int, dict[_Key, CostTotals]]] = {"minute": {}, "hour": {}, "day": {}}
        self._earlier: dict[_Key, CostTotals] = {}
        self._newest = 0.0

    # ---- adding -----------------------------------------------------------------------------------------------------

    def add(self, entry: CostEntry) -> None:
        """Add an attempt."""
        self._new.append(entry)
        if len(self._new) >= _FOLD_AT and self._lock.acquire(blocking=False):
            try:
                self._fold_new()
            finally:
                self._lock.release()

    def expect(self, wait: Callable[[], bool]) -> None:
        """Have whoever reads wait, with ``wait()``, for attempts that are still to be priced and added.

        ``wait`` returns False where it can't wait in this thread, and True once they have been added.
        """
        if wait not in self._due:
            self._due.append(wait)

    def _fold_new(self) -> None:
        while True:
            try:
                entry = self._new.popleft()
            except IndexError:
                return
            at = entry.at.timestamp()
            if at > self._newest:
                aged = at // 60 > self._newest // 60
                self._newest = at
                if aged:
                    self._age()
            self._place(at, self._key(entry)).add(entry)

    def _key(self, entry: CostEntry) -> _Key:
        tags = entry.tags
        name, version = entry.prompt or (None, None)
        return (entry.model, entry.target, *(tags.get(label) for label in self.labels), name, version)

    def _place(self, at: float, key: _Key) -> CostTotals:
        """Return the sums that an attempt belongs to."""
        rows = self._period(at)
        totals = rows.get(key)
        if totals is None:
            if self._rows >= self._most:
                self._compact()
                rows = self._period(at)
                if self._rows >= self._most:
                    key = (*key[: len(_FIXED)], *(OTHER for _ in key[len(_FIXED) :]))
                    if key not in rows and self._rows >= self._most + _MODELS_BEYOND:
                        key = (OTHER, *key[1:])
                totals = rows.get(key)
            if totals is None:
                totals = rows[key] = CostTotals()
                self._rows += 1
        return totals

    def _period(self, at: float) -> dict[_Key, CostTotals]:
        for per, periods in self._periods.items():
            number, newest = int(at // _SECONDS[per]), int(self._newest // _SECONDS[per])
            if number > newest - _KEPT[per]:
                return periods.setdefault(number, {})
        return self._earlier

    def _age(self) -> None:
        """Add what has become old to what is coarser."""
        for per, periods in self._periods.items():
            oldest = int(self._newest // _SECONDS[per]) - _KEPT[per]
            while periods and (first := next(iter(periods))) <= oldest:
                self._coarsen(per, first)

    def _compact(self) -> None:
        """Make room: the oldest times get coarser, but for the newest of each kind."""
        for per, periods in self._periods.items():
            for number in sorted(periods)[:-1]:
                self._coarsen(per, number)
            if self._rows < self._most:
                return

    def _coarsen(self, per: Per, number: int) -> None:
        moved = self._periods[per].pop(number)
        coarser = _COARSER[per]
        if coarser is None:
            into = self._earlier
        else:
            into = self._periods[coarser].setdefault(number * _SECONDS[per] // _SECONDS[coarser], {})
        self._rows -= len(moved)
        for key, totals in moved.items():
            known = into.get(key)
            if known is None:
                into[key] = totals
                self._rows += 1
            else:
                known.merge(totals)

    # ---- reading ----------------------------------------------------------------------------------------------------

    @property
    def total(self) -> Decimal:
        """US dollars in all, as far as they are known; see ``totals.unpriced``."""
        return self.totals.known

    @property
    def totals(self) -> CostTotals:
        """The sums over everything."""
        whole = CostTotals()
        for _, _, totals in self._all():
            whole.merge(totals)
        return whole

    def by(self, *columns: str, per: Per | None = None) -> CostTable:
        """Return the sums by some of ``columns``, the dearest first.

        Args:
            columns: of ``ledger.columns``: ``model``, ``target``, the labels, ``prompt`` and ``prompt_version``.
            per: also by ``minute``, ``hour`` or ``day`` (UTC), in the column ``start``. What is kept by a coarser time
                only stands at the beginning of that; what is older than a year has none.

        Raises:
            InvalidArgument: an unknown column or time.
        """
        for column in columns:
            if column not in self.columns:
                raise InvalidArgument("columns", repr(column)[:40], ", ".join(self.columns))
        if per is not None and per not in _SECONDS:
            raise InvalidArgument("per", repr(per)[:40], "minute, hour, day, or None")
        places = [self.columns.index(column) for column in columns]
        sums: dict[tuple[Any, ...], CostTotals] = {}
        for start, key, totals in self._all():
            chosen: tuple[Any, ...] = tuple(key[place] for place in places)
            if per is not None:
                began = None if start is None else datetime.fromtimestamp(start - start % _SECONDS[per], tz=UTC)
                chosen = (began, *chosen)
            sums.setdefault(chosen, CostTotals()).merge(totals)
        ordered = sorted(sums.items(), key=lambda item: -item[1].known)
        if per is not None:
            ordered.sort(key=lambda item: item[0][0] or datetime.min.replace(tzinfo=UTC))
        return CostTable((*(("start",) if per is not None else ()), *columns), ordered)

    def rows(self, per: Per | None = None) -> list[dict[str, Any]]:
        """Return everything by all columns, as a list of dicts that pandas and polars take."""
        return self.by(*self.columns, per=per).rows()

    def _all(self) -> list[tuple[int | None, _Key, CostTotals]]:
        for wait in tuple(self._due):
            if wait():
                with contextlib.suppress(ValueError):  # another reader has waited as well
                    self._due.remove(wait)
        with self._lock:
            self._fold_new()
            told: list[tuple[int | None, _Key, CostTotals]] = []
            for per, periods in self._periods.items():
                for number, rows in periods.items():
                    told += [(number * _SECONDS[per], key, _copy(totals)) for key, totals in rows.items()]
            told += [(None, key, _copy(totals)) for key, totals in self._earlier.items()]
            return told

    def __str__(self) -> str:
        return str(self.by("model"))

    def __repr__(self) -> str:
        totals = self.totals
        return f"<Ledger {totals.attempts} attempts, {money(totals)}>"

    def _repr_html_(self) -> str:
        return self.by("model")._repr_html_()


def _copy(totals: CostTotals) -> CostTotals:
    made = CostTotals()
    made.merge(totals)
    return made
