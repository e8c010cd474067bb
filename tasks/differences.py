"""The page of the shadow's most different answers: written, and cleared of users who were forgotten.

It is a durable record of what users said, so it shows no more than the policy lets a capture keep.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.policy import Capture
from configs.text_shadow import TextShadow
from serving.guards.personal import redact_personal
from serving.records import ReleaseRow

_SHOWN_CHARS = 2000
_ENTRY = re.compile(r'<article>\n<div class="soft">[^<]* request ([^<]*)</div>.*?</article>\n?', re.DOTALL)
"""A request on the page, with its id. Texts are escaped, so none can hold such marks."""

Show = Literal["redacted", "full", "nothing"]


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """A pair of answers for people: judged worse first, then by distance. Texts are as they may be shown."""

    worse: bool
    distance: float
    request_id: str
    prompt: str
    candidate: str
    champion: str
    judged: str


def may_show(policy: TextShadow, capture: Capture) -> Show:
    """What the page may show of texts."""
    if not capture.keeps_words:
        return "nothing"
    return "redacted" if policy.show == "full" and capture.personal else policy.show


def shown(text: str | None, show: Show) -> str:
    """A text as the page shows it."""
    if text is None:
        return "(no answer in words)"
    if show == "nothing":
        return f"({len(text)} characters, not shown, by the policy)"
    return (redact_personal(text) if show == "redacted" else text)[:_SHOWN_CHARS]


def write_page(release: ReleaseRow, policy: TextShadow, show: Show, differences: Sequence[Difference]) -> str:
    """The page, most different first."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("differences.html.j2").render(
        release=release, differences=sorted(differences, reverse=True), policy=policy, show=show
    )


def without_requests(page: str, request_ids: Collection[str]) -> str | None:
    """A page without these requests: None where it shows none of them, "" where it shows nothing else."""
    left = _ENTRY.sub(lambda entry: "" if entry[1] in request_ids else entry[0], page)
    if left == page:
        return None
    return left if _ENTRY.search(left) else ""
