"""Pictures of what people see in Prefect: a release that waits, one taken back, drift, schedules, forms.

    python -m benchmarks.screens [--out screens]

Starts a stack of its own, releases a version that waits for an approval and fails in its canary, judges a
window for drift, and takes a picture of each page with a headless Chromium. About six minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd

from benchmarks.screens.browser import Browser, BrowserFailed, find_chromium
from serving.gateway.keys import Keys
from tests.e2e.stand import POLICY, Stand, Traffic, eventually, own_settings

_PER_S = 60
_FORMS = ("release", "rollback", "drill")
_SHOWN = POLICY.replace("bake_s: 12", "bake_s: 60") + (
    "approval: {required: true}\n"
    "drift: {window_s: 60, k: 1, m: 1, reference: {kind: file, path: reference.parquet}}\n"
)


def main() -> int:
    """Act, and take pictures; 1 where a page did not show what it should."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("screens"))
    out: Path = parser.parse_args().out
    try:
        find_chromium()
        with tempfile.TemporaryDirectory(prefix="interlock-screens-") as folder:
            stand = make_stand(Path(folder))
            try:
                stand.interlock("up")
                with Browser() as browser:
                    Screens(stand, browser, out).take(Path(folder) / "broken")
            finally:
                stand.interlock("down", check=False)
    except BrowserFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def make_stand(folder: Path) -> Stand:
    """A stack that is not started yet; its endpoint asks for approval, and drifts from the start."""
    stand = Stand(own_settings(folder), _SHOWN)
    chance = np.random.default_rng(0)
    frame = pd.DataFrame({"a": chance.uniform(0, 0.5, 5000), "b": chance.uniform(0, 1, 5000)})
    frame["prediction"] = frame["a"] + frame["b"]
    frame.to_parquet(stand.settings.policy_dir / "reference.parquet")
    return stand


class Screens:
    """The scenes, in their order."""

    def __init__(self, stand: Stand, browser: Browser, out: Path) -> None:
        self._stand = stand
        self._browser = browser
        self._out = out
        self._api = stand.settings.prefect_url
        self._ui = self._api.removesuffix("/api")

    def take(self, switch: Path) -> None:
        """Everything; `switch` is a file that breaks the second version once it exists."""
        first = self._release(self._stand.register(user="ann"))
        self._answer(first)
        key = Keys(self._stand.settings).create("screens")
        url = f"{self._stand.settings.gateway_url}/sums/invocations"
        with Traffic(url, key, per_s=_PER_S):
            waits = self._release(self._stand.register(offset=0.001, breaks_on=switch, user="ann"))
            self._waiting(waits)
            self._answer(waits)
            self._taken_back(waits["version"], switch)
            self._drift()
        self._deployments()

    def _waiting(self, release: dict[str, Any]) -> None:
        self._browser.open(release["flow_run_url"], shows="Suspended")
        self._picture("1-waits-for-approval")
        self._browser.click("Resume")
        self._browser.await_words("Decision")
        self._picture("2-approval-form")

    def _taken_back(self, version: str, switch: Path) -> None:
        def ramps(one: dict[str, Any]) -> bool:
            return bool(one["stage"] == "canary" and one["progress"].get("look", 0) >= 3)

        running = self._stand.await_release(version, ramps, 240)
        self._browser.open(running["flow_run_url"], shows="Running")
        self._picture("3-canary-under-way")
        switch.touch()
        ended = self._stand.await_release(version, lambda one: bool(one["ended_at"]), 120)
        run_id = ended["flow_run_url"].rsplit("/", 1)[1]
        eventually(lambda: self._run(run_id)["state_name"] == "Rejected", 60)
        self._browser.open(ended["flow_run_url"], shows="Rejected")
        self._picture("4-taken-back")
        for artifact in self._artifacts(run_id):
            self._browser.open(f"{self._ui}/artifacts/artifact/{artifact['id']}", shows="Artifact")
            self._picture(f"5-taken-back-{artifact['key'] or artifact['type']}")

    def _drift(self) -> None:
        deployment = self._deployment("drift")
        body = {"parameters": {"endpoint": "sums", "again": True}}

        def judged() -> dict[str, Any]:
            made = self._post(f"/deployments/{deployment['id']}/create_flow_run", body)
            final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
            eventually(lambda: self._run(made["id"])["state_type"] in final, 120)
            return made

        time.sleep(max(0.0, 62 - time.time() % 60))  # a whole minute of traffic lies behind
        run = judged()
        self._browser.open(f"{self._ui}/runs/flow-run/{run['id']}", shows="drift")
        self._picture("6-drift-run")
        for artifact in self._artifacts(run["id"]):
            self._browser.open(f"{self._ui}/artifacts/artifact/{artifact['id']}", shows="Artifact")
            self._picture(f"7-drift-{artifact['key'] or artifact['type']}")

    def _deployments(self) -> None:
        self._browser.open(f"{self._ui}/deployments", shows="make-safe")
        self._picture("8-schedules")
        watch = self._deployment("watch")
        self._browser.open(f"{self._ui}/deployments/deployment/{watch['id']}", shows="watch")
        self._picture("9-watch")
        for name in _FORMS:
            address = f"{self._ui}/deployments/deployment/{self._deployment(name)['id']}/run"
            self._browser.open(address, shows="Parameters")
            self._picture(f"10-form-{name}")
        self._browser.open(f"{self._ui}/automations", shows="interlock")
        self._picture("11-automations")
        self._browser.open(f"{self._ui}/runs", shows="sums")
        self._picture("12-runs")

    def _release(self, version: str) -> dict[str, Any]:
        """Ask for a version's release, and wait until it waits for people."""
        self._stand.alias(version)
        waits = self._stand.await_release(version, lambda one: one["state"] == "WAITING", 300)
        eventually(lambda: self._stand.flow_state(waits) == "Suspended", 60)
        return waits

    def _answer(self, release: dict[str, Any]) -> None:
        self._stand.interlock("approve", "sums", "--reason", "read the evidence", user="bob")
        self._stand.await_release(release["version"], lambda one: one["state"] != "WAITING", 120)

    def _picture(self, name: str) -> None:
        path = self._out / f"{name}.png"
        self._browser.picture(path)
        print(path, flush=True)

    def _deployment(self, name: str) -> dict[str, Any]:
        return self._get(f"/deployments/name/{name}/{name}")

    def _run(self, run_id: str) -> dict[str, Any]:
        return self._get(f"/flow_runs/{run_id}")

    def _artifacts(self, run_id: str) -> list[dict[str, Any]]:
        found = self._post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
        return [one for one in found if one["type"] in ("markdown", "table", "progress")]

    def _get(self, path: str) -> Any:
        return self._checked(lambda: httpx.get(f"{self._api}{path}", timeout=30))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._checked(lambda: httpx.post(f"{self._api}{path}", json=body, timeout=30))

    @staticmethod
    def _checked(ask: Callable[[], httpx.Response]) -> Any:
        reply = ask()
        reply.raise_for_status()
        return reply.json()


if __name__ == "__main__":
    sys.exit(main())
