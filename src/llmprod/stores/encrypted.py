"""Encryption at rest for any store: AES-GCM, the key of an entry bound to it.

What is kept: a version, which key (the first bytes of its hash), 12 random bytes, the ciphertext with its tag. Version,
key id and the entry's key are authenticated with it, so that an entry can't be moved to another key. Keys of entries
stay readable: put hashes into them.

An entry is not bound to its time: who can write to the store can put back an older value of the same key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmprod.errors import InvalidArgument, StoreUnavailable
from llmprod.store import Store, check_entry, check_key
from llmprod.stores._warn import Warner

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["Encrypted"]

_VERSION = b"\x01"
_ID, _NONCE, _TAG = 4, 12, 16
_HEAD = len(_VERSION) + _ID
_ROUNDS = 20  # a store that reads from a replica gives for a while what is there no more


class Encrypted:
    """A :class:`~llmprod.store.Store` that keeps what it is given encrypted in another one.

    An entry that no key can decrypt (its key was removed, it was damaged, forged, or kept without encryption) is a miss
    with a warning. AES-GCM with random nonces is good for 2**32 entries with one
    key: change it before.

    Args:
        store: where entries are kept; closed with this one.
        key: 16, 24 or 32 random bytes (``secrets.token_bytes(32)``), or several such: the first encrypts, all decrypt.
            To change the key put the new one in front, and remove the old one when entries have aged out.

    Raises:
        InvalidArgument: a key has another length, or there is none.
        ImportError: cryptography is not installed (``pip install 'llmprod[encryption]'``).
    """

    def __init__(self, store: Store, *, key: bytes | Sequence[bytes]) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise ImportError("Encrypted needs cryptography: pip install 'llmprod[encryption]'") from None
        if not isinstance(store, Store):
            raise InvalidArgument("store", type(store).__name__, "a Store")
        keys = (key,) if isinstance(key, bytes) else tuple(key)
        if not keys:
            raise InvalidArgument("key", "none", "at least one")
        for each in keys:
            if type(each) is not bytes or len(each) not in (16, 24, 32):
                given = f"{len(each)} bytes" if isinstance(each, bytes) else type(each).__name__
                raise InvalidArgument("key", given, "16, 24 or 32 bytes")
        self.store = store
        self._ids = tuple(_id(each) for each in keys)
        self._ciphers: dict[bytes, AESGCM] = {}
        for name, each in zip(self._ids, keys, strict=True):
            if name in self._ciphers:
                raise InvalidArgument("key", "the same one twice", "different keys")
            self._ciphers[name] = AESGCM(each)
        self._invalid = InvalidTag
        self._warn = Warner()

    async def get(self, key: str) -> bytes | None:
        """Return what is kept under ``key``, or None.

        Raises:
            StoreUnavailable: as the store that it is kept in.
        """
        check_key(key)
        kept = await self.store.get(key)
        return None if kept is None else self._decrypt(key, kept)

    async def set(self, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep ``value``.

        Raises:
            StoreUnavailable: as the store that it is kept in.
        """
        check_entry(key, value, ttl)
        await self.store.set(key, self._encrypt(key, value), ttl=ttl)

    async def add(self, key: str, value: bytes, *, ttl: float | None = None) -> bool:
        """Keep ``value`` where there is none, or none that can be decrypted; return whether it was kept.

        Raises:
            StoreUnavailable: as the store that it is kept in.
        """
        check_entry(key, value, ttl)
        for _ in range(_ROUNDS):
            if await self.store.add(key, self._encrypt(key, value), ttl=ttl):
                return True
            kept = await self.store.get(key)
            if kept is not None:
                if self._decrypt(key, kept) is not None:
                    return False
                await self.store.delete(key, only=kept)
        raise StoreUnavailable("Encrypted", "what is there can be neither read nor removed")

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """Remove ``key``, or only where its value is ``only``; return whether it was removed.

        Raises:
            StoreUnavailable: as the store that it is kept in.
        """
        check_key(key)
        if only is None:
            return await self.store.delete(key)
        for _ in range(_ROUNDS):
            kept = await self.store.get(key)
            if kept is None or self._decrypt(key, kept) != only:
                return False
            if await self.store.delete(key, only=kept):
                return True
            # Somebody changed it meanwhile: look again.
        raise StoreUnavailable("Encrypted", "what is there can't be removed")

    async def clear(self, prefix: str = "") -> int:
        """Remove all keys that begin with ``prefix``; return how many they were.

        Raises:
            StoreUnavailable: as the store that it is kept in.
        """
        return await self.store.clear(prefix)

    async def aclose(self) -> None:
        """Close the store that entries are kept in."""
        await self.store.aclose()

    def _encrypt(self, key: str, value: bytes) -> bytes:
        name = self._ids[0]
        nonce = os.urandom(_NONCE)
        return b"".join(
            (_VERSION, name, nonce, self._ciphers[name].encrypt(nonce, value, _VERSION + name + key.encode()))
        )

    def _decrypt(self, key: str, kept: bytes) -> bytes | None:
        name = kept[len(_VERSION) : _HEAD]
        cipher = self._ciphers.get(name)
        if cipher is None or kept[: len(_VERSION)] != _VERSION or len(kept) < _HEAD + _NONCE + _TAG:
            self._warn("key", "Encrypted: an entry was encrypted with none of the keys and counts as a miss")
            return None
        nonce, sealed = kept[_HEAD : _HEAD + _NONCE], kept[_HEAD + _NONCE :]
        try:
            return cipher.decrypt(nonce, sealed, _VERSION + name + key.encode())
        except self._invalid:
            self._warn("forged", "Encrypted: an entry is damaged or forged and counts as a miss")
            return None

    def __repr__(self) -> str:
        return f"<Encrypted {self.store!r}, {len(self._ids)} keys>"


def _id(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=_ID, person=b"llmprod key id").digest()
