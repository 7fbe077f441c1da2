"""Many requests at once, from a file of results that an interrupted run goes on with.

python examples/batch.py                      simulated answers, which mean nothing
python examples/batch.py openai:gpt-5-mini    a real model (needs OPENAI_API_KEY)
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from llmprod import BatchItem, Client, read_checkpoint

MODEL = sys.argv[1] if len(sys.argv) > 1 else "simulated:small"
REVIEWS = ["Arrived late, works well.", "Broke after a day.", "Exactly as described.", "Too loud for the bedroom."] * 10


class Review(BaseModel):
    """What is wanted of each review."""

    mood: Literal["good", "bad", "mixed"]
    about: Literal["delivery", "quality", "other"]


def items() -> Iterator[BatchItem]:
    """Give each review a key that stays when the list grows."""
    for number, text in enumerate(REVIEWS):
        yield BatchItem(f"Classify this review: {text}", key=f"review-{number}")


with tempfile.TemporaryDirectory() as folder, Client(MODEL) as client:
    file = Path(folder) / "reviews.jsonl"

    # The first run is left early. What had ended by then is in the file.
    with client.map(items(), output=Review, checkpoint=file, concurrency=8) as results:
        for result in results:
            if result.index == 11:
                break
    print(f"left early: {sum(result.ok for result in read_checkpoint(file))} of {len(REVIEWS)} are in the file")

    # The second takes them from there and asks for the others alone.
    moods: dict[str, int] = {}
    restored = tokens = 0
    for result in client.map(items(), output=Review, checkpoint=file, progress=True):
        if not result.ok:
            print(f"{result.key}: {result.error}")
            continue
        moods[result.parsed.mood] = moods.get(result.parsed.mood, 0) + 1
        restored += result.restored
        tokens += result.usage.total if result.usage else 0
    print(f"done: {moods}, {restored} of them restored, {tokens} tokens")
