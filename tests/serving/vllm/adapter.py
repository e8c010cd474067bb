"""A random LoRA adapter for the tests' tiny Llama; run by vLLM's Python: `adapter.py WEIGHTS FOLDER`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8


def main(weights: Path, folder: Path) -> None:
    """Big enough a change that greedy answers differ."""
    config = json.loads((weights / "config.json").read_text())
    hidden = config["hidden_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    sizes = {"q_proj": head * config["num_attention_heads"], "v_proj": head * config["num_key_value_heads"]}
    torch.manual_seed(3)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, size in sizes.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, hidden)
            tensors[f"{place}.lora_B.weight"] = torch.randn(size, RANK)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 16,
        "target_modules": sorted(sizes),
        "bias": "none",
        "base_model_name_or_path": str(weights),
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
