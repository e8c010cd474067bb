"""The offline gate: thresholds, paired intervals, slices, latency, and what cannot be computed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from configs.evaluation import Evaluation, Metric, Slice
from configs.section import LatencyBudget
from evals.gate import Scores, evaluate
from evals.intervals import generator, moment_draws, resampled_draws
from evals.metrics import MORE_IS_BETTER, MetricError, Predictions, is_known, measure
from evals.moments import moments
from evals.verdict import Finding, Outcome, Verdict, conclude

ROWS = 4000


def policy(*metrics: Metric, task: str = "classification", **options) -> Evaluation:
    return Evaluation(data="held-out.parquet", label="y", task=task, metrics=metrics, **options)


def binary_scores(
    noise: float, champion_noise: float | None, *, rows: int = ROWS, seed: int = 0, **options
) -> Scores:
    """Probabilities from a score that is known up to noise; less noise is better."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-2 * x))).astype(int)

    def predictions(level: float) -> Predictions:
        probability = 1 / (1 + np.exp(-2 * (x + rng.normal(size=rows) * level)))
        return Predictions.read(np.clip(probability, 0.001, 0.999), labels, "classification")

    champion = None if champion_noise is None else predictions(champion_noise)
    return Scores(labels, predictions(noise), champion, **options)


def outcomes(verdict: Verdict) -> dict[str, Outcome]:
    return {finding.metric: finding.outcome for finding in verdict.findings}


@pytest.mark.parametrize("name", ["accuracy", "f1", "roc_auc", "log_loss", "brier", "calibration_error"])
def test_better_worse_and_same_are_told_apart(name: str) -> None:
    asked = policy(Metric(name=name, margin=0.005))
    better = evaluate(asked, binary_scores(0.05, 1.5))
    assert better.outcome is Outcome.PASS
    finding = better.findings[0]
    assert finding.low < finding.candidate - finding.champion < finding.high
    assert "better" in finding.reason
    assert (finding.low > 0) == MORE_IS_BETTER[name]
    assert evaluate(asked, binary_scores(1.5, 0.05)).outcome is Outcome.FAIL
    same = binary_scores(0.05, None)
    identical = Scores(same.labels, same.candidate, same.candidate)
    assert evaluate(policy(Metric(name=name)), identical).outcome is Outcome.PASS


def test_a_close_call_is_inconclusive_and_says_what_would_decide() -> None:
    verdict = evaluate(policy(Metric(name="accuracy", margin=0.0)), binary_scores(0.3, 0.3, rows=1500))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "more rows or a wider margin" in verdict.reason


@pytest.mark.parametrize("name", ["mae", "rmse", "mape"])
def test_regression(name: str) -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(5, 10, 2000)
    good, bad = (Predictions.read(truth + rng.normal(size=2000) * s, truth, "regression") for s in (0.2, 0.8))
    asked = policy(Metric(name=name, margin=0.0, max=1.0), task="regression")
    assert evaluate(asked, Scores(truth, good, bad)).outcome is Outcome.PASS
    assert evaluate(asked, Scores(truth, bad, good)).outcome is Outcome.FAIL


@pytest.mark.parametrize("rows", [2000, 12_000])
@pytest.mark.parametrize("name", ["accuracy", "f1", "roc_auc", "log_loss", "brier"])
def test_moments_are_the_metric(name: str, rows: int) -> None:
    scores = binary_scores(0.5, 0.5, rows=rows)
    classes = np.array([0, 1])
    found = moments(name, scores.labels, scores.candidate, classes)
    value = measure(name, scores.labels, scores.candidate, classes)
    assert float(found.of(found.rows.mean(axis=0))) == pytest.approx(value, rel=1e-9)


