"""Bodies that come compressed though none was asked for: proxies and clients with headers of their own do that."""

from __future__ import annotations

import zlib

from llmprod.errors import ProtocolError

__all__ = ["Inflater", "inflater"]

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def inflater(encoding: str | None) -> Inflater | None:
    """Return what undoes a ``content-encoding``; None where nothing is to undo."""
    name = (encoding or "").strip().lower()
    return None if name in ("", "identity") else Inflater(_WINDOW.get(name))


class Inflater:
    """Undoes gzip or deflate, piece by piece; holds back nothing that is complete.

    Args:
        window: zlib's ``wbits``; None for an encoding that nobody accepted.
    """

    __slots__ = ("_begun", "_zlib")

    def __init__(self, window: int | None) -> None:
        self._zlib = zlib.decompressobj(window) if window is not None else None
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        """Return what ``data`` adds.

        Raises:
            ProtocolError: corrupt, or an unknown encoding.
        """
        if self._zlib is None:
            raise ProtocolError(detail="a content-encoding that was not accepted", in_stream=True)
        try:
            try:
                return self._zlib.decompress(data)
            except zlib.error:
                if self._begun:
                    raise
                self._zlib = zlib.decompressobj(-15)  # "deflate" without zlib's header, as some servers send it
                return self._zlib.decompress(data)
        except zlib.error as error:
            raise ProtocolError(detail="the compressed body is corrupt", in_stream=True) from error
        finally:
            self._begun = True

    def end(self) -> bytes:
        """Return what remains.

        Raises:
            ProtocolError: the body ended before the compressed data did.
        """
        if self._begun and self._zlib is not None and not self._zlib.eof:
            raise ProtocolError(detail="the compressed body is cut", in_stream=True)
        return b""
