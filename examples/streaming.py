"""Streams: text as it is made, reasoning beside it, and what to do when a stream breaks.

python examples/streaming.py                              a simulated model
python examples/streaming.py anthropic:claude-haiku-4-5   a real one (needs ANTHROPIC_API_KEY)
"""

import asyncio
import sys

from llmprod import AsyncClient, Client, Simulated, StreamInterrupted, TextDelta, ThinkingDelta

MODEL = sys.argv[1] if len(sys.argv) > 1 else "simulated:small"


def text_alone() -> None:
    """Synchronous code, text only."""
    with Client(MODEL) as client, client.stream("Say something in two sentences.", max_tokens=80) as response:
        for piece in response.text_stream():
            print(piece, end="", flush=True)
        timing = response.timing
        print(f"\n\nfirst token after {timing.ttft:.2f} s, {timing.tokens_per_second or 0:.0f} tokens/s\n")


async def all_events() -> None:
    """Asynchronous code, every event. The same works on trio."""
    async with AsyncClient(MODEL) as client:
        options = {"reasoning_effort": "low"} if MODEL.startswith("simulated:") else {}
        async with client.stream("Think, then answer.", max_tokens=2000, **options) as response:
            async for event in response:
                match event:
                    case ThinkingDelta(text=text):
                        print(f"\033[2m{text}\033[0m", end="", flush=True)
                    case TextDelta(text=text):
                        print(text, end="", flush=True)
                    case _:
                        pass  # usage, start, finish …
        print(f"\n\n{response.finish_reason}, {response.usage}\n")


def interrupted() -> None:
    """A stream that breaks after text was shown raises; what arrived is kept, and marked as partial."""
    breaking = Simulated("small/breaking", failures={"cut": 1.0}, seed=3)
    with Client(breaking) as client, client.stream("Tell me a long story.") as response:
        try:
            for piece in response.text_stream():
                print(piece, end="", flush=True)
        except StreamInterrupted as error:
            print(f"\n\n{error}")
            print(f"kept: {len(error.partial.text)} characters; complete: {error.partial.complete}\n")
            print(error.trace)


text_alone()
asyncio.run(all_events())
interrupted()
