"""The fault server in a process of its own: ``python -m llmprod.testing.fault_server``."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Sequence

from ._fault_script import Script
from .behaviour import Answer, Behaviour, words
from .fault_server import FaultServer
from .scenarios import SCENARIOS, Scenario, scenario


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM, SIGINT or the end of standard input; the first line printed is the URL."""
    options = _parser().parse_args(arguments)
    asyncio.run(_serve(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llmprod.testing.fault_server",
        description="A server of model APIs on 127.0.0.1 that fails on demand. Prints its URL, and serves "
        "until its standard input ends or it gets SIGTERM.",
        epilog="scenarios: " + "; ".join(f"{s.id} or {s.name}: {s.title}" for s in SCENARIOS.values()),
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--scenario", type=scenario, metavar="NAME", help="default: healthy answers")
    parser.add_argument("--role", choices=["primary", "fallback"], default="primary", help="in the scenario")
    parser.add_argument("--time-scale", type=float, default=1.0, help="factor on the scenario's times")
    parser.add_argument("--words", type=int, default=64, help="words of a healthy answer")
    parser.add_argument("--first-token-delay", type=float, default=0.0, help="seconds, healthy answers")
    parser.add_argument("--token-delay", type=float, default=0.0, help="seconds, healthy answers")
    parser.add_argument("--flush-each", action="store_true", help="write each stream event by itself")
    parser.add_argument("--keep", type=int, default=1000, help="how many requests are remembered")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forever", action="store_true", help="don't end with standard input")
    return parser


def _script(options: argparse.Namespace) -> Script:
    if options.scenario is not None:
        chosen: Scenario = options.scenario
        routes = chosen.routes(options.time_scale)
        return routes.primary if options.role == "primary" else routes.fallback
    return Behaviour(
        answer=Answer(text=words(options.words)),
        first_token_delay=options.first_token_delay,
        token_delay=options.token_delay,
    )


async def _serve(options: argparse.Namespace) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if not options.forever:
        threading.Thread(target=_wait_for_eof, args=(loop, stop), daemon=True).start()
    server = FaultServer(
        _script(options),
        port=options.port,
        seed=options.seed,
        flush_each=options.flush_each,
        keep=options.keep,
    )
    async with server:
        print(server.url, flush=True)  # noqa: T201 - its only output
        await stop.wait()


def _wait_for_eof(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 65536):
        pass
    loop.call_soon_threadsafe(stop.set)
