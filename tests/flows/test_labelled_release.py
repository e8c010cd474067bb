"""Labels during a canary, through a whole ramp: captured, joined by request id from files, and heard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.policy import Policy
from serving.endpoint import Reply
from serving.labels import LabelBook
from serving.records import ReleaseState
from tasks.bench import Bench
from tasks.labels import take_scheduled
from tests.flows.test_release import run
from tests.flows.world import Version, World
from tests.serving.capture.exchanges import record, recorder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

DELAY_S = 20.0
EVERY_S = 10


def right(body: bytes) -> int:
    return len(body) % 2


def wrong(share: float) -> Callable[[bytes, np.random.Generator], Reply]:
    """Answers at once and with 200, but a share of the answers is wrong: only labels can tell."""

    def answer(body: bytes, rng: np.random.Generator) -> Reply:
        said = right(body) ^ int(rng.random() < share)
        return Reply(200, json.dumps({"predictions": [said]}).encode(), float(rng.lognormal(1.1, 0.3)))

    return answer


class LabelledWorld(World):
    """Every request is captured; from `labelled_from` on the truth about it comes 20 s later, in files."""

    def __init__(self, folder: Path, **quality: Any) -> None:
        super().__init__(folder)
        content = self.policy.model_dump(exclude_none=True)
        content["canary"] |= {"quality": quality, "bake_s": 15, "soak_s": 30}
        # the wrong answers must reach the canary: here the shadow compares nothing
        content["shadow"] = {"enabled": False, "reason": "labels are what is tested"}
        content["labels"] = {"path": "labels/*.csv"}
        self.policy = Policy.model_validate(content)
        self.settings = self.settings.model_copy(update={"policy_dir": folder})
        self.folder = folder
        self.labelled_from = float("inf")
        self._fresh: list[tuple[dict[str, Any], bytes, Reply]] = []
        self._unlabelled: list[tuple[float, str, int]] = []
        self._files = self._seconds = 0
        send = self.endpoint.send

        def noted(body: bytes, **more: Any) -> Reply:
            reply = send(body, **more)
            self._fresh.append((self.endpoint._rows[-1], body, reply))
            return reply

        self.endpoint.send = noted  # type: ignore[method-assign]
        self.on_second = self.second

    def second(self) -> None:
        self._seconds += 1
        if self._seconds % EVERY_S:
            return
        self._capture()
        known = self.clock.now - DELAY_S
        come = [one for one in self._unlabelled if one[0] <= known]
        self._unlabelled = [one for one in self._unlabelled if one[0] > known]
        rows = [(request_id, truth) for time, request_id, truth in come if time >= self.labelled_from]
        if rows:
            self._files += 1
            path = self.folder / "labels" / f"{self._files}.csv"
            path.parent.mkdir(exist_ok=True)
            pd.DataFrame(rows, columns=["request_id", "label"]).to_csv(path, index=False)
            report = take_scheduled(self.bench())
            assert report is not None
            assert (report.stored, report.unscored, report.unknown) == (len(rows), 0, 0)

    def _capture(self) -> None:
        folder = self.settings.captures_dir / "flights"
        writing = recorder(folder, captures_dir=folder, clock=self.clock, spool_dir=None)
        for number, (row, body, reply) in enumerate(self._fresh):
            self._unlabelled.append((row["time"], row["request_id"], right(body)))
            writing.offer(
                record(
                    number,
                    time=row["time"],
                    request_id=row["request_id"].encode(),
                    version=row["version"].encode(),
                    user=row["user"].encode(),
                    request=b'{"inputs": {"n": [1]}}',
                    response=reply.body,
                )
            )
        writing.close()
        self._fresh.clear()


def world_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **quality: Any) -> LabelledWorld:
    """Version 1 serves, and is wrong in a tenth of its answers."""
    made = LabelledWorld(folder, **quality)
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8, answer=wrong(0.1)))
    assert run("1").name == "Promoted"
    made.clock.now += 60
    return made


def test_late_labels_roll_back_what_nothing_else_can_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(tmp_path, monkeypatch, margin=0.1)
    world.add("2", Version(answer=wrong(0.4)))
    world.labelled_from = world.clock.now
    assert run("2").name == "Rejected"
    assert world.serving() == ("1", 0)
    ended = world.newest()
    assert ended.state is ReleaseState.REJECTED
    assert ended.decided_stage == "canary"
    assert "badness by labels: candidate" in ended.reason
    looks = world.journal.looks(ended.id, "canary")
    labelled = [look for look in looks[1:] if '"quality"' in json.dumps(look.stats)]
    assert labelled, "labels are in the stored counts, from which the decision can be made again"
    assert labelled[0].number * world.policy.canary.look_every_s >= DELAY_S - EVERY_S


def test_right_answers_are_promoted_once_labels_have_proven_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(tmp_path, monkeypatch, margin=0.1)
    world.add("2", Version(answer=wrong(0.1)))
    world.labelled_from = world.clock.now
    assert run("2").name == "Promoted"
    findings = world.newest().verdicts["canary"]["findings"]
    quality = next(one for one in findings if one["metric"] == "quality")
    assert quality["outcome"] == "PASS"
    assert quality["evidence"] >= quality["needed"] == 20


def test_without_labels_a_required_quality_holds_asks_a_person_and_goes_on_once_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(tmp_path, monkeypatch, margin=0.1)
    world.policy = world.policy.model_copy(
        update={"canary": world.policy.canary.model_copy(update={"ask_after_s": 120})}
    )
    world.add("2", Version(answer=wrong(0.1)))
    held: list[str] = []
    second = world.second

    def labels_come_once_a_person_was_asked() -> None:
        second()
        if world.serving()[1] == 9500 and world.clock.now > soaking_since(world) + 200:
            held.append(str(world.newest().progress.get("reason")))
            world.labelled_from = min(world.labelled_from, world.clock.now)

    world.on_second = labels_come_once_a_person_was_asked
    assert run("2").name == "Promoted"
    assert world.clock.now > soaking_since(world) + 200 + DELAY_S
    assert "no label of the candidate's answers has come yet. Next: " in held[0]
    assert any(alert.key.startswith("stalled") for alert in world.messenger.sent)


def test_without_labels_and_without_a_margin_promotion_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(tmp_path, monkeypatch)
    world.add("2", Version(answer=wrong(0.4)))
    assert run("2").name == "Promoted"
    book = LabelBook(world.settings.journal)
    assert book.newest("flights") == 0
    book.close()


def soaking_since(world: World) -> float:
    steps = [one for one in world.journal.audit("flights") if one.what == "step"]
    return max(one.time for one in steps if one.details["share_percent"] == 95)
