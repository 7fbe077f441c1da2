"""What a cache keeps: keys, lookups, freshness, what is worth storing, and leave to be the one that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias
from uuid import uuid4

from llmprod.context import Context
from llmprod.decisions import CacheSkipped, CacheStored
from llmprod.errors import AllTargetsFailed, BadRequest, CallError, ContentFiltered, InvalidArgument, InvalidOutput
from llmprod.events import PartDone, RefusalDelta
from llmprod.mechanisms.cache_key import CacheKey, Unkeyable, target_identity
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.types import Refusal
from llmprod.verdict import Classifier
from llmprod.wrapper import leaves
from llmprod.wrappers._cache_entry import Entry, NotStorable, decode, encode
from llmprod.wrappers._flight import Flight
from llmprod.wrappers._store_gate import StoreGate

if TYPE_CHECKING:
    from llmprod.wrappers.cache import Cache

__all__ = ["Reason", "Shelf", "State", "joined", "lasting", "outage"]

Reason: TypeAlias = Literal["absent", "expired", "unreadable", "refresh"]
"""Why there is no stored answer to give."""
State: TypeAlias = Literal["fresh", "stale", "error"]
"""Of a stored answer: fresh, past its end but to be given, or to be given only if the target is down."""

_POLL = 0.05  # seconds between looks at what another process is making, at first
_POLL_AT_MOST = 0.5


class Shelf:
    """The stored answers of ``inner``."""

    def __init__(self, inner: Provider, wrapper: Cache) -> None:
        self._wrapper = wrapper
        self._name = inner.name
        answering = list(leaves(inner))
        # Several keys of one deployment are one target.
        targets = list({repr(told): told for told in map(target_identity, answering)}.values())
        try:
            self._key = CacheKey(targets, versions=wrapper.versions, normalise=wrapper.normalise)
        except Unkeyable as error:
            raise InvalidArgument("inner", f"a cache_identity with a {error}", "one that JSON can hold") from None
        self._fixed = frozenset(leaf.name for leaf in answering if getattr(leaf, "free", False))
        self._store = StoreGate(wrapper.store)

    def key(self, request: Request, context: Context) -> tuple[str | None, str]:
        """Return the request's key, or None and why it has none."""
        wrapper = self._wrapper
        drawn = type(request) is GenerateRequest and request.temperature != 0 and request.seed is None
        if drawn and not wrapper.sampled:
            return None, "sampled"
        scope = wrapper.scope
        if isinstance(scope, str):
            whose = context.tags.get(scope, "")
        elif scope is None:
            whose = ""
        elif callable(scope):
            whose = str(scope(context))
        else:
            whose = joined([context.tags.get(tag, "") for tag in scope])
        try:
            return self._key(request, scope=whose, prompt=context.prompt), ""
        except Unkeyable:
            return None, "no key"

    async def look(self, key: str, context: Context) -> tuple[Entry | None, Reason]:
        """Return what is stored under ``key``, or None and why there is none."""
        value = await self._store.get(key, context, self._name)
        if value is None:
            return None, "absent"
        entry = decode(value, key)
        return entry, "unreadable" if entry is None else "expired"

    def state(self, entry: Entry) -> State | None:
        """Tell how far ``entry`` may be given; None: not at all."""
        wrapper = self._wrapper
        past = wrapper.now() - entry.created - entry.ttl
        if past < 0:
            return "fresh"
        if entry.error is not None:
            return None
        if past < wrapper.stale_while_revalidate:
            return "stale"
        return "error" if past < wrapper.stale_if_error else None

    async def keep(self, flight: Flight, key: str, request: Request, took: float) -> None:
        """Store what has landed, if it is to be stored."""
        hop, context, wrapper = flight.hop, flight.context, self._wrapper
        assert hop is not None
        reason = "too long" if flight.outgrown else self._refused(hop, flight, request)
        if reason is None:
            entry = Entry(
                wrapper.now(), wrapper.ttl, took, hop.provider, flight.events, hop.model, hop.request_id, hop.dropped,
                hop.usage, hop.cost, hop.embeddings,
            )  # fmt: skip
            kept = max(wrapper.stale_while_revalidate, wrapper.stale_if_error)
            try:
                await self.put(entry, key, context, kept)
            except NotStorable as error:
                reason = str(error)
        if reason is not None:
            context.decided(CacheSkipped, self._name, reason=reason)

    async def put(self, entry: Entry, key: str, context: Context, kept: float) -> None:
        """Store ``entry``; it may be given for ``kept`` seconds after it is fresh no more.

        Raises:
            NotStorable: it can't be written as JSON.
        """
        value = encode(entry, key)
        if await self._store.set(key, value, entry.ttl + kept, context, self._name):
            self._wrapper.counts.stored += 1
            refusal = entry.error is not None or None
            context.decided(CacheStored, self._name, bytes=len(value), ttl=entry.ttl, refusal=refusal)

    def _refused(self, hop: Response, flight: Flight, request: Request) -> str | None:
        """Why an answer is not stored, in fixed words; None if it is."""
        if not hop.complete:
            return "incomplete"
        if hop.provider in self._fixed:
            return "fixed answer"
        if hop.embeddings is not None:
            return None
        if hop.finish_reason not in self._wrapper.finish:
            return f"finish {hop.finish_reason}"
        for event in flight.events:
            if type(event) is RefusalDelta or (type(event) is PartDone and isinstance(event.value, Refusal)):
                return "refusal"
        if isinstance(request, GenerateRequest) and request.output is not None and hop.finish_reason == "stop":
            try:
                request.output.parse(hop.text)
            except InvalidOutput:
                return "invalid output"
        return None

    async def lease(self, key: str, seconds: float, context: Context, refresh: bool) -> Entry | bytes | None:
        """Get leave to make an answer, or the answer that another process made; None where the store is away."""
        token = uuid4().bytes
        begun = self._wrapper.now()
        wait = _POLL
        while True:
            ours = await self._store.add(f"{key}:lease", token, seconds, context, self._name)
            if ours is None:
                return None
            entry, _ = await self.look(key, context)
            if entry is not None and self.state(entry) == "fresh" and (not refresh or entry.created >= begun):
                if ours:
                    await self.release(key, token, context)
                return entry
            if ours:
                return token
            await context.clock.sleep(wait * (0.5 + context.random.random()))
            wait = min(wait * 1.5, _POLL_AT_MOST)

    async def release(self, key: str, token: bytes, context: Context) -> None:
        """Give back leave to make an answer."""
        await self._store.release(f"{key}:lease", token, context, self._name)


def joined(values: Sequence[str]) -> str:
    """Several tags' values as one text; no two lists run into one another."""
    if len(values) == 1:
        return values[0]
    return "\x1f".join([value.replace("\x1e", "\x1e\x1e").replace("\x1f", "\x1e.") for value in values])


def lasting(error: Exception) -> CallError | None:
    """Return ``error`` where the same request would be refused again: it is wrong in itself, or too long for all."""
    if isinstance(error, AllTargetsFailed):
        return error if error.attempts and all(lasting(each) for _, each in error.attempts) else None
    if isinstance(error, BadRequest) and not isinstance(error, ContentFiltered) and not error.in_stream:
        return error
    return None


def outage(error: Exception, classify: Classifier) -> bool:
    """Tell whether ``error`` is of the kind that a stale answer may stand in for: it will pass, or the target is down.

    Not a refusal of the request, of the credential or of a policy: those want somebody to act.
    """
    if isinstance(error, AllTargetsFailed):
        return any(outage(each, classify) for _, each in error.attempts)
    return bool(getattr(error, "transient", False)) or classify(error).health == "down"
