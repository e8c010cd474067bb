from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.gateway.lab import Lab, lab_settings


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(lab_settings(tmp_path_factory.mktemp("lab")))
    try:
        lab.up()
        yield lab
    finally:
        lab.down()
