"""The version before the champion: known, compatible, warm and healthy, or why not.

Used by every rollback after a promotion, and by the watch for its control.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from configs.policy import Policy
from serving.capture.streams import read_usage
from serving.completions import TEXT_PATHS, unstreamed
from serving.endpoint import FAULTS, REFUSALS, Exchange, Reply, Slot
from serving.errors import Refused, ServingError
from serving.records import EndpointRow, ReleaseState
from serving.versions import model_uri
from tasks import changes
from tasks.bench import Bench
from tasks.signatures import client_break

WATCH = "watch"
"""Kind of the watch's state in the journal; its `spool` is a cursor that lies a little in the past."""
_PROOF_REQUESTS = 5
_PROOF_S = 2.0
"""All of them together: users suffer meanwhile."""
_RECENT_MAX = 2000
_START_MARGIN_S = 60.0


class PreviousUnhealthy(Refused):
    """The previous version cannot answer now: traffic stays where it is, and a person is told."""


class ClientBreaking(Refused):
    """The previous version would not understand today's clients; only `force` goes there."""


@dataclass(frozen=True, slots=True)
class Warmed:
    """The previous version in its slot. `cold_s` is how long its start took, 0 where it was warm."""

    slot: Slot
    version: str
    cold_s: float


def known_previous(bench: Bench, row: EndpointRow) -> str:
    """The version before the champion: the warm one, else the one it was promoted over. "" for none.

    By the journal: the alias `previous` belongs to the model, which other endpoints may serve too, and
    anybody can move it.
    """
    if row.other_version:
        return row.other_version
    promoted = bench.journal.releases(bench.name, version=row.champion)
    return next((one.champion for one in promoted if one.state is ReleaseState.PROMOTED), "")


def check_compatible(bench: Bench, row: EndpointRow) -> None:
    """Raise `ClientBreaking` where clients of the champion could not be answered by the version before."""
    previous = known_previous(bench, row)
    broken = client_break(bench, row.champion, previous) if previous else ""
    if broken:
        raise ClientBreaking(
            f"{bench.name}: going back to version {previous} would break clients: {broken}. Traffic stays on "
            f'version {row.champion}. Next: interlock rollback {bench.name} --force --reason "...", or '
            f"release a version that understands them"
        )


def warm_previous(bench: Bench, row: EndpointRow) -> Warmed:
    """Have the previous version run in the free slot, at zero share; started where it is cold.

    Raises `Refused` where none is known, `NotHealthy` where it does not start, `Fenced` where the
    endpoint moved meanwhile.
    """
    slot = row.default.sibling
    if row.other_version:
        return Warmed(slot, row.other_version, 0.0)
    previous = known_previous(bench, row)
    if not previous:
        raise Refused(
            f"{bench.name}: no previous version is known. Next: interlock release {bench.name} VERSION"
        )
    began = bench.clock()
    # The sweep takes down what no version is known to be in, but not before this.
    starts_until = began + bench.policy.replicas.start_timeout_s + _START_MARGIN_S
    bench.journal.change(bench.name, generation=row.generation, now=began, keep_until=starts_until)
    bench.endpoint.deploy(slot, previous, uri=model_uri(bench.policy.model, previous))
    now = bench.clock()
    bench.journal.change(
        bench.name,
        generation=row.generation,
        new_generation=row.generation + 1,
        now=now,
        keep_until=now + bench.policy.keep_previous_s,
        **{f"{slot.value}_version": previous},
    )
    changes.follow_journal(bench)
    bench.journal.record(
        bench.name, "started cold", who="rollback", now=now, version=previous, seconds=round(now - began, 2)
    )
    return Warmed(slot, previous, max(now - began, 1e-3))


def unhealthy_replicas(bench: Bench, slot: Slot) -> str:
    """What the platform says against a slot's replicas; "" where all of them are healthy."""
    replicas = bench.endpoint.describe().replicas.get(slot, ())
    down = [replica.name for replica in replicas if not replica.healthy]
    if not replicas:
        return "none of its replicas runs"
    return f"{len(down)} of {len(replicas)} replicas are down" if down else ""


