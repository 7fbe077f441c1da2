"""Write the configuration of a model of real size, and a small tokenizer, for `load_format="dummy"`: no weights.

usage: make_dummy_model.py FOLDER [--size 8b]

The layers are those of Llama 3.1 8B (or 1B); the vocabulary is the small tokenizer's, so that every token that a random
model says can be shown. Needs transformers and tokenizers.
"""

import argparse
import sys
from pathlib import Path

from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_tiny_model import make_tokenizer

SIZES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def main() -> None:
    """Write the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Write the configuration of a model of real size, without weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(SIZES), default="8b")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(options.folder)
    size = SIZES[options.size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=min(8, size["num_attention_heads"]),
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        **size,
    )
    config.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
