"""What the token path's methods have in common: the engine made ready, bounds, its routes, requests together."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from hashlib import blake2b
from typing import Any, cast
from uuid import uuid4

import anyio
from pydantic_core import from_json, to_json

from llmprod import _validate
from llmprod.context import Context
from llmprod.errors import CallError, DeadlineExceeded, EngineDied, InvalidArgument
from llmprod.providers._codec import Codec
from llmprod.providers._http import read_all
from llmprod.providers._openai_errors import openai_error
from llmprod.providers._vllm.asgi import InMemory
from llmprod.providers._vllm.incarnation import Incarnation
from llmprod.providers._vllm.options import EngineOptions
from llmprod.providers._vllm.sampling import token_ids
from llmprod.providers._vllm.tokens import Begin, TokenCall, tokenized

__all__ = ["TokenBase", "as_prompt"]

_ADDRESS = "http://vllm"
_HOUR = 3600


class TokenBase:
    """The base of both; ``VLLM`` gives the attributes."""

    options: EngineOptions
    price_per_hour: Decimal | None
    isolate_prefixes_by: str | None
    model: str
    _codec: Codec

    async def _ready(self, context: Context) -> Incarnation:
        raise NotImplementedError

    @property
    def _adapter(self) -> str | None:
        return None if self.model == self.options.model else self.model

    def _need(self, runner: str) -> None:
        if self.options.runner != runner:
            what = "rank(), classify(), embed_tokens()" if runner == "pooling" else "complete(), score() and their like"
            raise InvalidArgument("runner", repr(self.options.runner), f"{runner!r} for {what}")

    def _cost(self, seconds: float) -> Decimal | None:
        """Return what busy seconds of the engine cost; None without ``price_per_hour``."""
        return None if self.price_per_hour is None else self.price_per_hour / _HOUR * Decimal(str(seconds))

    def _salt(self, tags: Mapping[str, str] | None) -> str | None:
        if self.isolate_prefixes_by is None:
            return None
        value = (tags or {}).get(self.isolate_prefixes_by, "")
        return blake2b(value.encode(), digest_size=16).hexdigest()

    @contextmanager
    def _within(self, seconds: float | None) -> Generator[None]:
        """Bound a call, and sign what it raises."""
        _validate.seconds("deadline", seconds, optional=True)
        try:
            if seconds is None:
                yield
                return
            with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
                yield
            if scope.cancelled_caught:
                raise DeadlineExceeded(seconds)
        except CallError as error:
            error.provider, error.model = error.provider or "vllm", error.model or self.model
            raise

    async def _all(self, incarnation: Incarnation, begins: Sequence[Begin]) -> list[Any]:
        """Run requests together; when one fails, the others are dropped."""
        calls: list[TokenCall] = []
        try:
            for begin in begins:
                calls.append(TokenCall(incarnation, begin).start())  # noqa: PERF401 - those begun must be known
            return [await call.last() for call in calls]
        except BaseException:
            for call in calls:
                call.abandon()
            raise

    async def _tokenized(self, incarnation: Incarnation, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        async def run() -> list[list[int]]:
            return await tokenized(incarnation, texts, special=special)

        return await incarnation.crossing.call(run)

    async def _post(self, path: str, body: Mapping[str, Any], deadline: float | None) -> dict[str, Any]:
        """Ask one of the application's routes that have no codec of ours."""
        with self._within(deadline):
            incarnation = await self._ready(Context.new(seconds=deadline))
            request_id = uuid4().hex
            headers = [("content-type", "application/json"), ("x-request-id", request_id)]
            data = to_json({"model": self.model, **body})
            try:
                reply = await InMemory(incarnation).post(_ADDRESS + path, headers, data, None)
                answer = await read_all(reply, None)
                if reply.status >= 400:
                    raise openai_error(reply.status, {**reply.headers, "x-request-id": request_id}, _json(answer))
            except CallError as error:
                if incarnation.dead and not isinstance(error, EngineDied):
                    raise EngineDied(silent=True) from error
                raise
            return cast("dict[str, Any]", from_json(answer))


def _json(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        return None


def as_prompt(value: object) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    return token_ids("prompt", value)
