"""Would the previous version have answered labelled requests better? Asked with what was captured.

The champion's answers have their scores; the previous version is asked the same now, and scored by the
same labels. Its answers are as of today: a version that looks things up may know more than it did.
"""

from __future__ import annotations

from contextlib import closing

from evals.control import Cells
from evals.quality import is_bad, score
from serving.capture.reader import find_captures
from serving.capture.tables import answers_of
from serving.labels import LabelBook
from serving.records import EndpointRow
from tasks.bench import Bench


def compare_labelled(bench: Bench, row: EndpointRow, *, limit: int) -> tuple[Cells, str]:
    """The newest labelled answers of the champion beside the previous version's; at most `limit` requests.

    Returns the pairs by who was bad, and what stood in the way where there are none.
    """
    policy, capture = bench.policy.labels, bench.policy.capture
    if policy is None:
        return Cells(), "the policy has no `labels`"
    if capture.drop or capture.hash:
        return Cells(), "captures lack columns (capture.drop, capture.hash), so they cannot be asked again"
    with closing(LabelBook(bench.settings.journal)) as book:
        found = book.recent(bench.name, version=row.champion, since=0.0, limit=limit)
    wanted = {one.request_id: one for one in found if one.score is not None}
    bad = {(False, False): 0, (True, False): 0, (False, True): 0, (True, True): 0}
    columns = ("request_id", "path", "content_type", "inputs")
    captured = find_captures(
        bench.settings.captures_dir / bench.name,
        list(wanted),
        columns=columns,
        since=min((one.time for one in found), default=0.0) - 1,
    )
    # read first: the folder's lock is not held while a version answers
    for request_id, path, content_type, inputs in list(captured):
        label = wanted.pop(request_id, None)
        if label is None or inputs is None or label.score is None:
            continue
        reply = bench.endpoint.invoke(
            row.default.sibling,
            path,
            inputs.encode(),
            content_type=content_type or "application/json",
            timeout_s=bench.policy.replicas.request_timeout_s,
        )
        answers = answers_of(reply.body.decode(errors="replace")) if reply.status == 200 else None
        answer = answers[label.row].get(policy.prediction) if answers and label.row < len(answers) else None
        worth = score(policy, answer, label.label)
        key = f"{request_id}:{label.row}"
        bad[is_bad(label.score, key), worth is None or is_bad(worth, key)] += 1
    cells = Cells(*bad.values())
    return cells, "" if cells.pairs else "no labelled request is captured whole"
