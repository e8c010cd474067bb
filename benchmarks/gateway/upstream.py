"""The one upstream behind every subject: answers at once, costs little, never the bottleneck.

`python -m benchmarks.gateway.upstream PORT VERSION [SERVICE_MS]`
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

_LENGTH = b"content-length:"


class _Answering(asyncio.Protocol):
    def __init__(self, version: bytes, service_s: float) -> None:
        body = b'{"predictions":[0.5],"version":"%s"}' % version
        self._answer = (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        self._service_s = service_s
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            at = head.find(_LENGTH)
            length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            if self._service_s:
                asyncio.get_running_loop().call_later(self._service_s, self._reply)
            else:
                self._reply()

    def _reply(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._answer)


async def _serve(port: int, version: bytes, service_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(version, service_s), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    service_ms = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2].encode(), service_ms / 1000))
