"""What people write when they write the gateway in Python: aiohttp in front, aiohttp behind.

`python -m benchmarks.gateway.proxy PORT UPSTREAM_PORT`
"""

from __future__ import annotations

import sys

import aiohttp
from aiohttp import web


def application(upstream_port: int) -> web.Application:
    """Forwards every POST, with connection reuse and nothing else."""
    session: aiohttp.ClientSession

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        url = f"http://127.0.0.1:{upstream_port}{request.path}"
        headers = {"content-type": request.headers.get("content-type", "")}
        async with session.post(url, data=body, headers=headers) as answer:
            content = await answer.read()
            return web.Response(body=content, status=answer.status, content_type=answer.content_type)

    async def open_session(_: web.Application) -> None:
        nonlocal session
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    app = web.Application()
    app.router.add_post("/{tail:.*}", forward)
    app.on_startup.append(open_session)
    return app


if __name__ == "__main__":
    web.run_app(
        application(int(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None
    )
