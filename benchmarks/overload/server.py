"""The provider, in a process of its own: ``python -m benchmarks.overload.server PLAN``.

Prints its address; a line with a time of the monotonic clock starts the plan, the line ``end`` ends it and has the log
printed: the second at which each attempt arrived, and what became of it.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import deque

from benchmarks.loopback import Reply, answer, listen, read_line, refusal, say
from benchmarks.overload.plan import Plan
from llmprod.testing._wire.http import HttpRequest

_CALL = re.compile(rb"call (\d+)")
_BUSY = refusal("server_error", "overloaded", "The server is overloaded.")


class Server:
    """Slots, a queue before them, refusals."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.slots = plan.slots
        self.busy = 0
        self.queue: deque[tuple[int, Reply]] = deque()
        self.owed = 0.0
        self.arrived: list[float] = []
        self.refused: list[float] = []

    def serve(self, request: HttpRequest, reply: Reply) -> None:
        """Start, queue or refuse a request."""
        found = _CALL.search(request.body)
        call = int(found[1]) if found else 0
        self.arrived.append(time.monotonic())
        if self.busy < self.slots:
            self._start(call, reply)
        elif len(self.queue) < self.plan.places:
            self.queue.append((call, reply))
        else:
            self.refused.append(time.monotonic())
            self.owed += self.plan.refusal_cost
            asyncio.get_running_loop().call_later(self.plan.refusal_delay, reply, 503, _BUSY, {})

    def _start(self, call: int, reply: Reply) -> None:
        self.busy += 1
        takes, self.owed = self.plan.work(call) + self.owed, 0.0
        asyncio.get_running_loop().call_later(takes, self._done, call, reply)

    def _done(self, call: int, reply: Reply) -> None:
        reply(200, answer("model", f"answer {call}", input_tokens=10, output_tokens=10), {})
        self.busy -= 1
        self._fill()

    def _fill(self) -> None:
        while self.queue and self.busy < self.slots:
            self._start(*self.queue.popleft())

    def resize(self, slots: int) -> None:
        """Change how many are served at once; those begun are finished."""
        self.slots = slots
        self._fill()


async def _main(plan: Plan) -> None:
    server = Server(plan)
    listener, url = await listen(server.serve)
    say(url)
    began = float(await read_line())
    loop = asyncio.get_running_loop()
    wait = began - time.monotonic()
    loop.call_later(wait + plan.before, server.resize, plan.slots_left)
    loop.call_later(wait + plan.restored, server.resize, plan.slots)
    assert await read_line() == "end"
    say({name: [at - began for at in getattr(server, name)] for name in ("arrived", "refused")})
    listener.close()


if __name__ == "__main__":
    asyncio.run(_main(Plan.from_json(sys.argv[1])))
