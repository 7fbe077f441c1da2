"""Which of several credentials for one deployment to use, which are dead, and which share a quota that is used up.

Bifrost's taxonomy: a credential that is refused (401, 402, 403) is dead until somebody acts, so it is left out for a
long time; one that is throttled (429) shares its quota with the others of its account, so all of these are left alone
for as long as the server asked; a server that fails (5xx, network) says nothing about the credential.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmprod import _validate
from llmprod.clock import SYSTEM_CLOCK, Clock
from llmprod.errors import InvalidArgument

__all__ = ["KeyRing", "KeyUse", "QuotaGroup"]

_PAUSE_AT_MOST = 3600.0
_LAST = 30.0
"""Seconds of the last key's first quarantine: a provider that refuses good keys for a moment must not shut off all of
them for ten minutes."""


class QuotaGroup:
    """Credentials that share one quota: an account, an organisation, a project.

    Pass the same object to several pools whose models, or providers, draw on the same quota.

    Args:
        name: what decisions call it.
        clock: time.

    Raises:
        InvalidArgument: the name is empty.
    """

    def __init__(self, name: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        if not isinstance(name, str) or not name.strip():
            raise InvalidArgument("name", type(name).__name__, "a non-empty string")
        self.name = name
        self._clock = clock
        self._until = -math.inf

    @property
    def paused_for(self) -> float:
        """Seconds until it may be asked again; 0 if it may be now."""
        return max(0.0, self._until - self._clock.now())

    def pause(self, seconds: float) -> float:
        """Leave it alone for ``seconds``, an hour at most; never shortens a pause. Returns the seconds left."""
        self._until = max(self._until, self._clock.now() + min(seconds, _PAUSE_AT_MOST))
        return self.paused_for

    def resume(self) -> None:
        """End the pause by hand."""
        self._until = -math.inf

    def __repr__(self) -> str:
        return f"<QuotaGroup {self.name}{f' paused for {self.paused_for:.3g} s' if self.paused_for else ''}>"


class _Key:
    """What is known of one credential; the credential itself is not."""

    __slots__ = ("epoch", "group", "label", "pending", "refused", "until")

    def __init__(self, label: str, group: QuotaGroup) -> None:
        self.label: str = label
        self.group: QuotaGroup = group
        self.pending: int = 0
        self.refused: int = 0
        self.until: float = -math.inf
        self.epoch: int = 0


class KeyUse:
    """One call with one credential. Report it; give it back with :meth:`end`, once; the rest is ignored."""

    __slots__ = ("_epoch", "_key", "_ring", "label")

    def __init__(self, ring: KeyRing, key: _Key) -> None:
        self.label: str = key.label
        self._ring = ring
        self._key: _Key | None = key
        self._epoch: int = key.epoch

    def accepted(self) -> None:
        """The server took the credential: a quarantine that was over by then is forgotten."""
        key = self._key
        if key is not None and key.epoch == self._epoch:
            key.refused = 0

    def refused(self) -> float | None:
        """The server refused the credential; returns the seconds of its quarantine, None if it was in one already."""
        key = self._key
        self.end()
        return None if key is None or key.epoch != self._epoch else self._ring.quarantine(key)

    def exhausted(self) -> list[tuple[str, float]]:
        """The account has no credit: quarantines all of its credentials; returns their labels and seconds."""
        key = self._key
        self.end()
        if key is None or key.epoch != self._epoch:
            return []
        return [
            (other.label, self._ring.quarantine(other))
            for other in self._ring.keys
            if other is key or (other.group is key.group and not self._ring.quarantined_for(other))
        ]

    def throttled(self, retry_after: float | None) -> tuple[str, float] | None:
        """The quota is used up; returns the group's name and the seconds of its pause, None if nothing changed."""
        key = self._key
        self.end()
        return None if key is None else self._ring.pause(key.group, retry_after)

    def end(self) -> None:
        """The call is over; nothing more is learned."""
        key, self._key = self._key, None
        if key is not None:
            key.pending -= 1


