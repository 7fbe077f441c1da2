"""Whose tokenizer a model has, by its name."""

import pytest

from llmprod.mechanisms.token_families import encoding_of, family_of, tokenizer_of


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("openai:gpt-5", "openai"),
        ("openai:o3", "openai"),
        ("azure:my-deployment", "openai"),
        ("openrouter:openai/gpt-4o", "openai"),
        ("openai:text-embedding-3-small", "openai"),
        ("anthropic:claude-opus-4-8", "anthropic"),
        ("bedrock:anthropic.claude-3-haiku", "anthropic"),
        ("google:gemini-2.5-pro", "google"),
        ("vllm:google/gemma-3-4b-it", "google"),
        ("mistral:mistral-large", "mistral"),
        ("groq:llama-3.3-70b-versatile", "llama"),
        ("vllm:meta-llama/Llama-3.1-8B", "llama"),
        ("vllm:Qwen/Qwen3-8B", "qwen"),
        ("deepseek:deepseek-chat", "deepseek"),
        ("vllm:deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen"),
        ("simulated:instant", "other"),
        ("vllm:microsoft/phi-3", "other"),
        ("", "other"),
    ],
)
def test_the_family_is_read_from_the_name(model, family):
    assert family_of(model) == family


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("openai:gpt-5.4-mini", "o200k_base"),
        ("openai:gpt-6", "o200k_base"),
        ("openai:o4-mini", "o200k_base"),
        ("openai:gpt-4.1", "o200k_base"),
        ("openai:gpt-4o-2024-08-06", "o200k_base"),
        ("vllm:openai/gpt-oss-20b", "o200k_base"),
        ("openai:gpt-4", "cl100k_base"),
        ("openai:gpt-4-turbo", "cl100k_base"),
        ("openai:gpt-3.5-turbo", "cl100k_base"),
        ("azure:gpt-35-turbo", "cl100k_base"),
        ("openai:text-embedding-3-large", "cl100k_base"),
        ("anthropic:claude-opus-4-8", None),
        ("simulated:instant", None),
    ],
)
def test_openai_s_models_have_a_table(model, encoding):
    assert encoding_of(model) == encoding
    assert tokenizer_of(model) == {"o200k_base": "o200k", "cl100k_base": "cl100k", None: family_of(model)}[encoding]
