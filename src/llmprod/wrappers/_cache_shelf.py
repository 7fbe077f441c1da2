"""What a cache keeps: keys, lookups, freshness, what is worth storing, and leave to be the one that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import uuid4

import anyio

from llmprod.context import Context
from llmprod.decisions import CacheSkipped, CacheStored
from llmprod.errors import AllTargetsFailed, BadRequest, CallError, ContentFiltered, ContextTooLong, InvalidArgument
from llmprod.events import Finish, PartDone, RefusalDelta, TextDelta
from llmprod.mechanisms.cache_key import CacheKey, Unkeyable, rule_identity, target_identity
from llmprod.provider import Provider
from llmprod.request import GenerateRequest, Request
from llmprod.response import Response
from llmprod.schema import OutputSchema
from llmprod.types import Refusal, Text
from llmprod.verdict import Classifier
from llmprod.wrappers._cache_entry import Entry, NotStorable, decode, encode
from llmprod.wrappers._flight import Flight
from llmprod.wrappers._store_gate import StoreGate

if TYPE_CHECKING:
    from llmprod.wrappers.cache import Cache

__all__ = ["Reason", "Shelf", "State", "joined", "lasting", "outage"]

Reason: TypeAlias = Literal["absent", "expired", "unreadable", "unfit", "refresh"]
"""Why there is no stored answer to give."""
State: TypeAlias = Literal["fresh", "stale", "error"]
"""Of a stored answer: fresh, past its end but to be given, or to be given only if the target is down."""

_POLL = 0.05  # seconds between looks at what another process is making, at first
_POLL_AT_MOST = 0.5
_RELEASE_WITHIN = 2.0  # seconds; a lease that can't be given back ends by itself
_CLOCKS_APART = 60.0  # seconds by which the clocks of machines that share a store may differ


class Shelf:
    """The stored answers of ``inner``."""

    def __init__(self, inner: Provider, wrapper: Cache) -> None:
        self._wrapper = wrapper
        self._name = inner.name
        answering, edits = _within(inner)
        # Several keys of one deployment are one target.
        targets = [*{repr(told): told for told in map(target_identity, answering)}.values(), *edits]
        try:
            self._key = CacheKey(
                targets, versions=wrapper.versions, normalise=wrapper.normalise, scope_rule=_told(wrapper.scope)
            )
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
        try:
            return self._key(request, scope=self._whose(context), prompt=context.prompt), ""
        except Unkeyable:
            return None, "no key"

    def _whose(self, context: Context) -> str:
        scope = self._wrapper.scope
        if scope is None:
            return ""
        whose: object
        if isinstance(scope, str):
            whose = context.tags.get(scope, "")
        elif callable(scope):
            whose = scope(context)
        else:
            values = [context.tags.get(tag, "") for tag in scope]
            whose = joined(values) if all(type(value) is str for value in values) else None
        if not isinstance(whose, str):
            # None would be the tenant "None", and an object without a text of its own any that gets its address.
            raise InvalidArgument("scope", type(whose).__name__, "a str, from the tags or the function")
        return whose

    async def look(self, key: str, context: Context, request: Request) -> tuple[Entry | None, Reason]:
        """Return what is stored under ``key`` and fits ``request``, or None and why there is none."""
        value = await self._store.get(key, context, self._name)
        if value is None:
            return None, "absent"
        entry = decode(value, key)
        if entry is None:
            return None, "unreadable"
        return (entry, "expired") if _suits(entry, request) else (None, "unfit")

    def state(self, entry: Entry) -> State | None:
        """Tell how far ``entry`` may be given; None: not at all."""
        wrapper = self._wrapper
        age = wrapper.now() - entry.created
        if age < -_CLOCKS_APART:
            return None  # by a clock that was wrong, which may say so for years
        past = age - self.ttl(entry)
        if past < 0:
            return "fresh"
        if entry.error is not None:
            return None
        if past < wrapper.stale_while_revalidate:
            return "stale"
        return "error" if past < wrapper.stale_if_error else None

    def ttl(self, entry: Entry) -> float:
        """Return the seconds for which ``entry`` is fresh: no longer than who stored it said, nor than this cache."""
        wrapper = self._wrapper
        return min(entry.ttl, wrapper.ttl if entry.error is None else wrapper.negative_ttl)

    async def keep(self, flight: Flight, key: str, request: Request, took: float) -> None:
        """Store what has landed, if it is to be stored."""
        hop, context, wrapper = flight.hop, flight.context, self._wrapper
        assert hop is not None
        if flight.superseded:
            reason: str | None = "superseded"
        else:
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
            return None if fits(hop.text, request.output) else "invalid output"
        return None

    async def lease(
        self, key: str, seconds: float, context: Context, request: Request, refresh: bool
    ) -> Entry | bytes | None:
        """Get leave to make an answer, or the answer that another process made; None where the store is away."""
        token = uuid4().bytes
        begun = self._wrapper.now()
        wait = _POLL
        ours: bool | None = True  # while that is not known
        try:
            while True:
                ours = True
                ours = await self._store.add(f"{key}:lease", token, seconds, context, self._name)
                if ours is None:
                    return None
                entry, _ = await self.look(key, context, request)
                if entry is not None and self.state(entry) == "fresh" and (not refresh or entry.created >= begun):
                    if ours:
                        await self.release(key, token, context)
                    return entry
                if ours:
                    return token
                await context.clock.sleep(wait * (0.5 + context.random.random()))
                wait = min(wait * 1.5, _POLL_AT_MOST)
        except BaseException:
            if ours:
                await self.release(key, token, context)
            raise

    async def release(self, key: str, token: bytes, context: Context) -> None:
        """Give back leave to make an answer, in spite of a cancellation: the others wait for it."""
        with anyio.move_on_after(_RELEASE_WITHIN, shield=True):
            await self._store.release(f"{key}:lease", token, context, self._name)


def _within(provider: Provider) -> tuple[list[Provider], list[Any]]:
    """Who may answer in the end, and what the wrappers on the way there tell of how they change requests."""
    answering: list[Provider] = []
    edits: list[Any] = []
    inner = getattr(provider, "inner", None)
    targets: Sequence[Provider] = (inner,) if inner is not None else tuple(getattr(provider, "targets", ()))
    if not targets:
        return [provider], []
    own = getattr(provider, "cache_identity", None)
    if own is not None:
        edits.append([type(provider).__qualname__, own])
    for each in (*targets, *getattr(provider, "stand_ins", ())):
        further, more = _within(each)
        answering += further
        edits += more
    return answering, edits


def fits(text: str, output: OutputSchema) -> bool:
    """Tell whether an answer fits its output schema; what a validator of the application raises says no too."""
    try:
        output.parse(text)
    except Exception:  # noqa: BLE001 - raised again where the caller asks for what it parsed
        return False
    return True


def _suits(entry: Entry, request: Request) -> bool:
    """Tell whether an entry is for this request too, beyond what the key tells.

    An answer fits the Python type, which may check more than its JSON Schema says. A refusal was of the same kind of
    call: there are models and accounts that may not stream, and answers that are given as a stream alone.
    """
    if entry.error is not None and not isinstance(entry.error, ContextTooLong):
        return entry.streamed is request.stream
    if type(request) is not GenerateRequest or request.output is None or request.output.adapter is None:
        return True
    if entry.error is not None or not any(type(event) is Finish and event.reason == "stop" for event in entry.events):
        return True
    texts: dict[int, str] = {}
    for event in entry.events:
        if type(event) is TextDelta:
            texts[event.part] = texts.get(event.part, "") + event.text
        elif type(event) is PartDone:
            texts[event.part] = event.value.text if isinstance(event.value, Text) else ""
    return fits("".join(texts[part] for part in sorted(texts)), request.output)


def _told(scope: Any) -> Any:
    """What the scopes are the values of: a tenant and a user of one name are two."""
    return rule_identity(scope) if callable(scope) else scope


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
