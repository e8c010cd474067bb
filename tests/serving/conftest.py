"""The databases that a journal may be in."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.serving.postgres import empty, running_server


@pytest.fixture(scope="session")
def postgres() -> Generator[sa.URL]:
    """A server of our own, started once."""
    with running_server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def journal_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database for the journal."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'journal.db'}"
    url: sa.URL = request.getfixturevalue("postgres")
    empty(url)
    return url.render_as_string(hide_password=False)
