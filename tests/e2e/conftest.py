"""One stack for all tests of a file about what comes after a promotion: starting it takes a minute.

It ends with the file, so that its traffic takes nothing from the stacks of later files.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from serving.gateway.keys import Keys
from tests.e2e.stand import POLICY, Stand, Traffic, own_settings, promote

WATCHED = (
    POLICY.replace("bake_s: 12", "bake_s: 3")
    + "watch: {look_every_s: 2, run_s: 40, control: {every_s: 60}}\n"
)


@pytest.fixture(scope="module")
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Stand]:
    """A stack whose endpoint is watched each minute, for 40 s; by the file's own `WATCHED`, if any."""
    policy = getattr(request.module, "WATCHED", WATCHED)
    made = Stand(own_settings(tmp_path_factory.mktemp("watched")), policy)
    try:
        made.interlock("up")
        yield made
    finally:
        made.interlock("down", check=False)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As soon as it exists, what versions registered with it depend on is broken."""
    return tmp_path_factory.mktemp("faults") / "upstream"


@pytest.fixture(scope="module")
def steady(watched: Stand, upstream: Path) -> Generator[Traffic]:
    """100 requests a second from the first champion on."""
    promote(watched, watched.register(breaks_on=upstream))
    key = Keys(watched.settings).create("e2e")
    with Traffic(f"{watched.settings.gateway_url}/sums/invocations", key, per_s=100) as running:
        yield running
