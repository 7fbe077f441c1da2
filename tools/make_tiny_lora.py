"""Write a random LoRA adapter for a local Llama, in the format of the peft package, which need not be installed.

usage: make_tiny_lora.py MODEL FOLDER [--rank 8] [--seed 1]

The same seed gives the same adapter. It is strong enough to change what the tiny random model says.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

TARGETS = ("q_proj", "v_proj")


def weights(config: dict, rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Return random A and B of every adapted projection."""
    torch.manual_seed(seed)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    sizes = {"q_proj": heads * head, "v_proj": config["num_key_value_heads"] * head}
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name in TARGETS:
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, hidden).to(torch.bfloat16)
            tensors[f"{key}.lora_B.weight"] = torch.randn(sizes[name], rank).to(torch.bfloat16)
    return tensors


def main() -> None:
    """Write the adapter to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Write a random LoRA adapter for a local Llama.")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    config = json.loads((options.model / "config.json").read_text())
    options.folder.mkdir(parents=True, exist_ok=True)
    adapter = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(options.model), "bias": "none",
        "r": options.rank, "lora_alpha": 2 * options.rank, "lora_dropout": 0.0, "target_modules": list(TARGETS),
    }  # fmt: skip
    (options.folder / "adapter_config.json").write_text(json.dumps(adapter))
    save_file(weights(config, options.rank, options.seed), options.folder / "adapter_model.safetensors")


if __name__ == "__main__":
    main()
