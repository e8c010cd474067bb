"""A whole release without servers: an endpoint in memory under simulated traffic and a hand clock.

`sleep` lets time pass, and traffic with it, so that the loops of shadow and canary run at the
speed of the computer. Flows, tasks, journal and decisions are the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.policy import Policy
from configs.settings import Settings
from serving.endpoint import Reply, Slot
from serving.fake import FakeEndpoint
from serving.journal import Journal
from serving.records import ReleaseRow
from tasks.bench import Bench
from tasks.genai import Scores
from tests.tasks.doubles import HandClock, MemoryMessenger, MemoryRegistry

HELD_OUT_ROWS = 600


def policy(folder: Path) -> Policy:
    """Short bakes and wide margins; the tests and their levels are those of production."""
    return Policy.model_validate(
        {
            "endpoint": "flights",
            "model": "late",
            "owner": "me@example.com",
            "evaluation": {
                "data": str(folder / "held_out.parquet"),
                "label": "late",
                "task": "classification",
                "metrics": [{"name": "roc_auc", "min": 0.6, "margin": 0.02}],
                "min_rows": 100,
                # MLflow and Evidently themselves: tests/tasks/test_evaluation.py
                "evaluators": False,
                "data_page": False,
            },
            "shadow": {"score_tolerance": 0.2, "min_pairs": 100, "rate_per_s": 1000, "timeout_s": 120},
            "canary": {
                "steps": [5, 25, 50, 95],
                "bake_s": 5,
                "soak_s": 5,
                "min_units": 10,
                "look_every_s": 1,
                "settle_s": 0,
                "window": {"requests": 3, "seconds": 1},
                "errors": {"tolerance": 0.01, "margin": 0.05},
                "latency": {"tolerance": 1.0, "margin": 1.0, "quantiles": ["p50"]},
            },
        }
    )


@dataclass
class Version:
    """What a version does: its skill offline, and its answers to live requests."""

    skill: float = 1.0
    answer: Callable[[bytes, np.random.Generator], Reply] = lambda body, rng: good(body, rng)


def good(body: bytes, rng: np.random.Generator) -> Reply:
    """A correct answer in about 3 ms."""
    return Reply(200, json.dumps({"predictions": [len(body) % 2]}).encode(), float(rng.lognormal(1.1, 0.3)))


def failing(share: float) -> Callable[[bytes, np.random.Generator], Reply]:
    """Answers 500 to a share of the requests."""
    return lambda body, rng: Reply(500, b"{}", 3.0) if rng.random() < share else good(body, rng)


@dataclass
class MemoryRuns:
    """MLflow's tracking as a release uses it: models by version, documents by name."""

    versions: dict[str, Version]
    documents: dict[str, str] = field(default_factory=dict)
    points: list[Any] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)
    scored: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def open_run(self, _endpoint: str, release_id: str, _tags: Any) -> str:
        return f"run-{release_id}"

    def run_url(self, run_id: str) -> str:
        return f"http://mlflow.example/{run_id}"

    def log_points(self, _run_id: str, points: Any) -> None:
        self.points.extend(points)

    def log_text(self, _run_id: str, name: str, text: str) -> None:
        self.documents[name] = text

    def close_run(self, _run_id: str, *, status: str, tags: Any) -> None:
        self.closed = {"status": status, **tags}

    def score(self, _run_id: str, title: str, examples: Any, scorers: Any) -> Scores:
        """What `mlflow.genai.evaluate` does with scorers: one that raises leaves nothing."""
        self.scored.append(title)
        scores = Scores({name: {} for name in scorers})
        for name, of in scorers.items():
            for example in examples:
                try:
                    scores.values[name][example.key] = of(example.key)
                except Exception as error:
                    scores.errors.setdefault(name, str(error))
        return scores

    def tag_run(self, _run_id: str, tags: Any) -> None:
        self.tags |= tags

    def signature(self, _uri: str) -> None:
        return None

    def load_model(self, uri: str) -> Any:
        skill = self.versions[uri.rsplit("/", 1)[1]].skill

        class Model:
            @staticmethod
            def predict(rows: pd.DataFrame) -> Any:
                score = skill * rows["signal"].to_numpy() + (1 - skill) * rows["noise"].to_numpy()
                return 1 / (1 + np.exp(-score))

        return Model()


class World:
    """Everything that outlives a flow run."""

    def __init__(
        self, folder: Path, *, requests_per_s: int = 60, platform: type[FakeEndpoint] = FakeEndpoint
    ) -> None:
        self.clock = HandClock()
        self.settings = Settings(state_dir=folder / "state")
        self.registry = MemoryRegistry()
        self.messenger = MemoryMessenger()
        self.endpoint = platform("flights", clock=self.clock)
        self.journal = Journal(self.settings.journal)
        self.policy = policy(folder)
        self.versions: dict[str, Version] = {}
        self.runs = MemoryRuns(self.versions)
        self.requests_per_s = requests_per_s
        self.asked: list[str] = []
        self._rng = np.random.default_rng(7)
        self._sent = 0
        self.on_second: Callable[[], None] = lambda: None
        self.request: Callable[[int], bytes] = lambda number: f"body {number}".encode()
        rng = np.random.default_rng(1)
        signal = rng.normal(size=HELD_OUT_ROWS)
        late = (signal + rng.normal(scale=0.8, size=HELD_OUT_ROWS) > 0).astype(int)
        noise = rng.normal(size=HELD_OUT_ROWS)
        pd.DataFrame({"signal": signal, "noise": noise, "late": late}).to_parquet(folder / "held_out.parquet")

    def add(self, number: str, version: Version) -> None:
        """Register a version."""
        self.versions[number] = version

        def answer(body: bytes) -> Reply:
            self.asked.append(number)
            return version.answer(body, self._rng)

        self.endpoint.behave(number, answer)

    def bench(self) -> Bench:
        """A fresh process's bench."""
        runs: Any = self.runs
        registry: Any = self.registry
        messenger: Any = self.messenger
        endpoint: Any = self.endpoint
        return Bench(
            self.policy,
            self.settings,
            endpoint=endpoint,
            registry=registry,
            messenger=messenger,
            runs=runs,
            clock=self.clock,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        """Let time pass, with its traffic."""
        for _ in range(max(1, round(seconds))):
            self.clock.now += seconds / max(1, round(seconds))
            if self.endpoint.describe().route is not None:
                for _ in range(round(self.requests_per_s * min(1.0, seconds))):
                    self._sent += 1
                    user = f"user-{self._rng.integers(0, 100_000)}"
                    self.endpoint.send(self.request(self._sent), user=user)
            self.on_second()

    def keep_claim(self) -> None:
        """What the thread of a live run does: this clock runs faster than it."""
        for release in self.journal.releases("flights")[:1] if self.clock.now % 8 < 1 else []:
            if release.owner and release.owner_until >= self.clock.now - 2:
                self.journal.renew(release.id, release.owner, lease_s=30, now=self.clock.now)

    def newest(self) -> ReleaseRow:
        """The newest release."""
        return self.journal.releases("flights")[0]

    def serving(self) -> tuple[str, int]:
        """The default's version, and the share of the other one in basis points."""
        route = self.endpoint.describe().route
        assert route is not None
        return route.default_version, route.share_bp

    def slots(self) -> tuple[str, str]:
        """What blue and green hold."""
        held = self.endpoint.describe().versions
        return held[Slot.BLUE], held[Slot.GREEN]
