"""What must hold before traffic returns to the previous version, and what a rollback says it did."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from flows.cli_watch import rollback_words
from serving.endpoint import Reply, Slot
from serving.errors import Fenced
from tasks import rolling_back, sweeping, transitions
from tasks.previous import ClientBreaking, PreviousUnhealthy
from tasks.signatures import client_break, note_signature
from tests.tasks.doubles import Killed
from tests.tasks.test_watching import Model, World, cold, failing


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path).watched()


def roll_back(world: World, **more: object) -> rolling_back.RollbackReport:
    return rolling_back.roll_back(world.bench(), who="me", reason="complaints", **more)  # type: ignore[arg-type]


def test_a_warm_previous_version_is_proven_by_recent_requests(world: World) -> None:
    world.seconds(5)
    report = roll_back(world)
    assert report.proof == "1 of 1 replicas healthy, answered 5 of 5 recent requests"
    assert (report.cold_s, report.who, report.reason) == (0, "me", "complaints")


def test_a_previous_version_that_answers_nothing_stays_out_and_a_person_is_told(world: World) -> None:
    world.seconds(5)
    world.endpoint.behave("1", failing(1.0))
    with pytest.raises(
        PreviousUnhealthy, match=r"answers none of 5 recent requests .status 500.*traffic stays"
    ):
        roll_back(world)
    assert world.serving() == ("2", 0)
    (alert,) = world.alerts()
    assert "answers none of 5 recent requests" in alert
    world.consistent()


def test_whoever_forces_it_goes_to_a_version_that_answers_nothing(world: World) -> None:
    world.seconds(5)
    world.endpoint.behave("1", failing(1.0))
    report = roll_back(world, force=True)
    assert (report.now, report.proof) == ("1", "1 of 1 replicas healthy")
    world.consistent()


def test_a_slow_previous_version_is_good_enough_for_an_emergency(world: World) -> None:
    world.seconds(5)
    world.endpoint.behave("1", lambda _: Reply(200, b"1", 60_000.0))
    assert "answered 0 of 5 recent requests, 5 take longer than 2 s" in roll_back(world).proof


def test_the_proof_waits_for_all_requests_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.seconds(5)
    monkeypatch.setattr("tasks.previous._PROOF_S", 1.0)
    over = threading.Event()
    quick = iter([True])

    def hangs_but_once(_: bytes) -> Reply:
        if not next(quick, False):
            over.wait(60)
        return Reply(200, b"1", 1.0)

    world.endpoint.behave("1", hangs_but_once)
    report = roll_back(world)
    over.set()
    assert "answered 1 of 5 recent requests, 4 take longer than 1 s" in report.proof


def test_a_previous_version_that_answers_some_is_good_enough_for_an_emergency(world: World) -> None:
    world.seconds(5)
    answers = iter([500, 500, 500, 500, 200])
    world.endpoint.behave("1", lambda _: Reply(next(answers), b"", 1.0))
    assert "answered 1 of 5" in roll_back(world).proof


def test_a_previous_version_without_a_live_replica_stays_out(world: World) -> None:
    world.endpoint.sicken("1")
    with pytest.raises(PreviousUnhealthy, match="1 of 1 replicas are down"):
        roll_back(world)
    assert world.serving() == ("2", 0)


def test_without_recent_requests_the_platforms_word_has_to_do(tmp_path: Path) -> None:
    """The watch never ran here."""
    assert roll_back(World(tmp_path)).proof == "1 of 1 replicas healthy"


def test_a_cold_start_is_timed_and_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cold(world)
    deploy = world.endpoint.deploy

    def slowly(*arguments: object, **named: object) -> None:
        world.clock.now += 12.5
        deploy(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(world.endpoint, "deploy", slowly)
    report = roll_back(world)
    assert report.cold_s == 12.5
    assert report.started_cold
    assert report.traffic_ms < 1000, "the start is not part of the move"
    assert "after a cold start of 12.5 s" in report.message


def test_a_cold_version_that_does_not_start_leaves_traffic_alone_and_is_told(world: World) -> None:
    cold(world)
    world.endpoint.break_start("1")
    with pytest.raises(PreviousUnhealthy, match="does not start, so traffic stays on version 2"):
        roll_back(world)
    assert world.serving() == ("2", 0)
    assert len(world.alerts()) == 1
    world.consistent()


def test_a_language_model_is_asked_for_one_token_or_else_for_all(tmp_path: Path) -> None:
    world = World(tmp_path)
    asked: list[dict[str, object]] = []

    def thinks(body: bytes) -> Reply:
        """As models do that refuse so short an answer."""
        asked.append(json.loads(body))
        return Reply(400 if asked[-1].get("max_tokens") == 1 else 200, b"{}", 1.0)

    world.endpoint.behave("1", thinks)
    prompt = {"messages": [], "stream": True, "stream_options": {}, "max_completion_tokens": 9000}
    world.look()
    world.endpoint.send(json.dumps(prompt).encode(), path="/v1/chat/completions")
    assert "answered 1 of 1" in roll_back(world).proof
    assert asked == [{"messages": [], "max_tokens": 1}, {"messages": [], "max_completion_tokens": 9000}]


def test_clients_are_not_broken_unless_somebody_forces_it(world: World) -> None:
    note_signature(world.bench(), "r", "1", Model(["a", "b"]))
    note_signature(world.bench(), "r", "2", Model(["a"]))
    with pytest.raises(ClientBreaking, match=r"needs the input column 'b'.*--force"):
        roll_back(world)
    assert world.serving() == ("2", 0)
    assert roll_back(world, force=True).now == "1"
    world.consistent()


@pytest.mark.parametrize(
    ("serving", "other", "words"),
    [
        (Model(["a", "b"]), Model(["a"]), ""),
        (Model(["a"]), Model(["a"]), ""),
        (Model(["a"], "long"), Model(["a"], "double"), ""),
        (Model(["a"], "double"), Model(["a"], "long"), "takes the input column 'a' as long, not as double"),
        (Model(["a"]), Model(["a"], output="string"), "answers"),
        (Model(["a"]), object(), ""),
    ],
    ids=["fewer", "same", "wider", "narrower", "other answer", "unknown"],
)
def test_what_clients_would_notice(world: World, serving: object, other: object, words: str) -> None:
    note_signature(world.bench(), "r", "9", serving)
    note_signature(world.bench(), "r", "8", other)
    said = client_break(world.bench(), "9", "8")
    assert words in said
    assert bool(words) == bool(said)


def test_a_rollback_whose_signatures_are_not_known_says_so(world: World) -> None:
    note_signature(world.bench(), "r", "2", Model(["a"]))
    words = rollback_words(asdict(roll_back(world)))
    assert "signatures not compared, for none is noted of version 1" in " ".join(words.split())


def test_a_rollback_whose_signatures_were_compared_says_nothing_of_them(world: World) -> None:
    for version in ("1", "2"):
        note_signature(world.bench(), "r", version, Model(["a"]))
    assert "signatures" not in rollback_words(asdict(roll_back(world)))


def test_asking_twice_goes_back_once(world: World) -> None:
    first = roll_back(world)
    again = roll_back(world)
    assert (again.was, again.now, again.is_old) == (first.was, first.now, True)
    assert world.serving() == ("1", 0)
    assert "nothing was changed" in rollback_words(asdict(again))
    world.consistent()


def test_a_decision_about_a_version_that_no_longer_serves_changes_nothing(world: World) -> None:
    with pytest.raises(Fenced, match="version 2 serves by now, not 1"):
        roll_back(world, serving="1")
    assert world.serving() == ("2", 0)


def test_one_screen_says_it_all(world: World) -> None:
    world.seconds(5)
    words = rollback_words(asdict(roll_back(world)))
    assert len(words.splitlines()) <= 12
    for told in (
        "version 2 is off, version 1 serves",
        "complaints",
        "me",
        "it was running",
        "5 of 5",
        "--again",
    ):
        assert told in words


def test_the_old_champion_stays_warm_for_as_long_as_the_policy_says(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sweeping.Bench, "open", classmethod(lambda _cls, _name, _settings=None: world.bench())
    )
    monkeypatch.setattr(sweeping.notices, "free_dead_owner", lambda _bench: None)
    promoted = world.bench().row().keep_until - world.policy.keep_previous_s
    world.clock.now = promoted + world.policy.keep_previous_s - 1
    assert sweeping.sweep_endpoint.fn("flights") == []
    assert world.endpoint.describe().versions[Slot.BLUE] == "1"
    world.clock.now = promoted + world.policy.keep_previous_s
    assert sweeping.sweep_endpoint.fn("flights") == ["flights: the previous version left slot blue"]
    assert world.endpoint.describe().versions[Slot.BLUE] == ""
    assert world.registry.aliases["previous"] == "1", "known still, only cold"
    assert sweeping.sweep_endpoint.fn("flights") == []
    assert roll_back(world).started_cold
    transitions.finish(world.bench())
    world.consistent()


def test_the_previous_version_is_the_journals_not_what_an_alias_says(world: World) -> None:
    """The alias is the model's: another endpoint of the same model, or a person, may have moved it."""
    cold(world).registry.aliases["previous"] = "7"
    report = roll_back(world)
    assert (report.was, report.now, report.started_cold) == ("2", "1", True)
    transitions.finish(world.bench())
    assert world.serving() == ("1", 0)


