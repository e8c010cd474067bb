"""Whether, when and by how many people a release must be approved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.section import Section


class Approval(Section):
    """The human gate. No answer in time is a no; nothing ever answers in a person's place."""

    required: bool = Field(default=False, description="Whether a person must say yes.")
    before: Literal["shadow", "canary"] = Field(
        default="canary",
        description="What waits for it: `canary` (live traffic, after the shadow has shown its evidence) or "
        "`shadow` (even copies of live requests).",
    )
    approvers_min: Literal[1, 2] = Field(
        default=1,
        description="Different people who must say yes. Whoever registered the version counts only beside "
        "another.",
    )
    timeout_s: float = Field(
        default=86_400, ge=1, description="No answer this long after the question is a rejection."
    )
