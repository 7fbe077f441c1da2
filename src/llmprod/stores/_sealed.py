"""An entry on a disk: its value with a checksum over the key, the time and the value, so that damage shows.

The checksum is BLAKE2b of 16 bytes. It has no key of its own: it finds accidents, not forgery (``Encrypted`` does).
"""

from __future__ import annotations

import hashlib
import math
import struct

_HEAD = struct.Struct("<Bd16s")  # version, the wall clock's seconds when its time is over, checksum
_VERSION = 1
_PERSON = b"llmprod entry"


class Damaged(Exception):
    """What is there is not what was kept under this key."""


def seal(key: bytes, value: bytes, expires: float | None) -> bytes:
    """Return what to keep of ``value``."""
    until = math.inf if expires is None else expires
    return _HEAD.pack(_VERSION, until, _checksum(key, value, until)) + value


def unseal(key: bytes, sealed: object, now: float) -> bytes | None:
    """Return the value, None where its time is over.

    Raises:
        Damaged: it was not kept so, under this key.
    """
    if type(sealed) is not bytes or len(sealed) < _HEAD.size:
        raise Damaged
    version, until, checksum = _HEAD.unpack_from(sealed)
    value = sealed[_HEAD.size :]
    if version != _VERSION or checksum != _checksum(key, value, until):
        raise Damaged
    return value if now < until else None


def _checksum(key: bytes, value: bytes, until: float) -> bytes:
    # Key and time first, each of a length that follows from what is hashed before it.
    summed = hashlib.blake2b(struct.pack("<dI", until, len(key)) + key, digest_size=16, person=_PERSON)
    summed.update(value)
    return summed.digest()
