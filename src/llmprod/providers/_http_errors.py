"""From what HTTP libraries, TLS, the OS and anyio raise to this library's errors.

httpx, httpx2, httpcore and pyreqwest name their exceptions alike, so one table by class name serves all of them, and
none has to be imported to recognise its errors.
"""

from __future__ import annotations

import ssl
from typing import NoReturn

import anyio

from llmprod.errors import (
    CallError,
    ConnectError,
    ConnectTimeout,
    IdleTimeout,
    InvalidArgument,
    LLMProdError,
    ProtocolError,
    ReadError,
)

__all__ = ["is_transport", "raise_ours"]

_ADDRESS = {"InvalidURL", "UnsupportedProtocol"}
_CONNECT_TIMEOUT = {"ConnectTimeout", "ConnectTimeoutError", "PoolTimeout", "PoolTimeoutError"}
_CONNECT = {"ConnectError", "ProxyError"}
_TIMEOUT = {"RequestTimeoutError", "TimeoutException"}
_UNDECODABLE = {"DecodingError"}
_TRANSPORT = {
    "ConnectionNotAvailable",
    "NetworkError",
    "ProtocolError",
    "PyreqwestError",
    "RequestError",
    "StreamError",
}
_ANYIO = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.BusyResourceError)


def is_transport(error: Exception) -> bool:
    """Tell whether ``error`` comes from the network or from a library that speaks HTTP over it."""
    if isinstance(error, (OSError, *_ANYIO)) or _is_closed_client(error):
        return True
    return any(kind.__name__ in _TRANSPORT for kind in type(error).__mro__)


def _is_closed_client(error: Exception) -> bool:
    # A closed client of httpx, or one of an event loop that is closed, raises a bare RuntimeError.
    return type(error) is RuntimeError and "closed" in str(error)


def raise_ours(error: Exception, connect_timeout: float | None = None, *, begun: bool) -> NoReturn:
    """Raise this library's error for one of another library.

    Args:
        error: what was raised; what is neither ours nor about HTTP is raised as it is.
        connect_timeout: the limit that connecting had.
        begun: the response's headers had arrived.
    """
    if isinstance(error, LLMProdError):
        raise error
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _ADDRESS:
        # Not "from error": its message holds the address, which may hold a password.
        raise InvalidArgument("base_url", "an address that can't be used", "http:// or https:// and a host") from None
    ours = _call_error(error, names, connect_timeout, begun)
    if ours is None:
        raise error
    raise ours from error


def _call_error(error: Exception, names: set[str], connect_timeout: float | None, begun: bool) -> CallError | None:
    if names & _CONNECT_TIMEOUT:
        return ConnectTimeout(connect_timeout, silent=True)
    if not begun and (names & _CONNECT or isinstance(error, ssl.SSLError)):
        return ConnectError(detail=type(error).__name__, silent=True)
    if names & _TIMEOUT:
        return IdleTimeout(detail="the HTTP client's own timeout", in_stream=begun)
    if names & _UNDECODABLE:
        return ProtocolError(detail="the compressed body is corrupt", in_stream=begun)
    if _is_closed_client(error):
        return ConnectError(detail="the HTTP client is closed, or belongs to an event loop that is", silent=True)
    if is_transport(error):
        return ReadError(detail=type(error).__name__, in_stream=begun, silent=not begun)
    return None
