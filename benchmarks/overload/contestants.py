"""Who asks: each a function of the server's address and the deadline that returns ``ask(prompt) -> text``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Ask = Callable[[str], Awaitable[str]]


def none(url: str, deadline: float) -> Ask:
    """No protection: the vendor's SDK, one attempt."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=deadline)

    async def ask(prompt: str) -> str:
        messages: Any = [{"role": "user", "content": prompt}]
        reply = await client.chat.completions.create(model="model", messages=messages, max_tokens=64)
        return reply.choices[0].message.content or ""

    return ask


def naive(url: str, deadline: float) -> Ask:
    """Three retries by a decorator, with the exponential backoff that OpenAI's cookbook shows."""
    from tenacity import retry, stop_after_attempt, wait_random_exponential

    return retry(stop=stop_after_attempt(4), wait=wait_random_exponential(min=1, max=60), reraise=True)(
        none(url, deadline)
    )


def litellm(url: str, deadline: float) -> Ask:
    """LiteLLM's Router as its reliability page shows it: three retries; cooldowns are on by default."""
    import litellm as library

    model = {"model": "openai/model", "api_base": url, "api_key": "none"}
    router = library.Router(
        model_list=[{"model_name": "model", "litellm_params": model}], num_retries=3, timeout=deadline
    )

    async def ask(prompt: str) -> str:
        messages: Any = [{"role": "user", "content": prompt}]
        reply: Any = await router.acompletion("model", messages=messages, max_tokens=64)
        return reply.choices[0].message.content or ""

    return ask


def standard(url: str, deadline: float) -> Ask:
    """llmprod's standard stack as it comes."""
    from llmprod import AsyncClient, OpenAI

    return _generate(AsyncClient(OpenAI("model", base_url=url, api_key="none")), deadline)


def llmprod(url: str, deadline: float) -> Ask:
    """The standard stack and what its docs advise for overload: a bulkhead with a limit that adapts."""
    from llmprod import AIMDLimit, AsyncClient, Bulkhead, OpenAI
    from llmprod import standard as stack

    model = stack(OpenAI("model", base_url=url, api_key="none"), extra=[Bulkhead(AIMDLimit())])
    return _generate(AsyncClient(model, wrappers=[]), deadline)


def _generate(client: Any, deadline: float) -> Ask:
    async def ask(prompt: str) -> str:
        reply: Any = await client.generate(prompt, max_tokens=64, deadline=deadline)
        return str(reply.text)

    return ask


CONTESTANTS: dict[str, Callable[[str, float], Ask]] = {
    "none": none,
    "naive": naive,
    "litellm": litellm,
    "standard": standard,
    "llmprod": llmprod,
}
