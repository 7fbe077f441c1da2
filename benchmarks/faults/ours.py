"""llmprod as its README shows it: default settings, one fallback."""

from __future__ import annotations

import time

from benchmarks.faults.judge import Ended
from benchmarks.faults.run import MAX_TOKENS, PROMPT, Caller
from llmprod import AsyncClient, LLMProdError, OpenAI, Response, StreamInterrupted, Tool

_LOOKUP = Tool(name="lookup", parameters={"type": "object", "properties": {"x": {"type": "integer"}}})


class Ours:
    """The standard stack over two OpenAI-speaking routes."""

    def __init__(self, primary: str, fallback: str) -> None:
        self.client = AsyncClient(
            OpenAI("primary-model", base_url=primary, api_key="none"),
            fallbacks=[OpenAI("fallback-model", base_url=fallback, api_key="none")],
        )
        self.last: Response | LLMProdError | None = None

    async def call(self, *, stream: bool, deadline: float | None, tools: bool) -> Ended:
        started = time.monotonic()
        options = {"max_tokens": MAX_TOKENS, "deadline": deadline, "tools": [_LOOKUP] if tools else []}
        try:
            if stream:
                async with self.client.stream(PROMPT, **options) as response:  # type: ignore[misc]
                    self.last = response
                    await response.read()
            else:
                self.last = response = await self.client.generate(PROMPT, **options)  # type: ignore[misc]
        except StreamInterrupted as error:
            self.last = error
            partial = error.partial.text if error.partial else ""
            return Ended("interrupted", partial, time.monotonic() - started, type(error).__name__)
        except LLMProdError as error:
            self.last = error
            return Ended("error", "", time.monotonic() - started, type(error).__name__)
        return Ended(
            "answer",
            response.text,
            time.monotonic() - started,
            model=response.model,
            tokens=response.usage.total_output if response.usage else None,
            tools=[(call.name, call.arguments) for call in response.tool_calls],
        )

    async def aclose(self) -> None:
        await self.client.aclose()


def make(primary: str, fallback: str) -> Caller:
    """Make our caller."""
    return Ours(primary, fallback)
