"""Who waits for a permit: by priority, then by arrival, and no more than a bounded number of them.

Only the first in line asks the mechanism, so nobody overtakes. Whoever changes what can be given (a permit that comes
back, an estimate that was too high) calls :meth:`Line.wake`. For one event loop; there is no lock.
"""

from __future__ import annotations

from bisect import insort

import anyio


class Place:
    """A place in line. Leave it in ``finally``: that makes the next one first."""

    __slots__ = ("_event", "_key", "_line")

    def __init__(self, line: Line, key: tuple[int, int]) -> None:
        self._line = line
        self._key = key
        self._event: anyio.Event | None = None

    @property
    def priority(self) -> int:
        """Of the call that waits."""
        return -self._key[0]

    @property
    def first(self) -> bool:
        """It is this one's turn to ask."""
        return self._line.places[0] is self

    async def wait(self, seconds: float | None) -> None:
        """Return when woken, or after ``seconds`` (None: only when woken)."""
        self._event = anyio.Event()
        try:
            if seconds is None:
                await self._event.wait()
            else:
                with anyio.move_on_after(max(0.0, seconds)):
                    await self._event.wait()
        finally:
            self._event = None

    def wake(self) -> None:
        """Make a running :meth:`wait` return."""
        if self._event is not None:
            self._event.set()

    def leave(self) -> None:
        """Give the place up; the next one, if it is first now, is woken."""
        first = self.first
        self._line.places.remove(self)
        if first:
            self._line.wake()

    def __lt__(self, other: Place) -> bool:
        return self._key < other._key


class Line:
    """Calls that wait for the same thing.

    Args:
        at_most: how many may wait; None for any number.
    """

    __slots__ = ("_arrivals", "at_most", "places")

    def __init__(self, at_most: int | None = None) -> None:
        self.at_most: int | None = at_most
        self.places: list[Place] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self.places)

    @property
    def full(self) -> bool:
        """No further call may wait."""
        return self.at_most is not None and len(self.places) >= self.at_most

    def join(self, priority: int = 0) -> Place:
        """Stand behind all of the same or a higher priority. Ask :attr:`full` first."""
        self._arrivals += 1
        place = Place(self, (-priority, self._arrivals))
        insort(self.places, place)
        return place

    def wake(self) -> None:
        """Let the first in line ask again."""
        if self.places:
            self.places[0].wake()
