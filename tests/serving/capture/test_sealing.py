"""The encrypted spool: nothing readable on the disk, exact bytes with the key, an error without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.capture.erasing import erase_spooled
from serving.capture.sealing import KEY_VARIABLE, Seal, SpoolSealed
from serving.capture.spool import read_exchanges
from tests.serving.capture.exchanges import record, recorder

SECRET = "4f" * 32


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "spool.key"
    path.write_text(SECRET + "\n")
    return path


def spooled(tmp_path: Path, key_file: Path | None, *numbers: int) -> tuple[Path, str]:
    writing = recorder(tmp_path, captures_dir=None, spool_encrypt=True, spool_key_file=key_file)
    folder = tmp_path / "spool"
    _, cursor = read_exchanges(folder, None, 1)
    for number in numbers:
        writing.offer(record(number))
    writing.close()
    return folder, cursor


def test_only_the_key_opens_it(tmp_path: Path, key_file: Path) -> None:
    folder, cursor = spooled(tmp_path, key_file, 1, 2)
    found, _ = read_exchanges(folder, cursor, 10, Seal.from_file(key_file, {}))
    assert [(one.request_id, one.request, one.response) for one in found] == [
        (f"r-{n}", record(n).request, record(n).response) for n in (1, 2)
    ]
    with pytest.raises(SpoolSealed, match="has no key"):
        read_exchanges(folder, cursor, 10)
    with pytest.raises(SpoolSealed, match="does not open"):
        read_exchanges(folder, cursor, 10, Seal(b"another"))


def test_no_byte_of_a_body_lies_on_the_disk(tmp_path: Path, key_file: Path) -> None:
    folder, _ = spooled(tmp_path, key_file, 1)
    [text] = [path.read_bytes() for path in folder.iterdir()]
    for clear in (b"inputs", b'"request"', b"eyJpbnB1dHMi"):
        assert clear not in text


def test_a_sealed_text_belongs_to_its_record(key_file: Path) -> None:
    seal = Seal.from_file(key_file, {})
    assert seal is not None
    sealed = seal.close(b"a", b"b", b"r-1").decode()
    with pytest.raises(SpoolSealed):
        seal.open(sealed, "r-2")
    with pytest.raises(SpoolSealed):
        seal.open("not base64 at all", "r-1")


@given(st.binary(), st.binary(), st.binary(max_size=64))
def test_any_bytes_come_back(request: bytes, response: bytes, request_id: bytes) -> None:
    seal = Seal(b"secret")
    assert seal.open(seal.close(request, response, request_id).decode(), request_id.decode("latin-1")) == (
        request,
        response,
    )


def test_the_environment_has_the_key_of_a_vault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_file: Path
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "from the vault")
    folder, cursor = spooled(tmp_path, key_file, 1)
    assert len(read_exchanges(folder, cursor, 10, Seal(b"from the vault"))[0]) == 1


def test_without_a_key_nothing_is_written_in_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=KEY_VARIABLE):
        recorder(tmp_path, spool_encrypt=True)


def test_a_user_can_be_taken_out_without_the_key(tmp_path: Path, key_file: Path) -> None:
    folder, cursor = spooled(tmp_path, key_file, 1, 2)
    assert erase_spooled(folder, ["r-1"]) == 1
    found, _ = read_exchanges(folder, cursor, 10, Seal.from_file(key_file, {}))
    assert [one.request_id for one in found] == ["r-2"]
