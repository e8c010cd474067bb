"""A release's pages wait until the candidate is placed, and are drawn in any case."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from serving.records import Stage
from tasks.release import Release, open_release
from tasks.stages import Ended, close
from tests.tasks.test_transitions import World


@pytest.fixture
def release(tmp_path: Path) -> Release:
    world = World(tmp_path)
    world.first_champion()
    return open_release(world.bench(), "2", again=False, reason="", flow_run_id="pages", owner="me")


def test_pages_are_drawn_once_the_candidate_is_placed(release: Release) -> None:
    drawn = threading.Event()
    release.enter(Stage.EVALUATE)
    release.draw_later(drawn.set)
    release.enter(Stage.STAGE)
    assert release._pages
    assert not drawn.is_set()
    release.enter(Stage.SHADOW)
    assert drawn.wait(30)
    assert not release._pages


def test_pages_of_a_release_that_ends_before_are_drawn_too(release: Release) -> None:
    drawn = threading.Event()
    release.draw_later(drawn.set)
    close(release, Ended("Rejected", "worse"))
    assert drawn.wait(30)
