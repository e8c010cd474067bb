"""The shadow's pairs of words: agreement, the judge's word on it, and the page of differences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.shadow import ShadowJudge
from serving.endpoint import Exchange, Reply
from serving.replay import Pair
from tasks.model_api import ModelApiError
from tasks.shadowing import _Shadow as ShadowState  # what the loop carries
from tasks.shadowing import count_pairs
from tasks.text_pairs import TextPairs
from tests.tasks.model_server import chat_answer, model_server
from tests.tasks.world_of_words import Words

LIKE = "You can return the bike within thirty days."
OTHER = "We open at nine."


def pair(
    candidate: str, champion: str = LIKE, *, asked: str = "May I return it?", stream: bool = False
) -> Pair:
    document = {"messages": [{"role": "user", "content": asked}], "stream": stream}
    champion_body = json.dumps(chat_answer(champion)).encode()
    body = streamed(candidate) if stream else json.dumps(chat_answer(candidate)).encode()
    request = json.dumps(document).encode()
    exchange = Exchange(
        "r1", 0.0, "1", "/v1/chat/completions", "application/json", request, 200, champion_body, 5.0
    )
    return Pair(exchange, Reply(200, body, 5.0))


def streamed(text: str) -> bytes:
    pieces = [{"choices": [{"delta": {"content": piece + " "}}]} for piece in text.split()]
    pieces.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(one)}\n\n" for one in pieces).encode() + b"data: [DONE]\n\n"


class Stand:
    """A release whose shadow compares words."""

    def __init__(self, folder: Path, text: dict[str, Any], judge_url: str = "", agreed: str = "PASS") -> None:
        words = Words(folder)
        words.data([{"prompt": "x", "reference": "y"}])
        if judge_url:
            words.judge(judge_url)
        words.scorers({"kind": "exact_match", "min": 0})
        content = words.policy().model_dump(mode="json")
        content["shadow"] = {"text": text}
        self.policy = type(words.policy()).model_validate(content)
        self.bench = self
        self.version = "2"
        self.row: Any = type("Row", (), {})()
        self.row.id, self.row.endpoint, self.row.version, self.row.champion = "support-2", "support", "2", "1"
        self.row.verdicts = {"evaluate": {"findings": [{"metric": "judge agreement", "outcome": agreed}]}}

    def look(self, *pairs: Pair) -> tuple[int, TextPairs]:
        """How many pairs disagree."""
        release: Any = self
        shadow = ShadowState(ShadowJudge(self.policy.shadow, 0.05, self.policy.canary.latency))
        text = self.policy.shadow.text
        assert text is not None
        shadow.texts = TextPairs(release, text)
        counts = count_pairs(release, shadow, pairs)
        assert counts.both_fine == len(pairs)
        return counts.disagreeing, shadow.texts


@pytest.mark.parametrize("stream", [False, True])
def test_answers_agree_by_their_words(tmp_path: Path, stream: bool) -> None:
    stand = Stand(tmp_path, {"min_similarity": 0.8})
    alike = LIKE.replace("can", "may")
    assert stand.look(pair(LIKE.upper(), stream=stream), pair(alike, stream=stream))[0] == 0
    assert stand.look(pair(LIKE, stream=stream), pair(OTHER, stream=stream))[0] == 1


def test_an_answer_that_breaks_off_is_a_failure_of_its_version(tmp_path: Path) -> None:
    release: Any = Stand(tmp_path, {})
    serving = release.policy.serving.model_copy(update={"runtime": "vllm"})
    release.policy = release.policy.model_copy(update={"serving": serving})
    shadow = ShadowState(ShadowJudge(release.policy.shadow, 0.05, release.policy.canary.latency))
    shadow.texts = TextPairs(release, release.policy.shadow.text)
    whole, broken = streamed(LIKE), streamed(LIKE).replace(b'"stop"', b"null")
    bodies = [(whole, whole), (broken, whole), (whole, broken), (broken, broken)]
    exchange = pair(LIKE).exchange
    pairs = [
        Pair(replace(exchange, response=champion), Reply(200, candidate, 5.0), Reply(200, champion, 4.0))
        for candidate, champion in bodies
    ]
    pairs.append(Pair(replace(exchange, status=429), Reply(429, b"", 5.0)))
    counts = count_pairs(release, shadow, pairs)
    assert (counts.both_fine, counts.candidate_bad, counts.champion_bad, counts.both_bad) == (1, 1, 1, 2)
    assert len(shadow.timed_ms) == 1
    assert shadow.examples[0]["why"] == "status 200, and the answer broke off"


def test_normalised_wants_the_same_words(tmp_path: Path) -> None:
    stand = Stand(tmp_path, {"compare": "normalised"})
    assert stand.look(pair(LIKE.upper() + " "), pair(LIKE.replace("can", "may")))[0] == 1


def test_embeddings_of_a_server(tmp_path: Path) -> None:
    with model_server() as server:
        stand = Stand(tmp_path, {"compare": "embeddings", "embeddings": {"url": server.url, "model": "e"}})
        assert stand.look(pair("within thirty days you can return the bike"), pair("zzz"))[0] == 1


@pytest.mark.parametrize(("agreed", "disagreeing"), [("PASS", 0), ("INCONCLUSIVE", 1)])
def test_only_a_trusted_judge_overrules_words(tmp_path: Path, agreed: str, disagreeing: int) -> None:
    with model_server(lambda _: '{"better": 0}') as server:
        stand = Stand(tmp_path, {"judge_apart": 5}, server.url, agreed)
        count, texts = stand.look(pair("Thirty days, sure."))
    assert count == disagreeing
    assert texts.judged_no_worse == 1 - disagreeing
    assert len(server.asked) == 2 * (1 - disagreeing)


def test_the_page_shows_the_most_different_without_personal_data(tmp_path: Path) -> None:
    stand = Stand(tmp_path, {"examples": 2})
    _, texts = stand.look(
        pair("<b>Other</b> words", asked="I am jane@example.com, may I return it?"),
        pair("You can return the bike within nine weeks of use."),
        pair("You can return it never."),
    )
    page = texts.page()
    assert page is not None
    assert "&lt;b&gt;Other&lt;/b&gt; words" in page
    assert "jane@" not in page
    assert "&lt;email&gt;" in page
    assert "nine weeks" not in page, "only the two most different"
    assert page.index("Other") < page.index("never")
    assert Stand(tmp_path, {}).look(pair(LIKE))[1].page() is None


def test_the_page_shows_nothing_where_the_policy_says_so(tmp_path: Path) -> None:
    page = Stand(tmp_path, {"show": "nothing"}).look(pair(OTHER))[1].page()
    assert page is not None
    assert "nine" not in page
    assert "not shown" in page


def test_pairs_that_nobody_could_judge_are_counted_once_the_judge_is_back(tmp_path: Path) -> None:
    with model_server(lambda _: '{"better": 0}') as server:
        stand = Stand(tmp_path, {"judge_apart": 5}, server.url)
        release: Any = stand
        shadow = ShadowState(ShadowJudge(stand.policy.shadow, 0.05, stand.policy.canary.latency))
        assert stand.policy.shadow.text is not None
        shadow.texts = TextPairs(release, stand.policy.shadow.text)
        pairs = [pair("Thirty days, sure."), pair(OTHER)]
        server.answers_before_failures, server.failures = 2, [503]
        with pytest.raises(ModelApiError, match=r"503.*Next:"):
            count_pairs(release, shadow, pairs)
        assert shadow.texts.page() is None
        counts = count_pairs(release, shadow, pairs)
    assert (counts.disagreeing, counts.pairs, shadow.texts.judged_no_worse) == (0, 2, 2)
    page = shadow.texts.page()
    assert page is not None
    assert page.count(OTHER) == 1
