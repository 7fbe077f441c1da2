"""Other libraries as their documentation shows them: two retries, 30 s of timeout, a fallback where they have one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from benchmarks.faults.judge import Ended
from benchmarks.faults.run import MAX_TOKENS, PROMPT, MakeCaller

TIMEOUT = 30.0
_MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}


class _Seen:
    """What a caller has seen of an answer; kept when it breaks."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.model: str | None = None
        self.tokens: int | None = None
        self.tools: list[tuple[str, str]] = []


class Peer:
    """Times a call and turns whatever it raises into an ending."""

    async def ask(self, seen: _Seen, *, stream: bool, tools: bool) -> None:
        """Call the library and note in ``seen`` what arrives."""
        raise NotImplementedError

    async def call(self, *, stream: bool, deadline: float | None, tools: bool) -> Ended:
        seen, started = _Seen(), time.monotonic()
        try:
            await self.ask(seen, stream=stream, tools=tools)
        except Exception as error:
            text = "".join(seen.text)
            kind = "interrupted" if text else "error"
            return Ended(kind, text, time.monotonic() - started, type(error).__name__)  # type: ignore[arg-type]
        took = time.monotonic() - started
        return Ended("answer", "".join(seen.text), took, model=seen.model, tokens=seen.tokens, tools=seen.tools)

    async def aclose(self) -> None:
        """Nothing to close by default."""


