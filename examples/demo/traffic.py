"""The traffic: when calls arrive and how long they are, from a sample of a real trace.

Arrivals keep the trace's own gaps (bursts and lulls included), 1.5 times as fast: about 7 calls a second. Prompts have
a twentieth of the trace's tokens and answers an eighth, one word for a token, so that a call takes about as long as a
short one does in reality. The words themselves are made up: the trace holds none.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

SAMPLE = Path(__file__).parent / "data" / "azure_llm_inference_conv.csv"
SPEED = 1.5
PROMPT_SHARE, ANSWER_SHARE = 1 / 20, 1 / 8
STREAMED = 0.6
LAST_RESORT = "We can't answer right now. Your message is saved and somebody will get back to you."

Row = tuple[float, int, int]
"""Seconds since the sample's beginning, prompt tokens, answer tokens."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the application. Both sides make it, at the same time."""

    number: int
    at: float
    prompt: str
    words: int
    stream: bool
    tags: dict[str, str]

    def answer(self, route: str) -> str:
        """What the model behind ``route`` says: every call and route has its own words, so a mix-up shows."""
        return " ".join(f"{route}-{self.number}.{place}" for place in range(1, self.words + 1))


def load(seconds: float, seed: int) -> list[Call]:
    """Return the calls that arrive in ``seconds``."""
    chance = random.Random(f"traffic/{seed}")
    calls: list[Call] = []
    for number, (at, prompt, answer) in zip(count(1), _rows()):
        if at / SPEED >= seconds:
            return calls
        words = " ".join(f"word{place}" for place in range(max(1, round(prompt * PROMPT_SHARE))))
        stream = chance.random() < STREAMED
        tags = {"user": f"user-{chance.randrange(40)}", "endpoint": "chat" if stream else "batch"}
        length = max(4, round(answer * ANSWER_SHARE))
        calls.append(Call(number, at / SPEED, f"Ticket #{number}: {words}", length, stream, tags))
    raise AssertionError("unreachable: the sample repeats for ever")


def _rows() -> Iterator[Row]:
    """The sample, over and over."""
    with SAMPLE.open(newline="") as file:
        read = [
            (datetime.fromisoformat(row["TIMESTAMP"][:26]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    first, last = read[0][0], read[-1][0]
    for lap in count():
        for arrived, prompt, answer in read:
            yield (arrived - first).total_seconds() + lap * (last - first).total_seconds(), prompt, answer
