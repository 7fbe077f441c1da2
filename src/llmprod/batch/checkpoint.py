"""A file of finished items, appended line by line, that a later run goes on with.

Each line is written by one call to the system, so a killed process leaves at most a cut last line, which the next run
removes. Where each key's last good line begins is kept in memory; what the lines hold is not.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pydantic_core import from_json

from llmprod.batch.codec import decoded
from llmprod.batch.records import BatchResult
from llmprod.errors import InvalidArgument

try:
    import fcntl
except ImportError:  # Windows: no lock there
    fcntl = None  # type: ignore[assignment]

__all__ = ["Checkpoint", "read_checkpoint"]

VERSION = 1
HEADER = b'{"llmprod":"batch","version":1}\n'
_UNLOCKABLE = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def _check_header(line: bytes) -> None:
    try:
        told = from_json(line)
    except ValueError:
        told = None
    if not isinstance(told, dict) or cast("dict[str, Any]", told).get("llmprod") != "batch":
        raise InvalidArgument("checkpoint", "a file of something else", "a new file, or one that client.map wrote")
    version = cast("dict[str, Any]", told).get("version")
    if version != VERSION:
        raise InvalidArgument("checkpoint", f"a file of version {str(version)[:20]}", f"version {VERSION}")


def _lines(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each record with where it begins, reading on from the header; a cut last line is left out."""
    begin, number = file.tell(), 1
    for line in file:
        number += 1
        try:
            told = from_json(line) if line.endswith(b"\n") else None
        except ValueError:
            told = None
        if isinstance(told, dict) and isinstance(cast("dict[str, Any]", told).get("key"), str):
            yield begin, cast("dict[str, Any]", told)
        elif line.endswith(b"\n"):
            # Not by a kill: by a disk or an editor. What can't be read is run again, and can't be silently wrong.
            warnings.warn(f"checkpoint: line {number} can't be read; its item runs again", RuntimeWarning, stacklevel=2)
        begin += len(line)


class Checkpoint:
    """An open checkpoint, locked against other writers.

    Args:
        path: created if it does not exist.

    Raises:
        InvalidArgument: it is something else's file, or another run is writing it.
        OSError: it can't be opened.
    """

    def __init__(self, path: str) -> None:
        self._offsets: dict[str, int] = {}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            self._lock()
            self._reader: BinaryIO = open(path, "rb")  # noqa: SIM115 - closed with this
        except BaseException:
            os.close(self._file)
            raise
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                allowed = "a file that no other run has open"
                raise InvalidArgument("checkpoint", "a file that another run is writing", allowed) from None
            if error.errno not in _UNLOCKABLE:
                raise

    def _load(self) -> None:
        size = os.fstat(self._file).st_size
        head = self._reader.readline(4096)
        if HEADER.startswith(head) and head != HEADER:  # new, or cut while it was begun
            os.ftruncate(self._file, 0)
            self._write(HEADER)
            return
        _check_header(head)
        for begin, told in _lines(self._reader):
            if told.get("ok") is True:
                self._offsets[told["key"]] = begin
        self._mend(size)

    def _mend(self, size: int) -> None:
        """Cut what is left of a line that was being written when the process was killed."""
        position = size
        while position > 0:
            begin = max(0, position - 65536)
            self._reader.seek(begin)
            place = self._reader.read(position - begin).rfind(b"\n")
            if place >= 0:
                if begin + place + 1 < size:
                    os.ftruncate(self._file, begin + place + 1)
                return
            position = begin

    def find(self, key: str, digest: str, index: int) -> BatchResult | None:
        """Return the stored answer to the same request under this key, if there is one."""
        begin = self._offsets.get(key)
        if begin is None:
            return None
        self._reader.seek(begin)
        try:
            told = from_json(self._reader.readline())
            return decoded(told, index=index) if told["digest"] == digest and told["key"] == key else None
        except (KeyError, TypeError, ValueError):
            return None  # somebody has changed the line since it was read, or it is not as this version writes it

    def append(self, line: bytes) -> None:
        """Write one line; what it returns from has reached the operating system."""
        self._write(line)

    def _write(self, data: bytes) -> None:
        written = os.write(self._file, data)
        while written < len(data):  # a disk that is full says so at the second call
            written += os.write(self._file, data[written:])

    def close(self) -> None:
        """Close the file, which gives the lock back."""
        file, self._file = self._file, -1
        if file >= 0:
            self._reader.close()
            os.close(file)

    def __len__(self) -> int:
        return len(self._offsets)


def read_checkpoint(path: str | os.PathLike[str]) -> Iterator[BatchResult]:
    """Read the results of a checkpoint, one after the other, in the order in which they ended.

    Failed items are among them, and an item that was run again has a record for each time. ``parsed`` is None: the file
    doesn't hold the type. It may be read while a run writes it.

    Args:
        path: the file that ``client.map(..., checkpoint=path)`` wrote.

    Raises:
        InvalidArgument: it is something else's file.
        OSError: it can't be read.
    """
    with open(path, "rb") as file:
        _check_header(file.readline(4096))
        for _, told in _lines(file):
            yield decoded(told)
