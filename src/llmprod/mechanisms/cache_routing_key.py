"""The key that brings calls with a common prefix to the same machine of a provider (``prompt_cache_key``).

OpenAI's advice is some 15 calls a minute and key; beyond that calls overflow to machines that know nothing of the
prefix. So a busy prefix gets several keys, and each conversation keeps one of them. Their number is a power of two:
when it doubles, half of the conversations stay where they are, and the others know where they go.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from hashlib import blake2b

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock

__all__ = ["CacheRoutingKey"]

_MINUTE = 60.0
_REMEMBERED = 10  # minutes whose busiest decides, so that a quiet minute moves nobody
_PREFIXES = 1000
_MOST_KEYS = 1 << 16


class _Rate:
    __slots__ = ("busy", "count", "minute")

    def __init__(self) -> None:
        self.minute = -1
        self.count = 0
        self.busy: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)


class CacheRoutingKey:
    """Makes keys.

    Args:
        app: tells applications apart whose prompts begin alike; never shown, since a key is a digest.
        per_minute: calls a minute that one key may bring (default 15, OpenAI's advice).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is wrong.
    """

    def __init__(self, app: str, *, per_minute: float = 15.0, clock: Clock = SYSTEM_CLOCK) -> None:
        _validate.between("per_minute", per_minute, 1, float("inf"))
        self._salt = blake2b(app.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self._per_minute = per_minute
        self._clock = clock
        self._rates: OrderedDict[str, _Rate] = OrderedDict()

    def key(self, prefix: str, conversation: str) -> str:
        """Count a call and return its key: 32 characters, and a number behind a dash if the prefix has several.

        Args:
            prefix: digest of what the calls have in common.
            conversation: digest of what makes a conversation; its calls keep their key.
        """
        digest = self._digest(prefix.encode())
        keys = self.keys(prefix, count=True)
        place = int(self._digest(conversation.encode())[:8], 16) % keys
        return f"{digest}-{place}" if place else digest

    def keys(self, prefix: str, *, count: bool = False) -> int:
        """Return how many keys a prefix has now; with ``count`` after one more call."""
        rate = self._rates.get(prefix)
        if rate is None:
            if not count:
                return 1
            rate = self._rates[prefix] = _Rate()
            if len(self._rates) > _PREFIXES:
                self._rates.popitem(last=False)
        self._rates.move_to_end(prefix)
        minute = int(self._clock.now() // _MINUTE)
        if minute != rate.minute:
            if rate.count:
                rate.busy.append((rate.minute, rate.count))
            rate.minute, rate.count = minute, 0
        rate.count += count
        busiest = max([rate.count, *(calls for at, calls in rate.busy if minute - at <= _REMEMBERED)])
        keys = 1
        while keys * self._per_minute < busiest and keys < _MOST_KEYS:
            keys *= 2
        return keys

    def _digest(self, told: bytes) -> str:
        return blake2b(told, digest_size=16, key=self._salt).hexdigest()
