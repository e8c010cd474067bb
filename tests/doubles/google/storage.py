"""The part of the double that is Cloud Storage: multipart and resumable uploads, and metadata."""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
import uuid
from typing import Any

from tests.doubles.google.problems import invalid, not_found


class Storage:
    """Objects by `bucket/name`; `uploads` are the names in the order they came."""

    objects: dict[str, bytes]
    uploads: list[str]
    _lock: threading.RLock
    _resumable: dict[str, str]

    def get_object(self, bucket: str, key: str, **_: Any) -> Any:
        with self._lock:
            name = f"{bucket}/{urllib.parse.unquote(key)}"
            if name not in self.objects:
                raise not_found(name)
            return _object(bucket, urllib.parse.unquote(key), self.objects[name])

    def put_object(self, bucket: str, *, query: dict[str, str], body: bytes, headers: Any) -> Any:
        if query.get("uploadType") == "resumable":
            token = uuid.uuid4().hex
            key = query.get("name") or json.loads(body)["name"]
            self._resumable[token] = key
            return 200, {"Location": f"{self.url}/upload/storage/v1/b/{bucket}/o?upload_id={token}"}
        if query.get("uploadType") != "multipart":
            raise invalid(f"uploadType {query.get('uploadType')}")
        boundary = re.search(r'boundary="?([^"]+)"?', headers["content-type"])
        assert boundary is not None
        _, first, second, *_ = body.split(b"--" + boundary[1].encode().strip(b"'"))
        key = json.loads(first.split(b"\r\n\r\n", 1)[1])["name"]
        return self._keep(bucket, key, second.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n"))

    def put_rest(self, bucket: str, *, query: dict[str, str], body: bytes, **_: Any) -> Any:
        return self._keep(bucket, self._resumable.pop(query["upload_id"]), body)

    def _keep(self, bucket: str, key: str, content: bytes) -> dict[str, Any]:
        with self._lock:
            self.objects[f"{bucket}/{key}"] = content
            self.uploads.append(key)
        return _object(bucket, key, content)


def _object(bucket: str, key: str, content: bytes) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": key,
        "size": str(len(content)),
        "generation": "1",
    }
