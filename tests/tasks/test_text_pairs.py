"""The shadow's pairs of words: agreement, the judge's word on it, and the page of differences."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from evals.generation import JUDGE_AGREEMENT
from evals.shadow import PairCounts, ShadowJudge
from serving.endpoint import Exchange, Reply
from serving.replay import Pair
from tasks.differences import without_requests
from tasks.model_api import ModelApiError
from tasks.shadowing import _Shadow as ShadowState  # what the loop carries
from tasks.shadowing import count_pairs
from tasks.text_pairs import TextPairs
from tests.tasks.model_server import chat_answer, model_server
from tests.tasks.model_server import shown as told
from tests.tasks.world_of_words import Words

LIKE = "You can return the bike within thirty days."
OTHER = "We open at nine."


def pair(
    candidate: str,
    champion: str = LIKE,
    *,
    asked: str = "May I return it?",
    stream: bool = False,
    request_id: str = "r1",
) -> Pair:
    document = {"messages": [{"role": "user", "content": asked}], "stream": stream}
    champion_body = json.dumps(chat_answer(champion)).encode()
    body = streamed(candidate) if stream else json.dumps(chat_answer(candidate)).encode()
    request = json.dumps(document).encode()
    exchange = Exchange(
        request_id, 0.0, "1", "/v1/chat/completions", "application/json", request, 200, champion_body, 5.0
    )
    return Pair(exchange, Reply(200, body, 5.0))


def streamed(text: str) -> bytes:
    pieces = [{"choices": [{"delta": {"content": piece + " "}}]} for piece in text.split()]
    pieces.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(one)}\n\n" for one in pieces).encode() + b"data: [DONE]\n\n"


class Stand:
    """A release whose shadow compares words."""

    def __init__(
        self,
        folder: Path,
        text: dict[str, Any],
        judge_url: str = "",
        agreed: str = "PASS",
        capture: dict[str, Any] | None = None,
    ) -> None:
        words = Words(folder)
        words.data([{"prompt": "x", "reference": "y"}])
        if judge_url:
            words.judge(judge_url, "labelled" if "judge_sample" in text else "labelled_pairs")
        words.scorers({"kind": "exact_match", "min": 0})
        content = words.policy().model_dump(mode="json")
        content["shadow"] = {"text": text}
        content["capture"] = capture or {}
        self.policy = type(words.policy()).model_validate(content)
        self.bench = self
        self.version = "2"
        self.row: Any = type("Row", (), {})()
        self.row.id, self.row.endpoint, self.row.version, self.row.champion = "support-2", "support", "2", "1"
        metric = JUDGE_AGREEMENT["judge" if "judge_sample" in text else "pairwise"]
        self.row.verdicts = {"evaluate": {"findings": [{"metric": metric, "outcome": agreed}]}}

    def shadow(self) -> ShadowState:
        """A shadow that begins."""
        release: Any = self
        made = ShadowState(ShadowJudge(self.policy.shadow, 0.05, self.policy.canary.latency))
        assert self.policy.shadow.text is not None
        made.texts = TextPairs(release, self.policy.shadow.text)
        return made

    def counts(self, *pairs: Pair) -> PairCounts:
        """What one look counts."""
        release: Any = self
        return count_pairs(release, self.shadow(), pairs)

    def look(self, *pairs: Pair) -> tuple[int, TextPairs]:
        """How many pairs disagree."""
        release: Any = self
        shadow = self.shadow()
        counts = count_pairs(release, shadow, pairs)
        assert counts.compared == len(pairs)
        assert shadow.texts is not None
        return counts.disagreeing, shadow.texts


@pytest.mark.parametrize("stream", [False, True])
def test_answers_agree_by_their_words(tmp_path: Path, stream: bool) -> None:
    stand = Stand(tmp_path, {"min_similarity": 0.8})
    alike = LIKE.replace("can", "may")
    assert stand.look(pair(LIKE.upper(), stream=stream), pair(alike, stream=stream))[0] == 0
    assert stand.look(pair(LIKE, stream=stream), pair(OTHER, stream=stream))[0] == 1


def vectors(*rows: list[float], encoded: bool = False) -> bytes:
    """An answer of /v1/embeddings, as numbers or as the official client asks for it."""
    written: list[Any] = [
        base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() if encoded else row for row in rows
    ]
    data = [{"index": index, "embedding": row} for index, row in enumerate(written)]
    return json.dumps({"object": "list", "data": data, "usage": {"prompt_tokens": 3}}).encode()


def bodies(candidate: bytes, champion: bytes, *, status: int = 200, theirs: int = 200) -> Pair:
    """A pair of answers as they stand."""
    request = b'{"input": ["a", "b"], "model": "chat"}'
    exchange = Exchange("r1", 0.0, "1", "/v1/embeddings", "application/json", request, theirs, champion, 5.0)
    return Pair(exchange, Reply(status, candidate, 5.0))


ONE, TWO = [1.0, 0.0, 0.5], [0.0, 1.0, -2.0]


@pytest.mark.parametrize("compare", ["words", "normalised"])
@pytest.mark.parametrize("encoded", [False, True])
def test_vectors_are_compared_by_their_cosine(tmp_path: Path, compare: str, encoded: bool) -> None:
    stand = Stand(tmp_path, {"compare": compare})
    champion = vectors(ONE, TWO, encoded=encoded)
    alike = vectors([1.01, 0.0, 0.5], TWO, encoded=encoded)
    other = vectors(ONE, [0.0, 1.0, 2.0], encoded=encoded)
    shorter, longer = vectors(ONE), vectors([*ONE, 0.0], [*TWO, 0.0])
    assert stand.look(bodies(alike, champion))[0] == 0
    for different in (other, shorter, longer, json.dumps(chat_answer("words")).encode()):
        assert stand.look(bodies(different, champion))[0] == 1


def test_refusals_alike_agree_and_one_alone_does_not(tmp_path: Path) -> None:
    refusal = b'{"error": {"message": "too long"}}'
    stand = Stand(tmp_path, {})
    assert stand.look(bodies(refusal, refusal, status=400, theirs=400))[0] == 0
    assert stand.look(bodies(vectors(ONE), refusal, theirs=400))[0] == 1
    assert stand.look(bodies(b"{}", refusal, theirs=400))[0] == 1


@pytest.mark.parametrize("body", [b'{"object": "list"}', b'{"choices": []}', b"", b"RIFF"])
def test_answers_that_nobody_can_read_fill_no_minimum(tmp_path: Path, body: bytes) -> None:
    stand = Stand(tmp_path, {})
    counts = stand.counts(bodies(body, body), pair(LIKE))
    assert (counts.pairs, counts.compared, counts.disagreeing) == (2, 1, 0)
    verdict = ShadowJudge(stand.policy.shadow, 0.05, stand.policy.canary.latency).look(counts)
    assert "1 of at least 1000 pairs (1 more were not compared)" in verdict.reason


def test_an_answer_that_breaks_off_is_a_failure_of_its_version(tmp_path: Path) -> None:
    release: Any = Stand(tmp_path, {})
    serving = release.policy.serving.model_copy(update={"runtime": "vllm"})
    release.policy = release.policy.model_copy(update={"serving": serving})
    shadow = ShadowState(ShadowJudge(release.policy.shadow, 0.05, release.policy.canary.latency))
    shadow.texts = TextPairs(release, release.policy.shadow.text)
    whole, broken = streamed(LIKE), streamed(LIKE).replace(b'"stop"', b"null")
    blocked = streamed(LIKE).replace(b'"stop"', b'"content_filter"')
    bodies = [(whole, whole), (broken, whole), (whole, broken), (broken, broken), (blocked, whole)]
    exchange = pair(LIKE).exchange
    pairs = [
        Pair(replace(exchange, response=champion), Reply(200, candidate, 5.0), Reply(200, champion, 4.0))
        for candidate, champion in bodies
    ]
    pairs.append(Pair(replace(exchange, status=429), Reply(429, b"", 5.0)))
    counts = count_pairs(release, shadow, pairs)
    assert (counts.both_fine, counts.candidate_bad, counts.champion_bad, counts.both_bad) == (1, 2, 1, 2)
    assert len(shadow.timed_ms) == 1
    assert shadow.examples[0]["why"] == "status 200, and the answer broke off, or was blocked or cut short"


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


def knows_the_days(messages: list[dict[str, str]]) -> str:
    """A judge of single answers, whatever their words."""
    (answer,) = told(messages)[1]
    return json.dumps({"right": "thirty" in answer.lower()})


def test_a_sample_is_judged_alike_in_words_or_not(tmp_path: Path) -> None:
    """Ninety days are nearly the same words, and wrong; other words may say the same."""
    wrong, same = LIKE.replace("thirty", "ninety"), "Thirty? Yes, thirty days."
    with model_server(knows_the_days) as server:
        stand = Stand(tmp_path, {"judge_sample": 1.0}, server.url)
        assert stand.look(pair(wrong))[0] == 1
        assert stand.look(pair(same))[0] == 0
        assert stand.look(pair(LIKE, wrong))[0] == 0, "better is no harm"
        assert stand.look(pair(OTHER, wrong))[0] == 0, "nor is a wrong answer in place of a wrong one"
        asked = len(server.asked)
        _, texts = stand.look(pair(wrong), pair(LIKE.upper(), LIKE), pair(same), pair(LIKE))
    assert len(server.asked) - asked == 6, "the same text needs no judge"
    page = texts.page()
    assert page is not None
    assert page.index("ninety") < page.index(same), "what was judged worse comes first"
    assert "the judge: worse" in page
    assert "the judge: no worse" in page
    assert LIKE.upper() not in page


def test_pairs_outside_the_sample_are_not_compared(tmp_path: Path) -> None:
    pairs = [pair(OTHER, request_id=f"r{number}") for number in range(200)]
    with model_server(knows_the_days) as server:
        stand = Stand(tmp_path, {"judge_sample": 0.25}, server.url)
        counts = stand.counts(*pairs)
        assert counts == stand.counts(*pairs), "the same again"
    assert 30 <= counts.compared <= 70
    assert counts.disagreeing == counts.compared
    assert len(server.asked) == 2 * 2 * counts.compared


def test_a_judge_that_was_not_shown_to_agree_with_people_samples_nothing(tmp_path: Path) -> None:
    with model_server(knows_the_days) as server:
        stand = Stand(tmp_path, {"judge_sample": 0.5}, server.url, "INCONCLUSIVE")
        counts = stand.counts(pair(OTHER), pair(LIKE))
    assert (counts.compared, counts.disagreeing, server.asked) == (2, 1, [])


@pytest.mark.parametrize(("text", "compared"), [({"judge_sample": 1.0}, 1), ({"judge_apart": 5}, 2)])
def test_words_that_a_judge_cannot_judge_do_not_stop_the_shadow(
    tmp_path: Path, text: dict[str, Any], compared: int
) -> None:
    def confused(messages: list[dict[str, str]]) -> str:
        if any("Never mind." in answer for answer in told(messages)[1]):
            return "I would rather not."
        return '{"right": true, "better": 0}'

    with model_server(confused) as server:
        counts = Stand(tmp_path, text, server.url).counts(pair("Never mind."), pair(OTHER))
    assert (counts.compared, counts.disagreeing) == (compared, compared - 1)


def test_an_undecided_judge_overrules_nothing(tmp_path: Path) -> None:
    with model_server(lambda _: '{"better": 1}') as server:
        stand = Stand(tmp_path, {"judge_apart": 5}, server.url)
        assert stand.look(pair(OTHER), pair(LIKE + " Yes."))[0] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"judge_sample": 0.5}, "judge_sample needs evaluation.judge with `labelled`"),
        ({"judge_apart": 5}, "judge_apart needs evaluation.judge with `labelled_pairs`"),
        ({"judge_apart": 5, "judge_sample": 0.5}, "leave judge_apart out"),
    ],
)
def test_a_judge_that_could_never_be_trusted_is_refused(
    tmp_path: Path, text: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        Stand(tmp_path, text)


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


@pytest.mark.parametrize(
    "capture",
    [{"drop": ["content"]}, {"hash": ["text", "age"]}, {"drop": ["prompt"]}, {"sample": 0}],
)
@pytest.mark.parametrize("show", ["redacted", "full"])
def test_the_page_keeps_no_words_where_the_capture_may_not(
    tmp_path: Path, capture: dict[str, Any], show: str
) -> None:
    page = Stand(tmp_path, {"show": show}, capture=capture).look(pair(OTHER))[1].page()
    assert page is not None
    for said in ("nine", "bike", "return it"):
        assert said not in page
    assert "no texts are shown, by the policy" in page
    assert f"({len(OTHER)} characters, not shown" in page
    assert "request r1" in page


def test_personal_data_that_the_capture_may_not_keep_is_not_shown_in_full_either(tmp_path: Path) -> None:
    said = "Write to jane@example.com"
    page = Stand(tmp_path, {"show": "full"}, capture={"personal": ["email"]}).look(pair(said))[1].page()
    assert page is not None
    assert "Write to &lt;email&gt;" in page
    full = Stand(tmp_path, {"show": "full"}, capture={"drop": ["age"]}).look(pair(said))[1].page()
    assert full is not None
    assert said in full


def test_the_page_leaves_out_who_was_forgotten_and_is_cleared_of_them_later(tmp_path: Path) -> None:
    texts = Stand(tmp_path, {}).look(pair(OTHER), pair("Never.</article>", request_id="r2"))[1]
    page = texts.page()
    assert page is not None
    left = without_requests(page, {"r1"})
    assert left is not None
    assert OTHER not in left
    assert "Never.&lt;/article&gt;" in left
    assert left.endswith("</html>")
    assert without_requests(page, {"r1", "r2"}) == ""
    assert texts.page({"r1", "r2"}) is None
    assert without_requests(page, {"r"}) is None


def test_pairs_that_nobody_could_judge_are_counted_once_the_judge_is_back(tmp_path: Path) -> None:
    with model_server(lambda _: '{"better": 0}') as server:
        stand = Stand(tmp_path, {"judge_apart": 5}, server.url)
        release: Any = stand
        shadow = stand.shadow()
        pairs = [pair("Thirty days, sure."), pair(OTHER)]
        server.answers_before_failures, server.failures = 2, [503]
        with pytest.raises(ModelApiError, match=r"503.*Next:"):
            count_pairs(release, shadow, pairs)
        assert shadow.texts is not None
        assert shadow.texts.page() is None
        counts = count_pairs(release, shadow, pairs)
    assert (counts.disagreeing, counts.pairs, shadow.texts.judged_no_worse) == (0, 2, 2)
    page = shadow.texts.page()
    assert page is not None
    assert page.count(OTHER) == 1
