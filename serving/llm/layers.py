"""What stands between clients and a model, besides the capture: guards, then the version's prompt."""

from __future__ import annotations

from configs.policy import Policy
from serving.capture.middleware import ASGIApp
from serving.guards.wiring import with_guards
from serving.llm.errors import NotServable
from serving.llm.prompt_text import Unrenderable, read_prompt
from serving.llm.prompting import PromptLayer
from serving.llm.spec import LlmSpec
from serving.versions import Pair


def needs_front(policy: Policy, version: str) -> bool:
    """Whether a replica is split into a front and an engine: where vLLM's process cannot do it all.

    It has no place for layers, and no Presidio for what must be taken out of records.
    """
    serving = policy.serving
    return serving.runtime == "vllm" and bool(
        serving.guards.is_active or policy.capture.personal or Pair.of(version).prompt
    )


def layered(app: ASGIApp, spec: LlmSpec) -> ASGIApp:
    """The app behind the version's layers. Raises `NotServable`."""
    if spec.part == "engine":
        return app
    return with_guards(_prompted(app, spec), spec)


def _prompted(app: ASGIApp, spec: LlmSpec) -> ASGIApp:
    if spec.prompt is None:
        return app
    try:
        return PromptLayer(app, read_prompt(spec.prompt))
    except Unrenderable as error:
        raise NotServable(
            f"Prompt {spec.prompt.name} version {spec.prompt.version}: {error}. Next: deploy it again."
        ) from error
