"""Cloud Storage as readers see it (JSON API: metadata, lists, media with ranges), from a folder of buckets.

A process of its own, `python -m tests.doubles.google.objects FOLDER`: Arrow's client holds Python's
lock while it waits. It prints its port. Without a bearer token it answers 401, except for the bucket
`public`; of a bucket `status-503` it answers that.
"""

from __future__ import annotations

import datetime
import json
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


def main(folder: Path) -> None:
    class Objects(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = _answer(folder, self.path, dict(self.headers.items()))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any, **_: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    print(server.server_port, flush=True)
    server.serve_forever()


def _answer(folder: Path, target: str, headers: dict[str, str]) -> Answer:
    path, _, text = target.partition("?")
    query = dict(urllib.parse.parse_qsl(text))
    _, _, rest = path.partition("/b/")
    bucket, _, rest = rest.partition("/")
    given = {name.lower(): value for name, value in headers.items()}
    if bucket.startswith("status-"):
        return _problem(int(bucket.removeprefix("status-")), "as asked")
    if bucket != "public" and not given.get("authorization", "").startswith("Bearer "):
        return _problem(401, "Anonymous caller does not have storage.objects.get access.")
    key = urllib.parse.unquote(rest.removeprefix("o").removeprefix("/"))
    if not key:
        prefix = query.get("prefix", "")
        names = (
            str(one.relative_to(folder / bucket)) for one in (folder / bucket).rglob("*") if one.is_file()
        )
        items = [_metadata(folder, bucket, name) for name in sorted(names) if name.startswith(prefix)]
        return 200, {}, json.dumps({"kind": "storage#objects", "items": items}).encode()
    found = folder / bucket / key
    if not found.is_file():
        return _problem(404, f"No such object: {bucket}/{key}")
    if query.get("alt") != "media":
        return 200, {}, json.dumps(_metadata(folder, bucket, key)).encode()
    return _media(found.read_bytes(), given.get("range", ""))


def _media(content: bytes, wanted: str) -> Answer:
    headers = {"x-goog-generation": "1"}
    if not wanted:
        return 200, headers, content
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last or len(content)), len(content) - 1)
    if start >= len(content):
        return _problem(416, "The requested range cannot be satisfied.")
    headers["content-range"] = f"bytes {start}-{end}/{len(content)}"
    return 206, headers, content[start : end + 1]


def _metadata(folder: Path, bucket: str, key: str) -> dict[str, Any]:
    stat = (folder / bucket / key).stat()
    written = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.UTC).isoformat().replace("+00:00", "Z")
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": key,
        "size": str(stat.st_size),
        "generation": "1",
        "timeCreated": written,
        "updated": written,
    }


def _problem(status: int, message: str) -> Answer:
    return status, {}, json.dumps({"error": {"code": status, "message": message}}).encode()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
