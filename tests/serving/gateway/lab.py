"""A whole local platform in a folder: supervisord, the real HAProxy, stand-in replicas."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from configs.policy import Policy
from configs.settings import Settings
from serving.endpoint import Route, Slot
from serving.gateway.keys import Keys
from serving.gateway.places import access_log_path, gateway_runtime, jwt_public_key_path
from serving.gateway.process import gateway_program
from serving.gateway.render import refresh_gateway
from serving.local import LocalEndpoint
from serving.stack import is_port_free
from serving.supervision import Supervisor

UPSTREAM = (sys.executable, "-m", "tests.serving.gateway.upstream")
_RANGES = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


ISSUER, AUDIENCE = "https://id.example.com", "interlock test"


def lab_settings(folder: Path, **changes: object) -> Settings:
    half = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2  # none meets the other
    low = 22_000 + half * 3_900 + (os.getpid() * 7 + next(_RANGES)) % 162 * 24
    # below what the kernel gives to whoever asks for any: nobody else gets them before the gateway binds
    gateway, metrics = [port for port in range(low + 20, low + 24) if is_port_free("127.0.0.1", port)][:2]
    values: dict = {
        "state_dir": folder / "state",
        "gateway_port": gateway,
        "gateway_metrics_port": metrics,
        "gateway_jwt_issuer": ISSUER,
        "gateway_jwt_audience": AUDIENCE,
        "replica_port_low": low,
        "replica_port_high": low + 19,
    }
    return Settings(**{**values, **changes})


def lab_policy(endpoint: str = "flights", **sections: object) -> Policy:
    base = {
        "endpoint": endpoint,
        "model": "flights",
        "owner": "nobody",
        "access": {"rate_per_s": 1_000_000},
        "replicas": {"start_timeout_s": 20, "request_timeout_s": 10, "concurrency": 64},
        "evaluation": {"data": "x.csv", "label": "y", "task": "regression", "metrics": [{"name": "mae"}]},
        "shadow": {"score_tolerance": 0.1},
    }
    for name, section in sections.items():
        base[name] = {**base[name], **section} if isinstance(base.get(name), dict) else section
    return Policy.model_validate(base)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def version(self) -> str:
        return self.headers["x-interlock-version"]


def eventually(condition: Callable[[], object], wait_s: float = 30.0) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.02)


@dataclass
class Lab:
    settings: Settings
    supervisor: Supervisor = field(init=False)
    key: str = ""

    def __post_init__(self) -> None:
        self.supervisor = Supervisor(self.settings)
        self.runtime = gateway_runtime(self.settings)
        self.jwt_key = rsa.generate_private_key(65537, 2048)
        self._generation = itertools.count(1)

    def up(self) -> None:
        path = jwt_public_key_path(self.settings)
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        path.write_bytes(
            self.jwt_key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        refresh_gateway(self.settings)
        self.key = Keys(self.settings).create("acme")
        self.supervisor.start_daemon()
        self.supervisor.ensure(gateway_program(self.settings))
        eventually(self.runtime.is_up)

    def down(self) -> None:
        self.supervisor.shutdown()

    def endpoint(self, name: str = "flights", **sections: object) -> LocalEndpoint:
        policy = lab_policy(name, **sections)
        return LocalEndpoint(name, policy, self.settings, self.supervisor, replica_command=UPSTREAM)

    def serve(self, name: str = "flights", *, candidate: str = "", **sections: object) -> LocalEndpoint:
        """An endpoint whose version 1 serves from blue; `candidate` waits in green."""
        endpoint = self.endpoint(name, **sections)
        endpoint.deploy(Slot.BLUE, "1", uri="models:/m/1")
        if candidate:
            endpoint.deploy(Slot.GREEN, candidate, uri=f"models:/m/{candidate}")
        endpoint.apply(self.route(name, candidate=candidate))
        return endpoint

    def forget(self, name: str) -> None:
        """Stop an endpoint's replicas and remove it, so that its ports are free again."""
        for program in [one for one in self.supervisor.states() if one.startswith(f"replica-{name}-")]:
            self.supervisor.remove(program, wait_s=90)  # a signal between fork and exec is lost
        shutil.rmtree(self.settings.slots_dir / name, ignore_errors=True)
        (self.settings.gateway_dir / "endpoints" / f"{name}.json").unlink(missing_ok=True)

    def route(
        self, name: str = "flights", *, candidate: str = "", share_bp: int = 0, lease_s: float = 60
    ) -> Route:
        """A new generation: blue 1 is the default."""
        return Route(
            endpoint=name,
            generation=next(self._generation),
            default=Slot.BLUE,
            default_version="1",
            other_version=candidate,
            salt="salt",
            share_bp=share_bp,
            until=time.time() + lease_s if share_bp else 0.0,
        )

    def token(self, *, algorithm: str = "RS256", **claims: object) -> str:
        standard = {
            "tenant": "jwt-tenant",
            "sub": "ann",
            "exp": int(time.time()) + 60,
            "iss": ISSUER,
            "aud": AUDIENCE,
        }
        claims = {**standard, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.jwt_key if algorithm == "RS256" else "secret" * 8, algorithm=algorithm)

    def ask(
        self,
        command: object = None,
        *,
        path: str = "/flights/invocations",
        method: str = "POST",
        body: bytes | None = None,
        headers: dict[str, str | bytes] | None = None,
        timeout_s: float = 15,
    ) -> Answer:
        """One request with the lab's key, on its own connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.gateway_port, timeout=timeout_s)
        sent = {"x-api-key": self.key, "content-type": "application/json", **(headers or {})}
        content = json.dumps(command or {}).encode() if body is None and method == "POST" else body
        try:
            connection.request(method, path, content, {k: v for k, v in sent.items() if v})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def raw(self, data: bytes, *, timeout_s: float = 5) -> bytes:
        """Whatever comes back for bytes that are perhaps no request."""
        with socket.create_connection(("127.0.0.1", self.settings.gateway_port), timeout=timeout_s) as plug:
            parts = []
            try:
                plug.sendall(data)
                plug.shutdown(socket.SHUT_WR)
                while part := plug.recv(65536):
                    parts.append(part)
            except OSError:
                pass
            return b"".join(parts)

    def log_lines(self) -> list[dict]:
        whole = access_log_path(self.settings).read_text().rpartition("\n")[0]  # the last may be half written
        return [json.loads(line) for line in whole.splitlines() if line and not line.startswith("Proxy ")]

    def log_of(self, request_id: str) -> dict:
        found: list[dict] = []
        eventually(
            lambda: found.extend(each for each in self.log_lines() if each["id"] == request_id) or found
        )
        return found[0]
