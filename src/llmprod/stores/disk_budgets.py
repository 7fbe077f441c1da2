"""Budgets in a file: kept over restarts, and shared by the processes of a machine.

SQLite in WAL mode, one transaction a reservation, all or nothing; the rules are those of
:class:`llmprod.mechanisms.budget_ledger.BudgetLedger`. Whatever may block runs in one worker thread, in the order in
which it was asked for, so that a cancelled call's reservation is given back after it was made and never before.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Literal, TypeVar

import anyio

from llmprod import _validate
from llmprod._loops import post, running_loop
from llmprod.errors import BudgetUnavailable, InvalidArgument
from llmprod.mechanisms.budget_store import Bound, Level, Reserved, Short
from llmprod.stores._sqlite import patiently

__all__ = ["DiskBudgets"]

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY, spent INTEGER NOT NULL, reserved INTEGER NOT NULL, ends REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (
    id TEXT PRIMARY KEY, amount INTEGER NOT NULL, accounts TEXT NOT NULL, until REAL NOT NULL, lapsed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS held_until ON held (lapsed, until);
"""
_SWEEP = 256
_FORGOTTEN_AFTER = 7 * 86400.0  # a settlement that comes later than this corrects nothing any more
_UNTOLD_AT_MOST = 10_000
_log = logging.getLogger("llmprod")
_of_the_parent: list[Any] = []
"""SQLite's connections must not be used in a forked child, not even to be closed."""


