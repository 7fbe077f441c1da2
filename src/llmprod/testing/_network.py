"""Notices, and refuses, connections that leave this machine, whichever library opens them.

It listens to CPython's audit events of sockets. What opens sockets by itself, such as an HTTP engine written in Rust,
is not seen.
"""

from __future__ import annotations

import fnmatch
import socket
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

__all__ = ["NetworkGuard", "RealNetworkCall"]


class RealNetworkCall(AssertionError):
    """A test wanted to reach another machine.

    Not an OSError, which clients take for a failure of the network and try again.
    """


class NetworkGuard:
    """Refuses connections to, and look-ups of, hosts other than this machine.

    Args:
        allowed: host names and addresses that may be reached all the same; ``*`` stands for any characters.

    Attributes:
        attempts: the hosts that were refused, in order.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self.attempts: list[str] = []
        self._allowed = [pattern.lower() for pattern in allowed]
        self._resolved: set[str] = set()

    @contextmanager
    def active(self) -> Generator[None]:
        """Refuse until the block ends, in every thread."""
        global _guard  # noqa: PLW0603 - audit hooks are the process's, and can't be taken away
        _install()
        before, _guard = _guard, self
        try:
            yield
        finally:
            _guard = before

    def check(self, host: str, *, name: bool) -> None:
        """Raise RealNetworkCall unless ``host``, a name to look up or an address, may be reached."""
        if _is_here(host) or host in self._resolved:
            return
        if any(fnmatch.fnmatchcase(host.lower(), pattern) for pattern in self._allowed):
            if name:
                self._resolve(host)
            return
        self.attempts.append(host)
        raise RealNetworkCall(f"this test wants to reach {host}; the network is out of bounds (llmprod's no_network)")

    def _resolve(self, host: str) -> None:
        """Allow the addresses of an allowed name as well."""
        _off.now = True
        try:
            self._resolved.update(str(found[4][0]) for found in socket.getaddrinfo(host, None))
        except OSError:
            pass  # whoever asked will see it
        finally:
            _off.now = False


class _Off(threading.local):
    now = False


_guard: NetworkGuard | None = None
_installed = False
_off = _Off()


def _install() -> None:
    global _installed  # noqa: PLW0603
    if not _installed:
        _installed = True
        sys.addaudithook(_heard)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    guard = _guard
    if guard is None or not event.startswith("socket.") or _off.now:
        return
    host: object = None
    name = event in ("socket.getaddrinfo", "socket.gethostbyname")
    if name:
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = cast("tuple[object, ...]", arguments[1])[0]  # of other families it is a path or a number
    if isinstance(host, (str, bytes)) and host:
        guard.check(host.decode() if isinstance(host, bytes) else host, name=name)


def _is_here(host: str) -> bool:
    return host in ("localhost", "localhost.", "::1") or host.startswith(("127.", "::ffff:127."))
