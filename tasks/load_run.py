"""Runs load tests: payloads, one Locust process a rate, and the search that `evals.load` decides."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.generation import Generation
from configs.load_test import LoadTest
from configs.policy import Policy
from configs.section import LatencyBudget
from evals.load import Arrivals, LoadStep, judge_load, judge_step, measure, next_rate
from evals.verdict import Verdict
from serving.atomic import write_private
from serving.errors import SetupError
from tasks.bench import Bench
from tasks.held_out import read_held_out
from tasks.prompt_sets import path_of, read_prompts

_GENERATOR = Path(__file__).with_name("load_generator.py")
_START_WAIT_S = 90
_SMOKE_ROWS = 20
_CAPTURED_S = 7 * 86_400.0

Send = Callable[[float], Arrivals]
"""Holds one rate (per second) and returns what became of its requests."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: the gateway's URL of an endpoint with the path asked for, and a key for it."""

    url: str
    path: str
    key: str
    timeout_s: float


def budget_of(policy: Policy) -> LatencyBudget:
    """What clients may wait: the load test's own budgets, else the canary's absolute ones."""
    own = policy.load_test.latency_ms if policy.load_test else LatencyBudget()
    return own if own != LatencyBudget() else policy.canary.latency.budget_ms


def search(
    policy: Policy,
    send: Send,
    *,
    known: Sequence[LoadStep] = (),
    note: Callable[[int, LoadStep, Verdict], None],
) -> tuple[Verdict, list[LoadStep]]:
    """Try rates until the search is over. `known` are those that an interrupted test had measured.

    `note` is told of every new rate with its number (from 1) and verdict.
    """
    load = policy.load_test
    assert load is not None
    budget, steps = budget_of(policy), list(known)
    while True:
        passed = [judge_step(step, load, budget).passed for step in steps]
        rate = next_rate(steps, passed, load)
        if rate is None:
            return judge_load(steps, load, budget, replicas=policy.replicas.count), steps
        steps.append(measure(send(rate), rate=rate, policy=load, budget=budget))
        note(len(steps), steps[-1], judge_step(steps[-1], load, budget))


def path_asked(policy: Policy) -> str:
    """Where the endpoint's versions are asked: a language model at its API's path."""
    evaluation = policy.evaluation
    return path_of(evaluation) if isinstance(evaluation, Generation) else "/invocations"


def payloads(bench: Bench, production: str) -> list[str]:
    """Bodies to send, as JSON: held-out rows or prompts one by one, or what `production` was asked lately.

    Raises `SetupError` where there are none.
    """
    load, evaluation = bench.policy.load_test, bench.policy.evaluation
    wanted = load.payloads_max if load else _SMOKE_ROWS
    if isinstance(evaluation, Generation):
        prompts, _ = read_prompts(bench, evaluation)
        if not prompts:
            raise SetupError(f"{bench.name}: evaluation.data has no prompts. Next: correct the file")
        drawn = random.Random(0).sample(prompts, min(wanted, len(prompts)))  # noqa: S311 (a draw, no secret)
        return [row.body(evaluation, 0).decode() for row in drawn]
    if load is not None and load.payloads == "captures":
        from serving.capture.reader import stream_captures

        now = time.time()
        found = stream_captures(
            bench.settings.captures_dir / production,
            since=now - _CAPTURED_S,
            until=now,
            statuses=[200],
            limit=load.payloads_max,
            seed=0,
            columns=("content_type", "inputs"),
        )
        bodies = [inputs for content_type, inputs in found if inputs and "json" in (content_type or "")]
        if not bodies:
            raise SetupError(
                f"{bench.name}: load_test.payloads is captures, but {production} has none of the last 7 "
                "days. Next: set it to evaluation"
            )
        return bodies
    rows = read_held_out(bench, lambda *_: None).rows
    rows = rows.sample(min(wanted, len(rows)), random_state=0)
    return [
        f'{{"dataframe_split": {rows.iloc[index : index + 1].to_json(orient="split", index=False)}}}'
        for index in range(len(rows))
    ]


def locust_sender(target: Target, bodies: Sequence[str], load: LoadTest) -> Send:
    """A sender that starts one Locust process for each rate."""

    def send(rate: float) -> Arrivals:
        with tempfile.TemporaryDirectory(prefix="interlock-load-") as folder:
            return _send(target, bodies, load, rate, Path(folder))

    return send


def _send(target: Target, bodies: Sequence[str], load: LoadTest, rate: float, folder: Path) -> Arrivals:
    base, _, endpoint = target.url.rpartition("/")
    plan, out = folder / "plan.json", folder / "arrivals.txt"
    said: dict[str, Any] = {
        "path": f"/{endpoint}{target.path}",
        "headers": {"content-type": "application/json", "x-api-key": target.key},
        "payloads": list(bodies),
        "rate": rate,
        "seconds": load.duration_s,
        "timeout_s": target.timeout_s,
        "out": str(out),
    }
    write_private(plan, json.dumps(said))
    command = (
        *(sys.executable, "-m", "locust", "--locustfile", str(_GENERATOR), "--host", base),
        *("--headless", "--users", "1", "--spawn-rate", "1", "--only-summary", "--loglevel", "WARNING"),
        *("--exit-code-on-error", "0", "--stop-timeout", "5"),
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    try:
        done = subprocess.run(
            command,
            env={**kept, "INTERLOCK_LOAD_PLAN": str(plan)},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=load.duration_s + target.timeout_s + _START_WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"the load generator did not end in {error.timeout:.0f} s at {rate:g}/s") from error
    if not out.exists():
        raise SetupError(
            f"the load generator ended with status {done.returncode} and no result: {done.stderr[-800:]}"
        )
    table = np.loadtxt(out, ndmin=2)
    return Arrivals(table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(np.int64))
