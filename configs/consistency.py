"""What the sections of a policy ask of one another, and what the local platform cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from configs.evaluation import Evaluation
from configs.generation import Generation

if TYPE_CHECKING:
    from configs.policy import Policy


def contradictions(policy: Policy) -> list[str]:
    """What of a policy the local platform cannot do."""
    found: list[str] = []
    if policy.shadow.enabled and not policy.capture.spool.enabled:
        found.append(
            "shadow.enabled needs capture.spool.enabled, whose exact requests it replays; allow the spool "
            "(encrypted: capture.spool.encrypt), or switch the shadow off with a reason"
        )
    return found


def lacks(policy: Policy) -> list[str]:
    """What one section asks of another that is not there."""
    found: list[str] = []
    scorers = policy.evaluation.scorers if isinstance(policy.evaluation, Generation) else ()
    if any(scorer.kind == "cost" for scorer in scorers):
        found += _unpriced(policy)
    if policy.capture.spool.personal and not policy.capture.personal:
        found.append("capture.spool.personal needs capture.personal, which says what is taken out")
    if policy.capture.personal and policy.platform != "local":
        found.append("capture.personal needs platform: local: elsewhere no process of ours records")
    found += [*_start_early_lacks(policy), *_rehearsal_lacks(policy), *_words_lack(policy)]
    guards = policy.serving.guards
    if guards.is_active and (policy.platform != "local" or not policy.serving.is_llm):
        found.append("serving.guards needs platform: local and serving.runtime vllm or api")
    if policy.prompt is not None and not policy.serving.is_llm:
        found.append("prompt needs a language model: set serving.runtime to vllm or api")
    if policy.prompt is not None and policy.platform != "local":
        found.append(
            f"prompt needs platform: local; on {policy.platform} nothing of ours stands before the model to "
            "add it"
        )
    if policy.serving.engine.is_set and policy.platform != "local":
        found.append("serving.engine needs platform: local: elsewhere no engine's gauges can be read")
    if policy.canary.quality is not None and policy.labels is None:
        found.append("canary.quality needs a section `labels:`, which says where the truth comes from")
    if policy.canary.quality is not None and policy.platform != "local":
        found.append("canary.quality needs platform: local: elsewhere requests are only counted")
    for key, measures in (("canary", policy.canary.measures), ("watch", policy.watch.measures)):
        if measures and policy.platform != "local":
            found.append(f"{key}.measures needs platform: local: elsewhere requests are only counted")
        elif measures and not policy.serving.is_llm:
            found.append(f"{key}.measures are of language models: set serving.runtime to vllm or api")
    if policy.platform != "local":
        captured = {"drift": policy.drift, "labels": policy.labels, "watch.quality": policy.watch.quality}
        found += [
            f"{key} needs platform: local: it goes by what replicas of ours captured, here there are none"
            for key, wanted in captured.items()
            if wanted is not None
        ]
    return found


def _start_early_lacks(policy: Policy) -> Iterator[str]:
    """What has to come before a candidate's replicas are started."""
    if not policy.replicas.start_early:
        return
    if policy.approval.required and policy.approval.before == "shadow":
        yield (
            "replicas.start_early starts a version before a person said yes: set approval.before: canary, or "
            "leave start_early out"
        )
    if "staging" in policy.environments:
        yield (
            "replicas.start_early starts a version before staging has measured what a replica bears: leave "
            "start_early out, or environments.staging"
        )
    evaluation = policy.evaluation
    if policy.platform == "local" and isinstance(evaluation, Evaluation) and evaluation.times_calls:
        yield (
            "replicas.start_early loads the machine on which evaluation.latency_ms and cost time calls: "
            "leave start_early out, or these budgets"
        )


def _words_lack(policy: Policy) -> list[str]:
    """What the sections about language models ask of one another."""
    found: list[str] = []
    text, evaluation = policy.shadow.text, policy.evaluation
    judge = evaluation.judge if isinstance(evaluation, Generation) else None
    if text is not None and text.judge_sample and (judge is None or judge.labelled is None):
        found.append(
            "shadow.text.judge_sample needs evaluation.judge with `labelled`: answers that people judged"
        )
    if text is not None and text.judge_apart and (judge is None or judge.labelled_pairs is None):
        found.append(
            "shadow.text.judge_apart needs evaluation.judge with `labelled_pairs` that people judged"
        )
    served = policy.serving.served_name or policy.endpoint
    if served in policy.serving.vllm.lora:
        found.append(
            f"serving.vllm.lora names an adapter {served}, as clients call the model: name it otherwise"
        )
    return found


def _unpriced(policy: Policy) -> list[str]:
    """Prices that the scorer `cost` needs: of every runtime that a version may have."""
    serving, found = policy.serving, []
    if serving.runtime != "api" and serving.price is None:
        found.append("the scorer `cost` needs serving.price: what a token costs")
    if serving.api is not None and serving.api.price is None:
        found.append("the scorer `cost` needs serving.api.price: what the provider takes for a token")
    return found


def _rehearsal_lacks(policy: Policy) -> list[str]:
    """What a rehearsal in staging cannot ask a version with."""
    found: list[str] = []
    in_words = isinstance(policy.evaluation, Generation)
    if in_words and policy.load_test is not None and policy.load_test.payloads == "captures":
        found.append(
            "load_test.payloads: captures is not for language models: their records are redacted, of several "
            "paths, and name production's model; with evaluation the prompts of evaluation.data are sent"
        )
    if "staging" in policy.environments and policy.serving.is_llm and not in_words:
        found.append(
            "environments.staging of a language model needs evaluation.task: generation: its prompts are sent"
        )
    return found
