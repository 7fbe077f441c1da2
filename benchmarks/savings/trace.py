"""From Mooncake's trace to prompts: turns of conversations whose earlier turns are repeated word for word.

The trace (kvcache-ai/Mooncake, `conversation_trace.jsonl`, Apache-2.0, FAST'25; an hour of an assistant's traffic)
tells of each call its time, the lengths of prompt and answer, and an id for each 512 tokens of the prompt, equal where
all up to there is equal. A prompt that goes on from all whole blocks of an earlier one is its next turn: the earlier
prompt, the earlier answer, and what the user said then. Of the turns found so, 92% have room for the answer that the
trace tells of, which is how we know that they are turns. The first block, which all calls share, is the system
message. A token is written as four letters.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from llmprod.request import GenerateRequest
from llmprod.types import Message, Text

BLOCK = 512
FIRST_TOKEN, TOKENS_A_SECOND = 1.0, 50.0
"""How long an answer takes, of which the trace tells nothing."""

Said: TypeAlias = tuple[Literal["system", "user", "assistant"], int, int]
"""Who said it, what (a number), and how many tokens."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the trace.

    Attributes:
        at: when, in seconds.
        said: the prompt.
        output: tokens of the answer.
        key: equal for equal prompts.
        blocks: ids of the prompt's whole blocks.
        turn: number of the turn in its conversation, as far as the trace shows; 0 for the first.
    """

    at: float
    said: tuple[Said, ...]
    output: int
    key: tuple[int, ...]
    blocks: tuple[int, ...]
    turn: int

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return sum(tokens for _, _, tokens in self.said)

    @property
    def seconds(self) -> float:
        """How long its answer takes."""
        return FIRST_TOKEN + self.output / TOKENS_A_SECOND

    def request(self) -> GenerateRequest:
        """The prompt as a request; the same number makes the same text."""
        return GenerateRequest(messages=tuple(Message(role, (Text(text(*of)),)) for role, *of in self.said))


def text(number: int, tokens: int) -> str:
    """Return a text of this many tokens that no other number has."""
    return (f"{number:07x} " * (tokens // 2 + 1))[: tokens * 4]


def read(path: Path) -> list[Call]:
    """Return the trace's calls in order."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return list(_calls(rows))


def _calls(rows: list[dict[str, object]]) -> Iterator[Call]:
    numbers = iter(range(1, 10**9))
    by_blocks: dict[tuple[int, ...], Call] = {}
    for row in rows:
        ids: tuple[int, ...] = tuple(row["hash_ids"])  # type: ignore[arg-type]
        length, output = int(row["input_length"]), int(row["output_length"])  # type: ignore[call-overload]
        whole = ids[: length // BLOCK]
        before = next((by_blocks[ids[:count]] for count in range(len(ids), 1, -1) if ids[:count] in by_blocks), None)
        same = before is not None and before.key == (*ids, length)
        new = length - (before.prompt if before is not None else 0)
        if before is not None and same:
            said, turn = before.said, before.turn
        elif before is not None and new >= 2:
            answer = min(before.output, new - 1)
            said = (*before.said, ("assistant", next(numbers), answer), ("user", next(numbers), new - answer))
            turn = before.turn + 1
        else:
            head: Said = ("system", ids[0], min(BLOCK, length - 1))
            said, turn = (head, ("user", next(numbers), length - head[2])), 0
        call = Call(float(row["timestamp"]) / 1000, said, output, (*ids, length), whole, turn)  # type: ignore[arg-type]
        if len(whole) > 1:
            by_blocks[whole] = call
        yield call
