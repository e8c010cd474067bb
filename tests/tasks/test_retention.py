"""Old records go, a user is forgotten, and the evidence of releases stays. Real files, no servers."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from configs.policy import Policy
from configs.settings import Settings
from serving.capture.erasing import erase_users
from serving.capture.reader import compact, read_captures
from serving.capture.recorder import Recorder
from serving.capture.spool import read_exchanges
from serving.endpoint import Slot
from serving.gateway.access_log import AccessLog
from serving.gateway.identity import HMAC_CHARS, user_hmac, user_key
from serving.gateway.keys import Keys
from serving.gateway.log_erasing import erase_before
from serving.gateway.places import access_log_path
from serving.labels import LabelBook
from serving.slots import SlotFiles, SlotRecord
from tasks.bench import Bench
from tasks.labels import take_file
from tasks.retention import (
    DELETED,
    FORGOTTEN,
    forget_user,
    retain,
    retain_copies,
    retain_logs,
    retain_models,
)
from tasks.runs import TrackingRefused, TrackingUnavailable
from tasks.trail import DIFFERENCES, REPORT
from tests.serving.capture.exchanges import record, recorder
from tests.serving.gateway.test_access_log import line
from tests.tasks import test_transitions
from tests.tasks.doubles import HandClock

DAY = 86_400.0
NOW = 1_800_000_000.0
USERS = ("ann", "bob", "cem")
MADE = ("report.html", "evaluation.html", "evaluation-data.html", "decisions.json")


class MemoryReports:
    """The drift reports of MLflow."""

    def __init__(self) -> None:
        self.kept = ["drift/2026-11-22T08-00", "drift/2030-01-01T00-00", "drift/notes"]
        self.pages = {run: set(MADE) for run in ("old", "new", "alone")}
        self.texts = dict.fromkeys(["old", "new"], "")
        self.texts_asked: list[str] = []
        self.alone: dict[str, float] = {}
        self.asked: list[str] = []
        self.is_away = False

    def find_run(self, _endpoint: str, _name: str) -> str:
        return "run"

    def folders(self, _run: str, _folder: str) -> list[str]:
        return list(self.kept)

    def delete(self, run: str, path: str) -> bool:
        if self.is_away:
            raise TrackingUnavailable("away")
        if path.startswith("drift/"):
            self.kept.remove(path)
            return True
        if path in (REPORT, DIFFERENCES):
            (self.asked if path == REPORT else self.texts_asked).append(run)
            if run == "gone":
                raise TrackingRefused("no such run")
        if path == DIFFERENCES:
            return self.texts.pop(run, None) is not None
        was_there = path in self.pages.get(run, ())
        self.pages.get(run, set()).discard(path)
        return was_there

    def ended_runs(self, endpoint: str, names: str, *, since: float, before: float) -> list[str]:
        assert names == f"{endpoint}-v%-evaluation-%"
        return [run for run, at in self.alone.items() if since <= at < before]

    def fetch(self, run: str, path: str, folder: Path) -> Path | None:
        if self.is_away:
            raise TrackingUnavailable("away. Next: the same again")
        if run == "gone":
            raise TrackingRefused("no such run")
        if run not in self.texts:
            return None
        (folder / path).write_text(self.texts[run], encoding="utf-8")
        return folder / path

    def log_text(self, run: str, path: str, text: str) -> None:
        assert path == DIFFERENCES
        self.texts[run] = text

    def open_run(self, _endpoint: str, _name: str, _tags: Any) -> str:
        return "run"

    def log_points(self, _run: str, _points: Any) -> None:
        pass

    def run_url(self, _run: str) -> str:
        return ""


class Place:
    """An endpoint's records: compacted captures, live ones whose writer still runs, spool and access log."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(state_dir=folder / "state", policy_dir=folder / "policies")
        self.clock = HandClock(NOW)
        self.policy = Policy.model_validate({**test_transitions.POLICY.model_dump(), "labels": {}})
        self.runs = MemoryReports()
        self.key = user_key(self.settings)
        self.captures = self.settings.captures_dir / "flights"
        self.spool = self.settings.spool_dir / "flights" / "blue"
        self.spooled = read_exchanges(self.spool, None, 0)[1]
        self.old = self.write(NOW - 40 * DAY, "old")
        self.old.close()
        compact(self.captures, now=NOW)
        self.new = self.write(NOW - 60, "new")

    def bench(self) -> Bench:
        doubles: Any = {"runs": self.runs}
        return Bench(self.policy, self.settings, clock=self.clock, **doubles)

    def write(self, at: float, name: str, *, count: int = 30) -> Recorder:
        writing = recorder(
            self.captures, captures_dir=self.captures, spool_dir=self.spool, clock=lambda: at, replica=name
        )
        log = access_log_path(self.settings)
        log.parent.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            user = self.pseudonym(USERS[number % 3])
            moment, request_id = at + number / 1000, f"{name}-{number}"
            body = json.dumps({"predictions": [1]}).encode()
            writing.offer(
                record(number, time=moment, request_id=request_id.encode(), user=user.encode(), response=body)
            )
            with log.open("a") as file:
                file.write(line(id=request_id, user=user, t0=str(int(moment * 1e6))))
        writing.drain()
        return writing

    def pseudonym(self, user: str) -> str:
        return user_hmac(self.key, "acme", user)

    def users(self) -> dict[str, int]:
        counts = read_captures(self.captures)["user"].value_counts()
        return {user: int(counts.get(self.pseudonym(user), 0)) for user in USERS}

    def requests(self) -> pd.DataFrame:
        return AccessLog(access_log_path(self.settings), "flights").read("0:0").frame


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.new.close()