class KeyRing:
    """The state of a pool's credentials. Synchronous; share it between stacks by passing the same object.

    Args:
        labels: a name for each credential, to be shown; or how many there are, named ``key1``, ``key2`` …
        quota_groups: for each credential its group, or the name of one; credentials without share with nobody
            (default: none has one).
        quarantine: seconds that a refused credential is left out at first (default 600); doubles with each refusal in a
            row. Then one call at a time tries it. For the last one that is left, 30 seconds at first.
        quarantine_at_most: bound of that (default 3600).
        pause: seconds that a throttled group is left alone where the server does not say (default 5).
        clock: time.

    Raises:
        InvalidArgument: naming the option that is wrong.
    """

    def __init__(
        self,
        labels: Sequence[str] | int,
        *,
        quota_groups: Sequence[QuotaGroup | str | None] | None = None,
        quarantine: float = 600.0,
        quarantine_at_most: float = 3600.0,
        pause: float = 5.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if isinstance(labels, int):
            _validate.whole("labels", labels, 1)
            names = tuple(f"key{number}" for number in range(1, labels + 1))
        else:
            names = _validate.strings("labels", labels)
        if not names or len(set(names)) != len(names) or not all(name.strip() for name in names):
            raise InvalidArgument("labels", f"{len(names)} labels", "a different non-empty name for each key")
        if quota_groups is not None and (isinstance(quota_groups, str) or len(quota_groups) != len(names)):
            raise InvalidArgument("quota_groups", type(quota_groups).__name__, f"one for each of {len(names)} keys")
        _validate.seconds("quarantine", quarantine)
        _validate.seconds("quarantine_at_most", quarantine_at_most)
        _validate.seconds("pause", pause)
        self.quarantine_for = quarantine
        self.quarantine_at_most = quarantine_at_most
        self.pause_for = pause
        self._clock = clock
        named: dict[str, QuotaGroup] = {}
        self.keys: tuple[_Key, ...] = tuple(
            _Key(name, _group(place, None if quota_groups is None else quota_groups[place], name, named, clock))
            for place, name in enumerate(names)
        )
        self._turn = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The credentials' names."""
        return tuple(key.label for key in self.keys)

    def usable(self, place: int) -> bool:
        """The credential may be asked now."""
        key = self.keys[place]
        if key.group.paused_for:
            return False
        return not key.refused or (not self.quarantined_for(key) and not key.pending)  # a trial, one at a time

    def order(self) -> list[int]:
        """Return the places of the usable credentials: fewest calls under way first, in turn where they are equal."""
        count = len(self.keys)
        start = self._turn % count
        places = [place for place in (*range(start, count), *range(start)) if self.usable(place)]
        places.sort(key=lambda place: self.keys[place].pending)
        return places

    def take(self, place: int) -> KeyUse:
        """Note that a call begins with this credential."""
        key = self.keys[place]
        key.pending += 1
        self._turn = place + 1
        return KeyUse(self, key)

    @property
    def retry_after(self) -> float:
        """Seconds until a credential is usable; 0 if one is now, or is being tried."""
        return min(max(self.quarantined_for(key), key.group.paused_for) for key in self.keys)

    @property
    def all_refused(self) -> bool:
        """Every credential is quarantined."""
        return all(self.quarantined_for(key) for key in self.keys)

    def state(self) -> dict[str, str]:
        """Tell for each label how it stands: ``usable``, ``trial``, ``quarantined`` or ``paused``."""
        return {key.label: self._state(key) for key in self.keys}

    def restore(self, label: str) -> None:
        """End a credential's quarantine and its group's pause by hand, when what was wrong is mended.

        Raises:
            InvalidArgument: there is no such label.
        """
        for key in self.keys:
            if key.label == label:
                key.refused, key.until = 0, -math.inf
                key.epoch += 1
                key.group.resume()
                return
        raise InvalidArgument("label", repr(label)[:40], ", ".join(self.labels))

    def quarantined_for(self, key: _Key) -> float:
        """Seconds until the credential is tried again."""
        return max(0.0, key.until - self._clock.now())

    def quarantine(self, key: _Key) -> float:
        """Leave a credential out; returns for how many seconds."""
        last = all(other is key or self.quarantined_for(other) for other in self.keys)
        first = min(_LAST, self.quarantine_for) if last else self.quarantine_for
        seconds = min(self.quarantine_at_most, first * 2.0 ** min(key.refused, 30))
        key.refused += 1
        key.epoch += 1
        key.until = self._clock.now() + seconds
        return seconds

    def pause(self, group: QuotaGroup, retry_after: float | None) -> tuple[str, float] | None:
        """Leave a group alone; tells its name and for how long, None if it was left alone for as long already."""
        before = group.paused_for
        if retry_after is None and before:
            return None  # one of many that were under way when the quota ran out: prolongs nothing
        left = group.pause(self.pause_for if retry_after is None else retry_after)
        return (group.name, left) if left > before else None

    def _state(self, key: _Key) -> str:
        if self.quarantined_for(key):
            return "quarantined"
        if key.group.paused_for:
            return "paused"
        return "trial" if key.refused else "usable"

    def __repr__(self) -> str:
        return f"<KeyRing {', '.join(f'{label} {state}' for label, state in self.state().items())}>"


def _group(
    place: int, given: QuotaGroup | str | None, label: str, named: dict[str, QuotaGroup], clock: Clock
) -> QuotaGroup:
    if isinstance(given, QuotaGroup):
        return given
    if given is None:
        return QuotaGroup(label, clock=clock)
    if not isinstance(given, str):
        raise InvalidArgument(f"quota_groups[{place}]", type(given).__name__, "a QuotaGroup, a name, or None")
    if given not in named:
        named[given] = QuotaGroup(given, clock=clock)
    return named[given]
