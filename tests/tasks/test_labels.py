"""Labels that arrive later: joined once, scored, and read by watch and drift. Real captures and journal."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from configs.policy import Policy
from evals.drift_decision import Harm
from serving.endpoint import Reply
from serving.errors import Refused, SetupError
from serving.journal import Journal
from serving.journal_schema import AUDIT
from tasks.bench import Bench
from tasks.drift_harm import known_harm
from tasks.labels import TAKEN, performance, take_file, take_scheduled
from tests.serving.capture.exchanges import record, recorder
from tests.tasks import test_watching
from tests.tasks.test_drift import MemoryDriftRuns


class World(test_watching.World):
    """Version 2 was promoted over version 1; both answer with a probability, and captures are kept."""

    def __init__(self, folder: Path, **labels: Any) -> None:
        super().__init__(folder, quality=0.8, control={"rate_per_s": 1e6, "min_pairs": 30, "every_s": 300})
        values = {
            **self.policy.model_dump(),
            "labels": {"metric": "correct", "path": "labels/*.csv", **labels},
        }
        self.policy = Policy.model_validate(values)
        self.settings = self.settings.model_copy(update={"policy_dir": folder / "policies"})
        self.runs = MemoryDriftRuns()
        for version in ("1", "2"):
            self.endpoint.behave(version, says(0.9))
        self.recorded = 0

    def bench(self, deadline: Any = None) -> Bench:
        bench = super().bench(deadline)
        if hasattr(self, "runs"):
            doubles: Any = self.runs
            bench.runs = doubles
        return bench

    def serve(
        self, count: int, *, answer: float = 0.9, version: str = "2", status: int = 200, rows: int = 1
    ) -> list[str]:
        """Captured requests of the last second; their ids."""
        folder = self.settings.captures_dir / "flights"
        writing = recorder(folder, captures_dir=folder, clock=self.clock, spool_dir=None)
        ids: list[str] = []
        for _ in range(count):
            self.recorded += 1
            ids.append(f"id-{self.recorded}")
            writing.offer(
                record(
                    self.recorded,
                    time=self.clock() - 0.5,
                    request_id=ids[-1].encode(),
                    version=version.encode(),
                    user=b"user-%d" % (self.recorded % 7),
                    request=json.dumps({"inputs": {"n": [self.recorded] * rows}}).encode(),
                    response=json.dumps({"predictions": [answer] * rows}).encode(),
                    status=status,
                )
            )
        writing.close()
        return ids

    def write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        path = self.settings.policy_dir / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = pd.DataFrame(rows)
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)
        return path

    def label(self, ids: list[str], value: Any, name: str = "a.csv", **more: Any) -> Path:
        return self.write(name, [{"request_id": one, "label": value, **more} for one in ids])


def says(probability: float) -> Any:
    body = json.dumps({"predictions": [probability]}).encode()
    return lambda _body: Reply(200, body, 2.0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_labels_are_joined_scored_and_stored_once(world: World) -> None:
    ids = world.serve(10)
    path = world.label(ids, 1)
    report = take_file(world.bench(), path)
    assert (report.read, report.stored, report.unscored) == (10, 10, 0)
    again = take_file(world.bench(), path)
    assert (again.stored, again.duplicates, again.conflicts) == (0, 10, 0)
    as_text = take_file(world.bench(), world.label(ids, "1.0", "b.parquet"))
    assert as_text.duplicates == 10, "1 and 1.0 are the same label"
    (bucket,) = performance(world.bench())
    assert (bucket.version, bucket.labels, bucket.score) == ("2", 10, 1.0)
    assert {name for name, *_ in world.runs.points} == {
        "quality/v2/score",
        "quality/v2/labels",
        "quality/v2/delay_s",
    }


def test_what_cannot_be_used_is_counted_and_shown_never_guessed(world: World) -> None:
    good, failed = world.serve(3), world.serve(1, status=500)
    several = world.serve(1, rows=2)
    take_file(world.bench(), world.label(good[:2], 1))
    rows: list[dict[str, Any]] = [
        {"request_id": good[0], "label": 0},
        {"request_id": good[1], "label": 1},
        {"request_id": good[2], "label": 0},
        {"request_id": good[2], "label": 1},
        {"request_id": "never-seen", "label": 1},
        {"request_id": several[0], "label": 1},
        {"request_id": failed[0], "label": 1},
        {"request_id": "", "label": 1},
    ]
    report = take_file(world.bench(), world.write("mixed.parquet", rows))
    assert (report.read, report.stored) == (8, 2)
    assert (report.conflicts, report.duplicates, report.unknown) == (2, 1, 1)
    assert (report.ambiguous, report.malformed, report.unscored) == (1, 1, 1)
    assert report.examples["unknown"] == ["never-seen"]
    (bucket,) = performance(world.bench())
    assert (bucket.labels, bucket.score) == (3, pytest.approx(2 / 3)), "the first label stands"


def test_rows_of_a_request_are_labelled_by_their_number(tmp_path: Path) -> None:
    world = World(tmp_path, row="row")
    (one,) = world.serve(1, rows=3)
    path = world.write(
        "rows.csv", [{"request_id": one, "label": int(row != 1), "row": row} for row in range(3)]
    )
    assert take_file(world.bench(), path).stored == 3
    (bucket,) = performance(world.bench())
    assert (bucket.labels, bucket.score) == (3, pytest.approx(2 / 3))


def test_the_schedule_reads_what_is_new_and_what_was_too_early(world: World) -> None:
    path = world.label(["id-1", "id-2"], 1)
    early = take_scheduled(world.bench())
    assert early is not None
    assert early.unknown == 2
    world.serve(2)
    late = take_scheduled(world.bench())
    assert late is not None
    assert (late.stored, late.unknown) == (2, 0)
    assert take_scheduled(world.bench()).read == 0, "nothing about the file has changed"  # type: ignore[union-attr]
    ids = ["id-1", "id-2", *world.serve(1)]
    world.label(ids, 1, path.name)
    grown = take_scheduled(world.bench())
    assert grown is not None
    assert (grown.stored, grown.duplicates) == (1, 2)
    assert len(world.journal.audit("flights", what=(TAKEN,))) == 3


def test_what_stays_unknown_is_looked_for_for_an_hour_and_told_once(world: World) -> None:
    world.label([*world.serve(1), "never-captured"], 1)
    read = []
    for _ in range(20):
        report = take_scheduled(world.bench())
        assert report is not None
        read.append(report.read)
        world.clock.now += 300
    assert read == [2] * 13 + [0] * 7
    (line,) = world.journal.audit("flights", what=(TAKEN,))
    assert (line.details["stored"], line.details["unknown"]) == (1, 1)


def test_a_finished_file_is_remembered_however_much_came_after_it(world: World) -> None:
    world.label(world.serve(1), 1)
    take_scheduled(world.bench())
    with closing(Journal(world.settings.journal)) as journal, journal._engine.begin() as connection:
        line = {"time": 1.0, "endpoint": "flights", "release_id": "", "who": "labels", "what": TAKEN}
        details = [{**line, "details": {"state": f"other {n}", "unknown": 0}} for n in range(6_000)]
        connection.execute(sa.insert(AUDIT), details)
    report = take_scheduled(world.bench())
    assert report is not None
    assert report.read == 0


def test_labels_come_from_a_table_of_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, path=None, table="truth", database_env="TRUTH_DB", label="late")
    with pytest.raises(SetupError, match="TRUTH_DB, which is not set"):
        take_scheduled(world.bench())
    ids = world.serve(30)
    url = f"sqlite:///{tmp_path}/truth.db"
    engine = sa.create_engine(url)
    pd.DataFrame({"request_id": ids, "late": [1] * 30}).to_sql("truth", engine, index=False)
    engine.dispose()
    monkeypatch.setenv("TRUTH_DB", url)
    report = take_scheduled(world.bench())
    assert report is not None
    assert report.stored == 30


def test_harm_that_only_late_labels_show_goes_back(world: World) -> None:
    """The answers were wrong for ten minutes before anybody could know."""
    world.endpoint.behave("2", says(0.1))
    world.watched()
    ids = world.serve(150, answer=0.1)
    for _ in range(6):
        world.clock.now += 100
        world.seconds(2)
        assert world.look().step == "GO_ON", "nobody knows yet"
    take_file(world.bench(), world.label(ids, 1))
    world.seconds(5)
    report = world.look()
    assert report.step == "ROLL_BACK", report
    assert "quality: mean score 0.000 of 150 labelled answers" in report.reason
    assert world.serving() == ("1", 0)


def test_wrong_answers_of_both_versions_move_nothing(world: World) -> None:
    for version in ("1", "2"):
        world.endpoint.behave(version, says(0.1))
    world.watched()
    take_file(world.bench(), world.label(world.serve(150, answer=0.1), 1))
    world.seconds(5)
    report = world.look()
    assert (report.step, "both versions suffer" in report.reason) == ("ALERT", True), report
    assert world.serving() == ("2", 0)
    assert known_harm(world.bench(), world.bench().row(), since=0, until=9e9) is Harm.BOTH


def test_labels_that_prove_the_level_make_performance_known(world: World) -> None:
    world.watched()
    row, now = world.bench().row(), world.clock()
    ids = world.serve(400)
    take_file(world.bench(), world.label(ids[:150], 1))
    assert known_harm(world.bench(), row, since=now - 60, until=now + 60) is Harm.UNKNOWN, "too few"
    take_file(world.bench(), world.label(ids, 1, "more.csv"))
    assert known_harm(world.bench(), row, since=now - 60, until=now + 60) is Harm.NONE
    assert known_harm(world.bench(), row, since=now + 60, until=now + 120) is Harm.UNKNOWN, "another window"


def test_a_policy_without_labels_refuses(world: World) -> None:
    world.policy = world.policy.model_copy(update={"labels": None})
    with pytest.raises(Refused, match="no `labels` section"):
        take_file(world.bench(), Path("x.csv"))
