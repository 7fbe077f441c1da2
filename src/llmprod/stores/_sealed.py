"""An entry on a disk: its value with checksums over the key, the time and the value, so that damage shows.

Key, time and the value's CRC-32 are held together by BLAKE2b of 16 bytes, the value by the CRC: a cryptographic sum of
twenty kilobytes takes longer than reading them from SQLite, and of damage a CRC misses one case in four thousand
million. Neither has a key of its own: they find accidents, not forgery (``Encrypted`` does).
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib

_HEAD = struct.Struct("<BdQI")  # version, the wall clock's seconds when its time is over, length and CRC of the value
_VERSION = 1
_SUM = 16
_BEFORE = _HEAD.size + _SUM


class Damaged(Exception):
    """What is there is not what was kept under this key."""


def seal(key: bytes, value: bytes, expires: float | None) -> bytes:
    """Return what to keep of ``value``."""
    head = _HEAD.pack(_VERSION, math.inf if expires is None else expires, len(value), zlib.crc32(value))
    return b"".join((head, _sum(head, key), value))


def unseal(key: bytes, sealed: object, now: float) -> bytes | None:
    """Return the value, None where its time is over.

    Raises:
        Damaged: it was not kept so, under this key.
    """
    if type(sealed) is not bytes or len(sealed) < _BEFORE:
        raise Damaged
    head, value = sealed[: _HEAD.size], sealed[_BEFORE:]
    version, until, length, crc = _HEAD.unpack(head)
    if version != _VERSION or length != len(value) or sealed[_HEAD.size : _BEFORE] != _sum(head, key):
        raise Damaged
    if crc != zlib.crc32(value):
        raise Damaged
    return value if now < until else None


def _sum(head: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(head + key, digest_size=_SUM, person=b"llmprod entry").digest()
