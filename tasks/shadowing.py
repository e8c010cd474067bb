"""The shadow: replays live requests against the candidate, off the request path, and compares.

Nobody sees the candidate's answers. Every look's counts are stored, so a resumed release goes on
where it was. Replay gives way: it pauses while the champion's own p95 is well above what it was
before the shadow began. Answers in words that no judge or embeddings server compares wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from configs.policy import Policy, Shadow
from evals.compare import Agreement, compare_bodies
from evals.decisions import pair_summary
from evals.looks import LatencyThresholds
from evals.shadow import PairCounts, ShadowJudge, count_slower, no_shadow, out_of_time
from evals.verdict import Outcome, Verdict
from serving.endpoint import TOO_BUSY, Endpoint, Reply, Slot
from serving.gateway.log_erasing import forgotten_requests
from serving.gateway.places import access_log_path
from serving.records import LookRow, Stage
from serving.replay import Batch, EndpointAsker, Pair, Replayer, Side
from tasks.bench import Bench
from tasks.model_api import ModelApiError
from tasks.previous import is_bad_answer
from tasks.release import Release
from tasks.text_pairs import TextPairs
from tasks.trail import DIFFERENCES

_LOG = logging.getLogger("interlock.shadow")
_STAGE = Stage.SHADOW.value
_LOOK_S = 2.0
_BATCH_MAX = 5000
_TIMED_MIN = 100
"""Timed pairs from whose champion latencies the thresholds are taken; later pairs are compared."""
_PRESSURE_REQUESTS = 200
_BEFORE_MAX = 10_000
_PRESSURE_RATIO = 2.0
_PRESSURE_SLACK_MS = 5.0
_EXAMPLES_MAX = 20


@dataclass(slots=True)
class _Shadow:
    """Everything the loop carries from look to look."""

    judge: ShadowJudge
    number: int = 0
    cursor: str | None = None
    thresholds: LatencyThresholds | None = None
    timed_ms: list[float] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    texts: TextPairs | None = None
    waiting: tuple[Batch, str] | None = None
    trouble: ModelApiError | None = None


def run_shadow(release: Release) -> Verdict:
    """Replay until the evidence decides; INCONCLUSIVE when the policy's time is over.

    Raises `Fenced`, `Aborted`, what the platform raises, and `ModelApiError` where answers could not be
    compared until that time was over.
    """
    bench, policy = release.bench, release.bench.policy.shadow
    if not policy.enabled:
        return no_shadow(policy)
    default = bench.row().default
    shadow = _restore(release)
    pressure = Pressure(bench.endpoint, default, since=release.opened_cursor)
    asker = EndpointAsker(
        bench.endpoint,
        {Side.CHAMPION: default, Side.CANDIDATE: default.sibling},
        timeout_s=bench.policy.replicas.request_timeout_s,
    )
    _, shadow.cursor = bench.endpoint.exchanges(None, limit=1)
    until = bench.clock() + policy.timeout_s
    with Replayer(
        asker,
        concurrency=policy.concurrency,
        rate_per_s=policy.rate_per_s,
        must_pause=lambda: pressure.high,
    ) as replayer:
        while True:
            release.check()
            pressure.look()
            verdict = _look(release, shadow, replayer)
            if verdict.outcome is not Outcome.INCONCLUSIVE:
                _keep_examples(release, shadow)
                return verdict
            if bench.clock() > until:
                _keep_examples(release, shadow)
                if shadow.trouble is not None:
                    raise ModelApiError(
                        f"{bench.name}: answers could not be compared until the shadow's time of "
                        f"{policy.timeout_s:g} s was over: {shadow.trouble}, then interlock resume "
                        f"{bench.name}"
                    ) from shadow.trouble
                return out_of_time(policy, verdict)


def _look(release: Release, shadow: _Shadow, replayer: Replayer) -> Verdict:
    bench = release.bench
    batch, cursor = shadow.waiting or _replay(bench, shadow, replayer)
    try:
        counts = count_pairs(release, shadow, batch.pairs)
    except ModelApiError as error:
        shadow.waiting, shadow.trouble = (batch, cursor), error
        return _wait(release, error)
    shadow.waiting = shadow.trouble = None
    verdict = shadow.judge.look(counts)
    now = bench.clock()
    release.meter.look(now=now)
    shadow.number += counts.pairs > 0
    if counts.pairs > 0:
        stats = {
            "counts": counts.as_dict(),
            "thresholds": shadow.thresholds and shadow.thresholds.as_dict(),
            "champion": release.row.champion,
            "decided": pair_summary(verdict),
        }
        bench.journal.add_look(
            LookRow(release.row.id, _STAGE, shadow.number, now, shadow.cursor, cursor, stats)
        )
    shadow.cursor = cursor
    numbers = {
        **shadow.judge.numbers,
        "lag_s": batch.lag_s or 0.0,
        "coverage": replayer.totals.coverage,
        "paused_s": replayer.totals.paused_s,
    }
    release.trail.numbers(
        {f"shadow/{name}": value for name, value in numbers.items()}, now=now, step=shadow.number
    )
    release.progress(
        {
            "look": shadow.number,
            "outcome": verdict.outcome.value,
            "reason": verdict.reason,
            "eta_units": verdict.eta_units,
            "min_pairs": bench.policy.shadow.min_pairs,
            **numbers,
        }
    )
    return verdict


def _replay(bench: Bench, shadow: _Shadow, replayer: Replayer) -> tuple[Batch, str]:
    """What came of the newest requests, and where to read on."""
    assert shadow.cursor is not None
    exchanges, cursor = bench.endpoint.exchanges(shadow.cursor, limit=_BATCH_MAX)
    begun = bench.clock()
    batch = replayer.run_once(exchanges, budget_s=_LOOK_S)
    bench.sleep(max(0.0, begun + _LOOK_S - bench.clock()) if len(batch.pairs) == 0 else 0.0)
    return batch, cursor


def _wait(release: Release, error: ModelApiError) -> Verdict:
    """A look at which nothing could be compared: its pairs are kept, and nothing more is replayed."""
    verdict = Verdict(Outcome.INCONCLUSIVE, f"waits to compare answers: {error}")
    release.progress({"outcome": verdict.outcome.value, "reason": verdict.reason})
    release.bench.sleep(_LOOK_S)
    return verdict


def count_pairs(release: Release, shadow: _Shadow, pairs: Sequence[Pair]) -> PairCounts:
    """Compare pairs and count. The first timed pairs set the latency thresholds, later ones count.

    Raises `ModelApiError` with nothing changed, so that the same pairs can be counted later.
    """
    policy = release.bench.policy
    table = {(False, False): 0, (True, False): 0, (False, True): 0, (True, True): 0}
    disagreeing = uncompared = 0
    bad = [_bad_sides(policy, pair) for pair in pairs]
    agreements = _agreements(policy.shadow, shadow, pairs, bad)
    for pair, sides, agreement in zip(pairs, bad, agreements, strict=True):
        table[sides] += 1
        why = _what_failed(pair.candidate) if sides[0] else ""
        if agreement is None:
            uncompared += not any(sides)
        else:
            disagreeing += not agreement.agree
            why = agreement.reason
        if why and len(shadow.examples) < _EXAMPLES_MAX:
            shadow.examples.append(_example(pair, why))
    timed = [
        (pair.candidate.elapsed_ms, again.elapsed_ms)
        for pair, (candidate_bad, _) in zip(pairs, bad, strict=True)
        if (again := pair.champion_again) is not None
        and not candidate_bad
        and not _is_bad(policy, again.status, again.body)
    ]
    slower: dict[str, tuple[int, int]] = {}
    if shadow.thresholds is not None and timed:
        ours, theirs = np.asarray(timed).T
        slower = count_slower(ours, theirs, shadow.thresholds, tolerance=policy.canary.latency.tolerance)
    elif shadow.thresholds is None:
        shadow.timed_ms.extend(champion for _, champion in timed)
        timed = []
        if len(shadow.timed_ms) >= _TIMED_MIN:
            shadow.thresholds = LatencyThresholds.from_past(shadow.timed_ms)
    return PairCounts(
        both_fine=table[False, False],
        candidate_bad=table[True, False],
        champion_bad=table[False, True],
        both_bad=table[True, True],
        disagreeing=disagreeing,
        timed=len(timed),
        slower=slower,
        uncompared=uncompared,
    )


def _agreements(
    policy: Shadow, shadow: _Shadow, pairs: Sequence[Pair], bad: Sequence[tuple[bool, bool]]
) -> list[Agreement | None]:
    """Whether the answers of each pair agree; None where one side failed, or they were not compared."""
    fine = [pair for pair, sides in zip(pairs, bad, strict=True) if not any(sides)]
    if shadow.texts is not None:
        found: Sequence[Agreement | None] = shadow.texts.compare(fine)
    else:
        tolerance = policy.score_tolerance
        assert tolerance is not None
        found = [
            compare_bodies(pair.candidate.body, pair.champion_body, score_tolerance=tolerance)
            for pair in fine
        ]
    by_pair = {id(pair): agreement for pair, agreement in zip(fine, found, strict=True)}
    return [by_pair.get(id(pair)) for pair in pairs]


def _bad_sides(policy: Policy, pair: Pair) -> tuple[bool, bool]:
    """Whether the candidate failed, and whether the champion had, live."""
    candidate = pair.candidate
    return (
        _is_bad(policy, candidate.status, candidate.body) or _refuses_what_was_fine(pair),
        _is_bad(policy, pair.champion_status, pair.champion_body),
    )


def _is_bad(policy: Policy, status: int, body: bytes) -> bool:
    """Whether an answer is the version's failure: none, a server error, too busy, or broken words."""
    if status == 200:
        return is_bad_answer(policy, body)
    return status in (0, TOO_BUSY) or status >= 500


