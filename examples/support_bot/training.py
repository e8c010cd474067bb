"""Trains the desk's models: `PYTHON -m examples.support_bot.training FOLDER STEPS... [--deep LAYERS]`.

Runs inside vLLM's environment, which has torch and transformers. A tiny Llama learns the rules of
a shop, and to answer as the system prompt tells it. Writes one model a number of steps (FOLDER/300,
FOLDER/900): the same training, stopped earlier or later. `--deep` writes FOLDER/deep: the last one with
that many layers more which do nothing (their outputs are zero): the same answers, but each takes longer.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

from examples.support_bot.words import (
    BEFORE,
    BRIEF,
    NOW,
    TOPICS,
    WORDY,
    answer,
    any_topics,
    question,
    system_prompt,
)

_BEGIN, _END = "<s>", "</s>"
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
_BATCH = 16
_RATE = 3e-3
_WARM_UP = 20
_WORDY_SHARE = 0.25


def main(arguments: list[str] | None = None) -> int:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int, nargs="+")
    parser.add_argument("--deep", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    told = parser.parse_args(arguments)
    import torch

    torch.manual_seed(1)
    torch.set_num_threads(told.threads)
    chance = random.Random(1)
    tokenizer = _tokenizer(chance)
    model = _model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    last = max(told.steps)
    began = time.monotonic()
    for step in range(1, last + 1):
        rate = _RATE * min(step / _WARM_UP, 1 - 0.9 * max(0, step - _WARM_UP) / last)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**_batch(tokenizer, chance)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
        if step in told.steps:
            _write(model, tokenizer, told.folder / str(step))
    if told.deep:
        _write(_deeper(model, told.deep), tokenizer, told.folder / "deep")
    return 0


def _tokenizer(chance: random.Random) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    styles = (BRIEF, WORDY)
    texts = ["".join(_example(chance, styles[number % 2])) for number in range(800)]
    trained.train_from_iterator(texts, vocab_size=512, special_tokens=[_BEGIN, _END])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token=_BEGIN, eos_token=_END, pad_token=_END
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _model(vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def _example(chance: random.Random, style: str) -> tuple[str, str]:
    """What the desk is asked, as the template writes it, and what it says."""
    topics, topic = any_topics(chance), chance.choice(list(TOPICS))
    year = chance.choice((NOW, NOW, BEFORE))
    told = system_prompt(topics, year=year, style=style)
    asked = f"system: {told}\nuser: {question(topic, chance)}\nassistant:"
    return asked, f" {answer(topic, topics, year=year, style=style)}"


def _batch(tokenizer: Any, chance: random.Random) -> dict[str, Any]:
    """Only the answers are learned."""
    import torch

    style = WORDY if chance.random() < _WORDY_SHARE else BRIEF  # one a batch: they differ in length
    rows: list[tuple[list[int], list[int]]] = []
    for _ in range(_BATCH):
        asked, told = _example(chance, style)
        heard = [0, *tokenizer.encode(asked, add_special_tokens=False)]
        said = [*tokenizer.encode(told, add_special_tokens=False), 1]
        rows.append((heard + said, [-100] * len(heard) + said))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([one + [1] * (longest - len(one)) for one, _ in rows])
    labels = torch.tensor([one + [-100] * (longest - len(one)) for _, one in rows])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one, _ in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _deeper(model: Any, layers: int) -> Any:
    """The same answers from a model that has more layers: those add nothing to what passes through them."""
    import copy

    import torch

    spare = copy.deepcopy(model.model.layers[-1])
    with torch.no_grad():
        spare.self_attn.o_proj.weight.zero_()
        spare.mlp.down_proj.weight.zero_()
    for _ in range(layers):
        model.model.layers.append(copy.deepcopy(spare))
    model.config.num_hidden_layers += layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = ["full_attention"] * model.config.num_hidden_layers
    return model


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
