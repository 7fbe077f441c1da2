"""Budgets that several machines share, on Redis, Valkey, or a cluster of either.

One script decides, on the server's clock, over all limits of a call at once (:mod:`llmprod.stores._budgets_script`).
What an attempt cost is told afterwards, in the background. A reservation has a lease, so that a process that dies holds
nothing back for long.

redis-py has asyncio alone, and so has this: on trio keep budgets in the process or in a file.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, SYSTEM_RANDOM
from llmprod.errors import BudgetUnavailable, InvalidArgument
from llmprod.mechanisms.budget_store import Bound, Level, Reserved, Short
from llmprod.stores._budgets_script import SCRIPT
from llmprod.stores._redis_link import RedisLink, check_prefix
from llmprod.stores._redis_outbox import Errand, Outbox

__all__ = ["RedisBudgets"]

_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
_TRIES = 4
_log = logging.getLogger("llmprod")


class RedisBudgets:
    """Where machines share a budget: ``Budget(…, store=RedisBudgets("redis://host"))``.

    Use one object for each event loop. All budgets of a ``prefix`` stand on one node of a cluster, since a call takes
    from several of them at once or from none.

    Args:
        server: the server's URL (``redis://``, ``rediss://``, ``valkey://``, ``unix://``), or a client of
            ``redis.asyncio`` (or ``RedisCluster``), which stays yours to close.
        prefix: what all keys begin with (default ``llmprod``). Tags are stored as hashes only.
        when_lost: what to do with a call while the server can't be reached: ``refuse`` it (default), or ``allow`` it
            without a budget; what such calls cost is told when the server is back, if this process still runs.
        lease: seconds after which a reservation lapses whose process has not ended it; longer than your longest call
            (default 900).
        lapsed: what a lapsed reservation is: ``spent`` (default: what was sent is probably billed) or ``returned``.
        timeout: seconds that the server may take to answer (default 0.5).
        now: seconds since the epoch, for a first guess at the server's clock (default ``time.time``).

    Raises:
        InvalidArgument: naming the option that is out of range.
        ImportError: redis is not installed (``pip install 'llmprod[redis]'``).
    """

    def __init__(
        self,
        server: Any,
        *,
        prefix: str = "llmprod",
        when_lost: Literal["refuse", "allow"] = "refuse",
        lease: float = 900.0,
        lapsed: Literal["spent", "returned"] = "spent",
        timeout: float = 0.5,
        now: Callable[[], float] = time.time,
    ) -> None:
        if when_lost not in ("refuse", "allow"):
            raise InvalidArgument("when_lost", repr(when_lost)[:40], "refuse, allow")
        if lapsed not in ("spent", "returned"):
            raise InvalidArgument("lapsed", repr(lapsed)[:40], "spent, returned")
        check_prefix(prefix)
        _validate.seconds("lease", lease)
        self._link = RedisLink(
            "RedisBudgets", server, timeout=timeout, clock=SYSTEM_CLOCK, random=SYSTEM_RANDOM,
            on_lost=self._is_lost, on_back=self._is_back,
        )  # fmt: skip
        self._outbox = Outbox(self._link, _SHA, SCRIPT)
        self.prefix = prefix
        self.when_lost: Literal["refuse", "allow"] = when_lost
        self.lease: float = float(lease)
        self.lapsed: Literal["spent", "returned"] = lapsed
        self.timeout = timeout
        self._now = now
        self._ahead = 0.0  # seconds that the server's clock is ahead of ours
        self._process = uuid.uuid4().hex[:12]
        self._ids = itertools.count()

    @property
    def lost(self) -> bool:
        """The server can't be reached now."""
        return self._link.lost

    @property
    def mode(self) -> str:
        """What happens while it is lost: ``refuse`` or ``allow``."""
        return self.when_lost

    async def reserve(self, bounds: Sequence[Bound], amount: int) -> Reserved | Short:
        """Set ``amount`` nano-dollars aside in every account, or in none.

        Raises:
            BudgetUnavailable: the server is lost and ``when_lost`` is ``refuse``.
            InvalidArgument: used on trio, or on two event loops at once.
        """
        known = f"{self._process}:{next(self._ids)}"
        pending = Reserved(known, amount, (), 0.0)
        head = ["reserve", self._flag, known, str(amount), repr(self.lease)]
        try:
            answer, names, ends = await self._ask(bounds, head, limits=True)
            if not int(answer[0]) and not self._outbox.empty:
                await self.flush()  # what is short may be what this process has settled and not told yet
                answer, names, ends = await self._ask(bounds, head, limits=True)
        except BudgetUnavailable:
            self._end(pending, 0, "2")  # it may have arrived all the same, or may still
            if self.when_lost == "refuse":
                raise
            now = self._now() + self._ahead
            accounts = tuple(bound.account(now)[0] for bound in bounds)
            return Reserved(f"?{known}", amount, (), now, accounts)
        except BaseException:
            self._end(pending, 0, "2")
            raise
        now = float(answer[1])
        if not int(answer[0]):
            place = int(answer[2])
            return Short(place, Level(int(answer[3]), int(answer[4]), ends[place]), now)
        return Reserved(known, amount, _levels(answer, ends), now, tuple(names))

    def settle(self, reserved: Reserved, actual: int) -> None:
        """The attempt cost ``actual`` nano-dollars; told in the background."""
        self._end(reserved, actual, "1" if reserved.id.startswith("?") else "0")

    def cancel(self, reserved: Reserved) -> None:
        """The attempt was not made."""
        self.settle(reserved, 0)

    async def spent(self, bounds: Sequence[Bound]) -> list[Level]:
        """Return how the accounts stand now.

        Raises:
            BudgetUnavailable: the server is lost.
        """
        answer, _, ends = await self._ask(bounds, ["levels", self._flag], limits=False)
        return list(_levels(answer, ends))

    async def flush(self) -> None:
        """Return when everything that was settled has been told, or the server is lost."""
        await self._outbox.flush(self._here)

    async def aclose(self) -> None:
        """Tell what is untold; close the connections, if they are ours."""
        await self.flush()
        await self._outbox.aclose()
        await self._link.aclose()

    # ---- lost, and back ---------------------------------------------------------------------------------------------

    def _is_lost(self, error: BaseException) -> None:
        _log.warning("the shared store of budgets is lost (%s); %s", type(error).__name__, self.when_lost)

    def _is_back(self) -> None:
        _log.warning("the shared store of budgets is back")
        self._outbox.start()

    # ---- the server -------------------------------------------------------------------------------------------------

    async def _ask(
        self, bounds: Sequence[Bound], head: list[str], *, limits: bool
    ) -> tuple[list[Any], list[str], list[float]]:
        """Run an operation in the windows of the server's time; return its answer, the accounts and their ends."""
        link = self._link
        self._here()
        if link.lost:
            link.look()
            raise BudgetUnavailable(retry_after=link.retry_after)
        for _ in range(_TRIES):
            now = self._now() + self._ahead
            names = [bound.account(now)[0] for bound in bounds]
            windows = [bound.limit.window(now) for bound in bounds]
            arguments = list(head)
            for bound, window in zip(bounds, windows, strict=True):
                arguments += [repr(window.begins), repr(window.ends)]
                if limits:
                    arguments.append(str(bound.limit.nano))
            try:
                answer: list[Any] = await link.run(_SHA, SCRIPT, self._keys(names), arguments)
            except link.errors as error:
                link.lose(error)
                raise BudgetUnavailable(detail=type(error).__name__) from error
            kind = int(answer[0])
            if kind in (0, 1):
                return answer, names, [window.ends for window in windows]
            if kind == 2:  # the server's clock is in another window
                self._ahead = float(answer[1]) - self._now()
        raise BudgetUnavailable(detail="the server's clock and ours do not agree")

    def _end(self, reserved: Reserved, actual: int, kind: str) -> None:
        if reserved.ended:
            return
        reserved.ended = True
        names = list(reserved.accounts) if kind == "1" else []
        ends = [name.rpartition("-")[2] for name in names]
        known = reserved.id.removeprefix("?") + ("?" if kind == "1" else "")
        self._outbox.add(Errand(self._keys(names), ["end", self._flag, known, str(actual), kind, *ends]))

    def _here(self) -> None:
        if self._link.here():
            self._outbox.moved()

    @property
    def _flag(self) -> str:
        return "1" if self.lapsed == "spent" else "0"

    def _keys(self, accounts: Sequence[str]) -> list[str]:
        return [f"{self.prefix}:{{budgets}}:{name}" for name in ("held", "leases", *accounts)]

    def __repr__(self) -> str:
        return f"<RedisBudgets {self.prefix!r}, {'lost: ' + self.when_lost if self.lost else 'connected'}>"


def _levels(answer: list[Any], ends: Sequence[float]) -> tuple[Level, ...]:
    numbers = [int(value) for value in answer[2:]]
    return tuple(
        Level(spent, reserved, end) for spent, reserved, end in zip(numbers[::2], numbers[1::2], ends, strict=True)
    )