def _refuses_what_was_fine(pair: Pair) -> bool:
    """A 4xx where the champion answered: client-breaking, so the candidate's failure."""
    return pair.candidate.status >= 400 and pair.champion_status < 400


def _what_failed(reply: Reply) -> str:
    return (
        f"status {reply.status}, and the answer broke off, or was blocked or cut short"
        if reply.status == 200
        else f"status {reply.status}"
    )


def _example(pair: Pair, why: str) -> dict[str, Any]:
    """What a person needs to look into a difference: ids and statuses, no payload of a user."""
    return {
        "request_id": pair.request_id,
        "why": why,
        "champion_status": pair.champion_status,
        "candidate_status": pair.candidate.status,
        "candidate_ms": round(pair.candidate.elapsed_ms, 2),
    }


def _keep_examples(release: Release, shadow: _Shadow) -> None:
    from tasks.trail import plain_json

    release.trail.document("shadow_examples.json", plain_json(shadow.examples))
    if shadow.texts is None:
        return
    bench = release.bench
    page = shadow.texts.page(forgotten_requests(access_log_path(bench.settings), bench.name))
    if page is not None:
        release.trail.document(DIFFERENCES, page)


def _restore(release: Release) -> _Shadow:
    """The shadow as it was after the last stored look."""
    policy = release.bench.policy
    shadow = _Shadow(ShadowJudge(policy.shadow, policy.canary.errors.margin, policy.canary.latency))
    if policy.shadow.text is not None:
        shadow.texts = TextPairs(release, policy.shadow.text)
    for look in release.bench.journal.looks(release.row.id, _STAGE):
        shadow.number = look.number
        if look.stats.get("champion", "") not in ("", release.row.champion):
            continue  # pairs with a champion that is gone say nothing of this one
        shadow.judge.look(PairCounts.from_dict(look.stats["counts"]))
        if look.stats["thresholds"]:
            shadow.thresholds = LatencyThresholds.from_dict(look.stats["thresholds"])
    return shadow


