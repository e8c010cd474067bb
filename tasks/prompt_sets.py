"""Data sets of prompts: read, checked, and written as the requests that a client would send."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.generation import Generation
from evals.generation import digest_of
from serving.completions import CHAT_PATH, COMPLETIONS_PATH, PROMPT_VARIABLES
from serving.errors import SetupError
from serving.table_download import shown
from serving.table_scan import scan_table
from tasks.bench import Bench

if TYPE_CHECKING:
    import pandas as pd

_ROWS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt of the data set: as a text for people, as asked, and everything else of its row."""

    number: int
    text: str
    asked: str | list[dict[str, Any]]
    reference: str
    fields: Mapping[str, Any]

    def body(self, policy: Generation, sample: int) -> bytes:
        """The request: no model's name, since the endpoint has one."""
        document: dict[str, Any] = {**policy.request_fields(sample)}
        if variables := _variables(self.fields.get(PROMPT_VARIABLES)):
            document[PROMPT_VARIABLES] = variables
        if policy.api == "completions":
            document["prompt"] = self.text
        else:
            is_list = isinstance(self.asked, list)
            document["messages"] = self.asked if is_list else [{"role": "user", "content": self.text}]
        return json.dumps(document).encode()


def _variables(cell: Any) -> Any:
    """A row's values for the variables of the endpoint's prompt: an object, or one written in JSON."""
    value = plain(cell)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


def path_of(policy: Generation) -> str:
    """Where the prompts are asked."""
    return CHAT_PATH if policy.api == "chat" else COMPLETIONS_PATH


def read_prompts(bench: Bench, policy: Generation) -> tuple[list[PromptRow], str]:
    """The prompts, sampled down to `max_prompts` (always the same ones), and their digest.

    Raises SetupError for a file that cannot be read or lacks its columns.
    """
    frame = read_table(bench, policy.data, "evaluation.data", (policy.prompt,))
    if len(frame) > policy.max_prompts:
        frame = frame.sample(policy.max_prompts, random_state=0)
    rows = [_row(number, fields, policy) for number, fields in enumerate(frame.to_dict("records"))]
    return rows, digest_of([row.text for row in rows])


def read_table(bench: Bench, location: str, key: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """A table of a policy, read by `serving.table_scan`; relative paths are from the policy's folder.

    Raises SetupError for what cannot be read, or lacks a column.
    """
    try:
        frame = scan_table(resolve(bench, location), rows=_ROWS_MAX).frame
    except SetupError as error:
        raise SetupError(f"{bench.name}: {key}: {error}") from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise SetupError(
            f"{bench.name}: {key} {shown(location)} has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, frame.columns[:20]))}. Next: correct the policy or the file"
        )
    return frame


def resolve(bench: Bench, location: str) -> str:
    """A path of the policy as an absolute one; URLs stay."""
    if "://" in location:
        return location
    path = Path(location).expanduser()
    return str(path if path.is_absolute() else bench.settings.policy_path(bench.name).parent / path)


def _row(number: int, fields: dict[str, Any], policy: Generation) -> PromptRow:
    asked = plain(fields[policy.prompt])
    if isinstance(asked, str) and asked.lstrip().startswith("[{"):
        with contextlib.suppress(ValueError):
            asked = json.loads(asked)  # messages in a CSV
    messages = asked if isinstance(asked, list) else None
    text = "\n".join(str(one.get("content", "")) for one in messages) if messages else str(asked)
    reference = plain(fields.get(policy.reference))
    return PromptRow(number, text, messages or text, "" if reference is None else str(reference), fields)


def plain(value: Any) -> Any:
    """A cell as plain Python: arrays of parquet as lists, missing values as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and math.isnan(value):
        return None
    return [plain(one) for one in value] if isinstance(value, list) else value
