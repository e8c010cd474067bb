"""Tables from addresses and from Cloud Storage: Arrow's and httpx's real clients against loopback servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from serving.errors import SetupError
from serving.table_download import DataUnavailable, shown
from serving.table_scan import scan_table
from tests.doubles.certificate import write_certificate
from tests.doubles.http_files import WRITTEN_S, serve_files

ROWS = 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tables")
    frame = pd.DataFrame({"a": np.arange(ROWS), "word": "text"})
    frame.to_parquet(made / "rows.parquet")
    frame.head(5000).to_csv(made / "rows.csv", index=False)
    frame.head(5000).to_csv(made / "rows.csv.gz", index=False)
    frame.head(5000).to_json(made / "rows.jsonl.gz", orient="records", lines=True)
    (made / "export").write_bytes((made / "rows.csv").read_bytes())
    (made / "text.parquet").write_text("no table")
    return made


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("rows.parquet", ROWS),
        ("rows.parquet?sig=a%2Fb%2Bc", ROWS),
        ("rows.csv", 5000),
        ("rows.csv.gz", 5000),
        ("encoded/rows.csv.gz", 5000),
        ("rows.jsonl.gz", 5000),
        ("csv/export", 5000),
        ("moved/rows.csv", 5000),
    ],
)
def test_an_address_is_read_whatever_its_server_can_do(folder: Path, name: str, rows: int) -> None:
    heard: list[int] = []
    with serve_files(folder) as (address, asked):
        scan = scan_table(f"{address}/{name}", rows=1000, tell=lambda read, total: heard.append(read))
    assert scan.total == rows
    assert scan.frame["a"].tolist() == scan.numbers.tolist()
    assert scan.modified_at == WRITTEN_S
    assert heard[-1] == rows
    assert asked[0] == f"/{name}"  # a signature reaches the server as it is written


def test_the_same_rows_are_drawn_from_an_address_and_a_path(folder: Path) -> None:
    with serve_files(folder) as (address, _):
        there = scan_table(f"{address}/rows.parquet", rows=500, seed=3)
    here = scan_table(str(folder / "rows.parquet"), rows=500, seed=3)
    assert there.numbers.tolist() == here.numbers.tolist()


def test_the_certificate_of_an_address_matters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_certificate(folder / "server.pem")
    with serve_files(folder, certificate=folder / "server.pem") as (address, _):
        with pytest.raises(SetupError, match="Next: name the file of the authority in SSL_CERT_FILE"):
            scan_table(f"{address}/rows.csv", rows=10)
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "server.pem"))
        assert scan_table(f"{address}/rows.csv", rows=10).total == 5000


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("none.parquet", SetupError, "answered 404. Next: correct the address"),
        ("status/403?sig=secret", SetupError, "answered 403. Next: check the address's signature"),
        ("status/401", SetupError, "Next: put credentials into the address"),
        ("status/418", SetupError, "Next: open the address in a browser"),
        ("status/503", DataUnavailable, "answered 503. Next: ask again later"),
        ("text.parquet", SetupError, "Next: check the path, and that it is parquet, CSV or JSON lines"),
    ],
)
def test_an_address_that_gives_no_table_says_why(
    folder: Path, target: str, error: type[Exception], words: str
) -> None:
    with serve_files(folder) as (address, _), pytest.raises(error) as caught:
        scan_table(f"{address}/{target}", rows=10)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_gone_may_come_back(folder: Path) -> None:
    with serve_files(folder) as (address, _):
        pass
    with pytest.raises(DataUnavailable, match="does not answer"):
        scan_table(f"{address}/rows.csv", rows=10)


def test_passwords_and_signatures_are_not_shown() -> None:
    assert shown("https://me:word@host:1/a/b.csv?sig=1") == "https://host:1/a/b.csv"
    assert shown("gs://anonymous@bucket/a?x=1") == "gs://bucket/a"
    assert shown("data/rows.csv?") == "data/rows.csv?"


@pytest.fixture(scope="module")
def buckets(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cloud Storage on loopback, with a service account's key in the environment; its folder of buckets."""
    place = tmp_path_factory.mktemp("buckets")
    for bucket in ("mine", "public"):
        (place / bucket / "parts").mkdir(parents=True)
        for name in ("rows.parquet", "rows.csv.gz"):
            (place / bucket / name).write_bytes((folder / name).read_bytes())
        for part in range(2):
            (place / bucket / "parts" / f"{part}.parquet").write_bytes((folder / "rows.parquet").read_bytes())
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "project_id": "p", "private_key_id": "k", "client_id": "1"}
    account |= {"private_key": private.decode(), "client_email": "reader@p.iam.gserviceaccount.com"}
    account |= {"token_uri": "https://127.0.0.1:1/token"}
    (place / "account.json").write_text(json.dumps(account))
    command = [sys.executable, "-m", "tests.doubles.google.objects", str(place)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(place / "account.json"))
        os.utime(place / "mine" / "rows.parquet", (WRITTEN_S, WRITTEN_S))
        yield place
        server.terminate()


@pytest.mark.usefixtures("buckets")
@pytest.mark.parametrize(
    ("location", "rows"),
    [
        ("gs://mine/rows.parquet", ROWS),
        ("gs://mine/rows.csv.gz", 5000),
        ("gs://mine/parts", 2 * ROWS),
        ("gs://anonymous@public/rows.parquet", ROWS),
    ],
)
def test_cloud_storage(location: str, rows: int) -> None:
    scan = scan_table(location, rows=1000)
    assert scan.total == rows
    assert (scan.frame["a"].to_numpy() == scan.numbers % ROWS).all()
    if location == "gs://mine/rows.parquet":
        assert scan.modified_at == WRITTEN_S


@pytest.mark.usefixtures("buckets")
@pytest.mark.parametrize(
    ("location", "error", "words"),
    [
        ("gs://mine/none.parquet", SetupError, "gs://mine/none.parquet does not exist"),
        ("gs://anonymous@mine/rows.parquet", SetupError, "Next: let this account read it"),
        ("gs://status-403/x.parquet", SetupError, "Next: let this account read it"),
        ("gs://status-503/x.parquet?retry_limit_seconds=1", DataUnavailable, "does not answer"),
    ],
)
def test_cloud_storage_that_gives_no_table_says_why(
    location: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        scan_table(location, rows=10)
    assert words in str(caught.value)
