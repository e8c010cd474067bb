"""A loopback file server over HTTP or TLS, without ranges; asked for a status, it gives that."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WRITTEN = "Wed, 25 Nov 2026 00:00:00 GMT"
WRITTEN_S = 1_795_564_800.0


@contextmanager
def serve_files(folder: Path, *, certificate: Path | None = None) -> Generator[tuple[str, list[str]]]:
    """The folder's files: the server's address, and the targets that it was asked for.

    `/status/503` answers that, `/moved/NAME` redirects, `/encoded/NAME.gz` calls the packing the way's.
    """
    asked: list[str] = []

    class Files(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0].lstrip("/")
            kind, _, name = path.rpartition("/")
            headers = {"last-modified": WRITTEN}
            if kind == "status":
                return self._answer(int(name), {}, b"as asked")
            if kind == "moved":
                return self._answer(302, {"location": f"/{name}"}, b"")
            if kind == "encoded":
                headers["content-encoding"] = "gzip"
            if kind == "csv":
                headers["content-type"] = "text/csv; charset=utf-8"
            found = folder / name
            if not found.is_file():
                return self._answer(404, {}, b"not here")
            return self._answer(200, headers, found.read_bytes())

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            for header, value in headers.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any, **_: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://localhost:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
