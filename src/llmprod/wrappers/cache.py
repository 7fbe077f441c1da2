"""Answers a request that was answered before with the stored answer, and equal requests at one time with one call.

The key is a digest of the whole request (:mod:`llmprod.mechanisms.cache_key`), so only equal requests share an answer.
Freshness is as in HTTP's caches: a time to live, and beyond it ``stale_while_revalidate`` and ``stale_if_error`` of RFC
5861. Before the end, XFetch (:mod:`llmprod.mechanisms.xfetch`) makes the answer anew, in the background. Equal calls
under way share one call upstream, streams as well (:mod:`llmprod.wrappers._flight`).

Stands inside the guards of the input, since what they redact changes the key, and outside those of the output, so that
only what they let through is stored. It stands outside the retries: a failure that reaches it has had its attempts.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, TypeAlias, cast, get_args

from llmprod import _validate
from llmprod.context import Context
from llmprod.errors import InvalidArgument
from llmprod.mechanisms.cache_key import CacheKey, Normalise
from llmprod.provider import Provider
from llmprod.store import Store
from llmprod.stores.memory import MemoryStore
from llmprod.usage import FinishReason
from llmprod.verdict import Classifier, classify
from llmprod.wrapper import Phase, Wrapper, leaves
from llmprod.wrappers._cache_shelf import joined
from llmprod.wrappers._caching import CacheProvider, Counts

__all__ = ["Cache", "CacheStats"]

Scope: TypeAlias = str | tuple[str, ...] | Callable[[Context], str] | None


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache has done since it was made, in this process.

    Attributes:
        hits: calls answered from the store, those of the next two included.
        stale: with an answer past its time to live.
        refusals: with a stored refusal of the provider.
        joined: calls that shared the call of an equal one under way.
        misses: calls that got what upstream said to them, be it an answer or a failure.
        skipped: calls that the cache was not for: sampled, bypassed.
        stored: answers (and refusals) stored.
        refreshed: answers made anew in the background; each is a call upstream too.
        tokens_saved: tokens of the calls that were not made.
        money_saved: what they would have cost, in US dollars, as far as known.
        unpriced: answers given whose price is not known; they are not in ``money_saved``.
    """

    hits: int
    stale: int
    refusals: int
    joined: int
    misses: int
    skipped: int
    stored: int
    refreshed: int
    tokens_saved: int
    money_saved: Decimal
    unpriced: int

    @property
    def hit_rate(self) -> float:
        """Share of the calls that needed no call of their own; those that the cache was not for don't count."""
        saved = self.hits + self.joined
        return saved / (saved + self.misses) if saved + self.misses else 0.0


