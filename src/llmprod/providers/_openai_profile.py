"""What tells the servers that speak OpenAI's Chat Completions apart, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmprod.provider import PARAMETERS, Capabilities
from llmprod.usage import FinishReason

__all__ = ["OPENAI", "PROFILES", "Profile"]

_NOTHING: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How one kind of server differs from OpenAI. Change one with ``dataclasses.replace(PROFILES["vllm"], …)``.

    Attributes:
        kind: the provider's name in traces and errors, and its key in a request's ``extra``.
        base_url: address used when none is passed; None where there is no usual one.
        base_url_env: environment variable that may hold the address.
        key_env: environment variables that may hold the key, first one first.
        key_needed: refuse to start without a key.
        key_header: ``authorization`` (as ``Bearer …``) or ``api-key``.
        deployments: the model is a deployment in the path, with ``api-version`` in the query (Azure).
        max_tokens_field: ``max_completion_tokens`` or ``max_tokens``.
        unsupported: request parameters that the server ignores or refuses.
        embeddings, images, audio, files: kinds of request and parts that it takes.
        file_urls, audio_urls: it takes a URL where OpenAI wants the bytes.
        stream_options: asks for usage in a stream; None where the server refuses the field.
        done_ends: ``[DONE]`` ends an answer even without a finish reason, as in Ollama. The end of the body alone
            never does.
        system_role: role of instructions, ``system`` or ``developer``.
        merge_system: leading system messages become one, for chat templates that refuse a second.
        refusal_field: a refusal is replayed in its own field, not as text.
        break_special_tokens: put a zero-width joiner into ``<|`` in user text and tool results, where the server
            would take them for control tokens. Changes the prompt, so it is off everywhere until asked for.
        reasoning_fields: names of the field with the model's reasoning, looked up in this order.
        think_tags: reasoning may stand in the text between ``<think>`` tags.
        echo_reasoning: send reasoning back: ``never``, in turns with ``tool_calls``, or ``always``.
        schema_style: ``response_format`` (OpenAI's), ``structured_outputs`` (vLLM's own), ``tgi``, ``json``
            (TensorRT-LLM's), or ``json_object`` (llama.cpp's, which its Python server alone takes).
        schema_in_prompt: tell the model the output schema too, where the server only masks tokens by it.
        strict_schemas: adapt schemas to OpenAI's strict mode (see :mod:`._openai_strict`); else they are sent as
            they are.
        strict_tools: value of ``strict`` for tools that leave it open; None to leave it out.
        auto_tool_choice: send ``tool_choice: auto`` with tools, where the server's default is ``none``.
        prefill_body: fields that make the server continue an assistant message that ends the prompt; None where it
            can't, empty where it needs none.
        finish_reasons: finish reasons of this server alone.
        prompt_cache: how its prompt cache is told what to keep: ``openai`` (a key, and breakpoints for models that have
            them), ``key`` (``prompt_cache_key`` alone, as Mistral has it), ``automatic``, or ``none`` (nothing known).
    """

    kind: str
    base_url: str | None = None
    base_url_env: str | None = None
    key_env: tuple[str, ...] = ()
    key_needed: bool = False
    key_header: Literal["authorization", "api-key"] = "authorization"
    deployments: bool = False
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_tokens"
    unsupported: frozenset[str] = frozenset()
    embeddings: bool = True
    images: bool = True
    audio: bool = True
    files: bool = True
    file_urls: bool = False
    audio_urls: bool = False
    stream_options: Mapping[str, Any] | None = field(default_factory=lambda: {"include_usage": True})
    done_ends: bool = False
    system_role: Literal["system", "developer"] = "system"
    merge_system: bool = False
    refusal_field: bool = False
    break_special_tokens: bool = False
    reasoning_fields: tuple[str, ...] = ("reasoning_content", "reasoning")
    think_tags: bool = True
    echo_reasoning: Literal["never", "tool_calls", "always"] = "tool_calls"
    schema_style: Literal["response_format", "structured_outputs", "tgi", "json", "json_object"] = "response_format"
    schema_in_prompt: bool = False
    strict_schemas: bool = False
    strict_tools: bool | None = None
    auto_tool_choice: bool = False
    prefill_body: Mapping[str, Any] | None = None
    finish_reasons: Mapping[str, FinishReason] = field(default_factory=lambda: _NOTHING)
    prompt_cache: Literal["openai", "key", "automatic", "none"] = "none"

    @property
    def capabilities(self) -> Capabilities:
        """What a server of this kind can do; what its model can't, the server says itself."""
        return Capabilities(
            parameters=PARAMETERS - self.unsupported,
            embeddings=self.embeddings,
            images=self.images,
            audio=self.audio,
            files=self.files,
            prefill=self.prefill_body is not None,
        )


