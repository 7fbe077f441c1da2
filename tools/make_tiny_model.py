"""Write a tiny random Llama for vLLM: 3 M parameters, a byte-level BPE tokenizer trained on the spot, a chat template.

usage: make_tiny_model.py FOLDER

It takes a few seconds and needs torch, transformers and tokenizers, which every vLLM environment has. The answers are
noise, the same noise each time: weights and tokenizer come from a fixed seed and from Python's own standard library.
The chat template shows tools, tool calls and tool results in the Hermes form, so a server started with
`--enable-auto-tool-choice --tool-call-parser hermes` takes part in whole tool conversations; what the model would not
say by itself is scripted by structured outputs (a JSON schema, a strict tool, or a `choice` of one).
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
# Tokens of their own, as reasoning parsers want them, but no special ones: a grammar can make the model say them.
THINKING = ["<think>", "</think>"]

# `message.content` is used as one string, which tells vLLM to flatten lists of text parts before it renders.
CHAT_TEMPLATE = """\
{%- if tools %}<|system|><tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif -%}
{%- for message in messages -%}
<|{{ message.role }}|>
{%- if message.content %}{{ message.content }}{% endif -%}
{%- for call in message.tool_calls or [] -%}
<tool_call>{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}</tool_call>
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think></think>
{%- endif %}{% endif -%}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of 1,000 tokens on a part of the standard library."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = sorted(str(path) for path in Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train(text, trainers.BpeTrainer(vocab_size=1000, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|eos|>"
    )
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in THINKING])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """Build the random model that goes with a tokenizer of that size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main() -> None:
    """Write tokenizer and model to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Write a tiny random Llama with a tokenizer and a chat template.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_model(len(tokenizer)).save_pretrained(folder)


if __name__ == "__main__":
    main()
