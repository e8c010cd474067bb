"""The house keeps its walls: import rules, module sizes, names, and what may never be committed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("flows", "tasks", "serving", "evals", "configs")
LINES_MAX = 450


def committed() -> list[Path]:
    """Every file that git tracks and that is there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_a_broken_wall_would_be_noticed(tmp_path: Path) -> None:
    """The contracts of pyproject.toml, held against a house where each wall is broken once."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
    (tmp_path / "configs" / "a.py").write_text("import serving.a\n")
    (tmp_path / "serving" / "a.py").write_text("import prefect\nimport evals.a\n")
    (tmp_path / "evals" / "a.py").write_text("import socket\n")
    (tmp_path / "flows" / "a.py").write_text("import serving.a\n")
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text("[tool.importlinter]" + text.partition("[tool.importlinter]")[2])
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(linter), "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "5 broken" in done.stdout, done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_package_files_are_empty(room: str) -> None:
    full = [str(path) for path in (ROOT / room).rglob("__init__.py") if path.read_text()]
    assert full == []


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "helpers", "common", "misc", "util", "helper"}
    assert [str(path) for path in committed() if path.suffix == ".py" and path.stem in drawers] == []


def test_modules_stay_readable() -> None:
    long = {}
    for path in committed():
        if path.suffix == ".py":
            lines = len(path.read_text().splitlines())
            if lines > LINES_MAX:
                long[str(path.relative_to(ROOT))] = lines
    assert long == {}


FORBIDDEN = {
    "a package registry's host": re.compile(
        r"pypi\.org|pythonhosted|test\.pypi|registry\.npmjs|proxy\.golang"
    ),
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/[\w.]"),
    "a link to a find-links folder": re.compile(r"--(?:find-links|extra-index-url|index-url)"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    found = []
    for path in committed():
        if path == Path(__file__) or path.suffix in {".png", ".gz", ".parquet"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if FORBIDDEN[what].search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_nothing_generated_is_committed() -> None:
    generated = {".parquet", ".db", ".sqlite", ".pkl", ".joblib", ".pem", ".key", ".log"}
    assert [str(path) for path in committed() if path.suffix in generated] == []
    large = [str(path) for path in committed() if path.stat().st_size > 1_000_000]
    assert large == []


def test_decisions_have_no_clock_and_no_chance_of_their_own() -> None:
    """`now` and random generators are arguments in evals/."""
    own = re.compile(
        r"time\.(time|monotonic|perf_counter)\(|datetime\.(now|utcnow)\(|np\.random\.(?!Generator|default_rng\(seed|default_rng\(\w)|random\.random\("
    )
    found = [
        f"{path.name}:{number}"
        for path in sorted((ROOT / "evals").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if own.search(line)
    ]
    assert found == []
