"""Two providers on loopback sockets, and the script by which they break.

The script is written for a run of 45 s; a shorter or longer run stretches it. Both sides of the comparison get servers
of their own, and whether a fault hits a call depends on the call alone, so both meet the same faults.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from llmprod.testing.fault_server import (
    Answer,
    Behaviour,
    Cut,
    ErrorReply,
    FaultServer,
    Lognormal,
    Malformed,
    RawReply,
    RequestRecord,
    Stall,
    TokenCounts,
)

from .traffic import Call

LENGTH = 45.0
WORD = 0.015
"""Seconds from word to word, about 65 tokens a second."""
FIRST_WORD = {"primary": 0.15, "fallback": 0.25}
"""Median seconds to the first word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """From ``start`` to ``end``, a ``share`` of the requests meets this. ``effect`` is told the answer's words."""

    short: str
    what: str
    start: float
    end: float
    share: float
    effect: Callable[[int], dict[str, Any]]
    colour: str = "red1"


def _always(**fields: Any) -> Callable[[int], dict[str, Any]]:
    return lambda words: fields


PRIMARY = (
    Fault(
        short="429",
        what="429 with Retry-After 2",
        start=3,
        end=6,
        share=0.8,
        colour="gold3",
        effect=_always(error=ErrorReply(kind="rate_limit", retry_after=2)),
    ),
    Fault(
        short="cut",
        what="connection reset in the middle of the answer",
        start=8,
        end=11,
        share=0.5,
        colour="orchid",
        effect=lambda words: {"cut": Cut(after=words // 2, how="reset")},
    ),
    Fault(
        short="eof",
        what="the stream ends early, but cleanly: no finish",
        start=13,
        end=16,
        share=0.6,
        colour="orchid",
        effect=lambda words: {"cut": Cut(after=words // 2, how="clean")},
    ),
    Fault(
        short="hang",
        what="silence: accepts the request and never answers",
        start=18,
        end=21,
        share=0.7,
        colour="deep_sky_blue1",
        effect=_always(connection="silence"),
    ),
    Fault(
        short="html",
        what="status 200 with a proxy's sign-in page",
        start=22.5,
        end=25,
        share=0.6,
        colour="dark_turquoise",
        effect=_always(reply=RawReply()),
    ),
    Fault(
        short="json",
        what="malformed JSON in the middle of the answer",
        start=27,
        end=29.5,
        share=0.5,
        colour="dark_turquoise",
        effect=lambda words: {"malformed": Malformed(at=words // 2)},
    ),
    Fault(
        short="outage",
        what="outage: every connection is reset",
        start=30.5,
        end=36,
        share=1.0,
        effect=_always(connection="reset"),
    ),
)

FALLBACK = (
    Fault(
        short="529",
        what="529 overloaded",
        start=4,
        end=6,
        share=0.3,
        colour="gold3",
        effect=_always(error=ErrorReply(kind="overloaded")),
    ),
    Fault(
        short="stall",
        what="stops moving in the middle of the answer",
        start=18.5,
        end=22,
        share=0.2,
        colour="deep_sky_blue1",
        effect=lambda words: {"stall": Stall(after=words // 2)},
    ),
    Fault(
        short="529",
        what="529 overloaded",
        start=32,
        end=34.5,
        share=0.5,
        colour="gold3",
        effect=_always(error=ErrorReply(kind="overloaded")),
    ),
)

SCRIPTS: Mapping[str, Sequence[Fault]] = {"primary": PRIMARY, "fallback": FALLBACK}


def fault_at(route: str, time: float, seconds: float) -> Fault | None:
    """What is wrong with ``route``, ``time`` into a run of ``seconds``."""
    nominal = time / seconds * LENGTH
    return next((fault for fault in SCRIPTS[route] if fault.start <= nominal < fault.end), None)


class Script:
    """What one server does with each request; a script function of ``FaultServer``."""

    def __init__(self, route: str, calls: Sequence[Call], seconds: float, seed: int) -> None:
        self.route = route
        self._calls = {call.number: call for call in calls}
        self._seconds = seconds
        self._seed = seed
        self._asked: Counter[int] = Counter()

    def __call__(self, record: RequestRecord) -> Behaviour:
        found = re.search(r"Ticket #(\d+)", json.dumps(record.body.get("messages")))
        assert found is not None
        call = self._calls[int(found[1])]
        self._asked[call.number] += 1
        usage = TokenCounts(input=len(call.prompt.split()), output=call.words)
        healthy = Behaviour(
            answer=Answer(text=call.answer(self.route), usage=usage),
            first_token_delay=Lognormal(median=FIRST_WORD[self.route], sigma=0.4, cap=0.9),
            token_delay=WORD,
        )
        fault = fault_at(self.route, record.time, self._seconds)
        luck = random.Random(f"{self._seed}/{self.route}/{call.number}/{self._asked[call.number]}").random()
        return healthy if fault is None or luck >= fault.share else replace(healthy, **fault.effect(call.words))


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of one side, by route."""

    by_route: Mapping[str, FaultServer]

    def url(self, route: str) -> str:
        return self.by_route[route].url

    def in_flight(self, route: str) -> int:
        return self.by_route[route].in_flight

    def reset(self) -> None:
        """The run begins now: the scripts' time is zero."""
        for server in self.by_route.values():
            server.reset()


def start(stack: ExitStack, calls: Sequence[Call], seconds: float, seed: int, routes: Sequence[str]) -> Servers:
    """Start one side's servers; ``stack`` stops them."""
    scripts = {route: Script(route, calls, seconds, seed) for route in routes}
    return Servers({route: stack.enter_context(FaultServer(script, seed=seed)) for route, script in scripts.items()})
