"""What is compared: the upstream alone, and the same upstream behind each gateway."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.cores import cpu_s, family
from benchmarks.gateway.clients import Target
from configs.settings import Settings
from serving.endpoint import Slot
from serving.gateway.binary import haproxy_binary
from serving.gateway.keys import Keys
from serving.gateway.limits import EndpointLimits, save_limits
from serving.gateway.maps import GRANT_MAP, ROUTE_MAP, write_map
from serving.gateway.process import gateway_program
from serving.gateway.render import refresh_gateway
from serving.slots import SlotFiles

_BODY = (
    '{"dataframe_records":[' + ",".join('{"carrier":"UA","distance":1400,"hour":5}' for _ in range(23)) + "]}"
)
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Subject:
    """One gateway under test. `pids` are the processes whose CPU is the gateway's own."""

    name: str
    target: Target
    pids: tuple[int, ...] = ()

    def cpu_s(self) -> float:
        """CPU time that the gateway has used so far."""
        return cpu_s(self.pids)


@dataclass(slots=True)
class Lineup:
    """The subjects that could be started, and why the others could not."""

    subjects: list[Subject] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@contextmanager
def lineup(folder: Path, beside: Sequence[Path] = ()) -> Iterator[Lineup]:
    """Start everything in a folder; all ends with the context. `beside`: configurations of HAProxy."""
    with ExitStack() as stack:
        upstream = free_port()
        started(stack, [sys.executable, "-m", "benchmarks.gateway.upstream", str(upstream), "1"], upstream)
        line = Lineup([Subject("direct", Target(upstream, "/invocations", _JSON, _BODY))])
        line.subjects.append(_bare_haproxy(stack, folder, upstream))
        line.subjects.append(_full_gateway(stack, folder, upstream))
        line.subjects += [_of_file(stack, folder, upstream, config) for config in beside]
        nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if nginx:
            line.subjects.append(_nginx(stack, folder, upstream, nginx))
        else:
            line.skipped.append("nginx: not on this machine, skipped (apt-get install nginx-light)")
        line.subjects.append(_python_proxy(stack, upstream))
        yield line


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(
    stack: ExitStack, command: list[str], port: int, *, stdout: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """A process that listens on a port; it is ended with the stack."""
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)
    stack.callback(_end, process)
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} does not listen on {port}") from None
            time.sleep(0.05)
        else:
            return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def bench_settings(folder: Path) -> Settings:
    """A stack of its own in a folder."""
    return Settings(
        state_dir=folder / "state",
        gateway_port=free_port(),
        gateway_metrics_port=free_port(),
        replica_port_low=21_000,
        replica_port_high=29_999,
    )


def start_full_gateway(
    stack: ExitStack, settings: Settings, ports: dict[Slot, int], *, concurrency: int
) -> tuple[subprocess.Popen[bytes], str]:
    """Our gateway with keys, limits, split, lease and log before these upstreams; returns a key."""
    save_limits(
        settings,
        EndpointLimits("flights", False, 1_000_000, 1_048_576, "user", concurrency, 1024, 30_000, True),
    )
    files = SlotFiles(settings)
    for slot, port in ports.items():
        record = files.reserve("flights", slot, "1" if slot is Slot.BLUE else "2", "models:/m/1", 1)
        files.write(replace(record, ready=True, replicas=(replace(record.replicas[0], port=port),)))
    refresh_gateway(settings)
    key = Keys(settings).create("bench")
    write_map(settings.gateway_dir / ROUTE_MAP, {"flights": "blue:green:1:salt:1:2"})
    now = int(time.time())
    write_map(settings.gateway_dir / GRANT_MAP, {"flights#1": f"2500:{now + 3600}:{now}"})
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    process = started(stack, list(gateway_program(settings).command), settings.gateway_port)
    return process, key


def _full_gateway(stack: ExitStack, folder: Path, upstream: int) -> Subject:
    settings = bench_settings(folder)
    ports = {Slot.BLUE: upstream, Slot.GREEN: upstream}
    process, key = start_full_gateway(stack, settings, ports, concurrency=256)
    headers = {**_JSON, "x-api-key": key, "x-user-id": "user-4711"}
    target = Target(settings.gateway_port, "/flights/invocations", headers, _BODY)
    return Subject("Interlock's gateway", target, family(process.pid))


def _bare_haproxy(stack: ExitStack, folder: Path, upstream: int) -> Subject:
    port = free_port()
    config = folder / "bare.cfg"
    connections = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 3)
    config.write_text(
        f"global\n  maxconn {connections}\n  nbthread {min(os.cpu_count() or 1, 8)}\n"
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n"
        "  option http-no-delay\n  http-reuse aggressive\n"
        f"listen bare\n  bind 127.0.0.1:{port}\n  server one 127.0.0.1:{upstream}\n"
    )
    binary = haproxy_binary(bench_settings(folder))
    process = started(stack, [str(binary), "-f", str(config), "-db"], port)
    return Subject("HAProxy, bare", Target(port, "/invocations", _JSON, _BODY), family(process.pid))


def _of_file(stack: ExitStack, folder: Path, upstream: int, given: Path) -> Subject:
    """A configuration of somebody's own, asked as ours is, with the API key `bench`."""
    port = free_port()
    own = folder / given.stem
    own.mkdir()
    config = own / "haproxy.cfg"
    text = given.read_text().replace("@PORT@", str(port)).replace("@UPSTREAM@", str(upstream))
    config.write_text(text.replace("@FOLDER@", str(given.parent.resolve())))
    process = started(stack, [str(haproxy_binary(bench_settings(own))), "-f", str(config), "-db"], port)
    headers = {**_JSON, "x-api-key": "bench", "x-user-id": "user-4711"}
    return Subject(given.name, Target(port, "/flights/invocations", headers, _BODY), family(process.pid))


def _nginx(stack: ExitStack, folder: Path, upstream: int, binary: str) -> Subject:
    port = free_port()
    config = folder / "nginx.conf"
    own = folder / "nginx"
    own.mkdir()
    paths = "".join(
        f"  {name}_temp_path {own}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"worker_processes {os.cpu_count()};\ndaemon off;\npid {own}/pid;\nerror_log {own}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{\n  access_log off;\n{paths}"
        f"  upstream one {{ server 127.0.0.1:{upstream}; keepalive 256; }}\n"
        f"  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000000;\n"
        '    location / { proxy_pass http://one; proxy_http_version 1.1; proxy_set_header Connection ""; }\n'
        "  }\n}\n"
    )
    process = started(stack, [binary, "-c", str(config), "-p", str(own)], port)
    return Subject("nginx, bare", Target(port, "/invocations", _JSON, _BODY), family(process.pid))


def _python_proxy(stack: ExitStack, upstream: int) -> Subject:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway.proxy", str(port), str(upstream)]
    process = started(stack, command, port)
    return Subject("aiohttp proxy", Target(port, "/invocations", _JSON, _BODY), (process.pid,))