OPENAI = Profile(
    kind="openai",
    base_url="https://api.openai.com/v1",
    base_url_env="OPENAI_BASE_URL",
    key_env=("OPENAI_API_KEY",),
    key_needed=True,
    max_tokens_field="max_completion_tokens",  # reasoning models refuse max_tokens
    unsupported=frozenset({"top_k"}),
    refusal_field=True,
    think_tags=False,
    echo_reasoning="never",
    strict_schemas=True,
    prompt_cache="openai",
)
"""OpenAI itself."""

PROFILES: Mapping[str, Profile] = {
    "generic": Profile(kind="openai-compatible"),
    "vllm": Profile(
        kind="vllm-server",
        base_url="http://127.0.0.1:8000/v1",
        key_env=("VLLM_API_KEY",),
        audio_urls=True,
        files=False,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        merge_system=True,
        reasoning_fields=("reasoning", "reasoning_content"),
        schema_in_prompt=True,
        strict_tools=True,
        prefill_body={"continue_final_message": True, "add_generation_prompt": False},
        prompt_cache="automatic",
    ),
    "tgi": Profile(
        kind="tgi",
        base_url="http://127.0.0.1:3000/v1",
        key_env=("TGI_API_KEY",),
        unsupported=frozenset({"top_k", "parallel_tool_calls", "reasoning_effort"}),
        embeddings=False,
        audio=False,
        files=False,
        merge_system=True,
        echo_reasoning="never",
        schema_style="tgi",
        schema_in_prompt=True,
    ),
    "trtllm": Profile(
        kind="trtllm",
        base_url="http://127.0.0.1:8000/v1",
        key_env=("TRTLLM_API_KEY",),
        unsupported=frozenset({"parallel_tool_calls"}),  # taken, but not enforced
        files=False,
        merge_system=True,
        schema_style="json",
        schema_in_prompt=True,
        auto_tool_choice=True,
    ),
    "ollama": Profile(
        kind="ollama",
        base_url="http://127.0.0.1:11434/v1",
        key_env=("OLLAMA_API_KEY",),
        unsupported=frozenset({"top_k", "tool_choice", "parallel_tool_calls"}),
        audio=False,
        files=False,
        done_ends=True,
        reasoning_fields=("reasoning", "reasoning_content"),
        schema_in_prompt=True,
    ),
    "llamacpp": Profile(
        kind="llamacpp",
        base_url="http://127.0.0.1:8080/v1",
        key_env=("LLAMA_API_KEY",),
        unsupported=frozenset({"reasoning_effort"}),
        files=False,
        merge_system=True,
        schema_style="json_object",
        schema_in_prompt=True,
        prompt_cache="automatic",
        prefill_body={},
    ),
    "openrouter": Profile(
        kind="openrouter",
        base_url="https://openrouter.ai/api/v1",
        key_env=("OPENROUTER_API_KEY",),
        key_needed=True,
        file_urls=True,
        reasoning_fields=("reasoning", "reasoning_content"),
        think_tags=False,
        echo_reasoning="always",
        strict_schemas=True,
    ),
    "azure": Profile(
        kind="azure",
        base_url_env="AZURE_OPENAI_ENDPOINT",
        key_env=("AZURE_OPENAI_API_KEY",),
        key_needed=True,
        key_header="api-key",
        deployments=True,
        max_tokens_field="max_completion_tokens",
        unsupported=frozenset({"top_k"}),
        refusal_field=True,
        think_tags=False,
        echo_reasoning="never",
        strict_schemas=True,
    ),
}
"""The known kinds of server, by the name that ``OpenAICompatible(profile=…)`` takes."""
