"""The gate of language models with its hands: data sets, replicas, scorers, judges over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.prices import API_MACHINE
from evals.verdict import Outcome
from serving.endpoint import Reply
from serving.errors import SetupError
from tests.tasks.model_server import model_server, refused_by_reasoning, shown
from tests.tasks.world_of_words import Answering, Asked, Words

COLOURS = {f"What is colour {i}?": f"Colour {i} is {'red' if i % 2 else 'blue'}." for i in range(40)}


@pytest.fixture
def words(tmp_path: Path) -> Words:
    made = Words(tmp_path)
    made.data(
        [{"prompt": asked, "reference": right, "kind": right[-5:-1]} for asked, right in COLOURS.items()]
    )
    return made


def knows(share: float) -> Answering:
    """Answers a share of the questions rightly and the others wrongly."""
    known = list(COLOURS)[: round(share * len(COLOURS))]
    return lambda asked: COLOURS[asked] if asked in known else "No idea what you mean."


def test_a_better_candidate_passes(words: Words) -> None:
    words.scorers({"kind": "exact_match", "min": 0.5, "margin": 0.02}, {"kind": "rouge_l", "margin": 0.02})
    verdict = words.evaluate(candidate=knows(1.0), champion=knows(0.5))
    assert verdict.passed
    finding = next(one for one in verdict.findings if one.low is not None)
    assert (finding.candidate, finding.champion) == (1.0, 0.5)
    assert words.runs.scored == ["candidate 2", "champion 1"]


def test_a_worse_candidate_fails(words: Words) -> None:
    words.scorers({"kind": "exact_match", "margin": 0.02})
    assert words.evaluate(candidate=knows(0.3), champion=knows(0.9)).failed


def test_the_first_version_is_judged_alone(words: Words) -> None:
    words.scorers({"kind": "contains", "min": 0.9})
    assert words.evaluate(candidate=knows(1.0), champion=None).passed
    assert words.evaluate(candidate=knows(0.5), champion=None).failed


def test_no_answer_is_a_failure_of_the_candidate(words: Words) -> None:
    words.scorers({"kind": "exact_match", "min": 0.5})
    verdict = words.evaluate(candidate=lambda _: Reply(500, b"no", 1.0), champion=knows(1.0))
    assert verdict.failed
    assert "40 of 40 answers never came" in verdict.reason


def test_a_candidate_that_is_asked_in_a_way_that_it_refuses_is_nobodys_verdict(words: Words) -> None:
    """A reasoning model: rejected it would be for how it was asked, not for what it answers."""

    def reasoning(document: dict[str, Any]) -> str | Reply:
        refusal = refused_by_reasoning(document)
        return Reply(400, refusal.encode(), 1.0) if refusal else COLOURS[document["messages"][-1]["content"]]

    words.scorers({"kind": "exact_match", "min": 0.5, "margin": 0.1})
    verdict = words.evaluate(candidate=Asked(reasoning), champion=knows(1.0))
    assert verdict.outcome is Outcome.ERROR
    assert "refused all of 40 prompts" in verdict.reason
    assert "'max_completion_tokens' instead" in verdict.reason
    assert "Next: " in verdict.reason
    words.scorers(
        {"kind": "exact_match", "min": 0.5, "margin": 0.1},
        tokens_field="max_completion_tokens",
        temperature=None,
    )
    assert words.evaluate(candidate=Asked(reasoning), champion=knows(1.0)).passed


def test_some_refusals_are_failures_of_the_candidate(words: Words) -> None:
    words.scorers({"kind": "exact_match", "min": 0.5})
    asked = knows(1.0)
    verdict = words.evaluate(
        candidate=lambda text: Reply(400, b"no", 1.0) if "7" in text else asked(text), champion=None
    )
    assert verdict.failed


def test_a_champion_that_answers_nothing_is_nobodys_verdict(words: Words) -> None:
    words.scorers({"kind": "exact_match", "margin": 0.1})
    with pytest.raises(SetupError, match="nothing to compare with"):
        words.evaluate(candidate=knows(1.0), champion=lambda _: Reply(503, b"", 1.0))


def test_a_reference_that_is_missing_is_an_error_not_a_pass(words: Words) -> None:
    words.data(
        [{"prompt": asked, "reference": right or None} for asked, right in [*COLOURS.items(), ("?", "")]]
    )
    words.scorers({"kind": "exact_match", "min": 0.1})
    verdict = words.evaluate(candidate=knows(1.0), champion=None)
    assert verdict.outcome is Outcome.ERROR
    assert "1 of 41" in verdict.reason


def test_json_that_fits_its_schema(words: Words, tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["colour"], "properties": {"colour": {"enum": ["red", "blue"]}}}
    (tmp_path / "answer.json").write_text(json.dumps(schema))
    words.scorers({"kind": "json_schema", "json_schema": str(tmp_path / "answer.json"), "min": 1.0})
    assert words.evaluate(candidate=lambda _: '{"colour": "red"}', champion=None).passed
    assert words.evaluate(candidate=lambda _: '{"colour": "green"}', champion=None).failed
    assert words.evaluate(candidate=lambda _: "red", champion=None).failed
    (tmp_path / "answer.json").write_text('{"type": "no such type"}')
    with pytest.raises(SetupError, match="no JSON Schema"):
        words.evaluate(candidate=lambda _: "red", champion=None)


def test_personal_data_of_the_prompt_may_come_back_but_no_other(words: Words) -> None:
    words.data([{"prompt": f"I am jo{i}@example.com"} for i in range(20)])
    words.scorers({"kind": "pii", "min": 1.0})
    assert words.evaluate(candidate=lambda asked: f"Thanks, {asked[5:]}!", champion=None).passed
    assert words.evaluate(candidate=lambda _: "Ask boss@example.org", champion=None).failed


def test_refusals_where_they_belong(words: Words) -> None:
    words.data([{"prompt": f"q{i}", "refuse": i % 2 == 0} for i in range(20)])
    words.scorers({"kind": "refusal", "min": 1.0})

    def right(asked: str) -> str:
        return "Sorry, I can't help with that." if int(asked[1:]) % 2 == 0 else "Yes."

    assert words.evaluate(candidate=right, champion=None).passed
    assert words.evaluate(candidate=lambda _: "I'm sorry, no.", champion=None).failed


def test_latency_tokens_and_cost(words: Words) -> None:
    words.scorers(
        {"kind": "latency_ms", "margin": 5},
        {"kind": "tokens_out", "max": 10},
        {"kind": "cost", "max": 20e-6},
        serving={"price": {"input_per_million": 1, "output_per_million": 2}},
    )
    verdict = words.evaluate(candidate=knows(1.0), champion=knows(1.0))
    assert verdict.passed, verdict.reason
    values = {one.metric: one.candidate for one in verdict.findings}
    assert values["cost"] == pytest.approx((10 + 4 * 2) / 1e6)
    slow = words.evaluate(
        candidate=lambda asked: Reply(200, words.body(COLOURS[asked]), 90.0), champion=knows(1)
    )
    assert slow.failed
    assert "latency_ms" in slow.reason


def test_a_providers_answers_cost_its_price_and_our_own_ours(words: Words) -> None:
    provider = {
        "provider": "compatible",
        "base_url": "http://127.0.0.1:9/v1",
        "price": {"input_per_million": 3, "output_per_million": 5},
    }
    own = {"replica_per_hour": 3.6, "tokens_per_s": 100}
    words.scorers({"kind": "cost", "margin": 1.0}, serving={"runtime": "vllm", "api": provider, "price": own})
    words.candidate_machine = API_MACHINE
    verdict = words.evaluate(candidate=knows(1.0), champion=knows(1.0))
    assert verdict.passed, verdict.reason
    (finding,) = [one for one in verdict.findings if one.metric == "cost"]
    assert finding.candidate == pytest.approx((10 * 3 + 4 * 5) / 1e6)
    assert finding.champion == pytest.approx(4 * 3.6 / 3600 / 100)


def test_tokens_that_the_server_did_not_count_are_an_error(words: Words) -> None:
    words.scorers({"kind": "tokens_out", "max": 100})
    bare = json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()
    verdict = words.evaluate(candidate=lambda _: Reply(200, bare, 1.0), champion=None)
    assert verdict.outcome is Outcome.ERROR
    assert "usage.completion_tokens" in verdict.reason


def test_similarity_by_embeddings_and_by_words(words: Words) -> None:
    scorer = {"kind": "similarity", "min": 0.9}
    with model_server() as server:
        words.scorers(scorer, embeddings={"url": server.url, "model": "e"})
        assert words.evaluate(candidate=knows(1.0), champion=None).passed
        assert words.evaluate(candidate=lambda _: "zzzz", champion=None).failed
        server.failures = [503, 429]
        assert words.evaluate(candidate=knows(1.0), champion=None).passed, "two failures were retried"
        server.failures = [400]
        assert words.evaluate(candidate=knows(1.0), champion=None).outcome is Outcome.ERROR
    words.scorers(scorer, lexical_similarity=True)
    assert words.evaluate(candidate=knows(1.0), champion=None).passed
    assert words.evaluate(candidate=lambda _: "zzzz", champion=None).failed


def honest_judge(messages: list[dict[str, str]]) -> str:
    """Knows the colours; prefers the answer that names the right one."""
    asked, answers = shown(messages)
    right = [answer == COLOURS[asked] for answer in answers]
    if len(right) == 1:
        return json.dumps({"right": right[0]})
    return "Well: " + json.dumps({"better": 0 if right[0] == right[1] else 1 if right[0] else 2})


def first_place(messages: list[dict[str, str]]) -> str:
    """Likes whatever stands first."""
    honest = json.loads(honest_judge(messages).removeprefix("Well: "))
    return json.dumps(honest if "right" in honest else {"better": 1})


def label(words: Words, right: Callable[[int], bool]) -> None:
    rows = [
        {"prompt": asked, "answer": COLOURS[asked] if i % 2 else "Green.", "label": int(right(i))}
        for i, asked in enumerate(COLOURS)
    ]
    words.labelled(rows)


def choose(words: Words, first_is_better: Callable[[int], bool]) -> None:
    """Pairs whose right answer stands first in half of them, and what people chose."""
    rows: list[dict[str, Any]] = []
    for i, asked in enumerate(COLOURS):
        answers = [COLOURS[asked], "Green."] if i % 2 else ["Green.", COLOURS[asked]]
        better = 1 if first_is_better(i) else 2
        rows.append({"prompt": asked, "first": answers[0], "second": answers[1], "better": better})
    words.chosen(rows)


def test_a_judge_that_agrees_with_people_gates(words: Words) -> None:
    with model_server(honest_judge) as server:
        words.judge(server.url, "labelled", "labelled_pairs")
        label(words, lambda i: i % 2 == 1)
        choose(words, lambda i: i % 2 == 1)
        words.scorers({"kind": "judge", "margin": 0.05}, {"kind": "pairwise", "margin": 0.1})
        assert words.evaluate(candidate=knows(1.0), champion=knows(0.5)).passed
        assert words.evaluate(candidate=knows(0.5), champion=knows(1.0)).failed


def test_a_judge_that_does_not_agree_with_people_does_not(words: Words) -> None:
    with model_server(honest_judge) as server:
        words.judge(server.url, "labelled")
        label(words, lambda i: i % 3 == 0)
        words.scorers({"kind": "judge", "min": 0.5})
        verdict = words.evaluate(candidate=knows(1.0), champion=None)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "it may not gate" in verdict.reason


def test_a_judge_that_chooses_otherwise_than_people_gates_no_pairs(words: Words) -> None:
    """It knows right answers from wrong ones, as people do; of two it prefers what they did not choose."""
    with model_server(honest_judge) as server:
        words.judge(server.url, "labelled", "labelled_pairs")
        label(words, lambda i: i % 2 == 1)
        choose(words, lambda i: i % 3 == 0)
        words.scorers({"kind": "judge", "margin": 0.05}, {"kind": "pairwise", "margin": 0.1})
        verdict = words.evaluate(candidate=knows(1.0), champion=knows(0.5))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "40 labelled pairs" in verdict.reason
    assert "it may not gate" in verdict.reason


def test_a_judge_that_cannot_decide_agrees_with_nobody(words: Words) -> None:
    with model_server(lambda _: '{"better": 0}') as server:
        words.judge(server.url, "labelled_pairs")
        choose(words, lambda i: i % 2 == 1)
        words.scorers({"kind": "pairwise", "margin": 0.1})
        verdict = words.evaluate(candidate=knows(1.0), champion=knows(0.5))
    assert "agrees with people on 0% of 40 labelled pairs" in verdict.reason


def test_a_judge_with_a_favourite_place_is_found_out(words: Words) -> None:
    with model_server(first_place) as server:
        words.judge(server.url, "labelled_pairs")
        choose(words, lambda i: i % 2 == 1)
        words.scorers({"kind": "pairwise", "margin": 0.1})
        verdict = words.evaluate(candidate=knows(1.0), champion=knows(0.0))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    bias = next(one for one in verdict.findings if one.metric == "pairwise order bias")
    assert "followed the order in 100% of pairs (first place +1.00)" in bias.reason


def test_choices_of_people_are_one_or_two(words: Words) -> None:
    with model_server(honest_judge) as server:
        words.judge(server.url, "labelled_pairs")
        words.chosen([{"prompt": "p", "first": "a", "second": "b", "better": 0}])
        words.scorers({"kind": "pairwise", "margin": 0.1})
        with pytest.raises(SetupError, match=r"other values of better than 1 and 2. Next"):
            words.evaluate(candidate=knows(1.0), champion=knows(0.0))


def test_a_judge_that_raves_is_an_error(words: Words) -> None:
    with model_server(lambda _: "I like it") as server:
        words.judge(server.url, "labelled")
        label(words, lambda i: i % 2 == 1)
        words.scorers({"kind": "judge", "min": 0.5})
        verdict = words.evaluate(candidate=knows(1.0), champion=None)
    assert verdict.outcome is Outcome.ERROR


def test_the_key_of_an_api_comes_from_the_environment(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = {"kind": "similarity", "min": 0.9}
    with model_server() as server:
        words.scorers(scorer, embeddings={"url": server.url, "model": "e", "key": "env:EMBEDDINGS_KEY"})
        with pytest.raises(SetupError, match="EMBEDDINGS_KEY is not set"):
            words.evaluate(candidate=knows(1.0), champion=None)
        monkeypatch.setenv("EMBEDDINGS_KEY", "secret")
        words.evaluate(candidate=knows(1.0), champion=None)
        assert server.headers[-1]["authorization"] == "Bearer secret"


def test_slices_and_messages(words: Words) -> None:
    words.data(
        [
            {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}],
             "reference": right, "kind": "red" if "red" in right else "blue"}
            for asked, right in COLOURS.items()
        ]
    )  # fmt: skip
    words.scorers(
        {"kind": "exact_match", "margin": 0.5},
        slices=[{"column": "kind", "metric": "exact_match", "margin": 0.1, "min_prompts": 10}],
    )
    verdict = words.evaluate(
        candidate=lambda asked: COLOURS[asked] if "red" in COLOURS[asked] else "?", champion=knows(1.0)
    )
    assert verdict.failed
    assert any("kind = blue" in one.metric and one.outcome is Outcome.FAIL for one in verdict.findings)
    assert any("kind = red" in one.metric and one.outcome is Outcome.PASS for one in verdict.findings)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_data_comes_in_other_forms_too(words: Words, kind: str) -> None:
    words.data([{"prompt": asked, "reference": right} for asked, right in COLOURS.items()], kind=kind)
    words.scorers({"kind": "exact_match", "min": 1.0})
    assert words.evaluate(candidate=knows(1.0), champion=None).passed


def test_data_that_cannot_be_read_says_so(words: Words) -> None:
    words.scorers({"kind": "exact_match", "min": 1.0}, prompt="question")
    with pytest.raises(SetupError, match="has no column question"):
        words.evaluate(candidate=knows(1.0), champion=None)
