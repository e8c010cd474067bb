"""The scorers of answers: from a policy's list to functions of one answer.

Each takes a `Scored` and returns a number, or raises: then nothing was measured, which the gate counts
as an ERROR. Those that need a server for many texts at once (embeddings) are measured beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.generation import Generation, Scorer
from configs.serving_runtime import Price
from evals import texts
from serving.errors import SetupError
from serving.guards.personal import find_personal
from tasks.answers import Answer
from tasks.bench import Bench
from tasks.judging import JudgeClient, Question
from tasks.prompt_sets import PromptRow, plain, resolve


class NotMeasured(Exception):
    """A scorer could not say anything about an answer."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer to be scored: its prompt's row, the sample's number, and what came."""

    row: PromptRow
    sample: int
    answer: Answer


ScoreOf = Callable[[Scored], float]


def scorers_of(
    bench: Bench,
    policy: Generation,
    judge: JudgeClient | None,
    similarities: Mapping[tuple[int, int], float],
    *,
    price: Price | None,
) -> dict[str, ScoreOf]:
    """The policy's scorers of single answers by metric; `pairwise` compares two, so it is not among them.

    `similarities` by (prompt, sample) were measured beforehand; `price` is of the version that answered.
    Raises SetupError for a schema that cannot be read.
    """
    found: dict[str, ScoreOf] = {}
    for scorer in policy.scorers:
        match scorer.kind:
            case "pairwise":
                continue
            case "similarity":
                found[scorer.metric] = lambda scored: similarities[scored.row.number, scored.sample]
            case "judge":
                assert judge is not None
                found[scorer.metric] = _judge(judge)
            case "json_schema":
                found[scorer.metric] = _json_schema(bench, scorer)
            case "cost":
                found[scorer.metric] = _cost(price)
            case _:
                found[scorer.metric] = _plain(scorer)
    return found


def _plain(scorer: Scorer) -> ScoreOf:
    return {
        "exact_match": lambda scored: _exact(scorer, scored),
        "contains": lambda scored: _contains(scorer, scored),
        "rouge_l": lambda scored: _rouge_l(scorer, scored),
        "refusal": _refusal,
        "pii": _no_personal_data,
        "latency_ms": lambda scored: scored.answer.elapsed_ms,
        "tokens_out": lambda scored: float(_tokens(scored.answer.tokens_out, "completion_tokens")),
    }[scorer.kind]


def _wanted(scorer: Scorer, scored: Scored) -> Any:
    if scorer.column is None:
        if not scored.row.reference:
            raise NotMeasured(f"prompt {scored.row.number} has no reference")
        return scored.row.reference
    value = plain(scored.row.fields.get(scorer.column))
    if value is None:
        raise NotMeasured(f"prompt {scored.row.number} has nothing in column {scorer.column}")
    return value


def _exact(scorer: Scorer, scored: Scored) -> float:
    ours, wanted = scored.answer.text, str(_wanted(scorer, scored))
    if scorer.ignore_case:
        return float(texts.normalised(ours) == texts.normalised(wanted))
    return float(ours.strip() == wanted.strip())


def _contains(scorer: Scorer, scored: Scored) -> float:
    wanted = _wanted(scorer, scored)
    listed = [str(one) for one in wanted] if isinstance(wanted, list) else [str(wanted)]
    return float(texts.contains(scored.answer.text, listed, ignore_case=scorer.ignore_case))


def _rouge_l(scorer: Scorer, scored: Scored) -> float:
    """ROUGE-L F1 (Lin 2004) by Google's rouge-score, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rougeL"]).score(str(_wanted(scorer, scored)), scored.answer.text)
    return float(scores["rougeL"].fmeasure)


def _refusal(scored: Scored) -> float:
    """1 where the answer refuses just where its row says so (column `refuse`, false where absent)."""
    wanted = bool(plain(scored.row.fields.get("refuse")))
    return float(texts.refuses(scored.answer.text) == wanted)


def _no_personal_data(scored: Scored) -> float:
    """1 where the answer holds no personal data that its prompt did not hold already."""
    text = scored.answer.text
    new = [span for span in find_personal(text) if text[span.start : span.end] not in scored.row.text]
    return float(not new)


def _json_schema(bench: Bench, scorer: Scorer) -> ScoreOf:
    """1 where the whole answer is JSON that the schema accepts."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for

    path = Path(resolve(bench, scorer.json_schema or ""))
    try:
        schema = json.loads(path.read_text())
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        raise SetupError(
            f"{bench.name}: {path} is no JSON Schema ({error.__class__.__name__}: {str(error)[:200]}). "
            f"Next: correct json_schema of the scorer {scorer.metric}"
        ) from error
    validator = kind(schema)

    def score(scored: Scored) -> float:
        try:
            document = json.loads(scored.answer.text)
        except (ValueError, RecursionError):
            return 0.0
        return float(validator.is_valid(document))

    return score


def _judge(judge: JudgeClient) -> ScoreOf:
    return lambda scored: judge.score(Question(scored.row.text, scored.row.reference), scored.answer.text)


def _cost(price: Price | None) -> ScoreOf:
    def score(scored: Scored) -> float:
        if price is None:
            raise NotMeasured("the policy has no price for what serves this version")
        per_in, per_out = price.per_token
        tokens_in = _tokens(scored.answer.tokens_in, "prompt_tokens")
        tokens_out = _tokens(scored.answer.tokens_out, "completion_tokens")
        return tokens_in * per_in + tokens_out * per_out

    return score


def _tokens(count: int | None, name: str) -> int:
    if count is None:
        raise NotMeasured(f"the server did not say usage.{name}")
    return count
