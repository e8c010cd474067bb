"""Language models and prompts, end to end: `python -m examples.support_bot.demo [--keep]`.

Trains a tiny model of a support desk in vLLM's environment, starts the real stack, and lets customers ask
through the official `openai` client while six candidates come: models and prompts, good and bad. What each
is given is the alias `candidate` in MLflow; everything after that is Interlock's.

Exit status as in `make demo`: 0 every candidate ended as it must, 1 one did not, 2 the demo could not go
on, 130 interrupted. No process is left, unless `--keep` was given.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from examples.flights.accounts import read_requests
from examples.flights.demo import Demo, options, run
from examples.flights.stand import DemoFailed, Stand
from examples.flights.telling import Teller
from examples.support_bot.models import register_weights, train
from examples.support_bot.words import BEFORE, TOPICS, WORDY, fact, question, system_prompt
from serving.processes import stack_processes
from serving.versions import Pair

WEIGHTS = "weights"
MODEL, PROMPT, ENDPOINT = "support-desk", "support-prompt", "support"
RATE = 8.0
WARM_ANSWERS = 60
QUESTIONS = 60
REPLICA_PORTS = 24_000, 24_099
"""Not the usual ones: an engine takes its port a minute after it was chosen; another stack may be quicker."""
SHORT_STEPS, LONG_STEPS = 60, 300
EXTRA_LAYERS = 80
POLICY = Path(__file__).with_name("policies") / f"{ENDPOINT}.yaml"

_FEW = ("returns", "delivery", "warranty")
PROMPTS = {
    "1": system_prompt(_FEW),
    "2": system_prompt(tuple(TOPICS)),
    "3": system_prompt(tuple(TOPICS), year=BEFORE),
    "4": system_prompt(tuple(TOPICS), style=WORDY),
}
STORY = {
    "first": "trained briefly, and a prompt that names three of the desk's five topics",
    "trained": "the same model, trained for longer: it is right more often",
    "topics": "a prompt that names all five topics; no weights are loaded again",
    "outdated": "a prompt that names the rules of 2019: its answers are wrong today",
    "wordy": "a prompt that asks for long and polite answers: right ones, but nobody waits for them",
    "deep": "the same answers from a model with many more layers",
}
EXPECTED = {
    "first": ("PROMOTED", "evaluate"),
    "trained": ("PROMOTED", "canary"),
    "topics": ("PROMOTED", "canary"),
    "outdated": ("REJECTED", "evaluate"),
    "wordy": ("REJECTED", "canary"),
    "deep": ("REJECTED", "canary"),
}
CANDIDATES = {
    "first": "1+p1",
    "trained": "2+p1",
    "topics": "2+p2",
    "outdated": "2+p3",
    "wordy": "2+p4",
    "deep": "3+p2",
}
"""Role to the pair that its release is about; what changes from the champion is what is given the alias."""


class SupportDemo(Demo):
    """The desk's six releases."""

    expected = EXPECTED
    release_wait_s = 480.0

    def play(self) -> dict[str, Any]:
        """The whole story; returns what `demo.json` holds."""
        begun = time.monotonic()
        self._set_the_stage()
        self.seconds["until_ready"] = round(time.monotonic() - begun, 1)
        for role, version in CANDIDATES.items():
            self._release(role, version)
            if len(self.followed) == 1:
                self._start_traffic()
        self.stand.end_children()
        self.seconds["total"] = round(time.monotonic() - begun, 1)
        return self._settle() | {"answers": self._answers()}

    def point(self, version: str) -> None:
        """The alias, on the part that is new."""
        from mlflow import MlflowClient

        client = MlflowClient(self.stand.settings.mlflow_url)
        pair = Pair.of(version)
        won = [one.version for one in self.followed if one.summary["state"] == "PROMOTED"]
        if pair.model == Pair.of(won[-1] if won else "").model:
            self.tell.say(f"alias `candidate` set on prompt version {pair.prompt} in MLflow")
            client.set_prompt_alias(PROMPT, "candidate", int(pair.prompt))
        else:
            self.tell.say(f"alias `candidate` set on model version {pair.model} in MLflow")
            client.set_registered_model_alias(MODEL, "candidate", pair.model)

    def _set_the_stage(self) -> dict[str, str]:
        """Stack and training at the same time, then what they make is registered."""
        self.tell.chapter("Starting MLflow, Prefect, the gateway and the hook receiver; training the desk")
        questions = self.stand.data_dir / "questions.jsonl"
        write_questions(questions, QUESTIONS)
        self.stand.write_policy(questions)
        failure: list[BaseException] = []
        weights = self.stand.state / WEIGHTS

        def learn() -> None:
            try:
                train(weights, (SHORT_STEPS, LONG_STEPS), extra_layers=EXTRA_LAYERS)
            except BaseException as error:  # noqa: BLE001 - handed to the main thread below
                failure.append(error)

        learning = threading.Thread(target=learn, name="training", daemon=True)
        learning.start()
        self.stand.up(lambda line: self.tell.say(f"[dim]{line.strip()}[/]") if line.strip() else None)
        learning.join()
        if failure:
            raise DemoFailed(f"The models were not trained: {failure[0]}")
        return self._register([weights / str(SHORT_STEPS), weights / str(LONG_STEPS), weights / "deep"])

    def _register(self, models: list[Path]) -> dict[str, str]:
        from mlflow import MlflowClient

        url = self.stand.settings.mlflow_url
        client = MlflowClient(url)
        with self.stand.log("demo").open("a") as log, redirect_stderr(log):  # MLflow tells of each step
            versions = [register_weights(url, MODEL, folder) for folder in models]
            for text in PROMPTS.values():
                client.register_prompt(PROMPT, text)
        assert versions == ["1", "2", "3"], "the registry is new"
        client.set_prompt_alias(PROMPT, "champion", 1)  # what the first model is released with
        self.tell.say("registered v1 trained briefly, v2 trained longer, v3 deep; prompts p1 to p4")
        return {}

    def _start_traffic(self) -> None:
        for name in ("requests.jsonl", "traffic.json"):
            (self.stand.traffic_dir / name).unlink(missing_ok=True)
        told = ["--url", f"{self.stand.settings.gateway_url}/{ENDPOINT}/v1", "--rate", str(RATE)]
        told += ["--key-file", str(self.stand.api_key_file()), "--out", str(self.stand.traffic_dir)]
        process = self.stand.start_child("traffic", "examples.support_bot.traffic", *told)
        self.tell.chapter(f"Customers start asking: {RATE:.0f} questions/s, half of them as streams")
        self.await_traffic(process, WARM_ANSWERS)

    def _answers(self) -> dict[str, Any]:
        """What the customers got of each version, told and returned."""
        requests = read_requests(self.stand.traffic_dir / "requests.jsonl")
        asked, right, streams = Counter[str](), Counter[str](), Counter[str]()
        for one in requests:
            asked[one["version"]] += 1
            right[one["version"]] += one["right"]
            streams[one["version"]] += one["stream"]
        self.tell.console.print()
        for version in asked:
            self.tell.console.print(
                f"{version or 'nobody'}: {asked[version]} live answers, {streams[version]} as streams, "
                f"{right[version] / asked[version]:.0%} right",
                markup=False,
            )
        return {
            version: {"answers": asked[version], "streams": streams[version], "right": right[version]}
            for version in asked
        }


