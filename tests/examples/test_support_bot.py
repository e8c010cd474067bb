"""The support desk: what its prompts make of a question, and that the demo's parts fit together."""

from __future__ import annotations

import json
import random
from pathlib import Path

from configs.loading import load_policy
from examples.support_bot.demo import CANDIDATES, EXPECTED, POLICY, PROMPTS, STORY, write_questions
from examples.support_bot.words import BEFORE, RULES, TOPICS, UNKNOWN, WORDY, answer, fact, question
from serving.llm.prompt_text import parse_prompt
from serving.versions import Pair


def test_an_answer_is_right_only_under_a_prompt_that_says_so() -> None:
    topics = tuple(TOPICS)
    for topic in topics:
        assert fact(topic) in answer(topic, topics)
        assert fact(topic) in answer(topic, topics, style=WORDY)
        assert fact(topic) not in answer(topic, topics, year=BEFORE)
        assert answer(topic, ()) == UNKNOWN
    assert all(set(rules) == set(TOPICS) for rules in RULES.values())


def test_every_way_to_ask_can_be_asked() -> None:
    chance = random.Random(1)
    asked = {question(topic, chance) for topic in TOPICS for _ in range(200)}
    assert len(asked) > 50
    assert not any("{" in one for one in asked)


def test_the_story_tells_of_every_candidate_and_how_it_must_end() -> None:
    assert CANDIDATES.keys() == EXPECTED.keys() == STORY.keys()
    assert {Pair.of(one).prompt for one in CANDIDATES.values()} == PROMPTS.keys()
    for text in PROMPTS.values():
        assert parse_prompt(text, is_chat=False).variables == frozenset()


def test_each_candidate_changes_one_part_of_the_champion() -> None:
    champion = Pair("")
    for role, version in CANDIDATES.items():
        pair = Pair.of(version)
        assert (pair.model != champion.model) + (pair.prompt != champion.prompt) == (
            2 if role == "first" else 1
        )
        champion = pair if EXPECTED[role][0] == "PROMOTED" else champion


def test_the_policy_is_valid_and_its_questions_are_enough(tmp_path: Path) -> None:
    policy = load_policy(POLICY)
    assert policy.prompt is not None
    write_questions(tmp_path / "q.jsonl", 60)
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert len({row["topic"] for row in rows}) == len(TOPICS)
    assert len(rows) >= policy.evaluation.min_prompts  # pyright: ignore[reportAttributeAccessIssue]
