"""Ways to get an answer from one and the same engine, and from vLLM's own server."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from llmprod import VLLM, AsyncClient, Client, OpenAICompatible
from llmprod.provider import Provider


def prompt(number: int) -> str:
    """Return a prompt that begins like no other, so that no prefix cache helps."""
    return f"{number} is the number of this question. Tell me a story about a fox, a hen and a farmer, in many words."


class Bare:
    """``AsyncLLM.generate``, called on the engine's own loop: nothing of this library is in the way."""

    def __init__(self, local: VLLM) -> None:
        self._incarnation = local._engine.current
        assert self._incarnation is not None
        self._home = self._incarnation.crossing
        self._tokenizer: Any = None

    async def start(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(self._incarnation.config.model_config.tokenizer)

    def ids(self, number: int) -> list[int]:
        """Return the same tokens that the chat template makes for the others."""
        messages = [{"role": "user", "content": prompt(number)}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def ask(self, stream: bool):
        """Return how to ask, on the engine's loop."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        engine = self._incarnation.engine

        async def ask(number: int, tokens: int) -> tuple[int, float | None]:
            sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0, output_kind=kind)
            started, first, got = time.monotonic(), None, 0
            async with contextlib.aclosing(
                engine.generate({"prompt_token_ids": self.ids(number)}, sampling, uuid4().hex)
            ) as outputs:
                async for output in outputs:
                    first = first if first is not None else time.monotonic() - started
                    got += len(output.outputs[0].token_ids)
            return got, first if stream else None

        return ask

    async def run(self, make, *args: Any) -> Any:
        """Run a measurement on the engine's loop."""
        return await self._home.call(make, *args)


def ours(provider: Provider, kind: str, *, stream: bool, standard: bool):
    """Return how to ask through this library: with the standard stack, or without any wrapper."""
    client = AsyncClient(provider) if standard else AsyncClient(provider, wrappers=[])
    extra = {kind: {"ignore_eos": True}}

    async def whole(number: int, tokens: int) -> tuple[int, float | None]:
        response = await client.generate(prompt(number), max_tokens=tokens, temperature=0, extra=extra)
        return response.usage.total_output if response.usage else 0, None

    async def streamed(number: int, tokens: int) -> tuple[int, float | None]:
        async with client.stream(prompt(number), max_tokens=tokens, temperature=0, extra=extra) as response:
            async for _ in response:
                pass
        return response.usage.total_output if response.usage else 0, response.timing.ttft

    return streamed if stream else whole


def threads(local: VLLM, concurrency: int):
    """Return how to ask through the synchronous client, one thread a call."""
    client = Client(local)
    pool = ThreadPoolExecutor(concurrency)

    def whole(number: int, tokens: int) -> tuple[int, float | None]:
        response = client.generate(
            prompt(number), max_tokens=tokens, temperature=0, extra={"vllm": {"ignore_eos": True}}
        )
        return response.usage.total_output if response.usage else 0, None

    async def ask(number: int, tokens: int) -> tuple[int, float | None]:
        return await asyncio.get_running_loop().run_in_executor(pool, whole, number, tokens)

    return ask


def server_module() -> str:
    """Return the module of the installed release's server, which has moved in 0.30; vLLM is not imported for it."""
    names = ("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.openai.api_server")
    root = Path(next(iter(importlib.util.find_spec("vllm").submodule_search_locations)))
    return next(name for name in names if root.joinpath(*name.split(".")[1:]).with_suffix(".py").exists())


@contextlib.contextmanager
def server(model: str, options: list[str]) -> Iterator[str]:
    """Run ``vllm serve`` with the same model; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        sys.executable, "-m", server_module(), "--model", model, "--served-model-name", "m", "--host", "127.0.0.1",
        "--port", str(port), *options,
    ]  # fmt: skip
    env = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("vllm serve did not start") from None
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@contextlib.asynccontextmanager
async def openai_sdk(url: str) -> AsyncIterator[Any]:
    """Yield how to ask the server through OpenAI's own SDK, given ``stream``."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as sdk:

        def asker(stream: bool):
            async def ask(number: int, tokens: int) -> tuple[int, float | None]:
                started, first, got = time.monotonic(), None, 0
                options: dict[str, Any] = {
                    "model": "m",
                    "messages": [{"role": "user", "content": prompt(number)}],
                    "max_tokens": tokens,
                    "temperature": 0,
                    "extra_body": {"ignore_eos": True},
                }
                if not stream:
                    answer = await sdk.chat.completions.create(**options)
                    return answer.usage.completion_tokens, None
                options["stream_options"] = {"include_usage": True}
                async for chunk in await sdk.chat.completions.create(stream=True, **options):
                    if first is None and chunk.choices and chunk.choices[0].delta.content:
                        first = time.monotonic() - started
                    if chunk.usage:
                        got = chunk.usage.completion_tokens
                return got, first

            return ask

        yield asker


def compatible(url: str, *, stream: bool):
    """Return how to ask the server through this library."""
    return ours(
        OpenAICompatible("m", profile="vllm", base_url=f"{url}/v1"), "vllm-server", stream=stream, standard=True
    )


def cli_options(options: dict[str, Any]) -> list[str]:
    """Return an engine's options as arguments of ``vllm serve``."""
    words: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, (dict, list)):
            words += [flag, json.dumps(value)]
        elif value is not False:
            words += [flag, str(value)]
    return words
