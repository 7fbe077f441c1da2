"""The provider that :class:`llmprod.Cache` makes: looks up, joins, asks, stores."""

from __future__ import annotations

import contextlib
import copy
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from llmprod._loops import running_loop
from llmprod.context import CallState, Context
from llmprod.decisions import CacheHit, CacheJoined, CacheMiss, CacheRefreshed, CacheSkipped
from llmprod.errors import BudgetExceeded, DeadlineExceeded, InvalidArgument, NotCached, Rejected
from llmprod.mechanisms.xfetch import early
from llmprod.provider import Provider
from llmprod.request import EmbedRequest, GenerateRequest, Request
from llmprod.response import Cached, Outcome, Response
from llmprod.usage import Usage
from llmprod.wrapper import WrappedProvider
from llmprod.wrappers._cache_entry import Entry, NotStorable
from llmprod.wrappers._cache_replay import replay
from llmprod.wrappers._cache_shelf import Reason, Shelf, State, lasting, outage
from llmprod.wrappers._flight import Flight
from llmprod.wrappers._flight_reader import Reader

if TYPE_CHECKING:
    from llmprod.wrappers.cache import Cache

__all__ = ["CacheProvider", "Counts"]

_SETTLED = Decimal(0)
_TOGETHER = 4  # times that who was refused for another's budget asks again with the others, before it does so alone
_REFRESH_WITHIN = 600.0  # seconds for a refresh in the background whose call had no deadline, as Deadline's default
_log = logging.getLogger("llmprod")


@dataclass(slots=True)
class Counts:
    """What a cache has done; :class:`llmprod.CacheStats` tells what the numbers are."""

    hits: int = 0
    stale: int = 0
    refusals: int = 0
    joined: int = 0
    misses: int = 0
    skipped: int = 0
    stored: int = 0
    refreshed: int = 0
    tokens_saved: int = 0
    money_saved: Decimal = field(default=_SETTLED)
    unpriced: int = 0


