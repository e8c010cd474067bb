"""Deleting what is older than the policy says, and forgetting a user; both leave a line in the trail.

What is never deleted: the journal's counts of looks, verdicts and trail. They name nobody, and a release
can be decided again from them. Imports neither Prefect nor MLflow by itself.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Collection, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from configs.errors import ConfigError
from configs.loading import load_policy
from configs.retention import Retention
from configs.settings import Settings
from serving.capture.erasing import erase_spooled, erase_users
from serving.capture.reader import captured_tenants, compact, purge_captures
from serving.capture.segments import purge_segments
from serving.endpoint import Slot
from serving.errors import ServingError
from serving.gateway.identity import user_hmac, user_key
from serving.gateway.keys import Keys
from serving.gateway.log_erasing import erase_before, forgotten_requests, hide_users, logged_tenants
from serving.gateway.places import access_log_path
from serving.journal import Journal
from serving.labels import LabelBook
from serving.model_cache import sweep_models
from serving.records import ReleaseRow
from serving.slots import SlotFiles
from serving.supervision import bound_log
from tasks.bench import Bench
from tasks.differences import without_requests
from tasks.evaluation_report import DATA_PAGE, PAGE
from tasks.runs import TrackingRefused, TrackingUnavailable
from tasks.trail import DIFFERENCES, REPORT

_LOG = logging.getLogger("interlock.retention")
_WHO = "retention"
DELETED = "records deleted"
FORGOTTEN = "user forgotten"
_PAGES = "release pages deleted"
_SHADOW_PAGES = "shadow pages deleted"
_PAGE_NAMES = (REPORT, PAGE, DATA_PAGE, DIFFERENCES, "shadow_examples.json")
"""What a release or an evaluation leaves for people; `decisions.json` stays: it names nobody."""
PUBLIC_TENANT = "public"
"""The tenant of requests without a credential."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What one run deleted of an endpoint: files, labels, spool segments, and reports in MLflow."""

    endpoint: str
    capture_files: int = 0
    labels: int = 0
    spool_segments: int = 0
    reports: int = 0
    compacted: int = 0

    @property
    def words(self) -> str:
        """What was done, for people."""
        named = {
            "capture files": self.capture_files,
            "labels": self.labels,
            "spool segments": self.spool_segments,
            "reports": self.reports,
        }
        gone = ", ".join(f"{count} {name}" for name, count in named.items() if count)
        return f"{self.endpoint}: {gone or 'nothing was too old'}"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was taken out for one user. `fingerprint` recognises the request in the trail, and nobody else."""

    endpoint: str
    requests: int
    spooled: int
    labels: int
    log_lines: int
    pages: int
    fingerprint: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def retain(bench: Bench) -> Deleted:
    """Compact an endpoint's captures, and delete what is older than its policy says."""
    policy, now = bench.policy.retention, bench.clock()
    folder = bench.settings.captures_dir / bench.name
    compacted = 0
    while (done := compact(folder, now=now)).segments:
        compacted += done.segments
    files = labels = reports = 0
    if policy.captures_s is not None:
        before = now - policy.captures_s
        files = purge_captures(folder, before=before)
        with closing(LabelBook(bench.settings.journal)) as book:
            labels = book.purge(bench.name, before=before)
    spooled = sum(
        purge_segments(
            bench.settings.spool_dir / bench.name / slot.value,
            opened_before=now - bench.policy.capture.spool.max_age_s,
        )
        for slot in Slot
    )
    if policy.reports_s is not None:
        reports = _delete_reports(bench, before=now - policy.reports_s)
        reports += _delete_pages(bench, before=now - policy.reports_s)
    # without the captures and the log's lines nobody could tell whose texts a page shows
    kept_s = [one for one in (policy.captures_s, policy.access_log_s) if one is not None]
    if kept_s:
        reports += _delete_shadow_pages(bench, before=now - min(kept_s))
    deleted = Deleted(bench.name, files, labels, spooled, reports, compacted)
    if files or labels or reports:
        values = {name: value for name, value in asdict(deleted).items() if name != "endpoint"}
        bench.journal.record(bench.name, DELETED, who=_WHO, now=now, **values)
    return deleted


def retain_logs(settings: Settings, names: list[str], *, now: float) -> str:
    """Delete what all endpoints share: old lines of the access log, logs that nobody writes to.

    The longest time that any policy asks for counts; one that cannot be read keeps everything. A large log
    of a program that runs keeps its end only, whatever the policies say.
    """
    for path in settings.logs_dir.glob("*.log"):
        try:
            bound_log(path)
        except OSError as error:  # a full disk, say, which the rest makes room on
            _LOG.warning("%s stays as large as it is: %s", path, error)
    try:
        policies = _policies(settings, names)
    except ConfigError as error:
        return f"logs: kept, a policy cannot be read: {error}"
    if not policies:
        return "logs: no endpoint says how long they are kept"
    lines = [policy.access_log_s for policy in policies]
    logs = [policy.logs_s for policy in policies]
    with closing(Journal(settings.journal)) as journal:
        # a resumed release reads its requests once more
        open_since = [one.started_at for one in journal.releases() if not one.state.final]
        erased = files = 0
        if None not in lines:
            before = min([now - max(one for one in lines if one is not None), *open_since])
            erased = erase_before(access_log_path(settings), before)
        if None not in logs:
            oldest = now - max(one for one in logs if one is not None)
            files = _unlink_older(settings.logs_dir.glob("*.log*"), oldest)
        if erased or files:
            journal.record("", DELETED, who=_WHO, now=now, access_log_bytes=erased, log_files=files)
    return f"logs: {erased:,} bytes of the access log and {files} log files were too old"


