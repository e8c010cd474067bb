"""The pool: predictions run in threads, and what waits while they run may be joined.

A plain executor would do without joining. Here a free worker takes the oldest question and, where
joining is on, everything behind it with the same schema, up to `batch_max_rows`: an idle replica
adds no delay, and a busy one shares the fixed cost of a call. If a joined call fails, each
question is asked alone, so that one bad request never fails its neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from serving.replica.errors import ModelFault, RequestError
from serving.replica.model import Question


class Model(Protocol):
    """What the pool needs of a model."""

    def ask(self, question: Question) -> Any:
        """Answer one question or raise `RequestError`."""
        ...

    def ask_joined(self, questions: list[Question]) -> list[Any]:
        """Answer several in one call or raise `RequestError`."""
        ...


@dataclass(slots=True)
class _Job:
    question: Question
    work: Callable[[Any], Any]
    future: asyncio.Future[Any]


class PredictionPool:
    """`concurrency` threads that ask one model. Create and use it on one event loop."""

    def __init__(self, model: Model, *, concurrency: int, batch_max_rows: int | None = None) -> None:
        self._model = model
        self._batch_max_rows = batch_max_rows
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Job] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self.joined_calls = 0
        self.calls = 0
        self.running = 0
        self._progressed = time.monotonic()
        self._threads = [
            threading.Thread(target=self._work, name=f"predict-{i}", daemon=True) for i in range(concurrency)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Questions that no worker has taken yet."""
        return len(self._queue)

    def stuck_for_s(self) -> float:
        """How long every worker has been busy without one of them finishing; 0 where one is free."""
        return time.monotonic() - self._progressed if self.running == len(self._threads) else 0.0

    def submit(self, question: Question, finish: Callable[[Any], Any]) -> asyncio.Future[Any]:
        """Ask; the future gets `finish(raw answer)`, computed in the worker.

        Cancelling the future takes the question back where no worker has begun with it.
        """
        job = _Job(question, finish, self._loop.create_future())
        with self._ready:
            self._queue.append(job)
            self._ready.notify()
        return job.future

    def close(self) -> None:
        """Let the threads end after what they are doing. Does not wait: a stuck model must not hold us."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._queue and not self._closed:
                    self._ready.wait()
                if self._closed:
                    return
                jobs = self._take()
                self.running += 1
                self._progressed = time.monotonic()
            try:
                outcomes = self._answer(jobs) if jobs else []
            finally:
                with self._ready:
                    self.running -= 1
                    self._progressed = time.monotonic()
            if outcomes:
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                    self._loop.call_soon_threadsafe(_deliver, outcomes)

    def _take(self) -> list[_Job]:
        """The oldest question that is still wanted, and those that can be asked with it."""
        jobs: list[_Job] = []
        rows, rows_max = 0, self._batch_max_rows or 0
        passed_over: list[_Job] = []
        while self._queue:
            job = self._queue.popleft()
            if job.future.cancelled():
                continue
            if not jobs:
                jobs.append(job)
                rows = job.question.rows
                if not rows_max or job.question.join_key is None:
                    break
            elif job.question.join_key == jobs[0].question.join_key and rows + job.question.rows <= rows_max:
                jobs.append(job)
                rows += job.question.rows
            else:
                passed_over.append(job)
        self._queue.extendleft(reversed(passed_over))
        if passed_over:
            self._ready.notify()
        return jobs

    def _answer(self, jobs: list[_Job]) -> list[tuple[_Job, Any, BaseException | None]]:
        self.calls += 1
        if len(jobs) > 1:
            try:
                answers = self._model.ask_joined([job.question for job in jobs])
                self.joined_calls += 1
                return [self._finish(job, answer) for job, answer in zip(jobs, answers, strict=True)]
            except RequestError:
                pass  # one of them is to blame, or the model cannot be joined: ask each alone
        return [self._alone(job) for job in jobs]

    def _alone(self, job: _Job) -> tuple[_Job, Any, BaseException | None]:
        try:
            return self._finish(job, self._model.ask(job.question))
        except RequestError as error:
            return job, None, error

    def _finish(self, job: _Job, answer: Any) -> tuple[_Job, Any, BaseException | None]:
        try:
            return job, job.work(answer), None
        except RequestError as error:
            return job, None, error
        except Exception as error:  # noqa: BLE001 - an answer of any odd type is the model's fault
            fault = ModelFault("The model's answer cannot be written as JSON.")
            fault.__cause__ = error
            return job, None, fault


def _deliver(outcomes: list[tuple[_Job, Any, BaseException | None]]) -> None:
    for job, answer, error in outcomes:
        if job.future.done():
            continue  # timed out meanwhile
        if error is None:
            job.future.set_result(answer)
        else:
            job.future.set_exception(error)
