"""One pure function decides what an error means; every wrapper reads its verdict and none looks at a status code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from llmprod import errors

__all__ = ["Action", "Classifier", "Verdict", "classify"]


class Action(Enum):
    """What to do after a failed attempt."""

    RETRY_SAME = "retry_same"
    """The same target may be asked again, after a wait; another may be asked at once."""
    RETRY_OTHER = "retry_other"
    """The same target is not asked again in this call; another may be."""
    QUARANTINE_KEY = "quarantine_key"
    """This credential is refused until somebody acts; another credential or target may be asked."""
    FATAL = "fatal"
    """No attempt will help: the error goes to the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an error means for the wrappers.

    Attributes:
        action: what to do next.
        retry_after: seconds that the refusing side asked to wait; never shortened on the same target.
        throttled: the target said that it is asked too much, so back off longer.
        prefer_other: where another target is at hand, ask it rather than this one again.
        health: what the error tells a circuit breaker about the target: ``down`` (a failure), ``up`` (it refused,
            so it lives) or ``unknown`` (nothing, as with a local refusal).
    """

    action: Action
    retry_after: float | None = None
    throttled: bool = False
    prefer_other: bool = False
    health: Literal["up", "down", "unknown"] = "unknown"


Classifier = Callable[[BaseException], Verdict]
"""The type of :func:`classify`; pass your own to a wrapper to change a decision."""

_SAME, _OTHER, _KEY, _FATAL = Action.RETRY_SAME, Action.RETRY_OTHER, Action.QUARANTINE_KEY, Action.FATAL

# Looked up along the error's class hierarchy, so a subclass may be listed apart from its base.
_TABLE: dict[type[BaseException], Verdict] = {
    errors.RateLimited: Verdict(action=_SAME, throttled=True, prefer_other=True, health="up"),
    errors.Overloaded: Verdict(action=_SAME, throttled=True, prefer_other=True, health="down"),
    errors.ServerError: Verdict(action=_SAME, health="down"),
    errors.QuotaExhausted: Verdict(action=_KEY, health="up"),
    errors.AuthenticationFailed: Verdict(action=_KEY, health="up"),
    errors.PermissionDenied: Verdict(action=_KEY, health="up"),
    errors.NotFound: Verdict(action=_OTHER, health="up"),
    errors.ContextTooLong: Verdict(action=_OTHER, health="up"),
    errors.ContentFiltered: Verdict(action=_FATAL, health="up"),
    errors.BadRequest: Verdict(action=_FATAL, health="up"),
    # Said of itself that asking again is no use (x-should-retry: false), or not understood.
    errors.ProviderError: Verdict(action=_OTHER, health="down"),
    errors.ConnectError: Verdict(action=_SAME, health="down"),
    errors.ReadError: Verdict(action=_SAME, health="down"),
    errors.TransportError: Verdict(action=_SAME, health="down"),
    # The attempt was probably billed whole, and the route has just shown that it cuts: try elsewhere first.
    errors.TruncatedAnswer: Verdict(action=_SAME, prefer_other=True, health="down"),
    errors.ProtocolError: Verdict(action=_SAME, prefer_other=True, health="down"),
    # A silent route stays silent: asking it again costs the caller the whole limit once more.
    errors.CallTimeout: Verdict(action=_OTHER, health="down"),
    errors.DeadlineExceeded: Verdict(action=_FATAL),
    errors.Rejected: Verdict(action=_OTHER),
    # A Retry may wait for as long as the server asked to be left alone; where it refused all keys, that is no use.
    errors.NoUsableKey: Verdict(action=_SAME, prefer_other=True),
    errors.EngineNotReady: Verdict(action=_SAME, prefer_other=True),
    errors.EngineStartFailed: Verdict(action=_OTHER, health="down"),
    errors.EngineDied: Verdict(action=_SAME, prefer_other=True, health="down"),
    errors.StreamInterrupted: Verdict(action=_FATAL),
    errors.InvalidOutput: Verdict(action=_FATAL, health="up"),
    errors.UnsupportedParameter: Verdict(action=_OTHER),
    errors.InvalidArgument: Verdict(action=_FATAL),
    errors.LLMProdError: Verdict(action=_FATAL),
}
_UNKNOWN = Verdict(action=_FATAL)


def classify(error: BaseException) -> Verdict:
    """Return what ``error`` means. Pure: the same error always gives the same verdict.

    Errors of other libraries and of the application itself are ``FATAL``: what isn't understood isn't repeated.
    """
    if isinstance(error, errors.AllTargetsFailed):
        return error.verdict
    if isinstance(error, errors.ReadError) and error.in_stream:
        return replace(_TABLE[errors.TruncatedAnswer], retry_after=error.retry_after)
    if isinstance(error, errors.NoUsableKey) and getattr(error, "refused", False):
        return replace(_TABLE[errors.Rejected], retry_after=error.retry_after)
    for kind in type(error).__mro__:
        verdict = _TABLE.get(kind)
        if verdict is not None:
            retry_after = getattr(error, "retry_after", None)
            return verdict if retry_after is None else replace(verdict, retry_after=retry_after)
    return _UNKNOWN
