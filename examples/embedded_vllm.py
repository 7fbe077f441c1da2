"""A model inside this process, with a stand-in for what it can't serve.

python examples/embedded_vllm.py                      without vLLM: a simulated model in its place
python examples/embedded_vllm.py Qwen/Qwen3-0.6B      with the extra `vllm`, on a GPU
"""

import asyncio
import importlib.util
import sys

from llmprod import VLLM, AsyncClient, Provider, Simulated, local_first

HOSTED = Simulated("small/hosted", ttft=0.1)  # in your application: OpenAI("gpt-5-mini")


def engine() -> Provider | None:
    if len(sys.argv) > 1 and importlib.util.find_spec("vllm"):
        return VLLM(sys.argv[1], max_model_len=2048)
    return None


async def main() -> None:
    local = engine()
    if local is None:
        print("No engine here (the extra `vllm`, and a model's name as argument): the stand-in answers.")
        client = AsyncClient(HOSTED)
    else:
        client = AsyncClient(local_first(local, HOSTED))
    async with client:
        print(client.describe(), end="\n\n")
        for number in range(3):
            if number == 1 and isinstance(local, VLLM):
                await local.start()  # the first question has begun it; the stand-in answered meanwhile
            async with client.stream(f"Question {number}: why is the sky blue?", max_tokens=40) as response:
                async for text in response.text_stream():
                    print(text, end="", flush=True)
            print(f"\n   by {response.provider}, first token after {response.timing.ttft:.2f} s\n")
        if isinstance(local, VLLM):
            print(local.start_times)
            print(local.stats())


asyncio.run(main())
