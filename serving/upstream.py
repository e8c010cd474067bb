"""Speaks plain HTTP to the MLflow and Prefect servers, with the user's credentials for them.

Their own clients take seconds to import; supervision, the hook receiver and the CLI need three or
four requests, so they use httpx. Credentials come from the variables that the clients use.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from urllib.parse import urlsplit


def mlflow_headers(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """From MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN."""
    username = environment.get("MLFLOW_TRACKING_USERNAME")
    if username:
        return _basic(f"{username}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}")
    token = environment.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def prefect_headers(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """From PREFECT_API_AUTH_STRING (`user:password`), or PREFECT_API_KEY."""
    auth = environment.get("PREFECT_API_AUTH_STRING")
    if auth:
        return _basic(auth)
    key = environment.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _basic(credentials: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine, where no proxy must be asked."""
    return urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