def retain_copies(settings: Settings, names: list[str], *, now: float) -> str:
    """Delete cached training data and answers to held-out rows that are older than captures may be.

    Drift and evaluation fetch what they need again. The longest time counts, as it does for logs.
    """
    try:
        times = [policy.captures_s for policy in _policies(settings, names)]
    except ConfigError as error:
        return f"cached copies: kept, a policy cannot be read: {error}"
    if not times or None in times:
        return (
            "cached copies: kept, as a policy says" if times else "cached copies: no endpoint says how long"
        )
    oldest = now - max(one for one in times if one is not None)
    copies = _unlink_older((settings.state / "cache").glob("*/*"), oldest)
    if copies:
        with closing(Journal(settings.journal)) as journal:
            journal.record("", DELETED, who=_WHO, now=now, cached_copies=copies)
    return f"cached copies: {copies} were too old"


def _policies(settings: Settings, names: list[str]) -> list[Retention]:
    return [load_policy(settings.policy_path(name)).retention for name in names]


def _unlink_older(paths: Iterable[Path], oldest: float) -> int:
    """Delete the files that were last written before a moment. Returns how many."""
    old = [path for path in paths if path.is_file() and path.stat().st_mtime < oldest]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def retain_models(settings: Settings, names: list[str], *, now: float) -> str:
    """Remove the local copies of models and weights that no slot holds, and that nobody used for long.

    The longest time that any policy asks for counts; one that cannot be read keeps everything.
    """
    from serving.llm.source import weights_key
    from serving.replica.loading import cached_keys

    try:
        times = [policy.models_s for policy in _policies(settings, names)]
    except ConfigError as error:
        return f"models: kept, a policy cannot be read: {error}"
    limits = [one for one in times if one is not None]
    if not limits or len(limits) < len(times):
        return "models: kept, for a policy says so, or there is none"
    cache_dir = settings.state / "models"
    held = cached_keys(cache_dir, {record.uri for record in SlotFiles(settings).every()})
    held |= {weights_key(cache_dir / key) for key in held}
    swept = sweep_models(cache_dir, held=held, before=now - max(limits), now=now)
    if swept.names:
        with closing(Journal(settings.journal)) as journal:
            journal.record("", DELETED, who=_WHO, now=now, models=list(swept.names), model_bytes=swept.size)
    return f"models: {len(swept.names)} copies ({swept.size:,} bytes) were not used for long"


def forget_user(bench: Bench, user: str, *, tenant: str = "", who: str) -> Forgotten:
    """Take a user's requests out of captures, spool, labels, access log and shadow pages. Safe to repeat.

    Without a tenant the user is looked for under every tenant that has a key or a request that is kept (of
    a token, of a key that was revoked), and without one. The trail gets counts and a keyed fingerprint,
    never the id nor its pseudonym. Raises `TrackingUnavailable`, with all else done, where MLflow, which
    holds the pages, does not answer.
    """
    settings, key = bench.settings, user_key(bench.settings)
    tenants = [tenant] if tenant else _tenants(bench)
    users = [user_hmac(key, name, user) for name in tenants]
    lines, ids = hide_users(access_log_path(settings), bench.name, users)
    erased = erase_users(settings.captures_dir / bench.name, users)
    ids |= erased.request_ids
    spooled = sum(erase_spooled(settings.spool_dir / bench.name / slot.value, ids) for slot in Slot)
    with closing(LabelBook(settings.journal)) as book:
        labels = sum(book.forget(bench.name, one) for one in users)
    # those forgotten before too: MLflow may have been away then
    ids |= forgotten_requests(access_log_path(settings), bench.name)
    pages, trouble = _clear_shadow_pages(bench, ids)
    fingerprint = hmac.new(key, f"forgotten:{tenant}:{user}".encode(), hashlib.sha256).hexdigest()[:16]
    forgotten = Forgotten(bench.name, erased.rows, spooled, labels, lines, pages, fingerprint)
    values = {name: value for name, value in forgotten.as_dict().items() if name != "endpoint"}
    if trouble is not None:
        values["pages_left"] = str(trouble)
    bench.journal.record(bench.name, FORGOTTEN, who=who, now=bench.clock(), tenants=len(tenants), **values)
    if trouble is not None:
        raise TrackingUnavailable(
            f"{bench.name}: the user is forgotten but for the shadow's pages: {trouble}"
        ) from trouble
    return forgotten


