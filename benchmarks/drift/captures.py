"""How long a drift check takes, and how much memory, on 1, 10 and 100 million captured rows of 20 columns.

    python -m benchmarks.drift.captures [--rows 1000000 ...] [--evidently] [--folder DIR] [--out PAGE]

Writes Parquet captures as the compactor does, into a temporary folder that is deleted afterwards. More
than ten million rows are copies of the ten million's files: to the scan a row is a row. Then one window
with all of them is counted, sampled twice and compared, in a process whose peak memory is measured.
`--evidently` also loads the first million rows into a pandas frame and runs Evidently's preset on it.
Rows of the page's table that were not measured again stay.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = 20
HOURS = 24
DAY = 1_795_305_600.0
WRITTEN_MAX = 10_000_000
BEGIN = "<!-- bench: begin -->"
END = "<!-- bench: end -->"
_EVIDENTLY_MAX = 1_000_000


def write(folder: Path, rows: int) -> int:
    """Captures of one day with `rows` requests of one row each; bytes on disk."""
    copies = -(-rows // WRITTEN_MAX)
    _write_once(folder, rows // copies)
    for path in list(folder.rglob("*.parquet")):
        for copy in range(1, copies):
            shutil.copyfile(path, path.with_name(f"part-bench-{copy}.parquet"))
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def _write_once(folder: Path, rows: int) -> None:
    import duckdb

    with duckdb.connect() as database:
        database.execute("SET threads = 2; SET memory_limit = '2GB'")
        each = rows // HOURS
        for hour in range(HOURS):
            target = folder / "parquet" / f"hour=2026-11-22T{hour:02d}" / "part-bench.parquet"
            target.parent.mkdir(parents=True)
            since = DAY + hour * 3600
            fields = ", ".join(f"\"c{n}\": ' || round(random() * 10, 3) || '" for n in range(COLUMNS - 1))
            database.execute(
                f"""COPY (SELECT {since} + 3599.0 * i / {each} AS time, 'r-{hour}-' || i AS request_id,
                'bench' AS endpoint, '1' AS version, 'blue' AS slot, 'r' AS replica, 'acme' AS tenant,
                'u' || (i % 9973) AS user, '/invocations' AS path, 'application/json' AS content_type,
                200::SMALLINT AS status, 2.5::DOUBLE AS latency_ms, false AS replay,
                '{{"dataframe_records": [{{{fields}, "k": "' || (i % 7) || '"}}]}}' AS inputs,
                '{{"predictions": [' || round(random(), 4) || ']}}' AS outputs
                FROM range({each}) t(i)) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"""  # noqa: S608
            )


def check(folder: Path) -> dict[str, float]:
    """One window: counted, sampled in the scan, compared with another sample of it."""
    from configs.drift import Drift
    from evals.drift import compare
    from serving.capture.reader import count_captures
    from serving.capture.tables import sample_table

    policy, began = Drift(), time.perf_counter()
    count_captures(folder, since=DAY, until=DAY + 86_400)
    reference, current = (
        sample_table(folder, since=DAY, until=DAY + 86_400, requests=policy.sample_rows, seed=seed).frame
        for seed in (1, 2)
    )
    scanned_s = time.perf_counter() - began
    flagged = len(compare(policy, reference, current).flagged)
    return {"scan_s": scanned_s, "total_s": time.perf_counter() - began, "flagged": flagged}


def with_evidently(folder: Path) -> dict[str, float]:
    """All rows as a pandas frame, and Evidently's preset on its two halves."""
    import warnings

    warnings.simplefilter("ignore")
    from evidently import Report
    from evidently.presets import DataDriftPreset

    from serving.capture.tables import sample_table

    began = time.perf_counter()
    frame = sample_table(folder, since=DAY, until=DAY + 86_400, requests=10**9).frame
    middle = len(frame) // 2
    Report([DataDriftPreset()]).run(frame.iloc[middle:], frame.iloc[:middle])
    return {"scan_s": 0.0, "total_s": time.perf_counter() - began, "flagged": 0}


def main() -> int:
    """Write, measure in a child, delete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--evidently", action="store_true", help="Plain Evidently on a pandas frame as well.")
    parser.add_argument("--folder", type=Path, default=None, help="Where to write; some GB are needed.")
    parser.add_argument("--out", type=Path, default=Path("docs/drift-on-flights.md"))
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        found = (with_evidently if chosen.evidently else check)(Path(chosen.measure))
        used = resource.getrusage(resource.RUSAGE_SELF)
        own = {"cpu_s": used.ru_utime + used.ru_stime, "peak_mib": round(used.ru_maxrss / 1024)}
        print(json.dumps(found | own))
        return 0
    lines: dict[str, str] = {}
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="interlock-bench-drift-") as name:
            size = write(Path(name), rows)
            wanted = ["Interlock"] + ["Evidently alone"] * (chosen.evidently and rows <= _EVIDENTLY_MAX)
            for who in wanted:
                extra = [] if who == "Interlock" else ["--evidently"]
                command = [sys.executable, "-m", "benchmarks.drift.captures", "--measure", name, *extra]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                key = f"| {rows:,} | {who} |"
                scanned = f"{found['scan_s']:.1f} s" if found["scan_s"] else ""
                lines[key] = (
                    f"{key} {size / 1e9:.2f} GB | {scanned} | {found['total_s']:.1f} s | "
                    f"{found['cpu_s']:.1f} s | {found['peak_mib']:,} MiB |"
                )
                print(lines[key], flush=True)
    _place(chosen.out, lines)
    return 0


def _place(out: Path, lines: dict[str, str]) -> None:
    """Put rows into the page's table; those of other sizes stay."""
    head, rest = out.read_text().split(BEGIN)
    before, tail = rest.split(END)
    known = {_key(line): line for line in before.splitlines() if line.startswith("| ") and line[2].isdigit()}
    rows = sorted((known | lines).items(), key=lambda one: int(one[0].split("|")[1].replace(",", "")))
    table = [
        f"On {os.cpu_count()} cores.",
        "",
        "| rows | by | on disk | counted and sampled | in all | CPU, with imports | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(line for _, line in rows),
    ]
    out.write_text(f"{head}{BEGIN}\n" + "\n".join(table) + f"\n{END}{tail}")


def _key(line: str) -> str:
    return "|".join(line.split("|")[:3]) + "|"


if __name__ == "__main__":
    sys.exit(main())
