"""Drift of an endpoint, from captures to what follows: real captures, journal and Evidently, no servers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from configs.policy import Policy
from configs.settings import Settings
from evals.drift_decision import Harm
from serving.endpoint import Slot
from serving.errors import Refused
from serving.records import ReleaseRow, Stage
from tasks import drift, drift_actions
from tasks.bench import Bench
from tasks.drift import due_window, look_at_window, newest_window, past_windows, policy_of
from tasks.drift_actions import RETRAIN_EVENT, DriftReport, check_drift, table_rows
from tests.serving.capture.exchanges import record, recorder
from tests.tasks.doubles import HandClock, MemoryMessenger, MemoryRegistry

pytestmark = pytest.mark.slow

HOUR = 3600.0
START = 1_795_348_800.0  # a whole hour
ROWS = 1200


def people(count: int, seed: int, *, warmer: float = 0.0, braver: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"temp": rng.normal(60 + warmer, 10, count), "carrier": rng.choice(["AA", "UA", "DL"], count)}
    )
    return frame.assign(prediction=rng.beta(2, 5, count) + braver)


class MemoryDriftRuns:
    """MLflow as the drift check uses it."""

    def __init__(self) -> None:
        self.points: list[Any] = []
        self.artifacts: dict[str, str] = {}
        self.stored: dict[str, Path] = {}

    def open_run(self, endpoint: str, name: str, _tags: Any) -> str:
        return f"{endpoint}:{name}"

    def run_url(self, run_id: str) -> str:
        return f"http://mlflow.example/{run_id}"

    def log_points(self, _run_id: str, points: Any) -> None:
        self.points.extend(points)

    def log_text(self, _run_id: str, name: str, text: str) -> None:
        self.artifacts[name] = text

    def log_file(self, _run_id: str, path: Path, folder: str) -> None:
        self.artifacts[f"{folder}/{path.name}"] = path.read_text()

    def fetch(self, run_id: str, name: str, _folder: Path) -> Path | None:
        return self.stored.get(f"{run_id}/{name}")

    def fetch_dataset(self, run_id: str, context: str, _folder: Path) -> Path | None:
        return self.stored.get(f"{run_id}#{context}")

    def load_model(self, uri: str) -> Any:
        class Model:
            @staticmethod
            def predict(rows: pd.DataFrame) -> Any:
                if "carrier" not in rows:
                    raise KeyError(uri)
                return np.random.default_rng(0).beta(2, 5, len(rows))

        return Model()


class Station:
    """One endpoint whose version 1 has answered requests, hour by hour."""

    def __init__(self, folder: Path, **section: Any) -> None:
        self.folder = folder
        people(4000, 0).sample(frac=1, random_state=0).to_parquet(folder / "reference.parquet")
        values = {"reference": {"kind": "file", "path": "../reference.parquet"}, "window_s": HOUR}
        self.policy = Policy.model_validate(
            {
                "endpoint": "flights",
                "model": "late",
                "owner": "me@example.com",
                "evaluation": {
                    "data": "x.parquet",
                    "label": "late",
                    "task": "classification",
                    "metrics": [{"name": "f1"}],
                },
                "shadow": {"score_tolerance": 0.1},
                "drift": values | section,
            }
        )
        self.clock = HandClock(START + 30)
        self.runs = MemoryDriftRuns()
        self.registry = MemoryRegistry()
        self.messenger = MemoryMessenger()
        self.hours = 0
        self.bench().journal.create_endpoint("flights", now=START)
        self.bench().journal.change("flights", generation=0, now=START, blue_version="1")

    def bench(self) -> Bench:
        """A fresh process's bench."""
        settings = Settings(state_dir=self.folder / "state", policy_dir=self.folder / "policies")
        (self.folder / "policies").mkdir(exist_ok=True)
        doubles: Any = {"runs": self.runs, "registry": self.registry, "messenger": self.messenger}
        return Bench(self.policy, settings, clock=self.clock, **doubles)

    def hour(self, frame: pd.DataFrame, *, version: str = "1", status: int = 200) -> None:
        """One hour of requests; afterwards it is half a minute past the hour."""
        writing = recorder(
            self.folder / "state", captures_dir=self.captures, clock=lambda: self.clock() - 30, spool_dir=None
        )
        answers = frame.pop("prediction") if "prediction" in frame else None
        for number, row in enumerate(frame.to_dict(orient="records")):
            body = {"dataframe_records": [row]}
            said = {"predictions": [answers.iloc[number]]} if answers is not None else {"error": "x"}
            writing.offer(
                record(
                    number,
                    time=self.clock() - 30 + HOUR * number / len(frame),
                    request_id=f"{self.hours}-{version}-{number}".encode(),
                    version=version.encode(),
                    request=json.dumps(body).encode(),
                    response=json.dumps(said).encode(),
                    status=status,
                )
            )
        writing.close()

    def pass_hour(self) -> None:
        self.clock.now += HOUR
        self.hours += 1

    @property
    def captures(self) -> Path:
        return self.folder / "state" / "captures" / "flights"