def _read_chat(reply: Any, seen: _Seen) -> None:
    seen.model = reply.model
    seen.tokens = reply.usage.completion_tokens if getattr(reply, "usage", None) else None
    message = reply.choices[0].message
    seen.text.append(message.content or "")
    seen.tools += [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


async def _read_chunks(chunks: AsyncIterator[Any], seen: _Seen) -> None:
    """As applications read a stream: text as it comes, tool deltas put together by their index."""
    calls: dict[int, list[str]] = {}
    async for chunk in chunks:
        seen.model = chunk.model or seen.model
        if getattr(chunk, "usage", None):
            seen.tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            seen.text.append(choice.delta.content or "")
            for call in choice.delta.tool_calls or ():
                parts = calls.setdefault(call.index, ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
    seen.tools += [(name, arguments) for name, arguments in calls.values()]


class OpenAISDK(Peer):
    """The official SDK: retries, no fallback."""

    def __init__(self, primary: str, fallback: str) -> None:
        from openai import AsyncOpenAI

        self.client = AsyncOpenAI(base_url=primary, api_key="none", timeout=TIMEOUT)

    async def ask(self, seen: _Seen, *, stream: bool, tools: bool) -> None:
        options: dict[str, Any] = {"tools": [_TOOL]} if tools else {}
        create: Any = self.client.chat.completions.create
        if stream:
            usage = {"include_usage": True}
            chunks = await create(
                model="primary-model",
                messages=_MESSAGES,
                max_tokens=MAX_TOKENS,
                stream=True,
                stream_options=usage,
                **options,
            )
            await _read_chunks(chunks, seen)
        else:
            _read_chat(await create(model="primary-model", messages=_MESSAGES, max_tokens=MAX_TOKENS, **options), seen)

    async def aclose(self) -> None:
        await self.client.close()


class LiteLLMRouter(Peer):
    """litellm.Router with a fallback."""

    def __init__(self, primary: str, fallback: str) -> None:
        import litellm

        def deployment(name: str, base: str) -> dict[str, Any]:
            return {
                "model_name": name,
                "litellm_params": {"model": f"openai/{name}", "api_base": base, "api_key": "none"},
            }

        self.router = litellm.Router(
            model_list=[deployment("primary-model", primary), deployment("fallback-model", fallback)],
            fallbacks=[{"primary-model": ["fallback-model"]}],
            num_retries=2,
            timeout=TIMEOUT,
            stream_timeout=TIMEOUT,
        )

    async def ask(self, seen: _Seen, *, stream: bool, tools: bool) -> None:
        options: dict[str, Any] = {"tools": [_TOOL]} if tools else {}
        if stream:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
        reply: Any = await self.router.acompletion(
            "primary-model", messages=_MESSAGES, max_tokens=MAX_TOKENS, **options
        )
        await _read_chunks(reply, seen) if stream else _read_chat(reply, seen)


class LangChain(Peer):
    """langchain-openai with ``with_fallbacks``."""

    def __init__(self, primary: str, fallback: str) -> None:
        from langchain_openai import ChatOpenAI

        def model(name: str, base: str) -> Any:
            options: dict[str, Any] = {"model": name, "base_url": base, "api_key": "none", "timeout": TIMEOUT}
            return ChatOpenAI(**options, max_tokens=MAX_TOKENS, stream_usage=True)

        self.models = model("primary-model", primary), model("fallback-model", fallback)

    async def ask(self, seen: _Seen, *, stream: bool, tools: bool) -> None:
        import json

        first, second = (model.bind_tools([_TOOL]) if tools else model for model in self.models)
        chain = first.with_fallbacks([second])
        total: Any = None
        if stream:
            async for chunk in chain.astream(PROMPT):
                seen.text.append(str(chunk.content))
                total = chunk if total is None else total + chunk
        else:
            total = await chain.ainvoke(PROMPT)
            seen.text.append(str(total.content))
        if total is not None:
            seen.model = total.response_metadata.get("model_name")
            seen.tokens = total.usage_metadata["output_tokens"] if total.usage_metadata else None
            seen.tools += [(call["name"], json.dumps(call["args"])) for call in total.tool_calls]


class PydanticAI(Peer):
    """pydantic-ai's direct requests with a FallbackModel."""

    def __init__(self, primary: str, fallback: str) -> None:
        from openai import AsyncOpenAI
        from pydantic_ai.models.fallback import FallbackModel
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        def model(name: str, base: str) -> Any:
            client = AsyncOpenAI(base_url=base, api_key="none", timeout=TIMEOUT)
            return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))

        self.model = FallbackModel(model("primary-model", primary), model("fallback-model", fallback))

    async def ask(self, seen: _Seen, *, stream: bool, tools: bool) -> None:
        from pydantic_ai import ModelSettings
        from pydantic_ai.direct import model_request, model_request_stream
        from pydantic_ai.messages import (
            ModelRequest,
            PartDeltaEvent,
            PartStartEvent,
            TextPart,
            TextPartDelta,
            ToolCallPart,
        )
        from pydantic_ai.models import ModelRequestParameters
        from pydantic_ai.tools import ToolDefinition

        schema = _TOOL["function"]["parameters"]
        definitions = [ToolDefinition(name="lookup", parameters_json_schema=schema)] if tools else []
        request: Any = {
            "messages": [ModelRequest.user_text_prompt(PROMPT)],
            "model_settings": ModelSettings(max_tokens=MAX_TOKENS),
            "model_request_parameters": ModelRequestParameters(function_tools=definitions),
        }
        if stream:
            async with model_request_stream(self.model, **request) as events:
                async for event in events:
                    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                        seen.text.append(event.part.content)
                    elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                        seen.text.append(event.delta.content_delta)
                reply: Any = events.get()
        else:
            reply = await model_request(self.model, **request)
            seen.text += [part.content for part in reply.parts if isinstance(part, TextPart)]
        seen.model = reply.model_name
        seen.tokens = reply.usage.output_tokens or None
        seen.tools += [
            (part.tool_name, part.args_as_json_str()) for part in reply.parts if isinstance(part, ToolCallPart)
        ]


PEERS: dict[str, MakeCaller] = {
    "openai": OpenAISDK,
    "litellm Router": LiteLLMRouter,
    "langchain with_fallbacks": LangChain,
    "pydantic-ai FallbackModel": PydanticAI,
}
"""Makers of callers by library; a library that is not installed raises ImportError when made."""
