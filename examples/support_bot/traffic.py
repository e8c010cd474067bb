"""Live traffic of the support desk: the official `openai` client, streaming and not.

    python -m examples.support_bot.traffic --url http://.../support/v1 --key-file KEY --out DIR

Open loop, as the flights' travellers (`examples.flights.traffic`), whose record it keeps: one line a request
in `requests.jsonl`, rolling counters in `traffic.json`. Every second customer reads the answer as it is said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.flights.traffic import IN_FLIGHT_MAX, Counters, Plan, Traffic
from examples.support_bot.words import TOPICS, fact, question

if TYPE_CHECKING:
    import openai

MODEL = "support"
MAX_TOKENS = 128
_TIMEOUT_S = 60.0


class SupportTraffic(Traffic):
    """Customers who ask one question each."""

    async def run(self) -> Counters:
        """Send until stopped; returns when everything in flight is answered."""
        import openai

        self._plan.out.mkdir(parents=True, exist_ok=True)
        async with openai.AsyncOpenAI(
            base_url=self._plan.url, api_key=self._plan.api_key, max_retries=0, timeout=_TIMEOUT_S
        ) as client:
            await self.send(client)
        return self.counters

    async def _arrivals(self, session: openai.AsyncOpenAI) -> None:
        chance = random.Random(self._plan.seed)
        due = self._clock()
        while not self._stop.is_set():
            due += chance.expovariate(self._plan.rate)
            await asyncio.sleep(max(0.0, due - self._clock()))
            topic = chance.choice(list(TOPICS))
            user = f"customer-{chance.randrange(self._plan.users):05d}"
            asked = (user, topic, question(topic, chance), chance.random() < 0.5)
            task = asyncio.create_task(self._customer(session, asked, due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _customer(
        self, client: openai.AsyncOpenAI, asked: tuple[str, str, str, bool], due: float
    ) -> None:
        import openai

        user, topic, text, is_stream = asked
        record: dict[str, Any] = {
            "time": due,
            "user": user,
            "status": 0,
            "version": "",
            "id": "",
            "error": "",
            "stream": is_stream,
            "right": False,
        }
        self.counters.sent += 1
        try:
            if len(self._tasks) > IN_FLIGHT_MAX:
                raise TimeoutError("TooManyInFlight")
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL,
                messages=[{"role": "user", "content": text}],
                max_tokens=MAX_TOKENS,
                temperature=0,
                stream=is_stream,
                extra_headers={"x-user-id": user},
            )
            headers, answer = raw.headers, raw.parse()
            record |= {
                "version": headers.get("x-interlock-version", ""),
                "id": headers.get("x-request-id", ""),
            }
            record["right"] = fact(topic) in await _text(answer)
            record["status"] = 200
        except openai.APIStatusError as error:
            found = error.response.headers
            record |= {"status": error.status_code, "version": found.get("x-interlock-version", "")}
            record |= {"id": found.get("x-request-id", ""), "error": str(error.code or type(error).__name__)}
        except (openai.APIError, TimeoutError, OSError) as error:
            record["error"] = type(error).__name__
        record["ms"] = round((self._clock() - due) * 1000, 3)
        self.counters.add(record)
        self._lines.append(json.dumps(record))


async def _text(answer: Any) -> str:
    """A whole answer's text, or a stream's, read to its end."""
    import openai

    if not isinstance(answer, openai.AsyncStream):
        return answer.choices[0].message.content or ""
    parts = [chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices]
    return "".join(parts)


def main() -> None:
    """Read the command line and send until told to stop."""
    parser = argparse.ArgumentParser(description="Customers of the support desk")
    parser.add_argument("--url", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--key-file", required=True, type=Path, help="file with the API key")
    parser.add_argument("--rate", type=float, default=8.0, help="questions a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--with-parent", action="store_true", help="stop when the starting process ends")
    given = parser.parse_args()
    plan = Plan(
        url=given.url,
        rows=given.out,
        out=given.out,
        api_key=given.key_file.read_text().strip(),
        rate=given.rate,
        seed=given.seed,
        with_parent=given.with_parent,
    )
    asyncio.run(_run(SupportTraffic(plan, clock=time.time)))


async def _run(traffic: SupportTraffic) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, traffic.stop)
    await traffic.run()


if __name__ == "__main__":
    main()
