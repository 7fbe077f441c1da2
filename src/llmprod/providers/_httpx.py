"""The engines on httpx: its connections under a pool of our own, or a client of httpx or httpx2 as it is."""

from __future__ import annotations

import http.cookiejar
import ssl
import urllib.request
from functools import lru_cache
from typing import Any

import httpx

from llmprod._loops import running_loop
from llmprod.errors import InvalidArgument
from llmprod.providers._http import Engine, HeaderList, HTTPOptions, Reply, check_address, check_headers
from llmprod.providers._http_errors import raise_ours
from llmprod.providers._httpx_pool import Body, PoolEngine
from llmprod.providers._httpx_reply import GeneratorReply

__all__ = ["ClientEngine", "httpx_engine"]


def httpx_engine(options: HTTPOptions) -> Engine:
    """Return the engine that ``options`` ask for.

    Raises:
        InvalidArgument: an option that httpx refuses.
    """
    if options.client is not None:
        return ClientEngine(options.client, owned=False)
    if options.proxy is None and not options.http2 and not _proxies_in_environment():
        return PoolEngine(options, lambda: _tls(options.verify))
    # Proxies (which of them serves which host, tunnels) and HTTP/2 (requests that share a connection) are httpx's work.
    limits = httpx.Limits(
        max_connections=options.max_connections,
        max_keepalive_connections=options.max_keepalive,
        keepalive_expiry=options.keepalive,
    )
    try:
        client = httpx.AsyncClient(
            verify=_tls(options.verify),
            limits=limits,
            proxy=options.proxy,
            http2=options.http2,
            timeout=None,  # noqa: S113 - cancel scopes tell more limits apart
        )
    except (ImportError, ValueError) as error:
        # Its message may hold the proxy's password.
        field, needed = ("http2", "httpx[http2] installed") if options.http2 else ("proxy", "a URL that httpx can use")
        raise InvalidArgument(f"http.{field}", f"what httpx refused ({type(error).__name__})", needed) from None
    client.cookies.jar.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return ClientEngine(client, owned=True)


def _proxies_in_environment() -> bool:
    return bool(urllib.request.getproxies().keys() - {"no"})


def _tls(verify: bool | ssl.SSLContext) -> ssl.SSLContext:
    return verify if isinstance(verify, ssl.SSLContext) else _default_tls(verify)


@lru_cache(maxsize=2)
def _default_tls(verify: bool) -> ssl.SSLContext:
    # Loading the certificates costs more than a hundred calls: once a process.
    return httpx.create_ssl_context(verify=verify)


@lru_cache(maxsize=4)
def _quiet(kind: Any) -> Any:
    """Return a body like httpx's or httpx2's own; theirs is a generator, and trio complains if it is left unread."""

    class Quiet(kind):  # type: ignore[misc]
        def __init__(self, body: bytes) -> None:
            super().__init__(body)  # pyright: ignore[reportUnknownMemberType]
            self._body = body

        def __aiter__(self) -> Body:
            return Body(self._body)

    return Quiet


class ClientEngine:
    """An ``AsyncClient`` of httpx or httpx2, with all that it was configured to do."""

    def __init__(self, client: Any, *, owned: bool) -> None:
        self._client = client
        self._owned = owned
        self._loop = running_loop()

    async def post(
        self, url: str, headers: HeaderList, body: bytes, connect_timeout: float | None, *, method: str = "POST"
    ) -> Reply:
        """Send and return once the response's headers are there."""
        check_address(url)
        check_headers(headers)
        timeout = {"connect": connect_timeout, "read": None, "write": None, "pool": None}
        try:
            request = self._client.build_request(
                method, url, headers=headers, content=body, extensions={"timeout": timeout}
            )
            request.stream = _quiet(request.stream.__class__)(body)
            response = await self._client.send(request, stream=True)
        except Exception as error:  # noqa: BLE001 - re-raised as ours, or as it is
            raise_ours(error, connect_timeout, begun=False)
        pieces = response.stream.__aiter__()
        return GeneratorReply(response.status_code, dict(response.headers), pieces, response.aclose, self._loop)

    async def aclose(self) -> None:
        """Close the client, unless the application passed it in."""
        if self._owned:
            await self._client.aclose()
