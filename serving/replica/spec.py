"""What one replica process is told: one JSON file, written by the platform, read once at start.

`python -m serving.replica SPEC.json` runs it. The file carries no secret, only where one lies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    """Immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CaptureSpec(_Part):
    """The durable, redacted record of this replica."""

    captures_dir: Path = Field(description="Folder of the endpoint: `settings.captures_dir / endpoint`.")
    sample: float = Field(
        default=1.0, ge=0, le=1, description="Share of requests that is recorded; 0 records none."
    )
    drop: tuple[str, ...] = Field(default=(), description="Input columns that are never recorded.")
    hash: tuple[str, ...] = Field(default=(), description="Input columns recorded as HMAC only.")
    personal: tuple[str, ...] = Field(default=(), description="Personal data taken out of every text.")


class SpoolSpec(_Part):
    """The short-lived copy of exact requests that feeds the shadow."""

    dir: Path = Field(description="Folder of the slot: `settings.spool_dir / endpoint / slot`.")
    enabled: bool = Field(default=True, description="Without it nothing is spooled.")
    max_age_s: float = Field(default=900, gt=0, le=900, description="Segments older than this are deleted.")
    encrypt: bool = Field(default=False, description="Bodies are sealed with the spool's key.")
    personal: tuple[str, ...] = Field(default=(), description="Personal data taken out here too.")
    key_file: Path | None = Field(
        None, description="Where that key is, unless INTERLOCK_SECRET_SPOOL has it."
    )


class ReplicaSpec(_Part):
    """One serving process of a slot, completely described.

    Times in seconds. `name` must be unique among the replicas that run at a time: it names the
    process's files in the spool and capture folders.
    """

    endpoint: str = Field(min_length=1, description="The name clients call.")
    slot: Literal["blue", "green"] = Field(description="Which place of the endpoint.")
    version: str = Field(min_length=1, description="Registry version, as text.")
    uri: str = Field(min_length=1, description="`models:/name/version`.")
    port: int = Field(ge=1, le=65535, description="Where it listens.")
    host: str = Field(default="127.0.0.1", description="Address that it binds.")
    name: str = Field(default="", description="Name in logs and file names; default `endpoint-slot-port`.")
    concurrency: int = Field(default=4, ge=1, description="Predictions that run at a time.")
    threads: int = Field(default=1, ge=1, description="Numeric-library threads (OMP, BLAS).")
    batch_max_rows: int | None = Field(
        None, ge=1, description="Most rows in a joined prediction; null: never join."
    )
    request_timeout_s: float = Field(
        default=30, gt=0, description="A request without an answer after this gets 504."
    )
    max_body_bytes: int = Field(default=1_048_576, ge=1, description="Larger bodies get 413.")
    drain_s: float = Field(default=30, ge=0, description="Time that requests in flight have after SIGTERM.")
    lame_duck_s: float = Field(
        1.0, ge=0, description="After SIGTERM: time to be seen as unhealthy and avoided."
    )
    mlflow_tracking_uri: str = Field(description="The registry's server.")
    model_cache_dir: Path = Field(description="Downloaded models by model id: a restart needs no MLflow.")
    model_dir: Path | None = Field(
        default=None, description="Folder that holds the model already; the registry is not asked then."
    )
    aliases: dict[str, str] = Field(
        default_factory=dict, description="Further paths, and which one of ours each of them means."
    )
    capture: CaptureSpec | None = Field(default=None, description="No durable capture when null.")
    spool: SpoolSpec | None = Field(default=None, description="No spool when null.")
    hmac_key_file: Path | None = Field(
        None, description="Key of the hashed columns; needed by `capture.hash`."
    )

    @property
    def replica_name(self) -> str:
        """`name`, or a name made of endpoint, slot and port."""
        return self.name or f"{self.endpoint}-{self.slot}-{self.port}"
