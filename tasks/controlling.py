"""The concurrent control of a watch: finding the version before the champion, and asking both."""

from __future__ import annotations

from dataclasses import replace

from evals.control import (
    Answered,
    Cells,
    ControlVerdict,
    Previous,
    PreviousState,
    count_answers,
    judge_control,
)
from evals.watch import QUALITY, Harm
from evals.watch_decisions import alpha_of
from serving.errors import NotHealthy, Refused, ServingError, TransientError
from serving.records import EndpointRow
from serving.replay import EndpointAsker, Replayer, Side
from tasks.bench import Bench
from tasks.labelled_control import compare_labelled
from tasks.previous import (
    ClientBreaking,
    check_compatible,
    is_failure,
    known_previous,
    unhealthy_replicas,
    warm_previous,
)
from tasks.watch_memory import Memory

_CHUNK_PAIRS = 25
_RECENT_MAX = 2000


def find_previous(bench: Bench, row: EndpointRow) -> tuple[EndpointRow, Previous]:
    """The version before the champion, started where it is cold and the policy allows that."""
    release = bench.journal.open_release(bench.name)
    if release is not None and row.release_id == release.id:
        return row, Previous(release.version, PreviousState.RELEASING)
    version = ""
    try:
        version = known_previous(bench, row)
        if not version:
            return row, Previous("", PreviousState.NONE)
        check_compatible(bench, row)
        if not row.other_version and not bench.policy.watch.control.start_cold:
            return row, Previous(version, PreviousState.AWAY, "it is cold, watch.control.start_cold is off")
        warmed = warm_previous(bench, row)
        row = bench.row()
        down = unhealthy_replicas(bench, warmed.slot)
    except ClientBreaking as error:
        return row, Previous(version, PreviousState.INCOMPATIBLE, str(error))
    except (NotHealthy, Refused) as error:
        return row, Previous(version, PreviousState.UNHEALTHY, str(error))
    except TransientError as error:
        return row, Previous(version, PreviousState.AWAY, str(error))
    state = PreviousState.UNHEALTHY if down else PreviousState.WARM
    return row, Previous(version, state, down)


def keep_warm(bench: Bench, row: EndpointRow) -> None:
    """While there is harm the sweep must not retire the version that may be needed."""
    until = bench.clock() + 2 * bench.policy.watch.control.every_s
    if 0 < row.keep_until < until:
        bench.journal.change(bench.name, generation=row.generation, now=bench.clock(), keep_until=until)


def ask_control(
    bench: Bench, row: EndpointRow, memory: Memory, harms: tuple[Harm, ...]
) -> tuple[ControlVerdict | None, str]:
    """Replay recent requests to both versions until that decides or no more are there.

    Returns the verdict so far (None without any pair), and what stood in the way. Question k since
    the harm began has alpha/(k(k + 1)): however often one asks, all together stay within alpha.
    """
    policy = bench.policy.watch.control
    alpha = alpha_of(bench.policy.watch, memory.asks)
    if any(harm.level.name == QUALITY for harm in harms):
        problem = _ask_about_quality(bench, row, memory)
        if all(harm.level.name == QUALITY for harm in harms):
            told = judge_control(policy, alpha, harms, memory.cells, memory.judge.levels)
            # its pairs are all that there are: more replays would show nothing
            return (None, problem) if problem else (replace(told, is_final=True), "")
    if not memory.spool:
        return None, "no captured requests (capture.spool)"
    try:
        recent, memory.spool = bench.endpoint.exchanges(memory.spool, limit=_RECENT_MAX)
    except ServingError as error:
        return None, str(error)
    done = max((cells.pairs for cells in memory.cells.values()), default=0)
    recent = recent[-max(policy.pairs - done, 0) :]
    sides = {Side.CANDIDATE: row.default, Side.CHAMPION: row.default.sibling}
    asker = EndpointAsker(bench.endpoint, sides, timeout_s=bench.policy.replicas.request_timeout_s)
    told: ControlVerdict | None = None
    with Replayer(
        asker, concurrency=policy.concurrency, rate_per_s=policy.rate_per_s, both_share=1.0
    ) as replayer:
        for start in range(0, len(recent), _CHUNK_PAIRS):
            pairs = replayer.run_once(recent[start : start + _CHUNK_PAIRS]).pairs
            answers = [
                Answered(
                    is_failure(bench.policy, pair.candidate),
                    pair.candidate.elapsed_ms,
                    is_failure(bench.policy, pair.champion_again),
                    pair.champion_again.elapsed_ms,
                )
                for pair in pairs
                if pair.champion_again is not None
            ]
            for name, cells in count_answers(answers, memory.judge.levels).items():
                memory.cells[name] = memory.cells.get(name, Cells()).plus(cells)
            told = judge_control(policy, alpha, harms, memory.cells, memory.judge.levels)
            if told.is_final:
                break
    return told, ""


def _ask_about_quality(bench: Bench, row: EndpointRow, memory: Memory) -> str:
    """Compare labelled answers, once a question. Returns what stood in the way, "" for nothing."""
    if QUALITY in memory.cells:
        return ""
    cells, problem = compare_labelled(bench, row, limit=bench.policy.watch.control.pairs)
    if cells.pairs:
        memory.cells[QUALITY] = cells
    return "" if cells.pairs else problem
