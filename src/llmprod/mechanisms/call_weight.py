"""How heavy a call is beside the others that one balancer sees: its tokens by those of a typical call."""

from __future__ import annotations

from llmprod.mechanisms.token_estimate import TokenEstimate
from llmprod.request import Request
from llmprod.usage import Usage

__all__ = ["CallSize", "CallWeight"]

_RATE = 0.03
_SPREAD = 8.0
"""No call counts as more than eight typical ones, nor as less than an eighth: the estimate is rough."""


class CallSize:
    """What is known of a call's size before it is made."""

    __slots__ = ("prompt", "weight")

    def __init__(self, prompt: float, weight: float) -> None:
        self.prompt: float = prompt
        self.weight: float = weight


class CallWeight:
    """Weighs calls by the tokens that they reserve: the prompt's estimate, and ``max_tokens`` or what answers were.

    A typical call, the mean of the recent ones, weighs 1, so that a pending call means the same as in other balancers.
    """

    __slots__ = ("_calls", "_tokens", "_typical")

    def __init__(self) -> None:
        self._tokens = TokenEstimate()
        self._typical = 0.0
        self._calls = 0

    def weigh(self, request: Request) -> CallSize:
        """Return the size of ``request``."""
        prompt = self._tokens.raw_input(request)
        reserved = max(1.0, prompt + self._tokens.output(request))
        self._calls += 1
        self._typical += (reserved - self._typical) * max(_RATE, 1.0 / self._calls)
        return CallSize(prompt, min(_SPREAD, max(1.0 / _SPREAD, reserved / self._typical)))

    def learn(self, request: Request, usage: Usage | None) -> None:
        """Note what a complete answer used."""
        if usage is not None:
            self._tokens.learn(request, 0.0, 0.0, usage.total_output)
