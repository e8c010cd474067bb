"""Commands about decisions: make those of a past release again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def replay_decisions(
    release: Annotated[
        str, typer.Argument(help="A release (interlock history), or a file decisions.json of its MLflow run.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make every decision of a past release again from its stored counts.

    Needs neither captures nor logs, which may be deleted. Exit status 1 where a decision does not come out as
    it was stored; the first look that differs is named.
    """
    from configs.loading import load_settings
    from flows.cli_output import print_json, show, table
    from tasks.replaying import read_record, replay_release

    told = replay_release(read_record(load_settings(), release)).as_dict()
    if as_json:
        print_json(told)
    else:
        rows = ([_cell(stage, column) for column in _COLUMNS] for stage in told["stages"])
        show(table(_COLUMNS, rows))
        typer.echo(_words(told))
    raise typer.Exit(0 if told["same"] else 1)


_COLUMNS = ("stage", "decided", "looks", "made again", "same", "because")


def _cell(stage: Mapping[str, Any], column: str) -> str:
    match column:
        case "decided":
            return str(stage["outcome"])
        case "looks":
            return f"{stage['looks']:,}" if stage["looks"] else ""
        case "made again":
            return {"recomputed": "from counts", "combined": "from findings", "reported": "no"}[stage["how"]]
        case "same":
            return "as reported" if stage["how"] == "reported" else "no" if stage["difference"] else "yes"
        case "because":
            reason = stage["reason"] if len(stage["reason"]) <= 90 else f"{stage['reason'][:87]}..."
            return f"{reason} ({stage['note']})" if stage["note"] else reason
        case _:
            return str(stage[column])


def _words(told: Mapping[str, Any]) -> str:
    size = f"its record has {told['size_bytes'] / 1e6:.2f} MB"
    engine = told["engine_now"]
    if told["same"]:
        return f"{told['release']}: every decision comes out as it was stored; {size}, engine {engine}."
    stage = next(stage for stage in told["stages"] if stage["difference"])
    found = stage["difference"]
    at = "its verdict" if found["look"] is None else f"look {found['look']}"
    lines = [
        f"{told['release']}: {stage['stage']} differs first at {at}.",
        f"  stored      {found['stored']}",
        f"  made again  {found['recomputed']}",
    ]
    if told["engine_then"] and told["engine_then"] != engine:
        lines.append(
            f"It was decided by engine {told['engine_then']}, this is {engine}: check out that code."
        )
    elif told["engine_then"]:
        lines.append(f"The engine is the same ({engine}): the record is not what was decided from.")
    return "\n".join(lines)
