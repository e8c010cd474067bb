"""What the launcher of a language model's replica is told: a ReplicaSpec and the policy's `serving`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.serving_runtime import Runtime, Serving
from serving.replica.spec import ReplicaSpec


def ready_file(state_dir: Path, name: str) -> Path:
    """There while the launcher of this name has an engine that answers. Holds the runtime of its version."""
    return state_dir / "llm" / f"{name}.ready"


def read_runtime(state_dir: Path, name: str) -> Runtime | None:
    """What a launcher found its version to be served by; None while it has no engine that answers."""
    try:
        text = ready_file(state_dir, name).read_text()
    except FileNotFoundError:
        return None
    return "api" if text == "api" else "vllm"


class PromptSpec(BaseModel):
    """The prompt of a version, and where its local copy is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Registered prompt.")
    version: str = Field(min_length=1, description="Its version.")
    digest: str = Field(min_length=64, max_length=64, description="SHA-256 of the copy.")
    file: Path = Field(description="The copy.")


class LlmSpec(ReplicaSpec):
    """One replica of a language model. `drain_s` covers a whole streamed answer."""

    serving: Serving = Field(description="The policy's section.")
    served_name: str = Field(min_length=1, description="The model's name for clients.")
    environment: Path = Field(description="The virtual environment that has vLLM.")
    state_dir: Path = Field(description="For the GPUs' claims and what vLLM is told.")
    measures_dir: Path = Field(description="`settings.measures_dir / endpoint`.")
    spool_of_endpoint: Path = Field(description="Both slots' spools: recent prompts for the warm-up.")
    start_timeout_s: float = Field(gt=0, description="Gives up when the engine is not healthy by then.")
    part: Literal["whole", "engine", "front"] = Field(
        default="whole", description="A whole replica, or one of the two processes that it is split into."
    )
    engine_port: int = Field(default=0, ge=0, le=65535, description="Of a front: where its engine listens.")
    engine_name: str = Field(default="", description="Of a front: its engine in the supervisor.")
    prompt: PromptSpec | None = Field(default=None, description="What stands before the client's words.")

    @property
    def ready_file(self) -> Path:
        """There while the replica wants requests."""
        return ready_file(self.state_dir, self.replica_name)

    @property
    def capture_file(self) -> Path:
        """What the capture middleware is told."""
        return self.state_dir / "llm" / f"{self.replica_name}.capture.json"