class Pressure:
    """Whether the champion's live p95 is well above what it was before the shadow began."""

    def __init__(self, endpoint: Endpoint, champion: Slot, *, since: str | None) -> None:
        """Read what came before, since a cursor. Where that is too little, the first requests have to do."""
        self._endpoint = endpoint
        self._champion = champion
        self._cursor: str | None = None
        self._before: float | None = None
        self._recent: list[float] = []
        self.high = False
        if since is not None:
            before = self._read(since, limit=_BEFORE_MAX)
            if len(before) >= _PRESSURE_REQUESTS:
                self._before = float(np.quantile(before, 0.95))
            self._cursor = endpoint.observations(None).cursor

    def _read(self, cursor: str | None, *, limit: int | None = None) -> list[float]:
        """The champion's service times from a cursor on."""
        seen = self._endpoint.observations(cursor, limit=limit)
        self._cursor = seen.cursor
        frame = seen.frame
        ours = frame[(frame["slot"] == self._champion.value) & (frame["service_ms"] > 0)]
        return ours["service_ms"].tolist()

    def look(self) -> None:
        """Read what finished since the last time."""
        if not self._endpoint.capabilities.per_request_observations:
            return  # counts of minutes ago say nothing about now: `shadow.rate_per_s` is the only bound
        self._recent = [*self._recent, *self._read(self._cursor)][-_PRESSURE_REQUESTS:]
        if len(self._recent) < _PRESSURE_REQUESTS:
            return
        p95 = float(np.quantile(self._recent, 0.95))
        if self._before is None:
            self._before = p95
        high = p95 > _PRESSURE_RATIO * self._before + _PRESSURE_SLACK_MS
        if high != self.high:
            _LOG.info(
                "champion's p95 %.1f ms, before %.1f ms: replay %s",
                p95,
                self._before,
                "pauses" if high else "goes on",
            )
        self.high = high
