"""A registry with models for the whole session, and models loaded from it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.replica.model import ServedModel
from tests.serving.replica.registering import tracking_uri

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Registry:
    """Where the test models are. `uris` by model name."""

    folder: Path
    uris: dict[str, str]

    @property
    def tracking_uri(self) -> str:
        return tracking_uri(self.folder)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A SQLite registry filled by a process of its own."""
    folder = tmp_path_factory.mktemp("registry")
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.replica.registering", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Registry(folder, json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="session")
def served(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ServedModel]:
    """Loads a test model by name, as a replica does; each once a session."""
    from serving.replica.loading import load_model

    cache_dir = tmp_path_factory.mktemp("models")
    loaded: dict[str, ServedModel] = {}

    def load(name: str) -> ServedModel:
        if name not in loaded:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded[name] = load_model(
                    registry.uris[name], tracking_uri=registry.tracking_uri, cache_dir=cache_dir
                )
        return loaded[name]

    return load
