"""The offline gate of language models: asks both versions the prompts, scores, asks `evals.generation`.

The candidate answers from its slot, where it was placed at zero share: what is judged is the very
process that would serve, with its prompt, its guards and its decoding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from configs.generation import Generation
from configs.prices import API_MACHINE
from configs.serving_runtime import Price
from evals.agreement import Agreement, Preference
from evals.generation import JUDGE_AGREEMENT, Contest, Measures, all_refused, evaluate_generation
from evals.texts import cosine, word_similarity
from evals.verdict import Verdict
from serving.endpoint import Slot
from serving.errors import ServingError, SetupError
from serving.records import Stage
from tasks.answers import CANDIDATE, CHAMPION, Answers, ask_all
from tasks.genai import Example, Scores
from tasks.judging import JudgeClient, Question, check_judge, check_judge_on_pairs
from tasks.model_api import ModelApi, ModelApiError
from tasks.prompt_sets import PromptRow, plain, read_prompts
from tasks.release import Release
from tasks.scorers import Scored, scorers_of

_LOG = logging.getLogger("interlock.generation")
_SHOWN_CHARS = 4000


def evaluate_answers(release: Release, policy: Generation) -> Verdict:
    """Candidate against champion on the same prompts. The candidate must be placed.

    Raises SetupError for data that cannot be read and for a champion that answers nothing.
    """
    bench = release.bench
    rows, digest = read_prompts(bench, policy)
    _LOG.info("%s: %d prompts, digest %s", release.row.id, len(rows), digest[:12])
    answers = _ask(release, policy, rows)
    ours = [one for samples in answers[CANDIDATE] for one in samples]
    if all(one.refused for one in ours):
        return all_refused(len(rows), ours[0].why_failed)
    with ExitStack() as stack:
        judge = None
        if policy.judge is not None:
            api = stack.enter_context(ModelApi(policy.judge.api))
            judge = JudgeClient(policy.judge, api)
        errors: dict[str, str] = {}
        agreements = _agreements(release, policy, judge, errors)
        measures = {who: _measured(release, policy, who, rows, answers, judge, errors) for who in answers}
        preferences = _preferences(release, policy, rows, answers, judge, errors)
    contest = Contest(
        candidate=measures[CANDIDATE],
        champion=measures.get(CHAMPION),
        digest=digest,
        agreement=agreements.get("judge"),
        pair_agreement=agreements.get("pairwise"),
        preferences=preferences,
        slices=_slices(policy, rows),
        why_unmeasured=errors,
    )
    verdict = evaluate_generation(policy, contest)
    _note(release, verdict)
    return verdict


def _ask(release: Release, policy: Generation, rows: Sequence[PromptRow]) -> Answers:
    bench = release.bench
    slots = _slots_of(release)

    def on_progress(done: int) -> None:
        release.check()
        if done % 10 == 0 or done == len(rows):
            doing = f"asked {done} of {len(rows)} prompts"
            release.progress({"rows": len(rows), "doing": doing})

    answers = ask_all(
        bench.endpoint,
        slots,
        rows,
        policy,
        timeout_s=bench.policy.replicas.request_timeout_s,
        on_progress=on_progress,
    )
    for failed in [one for samples in answers[CANDIDATE] for one in samples if one.why_failed][:1]:
        _LOG.warning("%s: the candidate did not answer: %s", release.row.id, failed.why_failed)
    theirs = [one for samples in answers.get(CHAMPION, []) for one in samples]
    if theirs and all(one.why_failed for one in theirs):
        raise SetupError(
            f"{bench.name}: the champion, version {release.row.champion}, answered none of {len(rows)} "
            f"prompts ({theirs[0].why_failed}), so there is nothing to compare with. "
            "Next: check the endpoint, evaluation.data and how it is asked (tokens_field, temperature)"
        )
    return answers


def _agreements(
    release: Release, policy: Generation, judge: JudgeClient | None, errors: dict[str, str]
) -> dict[str, Agreement]:
    """How far the judge agrees with people, by the kind of scorer that this matters to."""
    if judge is None or policy.judge is None:
        return {}
    checks = {
        "judge": (policy.judge.labelled, check_judge, "judge_kappa"),
        "pairwise": (policy.judge.labelled_pairs, check_judge_on_pairs, "judge_pairs_kappa"),
    }
    found: dict[str, Agreement] = {}
    for kind, (labelled, check, name) in checks.items():
        if labelled is None:
            continue
        release.progress({"doing": f"checking the judge on what people labelled ({kind})"})
        try:
            found[kind] = check(release.bench, policy, judge)
        except ModelApiError as error:
            errors[JUDGE_AGREEMENT[kind]] = str(error)
            _LOG.warning("the judge could not be checked: %s", error)
            continue
        numbers = {f"evaluate/{name}": found[kind].kappa, f"evaluate/{name}_low": found[kind].low}
        release.trail.numbers(numbers, now=release.bench.clock(), step=0)
    return found


def _measured(
    release: Release,
    policy: Generation,
    who: str,
    rows: Sequence[PromptRow],
    answers: Answers,
    judge: JudgeClient | None,
    errors: dict[str, str],
) -> Measures:
    """All scorers on one version's answers; an answer that never came scores 0, as a wrong one."""
    version = release.version if who == CANDIDATE else release.row.champion
    release.progress({"doing": f"scoring the answers of version {version}"})
    scored = {
        f"{row.number}.{sample}": Scored(row, sample, answer)
        for row in rows
        for sample, answer in enumerate(answers[who][row.number])
    }
    came = {key: one for key, one in scored.items() if not one.answer.why_failed}
    similarities = _similarities(release, policy, list(came.values()), errors)
    price = _price(release, who)
    functions = scorers_of(release.bench, policy, judge, similarities, price=price)
    scores = Scores({name: {} for name in functions})
    if came:
        scores = release.bench.runs.score(
            release.trail.run_id,
            f"{who} {version}",
            [_example(key, one) for key, one in came.items()],
            {name: (lambda key, of=of: of(came[key])) for name, of in functions.items()},
        )
    for name, error in scores.errors.items():
        errors.setdefault(name, error)
    shape = (len(rows), policy.samples)
    failed = np.array([[bool(one.why_failed) for one in samples] for samples in answers[who]]).reshape(shape)
    values: dict[str, Any] = {}
    for name in functions:
        table = np.where(failed, 0.0, np.nan)
        for key, value in scores.values.get(name, {}).items():
            number, sample = map(int, key.split("."))
            table[number, sample] = value
        values[name] = table
    return Measures(values, failed)


