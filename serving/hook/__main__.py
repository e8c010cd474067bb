"""`python -m serving.hook`: the registry-hook receiver of this stack, until SIGTERM."""

from __future__ import annotations

import logging

import httpx
import uvicorn

from configs.settings import Settings
from serving.hook.app import Receiver
from serving.hook.requests import WatchedModels
from serving.secret_files import Secret, read_or_create
from serving.upstream import is_loopback, prefect_headers

_CONNECTIONS_MAX = 100
_PREFECT_WAIT_S = 5.0


def receiver(settings: Settings) -> Receiver:
    """The application with this stack's secret, policies and Prefect server."""
    log = logging.getLogger("interlock.hook")
    return Receiver(
        secret=read_or_create(settings, Secret.WEBHOOK).encode(),
        prefect_url=settings.prefect_url,
        watched=WatchedModels(settings.policy_folder, log.error),
        client=httpx.AsyncClient(
            headers=prefect_headers(),
            timeout=_PREFECT_WAIT_S,
            trust_env=not is_loopback(settings.prefect_url),
        ),
    )


def main() -> None:
    """Serve until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings()
    uvicorn.run(
        receiver(settings),
        host=settings.host,
        port=settings.hook_port,
        access_log=False,
        log_level="warning",
        limit_concurrency=_CONNECTIONS_MAX,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=16_384,
        server_header=False,
    )


if __name__ == "__main__":
    main()
