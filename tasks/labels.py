"""Labels that arrive after the answers: joined to captures, scored, stored once, and read by who decides.

The join is by the gateway's request id. Taking the same file again changes nothing; what cannot be
used is counted and shown, never guessed. Imports neither Prefect nor MLflow by itself.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.labels import Labels
from evals.quality import is_proven_good, number, score
from serving.capture.reader import find_captures
from serving.capture.tables import Row, answers_of
from serving.errors import Refused, ServingError, SetupError
from serving.labels import Key, Label, LabelBook, Performance
from serving.table_files import stream_file, stream_table
from tasks.bench import Bench

_LOG = logging.getLogger("interlock.labels")
TAKEN = "labels taken"
_RUN = "quality"
_SHOWN_MAX = 5
_UNKNOWN_FOR_S = 3600.0
"""How long a file's unknown requests are looked for again: far longer than a capture takes to the disk."""


@dataclass(slots=True)
class LabelReport:
    """What became of the labels that were read. `examples` names some of each kind that was not stored.

    `stored` are new; `duplicates` say what is known already; `conflicts` say something else of a row that
    has a label (the first stands); `unknown` requests were never captured, or are not on disk yet;
    `ambiguous` do not say which row of several they mean; `malformed` lack an id or a label.
    `unscored` are among the stored: the answer failed, was withheld, or is no match for the metric.
    """

    endpoint: str
    read: int = 0
    stored: int = 0
    duplicates: int = 0
    conflicts: int = 0
    unknown: int = 0
    ambiguous: int = 0
    malformed: int = 0
    unscored: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, request_id: object) -> None:
        """Count one that was not stored, and remember the first few."""
        setattr(self, kind, getattr(self, kind) + 1)
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _SHOWN_MAX:
            shown.append(str(request_id)[:128])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Given:
    """One label as it came."""

    request_id: str
    row: int | None
    label: Any
    labelled_at: float | None


def policy_of(bench: Bench) -> Labels:
    """The endpoint's labels policy. Raises `Refused` where it has none."""
    if bench.policy.labels is None:
        raise Refused(
            f"{bench.name}: its policy has no `labels` section. Next: add one, see interlock policy-keys"
        )
    return bench.policy.labels


def take_file(bench: Bench, path: Path) -> LabelReport:
    """Take the labels of one parquet or CSV file. Raises `Refused`, `SetupError`."""
    policy = policy_of(bench)
    if not path.exists():
        raise SetupError(f"{path} does not exist. Next: name a parquet or CSV file with the labels")
    return _take(bench, stream_file(path, _columns(policy)), source=path.name)


def take_scheduled(bench: Bench) -> LabelReport | None:
    """Take what lies where the policy says that labels come; None where it names no place.

    Files are read again only where something about them has changed, or for a while after their first time
    where labels were unknown: their requests may have been on their way to the disk. What is unknown
    later was never captured (`capture.sample`), or is no longer kept.
    """
    policy = policy_of(bench)
    if policy.table is not None:
        url = os.environ.get(policy.database_env or "")
        if not url:
            raise SetupError(
                f"{bench.name}: labels.database_env names {policy.database_env}, which is not set. Next: "
                "set it to an SQLAlchemy URL where the worker runs"
            )
        return _take(bench, stream_table(url, policy.table, _columns(policy)), source=policy.table)
    if policy.path is None:
        return None
    total = LabelReport(bench.name)
    files = {_state(path): path for path in _files(bench, policy.path)}
    tried = _tried(bench, list(files))
    for state, path in files.items():
        earlier = tried.get(state)
        if earlier is None or not earlier.is_done(bench.clock()):
            batches = stream_file(path, _columns(policy))
            _add(total, _take(bench, batches, source=path.name, state=state, earlier=earlier))
    return total


def new_scores(bench: Bench, version: str, after: int, *, limit: int = 50_000) -> tuple[list[float], int]:
    """Scores of the version's answers that came in after a number, and the number to go on from."""
    with closing(LabelBook(bench.settings.journal)) as book:
        return book.scores_after(bench.name, after, version=version, limit=limit)


def newest_label(bench: Bench) -> int:
    """The number of the newest label, from which a watch goes on."""
    with closing(LabelBook(bench.settings.journal)) as book:
        return book.newest(bench.name)


