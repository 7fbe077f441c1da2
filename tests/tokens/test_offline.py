"""Nothing touches the network or the environment, whatever is counted: in a process of its own, from import on."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, socket, sys

def refuse(*told, **more):
    raise SystemExit("the network was touched")

for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname", "socketpair"):
    setattr(socket, name, refuse)

class Watched(dict):
    pass

before = dict(os.environ)
sys.modules["requests"] = None  # importing it is an error

from llmprod import Audio, File, GenerateRequest, Image, Message, OutputSchema, Tool
from llmprod.tokens import TokenCounter, count_tokens

request = GenerateRequest(
    messages=(
        Message.system("Be brief."),
        Message.user("Hello, Привет, 你好", Image(url="http://192.0.2.1/a.png"), Audio(url="http://192.0.2.1/a.wav"),
                     File(url="http://192.0.2.1/a.pdf")),
    ),
    tools=(Tool(name="look", description="Look", parameters={"type": "object", "properties": {}}),),
    output=OutputSchema.of(dict[str, int]),
)
for model in ("openai:gpt-5", "openai:gpt-4", "openai:gpt-9", "anthropic:claude-opus-4-8", "google:gemini-2.5-pro",
              "mistral:mistral-large", "groq:llama-3.3-70b", "vllm:Qwen/Qwen3-8B", "deepseek:deepseek-chat", "x:y"):
    for what in ("Hello", request):
        assert count_tokens(what, model=model).tokens > 0
        assert TokenCounter(tables="none").count(what, model=model).tokens > 0
assert dict(os.environ) == before
assert "tiktoken.load" not in sys.modules or "requests" in sys.modules
print(count_tokens("Hello", model="openai:gpt-5").method)
"""


@pytest.mark.parametrize("cache", ["", "/nonexistent/cache"])
def test_counting_with_every_socket_blocked(cache, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "TIKTOKEN_CACHE_DIR": cache, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() in ("o200k_base", "by script (o200k)")
    assert not list(tmp_path.iterdir())
