"""What the wrappers decided in a call: one frozen record a decision, for traces, listeners and metrics.

A decision is what changed the course of a call: a wait, a refusal, another target, a breaker that opened. Leave that is
given as usual is none. Records hold names, numbers and fixed words, never prompt text, keys or headers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    from decimal import Decimal

    from llmprod.context import Context

__all__ = [
    "AnswerLimited", "AttemptRefused", "BreakerChanged", "BudgetEstimated", "BudgetOverrun", "BudgetPassedSoft",
    "BudgetRefused", "BudgetStoreChanged", "CacheHit", "CacheJoined", "CacheMiss", "CacheRefreshed", "CacheSkipped",
    "CacheStoreChanged", "CacheStored", "CachedContentLost", "CallShed", "CallThrottled", "CallWaited", "ChaosInjected",
    "ConcurrencyChanged", "CrawlStopped", "Decision", "HedgeEnded", "HedgeStarted", "HistoryTrimmed", "KeyQuarantined",
    "LeastBadTried", "LimitCalibrated", "LimitRefused", "LimitStoreChanged", "LimitWaited", "Listener",
    "PrefixVolatile", "QuotaPaused", "ResumeRefused", "RetryScheduled", "RunawayStopped", "StreamHeld", "StreamResumed",
    "TargetChosen", "TargetPaused", "TierGivenUp",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision.

    Attributes:
        at: seconds since the call began.
        target: the target that it is about.
    """

    wrapper: ClassVar[str] = ""
    """The wrapper that decided."""
    shown: ClassVar[bool] = True
    """It has a row in a printed trace; False where other columns tell it."""

    at: float
    target: str

    def values(self) -> dict[str, Any]:
        """Return what was decided, by field, less time and target."""
        return {
            item.name: value
            for item in fields(self)
            if item.name not in ("at", "target") and (value := getattr(self, item.name)) is not None
        }

    def __str__(self) -> str:
        told = ", ".join(f"{name} {_shown(value)}" for name, value in self.values().items())
        return f"{type(self).__name__}: {told}" if told else type(self).__name__


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


Listener: TypeAlias = Callable[[Decision, "Context"], None]
"""Is told every decision as it is made. It must not await; what it raises is logged and changes nothing."""


