"""The replicas of a local slot as supervised processes: told what to serve, started, awaited."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from configs.policy import Policy
from configs.prices import API_MACHINE, LOCAL_MACHINE
from configs.settings import Settings
from serving.atomic import write_private
from serving.direct import DirectClient
from serving.endpoint import Slot
from serving.errors import NotHealthy, Refused
from serving.gateway.limits import drain_s
from serving.llm.layers import needs_front
from serving.llm.prompt_text import fetch_prompt
from serving.llm.spec import LlmSpec, PromptSpec, read_runtime, ready_file
from serving.programs import Program
from serving.replica.spec import CaptureSpec, ReplicaSpec, SpoolSpec
from serving.secret_files import Secret, read_or_create, secret_path
from serving.slots import SlotFiles, SlotRecord, SlotReplica
from serving.supervision import Supervisor
from serving.versions import Pair

_LLM_COMMAND = (sys.executable, "-m", "serving.llm")
_CHECKOUT = Path(__file__).parents[1]
_POLL_S = 0.1
_STOP_MARGIN_S = 5.0
_ENGINE_STOP_MARGIN_S = 30.0
_CRASHES_MAX = 2
_REPLICA_PRIORITY = 600
_ENGINE_PRIORITY = 590
"""Stopped after what asks it."""
_LOG_LINES = 15
_LAME_DUCK_S = 1.0
"""A replica that is told to stop is seen as unhealthy by the gateway before it refuses anything."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ReplicaProcesses:
    """Starts and stops what serves one endpoint's slots."""

    def __init__(
        self,
        endpoint: str,
        policy: Policy,
        settings: Settings,
        supervisor: Supervisor,
        direct: DirectClient,
        command: tuple[str, ...],
    ) -> None:
        self._endpoint = endpoint
        self._policy = policy
        self._settings = settings
        self._supervisor = supervisor
        self._direct = direct
        self._command = command

    def start(self, record: SlotRecord) -> None:
        """Run every replica of the slot, and its engine, and return once all are healthy. Idempotent.

        Raises NotHealthy when one crashes repeatedly or is not healthy within the policy's time.
        """
        files = SlotFiles(self._settings)
        for engine in record.engines:
            path = files.engine_path(self._endpoint, engine.name)
            write_private(path, self._engine_spec(record, engine).model_dump_json(indent=1))
            self._supervisor.ensure(self._program(engine, path, priority=_ENGINE_PRIORITY))
        for number, replica in enumerate(record.replicas):
            path = files.spec_path(self._endpoint, record.slot, replica)
            write_private(path, self._spec(record, replica, number).model_dump_json(indent=1))
            self._supervisor.ensure(self._program(replica, path))
        deadline = time.monotonic() + self._policy.replicas.start_timeout_s
        for one in (*record.engines, *record.replicas):
            self._await(one, record, deadline)

    def stop(self, replicas: Iterable[SlotReplica], files: SlotFiles, slot: Slot) -> None:
        """Stop replicas and forget what they were told. A no-op for those that do not run."""
        for replica in replicas:
            self._supervisor.remove(replica.name, wait_s=self._stop_wait_s)
            files.spec_path(self._endpoint, slot, replica).unlink(missing_ok=True)

    def stop_unused_engines(self) -> None:
        """Stop the engines that no slot names any more, also those that a killed command left behind.

        An engine's spec is written before it starts and removed after it has stopped.
        """
        files = SlotFiles(self._settings)
        for name in files.unused_engines(self._endpoint):
            self._supervisor.remove(name, wait_s=self._stop_wait_s)
            files.engine_path(self._endpoint, name).unlink(missing_ok=True)

    def engine_key(self, version: str, uri: str) -> str:
        """What an engine of this version is told; "" where the replicas need none of their own.

        Slots share engines of the same key: the same weights, served in the same way.
        """
        serving, replicas = self._policy.serving, self._policy.replicas
        if not needs_front(self._policy, version):
            return ""
        api = serving.api.model_dump_json(exclude={"price"}) if serving.api else ""
        told = (uri, serving.vllm.model_dump_json(), api, self._served_name, str(replicas.threads))
        return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]

    def machine(self, record: SlotRecord) -> str:
        """What the slot's replicas are billed as, once they are healthy."""
        if not self._policy.serving.is_llm:
            return LOCAL_MACHINE
        runtime = read_runtime(self._settings.state, record.replicas[0].name)
        return API_MACHINE if runtime == "api" else LOCAL_MACHINE

    def _await(self, replica: SlotReplica, record: SlotRecord, deadline: float) -> None:
        crashes, was_down = 0, False
        while not self._answers(replica):
            state = self._supervisor.states().get(replica.name, "STOPPED")
            is_down = state in {"BACKOFF", "EXITED", "FATAL"}
            crashes += is_down and not was_down
            was_down = is_down
            if crashes >= _CRASHES_MAX or state == "FATAL":
                raise self._not_healthy(replica, record, f"crashed at start (supervisor: {state})")
            if time.monotonic() > deadline:
                waited_s = self._policy.replicas.start_timeout_s
                raise self._not_healthy(replica, record, f"was not healthy after {waited_s:.0f} s ({state})")
            time.sleep(_POLL_S)

    def _answers(self, replica: SlotReplica) -> bool:
        """Whether it is healthy; for an engine also whether it is the one: its port may be another's."""
        if replica.name.startswith("engine-") and not ready_file(self._settings.state, replica.name).exists():
            return False
        return self._direct.get(replica.port, "/health", timeout_s=2).status == 200

    def _not_healthy(self, replica: SlotReplica, record: SlotRecord, what: str) -> NotHealthy:
        path = self._log_path(replica)
        return NotHealthy(
            f"{self._endpoint} version {record.version} in {record.slot}: {replica.name} {what}. "
            f"Next: read {path}. It ends with:\n{_tail(path)}"
        )

    def _program(
        self, replica: SlotReplica, spec_path: Path, *, priority: int = _REPLICA_PRIORITY
    ) -> Program:
        threads = str(self._policy.replicas.threads)
        is_llm = self._policy.serving.is_llm
        return Program(
            name=replica.name,
            command=(*(_LLM_COMMAND if is_llm else self._command), str(spec_path)),
            environment=dict.fromkeys(_THREAD_VARIABLES, threads),
            log_path=self._log_path(replica),
            stop_wait_s=self._stop_wait_s,
            priority=priority,
            stop_group=not is_llm,
        )

    @property
    def _stop_wait_s(self) -> float:
        margin_s = _ENGINE_STOP_MARGIN_S if self._policy.serving.is_llm else _STOP_MARGIN_S
        return _LAME_DUCK_S + drain_s(self._policy) + margin_s

    def _log_path(self, replica: SlotReplica) -> Path:
        return self._settings.logs_dir / f"{replica.name}.log"

    @property
    def _served_name(self) -> str:
        return self._policy.serving.served_name or self._endpoint

    def _engine_spec(self, record: SlotRecord, engine: SlotReplica) -> LlmSpec:
        """Of the model alone: whichever slot it was started for, it may serve the other one later."""
        changes = {"part": "engine", "version": Pair.of(record.version).model, "spool": None, "capture": None}
        return self._llm_spec(record, engine).model_copy(update=changes)

    def _spec(self, record: SlotRecord, replica: SlotReplica, number: int) -> ReplicaSpec:
        if not self._policy.serving.is_llm:
            return self._common_spec(record, replica)
        spec = self._llm_spec(record, replica)
        prompt = self.prompt(record.version, held_digest=record.prompt_digest)
        changes: dict[str, object] = {"prompt": prompt}
        if record.engines:
            engine = record.engines[number]
            changes |= {"part": "front", "engine_port": engine.port, "engine_name": engine.name}
        return spec.model_copy(update=changes)

    def prompt(self, version: str, *, held_digest: str = "") -> PromptSpec | None:
        """What stands before the client's words; None for a version without a prompt.

        Raises Refused for one that does not exist or cannot be filled in, PlatformUnavailable where
        MLflow is needed and does not answer.
        """
        number = Pair.of(version).prompt if self._policy.serving.is_llm else ""
        if not number:
            return None
        if self._policy.prompt is None:
            raise Refused(
                f"{self._endpoint}: version {version} names a prompt, but the policy has none. "
                "Next: put `prompt` back into the policy"
            )
        return fetch_prompt(self._settings, self._policy.prompt.name, number, held_digest=held_digest)

    def _llm_spec(self, record: SlotRecord, replica: SlotReplica) -> LlmSpec:
        serving, settings = self._policy.serving, self._settings
        return LlmSpec(
            **self._common_spec(record, replica).model_dump(),
            serving=serving,
            served_name=self._served_name,
            environment=_CHECKOUT / serving.vllm.environment,
            state_dir=settings.state,
            measures_dir=settings.measures_dir / self._endpoint,
            spool_of_endpoint=settings.spool_dir / self._endpoint,
            start_timeout_s=self._policy.replicas.start_timeout_s,
        )

    def _common_spec(self, record: SlotRecord, replica: SlotReplica) -> ReplicaSpec:
        policy, settings = self._policy, self._settings
        replicas, capture = policy.replicas, policy.capture
        return ReplicaSpec(
            endpoint=self._endpoint,
            slot=record.slot.value,
            version=record.version,
            uri=record.uri,
            host=settings.host,
            port=replica.port,
            name=replica.name,
            concurrency=replicas.concurrency,
            threads=replicas.threads,
            batch_max_rows=replicas.batch.max_rows if replicas.batch else None,
            request_timeout_s=replicas.request_timeout_s,
            max_body_bytes=policy.access.max_body_bytes,
            drain_s=drain_s(policy),
            lame_duck_s=_LAME_DUCK_S,
            mlflow_tracking_uri=settings.mlflow_url,
            model_cache_dir=settings.state / "models",
            capture=CaptureSpec(
                captures_dir=settings.captures_dir / self._endpoint,
                sample=capture.sample,
                drop=capture.drop,
                hash=capture.hash,
                personal=capture.personal,
            ),
            spool=SpoolSpec(
                dir=settings.spool_dir / self._endpoint / record.slot.value,
                enabled=capture.spool.enabled,
                max_age_s=capture.spool.max_age_s,
                encrypt=capture.spool.encrypt,
                personal=capture.personal if capture.spool.personal else (),
                key_file=_key_file(settings, Secret.SPOOL) if capture.spool.encrypt else None,
            ),
            hmac_key_file=_key_file(settings, Secret.USER_HMAC),
        )


def _key_file(settings: Settings, name: Secret) -> Path | None:
    """The secret's file, made where it does not exist; None where the environment has the secret."""
    read_or_create(settings, name)
    path = secret_path(settings, name)
    return path if path.exists() else None


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    except OSError:
        return "(no log)"