def _price(release: Release, who: str) -> Price | None:
    """What a token of the version costs: the provider's price where its replica only passes on."""
    bench = release.bench
    slot = _slots_of(release)[who]
    replicas = bench.endpoint.describe().replicas.get(slot, ())
    is_api = any(one.machine == API_MACHINE for one in replicas)
    return bench.policy.serving.price_of("api" if is_api else "vllm")


def _slots_of(release: Release) -> dict[str, Slot]:
    default = release.bench.row().default
    return {CANDIDATE: default} if release.first else {CANDIDATE: default.sibling, CHAMPION: default}


def _example(key: str, scored: Scored) -> Example:
    reference = {"reference": scored.row.reference[:_SHOWN_CHARS]} if scored.row.reference else {}
    inputs = {"prompt": scored.row.text[:_SHOWN_CHARS]}
    return Example(key, inputs, scored.answer.text[:_SHOWN_CHARS], reference)


def _similarities(
    release: Release, policy: Generation, scored: Sequence[Scored], errors: dict[str, str]
) -> Mapping[tuple[int, int], float]:
    """Similarity to the reference by (prompt, sample): embeddings, or words where the policy says so."""
    scorer = next((one for one in policy.scorers if one.kind == "similarity"), None)
    scored = [one for one in scored if one.row.reference]
    if scorer is None or not scored:
        return {}
    ours, theirs = [one.answer.text for one in scored], [one.row.reference for one in scored]
    if policy.embeddings is None:
        found = word_similarity(ours, theirs)
    else:
        try:
            with ModelApi(policy.embeddings) as api:
                vectors = api.embed([*ours, *theirs])
        except ModelApiError as error:
            errors[scorer.metric] = str(error)
            return {}
        found = cosine(vectors[: len(ours)], vectors[len(ours) :])
    return {(one.row.number, one.sample): float(value) for one, value in zip(scored, found, strict=True)}


def _preferences(
    release: Release,
    policy: Generation,
    rows: Sequence[PromptRow],
    answers: Answers,
    judge: JudgeClient | None,
    errors: dict[str, str],
) -> tuple[Preference, ...]:
    """The judge's pairwise preferences, one a prompt (its first sample), each asked in both orders."""
    scorer = next((one for one in policy.scorers if one.kind == "pairwise"), None)
    if scorer is None or judge is None or CHAMPION not in answers:
        return ()
    client = judge

    def compare(row: PromptRow) -> Preference:
        ours, theirs = answers[CANDIDATE][row.number][0], answers[CHAMPION][row.number][0]
        if ours.why_failed or theirs.why_failed:
            share = 0.5 + 0.5 * (bool(theirs.why_failed) - bool(ours.why_failed))
            return Preference(share, share)
        return client.compare(Question(row.text, row.reference), ours.text, theirs.text)

    release.progress({"doing": f"the judge compares {len(rows)} pairs"})
    try:
        return tuple(client.api.each(compare, rows))
    except ServingError as error:
        errors[scorer.metric] = str(error)
        return ()


def _slices(policy: Generation, rows: Sequence[PromptRow]) -> dict[str, tuple[str, ...]]:
    columns = {spec.column for spec in policy.slices}
    return {
        column: tuple(
            "missing" if (value := plain(row.fields[column])) is None else str(value) for row in rows
        )
        for column in columns
        if all(column in row.fields for row in rows)
    }


def _note(release: Release, verdict: Verdict) -> None:
    now = release.bench.clock()
    for finding in verdict.findings:
        values = {"candidate": finding.candidate, "champion": finding.champion}
        name = finding.metric.replace("=", "_")
        release.trail.numbers(
            {
                f"{Stage.EVALUATE.value}/{name}/{who}": value
                for who, value in values.items()
                if value is not None
            },
            now=now,
            step=0,
        )