def test_many_classes() -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice(["a", "b", "c"], 3000)
    classes = np.unique(labels)
    right = labels[:, None] == classes

    def predictions(sharp: float) -> Predictions:
        matrix = rng.random((3000, 3)) + sharp * right
        return Predictions.read(matrix / matrix.sum(axis=1, keepdims=True), labels, "classification")

    good, bad = predictions(1.0), predictions(0.3)
    for name in ("accuracy", "f1", "roc_auc", "log_loss", "brier", "calibration_error"):
        value = measure(name, labels, good, classes)
        found = moments(name, labels, good, classes)
        if found is not None:
            assert float(found.of(found.rows.mean(axis=0))) == pytest.approx(value, rel=1e-9)
    asked = policy(Metric(name="f1"), Metric(name="accuracy"), Metric(name="log_loss"))
    assert evaluate(asked, Scores(labels, good, bad)).outcome is Outcome.PASS
    chosen = Predictions(classes=classes[np.argmax(good.probability, axis=1)])
    assert measure("accuracy", labels, chosen, classes) == measure("accuracy", labels, good, classes)


def test_the_interval_covers() -> None:
    """95% intervals of a known difference, by resampling and by the normal way."""
    rng = np.random.default_rng(3)
    for rows in (1000, 6000):
        inside = 0
        for trial in range(60):
            right = rng.random((2, rows)) < [[0.8], [0.75]]
            ours, theirs = (
                moments("accuracy", np.ones(rows, int), Predictions(classes=r.astype(int)), np.array([0, 1]))
                for r in right
            )
            found = moment_draws(ours, theirs, rng=generator("d", str(trial))).interval(0.95)
            inside += found.low <= 0.05 <= found.high
        assert inside >= 51


def test_intervals_are_reproducible_and_depend_on_the_data() -> None:
    asked = policy(Metric(name="roc_auc", margin=0.5))
    first, again = (evaluate(asked, binary_scores(0.3, 0.4, digest="d")) for _ in range(2))
    assert first == again
    assert evaluate(asked, binary_scores(0.3, 0.4, digest="e")) != first
    assert evaluate(asked, binary_scores(0.3, 0.4)) == evaluate(asked, binary_scores(0.3, 0.4))


def test_absolute_thresholds_stand_alone_without_a_champion() -> None:
    scores = binary_scores(0.05, None)
    assert evaluate(policy(Metric(name="roc_auc", min=0.7)), scores).outcome is Outcome.PASS
    failed = evaluate(policy(Metric(name="roc_auc", min=0.99), Metric(name="log_loss", max=10)), scores)
    assert failed.outcome is Outcome.FAIL
    assert "at least 0.99" in failed.reason
    assert evaluate(policy(Metric(name="log_loss", max=0.1)), scores).outcome is Outcome.FAIL
    nothing = evaluate(policy(Metric(name="roc_auc")), scores)
    assert nothing.outcome is Outcome.INCONCLUSIVE
    assert "no absolute threshold" in nothing.reason


def test_a_metric_that_is_not_compared_is_not_compared() -> None:
    verdict = evaluate(policy(Metric(name="accuracy", margin=None, min=0.1)), binary_scores(2.0, 0.01))
    assert verdict.outcome is Outcome.PASS
    assert len(verdict.findings) == 1


def test_too_few_rows_are_inconclusive() -> None:
    verdict = evaluate(policy(Metric(name="accuracy", min=0.0)), binary_scores(0.1, 0.1, rows=999))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "min_rows" in verdict.reason


def test_what_cannot_be_computed_is_an_error() -> None:
    labels = np.zeros(ROWS, int)
    one_class = Scores(labels, Predictions(probability=np.full(ROWS, 0.5)))
    assert evaluate(policy(Metric(name="roc_auc", min=0.5)), one_class).outcome is Outcome.ERROR
    scores = binary_scores(0.1, 0.1)
    only_classes = Scores(scores.labels, Predictions(classes=scores.labels), scores.champion)
    verdict = evaluate(policy(Metric(name="log_loss")), only_classes)
    assert verdict.outcome is Outcome.ERROR
    assert "needs probabilities" in verdict.reason
    assert "task" in evaluate(policy(Metric(name="mae")), only_classes).reason
    values = np.full(ROWS, np.nan)
    broken = Scores(scores.labels.astype(float), Predictions(values=values), Predictions(values=values))
    assert evaluate(policy(Metric(name="rmse"), task="regression"), broken).outcome is Outcome.ERROR
    wide = Scores(scores.labels, Predictions(probability=np.full((ROWS, 3), 1 / 3)))
    assert "3 probabilities" in evaluate(policy(Metric(name="brier", max=1)), wide).reason


