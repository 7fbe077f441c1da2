"""Arguments, and which of the two demos to run."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

try:
    from rich.console import Console
except ModuleNotFoundError:
    sys.exit("The demo needs rich: pip install 'llmprod[demo]', or `make demo`, which sets everything up.")

from . import lines, real, report, runner, traffic, view

ABOUT = "llmprod and a bare HTTP client under the same traffic, on servers that break by a script."
KEYS = {"OPENAI_API_KEY": "openai:", "ANTHROPIC_API_KEY": "anthropic:", "GEMINI_API_KEY": "google:"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=ABOUT)
    parser.add_argument("--seconds", type=_seconds, default=45.0, help="length of the traffic (default 45)")
    parser.add_argument("--seed", type=int, default=1, help="seed of traffic and faults (default 1)")
    parser.add_argument("--provider", metavar="MODEL", help="ask a real model instead, such as openai:gpt-5-mini")
    parser.add_argument("--no-live", action="store_true", help="plain lines instead of the live view")
    return parser.parse_args()


def _seconds(text: str) -> float:
    value = float(text)
    if not 2 <= value <= 3600:
        raise argparse.ArgumentTypeError("from 2 to 3600")
    return value


def simulate(console: Console, options: argparse.Namespace) -> int:
    calls = traffic.load(options.seconds, options.seed)
    board = runner.Board(seconds=options.seconds, seed=options.seed, total=len(calls))
    live = console.is_terminal and not options.no_live and view.fits(console)
    report.introduce(console, board)
    for name, prefix in KEYS.items():
        if os.environ.get(name):
            console.print(f"{name} is set; this run does not use it. To try it: make demo PROVIDER={prefix}<model>")

    async def show() -> None:
        if live:
            await view.show(board, console)
        else:
            await lines.show(board, lambda line: console.print(line, soft_wrap=True, highlight=False))

    interrupted = False
    try:
        asyncio.run(runner.run(board, calls, show))
    except KeyboardInterrupt:
        interrupted = True
    report.summarize(console, board, interrupted=interrupted)
    if board.ours.silent:
        return 1
    return 130 if interrupted else 0


def main() -> int:
    options = arguments()
    console = Console(emoji=False)
    if options.provider:
        return real.main(console, options.provider)
    return simulate(console, options)


if __name__ == "__main__":
    sys.exit(main())
