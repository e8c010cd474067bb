"""Model artifacts on S3: each content is uploaded once, whoever asks and however often."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from serving.errors import SetupError
from serving.sagemaker.clients import Clients, is_missing, translated

_CHUNK_BYTES = 1 << 20


class Artifacts:
    """Uploads under `root` (s3://bucket/prefix): the files under their digest, then a note that says so.

    `fetch` gives the local folder of a `models:/name/version`.
    """

    def __init__(self, root: str, clients: Clients, fetch: Callable[[str], Path]) -> None:
        self._bucket, _, self._prefix = root.removeprefix("s3://").partition("/")
        self._root = root
        self._clients = clients
        self._fetch = fetch

    def folder(self, uri: str) -> Path:
        """The version's files on this machine."""
        return self._fetch(uri)

    def upload(self, uri: str) -> str:
        """The S3 prefix of a version's files, uploaded where its digest is not there yet.

        A killed upload leaves no note, so the next one uploads again; the same bytes lie at the same keys.
        """
        from botocore.exceptions import ClientError

        folder = self._fetch(uri)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            raise SetupError(f"{uri} has no files in {folder}. Next: register the version again")
        name = _digest(folder, files)
        note = f"{self._prefix}/{name}.json"
        s3 = self._clients.s3
        with translated(f"upload {uri} to {self._root}"):
            try:
                s3.head_object(Bucket=self._bucket, Key=note)
            except ClientError as error:
                if not is_missing(error):
                    raise
                for path in files:
                    key = f"{self._prefix}/{name}/{path.relative_to(folder).as_posix()}"
                    with path.open("rb") as file:
                        s3.put_object(Bucket=self._bucket, Key=key, Body=file)
                content = json.dumps({"uri": uri, "files": len(files)})
                s3.put_object(Bucket=self._bucket, Key=note, Body=content.encode())
        return f"{self._root}/{name}/"


def _digest(folder: Path, files: list[Path]) -> str:
    """A name for names and contents together."""
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                whole.update(chunk)
    return whole.hexdigest()[:32]
