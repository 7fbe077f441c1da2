"""When to start something again that has died: at once the first time, then after longer and longer waits.

systemd's ``StartLimitBurst`` within ``StartLimitIntervalSec``, with a doubling wait as Kubernetes has it for containers
(``CrashLoopBackOff``): what dies again and again is given up, since each start costs minutes of a machine.
"""

from __future__ import annotations

from collections import deque

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock

__all__ = ["RestartPolicy", "Restarts"]


class RestartPolicy:
    """How often, and after which waits.

    Args:
        attempts: starts within ``within`` seconds before it is given up (default 5). 0: never start again.
        within: seconds that a start counts for (default 600).
        first_wait: seconds before the second start within that time; doubled with each (default 1). The first is at
            once.
        longest_wait: seconds that no wait exceeds (default 60).

    Raises:
        InvalidArgument: naming the option that is out of range.
    """

    def __init__(
        self, *, attempts: int = 5, within: float = 600.0, first_wait: float = 1.0, longest_wait: float = 60.0
    ) -> None:
        _validate.whole("attempts", attempts, 0)
        _validate.seconds("within", within)
        _validate.seconds("first_wait", first_wait, zero=True)
        _validate.seconds("longest_wait", longest_wait, zero=True)
        self.attempts: int = attempts
        self.within: float = within
        self.first_wait: float = first_wait
        self.longest_wait: float = longest_wait

    def __repr__(self) -> str:
        return f"RestartPolicy({self.attempts} in {self.within:g} s)"


class Restarts:
    """The starts of one engine, by its policy.

    Args:
        policy: how often.
        clock: time.
    """

    def __init__(self, policy: RestartPolicy, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.policy: RestartPolicy = policy
        self.total: int = 0
        self._clock = clock
        self._recent: deque[float] = deque()

    def died(self) -> float | None:
        """Count a death: return the seconds to wait before the next start, or None to give up."""
        policy, now = self.policy, self._clock.now()
        while self._recent and now - self._recent[0] >= policy.within:
            self._recent.popleft()
        earlier = len(self._recent)
        if earlier >= policy.attempts:
            return None
        self._recent.append(now)
        self.total += 1
        return min(policy.longest_wait, policy.first_wait * 2.0 ** (earlier - 1)) if earlier else 0.0

    def forget(self) -> None:
        """Begin anew: somebody asked for a start by hand."""
        self._recent.clear()
