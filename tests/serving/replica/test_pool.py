"""The pool: joined where it helps, never at a neighbour's cost, never late for joining."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from serving.replica.errors import ModelFault, RequestError
from serving.replica.model import Question
from serving.replica.pool import PredictionPool


class Doubler:
    """Doubles `data`; a word in place of a number is a fault. `gate` holds every call until it is set."""

    def __init__(self, *, gate: threading.Event | None = None, joins: bool = True) -> None:
        self.calls: list[list[Any]] = []
        self.gate = gate
        self.joins = joins
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def ask(self, question: Question) -> Any:
        return self._answer([question])[0]

    def ask_joined(self, questions: Sequence[Question]) -> list[Any]:
        if not self.joins:
            raise ModelFault("answers do not fit")
        return self._answer(questions)

    def _answer(self, questions: Sequence[Question]) -> list[Any]:
        with self._lock:
            self.calls.append([question.data for question in questions])
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        if self.gate is not None:
            assert self.gate.wait(10)
        with self._lock:
            self._at_once -= 1
        if any(isinstance(question.data, str) for question in questions):
            raise ModelFault("that was a word")
        return [question.data * 2 for question in questions]


def question(data: Any, *, rows: int = 1, key: Any = "same") -> Question:
    return Question(rows, data=data, join_key=key)


def ask_behind_a_running_call(model: Doubler, questions: list[Question], **pool_options: Any) -> list[Any]:
    """Put one call in front, queue the questions behind it, then let all go: their outcomes."""
    model.gate = threading.Event()

    async def run() -> list[Any]:
        pool = PredictionPool(model, concurrency=1, **pool_options)
        first = pool.submit(question(0), finish)
        while not model.calls:
            await asyncio.sleep(0.001)
        waiting = [pool.submit(one, finish) for one in questions]
        model.gate.set()
        outcomes = await asyncio.wait_for(asyncio.gather(first, *waiting, return_exceptions=True), 10)
        pool.close()
        return outcomes[1:]

    return asyncio.run(run())


def finish(raw: Any) -> Any:
    return raw


def test_what_waits_is_joined() -> None:
    model = Doubler()
    assert ask_behind_a_running_call(model, [question(n) for n in range(5)], batch_max_rows=64) == [
        0,
        2,
        4,
        6,
        8,
    ]
    assert model.calls == [[0], [0, 1, 2, 3, 4]]


def test_not_joined_unless_asked_for() -> None:
    model = Doubler()
    assert ask_behind_a_running_call(model, [question(n) for n in range(3)]) == [0, 2, 4]
    assert model.calls == [[0], [0], [1], [2]]


def test_rows_bound_a_joined_call() -> None:
    model = Doubler()
    ask_behind_a_running_call(model, [question(n, rows=3) for n in range(4)], batch_max_rows=6)
    assert model.calls == [[0], [0, 1], [2, 3]]


def test_a_request_larger_than_the_bound_goes_alone() -> None:
    model = Doubler()
    assert ask_behind_a_running_call(model, [question(5, rows=100)], batch_max_rows=6) == [10]


def test_only_the_same_schema_is_joined_and_order_is_kept_within_it() -> None:
    model = Doubler()
    asked = [
        question(1, key="a"),
        question(2, key="b"),
        question(3, key="a"),
        question(4, key=None),
        question(5, key="b"),
    ]
    assert ask_behind_a_running_call(model, asked, batch_max_rows=64) == [2, 4, 6, 8, 10]
    assert model.calls == [[0], [1, 3], [2, 5], [4]]


def test_one_bad_request_never_fails_its_neighbours() -> None:
    model = Doubler()
    outcomes = ask_behind_a_running_call(
        model, [question(1), question("bad"), question(3)], batch_max_rows=64
    )
    assert outcomes[0] == 2
    assert isinstance(outcomes[1], ModelFault)
    assert outcomes[2] == 6


def test_a_model_that_cannot_be_joined_is_asked_one_by_one() -> None:
    model = Doubler(joins=False)
    assert ask_behind_a_running_call(model, [question(1), question(2)], batch_max_rows=64) == [2, 4]


def test_predictions_run_at_the_same_time_up_to_the_limit() -> None:
    model = Doubler(gate=threading.Event())

    async def run() -> None:
        pool = PredictionPool(model, concurrency=3)
        futures = [pool.submit(question(n), finish) for n in range(7)]
        while len(model.calls) < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert len(model.calls) == 3
        assert pool.waiting == 4
        assert model.gate is not None
        model.gate.set()
        assert await asyncio.gather(*futures) == [2 * n for n in range(7)]
        pool.close()

    asyncio.run(run())
    assert model.most_at_once == 3


def test_a_cancelled_question_is_not_asked() -> None:
    model = Doubler(gate=threading.Event())

    async def run() -> None:
        pool = PredictionPool(model, concurrency=1, batch_max_rows=64)
        first = pool.submit(question(0), finish)
        while not model.calls:
            await asyncio.sleep(0.001)
        gone, wanted = pool.submit(question(1), finish), pool.submit(question(2), finish)
        gone.cancel()
        assert model.gate is not None
        model.gate.set()
        assert await asyncio.gather(first, wanted) == [0, 4]
        pool.close()

    asyncio.run(run())
    assert model.calls == [[0], [2]]


@pytest.mark.parametrize("failing", [ValueError("not JSON"), ModelFault("not JSON")])
def test_an_answer_that_cannot_be_written_fails_that_request_only(failing: Exception) -> None:
    def picky(raw: Any) -> Any:
        if raw == 2:
            raise failing
        return raw

    async def run() -> list[Any]:
        pool = PredictionPool(Doubler(), concurrency=1)
        futures = [pool.submit(question(n), picky) for n in range(3)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        pool.close()
        return outcomes

    outcomes = asyncio.run(run())
    assert outcomes[0] == 0
    assert isinstance(outcomes[1], RequestError)
    assert outcomes[1].status == 500
    assert outcomes[2] == 4


def test_tells_when_it_is_stuck() -> None:
    model = Doubler(gate=threading.Event())

    async def run(check: Callable[[float], None]) -> None:
        pool = PredictionPool(model, concurrency=1)
        assert pool.stuck_for_s() == 0
        future = pool.submit(question(1), finish)
        while not model.calls:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        check(pool.stuck_for_s())
        assert model.gate is not None
        model.gate.set()
        await future
        pool.close()

    def is_stuck(seconds: float) -> None:
        assert seconds >= 0.02

    asyncio.run(run(is_stuck))
