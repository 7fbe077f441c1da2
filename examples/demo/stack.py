"""The application's side: the standard stack around two providers and a last resort."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from time import monotonic
from typing import Literal

from llmprod import AsyncClient, AttemptTimeout, LLMProdError, Static, StreamInterrupted
from llmprod.mechanisms.circuit_breaker import Breaker
from llmprod.presets import standard
from llmprod.provider import Provider
from llmprod.providers.anthropic import Anthropic
from llmprod.providers.openai import OpenAI
from llmprod.trace import Attempt, Trace

from .score import Ending, Result, Step, judge
from .traffic import LAST_RESORT, Call

ROUTES = {"openai": "primary", "anthropic": "fallback"}

FASTER = 20
"""A minute is too short for the defaults, so every limit on time is this many times shorter."""
TIMEOUTS = AttemptTimeout(connect=1.0, first_token=30 / FASTER, idle=20 / FASTER, total=60 / FASTER)
DEADLINE = 600 / FASTER
BARE_TIMEOUT = 60 / FASTER
SHORTENED = (
    f"To fit a minute, limits are {FASTER} times shorter than usual: first token 1.5 s (default 30), standstill 1 s"
    " (20), an attempt 3 s in all (60 s or so), a call 30 s (600), the bare client's timeout 3 s (60). Retries,"
    " backoff, Retry-After and breakers are as they come."
)


def client(primary_url: str, fallback_url: str, seed: int) -> AsyncClient:
    """What ``AsyncClient("openai:…", fallbacks=["anthropic:…", Static(…)])`` makes, with shorter limits."""
    return AsyncClient(
        standard(
            OpenAI("sim", api_key="none", base_url=primary_url),
            [Anthropic("sim", api_key="none", base_url=fallback_url), Static(LAST_RESORT)],
            timeouts=TIMEOUTS,
            deadline=DEADLINE,
            random=Random(f"breakers/{seed}"),
        ),
        random=Random(f"backoff/{seed}"),
    )


async def ask(client: AsyncClient, call: Call) -> Result:
    """Make a call and judge what came of it."""
    started = monotonic()
    ttft: float | None = None
    shown = ""
    try:
        if call.stream:
            async with client.stream(call.prompt, max_tokens=400, tags=call.tags) as response:
                async for piece in response.text_stream():
                    if ttft is None:
                        ttft = monotonic() - started
                    shown += piece
        else:
            response = await client.generate(call.prompt, max_tokens=400, tags=call.tags)
            shown = response.text
        target = _short(response.provider)
        ending, note = judge(call, shown, [ROUTES[target]] if target in ROUTES else [])
        trace: Trace | None = response.trace
        served_by = target if ending is not Ending.SILENT else None
    except StreamInterrupted as error:
        ending, note, trace, served_by = Ending.PARTIAL, type(error.__cause__).__name__, error.trace, None
        if error.partial is None or error.partial.text != shown:
            ending, note = Ending.SILENT, "the partial answer is not what was shown"
    except LLMProdError as error:
        ending, note, trace, served_by = Ending.ERROR, type(error).__name__, error.trace, None
    steps = tuple(_step(entry) for entry in trace.entries) if trace else ()
    return Result(call, ending, monotonic() - started, ttft, served_by, note, steps)


_WORDS = {
    "AttemptTimedOut": "too slow",
    "CircuitOpen": "breaker open",
    "ConnectError": "no connection",
    "ConnectTimeout": "no connection",
    "FirstTokenTimeout": "no first token",
    "IdleTimeout": "stalled",
    "ProtocolError": "not an answer",
    "ReadError": "connection cut",
    "TruncatedAnswer": "no finish",
}


def _step(entry: Attempt) -> Step:
    label = "ok" if entry.state == "ok" else str(entry.status or "")
    if entry.state != "ok" and (not label or label == "200"):
        label = _WORDS.get(entry.error or "", entry.error or entry.state)
    state: Literal["ok", "failed", "skipped"] = "failed"
    if entry.state in ("ok", "skipped"):
        state = entry.state
    return Step(_short(entry.target), label, state, entry.wait)


def _short(target: str) -> str:
    return target.partition(":")[0]


def breakers(provider: Provider) -> Iterator[tuple[str, Breaker]]:
    """Walk a stack and yield each target's circuit breaker."""
    breaker = getattr(provider, "breaker", None)
    if breaker is not None:
        yield _short(provider.name), breaker
    inner = getattr(provider, "inner", None)
    for child in getattr(provider, "targets", ()) if inner is None else (inner,):
        yield from breakers(child)