def test_the_sweep_leaves_a_version_alone_that_a_rollback_starts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold(world)
    monkeypatch.setattr(
        sweeping.Bench, "open", classmethod(lambda _cls, _name, _settings=None: world.bench())
    )
    monkeypatch.setattr(sweeping.notices, "free_dead_owner", lambda _bench: None)
    deploy, swept = world.endpoint.deploy, list[str]()

    def slow_start(slot: Slot, version: str, *, uri: str) -> None:
        deploy(slot, version, uri=uri)
        swept.extend(sweeping.sweep_endpoint.fn("flights"))

    monkeypatch.setattr(world.endpoint, "deploy", slow_start)
    assert roll_back(world).now == "1"
    assert swept == []
    assert world.serving() == ("1", 0)


def test_what_a_failed_cold_start_left_is_swept_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cold(world)
    monkeypatch.setattr(
        sweeping.Bench, "open", classmethod(lambda _cls, _name, _settings=None: world.bench())
    )
    monkeypatch.setattr(sweeping.notices, "free_dead_owner", lambda _bench: None)
    deploy = world.endpoint.deploy

    def die(slot: Slot, version: str, *, uri: str) -> None:
        deploy(slot, version, uri=uri)
        raise Killed

    monkeypatch.setattr(world.endpoint, "deploy", die)
    with pytest.raises(Killed):
        roll_back(world)
    assert sweeping.sweep_endpoint.fn("flights") == []
    world.clock.now += world.policy.replicas.start_timeout_s + 61
    assert sweeping.sweep_endpoint.fn("flights") == [
        "flights: what an ended release had left in slot blue is gone"
    ]


