"""The providers themselves: addresses, keys, headers, capabilities; embeddings; compatible servers on real sockets."""

import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import pytest

from llmprod.context import Context
from llmprod.errors import InvalidArgument, MissingKey, ProtocolError, UnsupportedParameter
from llmprod.provider import Capabilities, Provider
from llmprod.providers._http import HTTPOptions
from llmprod.providers.openai import OpenAI
from llmprod.providers.openai_compatible import PROFILES, OpenAICompatible, Profile
from llmprod.providers.registry import from_string
from llmprod.request import EmbedRequest, GenerateRequest
from llmprod.testing.fault_server import Answer, Behaviour, FaultServer, Quirks, SseStyle, ToolCall
from llmprod.types import Audio, Message
from llmprod.usage import Usage
from tests.providers.codec_drive import ASK, Scripted
from tests.providers.openai_scripts import CHAT, RESPONSES

VARIABLES = (
    "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_VERSION",
    "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_API_KEY", "OPENROUTER_API_KEY", "VLLM_API_KEY", "OLLAMA_API_KEY",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


async def asked(make: Any, body: Any = None, request: Any = ASK) -> httpx.Request:
    """The HTTP request that a provider sends."""
    transport = Scripted([json.dumps(body or CHAT["text"]).encode()], kind="application/json")
    async with httpx.AsyncClient(transport=transport) as client:
        async with aclosing(make(HTTPOptions(client=client))) as provider:
            await provider.send(request, Context.new())
    return transport.requests[0]


# ---- OpenAI ---------------------------------------------------------------------------------------------------------


async def test_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-env")
    request = await asked(lambda http: OpenAI("gpt-5.6", project="proj", headers={"X-Team": "a"}, http=http))
    assert str(request.url) == "https://api.openai.com/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer sk-env"
    assert request.headers["openai-organization"] == "org-env"
    assert request.headers["openai-project"] == "proj"
    assert request.headers["x-team"] == "a"


async def test_responses() -> None:
    request = await asked(
        lambda http: OpenAI("gpt-5.6", api="responses", api_key=lambda: "sk-new", http=http), RESPONSES["text"]
    )
    assert str(request.url) == "https://api.openai.com/v1/responses"
    assert request.headers["authorization"] == "Bearer sk-new"


async def test_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://proxy/openai/")
    request = await asked(lambda http: OpenAI("m", http=http))
    assert str(request.url) == "http://proxy/openai/chat/completions"
    assert "authorization" not in request.headers


async def test_a_key_of_ones_own() -> None:
    request = await asked(lambda http: OpenAI("m", headers={"Authorization": "Bearer mine"}, http=http))
    assert request.headers.get_list("authorization") == ["Bearer mine"]


def test_names_and_capabilities() -> None:
    chat, responses = (OpenAI("gpt-5.6", api=api, api_key="sk-secret") for api in ("chat", "responses"))
    assert (chat.name, responses.name) == ("openai:gpt-5.6", "openai-responses:gpt-5.6")
    assert isinstance(chat, Provider)
    assert "secret" not in f"{chat!r}{responses!r}"
    assert chat.capabilities.embeddings
    everything = GenerateRequest(messages=ASK.messages, seed=1, stop=("a",), top_k=1, temperature=1.0)
    assert chat.capabilities.missing(everything) == ("top_k",)
    assert responses.capabilities.missing(everything) == ("seed", "stop", "top_k")
    sound = GenerateRequest(messages=(Message.user(Audio(b"x", media_type="audio/wav")),))
    assert (chat.capabilities.missing(sound), responses.capabilities.missing(sound)) == ((), ("audio",))
    assert not OpenAI("m", api_key="k", capabilities=Capabilities(embeddings=False)).capabilities.embeddings


async def test_what_can_not_be_honoured_is_dropped_when_asked() -> None:
    request = GenerateRequest(messages=ASK.messages, seed=1, top_k=3)
    with pytest.raises(UnsupportedParameter, match="top_k"):
        await asked(lambda http: OpenAI("m", api_key="k", http=http), request=request)
    sent = await asked(
        lambda http: OpenAI("m", api_key="k", http=http), request=replace(request, drop_unsupported=True)
    )
    assert json.loads(sent.content)["seed"] == 1
    assert "top_k" not in json.loads(sent.content)


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: OpenAI("gpt-5.6"), MissingKey, "OPENAI_API_KEY"),
        (lambda: OpenAI("gpt-5.6", api_key=" "), MissingKey, "non-empty"),
        (lambda: OpenAI("", api_key="k"), InvalidArgument, "model"),
        (lambda: OpenAI("m", api_key="k", api="assistants"), InvalidArgument, "chat, responses"),  # type: ignore[arg-type]
        (lambda: OpenAI("m", api_key="k", base_url="server"), InvalidArgument, "base_url"),
        (lambda: OpenAICompatible("m"), InvalidArgument, "the address of the openai-compatible server"),
        (lambda: OpenAICompatible("m", profile="vlm"), InvalidArgument, "generic, vllm, tgi"),
        (lambda: OpenAICompatible("m", profile="openrouter"), MissingKey, "OPENROUTER_API_KEY"),
        (lambda: OpenAICompatible("m", profile="azure", api_key="k"), InvalidArgument, "AZURE_OPENAI_ENDPOINT"),
    ],
)
def test_wrong_arguments(make: Any, kind: type, says: str) -> None:
    with pytest.raises(kind, match=says):
        make()


