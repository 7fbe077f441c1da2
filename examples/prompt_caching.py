"""A support bot with a long handbook, with and without the provider's prompt cache; then a prompt that spoils it.

    python examples/prompt_caching.py

The provider is made up: an HTTP transport in memory that keeps and bills as Anthropic's documentation says.
"""

import asyncio
import json
import logging
from typing import Any

import httpx

from llmprod import Anthropic, AsyncClient, CachePrices, HTTPOptions, Message, PromptCaching, Wrapper

HANDBOOK = "Refunds are paid within fourteen days of the return. " * 400
PRICES = CachePrices(fresh=2, read="0.1", write="2.5", output=10)  # Claude Sonnet 5.5, November 2026
QUESTIONS = ["Where is my refund?", "It has been ten days.", "And if I paid by card?", "Thanks. Who may I call?"]


class Provider:
    """Keeps what stands before a mark; tokens are four letters."""

    def __init__(self) -> None:
        self.kept: set[str] = set()

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer, and tell what was read and written."""
        body = json.loads(request.content)
        blocks = [*body.get("system", []), *(block for turn in body["messages"] for block in turn["content"])]
        texts = [block["text"] for block in blocks]
        marks = [place + 1 for place, block in enumerate(blocks) if "cache_control" in block]

        def size(count: int) -> int:
            return sum(map(len, texts[:count])) // 4

        found = [place for mark in marks for place in range(mark, max(0, mark - 20), -1) if self.key(texts, place)]
        read, most = max(map(size, found), default=0), max(map(size, marks), default=0)
        self.kept |= {json.dumps(texts[:mark]) for mark in marks}
        usage = {
            "input_tokens": size(len(texts)) - max(read, most),
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": max(0, most - read),
            "output_tokens": 12,
        }
        answer: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": body["model"]}
        content = [{"type": "text", "text": "By the handbook: within fourteen days."}]
        return httpx.Response(200, json={**answer, "content": content, "stop_reason": "end_turn", "usage": usage})

    def key(self, texts: list[str], count: int) -> bool:
        """Is this beginning kept?"""
        return json.dumps(texts[:count]) in self.kept


async def talk(title: str, *wrappers: Wrapper, volatile: bool = False) -> None:
    """One conversation of four turns."""
    http = httpx.AsyncClient(transport=httpx.MockTransport(Provider().answer))
    model = Anthropic("claude-sonnet-5-5", api_key="none", http=HTTPOptions(client=http))
    print(title)
    async with http, AsyncClient(model, wrappers=wrappers) as client:
        said: list[Message] = []
        for turn, question in enumerate(QUESTIONS):
            system = f"It is 2026-11-28 10:0{turn}. {HANDBOOK}" if volatile else HANDBOOK
            said.append(Message.user(question))
            response = await client.generate([Message.system(system), *said])
            said.append(Message.assistant(*response.parts))
            usage = response.usage
            assert usage is not None
            print(f"  plain {usage.input:>5}  written {usage.cache_written:>5}  read {usage.cache_read:>5}")
            for decision in response.trace.decisions:
                print(f"  {decision}")


async def main() -> None:
    logging.disable()  # the finding is printed below
    await talk("without")
    caching = PromptCaching(prices=PRICES)
    await talk("with PromptCaching", caching)
    print(f"  {caching.stats()}\n")
    caching = PromptCaching(prices=PRICES)
    await talk("with the time at the beginning of the prompt", caching, volatile=True)
    print(f"  {caching.stats()}")


asyncio.run(main())