def test_endpoints_of_one_model_do_not_fight_over_its_alias(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sweeping.Bench, "open", classmethod(lambda _cls, _name, _settings=None: world.bench())
    )
    monkeypatch.setattr(sweeping.notices, "free_dead_owner", lambda _bench: None)
    others = {"flights": world.policy, "twin": world.policy.model_copy(update={"endpoint": "twin"})}
    monkeypatch.setattr(sweeping, "load_policies", lambda _folder: (others, []))
    world.registry.aliases["champion"] = "9"
    world.journal.create_endpoint("twin", now=1.0)
    sweeping.sweep_endpoint.fn("flights")
    assert world.registry.aliases["champion"] == "2", "nobody serves 9"
    del world.registry.aliases["champion"]
    sweeping.sweep_endpoint.fn("flights")
    assert world.registry.aliases.get("champion") == "2", "the twin serves nothing, which is no version"
    world.registry.aliases["champion"] = "9"
    world.journal.change("twin", generation=0, new_generation=1, now=1.0, blue_version="9")
    sweeping.sweep_endpoint.fn("flights")
    assert world.registry.aliases["champion"] == "9", "the twin's last promotion"


def test_a_candidate_that_was_placed_meanwhile_is_not_what_a_rollback_goes_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof takes up to 2 s, and a release may begin and be placed in them."""
    prove, placed = rolling_back.prove_previous, list[str]()

    def meanwhile(*args: Any, **named: Any) -> str:
        proof = prove(*args, **named)
        if not placed:
            placed.append("3")
            transitions.place(world.bench(), world.release("3"), first=False)
        return proof

    monkeypatch.setattr(rolling_back, "prove_previous", meanwhile)
    report = roll_back(world)
    assert (report.was, report.now) == ("3", "2"), "decided again: what is under way goes first"
    assert world.serving() == ("2", 0)
    world.consistent()
