"""The experiment: what the provider allows, how it counts, and who asks."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from typing import Literal

Mode = Literal["reserve", "actual", "window"]


@dataclass(frozen=True)
class Plan:
    """One run; times in seconds.

    Attributes:
        mode: how the provider counts tokens. ``reserve``: prompt and ``max_tokens`` when a call is admitted, as OpenAI
            does, and nothing is given back. ``actual``: the prompt when it is admitted, the answer when it is there,
            into debt if need be. ``window``: as ``actual``, but in windows of ``period`` that begin anew with the
            whole allowance, instead of a bucket that refills.
        requests, tokens: allowance a minute.
        depth: seconds of the allowance that a bucket holds.
        period: seconds of a window.
        callers: how many ask, each again as soon as it has its answer.
        length: how long they ask.
        warm_up: utilisation counts from here on.
        prompt, answer, max_tokens: mean tokens of a lognormal prompt and answer, and the answer's bound.
        speed: tokens a second that an answer is written at.
        outage: seconds of the run between which Redis is dead, where there is one.
    """

    mode: Mode
    requests: float = 2400
    tokens: float = 750_000
    depth: float = 10.0
    period: float = 20.0
    callers: int = 200
    length: float = 75.0
    warm_up: float = 15.0
    prompt: float = 250.0
    answer: float = 250.0
    sigma: float = 0.7
    max_tokens: int = 1000
    first_token: float = 0.3
    speed: float = 150.0
    outage: tuple[float, float] = (35.0, 55.0)
    seed: int = 1

    def prompt_text(self, call: int) -> str:
        """A call's prompt."""
        words = max(4, round(self._length(self.prompt, f"prompt/{call}")))
        return f"call {call}:" + " word" * (words - 3)

    def answer_tokens(self, call: int) -> int:
        """Tokens of a call's answer: unknown to the caller, the same for all contestants."""
        return min(self.max_tokens, max(1, round(self._length(self.answer, f"answer/{call}"))))

    def _length(self, mean: float, seed: str) -> float:
        chance = random.Random(f"{self.seed}/{seed}")
        return chance.lognormvariate(math.log(mean) - self.sigma**2 / 2, self.sigma)

    def to_json(self) -> str:
        """For a child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What :meth:`to_json` wrote."""
        return cls(**json.loads(text))


PLANS: dict[str, Plan] = {
    # Counting max_tokens takes 1,250 for a call that uses 500: the same allowance of tokens is a third of the calls.
    "reserve": Plan("reserve", tokens=1_500_000),
    "actual": Plan("actual"),
    "window": Plan("window"),
}
QUICK: dict[str, Plan] = {
    name: Plan(
        plan.mode, tokens=plan.tokens, callers=60, length=12.0, warm_up=4.0, period=5.0, depth=2.0, outage=(5.0, 8.0)
    )
    for name, plan in PLANS.items()
}
"""To see that all of it works; too short to compare anything."""
