from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.contract.platforms import FakePlatform, LocalPlatform, Platform
from tests.serving.gateway.lab import Lab, lab_settings


@pytest.fixture(scope="module", params=["fake", pytest.param("local", marks=pytest.mark.slow)])
def platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    if request.param == "fake":
        yield FakePlatform()
        return
    lab = Lab(lab_settings(tmp_path_factory.mktemp("contract")))
    try:
        lab.up()
        yield LocalPlatform(lab)
    finally:
        lab.down()
