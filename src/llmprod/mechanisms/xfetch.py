"""When to compute a cached value anew before it expires, so that it does not expire for all callers at once.

XFetch of Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention" (VLDB 2015): each
reader draws by itself, and the nearer the end and the longer the computation, the likelier it is that one begins early.
No reader has to know of another, so it works over processes as well.
"""

from __future__ import annotations

import math

from llmprod.clock import Random

__all__ = ["early"]


def early(now: float, expires: float, delta: float, beta: float, random: Random) -> bool:
    """Return whether this reader should compute the value anew: ``now - delta * beta * ln(rand) >= expires``.

    Args:
        now: the time.
        expires: when the value expires, on the same time line.
        delta: seconds that computing it took.
        beta: 1 is the paper's optimum; more is earlier, 0 never before ``expires``.
        random: chance.
    """
    if now >= expires:
        return True
    if beta <= 0 or delta <= 0:
        return False
    return now - delta * beta * math.log(1.0 - random.random()) >= expires  # from (0, 1], whose logarithm exists
