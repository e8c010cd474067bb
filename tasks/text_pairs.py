"""The shadow's pairs where answers are words: how alike they are, and the page of the most different ones.

Two language models hardly ever say the same byte for byte, so agreement is a similarity above the
policy's, and a trusted judge may overrule a difference of words that makes no difference.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from configs.generation import Generation
from configs.text_shadow import TextShadow
from evals.compare import Agreement
from evals.texts import closeness, cosine, least_cosine, normalised
from evals.verdict import Outcome
from serving.completions import read_completion, read_embeddings, read_prompt
from serving.records import Stage
from serving.replay import Pair
from tasks.differences import Difference, may_show, shown, write_page
from tasks.judging import JudgeClient, Question
from tasks.model_api import ModelApi
from tasks.release import Release


class TextPairs:
    """Compares pairs of answers and keeps the most different ones."""

    def __init__(self, release: Release, policy: TextShadow) -> None:
        self._release = release
        self._policy = policy
        self._show = may_show(policy, release.bench.policy.capture)
        self._judge = _trusted_judge(release) if policy.judge_apart else None
        self._kept: list[Difference] = []
        self.judged_no_worse = 0

    def compare(self, pairs: Sequence[Pair]) -> list[Agreement | None]:
        """One agreement a pair, None where nobody can compare them; both sides of every pair have answered.

        Raises ModelApiError, with nothing kept of these pairs, where judge or embeddings do not answer.
        """
        if not pairs:
            return []
        ours, theirs = _texts(pairs, candidate=True), _texts(pairs, candidate=False)
        similarities = self._similarities(ours, theirs)
        found = [
            _of_words(value, self._policy) if value is not None else _without_words(pair, self._policy)
            for pair, value in zip(pairs, similarities, strict=True)
        ]
        self._overrule(pairs, ours, theirs, found)
        return found

    def page(self, forgotten: Collection[str] = ()) -> str | None:
        """The page that shows the most different answers side by side; None where none was apart.

        Without the requests of users who were `forgotten` meanwhile.
        """
        kept = [one for one in self._kept if one.request_id not in forgotten]
        return write_page(self._release.row, self._policy, self._show, kept) if kept else None

    def _similarities(self, ours: list[str | None], theirs: list[str | None]) -> list[float | None]:
        """How alike the answers of each pair are; None where not both are in words."""
        worded = [
            (one, other)
            for one, other in zip(ours, theirs, strict=True)
            if one is not None and other is not None
        ]
        values = iter(self._measured(worded) if worded else ())
        return [
            None if one is None or other is None else float(next(values))
            for one, other in zip(ours, theirs, strict=True)
        ]

    def _measured(self, plain: list[tuple[str, str]]) -> NDArray[np.float64]:
        if self._policy.compare == "normalised":
            return np.array([float(normalised(one) == normalised(other)) for one, other in plain])
        if self._policy.embeddings is None or self._policy.compare == "words":
            return np.array([closeness(one, other) for one, other in plain])
        with ModelApi(self._policy.embeddings) as api:
            vectors = api.embed([one for one, _ in plain] + [other for _, other in plain])
        return cosine(vectors[: len(plain)], vectors[len(plain) :])

    def _overrule(
        self,
        pairs: Sequence[Pair],
        ours: list[str | None],
        theirs: list[str | None],
        found: list[Agreement | None],
    ) -> None:
        """Ask the judge about some that are apart, and remember those apart for the page."""
        apart = {index: one.largest for index, one in enumerate(found) if one is not None and not one.agree}
        prompts = {index: read_prompt(pairs[index].exchange.request) or "" for index in apart}
        preferences = {
            index: self._judge.compare(Question(prompts[index]), one, other)
            for index in list(apart)[: self._policy.judge_apart]
            if self._judge is not None
            and (one := ours[index]) is not None
            and (other := theirs[index]) is not None
        }
        for index, distance in apart.items():
            judged = ""
            if (preference := preferences.get(index)) is not None:
                no_worse = preference.score >= 0.5 and not preference.follows_order
                judged = "no worse" if no_worse else "worse, or undecided"
                if no_worse:
                    self.judged_no_worse += 1
                    found[index] = Agreement(True, largest=distance)
            answers = ours[index], theirs[index]
            self._keep(pairs[index].request_id, distance, prompts[index], answers, judged)

    def _keep(
        self, request_id: str, distance: float, prompt: str, texts: tuple[str | None, str | None], judged: str
    ) -> None:
        if len(self._kept) >= self._policy.examples and (
            not self._kept or distance <= self._kept[0].distance
        ):
            return
        asked, ours, theirs = (shown(text, self._show) for text in (prompt, *texts))
        heapq.heappush(self._kept, Difference(distance, request_id, asked, ours, theirs, judged))
        if len(self._kept) > self._policy.examples:
            heapq.heappop(self._kept)


def _texts(pairs: Sequence[Pair], *, candidate: bool) -> list[str | None]:
    bodies = [pair.candidate.body if candidate else pair.champion_body for pair in pairs]
    found = [read_completion(body) for body in bodies]
    return [None if one is None else one.text for one in found]


def _without_words(pair: Pair, policy: TextShadow) -> Agreement | None:
    """Of vectors, and of refusals; None for answers that nobody can read, which are no evidence."""
    kinds = {_kind(body) for body in (pair.candidate.body, pair.champion_body)}
    if len(kinds) > 1:
        return Agreement(False, f"one version answered in {' and one in '.join(sorted(kinds))}", 1.0)
    ours, theirs = read_embeddings(pair.candidate.body), read_embeddings(pair.champion_body)
    if ours is not None and theirs is not None:
        likeness = least_cosine(ours, theirs)
        if likeness is None:
            return Agreement(False, "vectors of other numbers or sizes", 1.0)
        return _alike(likeness, policy.min_cosine)
    if pair.champion_status < 400:
        return None
    refused_too = pair.candidate.status >= 400
    return Agreement(refused_too, "" if refused_too else "only the champion refused", float(not refused_too))


def _kind(body: bytes) -> str:
    if read_completion(body) is not None:
        return "words"
    return "vectors" if read_embeddings(body) is not None else "neither words nor vectors"


def _of_words(similarity: float, policy: TextShadow) -> Agreement:
    needed = 1.0 if policy.compare == "normalised" else policy.min_similarity
    return _alike(similarity, needed)


def _alike(similarity: float, needed: float) -> Agreement:
    """`largest` is the distance, 1 - similarity."""
    if similarity >= needed - 1e-9:
        return Agreement(True, largest=1 - similarity)
    return Agreement(False, f"similarity {similarity:.2f}, {needed:g} is wanted", 1 - similarity)


def _trusted_judge(release: Release) -> JudgeClient | None:
    """The evaluation's judge, if this release's evaluation showed that it agrees with people."""
    policy = release.bench.policy.evaluation
    findings = release.row.verdicts.get(Stage.EVALUATE.value, {}).get("findings", ())
    shown = any(
        one["metric"] == "judge agreement" and one["outcome"] == Outcome.PASS.value for one in findings
    )
    if not isinstance(policy, Generation) or policy.judge is None or not shown:
        return None
    return JudgeClient(policy.judge, ModelApi(policy.judge.api))
