"""`python -m serving.llm SPEC.json`: run one replica of a language model until SIGTERM.

Exit status: 0 drained after a signal, 2 the spec is wrong, 3 neither the registry nor a local copy is
there, 4 the version cannot be served or its engine failed, 5 no GPU is free.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from pydantic import ValidationError

from serving.llm.errors import LlmError, NotServable
from serving.llm.spec import LlmSpec
from serving.replica.errors import LoadFailed, RegistryUnreachable

logger = logging.getLogger("interlock.llm")

_HTTP_CLIENTS = ("httpx", "httpx2")
"""Ours for engines, and that of the `openai` client."""


def main(arguments: list[str]) -> int:
    """Read the spec, fetch the version, run what it is served by."""
    if len(arguments) != 1:
        print("Usage: python -m serving.llm SPEC.json", file=sys.stderr)
        return 2
    try:
        spec = LlmSpec.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        print(f"Spec {arguments[0]} is wrong: {error}", file=sys.stderr)
        return 2
    set_up_logging()
    try:
        return _run(spec)
    except LlmError as error:
        logger.error("%s", error)
        return error.status
    except LoadFailed as error:
        logger.error("%s", error)
        return 3 if isinstance(error, RegistryUnreachable) else 4


def set_up_logging() -> None:
    """To standard error. HTTP clients tell each request with its URL, queries too: not here."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for client in _HTTP_CLIENTS:
        logging.getLogger(client).setLevel(logging.WARNING)


def _run(spec: LlmSpec) -> int:
    if spec.part == "front":
        from serving.llm.front import serve_front

        return serve_front(spec)
    from serving.llm.source import source_of
    from serving.replica.loading import fetch_model

    tracking_uri, cache_dir = spec.mlflow_tracking_uri, spec.model_cache_dir
    folder = fetch_model(spec.uri, tracking_uri=tracking_uri, cache_dir=cache_dir)
    source = source_of(folder, spec.serving, cache_dir=cache_dir, tracking_uri=tracking_uri)
    if source.runtime == "api":
        from serving.llm.api_server import serve_api

        return serve_api(spec, source)
    if spec.part == "whole" and (
        spec.prompt or (spec.serving.guards.is_active and spec.serving.runtime == "api")
    ):
        raise NotServable(
            "The version has weights, but the policy's serving.runtime is api, and then nothing stands "
            "before vLLM for prompt and guards. Next: set serving.runtime to vllm; versions that say api "
            "stay so."
        )
    from serving.llm.process import Launcher

    return Launcher(spec, source).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