class DiskBudgets:
    """Where the processes of a machine keep a budget: ``Budget(…, store=DiskBudgets("/var/lib/app/budgets.db"))``.

    Works on asyncio and trio, with several event loops and threads, and after a fork. A file system shared by machines
    is no place for it: SQLite's locks and its shared memory need one kernel.

    Args:
        path: the file; made if there is none. SQLite puts two more beside it.
        when_lost: what to do with a call while the file can't be read or written: ``refuse`` it (default), or ``allow``
            it without a budget; what such calls cost is written when the file is back, if this process still runs.
        lease: seconds after which a reservation lapses whose process has not ended it; longer than your longest call
            (default 900).
        lapsed: what a lapsed reservation is: ``spent`` (default: what was sent is probably billed) or ``returned``.
        timeout: seconds to wait for another process's transaction (default 5).
        now: seconds since the epoch (default ``time.time``).

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        when_lost: Literal["refuse", "allow"] = "refuse",
        lease: float = 900.0,
        lapsed: Literal["spent", "returned"] = "spent",
        timeout: float = 5.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise InvalidArgument("path", type(path).__name__, "the path of a file")
        if when_lost not in ("refuse", "allow"):
            raise InvalidArgument("when_lost", repr(when_lost)[:40], "refuse, allow")
        if lapsed not in ("spent", "returned"):
            raise InvalidArgument("lapsed", repr(lapsed)[:40], "spent, returned")
        _validate.seconds("lease", lease)
        _validate.seconds("timeout", timeout)
        self.path: str = os.path.abspath(os.fspath(path))
        self.when_lost: Literal["refuse", "allow"] = when_lost
        self.lease: float = float(lease)
        self.lapsed: Literal["spent", "returned"] = lapsed
        self.timeout: float = float(timeout)
        self._now = now
        self._pid = os.getpid()
        self._worker: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._process = uuid.uuid4().hex[:12]
        self._ids = count()
        self._until_sweep = 1
        self._lost = False
        self._untold: deque[tuple[str, int, tuple[str, ...]]] = deque(maxlen=_UNTOLD_AT_MOST)

    @property
    def lost(self) -> bool:
        """The file could not be read or written when it was last tried."""
        return self._lost

    @property
    def mode(self) -> str:
        """What happens while it is lost: ``refuse`` or ``allow``."""
        return self.when_lost

    # ---- for Budget -------------------------------------------------------------------------------------------------

    async def reserve(self, bounds: Sequence[Bound], amount: int) -> Reserved | Short:
        """Set ``amount`` nano-dollars aside in every account, or in none.

        Raises:
            BudgetUnavailable: the file is lost and ``when_lost`` is ``refuse``.
        """
        self._after_fork()
        known = f"{self._process}:{next(self._ids)}"
        try:
            return await self._in_worker(lambda: self._reserve(known, bounds, amount))
        except sqlite3.Error as error:
            if self.when_lost == "refuse":
                raise BudgetUnavailable(detail=type(error).__name__) from error
            now = self._now()
            return Reserved(f"?{known}", amount, (), now, tuple(bound.account(now)[0] for bound in bounds))
        except BaseException:
            self._later(lambda: self._tell(known, 0, ()))  # after the reservation, which may be under way
            raise

    def settle(self, reserved: Reserved, actual: int) -> None:
        """The attempt cost ``actual`` nano-dollars; written by the worker thread."""
        if not reserved.ended:
            reserved.ended = True
            self._after_fork()
            self._later(lambda: self._tell(reserved.id, actual, reserved.accounts))

    def cancel(self, reserved: Reserved) -> None:
        """The attempt was not made."""
        self.settle(reserved, 0)

    async def spent(self, bounds: Sequence[Bound]) -> list[Level]:
        """Return how the accounts stand now.

        Raises:
            BudgetUnavailable: the file is lost.
        """
        self._after_fork()
        try:
            return await self._in_worker(lambda: self._levels(bounds))
        except sqlite3.Error as error:
            raise BudgetUnavailable(detail=type(error).__name__) from error

    async def flush(self) -> None:
        """Return when everything that was settled is written, or could not be."""
        if self._worker is not None:
            await self._in_worker(lambda: None)

    async def aclose(self) -> None:
        """Flush, and close the file. It is opened again if need be."""
        if self._worker is not None:
            with anyio.CancelScope(shield=True):
                await self._in_worker(self._close)
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.shutdown(wait=False)

    # ---- the worker thread ------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            _of_the_parent.append((self._connection, self._worker))
            self._connection = self._worker = None
            self._process = uuid.uuid4().hex[:12]
            self._untold.clear()  # the parent tells what is its own

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="llmprod-budgets")
        return self._worker.submit(job)

    def _later(self, job: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the interpreter is ending: what can't be told any more lapses
            self._submit(job)

    async def _in_worker(self, job: Callable[[], T]) -> T:
        loop, done = running_loop(), anyio.Event()
        future = self._submit(job)
        future.add_done_callback(lambda _: post(loop, done.set))
        await done.wait()
        return future.result()

    # ---- in the worker thread ---------------------------------------------------------------------------------------

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` does in one transaction, together with what could not be told before."""
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            told = len(self._untold)
            for known, actual, accounts in list(self._untold):
                self._end(connection, known, actual, accounts)
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            if isinstance(error, sqlite3.Error):
                self._lose(error)
            self._close()  # which rolls back; a connection that failed may have nothing to go on with
            raise
        for _ in range(told):
            self._untold.popleft()
        if self._lost:
            self._lost = False
            _log.warning("the file of budgets is back")
        return result

    def _lose(self, error: sqlite3.Error) -> None:
        if not self._lost:
            self._lost = True
            _log.warning("the file of budgets is lost (%s); %s", type(error).__name__, self.when_lost)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            made = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False)
            try:
                patiently(partial(_prepare, made), self.timeout)
            except BaseException:
                made.close()
                raise
            self._connection = made
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _reserve(self, known: str, bounds: Sequence[Bound], amount: int) -> Reserved | Short:
        def work(connection: sqlite3.Connection) -> Reserved | Short:
            now = self._now()
            self._lapse(connection, now)
            names: list[str] = []
            levels: list[Level] = []
            short: Short | None = None
            for place, bound in enumerate(bounds):
                name, level = _level(connection, bound, now)
                lacks = amount and level.spent + level.reserved + amount > bound.limit.nano
                if lacks and (short is None or level.ends > short.level.ends):
                    short = Short(place, level, now)
                names.append(name)
                levels.append(Level(level.spent, level.reserved + amount, level.ends))
            if short is not None:
                return short
            for name, level in zip(names, levels, strict=True):
                connection.execute(
                    "INSERT INTO accounts VALUES (?, 0, ?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET reserved = reserved + excluded.reserved",
                    (name, amount, level.ends),
                )
            connection.execute(
                "INSERT INTO held VALUES (?, ?, ?, ?, 0)", (known, amount, " ".join(names), now + self.lease)
            )
            return Reserved(known, amount, tuple(levels), now, tuple(names))

        return self._transaction(work)

    def _levels(self, bounds: Sequence[Bound]) -> list[Level]:
        def work(connection: sqlite3.Connection) -> list[Level]:
            now = self._now()
            self._lapse(connection, now)
            return [_level(connection, bound, now)[1] for bound in bounds]

        return self._transaction(work)

    def _tell(self, known: str, actual: int, accounts: tuple[str, ...]) -> None:
        try:
            self._transaction(lambda connection: self._end(connection, known, actual, accounts))
        except sqlite3.Error:
            self._untold.append((known, actual, accounts))

    def _end(self, connection: sqlite3.Connection, known: str, actual: int, accounts: tuple[str, ...]) -> None:
        if known.startswith("?"):  # made while the file was lost: nothing was reserved
            for name in accounts:
                ends = float(name.rpartition("-")[2])
                connection.execute(
                    "INSERT INTO accounts VALUES (?, ?, 0, ?)"
                    " ON CONFLICT (name) DO UPDATE SET spent = spent + excluded.spent",
                    (name, actual, ends),
                )
            return
        row = connection.execute("SELECT amount, accounts, lapsed FROM held WHERE id = ?", (known,)).fetchone()
        if row is None:
            return  # never made, or ended before
        amount, names, lapsed = row
        connection.execute("DELETE FROM held WHERE id = ?", (known,))
        reserved = 0 if lapsed else amount
        spent = actual - (amount if lapsed and self.lapsed == "spent" else 0)
        for name in names.split():
            connection.execute(
                "UPDATE accounts SET reserved = reserved - ?, spent = spent + ? WHERE name = ?", (reserved, spent, name)
            )

    def _lapse(self, connection: sqlite3.Connection, now: float) -> None:
        rows = connection.execute("SELECT id, amount, accounts FROM held WHERE lapsed = 0 AND until <= ?", (now,))
        for known, amount, names in rows.fetchall():
            connection.execute("UPDATE held SET lapsed = 1 WHERE id = ?", (known,))
            for name in names.split():
                connection.execute(
                    "UPDATE accounts SET reserved = reserved - ?, spent = spent + ? WHERE name = ?",
                    (amount, amount if self.lapsed == "spent" else 0, name),
                )
        self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._until_sweep = _SWEEP
            connection.execute("DELETE FROM accounts WHERE ends <= ? AND reserved = 0", (now,))
            connection.execute("DELETE FROM held WHERE lapsed = 1 AND until <= ?", (now - _FORGOTTEN_AFTER,))

    def __repr__(self) -> str:
        return f"<DiskBudgets {os.path.basename(self.path)}{', lost: ' + self.when_lost if self._lost else ''}>"


def _level(connection: sqlite3.Connection, bound: Bound, now: float) -> tuple[str, Level]:
    name, ends = bound.account(now)
    row = connection.execute("SELECT spent, reserved FROM accounts WHERE name = ?", (name,)).fetchone()
    return name, Level(row[0], row[1], ends) if row is not None else Level(0, 0, ends)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.executescript(_SCHEMA)
