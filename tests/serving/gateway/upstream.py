"""A replica's stand-in: started like one (with the path of its spec), with a real spool.

The body is a command in JSON: {"sleep_s": 1}, {"status": 500}, {"die": true} (exit before any
answer), {"pad": 1000} (bytes of answer). The answer says who answered and what it was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from serving.capture.recorder import CaptureConfig, Recorded, Recorder


class Upstream(asyncio.Protocol):
    def __init__(self, spec: dict, recorder: Recorder) -> None:
        self.spec = spec
        self.recorder = recorder
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            line, *lines = head.decode("latin-1").split("\r\n")
            headers = {}
            for each in lines:
                name, _, value = each.partition(":")
                headers[name.lower()] = value.strip()
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            body, self.buffer = rest[:length], rest[length:]
            asyncio.get_running_loop().create_task(self.answer(line, headers, body))

    async def answer(self, line: str, headers: dict, body: bytes) -> None:
        method, path, _ = line.split(" ")
        try:
            command = json.loads(body or b"{}")
        except ValueError:
            command = {}
        command = command if isinstance(command, dict) else {}
        if command.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if command.get("sleep_s"):
            await asyncio.sleep(command["sleep_s"])
        answer = {
            "version": self.spec["version"],
            "slot": self.spec["slot"],
            "pid": os.getpid(),
            "method": method,
            "path": path,
            "headers": headers,
            "bytes": len(body),
            "pad": "x" * command.get("pad", 0),
        }
        status = command.get("status", 200)
        content = json.dumps(answer).encode()
        head = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
            f"x-interlock-version: forged\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        if self.transport and not self.transport.is_closing():
            self.transport.write(head.encode() + content)
        if method == "POST":
            self.record(headers, path, body, status, content)

    def record(self, headers: dict, path: str, body: bytes, status: int, content: bytes) -> None:
        self.recorder.offer(
            Recorded(
                time=time.time(),
                request_id=headers.get("x-request-id", "").encode(),
                version=headers.get("x-interlock-version", self.spec["version"]).encode(),
                tenant=headers.get("x-interlock-tenant", "").encode(),
                user=headers.get("x-interlock-user", "").encode(),
                path=path,
                content_type=headers.get("content-type", "").encode(),
                request=body,
                status=status,
                response=content,
                service_ms=1.0,
                truncated=False,
                replay="x-interlock-replay" in headers,
            )
        )


async def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["version"] == "broken":
        sys.exit("this version does not start: its model is missing")
    recorder = Recorder(
        CaptureConfig(
            endpoint=spec["endpoint"],
            slot=spec["slot"],
            version=spec["version"],
            replica=spec["name"],
            spool_dir=Path(spec["spool"]["dir"]) if spec["spool"]["enabled"] else None,
        )
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(spec, recorder), spec["host"], spec["port"])
    loop.add_signal_handler(signal.SIGTERM, server.close)
    with contextlib.suppress(asyncio.CancelledError):
        await server.serve_forever()
    recorder.close()


if __name__ == "__main__":
    asyncio.run(main())
