"""The script that a program becomes: any value survives the shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.programs import Program, render_script, render_section

text = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=text, argument=text)
def test_values_and_arguments_arrive_as_they_are(tmp_path: Path, value: str, argument: str) -> None:
    log_path = tmp_path / "it's 100%.log"
    log_path.unlink(missing_ok=True)
    tell = "import json, os, sys; print(json.dumps([os.environ['VALUE'], sys.argv[1]]))"
    program = Program("p", (sys.executable, "-S", "-c", tell, argument), {"VALUE": value}, log_path)
    subprocess.run(["/bin/sh", "-c", render_script(program, tmp_path / "p.pid")], check=True)
    assert json.loads(log_path.read_text()) == [value, argument]


def test_errors_can_go_to_a_log_of_their_own(tmp_path: Path) -> None:
    command = ("/bin/sh", "-c", "echo out; echo err >&2")
    program = Program("p", command, log_path=tmp_path / "out", error_path=tmp_path / "err")
    for _ in range(2):
        subprocess.run(["/bin/sh", "-c", render_script(program, tmp_path / "pid")], check=True)
    assert (tmp_path / "out").read_text() == "out\nout\n"
    assert (tmp_path / "err").read_text() == "err\nerr\n"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "a:b", "a\nb"])
def test_names_that_supervisord_would_misread_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="program name"):
        Program(name, ("true",))


def test_a_changed_script_is_a_changed_section(tmp_path: Path) -> None:
    def section(value: str) -> str:
        program = Program("p", ("true",), {"A": value})
        return render_section(program, tmp_path / "p.sh", render_script(program, tmp_path / "p.pid"))

    assert section("1") == section("1")
    assert section("1") != section("2")
    assert "1" * 30 not in section("1" * 30), "values, which may be secrets, stay out of supervisord's file"
