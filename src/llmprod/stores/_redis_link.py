"""The way to a Redis or Valkey, for everything here that is kept in one: connect, notice a loss, find it again.

One object serves one event loop at a time. While the server is lost nothing waits for it: its users ask ``lost`` first,
and call ``look`` so that one probe at a time, after 0.5 s and then up to 10 s, finds out whether it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from llmprod import _validate
from llmprod.clock import Clock, Random
from llmprod.errors import InvalidArgument

PROBE, PROBE_AT_MOST = 0.5, 10.0


class RedisLink:
    """A client of ``redis.asyncio``, ours or the application's, and whether its server can be reached.

    Args:
        user: the class that uses it, for errors.
        server: a URL, or a client of ``redis.asyncio`` that stays the application's to close.
        timeout: seconds that the server may take to answer.
        clock: time between probes.
        random: spreads the probes.
        on_probe: awaited after the server answered a probe and before it counts as found; may raise ``errors``.
        on_lost: called with the error when the server is lost.
        on_back: called when it is found again.
    """

    def __init__(
        self,
        user: str,
        server: Any,
        *,
        timeout: float,
        clock: Clock,
        random: Random,
        on_lost: Callable[[BaseException], None],
        on_back: Callable[[], None],
        on_probe: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        _validate.seconds("timeout", timeout)
        self.url: str | None = _address(server) if isinstance(server, str) else None
        if self.url is None and not hasattr(server, "evalsha"):
            raise InvalidArgument("server", type(server).__name__, "a URL, or a client of redis.asyncio")
        self.errors = _redis_errors(user)
        self.timeout = timeout
        self.lost = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._user = user
        self._client: Any = None if isinstance(server, str) else server
        self._clock = clock
        self._random = random
        self._on_probe = on_probe
        self._on_lost = on_lost
        self._on_back = on_back
        self._probe_at = 0.0
        self._probe_wait = PROBE
        self._probing: asyncio.Task[None] | None = None

    @property
    def retry_after(self) -> float:
        """Seconds until the next probe."""
        return round(max(0.0, self._probe_at - self._clock.now()), 3)

    def here(self) -> bool:
        """Use it on the running event loop; return whether that is another than before.

        Raises:
            InvalidArgument: this is trio, or another event loop uses it.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise InvalidArgument("store", f"{self._user} on trio", "asyncio, which is all that redis-py has") from None
        if self.loop is loop:
            return False
        if self.loop is not None and not self.loop.is_closed():
            raise InvalidArgument("store", f"one {self._user} on two event loops", "one for each event loop")
        self.loop = loop
        self._probing = None
        if self.url is not None:
            self._client = None  # its connections belonged to the loop that is closed
        return True

    def client(self) -> Any:
        """Return the client; it connects by itself."""
        if self._client is None:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff

            assert self.url is not None
            # One retry, at once: a server that restarted has closed the connections of the pool.
            self._client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
                self.url,
                socket_timeout=self.timeout,
                socket_connect_timeout=self.timeout,
                retry=Retry(NoBackoff(), 1),
            )
        return self._client

    async def run(self, sha: str, script: str, keys: list[str], arguments: list[Any]) -> Any:
        """Run a script, within ``timeout``."""
        from redis.exceptions import NoScriptError

        client = self.client()
        async with asyncio.timeout(self.timeout):
            try:
                return await client.evalsha(sha, len(keys), *keys, *arguments)
            except NoScriptError:
                return await client.eval(script, len(keys), *keys, *arguments)

    # ---- lost, and back ---------------------------------------------------------------------------------------------

    def lose(self, error: BaseException) -> None:
        """The server did not answer."""
        if not self.lost:
            self.lost = True
            self._probe_wait = PROBE
            self._probe_at = self._clock.now() + self._probe_wait
            self._on_lost(error)

    def look(self) -> None:
        """Look whether it is back, if it is time and nobody does."""
        if self._probing is None and self._clock.now() >= self._probe_at and self.loop is not None:
            self._probing = self.loop.create_task(self._probe())

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                await self.client().ping()
            if self._on_probe is not None:
                await self._on_probe()
        except self.errors:
            self._probe_wait = min(PROBE_AT_MOST, self._probe_wait * 2)
            wait = self._probe_wait * (0.5 + self._random.random() / 2)
            self._probe_at = self._clock.now() + wait
        else:
            self.lost = False
            self._on_back()
        finally:
            self._probing = None

    async def aclose(self) -> None:
        """End a probe; close the connections, if they are ours."""
        task = self._probing
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self.url is not None and self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


def check_prefix(prefix: object) -> None:
    """Raise InvalidArgument unless it can begin a key: in braces stands what a cluster keeps together."""
    if not isinstance(prefix, str) or not prefix or "{" in prefix or "}" in prefix:
        raise InvalidArgument("prefix", repr(prefix)[:40], "a string without braces")


def _address(url: str) -> str:
    scheme, _, rest = url.partition("://")
    known = {"valkey": "redis", "valkeys": "rediss", "redis": "redis", "rediss": "rediss", "unix": "unix"}
    if scheme not in known or not rest:
        raise InvalidArgument(
            "server", scheme[:20] if rest else "no URL", "a redis://, rediss://, valkey:// or unix:// URL"
        )
    return f"{known[scheme]}://{rest}"


def _redis_errors(user: str) -> tuple[type[BaseException], ...]:
    try:
        from redis.exceptions import RedisError
    except ImportError:
        raise ImportError(f"{user} needs redis: pip install 'llmprod[redis]'") from None
    return (RedisError, OSError, TimeoutError)
