"""Tells MLflow and Prefect about this stack: webhook, work pool, deployments, automations.

Every registration is found by its name and made the way it should be, so that running it again
changes nothing, and running it against a fresh server restores everything. Plain HTTP: the
servers' own clients would cost `interlock up` ten seconds of imports.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from configs.settings import Settings
from serving.errors import Refused, ServingError
from serving.secret_files import Secret, read_or_create
from serving.stack import PROJECT_DIR, prefect_environment
from tasks.rest import ServerUnavailable, mlflow_api, prefect_api

WEBHOOK_EVENTS = (
    {"entity": "MODEL_VERSION_ALIAS", "action": "CREATED"},
    {"entity": "PROMPT_ALIAS", "action": "CREATED"},
)
HEARTBEAT_LOST_S = 90
_ZOMBIE_AUTOMATION = "interlock release fell silent"
_DEPLOY_WAIT_S = 180


def webhook_name(settings: Settings) -> str:
    """One webhook a receiver: two stacks on one MLflow do not take each other's."""
    return f"interlock-{settings.host}-{settings.hook_port}"


def find_webhook(settings: Settings) -> dict[str, Any] | None:
    """This stack's webhook as MLflow has it, if it has it."""
    api = mlflow_api(settings)
    token = ""
    while True:
        page = api.call("GET", f"/webhooks?max_results=100&page_token={token}") or {}
        for webhook in page.get("webhooks", ()):
            if webhook["name"] == webhook_name(settings):
                return webhook
        token = page.get("next_page_token", "")
        if not token:
            return None


def register_webhook(settings: Settings) -> bool:
    """Have MLflow send alias changes to the hook receiver, signed. Returns whether it was new.

    The secret is written again each time: MLflow never shows it, so it cannot be compared.
    """
    api = mlflow_api(settings)
    body = {
        "name": webhook_name(settings),
        "description": "Interlock: starts a release when a version becomes `candidate`",
        "url": settings.hook_url,
        "events": list(WEBHOOK_EVENTS),
        "secret": read_or_create(settings, Secret.WEBHOOK),
        "status": "ACTIVE",
    }
    found = find_webhook(settings)
    if found is None:
        _make(lambda: find_webhook(settings), lambda: api.call("POST", "/webhooks", body))
    else:
        api.call("PATCH", f"/webhooks/{found['webhook_id']}", body)
    if find_webhook(settings) is None:
        raise ServingError(f"The webhook {webhook_name(settings)} was written, but MLflow does not list it")
    return found is None


def register_work_pool(settings: Settings) -> bool:
    """Have the process work pool of the flows. Returns whether it was new."""
    api = prefect_api(settings, patient=True)

    def find() -> dict[str, Any] | None:
        return api.call("GET", f"/work_pools/{settings.work_pool}", missing_ok=True)

    found = find()
    if found is None:
        body = {"name": settings.work_pool, "type": "process", "description": "Interlock's flows"}
        _make(find, lambda: api.call("POST", "/work_pools/", body))
        return True
    if found["type"] == "prefect-agent":
        raise Refused(
            f"The work pool {settings.work_pool} is for agents. Next: set INTERLOCK_WORK_POOL to another"
        )
    return False


def _make(find: Callable[[], object], create: Callable[[], object]) -> None:
    """Create what is missing. Where the server's answer was lost, look before it is asked again.

    Raises ServerUnavailable after the third time.
    """
    for last in (False, False, True):
        try:
            create()
            return
        except ServerUnavailable:
            if find():
                return
            if last:
                raise


