"""Whether held-out labels can answer anything at all, asked before any version scores them.

Each problem is an ERROR that names the next step: the question could not be asked, so nobody is
rejected and nothing passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.evaluation import Evaluation
from evals.verdict import Finding, Outcome

_CLASSES_MAX = 1000


def labelled(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows have a label, shape (n,)."""
    import pandas as pd

    return np.asarray(pd.notna(labels), np.bool_)


def judge_labels(policy: Evaluation, labels: NDArray[Any]) -> Finding | None:
    """What is wrong with the labels (missing ones among them); None where they can be used."""
    known = labels[labelled(labels)]
    problem = _missing(policy, labels, known) or _unfit(policy, known)
    return None if problem is None else Finding("labels", Outcome.ERROR, problem, units=int(labels.size))


def note_missing(policy: Evaluation, labels: NDArray[Any]) -> Finding | None:
    """A note on rows that were left out because they have no label; None where all have one."""
    missing = int(labels.size - labelled(labels).sum())
    if not missing:
        return None
    reason = (
        f"{missing} of {labels.size} held-out rows have no {policy.label!r} and were left out: if labels are "
        "missing for a reason, the numbers hold for the labelled rows only"
    )
    return Finding("labels", Outcome.INCONCLUSIVE, reason, units=missing, blocks=False)


def _missing(policy: Evaluation, labels: NDArray[Any], known: NDArray[Any]) -> str | None:
    if labels.size == 0:
        return "the held-out data has no rows. Next: check what wrote it, and evaluation.data in the policy"
    if known.size == 0:
        return (
            f"none of the {labels.size} held-out rows has a value in {policy.label!r}. "
            "Next: wait for labels, or correct evaluation.label in the policy"
        )
    return None


def _unfit(policy: Evaluation, known: NDArray[Any]) -> str | None:
    if policy.task == "classification":
        return _unfit_classes(policy, known)
    if known.dtype.kind not in "fiub":
        try:
            known.astype(np.float64)
        except (TypeError, ValueError):
            return (
                f"{policy.label!r} holds {type(known[0]).__name__} such as {str(known[0])[:30]!r}; a "
                f"{policy.task} needs numbers. Next: correct evaluation.label or evaluation.task"
            )
    values = known.astype(np.float64)
    if not np.isfinite(values).all():
        return (
            f"{int(np.sum(~np.isfinite(values)))} labels in {policy.label!r} are infinite. "
            "Next: mend them in the held-out data"
        )
    if policy.task == "ranking" and (values.min() < 0 or values.max() <= 0):
        return (
            f"relevance in {policy.label!r} is {values.min():g} to {values.max():g}; NDCG needs numbers from "
            "0, and some above. Next: correct evaluation.label"
        )
    return None


def _unfit_classes(policy: Evaluation, known: NDArray[Any]) -> str | None:
    kinds = sorted({type(value).__name__ for value in known.tolist()})
    if len(kinds) > 1:
        return (
            f"{policy.label!r} mixes {' and '.join(kinds)}: classes must be of one type. "
            "Next: write the labels in one type"
        )
    classes = np.unique(known)
    if classes.size == 1:
        return (
            f"all {known.size} labels in {policy.label!r} are {str(classes[0])!r}: with one class nothing "
            "can be told apart. Next: hold out rows of every class"
        )
    if classes.size > _CLASSES_MAX or (known.dtype.kind == "f" and bool(np.any(classes % 1 != 0))):
        return (
            f"{policy.label!r} has {classes.size} different values ({classes[0]} to {classes[-1]}): that is "
            "no set of classes. Next: set evaluation.task to regression, or correct evaluation.label"
        )
    return None
