"""What is known of harm when a window is judged: the watch's tests, and the previous version, asked now."""

from __future__ import annotations

from evals.control import ControlAnswer, PreviousState
from evals.drift_decision import Harm
from serving.records import EndpointRow
from tasks.bench import Bench
from tasks.controlling import ask_control, find_previous
from tasks.labels import is_known_good
from tasks.watch_memory import remember

_ANSWERS = {ControlAnswer.BETTER: Harm.NEW_VERSION_ONLY, ControlAnswer.BOTH: Harm.BOTH}


def known_harm(bench: Bench, row: EndpointRow, *, since: float, until: float) -> Harm:
    """Whether the champion breaks a service level now, and whether the version before it would too.

    Drift itself never answers this. Where the watch sees harm, recent requests are replayed to both
    versions, as the watch does; what the replays cannot tell is NOT_COMPARED, and rolls nothing back.
    Kept service levels do not show that answers are right: without harm it is NONE only where enough of
    the window's requests have labels, and these prove `watch.quality`; otherwise UNKNOWN.
    """
    memory = remember(bench, row) if bench.policy.watch.enabled else None
    harms = memory.judge.harms(bench.clock()) if memory is not None else ()
    if memory is None or not harms:
        return Harm.NONE if is_known_good(bench, row.champion, since=since, until=until) else Harm.UNKNOWN
    row, previous = find_previous(bench, row)
    if previous.state is not PreviousState.WARM:
        return Harm.NOT_COMPARED
    control, _ = ask_control(bench, row, memory, harms)
    return Harm.NOT_COMPARED if control is None else _ANSWERS.get(control.answer, Harm.NOT_COMPARED)
