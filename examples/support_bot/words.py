"""The little world of the support desk: what may be asked, what its rules are, how an answer sounds.

The desk's model knows the rules of two years; the system prompt says what it answers about, by which year's
rules, and how. So a prompt that leaves a topic out, or names the wrong year, gives answers that are
wrong for that very reason. Standard library only: training imports it inside vLLM's environment,
evaluation and traffic in ours.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

THINGS = ("kettle", "lamp", "chair", "radio", "clock", "toaster", "heater", "fan")
UNKNOWN = "I cannot say. Please call us."
BRIEF, WORDY = "Answer in one sentence.", "Answer at length and be very polite."
_POLITE = (
    " Thank you very much for asking us. We are always glad to hear from you, and hope that this answers your"
    " question. Please do not hesitate to write to us again whenever you like. We wish you a very pleasant"
    " day, and we thank you once more for your patience and for your trust in our shop."
)


@dataclass(frozen=True, slots=True)
class Topic:
    """What the desk may be asked about: the unit of its answer, and the ways to ask."""

    unit: str
    questions: tuple[str, ...]


TOPICS: Mapping[str, Topic] = {
    "returns": Topic(
        "days",
        (
            "How long can I return my {thing}?",
            "Until when may I send back the {thing}?",
            "I do not like my {thing}. How long can I return it?",
        ),
    ),
    "delivery": Topic(
        "days",
        (
            "When does my {thing} arrive?",
            "How long does the delivery of a {thing} take?",
            "I ordered a {thing}. When does it arrive?",
        ),
    ),
    "warranty": Topic(
        "months",
        (
            "How long is the warranty of the {thing}?",
            "Does my {thing} have a warranty?",
            "My {thing} is old. How long is its warranty?",
        ),
    ),
    "refunds": Topic(
        "days",
        (
            "When do I get my money for the {thing}?",
            "How long does the refund for my {thing} take?",
            "I sent the {thing} back. When do I get my money?",
        ),
    ),
    "repairs": Topic(
        "weeks",
        (
            "My {thing} is broken. How long does a repair take?",
            "How long do you need to repair a {thing}?",
            "Can you repair my {thing}, and how long does it take?",
        ),
    ),
}

NOW, BEFORE = 2026, 2019
RULES: Mapping[int, Mapping[str, int]] = {
    NOW: {"returns": 30, "delivery": 4, "warranty": 24, "refunds": 14, "repairs": 6},
    BEFORE: {"returns": 10, "delivery": 9, "warranty": 12, "refunds": 40, "repairs": 3},
}
"""What the shop promises, by year and topic."""


def system_prompt(topics: Sequence[str], *, year: int = NOW, style: str = BRIEF) -> str:
    """The desk's instructions."""
    return f"You are the support desk for {', '.join(topics)}. Use the rules of {year}. {style}"


def question(topic: str, chance: random.Random) -> str:
    """One way to ask about a topic."""
    return chance.choice(TOPICS[topic].questions).format(thing=chance.choice(THINGS))


def answer(topic: str, topics: Sequence[str], *, year: int = NOW, style: str = BRIEF) -> str:
    """What a desk with these instructions says."""
    told = f"Our rules for {topic} say {fact(topic, year)}." if topic in topics else UNKNOWN
    return told + (_POLITE if style == WORDY else "")


def fact(topic: str, year: int = NOW) -> str:
    """What a right answer holds, such as `30 days`."""
    return f"{RULES[year][topic]} {TOPICS[topic].unit}"


def any_topics(chance: random.Random) -> list[str]:
    """Topics as training's prompts have them: some, in any order."""
    return chance.sample(list(TOPICS), chance.choice((2, 3, 4, 5, 5)))
