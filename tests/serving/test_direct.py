"""Asking a replica directly: what broke off is told, and never asked again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from serving.direct import DirectClient

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


@contextmanager
def replica(connections: Sequence[Sequence[bytes]]) -> Iterator[tuple[int, list[int]]]:
    """Answers each request of each connection with these bytes, then closes it. Yields port and requests."""
    asked = [0]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answers in connections:
                plug, _ = server.accept()
                with plug:
                    for answer in answers:
                        while not plug.recv(65536).endswith(b"{}"):
                            pass
                        asked[0] += 1
                        plug.sendall(answer)

        def serve_until_closed() -> None:
            with suppress(OSError):
                serve()

        thread = threading.Thread(target=serve_until_closed, daemon=True)
        thread.start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def statuses(client: DirectClient, port: int, count: int) -> list[int]:
    asking = [
        client.post(port, "/", b"{}", content_type="application/json", timeout_s=10) for _ in range(count)
    ]
    client.close()
    return [reply.status for reply in asking]


def test_an_answer_that_breaks_off_on_a_kept_connection_is_not_asked_for_again() -> None:
    with replica([[HEAD + b"1234", HEAD + b"12"], [HEAD + b"1234"]]) as (port, asked):
        assert statuses(DirectClient("127.0.0.1"), port, 2) == [200, 0]
    assert asked == [2]


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    with replica([[HEAD + b"1234"], [HEAD + b"1234"]]) as (port, asked):
        assert statuses(DirectClient("127.0.0.1"), port, 2) == [200, 200]
    assert asked == [2]
