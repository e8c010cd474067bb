"""`replay-decisions` and `simulate` as they are typed: words, JSON, exit statuses, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.settings import Settings
from serving.journal import Journal
from serving.records import LookRow
from tasks.simulating import Given, changes, policy_of, simulate, traffic_of
from tests.configs.policies import VALID
from tests.flows.cli.conftest import Interlock
from tests.flows.cli.test_commands import write_policy

QUICK = [
    "--rate",
    "200",
    "--releases",
    "1",
    "--errors",
    "30",
    "--tail",
    "",
    "--slower",
    "",
    "--horizon",
    "60",
]


def test_a_release_that_is_not_there_is_refused_with_the_next_step(
    interlock: Interlock, cli_settings: Settings
) -> None:
    cli_settings.state.mkdir()
    result = interlock("replay-decisions", "flights-v1-1")
    assert result.status == 5
    assert "Next: interlock history" in result.err


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        "[]",
        "3",
        "{}",
        '{"release": "r", "looks": []}',
        '{"release": "r", "state": "", "reason": "", "decided_stage": "", "policy": 1, "looks": {}}',
    ],
)
def test_a_file_that_is_no_record_is_refused_in_one_line(
    interlock: Interlock, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    result = interlock("replay-decisions", str(path))
    assert result.status == 5
    assert f"{path} is no decisions.json of a release" in result.err
    assert result.err.count("\n") == 1


def test_a_decision_that_does_not_come_out_is_named_and_exits_1(
    interlock: Interlock, cli_settings: Settings
) -> None:
    path = write_policy(cli_settings)
    cli_settings.state.mkdir()
    journal = Journal(cli_settings.journal)
    policy = policy_of(cli_settings, str(path)).model_dump(mode="json")
    row = journal.add_release("flights", "2", champion="1", policy=policy, now=1.0)
    counts = {"both_fine": 9, "candidate_bad": 0, "champion_bad": 0, "both_bad": 0, "disagreeing": 0}
    stats = {
        "counts": {**counts, "timed": 0, "slower": {}},
        "thresholds": None,
        "champion": "1",
        "decided": {"verdict": "PASS", "digest": "0" * 32},
    }
    journal.add_look(LookRow(row.id, "shadow", 3, 2.0, "", "a", stats))
    journal.close()
    result = interlock("replay-decisions", row.id)
    assert result.status == 1
    assert "shadow differs first at look 3" in result.out
    assert "INCONCLUSIVE" in result.out
    told = json.loads(interlock("replay-decisions", row.id, "--json").out)
    assert told["same"] is False
    assert told["stages"][0]["difference"]["look"] == 3


@pytest.mark.parametrize("ending", [".html", ".png", ".svg"])
def test_simulate_prints_a_table_and_draws_it(
    interlock: Interlock, cli_settings: Settings, tmp_path: Path, ending: str
) -> None:
    plot = tmp_path / f"plot{ending}"
    result = interlock("simulate", str(write_policy(cli_settings)), *QUICK, "--plot", str(plot))
    assert result.status == 0, result.err
    assert "errors +30 points" in result.out
    assert "False rollback: 0.00% of 4 good versions" in result.out
    assert "Expected, step by step: " in result.out
    assert plot.stat().st_size > 5000


def test_a_plot_that_cannot_be_written_is_one_line_after_the_table(
    interlock: Interlock, cli_settings: Settings, tmp_path: Path
) -> None:
    plot = tmp_path / "plot.svg"
    plot.mkdir()
    result = interlock("simulate", str(write_policy(cli_settings)), *QUICK, "--plot", str(plot))
    assert result.status == 1
    assert "False rollback:" in result.out
    assert result.err.startswith(f"{plot} cannot be written: ")


def test_simulate_is_seeded_and_knows_endpoints_by_name(interlock: Interlock, cli_settings: Settings) -> None:
    write_policy(cli_settings)
    one, same = (json.loads(interlock("simulate", "flights", *QUICK, "--json").out) for _ in range(2))
    assert one == same
    assert [row["name"] for row in one["rows"]] == ["good", "errors +30 points"]
    assert one["rows"][1]["rolled_back"] == 1.0
    assert one["traffic"]["requests_per_s"] == 200


def test_simulate_without_known_traffic_says_how_to_give_it(
    interlock: Interlock, cli_settings: Settings
) -> None:
    path = write_policy(cli_settings)
    result = interlock("simulate", str(path))
    assert result.status == 5
    assert "--rate" in result.err
    assert interlock("simulate", str(path), "--rate", "5", "--plot", "x.pdf").status == 2
    missing = interlock("simulate", str(path), "--rate", "5", "--plot", "nowhere/x.svg")
    assert missing.status == 2
    assert "there is no folder nowhere" in missing.err
    assert interlock("simulate", str(path), "--errors", "much").status == 2


def test_when_time_is_over_what_was_played_stands_and_is_said(cli_settings: Settings) -> None:
    policy = policy_of(cli_settings, str(write_policy(cli_settings, VALID)))
    traffic, source = traffic_of(policy, cli_settings, Given(50.0), 0)
    told: list[tuple[int, int]] = []
    made = simulate(
        policy,
        traffic,
        source,
        changes([4], [], []),
        plays=10,
        seed=0,
        until_s=30,
        limit_s=0,
        tell=lambda done, total: told.append((done, total)),
    )
    assert [row.plays for row in made.rows] == [0, 0]
    assert told == []
    assert any("0 of 50 releases were played" in note for note in made.notes)
