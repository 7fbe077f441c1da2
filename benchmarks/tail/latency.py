"""How long the deployments take: the same draws for every contestant."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

PROMPT_TOKENS = 500
TOKENS_A_SECOND = 100.0
_LONGEST = 1000


@dataclass(frozen=True)
class Call:
    """One call: when it arrives, how long its answer is, and when each deployment would begin to answer it.

    Attributes:
        number: from 0.
        arrives: seconds after the begin.
        first: seconds to the first token, by deployment.
        tokens: of the answer.
    """

    number: int
    arrives: float
    first: tuple[float, float]
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What is asked of each contestant.

    Attributes:
        calls: how many.
        rate: calls a second, at random (Poisson).
        median: of the first token of most calls, in seconds (lognormal).
        sigma: their spread in log space.
        tail: share of calls that take ``slower`` times as long, at each deployment by itself.
        slower: from … to, evenly.
        tokens: median length of an answer (lognormal, sigma 0.6).
        seed: of all of it.
    """

    calls: int
    rate: float
    median: float
    sigma: float = 0.3
    tail: float = 0.04
    slower: tuple[float, float] = (10.0, 20.0)
    tokens: int = 150
    seed: int = 1
    drawn: list[Call] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        # The arrivals, the usual times and the lengths do not change with the share of slow calls.
        usual, slow, lengths = (random.Random(f"{self.seed} {what}") for what in ("usual", "slow", "lengths"))
        now = 0.0
        for number in range(self.calls):
            now += usual.expovariate(self.rate)
            self.drawn.append(
                Call(
                    number,
                    now,
                    (self._first(usual, slow), self._first(usual, slow)),
                    min(_LONGEST, max(1, round(lengths.lognormvariate(0, 0.6) * self.tokens))),
                )
            )

    def _first(self, usual: random.Random, slow: random.Random) -> float:
        first = self.median * usual.lognormvariate(0, self.sigma)
        is_slow, times = slow.random() < self.tail, slow.uniform(*self.slower)
        return first * times if is_slow else first
