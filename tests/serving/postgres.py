"""A Postgres server on a free port of 127.0.0.1 with a folder of its own; skipped where there is none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.serving.stack.conftest import free_ports

_START_WAIT_S = 60.0
_DEBIAN = Path("/usr/lib/postgresql")


@contextmanager
def running_server() -> Generator[sa.URL]:
    """The server's URL. Skips, with the reason, where the server or the driver is not installed."""
    initdb, postgres = _binary("initdb"), _binary("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no Postgres server on this machine (initdb, postgres)")
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    # Postgres refuses to run as root, and pytest's own folders are closed to everybody else
    user = "nobody" if os.geteuid() == 0 else None
    data = Path(tempfile.mkdtemp(prefix="interlock-postgres-"))
    if user is not None:
        shutil.chown(data, user)
    options = {"user": user, "cwd": "/", "env": {**os.environ, "LC_ALL": "C", "TZ": "UTC"}}
    try:
        subprocess.run(
            [initdb, "-D", data, "-U", "interlock", "-A", "trust", "-E", "UTF8", "-N"],
            check=True,
            capture_output=True,
            **options,
        )
        (port,) = free_ports(1)
        with (data / "log").open("wb") as log:
            server = subprocess.Popen(
                [postgres, "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"],
                stdout=log,
                stderr=log,
                **options,
            )
        url = sa.make_url(f"postgresql+psycopg://interlock@127.0.0.1:{port}/postgres")
        try:
            _await(url, server, data / "log")
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def empty(url: sa.URL) -> None:
    """Remove all tables."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()


def _await(url: sa.URL, server: subprocess.Popen[bytes], log: Path) -> None:
    engine, deadline = sa.create_engine(url), time.monotonic() + _START_WAIT_S
    while True:
        try:
            engine.connect().close()
        except sa.exc.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            engine.dispose()
            return


def _binary(name: str) -> str | None:
    """On the path, or where Debian keeps it, newest version first."""
    found = sorted(_DEBIAN.glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or next((str(path) for path in found), None)