def deploy_version() -> str:
    """A digest of what is deployed: prefect.yaml and the flows' code."""
    digest = hashlib.sha256()
    for path in (PROJECT_DIR / "prefect.yaml", *sorted((PROJECT_DIR / "flows").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def missing_deployments(settings: Settings) -> list[str]:
    """Deployments of prefect.yaml that Prefect lacks, has in another version, or without automation."""
    api = prefect_api(settings, patient=True)
    wanted = yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text())["deployments"]
    filter_ = {"deployments": {"name": {"any_": [deployment["name"] for deployment in wanted]}}}
    found = {row["name"]: row for row in api.call("POST", "/deployments/filter", filter_, repeatable=True)}
    missing: list[str] = []
    for deployment in wanted:
        row = found.get(deployment["name"])
        if row is None or not _is_current(settings, row):
            missing.append(deployment["name"])
        elif deployment.get("triggers"):
            owned = api.call("GET", f"/automations/related-to/prefect.deployment.{row['id']}")
            missing += [] if owned else [deployment["name"]]
    return missing


def _is_current(settings: Settings, row: Mapping[str, Any]) -> bool:
    return row["version"] == deploy_version() and row["work_pool_name"] == settings.work_pool


def register_deployments(settings: Settings) -> bool:
    """Have every deployment of prefect.yaml with its automations. Returns whether anything changed.

    `prefect deploy` itself does it, as a user would: reading prefect.yaml is its business.
    """
    if not missing_deployments(settings):
        return False
    environment = {
        **os.environ,
        **settings.as_environment(),
        **prefect_environment(settings),
        "INTERLOCK_WORK_POOL": settings.work_pool,
        "INTERLOCK_DEPLOY_VERSION": deploy_version(),
        "DO_NOT_TRACK": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=PROJECT_DIR,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DEPLOY_WAIT_S,
        check=False,
    )
    left = missing_deployments(settings)
    if done.returncode != 0 or left:
        said = f"{done.stdout}\n{done.stderr}".strip()[-3000:]
        raise ServingError(
            f"'prefect deploy --all' ended with status {done.returncode}; not registered: "
            f"{', '.join(left) or 'none'}. It said:\n{said}"
        )
    return True


def online_workers(settings: Settings) -> list[str]:
    """Names of the work pool's workers that Prefect heard of lately."""
    api = prefect_api(settings, patient=True)
    path = f"/work_pools/{settings.work_pool}/workers/filter"
    workers = api.call("POST", path, {}, missing_ok=True, repeatable=True) or ()
    return sorted(worker["name"] for worker in workers if worker["status"] == "ONLINE")


def register_zombie_automation(settings: Settings) -> bool:
    """Have silent release runs marked as crashed. Returns whether it was new.

    When a worker and its flow die together nobody reports it, and the run would stay Running for
    ever. This cannot be said in prefect.yaml, whose automations only run deployments.
    """
    api = prefect_api(settings, patient=True)

    def find() -> list[dict[str, Any]]:
        filter_ = {"automations": {"name": {"any_": [_ZOMBIE_AUTOMATION]}}}
        return api.call("POST", "/automations/filter", filter_, repeatable=True)

    found = find()
    if found:
        api.call("PUT", f"/automations/{found[0]['id']}", _zombie_automation())
        return False
    _make(find, lambda: api.call("POST", "/automations/", _zombie_automation()))
    return True


def _zombie_automation() -> dict[str, Any]:
    endings = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", "Paused", "Suspended")
    own_endings = ("Promoted", "Rejected", "Aborted", "Held", "Refused", "Interrupted", "RolledBack")
    return {
        "name": _ZOMBIE_AUTOMATION,
        "description": "A release's flow run sent no heartbeat: its process is gone. Marks it as crashed.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {"prefect.resource.role": "flow", "prefect.resource.name": "release"},
            "for_each": ["prefect.resource.id"],
            "after": ["prefect.flow-run.heartbeat"],
            "expect": [
                "prefect.flow-run.heartbeat",
                *(f"prefect.flow-run.{name}" for name in (*endings, *own_endings)),
            ],
            "threshold": 1,
            "within": HEARTBEAT_LOST_S,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": "Crashed",
                "message": f"No heartbeat for {HEARTBEAT_LOST_S} s: the process of this release is gone.",
            }
        ],
    }
