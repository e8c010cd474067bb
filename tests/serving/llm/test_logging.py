"""What a replica's log leaves out."""

from __future__ import annotations

import logging

import httpx
import pytest

from serving.llm.__main__ import set_up_logging


def test_requests_of_http_clients_are_not_logged_with_their_urls(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("httpx", "httpx2"):
        caplog.set_level(logging.INFO, logger=name)  # put back at the end
    set_up_logging()
    caplog.set_level(logging.INFO)
    url = "http://127.0.0.1:9/v1/models?key=secret"
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        client.get(url)
    logging.getLogger("httpx2").info("HTTP Request: GET %s", url)
    logging.getLogger("interlock.llm").info("Ready")
    assert caplog.messages == ["Ready"]