class CacheProvider(WrappedProvider):
    wrapper: Cache

    def __init__(self, inner: Provider, wrapper: Cache) -> None:
        super().__init__(inner, wrapper)
        self._shelf = Shelf(inner, wrapper)
        self._flights: dict[tuple[Any, str], Flight] = {}
        self._under_way: set[Flight] = set()

    async def send(self, request: Request, context: Context) -> Response:
        if type(request) is not GenerateRequest and type(request) is not EmbedRequest:
            raise InvalidArgument("request", type(request).__name__, "a GenerateRequest or an EmbedRequest")
        mode = context.cache
        key, skipped = self._shelf.key(request, context) if mode != "bypass" else (None, "bypass")
        if key is None:
            self.wrapper.counts.skipped += 1
            context.decided(CacheSkipped, self.name, reason=skipped)
            if mode == "only":
                raise NotCached(provider=self.name, detail=skipped)
            return await self.inner.send(request, context)
        reason: Reason = "refresh"
        stale: Entry | None = None
        if mode != "refresh" and (mode == "only" or not self._joinable(key)):
            entry, reason = await self._shelf.look(key, context, request)
            if entry is not None:
                state = self._shelf.state(entry)
                if state == "error" and mode != "only":
                    stale = entry
                elif state is not None:
                    return self._hit(entry, state, key, request, context)
            if mode == "only":
                raise NotCached(provider=self.name, detail=reason)
        return await self._share(key, request, context, reason, stale)

    async def aclose(self) -> None:
        """End what is under way, in the background too, and close the inner provider. The store is its owner's."""
        loop = running_loop()
        for flight in list(self._under_way):
            flight.give_up()
            if flight.loop is loop:
                await flight.ended()
        await self.inner.aclose()

    # ---- stored answers ----------------------------------------------------------------------------------------------

    def _hit(self, entry: Entry, state: State, key: str, request: Request, context: Context) -> Response:
        wrapper = self.wrapper
        now = wrapper.now()
        age = max(0.0, now - entry.created)
        counts = wrapper.counts
        counts.hits += 1
        refusal = entry.error is not None or None
        if refusal:
            counts.refusals += 1
        stale = state != "fresh"
        if stale:
            counts.stale += 1
        context.decided(CacheHit, self.name, age=age, stale=stale, refusal=refusal)
        if state == "stale":
            self._refresh(key, request, context, "stale")
        elif not (stale or refusal) and early(
            now, entry.created + self._shelf.ttl(entry), entry.took, wrapper.early, context.random
        ):
            self._refresh(key, request, context, "early")
        response = replay(entry, request, context, Cached(age=age, stale=stale), piece=wrapper.piece)
        self._saved(entry.usage, entry.cost, entry.provider, entry.model)
        return response

    # ---- calls upstream ---------------------------------------------------------------------------------------------

    def _joinable(self, key: str) -> bool:
        """An equal call is under way; a refresh in the background is none while there is a stored answer."""
        if not self._flights:
            return False
        flight = self._flights.get((running_loop(), key))
        return flight is not None and not flight.pinned

    async def _share(
        self, key: str, request: Request, context: Context, reason: Reason, stale: Entry | None
    ) -> Response:
        """Join the call of an equal one, or begin one that others may join."""
        place = (running_loop(), key)
        tries = 0
        while True:
            flight = self._flights.get(place) if tries <= _TOGETHER else None
            if flight is not None and context.cache == "refresh" and not flight.anew:
                # Its answer may be from before what made the caller ask anew, and must not take the new one's place.
                flight.superseded = True
                flight = None
            leader = flight is None
            if flight is None:
                self.wrapper.counts.misses += 1
                context.decided(CacheMiss, self.name, reason=reason)
                flight = self._begin(place, request, context, stale, alone=tries > _TOGETHER)
            else:
                self.wrapper.counts.joined += 1
                context.decided(CacheJoined, self.name)
            reader = flight.join(context, leader=leader)
            if leader:
                flight.begin()
            try:
                return await self._answer(flight, reader, request, context)
            except Exception as error:
                # What its deadline or its place in a line cost the one that began is nobody else's failure, and who
                # wanted the answer whole has seen nothing of a stream that broke. Every other failure is everybody's:
                # the retries and the failover inside have been through it already, and a thousand calls that try one
                # after the other would only keep a failing target from recovering. One more time at most; but whose
                # budget is used up is each one's own affair, however many of those that began were without. A refusal
                # may be of the stream alone.
                shown = reader.cut or (flight.hop is not None and not flight.hop.complete)
                other = flight.streamed is not request.stream and lasting(error) is not None
                if leader or not (shown or other or isinstance(error, (DeadlineExceeded, Rejected))):
                    raise
                if tries and not isinstance(error, BudgetExceeded):
                    raise
                context.check(self.name)
                tries += 1

    def _begin(
        self, place: tuple[Any, str], request: Request, context: Context, stale: Entry | None, *, alone: bool = False
    ) -> Flight:
        def landed(flight: Flight) -> None:
            if self._flights.get(place) is flight:
                del self._flights[place]
            if flight.over:
                self._under_way.discard(flight)

        async def fetch(flight: Flight) -> None:
            await self._fetch(flight, place[1], request, stale, context.cache == "refresh")

        flight = Flight(context, fetch, landed, buffer=self.wrapper.buffer)
        flight.streamed = request.stream
        self._under_way.add(flight)
        if self.wrapper.single_flight and not alone:
            self._flights[place] = flight
        return flight

    def _refresh(self, key: str, request: Request, context: Context, reason: Literal["stale", "early"]) -> None:
        """Make a stored answer anew in the background, once at a time."""
        place = (running_loop(), key)
        if place in self._flights:
            return
        self.wrapper.counts.refreshed += 1
        context.decided(CacheRefreshed, self.name, reason=reason)
        deadline = context.deadline
        seconds = _REFRESH_WITHIN if deadline is None else max(1.0, deadline - context.call.started)
        now = context.clock.now()
        # As the caller's in all but what is of that one call: who meters or limits it does so here too.
        own = context.but(
            call=CallState(now), deadline=now + seconds, lane=None, insist=False, alternatives=False, cache=None
        )
        flight = self._begin(place, request, own, None)
        flight.pin(seconds)
        self._flights[place] = flight
        flight.begin()

    async def _fetch(self, flight: Flight, key: str, request: Request, stale: Entry | None, refresh: bool) -> None:
        wrapper, context = self.wrapper, flight.context
        token: bytes | None = None
        if wrapper.lease is not None:
            made = await self._shelf.lease(key, wrapper.lease, context, request, refresh or flight.pinned)
            if isinstance(made, Entry):
                flight.stand_in(made, stale=False)
                return
            token = made
        try:
            started = context.clock.now()
            try:
                hop = await self.inner.send(request, context)
            except Exception as error:
                if stale is not None and outage(error, wrapper.classify):
                    flight.stand_in(stale, stale=True)
                    return
                refusal = lasting(error) if wrapper.negative_ttl and not flight.pinned else None
                if refusal is not None:
                    entry = Entry(
                        wrapper.now(), wrapper.negative_ttl, 0.0, self.name, [], error=refusal, streamed=request.stream
                    )
                    with contextlib.suppress(NotStorable):
                        await self._shelf.put(entry, key, context, 0.0)
                raise
            await flight.take(hop)
            await self._shelf.keep(flight, key, request, context.clock.now() - started)
        finally:
            if token is not None:
                await self._shelf.release(key, token, context)

    # ---- answers ----------------------------------------------------------------------------------------------------

    async def _answer(self, flight: Flight, reader: Reader, request: Request, context: Context) -> Response:
        """Wait until the flight has what ``request`` asks for, and make a response of it."""
        try:
            if request.stream:
                while flight.hop is None and not flight.over:
                    await flight.news()
            else:
                flight.want_all(reader)
                while not flight.over and not reader.cut:
                    await flight.news()
        except BaseException:
            await reader.aclose()
            raise
        if reader.cut:
            raise flight.too_long()
        entry, hop = flight.entry, flight.hop
        if entry is not None:
            flight.leave(reader)
            return self._stood_in(flight, reader, entry, request, context)
        if flight.failure is not None and (hop is None or not request.stream):
            flight.leave(reader)
            raise flight.error(leader=reader.leader)
        assert hop is not None
        if reader.leader and not request.stream and hop.closed:
            flight.leave(reader)
            hop.context = context
            return hop
        return self._made(flight, reader, hop, request, context)

    def _stood_in(self, flight: Flight, reader: Reader, entry: Entry, request: Request, context: Context) -> Response:
        """A stored answer in place of a new one: the target is down, or another process has made it."""
        counts = self.wrapper.counts
        counts.misses -= reader.leader  # counted as what it turned out not to be
        counts.joined -= not reader.leader
        counts.hits += 1
        counts.stale += flight.entry_stale
        counts.refusals += entry.error is not None
        age = max(0.0, self.wrapper.now() - entry.created)
        context.decided(CacheHit, self.name, age=age, stale=flight.entry_stale, refusal=entry.error is not None or None)
        cached = Cached(age=age, stale=flight.entry_stale)
        shared = replace(entry, embeddings=_own(entry.embeddings), error=copy.copy(entry.error))
        response = replay(shared, request, context, cached, piece=self.wrapper.piece)
        self._saved(entry.usage, entry.cost, entry.provider, entry.model)
        return response

    def _made(self, flight: Flight, reader: Reader, hop: Response, request: Request, context: Context) -> Response:
        answer = Response(
            provider=hop.provider,
            context=context,
            request=request,
            model=hop.model,
            source=reader if request.stream else None,
            events=() if request.stream else map(reader.own, flight.events),
            request_id=hop.request_id,
            dropped=hop.dropped,
            embeddings=_own(hop.embeddings),
            headers=dict(hop.headers),
        )
        answer.deployment = hop.deployment
        answer.engine_timing = hop.engine_timing
        answer.cached = reader.cached
        if reader.cached is not None:
            answer.cost = _SETTLED

            def ended(outcome: Outcome) -> None:
                if outcome.kind == "ok":
                    self._saved(hop.usage, hop.cost, hop.provider, hop.model)

            answer.on_close(ended)
        reader.answer = weakref.ref(answer)  # not the response itself: its collection must not wait for a cycle's
        if not request.stream:
            flight.leave(reader)
            if reader.leader:
                answer.cost = hop.cost
        return answer

    def _saved(self, usage: Usage | None, cost: Decimal | None, provider: str, model: str | None) -> None:
        """Count what a call that was not made would have taken."""
        counts = self.wrapper.counts
        if usage is not None:
            counts.tokens_saved += usage.total
        prices = self.wrapper.prices
        if cost is None and prices is not None:
            try:
                told = prices(usage, provider=provider, model=model)
            except Exception as error:  # noqa: BLE001 - a price that can't be told spoils no answer
                _log.error("the cache's prices raised %s", type(error).__name__)
                told = None
            told = getattr(told, "amount", told)
            cost = told if isinstance(told, Decimal) else None
        if cost is None:
            counts.unpriced += 1
        else:
            counts.money_saved += cost


def _own(vectors: Sequence[Sequence[float]] | None) -> Sequence[Sequence[float]] | None:
    """Vectors that a caller may change in place, as for normalising them, without changing those of the others."""
    return None if vectors is None else [copy.copy(vector) for vector in vectors]
