"""What a slot answers with: a model's version, or a pair of model and prompt such as `3+p2`.

Journal, maps, records and pages know a version as one text, so a pair is one text too; only what
speaks to the registry takes it apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PAIR = re.compile(r"(?P<model>[1-9][0-9]{0,8})?(?:(?:(?<=[0-9])\+|^)p(?P<prompt>[1-9][0-9]{0,8}))?")


@dataclass(frozen=True, slots=True)
class Pair:
    """A model's version and, where the endpoint has prompts, a prompt's; "" for what is not said."""

    model: str
    prompt: str = ""

    @classmethod
    def read(cls, text: str) -> Pair:
        """`3`, `3+p2`, or `p2`. Raises ValueError for anything else."""
        found = _PAIR.fullmatch(text)
        if found is None or not text:
            raise ValueError(f"{text!r} is no version: write 3, 3+p2 (model and prompt) or p2 (prompt)")
        return cls(found["model"] or "", found["prompt"] or "")

    @classmethod
    def of(cls, version: str) -> Pair:
        """Of a version in the journal, where "" stands for none."""
        return cls.read(version) if version else cls("")

    def __str__(self) -> str:
        """The one text."""
        prompt = f"p{self.prompt}" if self.prompt else ""
        return f"{self.model}+{prompt}" if self.model and prompt else self.model or prompt


def model_uri(model: str, version: str) -> str:
    """`models:/name/version` of a version's model."""
    return f"models:/{model}/{Pair.of(version).model}"
