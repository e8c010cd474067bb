"""Evaluations of language models without servers: two versions in memory that answer chat requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from configs.policy import Policy
from configs.prices import LOCAL_MACHINE
from evals.verdict import Verdict
from serving.endpoint import EndpointState, Replica, Reply, Slot
from tasks.generation import evaluate_answers
from tests.flows.world import MemoryRuns
from tests.tasks.model_server import chat_answer

Answering = Callable[[str], str | Reply]
"""What a version answers to the user's last message."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A version that reads the whole request."""

    answer: Callable[[dict[str, Any]], str | Reply]


class Words:
    """A policy whose evaluation is about words, with its files, and releases that are judged by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = MemoryRuns({})
        self._evaluation: dict[str, Any] = {"task": "generation", "min_prompts": 10}
        self._judge: dict[str, Any] = {}
        self._serving: dict[str, Any] = {}
        self.candidate_machine = LOCAL_MACHINE

    def data(self, rows: list[dict[str, Any]], kind: str = "jsonl") -> None:
        """Write the prompts."""
        path = self.folder / f"prompts.{kind}"
        frame = pd.DataFrame(rows)
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif kind == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
        self._evaluation["data"] = str(path)

    def labelled(self, rows: list[dict[str, Any]]) -> None:
        """Write the answers that people labelled."""
        (self.folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def chosen(self, rows: list[dict[str, Any]]) -> None:
        """Write the pairs of answers of which people chose one."""
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def judge(self, url: str, *labels: str) -> None:
        """Have a judge, checked on `labelled` answers, `labelled_pairs`, or both."""
        self._judge = {
            "judge": {
                "api": {"url": url, "model": "judge", "retries": 0},
                "rubric": "The colour is right.",
                "min_labelled": 20,
                **{name: str(self.folder / f"{name.removeprefix('labelled_')}.jsonl") for name in labels},
            }
        }

    def scorers(self, *scorers: dict[str, Any], serving: dict[str, Any] | None = None, **values: Any) -> None:
        """What is measured, and what serves: that says what tokens cost."""
        self._serving = serving or {}
        self._evaluation = {
            **{key: self._evaluation[key] for key in ("task", "min_prompts", "data")},
            **self._judge,
            **values,
            "scorers": scorers,
        }

    def policy(self) -> Policy:
        """The whole policy."""
        return Policy.model_validate(
            {
                "endpoint": "support",
                "model": "support",
                "owner": "me@example.com",
                "evaluation": self._evaluation,
                "serving": self._serving,
                "shadow": {"enabled": False, "reason": "a test"},
            }
        )

    def evaluate(self, *, candidate: Answering | Asked, champion: Answering | None) -> Verdict:
        """Judge version 2 against version 1, both placed."""
        release: Any = _Release(self, candidate, champion)
        policy: Any = release.bench.policy.evaluation
        return evaluate_answers(release, policy)

    @staticmethod
    def body(text: str) -> bytes:
        """A completion's body."""
        return json.dumps(chat_answer(text)).encode()


class _Release:
    """What an evaluation uses of a release and its bench."""

    def __init__(self, words: Words, candidate: Answering | Asked, champion: Answering | None) -> None:
        self.first = champion is None
        self.version = "2"
        self._candidate_machine = words.candidate_machine
        self._answering = {Slot.BLUE: candidate if champion is None else champion, Slot.GREEN: candidate}
        self.row = _Plain(id="support-2", champion="" if champion is None else "1")
        self.trail = _Plain(run_id="run", numbers=lambda *_args, **_values: None)
        policy = words.policy()
        self.bench = _Plain(
            name="support",
            policy=policy,
            runs=words.runs,
            endpoint=self,
            settings=_Plain(policy_path=lambda _name: words.folder / "support.yaml"),
            clock=lambda: 0.0,
            row=lambda: _Plain(default=Slot.BLUE),
        )

    def describe(self) -> EndpointState:
        """Two replicas, of which the candidate's may be a provider's."""
        replicas = {
            slot: (Replica(slot, "memory", healthy=True, machine=machine),)
            for slot, machine in ((Slot.BLUE, LOCAL_MACHINE), (Slot.GREEN, self._candidate_machine))
        }
        return EndpointState("support", None, replicas=replicas)

    def check(self) -> None:
        """Nobody takes it away."""

    def progress(self, _values: Any) -> None:
        """Nobody looks."""

    def invoke(self, slot: Slot, path: str, body: bytes, *, content_type: str, timeout_s: float) -> Reply:
        """One chat request."""
        assert path == "/v1/chat/completions"
        assert content_type == "application/json"
        assert timeout_s > 0
        document = json.loads(body)
        answering = self._answering[slot]
        if isinstance(answering, Asked):
            said = answering.answer(document)
        else:
            said = answering(document["messages"][-1]["content"])
        return said if isinstance(said, Reply) else Reply(200, Words.body(said), 10.0)


class _Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)
