"""One way to call for each library: a whole answer, and a stream of 64 tokens read to its end.

A target is a function from the server's address to ``(whole, stream, close)``. What comes back is checked, so that
nobody is fast by not reading.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

Target = tuple[Callable[[], Awaitable[str]], Callable[[], Awaitable[str]], Callable[[], Awaitable[Any]]]

MODEL = "fault-model"
PROMPT = "Count to sixty-four."
BODY = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 256}


def httpx(url: str) -> Target:
    """Bare httpx, as people write it."""
    import httpx

    client = httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer none"}, timeout=60)

    async def whole() -> str:
        reply = await client.post("/v1/chat/completions", json=BODY)
        reply.raise_for_status()
        return str(reply.json()["choices"][0]["message"]["content"])

    async def stream() -> str:
        text = []
        async with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    choices = json.loads(line[6:])["choices"]
                    if choices:
                        text.append(choices[0]["delta"].get("content") or "")
        return "".join(text)

    return whole, stream, client.aclose


def aiohttp(url: str) -> Target:
    """Bare aiohttp."""
    import aiohttp

    session: aiohttp.ClientSession | None = None

    def client() -> aiohttp.ClientSession:
        nonlocal session
        if session is None:
            session = aiohttp.ClientSession(base_url=url, headers={"authorization": "Bearer none"})
        return session

    async def whole() -> str:
        async with client().post("/v1/chat/completions", json=BODY) as reply:
            reply.raise_for_status()
            return str((await reply.json())["choices"][0]["message"]["content"])

    async def stream() -> str:
        text = []
        async with client().post("/v1/chat/completions", json={**BODY, "stream": True}) as reply:
            reply.raise_for_status()
            async for line in reply.content:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    choices = json.loads(line[6:])["choices"]
                    if choices:
                        text.append(choices[0]["delta"].get("content") or "")
        return "".join(text)

    async def close() -> None:
        await client().close()

    return whole, stream, close


def _ours(url: str, engine: str) -> Target:
    from llmprod import AsyncClient, HTTPOptions, OpenAI

    http = HTTPOptions(engine=engine)
    client = AsyncClient(
        OpenAI(MODEL, base_url=f"{url}/v1", api_key="none", http=http),
        fallbacks=[OpenAI("other", base_url=f"{url}/v1", api_key="none", http=http)],
    )

    async def whole() -> str:
        return (await client.generate(PROMPT, max_tokens=256)).text

    async def stream() -> str:
        async with client.stream(PROMPT, max_tokens=256) as response:
            async for _ in response:
                pass
            return response.text

    return whole, stream, client.aclose


def llmprod(url: str) -> Target:
    """The standard stack with a fallback, on httpx."""
    return _ours(url, "httpx")


def llmprod_fast(url: str) -> Target:
    """The same on pyreqwest."""
    return _ours(url, "pyreqwest")


def openai(url: str) -> Target:
    """The official SDK."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    messages: Any = BODY["messages"]

    async def whole() -> str:
        reply = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=256)
        return reply.choices[0].message.content or ""

    async def stream() -> str:
        text = []
        async for chunk in await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=256, stream=True
        ):
            if chunk.choices:
                text.append(chunk.choices[0].delta.content or "")
        return "".join(text)

    return whole, stream, client.close


def _litellm(call: Any, close: Callable[[], Awaitable[Any]]) -> Target:
    async def whole() -> str:
        return str((await call(stream=False)).choices[0].message.content)

    async def stream() -> str:
        text = []
        async for chunk in await call(stream=True):
            if chunk.choices:
                text.append(chunk.choices[0].delta.content or "")
        return "".join(text)

    return whole, stream, close


async def _nothing() -> None:
    pass


def litellm(url: str) -> Target:
    """litellm.acompletion."""
    import litellm

    def call(stream: bool) -> Any:
        return litellm.acompletion(
            f"openai/{MODEL}",
            messages=BODY["messages"],
            max_tokens=256,
            api_base=f"{url}/v1",
            api_key="none",
            stream=stream,
        )

    return _litellm(call, _nothing)


def litellm_router(url: str) -> Target:
    """litellm.Router with a fallback: what corresponds to our standard stack."""
    import litellm

    def deployment(name: str) -> dict[str, Any]:
        return {
            "model_name": name,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
        }

    router = litellm.Router(
        model_list=[deployment("main"), deployment("other")], fallbacks=[{"main": ["other"]}], num_retries=2
    )

    def call(stream: bool) -> Any:
        return router.acompletion("main", messages=BODY["messages"], max_tokens=256, stream=stream)

    return _litellm(call, _nothing)


def pydantic_ai(url: str) -> Target:
    """pydantic-ai's direct model requests."""
    from pydantic_ai import ModelSettings
    from pydantic_ai.direct import model_request, model_request_stream
    from pydantic_ai.messages import ModelRequest, TextPart
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    settings = ModelSettings(max_tokens=256)

    async def whole() -> str:
        reply = await model_request(model, [ModelRequest.user_text_prompt(PROMPT)], model_settings=settings)
        return "".join(part.content for part in reply.parts if isinstance(part, TextPart))

    async def stream() -> str:
        async with model_request_stream(
            model, [ModelRequest.user_text_prompt(PROMPT)], model_settings=settings
        ) as reply:
            async for _ in reply:
                pass
            return "".join(part.content for part in reply.get().parts if isinstance(part, TextPart))

    return whole, stream, _nothing


def any_llm(url: str) -> Target:
    """any-llm, with one client for all calls."""
    from any_llm import AnyLLM

    client = AnyLLM.create("openai", api_key="none", api_base=f"{url}/v1")

    def call(stream: bool) -> Any:
        return client.acompletion(model=MODEL, messages=BODY["messages"], max_tokens=256, stream=stream)

    return _litellm(call, _nothing)


def langchain(url: str) -> Target:
    """langchain-openai."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", max_tokens=256)  # type: ignore[arg-type, call-arg]

    async def whole() -> str:
        return str((await model.ainvoke(PROMPT)).content)

    async def stream() -> str:
        return "".join([str(chunk.content) async for chunk in model.astream(PROMPT)])

    return whole, stream, _nothing


TARGETS: dict[str, Callable[[str], Target]] = {
    "httpx": httpx,
    "aiohttp": aiohttp,
    "llmprod": llmprod,
    "llmprod (pyreqwest)": llmprod_fast,
    "openai": openai,
    "any-llm": any_llm,
    "pydantic-ai": pydantic_ai,
    "langchain-openai": langchain,
    "litellm": litellm,
    "litellm Router": litellm_router,
}
