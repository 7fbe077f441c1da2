"""What vLLM's application and its front end do for a server alone, left out: it costs a tenth of each call."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Any

__all__ = ["fresh_environment", "lean"]

_FOR_SERVERS = {"CORSMiddleware", "PrometheusInstrumentatorMiddleware"}
_FIRST = ("/v1/chat/completions", "/v1/embeddings")


def lean(app: Any) -> None:
    """Leave out what answers browsers' questions and counts HTTP requests, and look for our routes first.

    Args:
        app: vLLM's application, before its first request.
    """
    app.user_middleware = [layer for layer in app.user_middleware if layer.cls.__name__ not in _FOR_SERVERS]
    app.router.routes.sort(key=_comes_later)


def _comes_later(route: object) -> bool:
    return getattr(route, "path", None) not in _FIRST


@contextlib.contextmanager
def fresh_environment() -> Generator[None]:
    """Let vLLM look at the environment while an engine starts, and remember what it saw after that.

    Its engine processes do so by themselves; its front end looks up a variable for every token.
    """
    _remember("disable_envs_cache")
    try:
        yield
    finally:
        _remember("enable_envs_cache")


def _remember(how: str) -> None:
    switch = getattr(sys.modules.get("vllm.envs"), how, None)
    if switch is not None:
        switch()
