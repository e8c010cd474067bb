"""Personal data taken out of whole documents, for what is recorded. Ours alone: it needs Presidio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.guards.personal import find_personal
from serving.guards.pieces import Joined, pieces_of


def without_personal(document: Any, kinds: Sequence[str]) -> Any:
    """The document, changed in place, with `<kind>` for each find in its texts and keys.

    Texts only: a number that is a column of its own stays, and is for `capture.drop` or `hash`.
    """
    holder = [document]
    joined = Joined(pieces_of(holder))
    joined.redact(find_personal(joined.text, kinds))
    return holder[0]
