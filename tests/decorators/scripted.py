"""Functions that do what a script says, call by call, in all four kinds."""

from __future__ import annotations

import time
from typing import Any

import anyio

from llmprod import Backoff, Retry

KINDS = ("sync", "async", "items", "async_items")
AT_ONCE = Backoff(base=0, cap=0, throttle_base=0)


def retry(attempts: int = 3) -> Retry:
    """A Retry that doesn't wait."""
    return Retry(attempts, backoff=AT_ONCE)


class Wait(float):
    """A script's step: wait so many seconds."""


class Scripted:
    """A function of a kind. Each call plays one script: values are given, exceptions raised, Waits waited.

    A function returns its script's last value; a generator yields every one.
    """

    def __init__(self, kind: str, *scripts: tuple[Any, ...] | Any) -> None:
        self.kind = kind
        self.scripts = [script if isinstance(script, tuple) else (script,) for script in scripts]
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.closed = 0
        self.function = getattr(self, f"_{kind}")()

    def _next(self, args, kwargs):
        script = self.scripts[min(len(self.calls), len(self.scripts) - 1)]
        self.calls.append((args, kwargs))
        return script

    def _sync(self):
        def ask(*args, **kwargs):
            value = None
            for step in self._next(args, kwargs):
                if isinstance(step, Wait):
                    time.sleep(step)
                elif isinstance(step, BaseException):
                    raise step
                else:
                    value = step
            return value

        return ask

    def _async(self):
        async def ask(*args, **kwargs):
            value = None
            for step in self._next(args, kwargs):
                if isinstance(step, Wait):
                    await anyio.sleep(step)
                elif isinstance(step, BaseException):
                    raise step
                else:
                    value = step
            return value

        return ask

    def _items(self):
        def ask(*args, **kwargs):
            try:
                for step in self._next(args, kwargs):
                    if isinstance(step, Wait):
                        time.sleep(step)
                    elif isinstance(step, BaseException):
                        raise step
                    else:
                        yield step
            finally:
                self.closed += 1

        return ask

    def _async_items(self):
        async def ask(*args, **kwargs):
            try:
                for step in self._next(args, kwargs):
                    if isinstance(step, Wait):
                        await anyio.sleep(step)
                    elif isinstance(step, BaseException):
                        raise step
                    else:
                        yield step
            finally:
                self.closed += 1

        return ask


def use(kind: str, decorated: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a decorated function of any kind from where there is no event loop; a stream becomes a list."""
    if kind == "sync":
        return decorated(*args, **kwargs)
    if kind == "items":
        return list(decorated(*args, **kwargs))

    async def main():
        if kind == "async":
            return await decorated(*args, **kwargs)
        return [item async for item in decorated(*args, **kwargs)]

    return anyio.run(main)


def given(kind: str, *values: Any) -> Any:
    """What :func:`use` returns where the function gave ``values``."""
    return list(values) if "items" in kind else values[-1]


def read_into(seen: list[Any], stream: Any) -> None:
    """Read a stream, keeping what came if it breaks."""
    for item in stream:
        seen.append(item)  # noqa: PERF402 - extend keeps nothing of a stream that breaks


async def aread_into(seen: list[Any], stream: Any) -> None:
    """As :func:`read_into`, from an asynchronous stream."""
    async for item in stream:
        seen.append(item)  # noqa: PERF401