def _tenants(bench: Bench) -> list[str]:
    settings = bench.settings
    with_key = {one.tenant for one in Keys(settings).every()}
    captured = captured_tenants(settings.captures_dir / bench.name)
    return sorted(
        with_key | captured | logged_tenants(access_log_path(settings), bench.name) | {PUBLIC_TENANT}
    )


def _delete_reports(bench: Bench, *, before: float) -> int:
    """Drift reports of windows that ended before a moment. Where MLflow is away the next run does it."""
    deleted = 0
    try:
        run_id = bench.runs.find_run(bench.name, f"{bench.name}-drift")
        for folder in bench.runs.folders(run_id, "drift") if run_id else ():
            try:
                ended = datetime.strptime(folder.rpartition("/")[2], "%Y-%m-%dT%H-%M").replace(tzinfo=UTC)
            except ValueError:
                continue  # nothing of ours
            if ended.timestamp() < before:
                deleted += bench.runs.delete(run_id, folder)
    except ServingError as error:
        _LOG.warning("%s: old drift reports stay for now: %s", bench.name, error)
    return deleted


def _delete_pages(bench: Bench, *, before: float) -> int:
    """The pages of releases, and of evaluations without one, that ended before a moment."""
    kept = bench.journal.state(bench.name, _PAGES)
    since = float(kept.value["before"]) if kept else 0.0
    ended = [
        one.mlflow_run_id
        for one in bench.journal.releases(bench.name)
        if one.mlflow_run_id and one.ended_at is not None and since <= one.ended_at < before
    ]
    deleted = 0
    try:
        ended += bench.runs.ended_runs(
            bench.name, f"{bench.name}-v%-evaluation-%", since=since, before=before
        )
        for run_id in ended:
            try:
                deleted += sum(bench.runs.delete(run_id, name) for name in _PAGE_NAMES)
            except TrackingRefused as error:  # somebody deleted the run, or its store refuses
                _LOG.warning("%s: the pages of run %s stay: %s", bench.name, run_id, error)
        if ended:
            value = {"before": before}
            after = kept.number if kept else 0
            bench.journal.put_state(bench.name, _PAGES, value, after=after, now=bench.clock())
    except ServingError as error:
        _LOG.warning("%s: old pages stay for now: %s", bench.name, error)
    return deleted


def _delete_shadow_pages(bench: Bench, *, before: float) -> int:
    """The pages of differing answers of ended releases that began before a moment: they show users' texts.

    None of their requests is older than the release, so pages go before the last trace of whose these are.
    """
    now = bench.clock()
    ended = [
        one.mlflow_run_id
        for one in _with_pages(bench)
        if one.ended_at is not None and one.started_at < before
    ]
    deleted = 0
    try:
        for run_id in ended:
            with suppress(TrackingRefused):  # somebody deleted the run
                deleted += bench.runs.delete(run_id, DIFFERENCES)
        if ended:
            kept = bench.journal.state(bench.name, _SHADOW_PAGES)
            value = {"before": before, "at": now}
            bench.journal.put_state(
                bench.name, _SHADOW_PAGES, value, after=kept.number if kept else 0, now=now
            )
    except ServingError as error:
        _LOG.warning("%s: old shadow pages stay for now: %s", bench.name, error)
    return deleted


def _with_pages(bench: Bench) -> list[ReleaseRow]:
    """Releases with a run, but for those whose pages were deleted at an earlier time."""
    kept = bench.journal.state(bench.name, _SHADOW_PAGES)
    begun, seen = (float(kept.value[key]) if kept and key in kept.value else 0.0 for key in ("before", "at"))
    return [
        one
        for one in bench.journal.releases(bench.name)
        if one.mlflow_run_id
        and not (one.started_at < begun and one.ended_at is not None and one.ended_at < seen)
    ]


def _clear_shadow_pages(bench: Bench, request_ids: Collection[str]) -> tuple[int, TrackingUnavailable | None]:
    """Take requests out of the shadow's pages: how many pages held any, and what kept it from looking."""
    cleared = 0
    with_texts = [
        one.mlflow_run_id
        for one in _with_pages(bench)
        if (one.policy.get("shadow") or {}).get("text") is not None
    ]
    try:
        for run_id in with_texts if request_ids else ():
            with suppress(TrackingRefused), TemporaryDirectory() as folder:
                path = bench.runs.fetch(run_id, DIFFERENCES, Path(folder))
                left = (
                    without_requests(path.read_text(encoding="utf-8"), request_ids)
                    if path is not None
                    else None
                )
                if left is None:
                    continue
                if left:
                    bench.runs.log_text(run_id, DIFFERENCES, left)
                else:
                    bench.runs.delete(run_id, DIFFERENCES)
                cleared += 1
    except TrackingUnavailable as error:
        return cleared, error
    return cleared, None