# ---- compatible servers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "url", "name"),
    [
        ("vllm", "http://127.0.0.1:8000/v1/chat/completions", "vllm-server:m"),
        ("tgi", "http://127.0.0.1:3000/v1/chat/completions", "tgi:m"),
        ("trtllm", "http://127.0.0.1:8000/v1/chat/completions", "trtllm:m"),
        ("ollama", "http://127.0.0.1:11434/v1/chat/completions", "ollama:m"),
        ("llamacpp", "http://127.0.0.1:8080/v1/chat/completions", "llamacpp:m"),
    ],
)
async def test_usual_addresses(profile: str, url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    request = await asked(lambda http: OpenAICompatible("m", profile=profile, http=http))
    assert str(request.url) == url
    assert "authorization" not in request.headers  # least of all OpenAI's key
    assert OpenAICompatible("m", profile=profile).name == name


async def test_openrouter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or")
    request = await asked(lambda http: OpenAICompatible("maker/model", profile="openrouter", http=http))
    assert str(request.url) == "https://openrouter.ai/api/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer sk-or"


@pytest.mark.parametrize("url", ["https://x.openai.azure.com", "https://x.openai.azure.com/openai/"])
async def test_azure(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", url)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "az-key")
    request = await asked(lambda http: OpenAICompatible("my gpt", profile="azure", api_version="2025-01-01", http=http))
    path = "https://x.openai.azure.com/openai/deployments/my%20gpt/chat/completions?api-version=2025-01-01"
    assert str(request.url) == path
    assert request.headers["api-key"] == "az-key"
    assert "authorization" not in request.headers


async def test_azure_v1() -> None:
    url = "https://x.openai.azure.com/openai/v1"
    request = await asked(lambda http: OpenAICompatible("gpt", base_url=url, profile="azure", api_key="k", http=http))
    assert str(request.url) == f"{url}/chat/completions"
    entra = {"Authorization": "Bearer token"}
    request = await asked(lambda http: OpenAICompatible("gpt", base_url=url, profile="azure", headers=entra, http=http))
    assert "api-key" not in request.headers


def test_a_profile_of_ones_own() -> None:
    profile = Profile(kind="mine", base_url="http://mine/v1", embeddings=False)
    provider = OpenAICompatible("m", profile=profile)
    assert provider.name == "mine:m"
    assert not provider.capabilities.embeddings


@pytest.mark.parametrize(
    ("text", "kind", "url"),
    [
        ("ollama:llama3.2:1b", "ollama", "http://127.0.0.1:11434/v1"),
        ("vllm-server:Qwen/Qwen3-8B@http://gpu1:8000/v1", "vllm-server", "http://gpu1:8000/v1"),
        ("openai-compatible:m@https://host/v1/", "openai-compatible", "https://host/v1"),
    ],
)
def test_model_strings(text: str, kind: str, url: str) -> None:
    provider = from_string(text)
    assert isinstance(provider, OpenAICompatible)
    assert (provider.kind, provider.base_url) == (kind, url)


# ---- embeddings -----------------------------------------------------------------------------------------------------

TWO = EmbedRequest(inputs=("a", "b"))


async def embedded(body: Any) -> Any:
    transport = Scripted([json.dumps(body).encode()], kind="application/json")
    async with httpx.AsyncClient(transport=transport) as client:
        async with aclosing(OpenAI("e", api_key="k", http=HTTPOptions(client=client))) as provider:
            return await provider.send(TWO, Context.new())


async def test_embeddings() -> None:
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    response = await embedded({"data": data, "model": "e-1", "usage": {"prompt_tokens": 5, "total_tokens": 5}})
    assert response.embeddings == [[1.0], [2.0]]
    assert (response.model, response.usage) == ("e-1", Usage(input=5))


async def test_embeddings_without_index() -> None:
    response = await embedded({"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]})
    assert (response.embeddings, response.usage) == ([[1.0], [2.0]], None)


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [2.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AACAPw=="}],
        [{"embedding": [float(at)]} for at in range(3)],
    ],
)
async def test_embeddings_that_are_not_one_for_each_input(data: Any) -> None:
    with pytest.raises(ProtocolError):
        await embedded({"data": data})


# ---- real sockets ---------------------------------------------------------------------------------------------------

QUIRKS = {
    "none": Quirks(),
    "all calls at index 0": Quirks(tool_index_zero=True),
    "no index": Quirks(tool_index_missing=True),
    "no index and no id": Quirks(tool_index_missing=True, tool_id_missing=True),
    "arguments as objects": Quirks(tool_arguments_object=True),
    "null delta, bare": Quirks(null_delta=True, bare=True),
    "content as parts": Quirks(content_parts=True),
    "usage twice": Quirks(usage_in_finish=True),
    "usage all along": Quirks(continuous_usage=True),
    "reasoning": Quirks(reasoning_field="reasoning"),
}
STYLES = {
    "plain": SseStyle(),
    "odd": SseStyle(bom=True, crlf=True, comments=True, multiline=True, space=False, last_blank_line=False),
}
CALLS = (
    ToolCall(name="weather", arguments={"city": "Bern"}, id="a"),
    ToolCall(name="weather", arguments={"city": "Genf"}, id="b"),
)


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("profile", ["generic", "ollama", "vllm"])
async def test_quirks_over_sockets(quirk: str, style: str, profile: str) -> None:
    answer = Answer(text="Let me see.", tool_calls=CALLS, reasoning="Two cities.")
    behaviour = Behaviour(answer=answer, quirks=QUIRKS[quirk], sse=STYLES[style])
    with FaultServer(behaviour) as server:
        provider = OpenAICompatible("m", base_url=f"{server.url}/v1", profile=profile)
        request = GenerateRequest(messages=ASK.messages, stream=True)
        streamed = await (await provider.send(request, Context.new())).read()
        whole = await provider.send(ASK, Context.new())
        await provider.aclose()
    assert streamed.parts == whole.parts
    assert streamed.usage == whole.usage
    assert (streamed.text, streamed.thinking) == ("Let me see.", "Two cities.")
    assert [call.input for call in streamed.tool_calls] == [{"city": "Bern"}, {"city": "Genf"}]
    assert len({call.id for call in streamed.tool_calls}) == 2
    assert streamed.finish_reason == "tool_calls"


@pytest.mark.parametrize("streaming", [True, False])
async def test_responses_over_sockets(streaming: bool) -> None:
    answer = Answer(text="Let me see.", tool_calls=CALLS, reasoning="Two cities.")
    with FaultServer(Behaviour(answer=answer)) as server:
        provider = OpenAI("m", api="responses", base_url=f"{server.url}/v1", api_key="k")
        response = await provider.send(GenerateRequest(messages=ASK.messages, stream=streaming), Context.new())
        await response.read()
        await provider.aclose()
    assert (response.text, response.thinking) == ("Let me see.", "Two cities.")
    assert [call.id for call in response.tool_calls] == ["a", "b"]
    assert response.finish_reason == "tool_calls"


def test_profiles_are_data() -> None:
    assert {profile.kind for profile in PROFILES.values()} == {
        "openai-compatible", "vllm-server", "tgi", "trtllm", "ollama", "llamacpp", "openrouter", "azure",
    }  # fmt: skip
