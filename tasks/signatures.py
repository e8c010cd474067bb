"""Whether clients of one version could be answered by another: their MLflow signatures, compared.

The signature of a version is noted in the journal when it is evaluated, because a rollback must
not wait for MLflow. Clients send what the version that serves accepts and read what it answers,
so what they would miss is: a column that only the older version needs, a value that it cannot
take, an answer that it does not give.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.bench import Bench
from tasks.runs import as_columns

_LOG = logging.getLogger("interlock.signatures")
_NOTED = "signature"
_TAKES = {
    "double": {"double", "float", "long", "integer"},
    "float": {"float", "integer"},
    "long": {"long", "integer"},
}
"""Types that a column of the key's type can be given."""

Columns = Sequence[Mapping[str, Any]]


def note_signature(bench: Bench, release_id: str, version: str, model: Any) -> None:
    """Keep a loaded model's signature in the journal; models without one have nothing to keep."""
    signature = as_columns(getattr(getattr(model, "metadata", None), "signature", None))
    if signature is None:
        return
    bench.journal.record(
        bench.name,
        _NOTED,
        who="evaluate",
        now=bench.clock(),
        release_id=release_id,
        version=version,
        **signature,
    )


def client_break(bench: Bench, serving: str, other: str) -> str:
    """What clients of `serving` would lose with `other`; "" for nothing, or where it is not known."""
    now, then = _noted(bench, serving), _noted(bench, other)
    if now is None or then is None:
        _LOG.info("%s: signatures of %s and %s are not both known", bench.name, serving, other)
        return ""
    return signature_break(now, then)


def not_compared(bench: Bench, serving: str, other: str) -> str:
    """Words for a result where `client_break` did not know; "" where it did, or has no need to."""
    unknown = [version for version in (serving, other) if _noted(bench, version) is None]
    if not unknown or bench.policy.serving.is_llm:  # all language models have one protocol
        return ""
    return f"signatures not compared, for none is noted of version {' and '.join(unknown)}"


def signature_break(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """What clients of the signature `now` would lose with `then`; "" for nothing."""
    return _inputs_break(now["inputs"], then["inputs"]) or _outputs_break(now["outputs"], then["outputs"])


def _noted(bench: Bench, version: str) -> Mapping[str, Any] | None:
    lines = bench.journal.audit(bench.name, what=(_NOTED,), limit=1000)
    return next((line.details for line in lines if line.details["version"] == version), None)


def _inputs_break(now: Columns, then: Columns) -> str:
    """`now` is what clients send, `then` what would be asked of them."""
    sent = {column.get("name"): column for column in now}
    for column in then:
        name, known = column.get("name"), sent.get(column.get("name"))
        if name is None:
            if known is not None and known.get("type") != column.get("type"):
                return f"it takes {column.get('type')}, clients send {known.get('type')}"
            continue
        if known is None or (column.get("required", True) and not known.get("required", True)):
            if column.get("required", True):
                return f"it needs the input column {name!r}, which clients need not send now"
            continue
        takes = _TAKES.get(str(column.get("type")), {column.get("type")})
        if known.get("type") not in takes:
            return f"it takes the input column {name!r} as {column.get('type')}, not as {known.get('type')}"
    return ""


def _outputs_break(now: Columns, then: Columns) -> str:
    given = {column.get("name"): column.get("type") for column in then}
    for column in now if then else ():
        name = column.get("name")
        if name not in given:
            return f"it does not answer the output {name or 'that clients read'!r}"
        if given[name] != column.get("type"):
            return f"it answers {name or 'its output'!r} as {given[name]}, not as {column.get('type')}"
    return ""
