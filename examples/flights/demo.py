"""The main job, end to end, on real flights: `python -m examples.flights.demo [--keep]`.

Starts the real stack on this machine, trains five versions of a model, lets real flights ask for
predictions without a pause, and then does to each version the only thing a data scientist would
do: set the alias `candidate` on it in MLflow. Everything after that is Interlock's.

Exit status: 0 every version ended as it must, 1 one did not, 2 the demo could not go on,
130 interrupted. Whatever happens, no process is left, unless `--keep` was given and it succeeded
in starting the stack.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.flights.accounts import EXPECTED, SERVES, Followed, read_requests, report, settle
from examples.flights.models import ROLES
from examples.flights.stand import DemoFailed, Stand
from examples.flights.telling import LEGEND, Teller, final_lines, final_table, outcome_line
from serving.errors import ServingError

MODEL = "flights"
RATE = 150.0
START_WAIT_S = 90.0
RELEASE_WAIT_S = 420.0
WARM_REQUESTS = 600
_ENDED = frozenset({"PROMOTED", "REJECTED", "ABORTED", "ROLLED_BACK", "HELD"})
_POLL_S = 1.0


class Demo:
    """One run. `followed` grows with every release that ended."""

    expected: Mapping[str, tuple[str, str]] = EXPECTED
    release_wait_s = RELEASE_WAIT_S

    def __init__(self, stand: Stand, teller: Teller) -> None:
        self.stand = stand
        self.tell = teller
        self.followed: list[Followed] = []
        self.seconds: dict[str, float] = {}
        self._requests_before = 0

    def play(self) -> dict[str, Any]:
        """The whole story; returns what `demo.json` holds."""
        begun = time.monotonic()
        versions = self._set_the_stage()
        self.seconds["until_ready"] = round(time.monotonic() - begun, 1)
        self._end_an_open_release()
        self._release_first(versions)
        self._start_traffic()
        for role in ROLES[1:]:
            self._release(role, versions[role])
        self.stand.end_children()
        self.seconds["total"] = round(time.monotonic() - begun, 1)
        return self._settle()

    def _set_the_stage(self) -> dict[str, str]:
        """Stack and training at the same time; returns role to version."""
        from examples.flights.data import prepare

        self.tell.chapter(
            "Starting MLflow, Prefect, the gateway and the hook receiver; preparing the flights"
        )
        files = prepare(self.stand.data_dir)
        self.stand.write_policy(files.held_out)
        failure: list[BaseException] = []

        def bring_up() -> None:
            try:
                self.stand.up(lambda line: self.tell.say(f"[dim]{line.strip()}[/]") if line.strip() else None)
            except BaseException as error:  # noqa: BLE001 - handed to the main thread below
                failure.append(error)

        starting = threading.Thread(target=bring_up, name="stack-up")
        starting.start()
        try:
            versions = self._train(files, failed=lambda: bool(failure))
        except BaseException as error:
            if failure and isinstance(error, DemoFailed):
                raise failure[0] from None  # MLflow is missing because the stack did not come up
            self.stand.end_children()
            raise
        finally:
            starting.join()
        if failure:
            raise failure[0]
        return versions

    def _train(self, files: Any, *, failed: Any) -> dict[str, str]:
        import pandas as pd

        from examples.flights.models import register, train

        fitted = []
        for role in ROLES:
            begun = time.monotonic()
            fitted.append(train(role, files))
            self.tell.say(f"trained {role} ({time.monotonic() - begun:.1f} s)")
        self.stand.wait_for_mlflow(300, failed)  # `up` gives up earlier, and says why
        import mlflow

        mlflow.set_tracking_uri(self.stand.settings.mlflow_url)
        example = pd.read_parquet(files.held_out).head(2)
        # MLflow reports on standard output and error; the story has its own words for it.
        log = self.stand.log("demo").open("a")
        with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            versions = {one.role: register(one, MODEL, example=example) for one in fitted}
        named = ", ".join(f"v{version} {role}" for role, version in versions.items())
        self.tell.say(f"registered {named}")
        return versions

    def _end_an_open_release(self) -> None:
        """An earlier demo that was cut off leaves a release that could be resumed; this one is not it."""
        from tasks.status import endpoint_status

        endpoint = self.stand.endpoint
        if endpoint_status(self.stand.settings, endpoint)["release"] is None:
            return
        self.stand.run("abort", endpoint)
        deadline = time.monotonic() + 60
        while endpoint_status(self.stand.settings, endpoint)["release"] is not None:
            if time.monotonic() > deadline:
                raise DemoFailed(f"An earlier release is still open. Next: interlock status {endpoint}")
            time.sleep(1)
        self.tell.say("ended the release that an earlier demo had left open")

    def _release_first(self, versions: Mapping[str, str]) -> None:
        """The first role becomes champion, unless an earlier demo's champion serves already."""
        from tasks.status import endpoint_status

        role = ROLES[0]
        champion = endpoint_status(self.stand.settings, self.stand.endpoint)["champion"]
        if not champion:
            self._release(role, versions[role])
            return
        self.tell.chapter(f"v{champion} serves already, from an earlier run; the new versions challenge it")
        reason = "champion of an earlier run; nothing to release"
        now = {"state": SERVES, "reason": reason, "decided_stage": ""}
        self.followed.append(Followed(role, str(champion), now))

    def _start_traffic(self) -> None:
        record = self.stand.traffic_dir / "requests.jsonl"
        record.unlink(missing_ok=True)
        (self.stand.traffic_dir / "traffic.json").unlink(missing_ok=True)
        key = self.stand.api_key_file()
        process = self.stand.start_traffic(self.stand.data_dir / "live.parquet", key, rate=RATE)
        self.tell.chapter(
            f"Travellers start asking: {RATE:.0f} requests/s on real flights, whatever the answers"
        )
        self.await_traffic(process, WARM_REQUESTS)

    def await_traffic(self, process: subprocess.Popen[Any], wanted: int) -> None:
        """Until so many requests were answered. Raises `DemoFailed` when that takes too long."""
        deadline = time.monotonic() + 60
        while (seen := self._traffic()).get("status", {}).get("200", 0) < wanted:
            if process.poll() is not None or time.monotonic() > deadline:
                found = f"{seen.get('status', {})} {seen.get('errors', {})}"
                where = self.stand.log("traffic")
                raise DemoFailed(f"Wanted {wanted} answered requests, found {found}. Next: look into {where}")
            time.sleep(0.2)
        self.tell.say(f"{seen['answered']} answered, {seen['failed']} failed, p50 {seen['p50_ms']} ms")

    def _release(self, role: str, version: str) -> None:
        """Set the alias, watch, and note how it ended."""
        from tasks.bench import Bench

        bench = Bench.open(self.stand.endpoint, self.stand.settings)
        cursor = bench.endpoint.observations(None).cursor if self._traffic() else None
        self.tell.begin(version, role)
        try:
            asked = time.time()
            self.point(version)
            summary = self._follow(version, asked)
            last = self._last_given(bench, cursor, version) if cursor else None
        finally:
            self.tell.end()
            bench.journal.close()
        one = Followed(role, version, summary, last, self.expected[role])
        self.followed.append(one)
        accounts, _ = settle([one], ())
        self.tell.say(outcome_line(accounts[0]))

    def point(self, version: str) -> None:
        """Say in MLflow which version is the candidate."""
        from mlflow import MlflowClient

        self.tell.say(f"alias `candidate` set on v{version} in MLflow; nothing else is done by hand")
        MlflowClient(self.stand.settings.mlflow_url).set_registered_model_alias(MODEL, "candidate", version)

    def _follow(self, version: str, asked: float) -> Mapping[str, Any]:
        """Until the release has ended. Raises `DemoFailed` when that takes too long."""
        from tasks.status import release_history

        newest: Mapping[str, Any] = {}
        while True:
            passed = time.time() - asked
            found = [
                one
                for one in release_history(self.stand.settings, self.stand.endpoint)
                if one["version"] == version
            ]
            newest = found[0] if found else {}
            if newest.get("state") in _ENDED and newest.get("ended_at"):
                return newest
            if not newest and passed > START_WAIT_S:
                raise DemoFailed(
                    f"Wanted a release of v{version}, found none after {passed:.0f} s. "
                    f"Next: look into {self.stand.log('hook')} and {self.stand.log('worker')}"
                )
            if passed > self.release_wait_s:
                place = f"{newest.get('state')} in {newest.get('stage')} after {passed:.0f} s"
                why = newest.get("reason") or newest.get("progress")
                raise DemoFailed(
                    f"Wanted the end of v{version}'s release; it is {place}: {why}. "
                    f"Next: look at {newest.get('flow_run_url')}"
                )
            waiting = {"stage": "waiting for the webhook's flow run"}
            self.tell.show(newest or waiting, self._traffic())
            time.sleep(_POLL_S)

    def _last_given(self, bench: Any, cursor: str, version: str) -> float | None:
        """When the version was given its last request, by the gateway's own log."""
        time.sleep(1.0)  # the log has a line when an answer is complete, and answers take a moment
        frame = bench.endpoint.observations(cursor).frame
        mine = frame.loc[frame["version"] == version, "time"]
        return float(mine.max()) if len(mine) else None

    def _traffic(self) -> dict[str, Any]:
        """The load generator's counters; empty before it runs."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.stand.traffic_dir / "traffic.json").read_text())
        return {}

    def _settle(self) -> dict[str, Any]:
        requests = read_requests(self.stand.traffic_dir / "requests.jsonl")
        accounts, outside = settle(self.followed, requests)
        result = report(
            accounts,
            outside,
            seconds=self.seconds,
            client_requests=len(requests),
            traffic={key: value for key, value in self._traffic().items() if key != "pid"},
            gateway=self.stand.settings.gateway_url,
        )
        self.tell.chapter("What became of each version")
        self.tell.console.print(final_table(accounts))
        self.tell.console.print(LEGEND, style="dim", markup=False)
        self.tell.console.print()
        for line in final_lines(accounts):
            self.tell.console.print(line, soft_wrap=True, markup=False)
        if outside:
            self.tell.console.print(f"NOT AS EXPECTED: {outside} client requests failed between the releases")
        return result


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(stand: Stand, teller: Teller, *, keep: bool) -> None:
    teller.end()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it behind
    if not keep:
        teller.say("stopping everything")
        stand.tear_down()
        teller.say("nothing is left running")
        return
    stand.end_children()
    shell = stand.write_shell_file()
    teller.console.print(
        f"\nThe stack is still up. Look around:\n"
        f"  Prefect   {stand.settings.prefect_url.removesuffix('/api')}\n"
        f"  MLflow    {stand.settings.mlflow_url}\n"
        f"  terminal  . {shell}\n"
        f"            interlock status {stand.endpoint}; interlock history {stand.endpoint}\n"
        f"Stop it with\n            . {shell} && interlock down",
        soft_wrap=True,
        markup=False,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns its exit status."""
    given = options("Five releases on real flights, end to end", Path(".interlock-demo"), arguments)
    return run(lambda: Demo(Stand(given.state_dir), Teller()), keep=given.keep)