def share_right(labels: np.ndarray, said: np.ndarray) -> float:
    return float(np.mean(labels == said))


def test_custom_metrics() -> None:
    asked = policy(Metric(name="own.share_right", margin=0.01))
    scores = binary_scores(0.05, 1.5, functions={"own.share_right": share_right}, rows=1500)
    assert evaluate(asked, scores).outcome is Outcome.PASS
    loss = policy(Metric(name="own.share_right", max=1.0, margin=0.01))
    assert evaluate(loss, scores).outcome is Outcome.FAIL
    assert "neither built in" in evaluate(asked, binary_scores(0.05, 1.5)).reason
    assert not is_known("own.share_right")
    for bad, words in ((lambda *_: 1 / 0, "ZeroDivisionError"), (lambda *_: float("nan"), "is nan")):
        broken = binary_scores(0.05, 1.5, functions={"own.share_right": bad})
        verdict = evaluate(asked, broken)
        assert verdict.outcome is Outcome.ERROR
        assert words in verdict.reason
    truth = np.linspace(1, 2, ROWS)
    regression = policy(Metric(name="own", min=0.0), task="regression")
    function = {"own": lambda labels, said: float(np.mean(labels == said))}
    assert (
        evaluate(regression, Scores(truth, Predictions(values=truth), functions=function)).outcome
        is Outcome.PASS
    )


def sliced(required: bool, *, min_rows: int = 200) -> tuple[Evaluation, Scores]:
    """Worse than the champion in region west only; region tiny is too small."""
    scores = binary_scores(0.05, 0.06)
    rng = np.random.default_rng(5)
    region = rng.choice(["east", "west"], ROWS, p=[0.7, 0.3]).astype(object)
    region[:50], region[50:60] = "tiny", None
    ours = scores.candidate.probability.copy()
    west = region == "west"
    ours[west] = np.clip(1 - ours[west], 0.001, 0.999)
    rows = pd.DataFrame({"region": region, "x": rng.normal(size=ROWS), "flag": region == "east"})
    asked = policy(
        Metric(name="accuracy", margin=0.9),
        slices=(
            Slice(column="region", metric="accuracy", margin=0.05, required=required, min_rows=min_rows),
        ),
    )
    return asked, Scores(scores.labels, Predictions(probability=ours), scores.champion, rows)


def test_a_slice_that_regresses_fails_the_whole() -> None:
    asked, scores = sliced(required=False)
    verdict = evaluate(asked, scores)
    assert verdict.outcome is Outcome.FAIL
    found = outcomes(verdict)
    assert found["accuracy where region = west"] is Outcome.FAIL
    assert found["accuracy where region = east"] is Outcome.PASS
    assert found["accuracy where region"] is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(("required", "outcome"), [(False, Outcome.PASS), (True, Outcome.INCONCLUSIVE)])
def test_small_slices_block_only_where_they_are_required(required: bool, outcome: Outcome) -> None:
    asked, scores = sliced(required, min_rows=ROWS)
    verdict = evaluate(asked, scores)
    assert verdict.outcome is outcome
    assert any("not judged" in finding.reason for finding in verdict.findings)


def test_slices_of_numbers_are_quartiles_and_mistakes_are_errors() -> None:
    _, scores = sliced(required=False)
    scores = Scores(scores.labels, scores.champion, scores.champion, scores.rows)
    slices = (
        Slice(column="x", metric="accuracy", margin=0.1),
        Slice(column="flag", metric="accuracy", margin=0.1),
    )
    verdict = evaluate(policy(Metric(name="accuracy"), slices=slices), scores)
    assert verdict.outcome is Outcome.PASS
    assert len(verdict.findings) == 1 + 4 + 2
    for wrong in (Slice(column="no", metric="accuracy", margin=0), Slice(column="x", metric="f1", margin=0)):
        assert evaluate(policy(Metric(name="accuracy"), slices=(wrong,)), scores).outcome is Outcome.ERROR
    alone = Scores(scores.labels, scores.candidate, None, scores.rows)
    assert evaluate(policy(Metric(name="accuracy", min=0.1), slices=slices), alone).outcome is Outcome.PASS