def scores_between(bench: Bench, after: int, until: int) -> dict[str, float]:
    """Scores by request id of the labels numbered `after < n <= until`: what a canary's look takes."""
    if until <= after:
        return {}
    with closing(LabelBook(bench.settings.journal)) as book:
        return book.scores_by_request(bench.name, after, until)


def is_known_good(bench: Bench, version: str, *, since: float, until: float) -> bool:
    """Whether labels prove that the version kept `watch.quality` on the requests of a window."""
    policy, level = bench.policy.labels, bench.policy.watch.quality
    if policy is None or level is None:
        return False
    with closing(LabelBook(bench.settings.journal)) as book:
        scores = book.scores_between(bench.name, version=version, since=since, until=until)
    return len(scores) >= policy.min_rows and is_proven_good(scores, level)


def performance(bench: Bench, *, since: float = 0.0) -> list[Performance]:
    """True performance over time, by version and interval of the requests' arrival."""
    with closing(LabelBook(bench.settings.journal)) as book:
        return book.performance(bench.name, bucket_s=policy_of(bench).bucket_s, since=since)


def publish(bench: Bench, *, stored_after: int) -> str:
    """True performance of the intervals that got new labels, as metrics over time in MLflow; the run's page.

    Informs people: where MLflow is away it is said in the log, and the labels stay stored.
    """
    policy = policy_of(bench)
    with closing(LabelBook(bench.settings.journal)) as book:
        changed = book.performance(bench.name, bucket_s=policy.bucket_s, stored_after=stored_after)
    points: list[tuple[str, float, int, int]] = []
    for one in changed:
        at_ms, step = int((one.starts_at + policy.bucket_s) * 1000), int(one.starts_at // policy.bucket_s)
        for name, value in (("score", one.score), ("labels", one.labels), ("delay_s", one.delay_s)):
            points.append((f"quality/v{one.version}/{name}", float(value), at_ms, step))
    try:
        run_id = bench.runs.open_run(bench.name, f"{bench.name}-{_RUN}", {"interlock.kind": _RUN})
        bench.runs.log_points(run_id, points)
        return bench.runs.run_url(run_id)
    except ServingError as error:
        _LOG.warning("%s: true performance was not written to MLflow: %s", bench.name, error)
        return ""


def words(report: LabelReport) -> str:
    """A report in one line."""
    parts = [f"{report.stored} of {report.read} labels are new"]
    for kind in ("duplicates", "conflicts", "unknown", "ambiguous", "malformed", "unscored"):
        if count := getattr(report, kind):
            shown = ", ".join(report.examples.get(kind, [])[:2])
            parts.append(f"{count} {kind}" + (f" (such as {shown})" if shown else ""))
    return f"{report.endpoint}: {'; '.join(parts)}"


# -- taking ------------------------------------------------------------------------------------------


def _take(
    bench: Bench,
    batches: Iterable[Sequence[tuple[Any, ...]]],
    *,
    source: str,
    state: str = "",
    earlier: _Tried | None = None,
) -> LabelReport:
    report = LabelReport(bench.name)
    with closing(LabelBook(bench.settings.journal)) as book:
        before = book.newest(bench.name)
        for batch in batches:
            _take_batch(bench, book, batch, report)
    if earlier is None or report.unknown != earlier.unknown:
        bench.journal.record(
            bench.name,
            TAKEN,
            who="labels",
            now=bench.clock(),
            source=source,
            state=state,
            **{name: value for name, value in report.as_dict().items() if name != "endpoint"},
        )
    if report.stored:
        publish(bench, stored_after=before)
    return report


def _take_batch(bench: Bench, book: LabelBook, batch: Sequence[tuple[Any, ...]], report: LabelReport) -> None:
    policy = policy_of(bench)
    given = [one for one in (_given(policy, row, report) for row in batch) if one is not None]
    known = book.known(bench.name, list({one.request_id for one in given}))
    new: dict[Key, _Given] = {}
    for one in given:
        key = (one.request_id, one.row or 0)
        said = known.get(key) or (label_text(new[key].label) if key in new else None)
        if said is None:
            new[key] = one
        else:
            report.note("duplicates" if said == label_text(one.label) else "conflicts", one.request_id)
    captured = _captured(bench, {one.request_id for one in new.values()})
    labels = [
        label
        for one in new.values()
        if (label := _joined(bench, policy, one, captured.get(one.request_id), report)) is not None
    ]
    report.stored += book.add(labels)


def _given(policy: Labels, row: tuple[Any, ...], report: LabelReport) -> _Given | None:
    report.read += 1
    values = dict(zip(_columns(policy), row, strict=True))
    request_id, label = values[policy.request_id], values[policy.label]
    is_missing = label is None or label != label  # NaN
    at = number(values[policy.row]) if policy.row is not None else None
    if not request_id or is_missing or (policy.row is not None and (at is None or at < 0)):
        report.note("malformed", request_id)
        return None
    return _Given(
        str(request_id), None if at is None else int(at), label, _moment(values.get(policy.time or ""))
    )


@dataclass(frozen=True, slots=True)
class _Captured:
    time: float
    version: str
    user: str
    status: int
    answers: list[Row] | None


def _captured(bench: Bench, request_ids: set[str]) -> dict[str, _Captured]:
    """The captured answers of these requests. One asked of two replicas counts by the answer that came."""
    found: dict[str, _Captured] = {}
    if not request_ids:
        return found
    columns = ("request_id", "time", "version", "user", "status", "outputs")
    folder = bench.settings.captures_dir / bench.name
    for request_id, time, version, user, status, outputs in find_captures(
        folder, sorted(request_ids), columns=columns
    ):
        if request_id not in found or status == 200:
            found[request_id] = _Captured(time, version, user or "", status, answers_of(outputs or ""))
    return found


def _joined(
    bench: Bench, policy: Labels, given: _Given, captured: _Captured | None, report: LabelReport
) -> Label | None:
    if captured is None:
        report.note("unknown", given.request_id)
        return None
    answers = captured.answers or []
    if given.row is None and len(answers) > 1:
        report.note("ambiguous", given.request_id)
        return None
    at = given.row or 0
    answer = answers[at].get(policy.prediction) if captured.status == 200 and at < len(answers) else None
    worth = score(policy, answer, given.label)
    if worth is None:
        report.note("unscored", given.request_id)
    return Label(
        bench.name,
        given.request_id,
        at,
        label_text(given.label),
        worth,
        captured.version,
        captured.user,
        captured.time,
        bench.clock() if given.labelled_at is None else given.labelled_at,
    )


def label_text(label: Any) -> str:
    """A label as it is stored and compared: 1, 1.0, "1" and true are the same."""
    found = number(label)
    return str(label) if found is None else repr(found)


def _moment(value: Any) -> float | None:
    """Seconds since the epoch, from a number, a date or ISO text (UTC where it names no zone)."""
    if isinstance(value, str) and number(value) is None:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return number(value)


def _columns(policy: Labels) -> tuple[str, ...]:
    named = (policy.request_id, policy.label, policy.time, policy.row)
    return tuple(dict.fromkeys(name for name in named if name is not None))


def _files(bench: Bench, pattern: str) -> list[Path]:
    base = bench.settings.policy_path(bench.name).parent
    # an absolute pattern is one, too: pathlib's own glob refuses it
    return [Path(name) for name in sorted(glob.glob(str(base / pattern), recursive=True))]  # noqa: PTH207


def _state(path: Path) -> str:
    """A file as it is now: another size or time makes it another one."""
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class _Tried:
    """A file that was taken before, unchanged: when for the first time, and what was unknown at last."""

    first: float
    unknown: int

    def is_done(self, now: float) -> bool:
        """Whether reading it again would be in vain."""
        return self.unknown == 0 or now - self.first > _UNKNOWN_FOR_S


def _tried(bench: Bench, states: Sequence[str]) -> dict[str, _Tried]:
    """Which of these files were taken before, by the trail."""
    found: dict[str, _Tried] = {}
    for line in bench.journal.audit_of(bench.name, TAKEN, "state", states):
        state = str(line.details["state"])
        first = found[state].first if state in found else line.time
        found[state] = _Tried(first, int(line.details["unknown"]))
    return found


def _add(total: LabelReport, report: LabelReport) -> None:
    for kind, count in Counter({k: v for k, v in report.as_dict().items() if isinstance(v, int)}).items():
        setattr(total, kind, getattr(total, kind) + count)
    for kind, shown in report.examples.items():
        total.examples.setdefault(kind, []).extend(shown[:_SHOWN_MAX])
