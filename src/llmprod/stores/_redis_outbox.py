"""What is told to a Redis later: in order, by one task in the background, and kept while the server is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmprod.stores._redis_link import RedisLink

__all__ = ["Errand", "Outbox"]

_AT_MOST = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Errand:
    """A run of the script whose answer nobody waits for.

    Attributes:
        keys, arguments: of the script.
        then: called when it has been told.
    """

    keys: list[str]
    arguments: list[str]
    then: Callable[[], None] | None = None


class Outbox:
    """Errands for the server behind ``link``. To tell one twice must do no harm: an answer may be lost on its way.

    Args:
        link: the way to the server.
        sha, script: what an errand runs.
    """

    def __init__(self, link: RedisLink, sha: str, script: str) -> None:
        self.errands: deque[Errand] = deque(maxlen=_AT_MOST)
        self._link = link
        self._sha = sha
        self._script = script
        self._telling: asyncio.Task[None] | None = None

    @property
    def empty(self) -> bool:
        """Everything has been told, and answered."""
        return not self.errands and self._telling is None

    def add(self, errand: Errand) -> None:
        """Tell it soon; may be called from any thread, also where nothing may be awaited."""
        self.errands.append(errand)
        if self._link.loop is not None and not self._link.lost and self._telling is None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._link.loop.call_soon_threadsafe(self.start)

    def keep(self, wanted: Callable[[Errand], bool]) -> None:
        """Forget the others."""
        self.errands = deque(filter(wanted, self.errands), _AT_MOST)

    def start(self) -> None:
        """Begin to tell, on the link's event loop."""
        if self._telling is None and self.errands and not self._link.lost and self._link.loop is not None:
            self._telling = self._link.loop.create_task(self._tell())

    def moved(self) -> None:
        """The link is on another event loop now: the task of the one before is gone."""
        self._telling = None

    async def _tell(self) -> None:
        link = self._link
        try:
            while self.errands and not link.lost:
                errand = self.errands[0]  # and stays there until the server has answered: a cancellation loses nothing
                try:
                    await link.run(self._sha, self._script, errand.keys, errand.arguments)
                except link.errors as error:
                    link.lose(error)
                    return
                if self.errands and self.errands[0] is errand:  # else so many have come that it fell out
                    self.errands.popleft()
                if errand.then is not None:
                    errand.then()
        finally:
            self._telling = None

    async def flush(self, here: Callable[[], Any]) -> None:
        """Return when everything has been told, or the server is lost.

        Args:
            here: sees to it that the link is on the running event loop.
        """
        if self.errands:
            here()
        while not self.empty and not self._link.lost:
            self.start()
            if self._telling is None:
                return
            await asyncio.wait([self._telling])

    async def aclose(self) -> None:
        """Stop telling; what is left stays."""
        if self._telling is not None:
            task = self._telling
            task.cancel()
            await asyncio.wait([task])
