"""A locustfile: sends requests at the moments at which they are due, and writes down what became of each.

Only ever loaded by Locust in a process of its own (`tasks.load_run` starts it), because Locust
makes the standard library cooperative. INTERLOCK_LOAD_PLAN names a JSON file with `path`,
`headers`, `payloads` (texts), `rate` (per second), `seconds`, `timeout_s` and `out`: one line a
request, `due sent done status`, in seconds since the rate began; "nan" for what did not happen.

One user walks the schedule and sends each request from a greenlet of its own, so that a slow
answer delays nothing that is due after it.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import gevent  # noqa: TID253 (this file is Locust's)
from gevent.pool import Pool  # noqa: TID253
from locust import FastHttpUser, task  # noqa: TID253

_PLAN = json.loads(Path(os.environ["INTERLOCK_LOAD_PLAN"]).read_text())
_IN_FLIGHT_MAX = 4000


class OpenLoop(FastHttpUser):
    """The one user: a clock that fires requests."""

    concurrency = _IN_FLIGHT_MAX
    max_retries = 0
    max_redirects = 0
    connection_timeout = _PLAN["timeout_s"]
    network_timeout = _PLAN["timeout_s"]

    @task
    def walk(self) -> None:
        """Walk the whole schedule once, wait for what is still under way, and end Locust."""
        count = int(_PLAN["rate"] * _PLAN["seconds"])
        self.rows = [[math.nan, math.nan, 0] for _ in range(count)]
        self.began = time.perf_counter()
        pool = Pool(_IN_FLIGHT_MAX)
        for index in range(count):
            due = index / _PLAN["rate"]
            ahead = due - self._now()
            if ahead > 0:
                gevent.sleep(ahead)
            elif self._now() > _PLAN["seconds"] + 1:
                break  # hopelessly behind: what was not sent stands as such
            pool.spawn(self._send, index)
        pool.join(timeout=_PLAN["timeout_s"] + 1)
        lines = [
            f"{index / _PLAN['rate']:.6f} {sent:.6f} {done:.6f} {status}"
            for index, (sent, done, status) in enumerate(self.rows)
        ]
        Path(_PLAN["out"]).write_text("\n".join(lines) + "\n")
        self.environment.runner.quit()

    def _send(self, index: int) -> None:
        body = _PLAN["payloads"][index % len(_PLAN["payloads"])]
        sent = self._now()
        self.rows[index] = [sent, math.nan, 0]
        reply = self.client.post(_PLAN["path"], data=body.encode(), headers=_PLAN["headers"])
        self.rows[index] = [sent, self._now(), int(reply.status_code or 0)]

    def _now(self) -> float:
        return time.perf_counter() - self.began