def test_a_metric_that_fails_on_a_slice_is_an_error() -> None:
    scores = binary_scores(0.05, 0.05)
    rows = pd.DataFrame({"truth": np.where(scores.labels == 1, "late", "on time")})
    asked = policy(
        Metric(name="roc_auc", margin=0.1), slices=(Slice(column="truth", metric="roc_auc", margin=0.1),)
    )
    verdict = evaluate(asked, Scores(scores.labels, scores.candidate, scores.champion, rows))
    assert verdict.outcome is Outcome.ERROR
    assert "truth = late" in verdict.reason


def test_latency_budgets() -> None:
    calls = np.linspace(1, 10, 200)

    def found(budget: LatencyBudget, **options) -> Verdict:
        return evaluate(
            policy(Metric(name="accuracy", min=0.1, margin=None), latency_ms=budget),
            binary_scores(0.1, 0.1, **options),
        )

    assert found(LatencyBudget(p50=6, p99=12), candidate_ms=calls, champion_ms=calls).outcome is Outcome.PASS
    assert found(LatencyBudget(p95=6), candidate_ms=calls).outcome is Outcome.FAIL
    assert found(LatencyBudget(p99=60), candidate_ms=calls[:50]).outcome is Outcome.INCONCLUSIVE
    assert found(LatencyBudget(p99=60)).outcome is Outcome.ERROR


def test_predictions_are_understood_or_refused() -> None:
    labels = np.array([0, 1, 1])
    assert Predictions.read([[0.1], [0.2], [1.0]], labels, "classification").probability.shape == (3,)
    assert Predictions.read([0, 1, 0], labels, "classification").classes.tolist() == [0, 1, 0]
    assert Predictions.read(["1.5", "2", "3"], labels, "regression").values.tolist() == [1.5, 2, 3]
    for output, task, words in (
        ([0.1, 0.2], "classification", "2 predictions came back"),
        (["late", "late", "on time"], "classification", "neither probabilities nor"),
        ([0.1, 2.0, 0.3], "classification", "neither probabilities nor"),
        (["a", "b", "c"], "regression", "must be numbers"),
    ):
        with pytest.raises(MetricError, match=words):
            Predictions.read(output, labels, task)
    part = Predictions(probability=np.array([0.1, 0.2, 0.3])).take(np.array([2]))
    assert part.probability.tolist() == [0.3]


def test_any_difference_can_be_resampled() -> None:
    values = np.random.default_rng(0).normal(1, 1, 500)
    found = resampled_draws(lambda rows: float(values[rows].mean()), 500, rng=generator("d")).interval(0.95)
    assert found.low < 1 < found.high


def test_one_sided_ranks_have_no_area() -> None:
    assert (
        moments("roc_auc", np.ones(5, int), Predictions(probability=np.full(5, 0.5)), np.array([0, 1]))
        is None
    )


def test_the_gravest_finding_decides() -> None:
    def finding(outcome: Outcome) -> Finding:
        return Finding("m", outcome, f"because {outcome}")

    assert conclude(()).outcome is Outcome.INCONCLUSIVE
    passes = conclude((finding(Outcome.PASS), finding(Outcome.PASS)))
    assert (passes.outcome, passes.reason) == (Outcome.PASS, "because PASS; because PASS")
    mixed = conclude((finding(Outcome.INCONCLUSIVE), finding(Outcome.ERROR), finding(Outcome.PASS)))
    assert (mixed.outcome, mixed.reason) == (Outcome.ERROR, "because ERROR")
    worst = conclude((finding(Outcome.ERROR), finding(Outcome.FAIL), finding(Outcome.FAIL)))
    assert (worst.outcome, worst.reason) == (Outcome.FAIL, "because FAIL (and 1 more)")
    assert (worst.passed, worst.failed) == (False, True)
    assert (passes.passed, mixed.failed) == (True, False)
    assert worst.as_dict()["findings"][0]["metric"] == "m"
