"""Pages in MLflow go with their time, and a user is taken out of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.text_shadow import TextShadow
from serving.records import ReleaseRow, ReleaseState
from tasks.differences import Difference, write_page
from tasks.retention import FORGOTTEN, forget_user, retain
from tasks.runs import Runs, TrackingUnavailable
from tests.tasks.test_retention import DAY, MADE, NOW, Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.new.close()


def ended(place: Place, version: str, run_id: str, at: float, *, took_s: float = 60) -> ReleaseRow:
    """A release, whose shadow compared texts, that ended at a moment."""
    journal = place.bench().journal
    policy = {"shadow": {"text": {}}}
    release = journal.add_release("flights", version, champion="1", policy=policy, now=at - took_s)
    journal.claim(release.id, "me", lease_s=60, now=at - 60, flow_run_id=run_id)
    journal.update_release(release.id, "me", now=at - 60, mlflow_run_id=run_id)
    journal.end_release(release.id, state=ReleaseState.REJECTED, reason="bad", now=at)
    return next(one for one in journal.releases("flights") if one.id == release.id)


def shows(release: ReleaseRow, *request_ids: str) -> str:
    """A page of differences with these requests."""
    differences = [Difference(False, 0.5, one, f"asked {one}", "ours", "theirs", "") for one in request_ids]
    return write_page(release, TextShadow(), "full", differences)


def test_a_user_is_taken_out_of_the_shadows_pages(place: Place) -> None:
    """The users of new-0, new-1, new-2, ... are ann, bob, cem, and so on."""
    mixed = ended(place, "2", "mixed", NOW - DAY)
    hers = ended(place, "3", "hers", NOW - 2 * DAY)
    others = ended(place, "4", "others", NOW - 3 * DAY)
    ended(place, "5", "gone", NOW - 4 * DAY)
    ended(place, "6", "without", NOW - 5 * DAY)
    place.runs.texts = {
        "mixed": shows(mixed, "new-0", "new-1"),
        "hers": shows(hers, "new-3"),
        "others": shows(others, "new-2"),
    }
    before = dict(place.runs.texts)
    place.runs.is_away = True
    with pytest.raises(TrackingUnavailable, match=r"but for the shadow's pages: away. Next"):
        forget_user(place.bench(), "ann", tenant="acme", who="me")
    assert place.users()["ann"] == 0
    assert place.runs.texts == before
    place.runs.is_away = False
    assert forget_user(place.bench(), "ann", tenant="acme", who="me").pages == 2, "what was left is done now"
    assert set(place.runs.texts) == {"mixed", "others"}
    assert "asked new-1" in place.runs.texts["mixed"]
    assert "new-0" not in place.runs.texts["mixed"]
    assert place.runs.texts["others"] == before["others"]
    assert forget_user(place.bench(), "ann", tenant="acme", who="me").pages == 0
    told = place.bench().journal.audit("flights", what=(FORGOTTEN,))
    assert [(one.details["pages"], "pages_left" in one.details) for one in reversed(told)] == [
        (0, True),
        (2, False),
        (0, False),
    ]


def test_pages_go_before_the_last_trace_of_whose_requests_they_show(place: Place) -> None:
    """A release of 20 days: its oldest lines of the log go 30 days after it began, not after it ended."""
    place.runs.texts = {"long": ""}
    ended(place, "2", "long", NOW - 11 * DAY, took_s=20 * DAY)
    assert retain(place.bench()).reports == 1
    assert place.runs.texts == {}


def test_one_that_ended_after_others_of_its_time_is_not_forgotten(place: Place) -> None:
    place.runs.texts = {"old": "", "late": ""}
    ended(place, "2", "old", NOW - 40 * DAY)
    assert retain(place.bench()).reports == 1
    ended(place, "3", "late", NOW + DAY, took_s=35 * DAY)
    place.clock.now += 2 * DAY
    assert retain(place.bench()).reports == 1
    assert place.runs.texts_asked == ["old", "late"]


def test_pages_of_releases_and_evaluations_go_as_reports_do_and_are_asked_for_once(place: Place) -> None:
    ended(place, "2", "old", NOW - 500 * DAY)
    ended(place, "3", "gone", NOW - 400 * DAY)
    ended(place, "4", "new", NOW - DAY)
    place.runs.alone["alone"] = NOW - 450 * DAY
    place.runs.is_away = True
    assert retain(place.bench()).reports == 0
    place.runs.is_away = False
    assert retain(place.bench()).reports == 7
    kept = {"decisions.json"}
    assert place.runs.pages == {"old": kept, "alone": kept, "new": set(MADE)}
    assert place.runs.texts == {"new": ""}
    assert place.runs.asked == ["gone", "old", "alone"]
    assert retain(place.bench()).reports == 0
    assert place.runs.asked == ["gone", "old", "alone"], "what was deleted is not asked for again"
    place.clock.now += 370 * DAY
    retain(place.bench())
    assert place.runs.pages["new"] == kept
    assert place.runs.texts == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own, of its client and its database
def test_evaluations_without_a_release_are_found_in_mlflow_by_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    runs = Runs(uri)
    ids = {}
    for name in ("flights-v1-1", "flights-v1-evaluation-20260101T000000", "flights-v2-evaluation-running"):
        ids[name] = runs.open_run("flights", name, {})
        if "running" not in name:
            runs.close_run(ids[name], status="FINISHED", tags={})
    runs.log_text(ids["flights-v1-evaluation-20260101T000000"], "evaluation.html", "<p>page</p>")
    wanted = "flights-v%-evaluation-%"
    now = time.time()
    assert runs.ended_runs("flights", wanted, since=0, before=now - 3600) == []
    found = runs.ended_runs("flights", wanted, since=0, before=now + 60)
    assert found == [ids["flights-v1-evaluation-20260101T000000"]]
    assert runs.ended_runs("nowhere", wanted, since=0, before=now) == []
    assert [runs.delete(found[0], "evaluation.html") for _ in range(2)] == [True, False]