@pytest.fixture
def station(tmp_path: Path) -> Station:
    return Station(tmp_path)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Prefect gets."""
    sent: list[Any] = []

    class Api:
        def call(self, method: str, path: str, body: Any, **_: Any) -> None:
            assert (method, path) == ("POST", "/events")
            sent.extend(body)

    monkeypatch.setattr(drift_actions, "prefect_api", lambda _settings: Api())
    return sent


def live(station: Station, **how: Any) -> Any:
    """An hour of traffic, and its check."""
    seed = station.hours + 1
    station.hour(people(ROWS, seed, **how))
    station.pass_hour()
    return check_drift(station.bench())


def test_a_quiet_window_passes_once_and_is_written_down(station: Station) -> None:
    report = live(station)
    assert report.window.verdict.outcome == "PASS"
    assert (report.window.requests, report.window.verdict.rows) == (ROWS, ROWS)
    assert report.done == ()
    assert due_window(station.bench()) is None
    assert check_drift(station.bench()) is None, "judged before"
    assert check_drift(station.bench(), again=True) is not None
    page = next(name for name in station.runs.artifacts if name.endswith("report.html"))
    assert "carrier" in station.runs.artifacts[page]
    names = {name for name, *_ in station.runs.points}
    assert {"drift/rows", "drift/alarms", "drift/input/temp", "drift/output/prediction"} <= names
    assert table_rows(report.window.verdict.checks)[0]["flagged"] == ""
    policy = policy_of(station.bench())
    assert len(past_windows(station.bench(), policy, ends_at=station.clock())) == 1, "the newest line counts"


def test_sustained_input_drift_asks_for_retraining_and_survives_restarts(
    station: Station, events: list[Any]
) -> None:
    """Each hour is judged by a fresh process: k of m lives in the trail."""
    decisions = [live(station, warmer=8).window.verdict for _ in range(3)]
    assert [verdict.outcome for verdict in decisions] == ["PASS", "FAIL", "FAIL"]
    assert [set(verdict.decision.actions) for verdict in decisions] == [
        {"nothing"},
        {"log"},
        {"log", "ask for retraining"},
    ]
    (event,) = events
    assert event["event"] == RETRAIN_EVENT
    assert event["resource"]["prefect.resource.id"] == "interlock.endpoint.flights"
    assert event["payload"]["columns"] == ["temp"]
    (trained,) = yaml.safe_load(Path("examples/flights/prefect.yaml").read_text())["deployments"]
    (trigger,) = trained["triggers"]
    named = set(re.findall(r"event\.payload\.(\w+)", yaml.safe_dump(trigger["parameters"])))
    assert {"window_from", "window_until"} <= named <= set(event["payload"])
    check_drift(station.bench(), again=True)
    assert len({sent["id"] for sent in events}) == 1, "the same window asks with the same id"
    assert "ask for retraining" not in live(station, warmer=8).window.verdict.decision.actions, "once a week"
    assert station.messenger.sent == []


def test_answers_that_move_alone_alert_a_person(station: Station) -> None:
    live(station, braver=0.2)
    report = live(station, braver=0.2)
    assert report.window.verdict.decision.row == "output drift alone"
    assert report.done == ("alerted",)
    (told,) = station.messenger.sent
    assert told.severity == "warning"
    assert "output prediction" in told.what
    assert told.next_step


def ramp(station: Station) -> ReleaseRow:
    """Version 2 is in its canary."""
    journal = station.bench().journal
    release = journal.add_release("flights", "2", champion="1", policy={}, now=START)
    journal.claim(release.id, "me", lease_s=9e6, now=START, flow_run_id="f")
    journal.update_release(release.id, "me", now=START, stage=Stage.CANARY.value)
    journal.change("flights", generation=0, now=START, green_version="2", release_id=release.id)
    return release


def test_a_running_ramp_is_held_and_stays_held(station: Station) -> None:
    journal, release = station.bench().journal, ramp(station)
    live(station, braver=0.2)
    report = live(station, braver=0.2)
    assert "holds at its present share" in report.done[0]
    held = journal.release(release.id)
    assert held is not None
    assert held.request == "pause"
    again = check_drift(station.bench(), again=True)
    assert again is not None
    assert again.done[0].endswith("is held already")
    assert len(station.messenger.sent) == 1
    assert station.bench().row().version_in(Slot.GREEN) == "2", "nothing was rolled back"


@pytest.mark.parametrize(
    ("harm", "row", "rolled_back"),
    [
        (Harm.NEW_VERSION_ONLY, "harm, only the new version", True),
        (Harm.BOTH, "harm, both versions", False),
        (Harm.NOT_COMPARED, "harm, previous version not compared", False),
    ],
)
def test_only_concurrent_evidence_rolls_back(
    station: Station,
    events: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    harm: Harm,
    row: str,
    rolled_back: bool,
) -> None:
    asked: list[Any] = []

    def roll_back(_bench: Bench, **how: Any) -> Any:
        asked.append(how)
        raise Refused("no previous version is known")

    monkeypatch.setattr(drift, "known_harm", lambda _bench, _row, **_window: harm)
    monkeypatch.setattr(drift_actions.rolling_back, "roll_back", roll_back)
    report = live(station)
    assert report.window.verdict.decision.row == row
    assert [how["serving"] for how in asked] == ["1"] * rolled_back
    assert station.messenger.sent[0].severity == "critical"
    if rolled_back:
        assert "the rollback did not happen: no previous version is known" in station.messenger.sent[0].what
    assert bool(events) == (harm is Harm.BOTH), "a new version is what helps where both suffer"


def test_actions_can_be_switched_off(tmp_path: Path, events: list[Any]) -> None:
    station = Station(tmp_path, actions=False)
    for _ in range(3):
        report = live(station, warmer=8)
    assert report.done == ("drift.actions is off; it would have been: ask for retraining",)
    assert events == []


def test_people_are_told_although_nothing_is_done_by_itself(tmp_path: Path) -> None:
    station = Station(tmp_path, actions=False)
    release = ramp(station)
    report = broken(station)
    off = "drift.actions is off; it would have been: hold the ramp"
    assert report.done == (off, "alerted")
    (told,) = station.messenger.sent
    assert (told.severity, told.what.endswith(off)) == ("critical", True)
    held = station.bench().journal.release(release.id)
    assert held is not None
    assert held.request == ""


def test_a_broken_upstream_schema_alerts_at_once(station: Station) -> None:
    """Strict replicas refuse: nothing is left to compare, and that is what is said."""
    report = broken(station)
    assert report.window.verdict.decision.row == "broken"
    (told,) = station.messenger.sent
    assert told.severity == "critical"
    assert told.numbers["refused/requests"] == pytest.approx(ROWS / (ROWS + 30))


def broken(station: Station) -> DriftReport:
    """An hour in which upstream left a column out of most requests, and its check."""
    station.hour(people(ROWS, 1)[["temp"]], status=400)
    station.hour(people(30, 2))
    station.pass_hour()
    report = check_drift(station.bench())
    assert report is not None
    return report


@pytest.mark.parametrize("is_over", [False, True])
def test_broken_data_blames_the_feature_code_of_what_answered_it(station: Station, is_over: bool) -> None:
    """Version 1 answered the window: it may be rolled back where a release made it, a candidate never."""
    station.registry.tags = {"1": {"features": "abc"}, "2": {"features": "def"}}
    if is_over:
        station.bench().journal.change(
            "flights", generation=0, now=START, green_version="2", keep_until=START + 9e6
        )
    else:
        ramp(station)
    decision = broken(station).window.verdict.decision
    assert ("roll back" in decision.actions) == is_over
    assert ("hold the ramp" in decision.actions) == (not is_over)
    assert "alert" in decision.actions


def test_too_little_traffic_is_inconclusive(station: Station) -> None:
    station.hour(people(300, 1))
    station.pass_hour()
    report = check_drift(station.bench())
    assert report is not None
    assert report.window.verdict.outcome == "INCONCLUSIVE"
    assert "300 rows in the window" in report.window.verdict.reason
    assert station.messenger.sent == []


def test_only_the_champions_captures_count(station: Station) -> None:
    station.hour(people(ROWS, 1))
    station.hour(people(ROWS, 2, warmer=30), version="2")
    station.pass_hour()
    window = look_at_window(station.bench(), newest_window(policy_of(station.bench()), station.clock()))
    assert (window.requests, window.verdict.outcome) == (ROWS, "PASS")
    assert window.verdict.flagged == ()


def test_the_season_is_the_reference_where_the_policy_says_so(tmp_path: Path) -> None:
    station = Station(tmp_path, reference={"kind": "season", "season_s": 2 * HOUR})
    station.hour(people(ROWS, 1, warmer=8))
    station.pass_hour()
    first = check_drift(station.bench())
    assert first is not None
    assert first.window.verdict.outcome == "INCONCLUSIVE"
    station.hour(people(ROWS, 2, warmer=30))
    station.pass_hour()
    station.hour(people(ROWS, 3, warmer=8))
    station.pass_hour()
    report = check_drift(station.bench())
    assert report is not None
    assert report.window.reference == "season 7200 s ago"
    assert report.window.verdict.flagged == (), "as warm as two hours ago; the hour between was not"


def test_the_training_data_of_the_versions_run_is_scored_and_kept(tmp_path: Path) -> None:
    station = Station(tmp_path, reference={"kind": "training"})
    station.hour(people(ROWS, 1))
    station.pass_hour()
    missing = check_drift(station.bench())
    assert missing is not None
    assert "has no training data to compare with" in missing.window.verdict.reason
    rows = people(3000, 9).drop(columns="prediction").assign(late=1)
    rows.to_parquet(tmp_path / "train.parquet")
    station.runs.stored["run-1#training"] = tmp_path / "train.parquet"
    station.registry.logged_by["1"] = "run-1"
    report = check_drift(station.bench(), again=True)
    assert report is not None
    assert report.window.verdict.outcome == "PASS"
    keys = {check.key for check in report.window.verdict.checks}
    assert "output/prediction" in keys, "the champion scored the reference"
    assert not any("late" in key for key in keys), "the label is no input"
    station.runs.stored.clear()
    assert check_drift(station.bench(), again=True).window.verdict.outcome == "PASS"  # type: ignore[union-attr]


def test_hidden_columns_are_not_missed(tmp_path: Path) -> None:
    station = Station(tmp_path)
    station.policy = station.policy.model_copy(
        update={"capture": station.policy.capture.model_copy(update={"drop": ("carrier",)})}
    )
    station.hour(people(ROWS, 1).drop(columns="carrier"))
    station.pass_hour()
    report = check_drift(station.bench())
    assert report is not None
    assert report.window.verdict.outcome == "PASS"
    assert not any(check.column == "carrier" for check in report.window.verdict.checks)


def test_an_endpoint_without_the_section_refuses(station: Station) -> None:
    station.policy = station.policy.model_copy(update={"drift": None})
    with pytest.raises(Refused, match="no `drift` section"):
        check_drift(station.bench())