def options(description: str, state_dir: Path, arguments: list[str] | None) -> argparse.Namespace:
    """What a demo may be told: `keep` and `state_dir`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--keep", action="store_true", help="leave the stack running for a look around")
    parser.add_argument("--state-dir", type=Path, default=state_dir, help="where everything is written")
    return parser.parse_args(arguments)


def run(make: Callable[[], Demo], *, keep: bool) -> int:
    """Play a demo and leave nothing behind; returns its exit status."""
    # The stack's own numeric work shares two cores with this process.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    demo, wants_keep, keep, status = make(), keep, False, 2
    teller, stand = demo.tell, demo.stand
    stand.log("demo").parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=stand.log("demo"), level=logging.INFO)
    logging.captureWarnings(True)
    with _signals():
        try:
            result = demo.play()
            keep, status = wants_keep, 0 if result["as_expected"] else 1
            target = stand.state / "demo.json"
            target.write_text(json.dumps(result, indent=2, default=str) + "\n")
            total = result["seconds"]["total"]
            verdict = (
                "every version ended as it must" if status == 0 else "NOT every version ended as it must"
            )
            teller.console.print(
                f"\n{verdict}; {total:.0f} s; the same as JSON in {target}", soft_wrap=True, markup=False
            )
        except KeyboardInterrupt:
            status = 130
            teller.say("interrupted")
        except Exception as error:  # whatever it is, the stack must go down in order
            logging.getLogger("demo").exception("the demo failed")
            teller.end()
            if not isinstance(error, DemoFailed | ServingError):
                error = f"Unexpected {type(error).__name__}: {error}. Next: look into {stand.log('demo')}"
            teller.console.print(f"\n{error}", style="red", markup=False, soft_wrap=True)
        finally:
            _finish(stand, teller, keep=keep)
    return status


if __name__ == "__main__":
    sys.exit(main())