# ---- attempts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryScheduled(Decision):
    """Another round begins after a wait.

    Attributes:
        round: number of the round to come, from 2.
        delay: seconds of wait.
        error: class of the error that is retried.
    """

    wrapper: ClassVar[str] = "Retry"
    shown: ClassVar[bool] = False
    round: int
    delay: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRefused(Decision):
    """A further attempt was wanted and not started.

    Attributes:
        kind: what wanted it.
        reason: ``attempts`` (the call's cap is reached), ``budget`` (the retry budget is empty), ``deadline`` (the time
            left is shorter than an attempt takes), ``retry_after`` (the wait asked for is too long).
    """

    wrapper: ClassVar[str] = "Retry"
    kind: Literal["retry", "failover", "hedge", "resume"]
    reason: Literal["attempts", "budget", "deadline", "retry_after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChanged(Decision):
    """A circuit breaker changed its state.

    Attributes:
        before, after: ``closed``, ``open``, ``half_open`` …
        reason: what made it, such as ``failures in a row``.
    """

    wrapper: ClassVar[str] = "CircuitBreaker"
    before: str
    after: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastBadTried(Decision):
    """Every candidate refused locally, so the one that is nearest to recovery is asked all the same."""

    wrapper: ClassVar[str] = "Failover"
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetChosen(Decision):
    """A balancer chose among several targets.

    Attributes:
        policy: how, such as ``p2c``, ``weighted``, ``sticky``.
        of: number of targets that could be asked.
        cost: what the policy compared, where it compares.
    """

    wrapper: ClassVar[str] = "Balance"
    shown: ClassVar[bool] = False
    policy: str
    of: int
    cost: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPaused(Decision):
    """A target asked to be left alone.

    Attributes:
        seconds: for how long.
    """

    wrapper: ClassVar[str] = "Failover"
    seconds: float


# ---- cache -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHit(Decision):
    """A stored answer was given in place of a new one.

    Attributes:
        age: seconds since it was stored.
        stale: it was past its time to live.
        refusal: what was stored is the provider's refusal of this request.
    """

    wrapper: ClassVar[str] = "Cache"
    age: float
    stale: bool
    refusal: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheMiss(Decision):
    """No stored answer could be given.

    Attributes:
        reason: ``absent``, ``expired``, ``unreadable`` (damaged, or of another version), ``unfit`` (it does not fit the
            type that this call wants it parsed into), ``refresh`` (the call asked for a new one).
    """

    wrapper: ClassVar[str] = "Cache"
    reason: Literal["absent", "expired", "unreadable", "unfit", "refresh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheJoined(Decision):
    """An equal call was under way, and its answer is this one's too."""

    wrapper: ClassVar[str] = "Cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStored(Decision):
    """The answer was stored.

    Attributes:
        bytes: its size.
        ttl: seconds that it counts as fresh.
        refusal: it is the provider's refusal of this request.
    """

    wrapper: ClassVar[str] = "Cache"
    bytes: int
    ttl: float
    refusal: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSkipped(Decision):
    """The cache was not asked, or the answer not stored.

    Attributes:
        reason: why, in fixed words: ``bypass``, ``sampled``, ``no key``, ``finish length``, ``interrupted`` …
    """

    wrapper: ClassVar[str] = "Cache"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRefreshed(Decision):
    """A stored answer is being made anew in the background.

    Attributes:
        reason: ``stale`` (it is past its time to live) or ``early`` (it soon would be).
    """

    wrapper: ClassVar[str] = "Cache"
    reason: Literal["stale", "early"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStoreChanged(Decision):
    """The cache's store was lost, or came back; meanwhile every call is a miss.

    Attributes:
        state: ``lost`` or ``back``.
        error: class of what was wrong.
    """

    wrapper: ClassVar[str] = "Cache"
    state: Literal["lost", "back"]
    error: str | None = None


# ---- keys ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyQuarantined(Decision):
    """A credential was refused and is left out.

    Attributes:
        key: the credential's label, never the credential.
        seconds: until it is tried again.
        error: class of the refusal.
    """

    wrapper: ClassVar[str] = "KeyPool"
    key: str
    seconds: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaPaused(Decision):
    """Credentials that share a quota are left alone.

    Attributes:
        group: the quota group.
        seconds: for how long.
    """

    wrapper: ClassVar[str] = "KeyPool"
    group: str
    seconds: float


# ---- hedging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeStarted(Decision):
    """No first token came in time, so another deployment is asked as well.

    Attributes:
        delay: seconds after which the hedge began.
    """

    wrapper: ClassVar[str] = "Hedge"
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeEnded(Decision):
    """A hedged call has its answer (or none).

    Attributes:
        winner: ``primary``, ``hedge`` or ``none``.
        wasted: tokens that the loser probably cost, most of them estimated; None where nobody lost or none are known.
    """

    wrapper: ClassVar[str] = "Hedge"
    winner: Literal["primary", "hedge", "none"]
    wasted: int | None = None


# ---- limits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitWaited(Decision):
    """A call waited for a rate limit.

    Attributes:
        seconds: how long.
        dimension: the dimension that was short.
    """

    wrapper: ClassVar[str] = "RateLimit"
    seconds: float
    dimension: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRefused(Decision):
    """A rate limit refused a call.

    Attributes:
        dimension: the dimension that was short.
        retry_after: seconds until it would have leave, where known.
    """

    wrapper: ClassVar[str] = "RateLimit"
    dimension: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitCalibrated(Decision):
    """The provider told less than the limiter believed, and was believed.

    Attributes:
        dimension: which allowance.
        before, after: what is left of it.
    """

    wrapper: ClassVar[str] = "RateLimit"
    dimension: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitStoreChanged(Decision):
    """The shared store of limits was lost, or came back.

    Attributes:
        state: ``lost`` or ``back``.
        mode: what happens meanwhile: ``local_share`` or ``refuse``.
    """

    wrapper: ClassVar[str] = "RateLimit"
    state: Literal["lost", "back"]
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWaited(Decision):
    """A call waited for a place among those under way.

    Attributes:
        seconds: how long.
    """

    wrapper: ClassVar[str] = "Bulkhead"
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShed(Decision):
    """A call that would have had to wait, or had waited, was given up to protect the others.

    Attributes:
        reason: ``queue full``, ``too late`` (its deadline leaves no time), ``waited too long``.
        waited: seconds that it had waited.
    """

    wrapper: ClassVar[str] = "Bulkhead"
    reason: Literal["queue full", "too late", "waited too long"]
    waited: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallThrottled(Decision):
    """A call was refused because the target refuses too many.

    Attributes:
        probability: of being refused.
    """

    wrapper: ClassVar[str] = "AdaptiveThrottle"
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyChanged(Decision):
    """An adaptive limit of calls under way moved.

    Attributes:
        before, after: calls at once.
    """

    wrapper: ClassVar[str] = "Bulkhead"
    before: int
    after: int


# ---- prompts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryTrimmed(Decision):
    """Messages were left out of a history that would not have fitted into the model's window.

    Attributes:
        messages: how many.
        tokens: of them, estimated.
        policy: ``oldest``, ``middle``, or ``function`` for one of your own.
        window: of the target, in tokens.
    """

    wrapper: ClassVar[str] = "ContextWindow"
    messages: int
    tokens: int
    policy: str
    window: int


# ---- money -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPassedSoft(Decision):
    """A budget's soft limit is passed.

    Attributes:
        limit: the budget's name.
        used: US dollars spent or reserved, this call among them.
        amount: US dollars that may be spent in the period.
        cheaper: the target that the call goes to instead; None where it stays.
    """

    wrapper: ClassVar[str] = "Budget"
    limit: str
    used: Decimal
    amount: Decimal
    cheaper: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRefused(Decision):
    """A budget had no room for an attempt.

    Attributes:
        limit: the budget's name; ``price`` where no price is known, ``store`` where the store is lost.
        needed: US dollars that the attempt may cost.
        left: US dollars that were left.
    """

    wrapper: ClassVar[str] = "Budget"
    limit: str
    needed: Decimal | None = None
    left: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOverrun(Decision):
    """An attempt cost more than was reserved for it; all of it counts.

    Attributes:
        reserved, cost: US dollars.
    """

    wrapper: ClassVar[str] = "Budget"
    reserved: Decimal
    cost: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetEstimated(Decision):
    """Nobody told what an attempt cost, so an estimate counts.

    Attributes:
        cost: US dollars.
        basis: ``reservation`` (all that was reserved), ``shown`` (the prompt and what arrived of the answer), or
            ``unpriced`` (no price is known, so nothing).
    """

    wrapper: ClassVar[str] = "Budget"
    cost: Decimal
    basis: Literal["reservation", "shown", "unpriced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStoreChanged(Decision):
    """The shared store of budgets was lost, or came back.

    Attributes:
        state: ``lost`` or ``back``.
        mode: what happens meanwhile: ``refuse`` or ``allow``.
    """

    wrapper: ClassVar[str] = "Budget"
    state: Literal["lost", "back"]
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimited(Decision):
    """A request was sent with another ``max_tokens`` than it had.

    Attributes:
        max_tokens: the limit it was sent with.
        before: the limit it had.
        source: ``default``, ``endpoint``, ``learned`` or ``ceiling``.
    """

    wrapper: ClassVar[str] = "MaxTokens"
    shown: ClassVar[bool] = False
    max_tokens: int
    before: int | None = None
    source: Literal["default", "endpoint", "learned", "ceiling"]


# ---- streams ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHeld(Decision):
    """A stream broke while its first events were still held back, so the caller saw nothing of it.

    Attributes:
        events: number of events that were dropped.
    """

    wrapper: ClassVar[str] = "Resume"
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResumed(Decision):
    """An interrupted stream goes on.

    Attributes:
        plan: how.
        error: class of what interrupted it.
    """

    wrapper: ClassVar[str] = "Resume"
    plan: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRefused(Decision):
    """An interrupted stream could not be resumed.

    Attributes:
        reason: why, in fixed words.
    """

    wrapper: ClassVar[str] = "Resume"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CrawlStopped(Decision):
    """A stream moved slower than the least rate, and was given up.

    Attributes:
        characters: that came within the window.
        seconds: length of the window.
        held: nothing of it had been handed out.
    """

    wrapper: ClassVar[str] = "ThroughputGuard"
    characters: int
    seconds: float
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunawayStopped(Decision):
    """A stream that would not end was stopped.

    Attributes:
        reason: ``repetition`` or ``length``.
        characters: of the answer until then.
    """

    wrapper: ClassVar[str] = "MaxTokens"
    reason: Literal["repetition", "length"]
    characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosInjected(Decision):
    """A fault was injected on purpose.

    Attributes:
        kind: ``fault``, ``outcome``, ``latency``, ``cut`` or ``drip``.
        error: class of an injected fault.
        seconds: of latency, or between the events of a drip.
        events: content events before a cut.
    """

    wrapper: ClassVar[str] = "Chaos"
    kind: str
    error: str | None = None
    seconds: float | None = None
    events: int | None = None


# ---- what providers charge -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixVolatile(Decision):
    """The beginning of a prompt changes from call to call, so its provider's prompt cache never finds it again.

    Told once for each prompt name.

    Attributes:
        kind: what changes: ``timestamp``, ``id``, ``tool order`` or ``key order``.
        place: where, such as ``messages[0]`` or ``tool search``.
    """

    wrapper: ClassVar[str] = "PromptCaching"
    kind: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedContentLost(Decision):
    """Content that the provider was to keep could not be made or was gone, so the call went without it.

    Attributes:
        error: class of the failure.
        made: it had been made, and was gone.
    """

    wrapper: ClassVar[str] = "PromptCaching"
    error: str
    made: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TierGivenUp(Decision):
    """The flex tier had no capacity, or the provider has none for this model, so the call went by the standard one.

    Attributes:
        tries: calls at the flex tier that were refused.
        reason: ``no capacity`` or ``not offered``.
    """

    wrapper: ClassVar[str] = "ServiceTier"
    tries: int
    reason: Literal["no capacity", "not offered"]
