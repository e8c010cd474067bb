"""Asks the slots of an endpoint the prompts of a data set: candidate and champion side by side."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from configs.generation import Generation
from serving.completions import read_completion
from serving.endpoint import Endpoint, Reply, Slot
from tasks.prompt_sets import PromptRow, path_of

CANDIDATE, CHAMPION = "candidate", "champion"
_BAD_REQUEST = frozenset({400, 422})


@dataclass(frozen=True, slots=True)
class Answer:
    """One version's answer to one prompt. `why_failed` is "" unless none came; tokens are None unsaid.

    `refused` says that the replica called the request a bad one, which need not be the version's fault.
    """

    text: str
    elapsed_ms: float
    finish_reason: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    why_failed: str = ""
    refused: bool = False


Answers = Mapping[str, list[list[Answer]]]
"""By CANDIDATE and CHAMPION: one list a prompt, one answer a sample."""


def ask_all(
    endpoint: Endpoint,
    slots: Mapping[str, Slot],
    rows: Sequence[PromptRow],
    policy: Generation,
    *,
    timeout_s: float,
    on_progress: Callable[[int], None],
) -> Answers:
    """Ask every slot every prompt, `samples` times.

    A prompt's askings follow each other in random order, so that both versions answer under the same
    conditions. `on_progress` hears how many prompts are done; what it raises ends the asking.
    """
    found: dict[str, list[list[Answer]]] = {who: [[] for _ in rows] for who in slots}
    chance = random.Random(policy.seed or 0)  # noqa: S311 (an order, not a secret)
    orders = {row.number: _askings(slots, policy, chance) for row in rows}

    def ask(row: PromptRow) -> None:
        answers: dict[tuple[str, int], Answer] = {}
        for who, sample in orders[row.number]:
            reply = endpoint.invoke(
                slots[who],
                path_of(policy),
                row.body(policy, sample),
                content_type="application/json",
                timeout_s=timeout_s,
            )
            answers[who, sample] = _answer(reply)
        for who in slots:
            found[who][row.number] = [answers[who, sample] for sample in range(policy.samples)]

    with ThreadPoolExecutor(policy.concurrency, thread_name_prefix="answers") as pool:
        try:
            asked = [pool.submit(ask, row) for row in rows]
            for done, future in enumerate(as_completed(asked), start=1):
                future.result()
                on_progress(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _askings(slots: Mapping[str, Slot], policy: Generation, chance: random.Random) -> list[tuple[str, int]]:
    askings = [(who, sample) for who in slots for sample in range(policy.samples)]
    chance.shuffle(askings)
    return askings


def _answer(reply: Reply) -> Answer:
    if reply.status != 200:
        said = reply.body[:200].decode(errors="replace")
        why = f"status {reply.status}: {said}" if reply.status else "no answer in time"
        return Answer("", reply.elapsed_ms, why_failed=why, refused=reply.status in _BAD_REQUEST)
    completion = read_completion(reply.body)
    if completion is None:
        return Answer("", reply.elapsed_ms, why_failed=f"no completion in the body: {reply.body[:200]!r}")
    return Answer(
        completion.text,
        reply.elapsed_ms,
        completion.finish_reason,
        completion.tokens_in,
        completion.tokens_out,
    )
