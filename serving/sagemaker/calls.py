"""Direct calls of one variant through the `sagemaker-runtime` API."""

from __future__ import annotations

import time
import uuid
from typing import Any

from serving.endpoint import Reply
from serving.errors import PlatformUnavailable
from serving.sagemaker.captures import REPLAY_PREFIX
from serving.sagemaker.clients import Clients, of_client_error

_MODEL_ERROR = "ModelError"


def ask_variant(
    clients: Clients, name: str, variant: str, body: bytes, *, content_type: str, timeout_s: float
) -> Reply:
    """One invocation of one variant. What the container said wrong is a reply, as is no answer in time."""
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError, ReadTimeoutError

    started = time.perf_counter()

    def elapsed_ms() -> float:
        return (time.perf_counter() - started) * 1000

    try:
        answer: Any = clients.runtime(timeout_s).invoke_endpoint(
            EndpointName=name,
            TargetVariant=variant,
            ContentType=content_type,
            Body=body,
            InferenceId=f"{REPLAY_PREFIX}{uuid.uuid4().hex}",
        )
        content: bytes = answer["Body"].read()
        return Reply(200, content, elapsed_ms(), str(answer.get("ContentType", "")))
    except ClientError as error:
        if error.response["Error"].get("Code") != _MODEL_ERROR:
            raise of_client_error(error, f"{name}: ask {variant}") from error
        said: Any = error.response
        message = str(said.get("OriginalMessage", "")).encode()
        return Reply(int(said.get("OriginalStatusCode", 500)), message, elapsed_ms())
    except (ReadTimeoutError, ConnectionClosedError):
        return Reply(0, b"", elapsed_ms())
    except BotoCoreError as error:
        raise PlatformUnavailable(f"{name}: ask {variant}: {error}. Next: it is tried again") from error
