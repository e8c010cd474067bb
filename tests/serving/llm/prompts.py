"""MLflow's registry as far as prompts are read from it, on the loopback."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from configs.settings import Settings
from serving.llm.prompt_text import fetch_prompt
from serving.llm.spec import PromptSpec


class RegistryOfPrompts:
    """Answers `model-versions/get`; a template that is a list is a chat prompt.

    `models` are the sources of registered versions of models, by name and version.
    """

    def __init__(
        self,
        templates: dict[tuple[str, str], str | list[Any]],
        models: dict[tuple[str, str], str] | None = None,
    ) -> None:
        self.templates = templates
        self.models = models or {}
        self.asked = 0
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked += 1
                asked = parse_qs(urlsplit(self.path).query)
                key = (asked["name"][0], asked["version"][0])
                if source := registry.models.get(key):
                    self.reply(200, {"model_version": {"source": source}})
                    return
                template = registry.templates.get(key)
                is_chat = isinstance(template, list)
                tags = [
                    {"key": "mlflow.prompt.text", "value": json.dumps(template) if is_chat else template},
                    {"key": "_mlflow_prompt_type", "value": "chat" if is_chat else "text"},
                ]
                if template is None:
                    self.reply(404, {})
                else:
                    self.reply(200, {"model_version": {"tags": tags}})

            def reply(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> RegistryOfPrompts:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Healthy:
    """Somebody's server: says that it is healthy, whoever asks."""

    def __enter__(self) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self._server.server_port

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def put_prompt(settings: Settings, name: str, version: str, template: str | list[Any]) -> PromptSpec:
    """A version in the local cache, as a registry that answers no more has left it."""
    with RegistryOfPrompts({(name, version): template}) as mlflow:
        there = settings.model_copy(update={"mlflow_tracking_uri": mlflow.url})
        assert there.mlflow_url == mlflow.url
        return fetch_prompt(there, name, version)
