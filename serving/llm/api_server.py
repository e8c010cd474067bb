"""The process of an API-hosted replica."""

from __future__ import annotations

from serving.llm.api_app import ApiApp
from serving.llm.app_server import serve_app
from serving.llm.errors import NotServable
from serving.llm.provider import ProviderClient, key_of
from serving.llm.source import Source
from serving.llm.spec import LlmSpec


def serve_api(spec: LlmSpec, source: Source) -> int:
    """Run until a signal; returns the exit status. Raises `NotServable` without a key."""
    api = spec.serving.api
    if api is None:
        raise NotServable("The policy has no serving.api. Next: write it.")
    client = ProviderClient(api, key_of(api))
    app = ApiApp(client.ask, served_name=spec.served_name, model=source.model)
    return serve_app(spec, app, runtime="api", close=client.close)
