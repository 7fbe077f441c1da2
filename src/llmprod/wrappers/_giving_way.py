"""Who gives way to others rather than let a call wait, and how a refusal tells it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from llmprod.errors import AllTargetsFailed, BulkheadFull, EngineNotReady, Rejected, UnsupportedParameter
from llmprod.provider import Provider
from llmprod.wrapper import _children

__all__ = ["Way", "gives_way", "refused", "way_of"]

Way: TypeAlias = Literal["full", "starting"]
"""What a call would have to wait for."""


def gives_way(provider: Provider) -> bool:
    """Tell whether ``provider``, or one within, looks whether somebody else can be asked (``context.alternatives``)."""
    own = hasattr(provider, "prepare") or getattr(provider, "gives_way", False)
    return own or any(map(gives_way, _children(provider)))


def refused(error: Exception) -> bool:
    """Nobody was asked: a refusal on this side, or a router's whose targets have all refused so."""
    if isinstance(error, AllTargetsFailed):
        return any(refused(one) for _, one in error.attempts) and all(
            refused(one) or isinstance(one, UnsupportedParameter) for _, one in error.attempts
        )
    return isinstance(error, Rejected)


def way_of(error: Exception) -> Way | None:
    """What a refusing target would have had to be waited for, if that is why it refused."""
    if isinstance(error, AllTargetsFailed):
        ways = {way_of(one) for _, one in error.attempts}
        return "full" if "full" in ways else "starting" if "starting" in ways else None
    return "full" if isinstance(error, BulkheadFull) else "starting" if isinstance(error, EngineNotReady) else None