def prove_previous(bench: Bench, warmed: Warmed, *, ask: bool = True) -> str:
    """Raise `PreviousUnhealthy` unless the previous version can answer; else what shows that it can.

    One live replica suffices: a rollback is an emergency. It must not fail every one of a few
    recent requests either; where there are none, or without `ask`, the platform's word has to do. Slow is
    not failed.
    """
    stays = f"traffic stays on version {bench.row().champion}. Next: interlock logs, then a person decides"
    replicas = bench.endpoint.describe().replicas.get(warmed.slot, ())
    healthy = sum(replica.healthy for replica in replicas)
    if not healthy:
        raise PreviousUnhealthy(
            f"{bench.name}: the previous version {warmed.version} is not healthy "
            f"({unhealthy_replicas(bench, warmed.slot)}); {stays}"
        )
    words = f"{healthy} of {len(replicas)} replicas healthy"
    asked = recent_requests(bench, _PROOF_REQUESTS) if ask else []
    if not asked:
        return words
    replies = _ask_at_once(bench, warmed.slot, asked)
    failures = sum(failed(reply.status) for reply in replies)
    if failures == len(asked):
        raise PreviousUnhealthy(
            f"{bench.name}: the previous version {warmed.version} answers none of {len(asked)} recent "
            f"requests (status {replies[0].status or 'none'}); {stays} "
            f'(interlock rollback {bench.name} --force --reason "..." goes there all the same)'
        )
    words += f", answered {len(replies) - failures} of {len(asked)} recent requests"
    late = len(asked) - len(replies)
    return f"{words}, {late} take longer than {_PROOF_S:g} s" if late else words


def _ask_at_once(bench: Bench, slot: Slot, asked: list[Exchange]) -> list[Reply]:
    """What came within the proof's time, of all requests together; a time-out of the platform's is none."""
    pool = ThreadPoolExecutor(len(asked), thread_name_prefix="proof")
    futures = [pool.submit(_ask, bench, slot, one) for one in asked]
    done, _ = wait(futures, timeout=_PROOF_S)
    pool.shutdown(wait=False, cancel_futures=True)
    replies = [future.result() for future in futures if future in done]
    return [reply for reply in replies if reply.status or reply.elapsed_ms < _PROOF_S * 1000]


def _ask(bench: Bench, slot: Slot, one: Exchange) -> Reply:
    """Of a language model one token is enough; one that refuses so short an answer is asked for all of it."""
    bodies: list[bytes | None] = [one.request]
    if one.path in TEXT_PATHS:
        bodies = [unstreamed(one.request, one_token=True), unstreamed(one.request)]
    reply = Reply(0, b"", 0.0)
    for body in bodies:
        reply = bench.endpoint.invoke(
            slot, one.path, body or one.request, content_type=one.content_type, timeout_s=2 * _PROOF_S
        )
        if reply.status not in REFUSALS:
            break
    return reply


def failed(status: int) -> bool:
    """Whether a status is a failure of the version: no answer, a server error, a refusal."""
    return status == 0 or status >= 500 or status in FAULTS


def is_failure(policy: Policy, reply: Reply) -> bool:
    """Whether a reply to a copy is the version's failure, as it would be live."""
    return failed(reply.status) or (reply.status == 200 and is_bad_answer(policy, reply.body))


def is_bad_answer(policy: Policy, body: bytes) -> bool:
    """Whether an answer with status 200 is a failure: words that broke off, or ended as they must not."""
    if not policy.serving.is_llm:
        return False
    told = read_usage(body)
    return told.broken or told.finish_reason in policy.serving.failing_ends


def recent_requests(bench: Bench, count: int) -> list[Exchange]:
    """The newest live requests that the spool still has, as far as the watch's cursor reaches back."""
    kept = bench.journal.state(bench.name, WATCH)
    if kept is None or kept.value["version"] != bench.row().champion or not kept.value["spool"]:
        return []
    try:
        found, _ = bench.endpoint.exchanges(kept.value["spool"], limit=_RECENT_MAX)
    except ServingError:
        return []
    return found[-count:]
