"""What travels through the wrappers when the thing to be called is a function: its arguments, which only it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from llmprod.provider import Capabilities
from llmprod.request import Request

__all__ = ["TAKES_ANY_CALL", "FunctionRequest"]

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRequest:
    """One call of a decorated function.

    A kind of its own rather than a GenerateRequest with a made-up prompt: a wrapper that wants to see a prompt finds
    none here, instead of a wrong one.

    Attributes:
        args, kwargs: the caller's arguments.
        stream: the answer comes in pieces, so limits on the first of them apply.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    stream: bool = False
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    drop_unsupported: bool = False

    @property
    def max_tokens(self) -> int | None:
        """The limit of the answer, where the call names one as the vendors' SDKs do."""
        for name in _LIMITS:
            value = self.kwargs.get(name)
            if isinstance(value, int) and value > 0:
                return value
        return None

    def used(self) -> set[str]:
        """Nothing is asked of the target but to be called."""
        return set()

    def as_request(self) -> Request:
        """Return this as what the wrappers' signatures say; they hand it on without looking inside."""
        return cast("Request", self)

    def __repr__(self) -> str:
        return f"FunctionRequest({len(self.args) + len(self.kwargs)} arguments)"


class _AnyCall(Capabilities):
    """A function takes whatever it is called with; what it can't do it says by raising."""

    __slots__ = ()

    def _lacking(self, request: Request) -> set[str]:
        return set()


TAKES_ANY_CALL = _AnyCall()
