"""The journal's fences: what a stale process asks for changes nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from serving.endpoint import Slot
from serving.errors import Fenced, PlatformUnavailable, Refused, SetupError
from serving.journal import Journal
from serving.records import LookRow, ReleaseState, Stage


@pytest.fixture
def journal(journal_url: str) -> Generator[Journal]:
    with closing(Journal(journal_url)) as made:
        yield made


def open_release(journal: Journal, version: str = "2", now: float = 100.0):
    return journal.add_release("flights", version, champion="1", policy={}, now=now)


def test_an_endpoint_begins_empty_and_is_made_once(journal: Journal) -> None:
    first = journal.create_endpoint("flights", now=1.0)
    assert journal.create_endpoint("flights", now=2.0) == first
    assert (first.generation, first.champion, first.other_version) == (0, "", "")
    assert first.default is Slot.BLUE


def test_a_change_decided_under_an_older_generation_is_fenced(journal: Journal) -> None:
    journal.create_endpoint("flights", now=1.0)
    row = journal.change("flights", generation=0, new_generation=1, now=2.0, blue_version="1")
    assert (row.generation, row.champion) == (1, "1")
    with pytest.raises(Fenced, match="generation 1"):
        journal.change("flights", generation=0, now=3.0, share_bp=500)
    after = journal.endpoint("flights")
    assert after is not None
    assert after.share_bp == 0


def test_of_many_writers_of_one_generation_exactly_one_wins(journal: Journal) -> None:
    journal.create_endpoint("flights", now=1.0)
    won: list[int] = []
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        barrier.wait()
        try:
            journal.change("flights", generation=0, new_generation=1, now=2.0, blue_version=str(number))
        except Fenced:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    row = journal.endpoint("flights")
    assert row is not None
    assert row.blue_version == str(won[0])


def test_a_second_release_is_refused_with_the_first_ones_name(journal: Journal) -> None:
    first = open_release(journal)
    with pytest.raises(Refused, match=first.id):
        open_release(journal, "3")


def test_a_claim_excludes_others_until_it_runs_out(journal: Journal) -> None:
    release = open_release(journal)
    journal.claim(release.id, "one", lease_s=30, now=100, flow_run_id="a")
    with pytest.raises(Refused, match="flow run a"):
        journal.claim(release.id, "two", lease_s=30, now=129, flow_run_id="b")
    taken = journal.claim(release.id, "two", lease_s=30, now=131, flow_run_id="b")
    assert taken.owner == "two"
    with pytest.raises(Fenced):
        journal.renew(release.id, "one", lease_s=30, now=132)


def test_a_claim_that_ran_out_cannot_be_renewed_even_if_nobody_took_it(journal: Journal) -> None:
    release = open_release(journal)
    journal.claim(release.id, "one", lease_s=30, now=100, flow_run_id="a")
    with pytest.raises(Fenced):
        journal.update_release(release.id, "one", now=131, stage=Stage.CANARY.value)
    found = journal.release(release.id)
    assert found is not None
    assert found.stage is Stage.EVALUATE


def test_freeing_a_dead_owner_lets_the_next_one_in_at_once(journal: Journal) -> None:
    release = open_release(journal)
    journal.claim(release.id, "one", lease_s=30, now=100, flow_run_id="a")
    journal.free(release.id, "somebody else")
    with pytest.raises(Refused):
        journal.claim(release.id, "two", lease_s=30, now=101, flow_run_id="b")
    journal.free(release.id, "one")
    assert journal.claim(release.id, "two", lease_s=30, now=101, flow_run_id="b").owner == "two"


def test_a_final_state_stays_except_that_a_promotion_can_be_rolled_back(journal: Journal) -> None:
    release = open_release(journal)
    journal.end_release(release.id, state=ReleaseState.REJECTED, reason="bad", now=101)
    still = journal.end_release(release.id, state=ReleaseState.INTERRUPTED, reason="late", now=102)
    assert (still.state, still.reason) == (ReleaseState.REJECTED, "bad")
    with pytest.raises(Refused):
        journal.claim(release.id, "one", lease_s=30, now=103, flow_run_id="a")

    second = open_release(journal, "3", now=104)
    journal.end_release(second.id, state=ReleaseState.PROMOTED, reason="good", now=105)
    undone = journal.end_release(second.id, state=ReleaseState.ROLLED_BACK, reason="harm", now=106)
    assert undone.state is ReleaseState.ROLLED_BACK


def test_each_attempt_has_an_id_of_its_own(journal: Journal) -> None:
    first = open_release(journal)
    journal.end_release(first.id, state=ReleaseState.ABORTED, reason="", now=101)
    assert open_release(journal, now=102).id == "flights-v2-2"


def test_a_look_is_stored_once(journal: Journal) -> None:
    look = LookRow("r", "canary", 1, 100.0, "0", "10", {"counts": [1, 2]})
    journal.add_look(look)
    journal.add_look(LookRow("r", "canary", 1, 200.0, "0", "10", {"counts": [9, 9]}))
    with pytest.raises(Fenced):
        journal.add_look(LookRow("r", "canary", 1, 200.0, "0", "99", {"counts": [9, 9]}))
    assert journal.looks("r", "canary") == [look]


def test_of_two_runs_that_read_the_same_step_one_stores_the_next(journal: Journal) -> None:
    assert journal.state("flights", "watch") is None
    first = journal.put_state("flights", "watch", {"seen": 1}, after=0, now=100)
    with pytest.raises(Fenced, match="step 1"):
        journal.put_state("flights", "watch", {"seen": 9}, after=0, now=100)
    assert journal.put_state("flights", "watch", {"seen": 2}, after=first.number, now=101).number == 2
    with pytest.raises(Fenced, match="step 2"):
        journal.put_state("flights", "watch", {"seen": 9}, after=first.number, now=102)
    kept = journal.state("flights", "watch")
    assert kept is not None
    assert (kept.number, kept.time, kept.value) == (2, 101, {"seen": 2})
    assert journal.state("other", "watch") is None


def test_the_trail_can_be_asked_for_one_kind_of_line(journal: Journal) -> None:
    journal.record("flights", "claimed", who="a", now=1)
    journal.record("flights", "signature", who="a", now=2, version="3")
    journal.record("flights", "claimed", who="a", now=3)
    (only,) = journal.audit("flights", what=("signature",))
    assert only.details == {"version": "3"}


def test_lines_are_found_by_a_detail_in_their_order(journal: Journal) -> None:
    for number in range(1200):
        journal.record("flights", "taken", who="a", now=number, state=f"file {number % 600}")
    journal.record("flights", "other", who="a", now=1, state="file 1")
    journal.record("elsewhere", "taken", who="a", now=1, state="file 1")
    found = journal.audit_of("flights", "taken", "state", [f"file {number}" for number in range(1, 599)])
    assert len(found) == 1196
    assert [line.time for line in found if line.details["state"] == "file 7"] == [7, 607]


def test_of_two_lines_alike_one_is_written(journal: Journal) -> None:
    def tell(now: float, severity: str) -> bool:
        unless = {"key": ("a",), "severity": (severity,)}
        return journal.record_once(
            "flights", "alert", since=0.0, unless=unless, who="x", now=now, key="a", severity=severity
        )

    assert [tell(1, "info"), tell(2, "info"), tell(3, "critical"), tell(4, "critical")] == [True, False] * 2


def test_what_is_kept_of_an_endpoint_and_a_release_comes_back_as_it_was(journal: Journal) -> None:
    journal.create_endpoint("flights", now=1_800_000_000.123456)
    intent = {"kind": "promote", "numbers": [1.5, None, True], "text": "\u00fc"}
    row = journal.change("flights", generation=0, now=1_800_000_001.654321, intent=intent, share_bp=2500)
    assert (row.intent, row.share_bp, row.updated_at) == (intent, 2500, 1_800_000_001.654321)
    assert journal.change("flights", generation=0, now=2.0, intent=None).intent is None
    release = journal.add_release("flights", "3+p2", champion="1", policy={"a": {"b": [1]}}, now=3.5)
    claimed = journal.claim(release.id, "me", lease_s=30, now=4, flow_run_id="f" * 36)
    kept = journal.update_release(claimed.id, "me", now=5, verdicts={"shadow": {"outcome": "PASS"}})
    assert (kept.policy, kept.verdicts) == ({"a": {"b": [1]}}, {"shadow": {"outcome": "PASS"}})
    assert [one.id for one in journal.releases("flights", version="3+p2")] == [release.id]


def test_a_database_that_cannot_be_opened_is_named_with_the_next_step(tmp_path: Path) -> None:
    folder = tmp_path / "journal.db"
    folder.mkdir()
    with pytest.raises(PlatformUnavailable, match="Next: check its disk"):
        Journal(f"sqlite:///{folder}")


@pytest.mark.parametrize(
    "url",
    [
        "no url at all",
        "postgresql://user:secret@127.0.0.1:x/db",
        "nosuch://user:secret@127.0.0.1/db",
        "postgresql+nosuch://user:secret@127.0.0.1/db",
        "postgresql+asyncpg_of_nobody://user:secret@127.0.0.1/db",
    ],
)
def test_a_url_that_names_no_database_says_how_one_looks(url: str) -> None:
    with pytest.raises(SetupError, match=r"Next: sqlite:.*postgresql\+psycopg://.*`postgres`") as refused:
        Journal(url)
    assert "secret" not in str(refused.value)


def test_a_driver_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(SetupError, match=r"no driver for the journal .*extra `postgres`"):
        Journal("postgresql://user@127.0.0.1/db")


def test_a_file_that_is_no_database_is_named_with_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_text("no database " * 100)
    with pytest.raises(SetupError, match=r"cannot be read: .*not a database. Next: put a copy"):
        Journal(f"sqlite:///{path}")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="no folder for the journal"):
        Journal(f"sqlite:///{tmp_path}/file/deep/journal.db")