def test_a_user_is_forgotten_everywhere_while_requests_are_written(place: Place, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    pd.DataFrame({"request_id": ["new-0", "new-1", "old-0"], "label": 1}).to_csv(labels, index=False)
    assert take_file(place.bench(), labels).stored == 3
    assert place.users() == {"ann": 20, "bob": 20, "cem": 20}
    done = forget_user(place.bench(), "ann", tenant="acme", who="me")
    assert (done.requests, done.labels, done.log_lines, done.spooled) == (20, 2, 20, 10), (
        "the old spool is gone"
    )
    assert place.users() == {"ann": 0, "bob": 20, "cem": 20}
    ann = place.pseudonym("ann").encode()
    files = [path for path in place.settings.state.rglob("*") if path.is_file()]
    word = re.compile(rb"(?<![a-z])ann(?![a-z])")
    naming = [one.name for one in files if ann in (held := one.read_bytes()) or word.search(held)]
    assert naming == [], "no file of the stack names this user any more"
    assert len(place.requests()) == 60, "every request is still counted"
    assert set(place.requests()["user"]) == {"0" * HMAC_CHARS, place.pseudonym("bob"), place.pseudonym("cem")}
    again = forget_user(place.bench(), "ann", tenant="acme", who="me")
    assert (again.requests, again.labels, again.log_lines, again.fingerprint) == (0, 0, 0, done.fingerprint)
    lines = place.bench().journal.audit("flights", what=(FORGOTTEN,))
    assert [entry.details["requests"] for entry in lines] == [0, 20]


def test_a_user_is_looked_for_under_every_tenant_that_left_a_trace(place: Place, tmp_path: Path) -> None:
    """A tenant of tokens has no key, and one whose key was revoked has none any more."""
    assert Keys(place.settings).every() == []
    other = user_hmac(place.key, "of-a-token", "ann")
    place.new.offer(record(1, time=NOW, request_id=b"token", user=other.encode(), tenant=b"of-a-token"))
    place.new.drain()
    logged = user_hmac(place.key, "not-captured", "ann")
    with access_log_path(place.settings).open("a") as log:
        log.write(line(id="unseen", user=logged, tenant="not-captured"))
        log.write(line(id="else", user=logged, tenant="elsewhere", endpoint="others"))
    done = forget_user(place.bench(), "ann", who="me")
    assert (done.requests, done.log_lines) == (21, 21)
    assert place.users()["ann"] == 0
    (told,) = place.bench().journal.audit("flights", what=(FORGOTTEN,))
    assert told.details["tenants"] == 4, "acme, of-a-token, not-captured, public"


def test_the_writer_goes_on_after_a_user_was_forgotten(place: Place) -> None:
    forget_user(place.bench(), "ann", tenant="acme", who="me")
    place.new.offer(record(1, time=NOW, request_id=b"later", user=place.pseudonym("bob").encode()))
    place.new.drain()
    place.new.close()
    assert place.users()["bob"] == 21
    exchanges, _ = read_exchanges(place.spool, place.spooled, 1000)
    assert {one.request_id for one in exchanges} >= {"later", "new-1"}
    assert "new-0" not in {one.request_id for one in exchanges}
    assert compact(place.captures, now=NOW + DAY).rows == 21
    assert place.users() == {"ann": 0, "bob": 21, "cem": 20}


def test_requests_that_name_no_user_stay(place: Place) -> None:
    place.new.offer(record(1, time=NOW, request_id=b"nobody", user=b""))
    place.new.close()
    compact(place.captures, now=NOW + DAY)
    assert erase_users(place.captures, [""]).rows == 0
    erase_users(place.captures, [place.pseudonym(user) for user in USERS])
    assert read_captures(place.captures)["request_id"].tolist() == ["nobody"]


def test_what_is_too_old_goes_with_a_line_in_the_trail(place: Place) -> None:
    with closing(LabelBook(place.settings.journal)) as book:
        first = retain(place.bench())
        assert (first.capture_files, first.reports) == (1, 0)
        assert set(read_captures(place.captures)["request_id"].str[:3]) == {"new"}
        place.clock.now += 400 * DAY
        second = retain(place.bench())
        assert second.reports == 1
        assert place.runs.kept == ["drift/2030-01-01T00-00", "drift/notes"]
        assert len(read_captures(place.captures)) == 0
        assert book.newest("flights") == 0
    assert len(place.bench().journal.audit("flights", what=(DELETED,))) == 2
    assert retain(place.bench()).words == "flights: nothing was too old"


def test_old_lines_of_the_access_log_become_a_hole_and_cursors_stay_true(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with path.open("w") as log:
        for number in range(20_000):
            log.write(line(id=f"r{number}", t0=str(int((NOW + number) * 1e6))))
    whole = AccessLog(path, "flights").read("0:0")
    middle = f"{path.stat().st_ino}:{path.read_bytes().index(b'r15000')}"
    before, size = path.stat().st_blocks, path.stat().st_size
    assert erase_before(path, NOW + 10_000) > 0
    assert erase_before(path, NOW + 10_000) == 0, "safe to repeat"
    left = AccessLog(path, "flights").read("0:0")
    assert left.frame["request_id"].tolist() == whole.frame["request_id"].tolist()[10_000:]
    assert (left.cursor, left.malformed) == (whole.cursor, 0)
    assert AccessLog(path, "flights").read(middle).frame["request_id"].iloc[0] == "r15001"
    assert path.stat().st_size == size, "HAProxy appends where it did"
    assert path.stat().st_blocks < 0.7 * before, "and the disk has its blocks back"
    with path.open("a") as log:
        log.write(line(id="next"))
    assert AccessLog(path, "flights").read(left.cursor).frame["request_id"].tolist() == ["next"]


@pytest.mark.parametrize("cut", [-1, 0, 1, 59, 60, 61])
def test_no_line_is_torn_wherever_the_cut_is(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "access.log"
    path.write_text("".join(line(id=f"r{n}", t0=str(int((NOW + n) * 1e6))) for n in range(60)))
    erase_before(path, NOW + cut)
    left = AccessLog(path, "flights").read("0:0")
    assert left.malformed == 0
    expected = [f"r{n}" for n in range(60) if n >= cut]
    assert left.frame["request_id"].tolist() in (expected, [f"r{n}" for n in range(60)][-1:])


def test_logs_stay_as_long_as_any_policy_says(place: Place) -> None:
    place.settings.policy_dir.mkdir()
    policies = {"flights": {"access_log_s": 30 * DAY}, "others": {"access_log_s": 50 * DAY, "logs_s": DAY}}
    for name, retention in policies.items():
        values = place.policy.model_dump(mode="json") | {"endpoint": name, "retention": retention}
        place.settings.policy_path(name).write_text(json.dumps(values))
    place.settings.logs_dir.mkdir(parents=True)
    for name, age in (("dead.log", 20 * DAY), ("alive.log", 0.0)):
        (place.settings.logs_dir / name).write_text("x")
        os.utime(place.settings.logs_dir / name, (NOW - age, NOW - age))
    retain_logs(place.settings, list(policies), now=NOW)
    assert len(place.requests()) == 60, "others keeps them for 50 days"
    assert [path.name for path in place.settings.logs_dir.iterdir()] == ["alive.log"]
    retain_logs(place.settings, ["flights"], now=NOW)
    assert set(place.requests()["request_id"].str[:3]) == {"new"}
    place.settings.policy_path("broken").write_text("endpoint: [")
    assert "kept" in retain_logs(place.settings, ["flights", "broken"], now=NOW + 900 * DAY)
    assert len(place.requests()) == 30


def test_cached_copies_of_data_go_as_captures_do_with_a_line_in_the_trail(place: Place) -> None:
    place.settings.policy_dir.mkdir()
    values = place.policy.model_dump(mode="json")
    place.settings.policy_path("flights").write_text(json.dumps(values))
    copies = place.settings.state / "cache"
    for name, age in (("references/old.parquet", 40), ("scores/old.npy", 40), ("scores/new.npy", 1)):
        (copies / name).parent.mkdir(parents=True, exist_ok=True)
        (copies / name).write_text("x")
        os.utime(copies / name, (NOW - age * DAY, NOW - age * DAY))
    assert retain_copies(place.settings, ["flights"], now=NOW) == "cached copies: 2 were too old"
    assert [path.name for path in copies.glob("*/*")] == ["new.npy"]
    (told,) = place.bench().journal.audit("", what=(DELETED,))
    assert told.details == {"cached_copies": 2}
    for_ever = values | {"retention": {"captures_s": None}}
    place.settings.policy_path("flights").write_text(json.dumps(for_ever))
    assert "kept" in retain_copies(place.settings, ["flights"], now=NOW + 900 * DAY)
    assert (copies / "scores" / "new.npy").exists()


def test_a_large_log_of_a_program_that_runs_keeps_its_end(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    settings.logs_dir.mkdir(parents=True)
    with (settings.logs_dir / "large.log").open("wb") as log:
        log.truncate(60_000_000)
    retain_logs(settings, [], now=NOW)
    kept = {path.name: path.stat().st_size for path in settings.logs_dir.iterdir()}
    assert kept == {"large.log": 0, "large.log.1": 50_000_000}


def test_models_that_no_slot_holds_go_with_a_line_in_the_trail(place: Place) -> None:
    place.settings.policy_dir.mkdir()
    for name, kept_s in (("flights", 2 * DAY), ("others", 20 * DAY)):
        values = place.policy.model_dump(mode="json") | {"endpoint": name, "retention": {"models_s": kept_s}}
        place.settings.policy_path(name).write_text(json.dumps(values))
    cache = place.settings.state / "models"
    weights = "weights-" + hashlib.sha256(b"s3://bucket/llama").hexdigest()[:32]
    for name in ("m-1", "m-2", weights):
        (cache / name).mkdir(parents=True)
    (cache / "m-1" / "MLmodel").write_text("metadata: {interlock: {weights: 's3://bucket/llama'}}")
    (cache / ".note.json").write_text(json.dumps({"uri": "models:/late/7", "key": "m-1"}))
    for path in cache.iterdir():
        os.utime(path, (NOW - 10 * DAY, NOW - 10 * DAY))
    record = SlotRecord("elsewhere", Slot.BLUE, "7", "models:/late/7", ())
    SlotFiles(place.settings).write(record)

    def left(names: list[str], now: float) -> set[str]:
        retain_models(place.settings, names, now=now)
        return {path.name for path in cache.iterdir() if path.is_dir()}

    assert left(["flights", "others"], NOW) == {"m-1", "m-2", weights}, "others keeps them for 20 days"
    assert left(["flights"], NOW) == {"m-1", weights}, "a slot of any endpoint holds a model and its weights"
    (trail,) = place.bench().journal.audit("", what=(DELETED,))
    assert trail.details["models"] == ["m-2"]
    SlotFiles(place.settings).delete("elsewhere", Slot.BLUE)
    assert left(["flights"], NOW + DAY) == {"m-1", weights}, "its time begins when no slot holds it"
    assert left(["flights"], NOW + 3 * DAY) == set()
    (cache / "m-9").mkdir()
    place.settings.policy_path("broken").write_text("endpoint: [")
    assert left(["flights", "broken"], NOW + 900 * DAY) == {"m-9"}


def test_a_release_under_way_keeps_its_lines(place: Place) -> None:
    place.settings.policy_dir.mkdir()
    place.settings.policy_path("flights").write_text(json.dumps(place.policy.model_dump(mode="json")))
    place.bench().journal.add_release("flights", "2", champion="1", policy={}, now=NOW - 50 * DAY)
    retain_logs(place.settings, ["flights"], now=NOW)
    assert len(place.requests()) == 60


def test_a_log_that_cannot_be_cut_keeps_nothing_else_from_going(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, say: there the rest is what makes room."""
    place.settings.policy_dir.mkdir()
    place.settings.policy_path("flights").write_text(json.dumps(place.policy.model_dump(mode="json")))
    place.settings.logs_dir.mkdir(parents=True, exist_ok=True)
    (place.settings.logs_dir / "large.log").write_text("x")

    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.retention.bound_log", full)
    retain_logs(place.settings, ["flights"], now=NOW)
    assert set(place.requests()["request_id"].str[:3]) == {"new"}
