"""The shadow's pairs where answers are words: how alike they are, and the page of the most different ones.

Two language models hardly ever say the same byte for byte, so agreement is a similarity above the
policy's, and a trusted judge may say what words cannot: that other ones mean the same, or like ones not.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from configs.generation import Generation
from configs.text_shadow import TextShadow
from evals.compare import Agreement
from evals.generation import JUDGE_AGREEMENT
from evals.texts import closeness, cosine, least_cosine, normalised
from evals.verdict import Outcome
from serving.completions import read_completion, read_embeddings, read_prompt
from serving.records import Stage
from serving.replay import Pair
from tasks.differences import Difference, Show, may_show, shown, write_page
from tasks.judging import JudgeClient, NoJudgement, Question
from tasks.model_api import ModelApi
from tasks.release import Release

_LOG = logging.getLogger("interlock.shadow")
_WORSE, _NO_WORSE = "worse", "no worse"
Texts = tuple[str | None, str | None]
"""What candidate and champion said; None where an answer is not in words."""


class TextPairs:
    """Compares pairs of answers and keeps the most different ones."""

    def __init__(self, release: Release, policy: TextShadow) -> None:
        self._release = release
        self._policy = policy
        self._show: Show = may_show(policy, release.bench.policy.capture)
        self._judge = _trusted_judge(release, policy) if policy.asks_a_judge else None
        self._samples = self._judge is not None and policy.judge_sample > 0
        self._kept: list[Difference] = []
        self.judged_no_worse = 0

    def compare(self, pairs: Sequence[Pair]) -> list[Agreement | None]:
        """One agreement a pair, None for those not compared; both sides of every pair have answered.

        Raises ModelApiError, with nothing kept of these pairs, where judge or embeddings do not answer.
        """
        if not pairs:
            return []
        texts = list(zip(_texts(pairs, candidate=True), _texts(pairs, candidate=False), strict=True))
        similarities = self._similarities(texts)
        found = [
            _of_words(value, self._policy) if value is not None else _without_words(pair, self._policy)
            for pair, value in zip(pairs, similarities, strict=True)
        ]
        judged = self._ask_judge(pairs, texts, found)
        for index, (by_words, pair) in enumerate(zip(found, pairs, strict=True)):
            found[index] = self._decide(pair, texts[index], by_words, judged.get(index, ""))
        return found

    def page(self, forgotten: Collection[str] = ()) -> str | None:
        """The page that shows the most different answers side by side; None where none was apart.

        Without the requests of users who were `forgotten` meanwhile.
        """
        kept = [one for one in self._kept if one.request_id not in forgotten]
        return write_page(self._release.row, self._policy, self._show, kept) if kept else None

    def _similarities(self, texts: Sequence[Texts]) -> list[float | None]:
        """How alike the answers of each pair are; None where not both are in words."""
        worded = [(ours, theirs) for ours, theirs in texts if ours is not None and theirs is not None]
        values = iter(self._measured(worded) if worded else ())
        return [None if None in pair else float(next(values)) for pair in texts]

    def _measured(self, plain: list[tuple[str, str]]) -> NDArray[np.float64]:
        if self._policy.compare == "normalised":
            return np.array([float(normalised(one) == normalised(other)) for one, other in plain])
        if self._policy.embeddings is None or self._policy.compare == "words":
            return np.array([closeness(one, other) for one, other in plain])
        with ModelApi(self._policy.embeddings) as api:
            vectors = api.embed([one for one, _ in plain] + [other for _, other in plain])
        return cosine(vectors[: len(plain)], vectors[len(plain) :])

    def _ask_judge(
        self, pairs: Sequence[Pair], texts: Sequence[Texts], found: Sequence[Agreement | None]
    ) -> dict[int, str]:
        """The judge's word by the place of the pair.

        On a sample it says whether only the champion's answer is right, on pairs apart which is better. ""
        where it answered no judgement: somebody's words must not be able to stop a shadow.
        """
        judge = self._judge
        if judge is None:
            return {}
        lots = {index: _lot(pair) for index, pair in enumerate(pairs) if None not in texts[index]}
        if self._samples:
            drawn = [index for index, lot in lots.items() if lot < self._policy.judge_sample]
        else:
            apart = [index for index in lots if not (one := found[index]) or not one.agree]
            drawn = sorted(apart, key=lots.__getitem__)[: self._policy.judge_apart]

        def ask(index: int) -> str:
            try:
                return judge_pair(index)
            except NoJudgement as error:
                _LOG.warning("%s: %s", self._release.row.id, error)
                return ""

        def judge_pair(index: int) -> str:
            asked = Question(read_prompt(pairs[index].exchange.request) or "")
            ours, theirs = (text or "" for text in texts[index])
            if ours == theirs:
                return _NO_WORSE
            if self._samples:
                is_worse = judge.score(asked, ours) < judge.score(asked, theirs)
                return _WORSE if is_worse else _NO_WORSE
            preference = judge.compare(asked, ours, theirs)
            is_no_worse = preference.score >= 0.5 and not preference.follows_order
            return _NO_WORSE if is_no_worse else "worse, or undecided"

        return dict(zip(drawn, judge.api.each(ask, drawn), strict=True))

    def _decide(self, pair: Pair, texts: Texts, by_words: Agreement | None, judged: str) -> Agreement | None:
        """What the judge or else the words say of a pair; what a person should see is kept for the page."""
        if by_words is None:
            return None
        decided = by_words
        if judged == _NO_WORSE and not by_words.agree:
            self.judged_no_worse += 1
            decided = Agreement(True, largest=by_words.largest)
        elif judged == _WORSE:
            decided = Agreement(False, "the judge finds only the champion's answer right", by_words.largest)
        if not by_words.agree or not decided.agree:
            self._keep(pair, decided, texts, judged)
        return None if self._samples and None not in texts and not judged else decided

    def _keep(self, pair: Pair, decided: Agreement, texts: Texts, judged: str) -> None:
        """Keep a pair for the page unless it is full of greater differences."""
        rank = judged == _WORSE, decided.largest
        is_full = len(self._kept) >= self._policy.examples
        if is_full and (not self._kept or rank <= (self._kept[0].worse, self._kept[0].distance)):
            return
        asked, ours, theirs = (
            shown(text, self._show) for text in (read_prompt(pair.exchange.request) or "", *texts)
        )
        heapq.heappush(self._kept, Difference(*rank, pair.request_id, asked, ours, theirs, judged))
        if len(self._kept) > self._policy.examples:
            heapq.heappop(self._kept)


def _lot(pair: Pair) -> float:
    """A number in [0, 1) that is always the same for a request, so that asking again draws the same."""
    return int.from_bytes(hashlib.sha256(pair.request_id.encode()).digest()[:4]) / 2**32


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


def _trusted_judge(release: Release, text: TextShadow) -> JudgeClient | None:
    """The evaluation's judge, if this release's evaluation showed that it agrees with people.

    On single answers for a sample, which it judges one by one; on pairs where it says which is better.
    """
    policy = release.bench.policy.evaluation
    findings = release.row.verdicts.get(Stage.EVALUATE.value, {}).get("findings", ())
    wanted = JUDGE_AGREEMENT["judge" if text.judge_sample else "pairwise"]
    trusted = any(one["metric"] == wanted and one["outcome"] == Outcome.PASS.value for one in findings)
    if not isinstance(policy, Generation) or policy.judge is None or not trusted:
        _LOG.warning("%s: no %s was shown, so words alone decide", release.row.id, wanted)
        return None
    return JudgeClient(policy.judge, ModelApi(policy.judge.api))
