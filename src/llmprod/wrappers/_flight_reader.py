"""One of the readers of a shared call."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from llmprod.events import Event, UsageUpdate
from llmprod.response import Cached, Response
from llmprod.wrappers._cache_entry import NO_USAGE

if TYPE_CHECKING:
    from llmprod.wrappers._flight import Flight

__all__ = ["Reader"]


class Reader:
    """An event source: one reader's way through a flight.

    Attributes:
        place: number of the event that comes next.
        answer: the response that it is the source of.
        cached: told of the usage, for those who did not begin the flight.
        whole: it wants nothing until it can have everything.
        cut: it can't have that any more.
    """

    __slots__ = ("__weakref__", "_flight", "_leader", "answer", "cached", "cut", "place", "whole")

    def __init__(self, flight: Flight, leader: bool) -> None:
        self._flight = flight
        self._leader = leader
        self.place = 0
        self.whole = False
        self.cut = False
        self.answer: weakref.ref[Response] | None = None
        self.cached = None if leader else Cached(joined=True)

    @property
    def leader(self) -> bool:
        """It began the flight, so the answer and its usage are its own."""
        return self._leader

    def own(self, event: Event) -> Event:
        """Return ``event`` as this reader sees it: the usage is the leader's."""
        if type(event) is UsageUpdate and self.cached is not None:
            self.cached.usage = event.usage
            return UsageUpdate(NO_USAGE)
        return event

    def poll(self) -> Event | None:
        """Return the next event if it is there already."""
        flight = self._flight
        at = self.place - flight._base
        if not 0 <= at < len(flight.events):
            return None
        self.place += 1
        if self.place > flight._front:
            flight._front = self.place
            if flight._room is not None:
                flight.make_room()
        return self.own(flight.events[at])

    async def __anext__(self) -> Event:
        flight = self._flight
        while True:
            event = self.poll()
            if event is not None:
                return event
            if flight.lost(self):
                raise flight.too_long()
            if flight.over:
                if flight.failure is not None:
                    raise flight.error(leader=self._leader)
                answer = self.answer() if self.answer is not None else None
                if answer is not None and self._leader and flight.hop is not None:
                    answer.cost = flight.hop.cost
                raise StopAsyncIteration
            await flight.news()

    async def aclose(self) -> None:
        """Stop reading; the last one ends the flight and waits for its end."""
        if self._flight.leave(self):
            await self._flight.ended()

    def abandon(self) -> None:
        """Stop reading without awaiting."""
        self._flight.left_behind(self)
