"""Makes a tiny Llama with random weights: `PYTHON-OF-VLLM weights.py FOLDER SEED [LAYERS]`.

Runs inside vLLM's environment, which has torch and transformers; nothing of ours is imported. Two
seeds give two versions whose greedy answers differ; more layers give a slower one. Everything about
it is as a real model's (config, safetensors, tokenizer with a chat template) but its sense.
"""

from __future__ import annotations

import sys
from pathlib import Path

_BEGIN, _END = "<s>", "</s>"
_WORDS = (
    "Your parcel is on its way and should arrive within two days.",
    "Please send us the number of your order and we will look into it.",
    "I am sorry that it broke. You can return it within thirty days.",
    "Hello, how can I help you today? Thank you for your patience.",
    "user: assistant: system: 0123456789 ?!.,:;-()[]{}\"'",
)
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def main(folder: Path, seed: int, layers: int) -> None:
    """Write the model's folder."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(_WORDS * 20, vocab_size=512, special_tokens=[_BEGIN, _END])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token=_BEGIN, eos_token=_END, pad_token=_END
    )
    tokenizer.chat_template = _TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2)
