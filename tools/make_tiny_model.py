"""Write a tiny random Llama for vLLM: 3 M parameters, a byte-level BPE tokenizer trained on the spot, a chat template.

usage: make_tiny_model.py FOLDER [--vision]

It takes a few seconds and needs torch, transformers and tokenizers, which every vLLM environment has. The answers are
noise, the same noise each time: weights and tokenizer come from a fixed seed and from Python's own standard library.
The chat template shows tools, tool calls and tool results in the Hermes form, so a server started with
`--enable-auto-tool-choice --tool-call-parser hermes` takes part in whole tool conversations; what the model would not
say by itself is scripted by structured outputs (a JSON schema, a strict tool, or a `choice` of one).

With `--vision` the same Llama sees: it is the language part of an Idefics3 whose vision tower is two random layers. An
image is scaled to 112 pixels on its longer side and cut into tiles of 56 x 56; each tile, and the whole once more, is 4
tokens between marks. Idefics3, because vLLM and transformers serve it without torchvision, which the CPU environments
leave out; LLaVA, Pixtral and Qwen2-VL need that. Tiles, because vLLM 0.27 dies of an Idefics3 image that has none.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
# Tokens of their own, as reasoning parsers want them, but no special ones: a grammar can make the model say them.
THINKING = ["<think>", "</think>"]
# Idefics3's: `<image>` stands in the prompt for four patches of a tile, the others around and between the tiles.
IMAGE_TOKENS = ["<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]
IMAGE_TOKENS += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
LONGER_SIDE, TILE, PATCH, SCALE = 112, 56, 14, 2  # pixels, the last: patches that are one token, on each side

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


def llama(vocab_size: int) -> LlamaConfig:
    """Return the language model's sizes, for a tokenizer of that size."""
    return LlamaConfig(
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


def make_model(vocab_size: int) -> PreTrainedModel:
    """Build the random model that goes with a tokenizer of that size."""
    torch.manual_seed(0)
    return LlamaForCausalLM(llama(vocab_size)).to(torch.bfloat16)


def make_vision_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Build the random model that sees, for a tokenizer that has the image tokens."""
    torch.manual_seed(0)
    config = Idefics3Config(
        text_config=llama(len(tokenizer)),
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": PATCH,
        },
        scale_factor=SCALE,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Idefics3ForConditionalGeneration(config).to(torch.bfloat16)


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """Build what makes pixels of an image and tokens of its place; it is saved with its tokenizer."""
    images = Idefics3ImageProcessor(size={"longest_edge": LONGER_SIDE}, max_image_size={"longest_edge": TILE})
    length = (TILE // PATCH // SCALE) ** 2
    return Idefics3Processor(images, tokenizer, image_seq_len=length, chat_template=CHAT_TEMPLATE)


def main() -> None:
    """Write tokenizer and model to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Write a tiny random Llama with a tokenizer and a chat template.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vision", action="store_true", help="an Idefics3 with that Llama, which takes images")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    if options.vision:
        tokenizer.add_special_tokens({"additional_special_tokens": IMAGE_TOKENS})
        make_processor(tokenizer).save_pretrained(folder)
        make_vision_model(tokenizer).save_pretrained(folder)
    else:
        tokenizer.save_pretrained(folder)
        make_model(len(tokenizer)).save_pretrained(folder)


if __name__ == "__main__":
    main()