class Cache(Wrapper):
    """Keep answers, and answer equal requests with them.

    Equal means: the whole request, the targets, the tenant, the prompt's name and version, and ``versions``. Stored are
    complete answers alone, when their last event has come: none that ended for another reason than ``finish`` names, no
    refusal, nothing interrupted, none that does not fit its output schema, and no fixed answer of a last resort. A call
    answered so has no usage and no cost of its own, and says so in ``response.cached``.

    Args:
        store: where answers are kept (default: 64 MiB of this process's memory).
        ttl: seconds that an answer counts as fresh (default 86400, a day), also where a cache with a longer one has
            stored it.
        stale_while_revalidate: seconds after that in which it is given all the same, while it is made anew in the
            background (RFC 5861; default 0).
        stale_if_error: seconds after ``ttl`` in which it is given if the target is down (RFC 5861; default 0).
        negative_ttl: seconds that the provider's refusal of a request as invalid or too long is given for equal
            requests, without asking again (default 30); 0: never.
        sampled: cache requests too whose answer is drawn by chance, with neither ``temperature=0`` nor a ``seed``
            (default False). With True, equal requests get the same answer again, and share one when they come together.
        early: how early an answer that is asked for is made anew before it expires; 1 (the default) is the optimum of
            XFetch (Vattani, Chierichetti and Lowenstein, VLDB 2015), 0 never.
        scope: whose answers these are: a tag's name, several, or a function of the context. Nobody gets an answer of
            another scope. Calls without the tag share one scope (default ``"tenant"``); None: all share one. What the
            function returns must be a str.
        normalise: a rule by which different requests are one, such as :func:`llmprod.normalised_prompt` (default None:
            only equal ones are).
        versions: what else the answer depends on, by name, such as ``{"guard": "3"}``; other versions, other answers.
        finish: reasons to end with which an answer is stored (default ``("stop", "tool_calls")``).
        single_flight: equal requests under way share one call (default True).
        lease: seconds that one process has for making an answer while the others wait for it, over what shares the
            store; longer than your longest call (default None: each process for itself).
        piece: characters of a piece where a stored answer is streamed (default 200).
        buffer: characters of an answer under way that are kept for others to join; a longer one is neither joined nor
            stored (default 8 Mi).
        prices: what an answer would have cost, where no CostMeter inside told it: a function of its usage, with the
            keywords ``provider`` and ``model``, such as ``PriceBook().cost``.
        classify: what an error means (default :func:`llmprod.classify`).
        now: seconds since 1970, which processes agree on (default None: ``time.time``).

    Raises:
        InvalidArgument: an option is out of range; ``inner``, where it is a decorated function.
    """

    phase: ClassVar[Phase] = Phase.CACHE

    def __init__(
        self,
        store: Store | None = None,
        *,
        ttl: float = 86_400.0,
        stale_while_revalidate: float = 0.0,
        stale_if_error: float = 0.0,
        negative_ttl: float = 30.0,
        sampled: bool = False,
        early: float = 1.0,
        scope: Scope = "tenant",
        normalise: Normalise | None = None,
        versions: Mapping[str, str] | None = None,
        finish: Sequence[FinishReason] = ("stop", "tool_calls"),
        single_flight: bool = True,
        lease: float | None = None,
        piece: int = 200,
        buffer: int = 8 * 2**20,
        prices: Callable[..., Any] | None = None,
        classify: Classifier = classify,
        now: Callable[[], float] | None = None,
    ) -> None:
        if store is not None and not isinstance(cast("object", store), Store):
            raise InvalidArgument("store", type(store).__name__, "a store such as MemoryStore(), or None")
        _validate.seconds("ttl", ttl)
        _validate.seconds("stale_while_revalidate", stale_while_revalidate, zero=True)
        _validate.seconds("stale_if_error", stale_if_error, zero=True)
        _validate.seconds("negative_ttl", negative_ttl, zero=True)
        _validate.flag("sampled", sampled)
        _validate.between("early", early, 0, 100)
        _check_scope(scope)
        _check_function("normalise", normalise)
        if prices is not None and not callable(prices) and hasattr(prices, "cost"):
            raise InvalidArgument("prices", type(prices).__name__, "a function such as PriceBook().cost, or None")
        _check_function("prices", prices)
        _check_function("now", now)
        _validate.labels("versions", versions or {})
        for reason in _validate.strings("finish", finish):
            if reason not in get_args(FinishReason):
                raise InvalidArgument("finish", repr(reason)[:40], ", ".join(get_args(FinishReason)))
        _validate.flag("single_flight", single_flight)
        _validate.seconds("lease", lease, optional=True)
        _validate.whole("piece", piece, 1)
        _validate.whole("buffer", buffer, 1)
        self.store: Store = MemoryStore() if store is None else store
        self.ttl: float = float(ttl)
        self.stale_while_revalidate: float = float(stale_while_revalidate)
        self.stale_if_error: float = float(stale_if_error)
        self.negative_ttl: float = float(negative_ttl)
        self.sampled = sampled
        self.early: float = float(early)
        self.scope: Scope = scope
        self.normalise = normalise
        self.versions: dict[str, str] = dict(versions or {})
        self.finish: frozenset[str] = frozenset(finish)
        self.single_flight = single_flight
        self.lease = lease
        self.piece = piece
        self.buffer = buffer
        self.prices = prices
        self.classify = classify
        self.now: Callable[[], float] = time.time if now is None else now
        self.counts: Counts = Counts()

    def wrap(self, inner: Provider) -> Provider:
        """Cache ``inner``'s answers."""
        for leaf in leaves(inner):
            if getattr(leaf, "returns_anything", False):
                raise InvalidArgument(
                    "inner", "a decorated function, whose results can't be stored", "a provider; see AsyncClient"
                )
        return CacheProvider(inner, self)

    def stats(self) -> CacheStats:
        """Return what it has done so far."""
        counts = self.counts
        return CacheStats(**{name: getattr(counts, name) for name in Counts.__slots__})

    async def clear(self, *scope: str) -> int:
        """Forget everything that is stored, or everything of one scope; return how many answers that were.

        Args:
            scope: the tags' values (``""`` for calls without the tag), or what the function gave; none: everything.

        Raises:
            StoreUnavailable: the store can't be written now.
        """
        key = CacheKey()
        return await self.store.clear(key.of_scope(joined(scope)) if scope else key.prefix)

    def __repr__(self) -> str:
        told = [f"{type(self.store).__name__}, {self.ttl:g} s"]
        for name in ("stale_while_revalidate", "stale_if_error"):
            if value := getattr(self, name):
                told.append(f"{name}={value:g} s")  # noqa: PERF401
        if self.sampled:
            told.append("sampled=True")
        return f"Cache({', '.join(told)})"


def _check_scope(scope: Any) -> None:
    if inspect.iscoroutinefunction(scope):
        raise InvalidArgument("scope", "an async function", "a function that returns a str")
    if scope is None or callable(scope) or (isinstance(scope, str) and scope):
        return
    tags: tuple[Any, ...] = cast("Any", scope) if isinstance(scope, tuple) else ()
    if not tags or not all(isinstance(tag, str) and tag for tag in tags):
        raise InvalidArgument(
            "scope", repr(cast("object", scope))[:40], "a tag's name, a tuple of names, a function, or None"
        )


def _check_function(field: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise InvalidArgument(field, type(value).__name__, "a function, or None")