def fresh_stand(state_dir: Path) -> Stand:
    """A stack without a past: versions are counted from 1. What was trained before is kept."""
    low, high = REPLICA_PORTS
    stand = Stand(state_dir, endpoint=ENDPOINT, policy=POLICY, replica_port_low=low, replica_port_high=high)
    if stack_processes(stand.settings.run_dir):
        stand.tear_down()
    for path in stand.state.iterdir():
        if path.is_dir() and path.name != WEIGHTS:
            shutil.rmtree(path)
        elif path.suffix.startswith(".db"):
            path.unlink()
    return stand


def write_questions(path: Path, count: int) -> None:
    """The evaluation's data: as many questions of each topic, with what a right answer holds."""
    chance = random.Random(7)
    topics = [list(TOPICS)[number % len(TOPICS)] for number in range(count)]
    rows: list[Mapping[str, str]] = [
        {"prompt": question(topic, chance), "reference": fact(topic), "topic": topic} for topic in topics
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns its exit status."""
    given = options("Six releases of models and prompts on vLLM", Path(".interlock-demo-llm"), arguments)

    def make() -> SupportDemo:
        return SupportDemo(fresh_stand(given.state_dir), Teller(story=STORY))

    return run(make, keep=given.keep)


if __name__ == "__main__":
    sys.exit(main())
