"""The experiment: what the server can do, what is asked of it, and when."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Plan:
    """One run; times in seconds.

    A slot is a place in the model's batch. What finds none waits in a queue, first come first served, as long as there
    is room, and is refused with 503 where there is none. The server does not notice that a client has given up: the
    request keeps its place, and its slot later on. A refusal is not free: it takes some of a slot's time.

    Attributes:
        queue: seconds of full capacity that may wait.
        slots: requests served at once at full capacity.
        service, sigma: mean and shape of the lognormal time that one holds its slot.
        load: share of the full capacity that is offered.
        drop_to: share of the capacity that is left during the drop.
        before, drop, after: how long each part lasts.
        deadline: after this nobody wants the answer.
        refusal_delay: until a refusal is sent.
        refusal_cost: of a slot's time that a refusal takes.
    """

    queue: float
    slots: int = 20
    service: float = 0.5
    sigma: float = 0.5
    load: float = 0.8
    drop_to: float = 0.3
    before: float = 20.0
    drop: float = 60.0
    after: float = 30.0
    deadline: float = 10.0
    refusal_delay: float = 0.05
    refusal_cost: float = 0.02
    seed: int = 1

    @property
    def capacity(self) -> float:
        """Requests a second that the server can answer."""
        return self.slots / self.service

    @property
    def reduced(self) -> float:
        """… during the drop."""
        return self.slots_left / self.service

    @property
    def slots_left(self) -> int:
        """Slots during the drop."""
        return round(self.slots * self.drop_to)

    @property
    def places(self) -> int:
        """Requests that may wait."""
        return round(self.queue * self.capacity)

    @property
    def restored(self) -> float:
        """When the capacity is back."""
        return self.before + self.drop

    @property
    def length(self) -> float:
        """When the last call may begin."""
        return self.restored + self.after

    def arrivals(self) -> list[float]:
        """When each call begins: a Poisson process."""
        chance, now, found = random.Random(f"{self.seed}/arrivals"), 0.0, list[float]()
        while (now := now + chance.expovariate(self.load * self.capacity)) < self.length:
            found.append(now)
        return found

    def work(self, call: int) -> float:
        """Seconds that a call's answer takes a slot: the same for all contestants, and for each attempt."""
        mean = math.log(self.service) - self.sigma**2 / 2
        return random.Random(f"{self.seed}/{call}").lognormvariate(mean, self.sigma)

    def to_json(self) -> str:
        """For a child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What :meth:`to_json` wrote."""
        return cls(**json.loads(text))


SCENARIOS = {
    "refuses": Plan(queue=0.5),
    "queues": Plan(queue=4.0),
}
"""The two ways of hosted models. With half a second of queue, what can't be served soon is refused. Four seconds of
queue are thirteen once the capacity is down to 30%, longer than anybody waits: then the server works for nobody."""

QUICK = {
    name: Plan(queue=plan.queue / 4, before=5.0, drop=10.0, after=10.0, deadline=2.5)
    for name, plan in SCENARIOS.items()
}
"""A quarter of the time, to see that all of it works; too short to compare anything."""
