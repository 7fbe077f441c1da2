"""The fault server's book-keeping: records each request, picks its behaviour and hands out its plan."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from ._fault_connection import Connection, Outcome
from ._fault_plan import Plan, json_plan, make_plan
from ._fault_script import Director, RequestRecord
from ._wire.call import Call
from ._wire.http import HttpRequest
from ._wire.models import list_models, unknown_path
from ._wire.routes import Api, Route, find_route
from .behaviour import Behaviour

_PLANS_KEPT = 1024
_CACHEABLE = frozenset({Api.CHAT, Api.RESPONSES, Api.MESSAGES, Api.GEMINI})
"""Embeddings depend on the texts, so their plans are made anew."""


class DeskExchange:
    """One request and what came of it."""

    __slots__ = ("_desk", "_random", "_seed", "ended", "events", "outcome", "plan", "record", "request_id")

    def __init__(self, desk: Desk, record: RequestRecord, plan: Plan, seed: int) -> None:
        self._desk = desk
        self.record = record
        self.plan = plan
        self.request_id = f"req_{record.number:06d}"
        self.ended: float | None = None
        self.events = 0
        self.outcome: Outcome = "open"
        self._seed = seed
        self._random: random.Random | None = None

    def random(self) -> random.Random:
        """This request's own source, so that concurrency doesn't change what a request is dealt."""
        if self._random is None:
            self._random = random.Random(f"{self._seed}/{self.record.number}")
        return self._random

    def end(self, outcome: Outcome) -> None:
        """Record how it ended."""
        self._desk.settle(self, outcome)

    def snapshot(self) -> RequestRecord:
        """The record as things stand."""
        return replace(self.record, status=self.plan.status, events=self.events, ended=self.ended, outcome=self.outcome)


class Desk:
    """What connections report to. Used by the loop's thread; the counters may be read from any."""

    def __init__(self, director: Director, *, seed: int, flush_each: bool, keep: int, models: Sequence[str]) -> None:
        self.live: set[Connection] = set()
        self.request_count = 0
        self.opened_count = 0
        self.in_flight = 0
        self._director = director
        self._seed = seed
        self._merge = not flush_each
        self._models = tuple(models)
        self._plans: dict[tuple[int, Call, bool], tuple[Behaviour, Plan]] = {}
        self._exchanges: deque[DeskExchange] = deque(maxlen=keep)
        self._model_counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()

    @property
    def clock(self) -> float:
        """Seconds since the start or the last reset."""
        return time.monotonic() - self._started

    def records(self) -> list[RequestRecord]:
        """All requests remembered, as they stand."""
        with self._lock:
            return [exchange.snapshot() for exchange in self._exchanges]

    def reset(self) -> None:
        """Forget the records; counters and clock to zero."""
        with self._lock:
            self._exchanges.clear()
            self._model_counts.clear()
            self.request_count = 0
            self.opened_count = 0
            self._started = time.monotonic()

    def opened(self, connection: Connection) -> int:
        """Count a new connection and number it."""
        with self._lock:
            self.live.add(connection)
            self.opened_count += 1
            return self.opened_count

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.live.discard(connection)

    def begin(self, request: HttpRequest, connection: int) -> DeskExchange:
        """Record a request and decide what to do with it."""
        route = find_route(request.method, request.target.partition("?")[0], request.headers)
        body = _json_object(request.body)
        model = route.model if route is not None and route.model is not None else body.get("model")
        stream = route.stream if route is not None and route.stream is not None else body.get("stream")
        name = model if isinstance(model, str) else None
        with self._lock:
            record = RequestRecord(
                number=self.request_count,
                model_number=self._model_counts.get(name or "", 0),
                time=self.clock,
                ended=None,
                method=request.method,
                path=request.target,
                model=name,
                stream=stream is True,
                headers=request.headers,
                body=body,
                connection=connection,
                status=None,
                events=0,
                outcome="open",
            )
            self.request_count += 1
            self._model_counts[name or ""] = record.model_number + 1
            self.in_flight += 1
        exchange = DeskExchange(self, record, self._decide(record, route), self._seed)
        with self._lock:
            self._exchanges.append(exchange)
        return exchange

    def settle(self, exchange: DeskExchange, outcome: Outcome) -> None:
        """Record how an exchange ended."""
        with self._lock:
            exchange.ended = self.clock
            exchange.outcome = outcome
            self.in_flight -= 1

    def _decide(self, record: RequestRecord, route: Route | None) -> Plan:
        if route is None:
            return json_plan("openai", 404, unknown_path(record.method, record.path))
        if not route.api.is_model_call:
            outage = self._director.outage_of(record)
            if outage is None:
                return json_plan(route.family, 200, list_models(route.family, self._models))
            return make_plan(outage, Call(route.api, route.family, "", stream=False), {}, merge=True)
        try:
            behaviour = self._director.choose(record)
        except Exception as error:  # noqa: BLE001 - a user's function: tell the client
            message = f"the script of the fault server raised {error!r}"
            return json_plan(route.family, 500, {"error": {"message": message, "type": "script_error"}})
        over = behaviour.capacity is not None and self.in_flight > behaviour.capacity
        call = Call(route.api, route.family, record.model or "fault-model", record.stream, _include_usage(record.body))
        return self._plan(behaviour, call, record.body, over_capacity=over)

    def _plan(self, behaviour: Behaviour, call: Call, body: Mapping[str, object], *, over_capacity: bool) -> Plan:
        """The plan, from those made before if it is there. Behaviours are told apart by identity."""
        key = (id(behaviour), call, over_capacity)
        known = self._plans.get(key)
        if known is not None:
            return known[1]
        applied = Behaviour(error=behaviour.over_capacity) if over_capacity else behaviour
        plan = make_plan(applied, call, body, merge=self._merge)
        if call.api in _CACHEABLE:
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = (behaviour, plan)
        return plan


def _include_usage(body: Mapping[str, object]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and cast("dict[str, object]", options).get("include_usage") is True


def _json_object(body: bytes) -> Mapping[str, object]:
    try:
        value: object = json.loads(body) if body else {}
    except ValueError:
        return {}
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
