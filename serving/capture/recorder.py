"""The recorder: takes finished exchanges off the request path and writes them every 100 ms.

Two sinks with different rules. The *spool* holds exact bytes for minutes and feeds the shadow;
the *capture* is the durable record, sampled and redacted. The request path only appends to a
bounded queue; when that is full, records are dropped and counted, and no request ever waits.
Standard library only: this also runs inside servers that are not ours.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
import zlib
from binascii import b2a_base64
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote
from pathlib import Path
from typing import Any

from serving.capture.redact import Redaction
from serving.capture.sealing import KEY_VARIABLE, Seal
from serving.capture.segments import SegmentWriter
from serving.capture.streams import Pace, is_stream, join_stream, measure, read_usage

logger = logging.getLogger("interlock.capture")

DRAIN_S = 0.1
"""Time between two writes: the most that a kill -9 loses, with room to spare."""

SPOOL_BYTES_MAX, SPOOL_SECONDS_MAX = 4 << 20, 5.0
CAPTURE_BYTES_MAX, CAPTURE_SECONDS_MAX = 16 << 20, 60.0
MEASURES_BYTES_MAX, MEASURES_SECONDS_MAX, MEASURES_KEEP_S = 4 << 20, 60.0, 7 * 86_400.0

_SAMPLE_SCALE = 1 << 32
_DEFAULT_PATHS = ("/invocations", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")


def redaction_key(path: Path | None, environ: Mapping[str, str]) -> bytes:
    """The key of hashed columns: the environment's (a vault), else the file's; empty where there is none."""
    return environ.get("INTERLOCK_SECRET_USER_HMAC", "").encode() or (
        path.read_bytes().strip() if path else b""
    )


def spool_seal(path: Path | str | None, environ: Mapping[str, str]) -> Seal:
    """What seals the spool. Raises ValueError without a key: exact requests would be written in clear."""
    seal = Seal.from_file(Path(path) if path else None, environ)
    if seal is None:
        raise ValueError(
            f"The spool is to be encrypted, but there is no key. Next: set {KEY_VARIABLE} or give a key file."
        )
    return seal


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """What is recorded, and where. Built from a spec, or from the environment inside a foreign server.

    `captures_dir` is the endpoint's folder and `spool_dir` the slot's; None switches that sink
    off. `measures_dir` is for language models: a short line for every live request, never sampled.
    `per_token` is dollars of a token in and of a token out. Sizes in bytes.
    """

    endpoint: str
    slot: str
    version: str
    replica: str
    captures_dir: Path | None = None
    spool_dir: Path | None = None
    spool_max_age_s: float = 900.0
    spool_seal: Seal | None = None
    spool_personal: tuple[str, ...] = ()
    sample: float = 1.0
    redaction: Redaction = field(default_factory=Redaction)
    paths: frozenset[str] = frozenset(_DEFAULT_PATHS)
    body_bytes_max: int = 1 << 20
    queue_records_max: int = 20_000
    queue_bytes_max: int = 64 << 20
    measures_dir: Path | None = None
    per_token: tuple[float, float] | None = None
    ready_file: Path | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> CaptureConfig:
        """From plain values: `drop`, `hash` (lists of columns) and `hmac_key_file` make the redaction."""
        known = dict(values)
        drop, hashed = known.pop("drop", ()), known.pop("hash", ())
        personal = known.pop("personal", ())
        key_file = known.pop("hmac_key_file", None)
        key = redaction_key(Path(key_file) if key_file else None, os.environ)
        if known.pop("spool_encrypt", False):
            known["spool_seal"] = spool_seal(known.pop("spool_key_file", None), os.environ)
        known.pop("spool_key_file", None)
        for name in ("captures_dir", "spool_dir", "measures_dir", "ready_file"):
            known[name] = Path(known[name]) if known.get(name) else None
        if "paths" in known:
            known["paths"] = frozenset(known["paths"])
        if known.get("per_token") is not None:
            known["per_token"] = tuple(known["per_token"])
        known["spool_personal"] = tuple(known.get("spool_personal", ()))
        return cls(**known, redaction=Redaction.of(drop, hashed, key, personal))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> CaptureConfig:
        """From `INTERLOCK_CAPTURE`: the JSON object itself, or `@` and the path of a file with it."""
        text = environ.get("INTERLOCK_CAPTURE", "")
        if not text:
            raise ValueError(
                "CaptureMiddleware was given no config and INTERLOCK_CAPTURE is not set. "
                'Next: INTERLOCK_CAPTURE=\'{"endpoint": ..., "slot": ..., "version": ..., "replica": ...}\'.'
            )
        return cls.from_mapping(json.loads(Path(text[1:]).read_text() if text[0] == "@" else text))


@dataclass(slots=True)
class Recorded:
    """One finished exchange as the middleware saw it: nothing is decoded on the request path.

    `time` is arrival in seconds since the epoch, `service_ms` arrival to last byte. `status` 0
    means that the client went away first. `truncated` means that a body was larger than recorded.
    `replay` marks the shadow's copies, which are never live traffic. `pace` is a stream's, `usage` the
    event of it that only the capture had asked for, `tail` its last events where it is truncated.
    """

    time: float
    request_id: bytes
    version: bytes
    tenant: bytes
    user: bytes
    path: str
    content_type: bytes
    request: bytes
    status: int
    response: bytes
    service_ms: float
    truncated: bool
    replay: bool
    pace: Pace | None = None
    usage: bytes = b""
    tail: bytes = b""


@dataclass(slots=True)
class RecorderCounts:
    """What became of the records so far."""

    spooled: int = 0
    captured: int = 0
    measured: int = 0
    dropped: int = 0
    bodies_withheld: int = 0
    write_errors: int = 0


class Recorder:
    """Queues exchanges and writes them from a thread of its own, started by the first of them."""

    def __init__(self, config: CaptureConfig, *, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self.counts = RecorderCounts()
        self._clock = clock
        self._queue: deque[Recorded] = deque()
        self._queued_bytes = 0
        self._sample_below = int(config.sample * _SAMPLE_SCALE)
        self._wake = threading.Event()
        self._start_lock = threading.Lock()
        self._drain_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._spool: SegmentWriter | None = None
        self._capture: SegmentWriter | None = None
        self._measures: SegmentWriter | None = None
        self._origin = (
            f',"endpoint":{quote(config.endpoint)},"slot":{quote(config.slot)}'
            f',"replica":{quote(config.replica)}'
        )

    def offer(self, record: Recorded) -> None:
        """Queue one exchange; drops and counts it where the queue is full. Never waits."""
        size = len(record.request) + len(record.response)
        if (
            len(self._queue) >= self.config.queue_records_max
            or self._queued_bytes + size > self.config.queue_bytes_max
        ):
            self.counts.dropped += 1
            return
        if self._pid != os.getpid():
            self._start()
        self._queued_bytes += size
        self._queue.append(record)

    def close(self) -> None:
        """Write what is queued and end the segments. Safe to repeat."""
        thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return
        self._wake.set()
        thread.join(timeout=5)
        self.drain()
        for writer in (self._spool, self._capture, self._measures):
            if writer is not None:
                writer.rotate()
        self._pid = 0

    def drain(self) -> None:
        """Write everything that is queued now. Called by the thread; tests may call it themselves."""
        with self._drain_lock:
            records = [self._queue.popleft() for _ in range(len(self._queue))]
            self._queued_bytes -= sum(len(r.request) + len(r.response) for r in records)
            now = self._clock()
            lines = [self._lines(record) for record in records]
            if self._measures is not None:
                self.counts.measured += self._write(self._measures, [line for line, _, _ in lines], now)
            if self._spool is not None:
                self.counts.spooled += self._write(self._spool, [line for _, line, _ in lines], now)
            if self._capture is not None:
                self.counts.captured += self._write(self._capture, [line for _, _, line in lines], now)

    def _lines(self, record: Recorded) -> tuple[bytes, bytes, bytes]:
        """For measures, spool and capture; b"" where one gets none. What cannot be written is lost alone."""
        try:
            head = record_head(record)
            is_measured = self._measures is not None and not record.replay
            is_spooled = self._spool is not None and _is_for_the_shadow(record)
            is_captured = self._capture is not None and self._is_sampled(record)
            return (
                self._measures_line(record) if is_measured else b"",
                self._spool_line(record, head) if is_spooled else b"",
                self._capture_line(record, head) if is_captured else b"",
            )
        except Exception:
            self.counts.dropped += 1
            logger.exception("A record was lost; the recorder goes on")
            return b"", b"", b""

    def _start(self) -> None:
        """Begin in this process: also after a fork, whose child must not write its parent's files."""
        with self._start_lock:
            if self._pid == os.getpid():
                return
            self._pid = os.getpid()
            self._wake = threading.Event()
            run = f"{self.config.replica}.{int(self._clock() * 1000)}-{self._pid}"
            if self.config.spool_dir is not None:
                self._spool = SegmentWriter(
                    self.config.spool_dir,
                    run,
                    bytes_max=SPOOL_BYTES_MAX,
                    seconds_max=SPOOL_SECONDS_MAX,
                    keep_s=self.config.spool_max_age_s,
                )
            if self.config.captures_dir is not None and self.config.sample > 0:
                self._capture = SegmentWriter(
                    self.config.captures_dir / "live",
                    run,
                    bytes_max=CAPTURE_BYTES_MAX,
                    seconds_max=CAPTURE_SECONDS_MAX,
                )
            if self.config.measures_dir is not None:
                self._measures = SegmentWriter(
                    self.config.measures_dir,
                    run,
                    bytes_max=MEASURES_BYTES_MAX,
                    seconds_max=MEASURES_SECONDS_MAX,
                    keep_s=MEASURES_KEEP_S,
                )
            self._thread = threading.Thread(target=self._run, name="interlock-capture", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        wake = self._wake
        while not wake.wait(DRAIN_S):
            try:
                self.drain()
            except Exception:
                self.counts.write_errors += 1
                logger.exception("A batch of records was lost; the recorder goes on")

    def _write(self, writer: SegmentWriter, lines: list[bytes], now: float) -> int:
        lines = [line for line in lines if line]
        try:
            if lines:
                writer.write(b"".join(lines), now)
            writer.tick(now)
        except OSError as error:
            self.counts.write_errors += 1
            self.counts.dropped += len(lines)
            logger.error("%d records were not written: %s. Next: check the disk.", len(lines), error)
            return 0
        return len(lines)

    def _is_sampled(self, record: Recorded) -> bool:
        """By the request's id, so that every replica decides alike. Without an id: by its time."""
        if self._sample_below >= _SAMPLE_SCALE:
            return True
        return zlib.crc32(record.request_id or repr(record.time).encode()) < self._sample_below

    def _capture_line(self, record: Recorded, head: str) -> bytes:
        config = self.config
        inputs = outputs = None
        if not record.truncated:
            content_type = record.content_type.decode("latin-1")
            inputs = config.redaction.request(record.request, content_type)
            if inputs is not None or not config.redaction:  # an answer may repeat what it was asked
                answer = record.response
                answer = join_stream(answer) if is_stream(answer) else answer
                outputs = config.redaction.response(answer, record.status)
        if inputs is None:
            self.counts.bodies_withheld += 1
        return (
            f"{head}{self._origin}"
            f',"tenant":{_quoted_often(record.tenant)},"user":{_quoted(record.user)}'
            f',"latency_ms":{record.service_ms:.3f}'
            f',"replay":{"true" if record.replay else "false"}'
            f',"inputs":{"null" if inputs is None else quote(inputs)}'
            f',"outputs":{"null" if outputs is None else quote(outputs)}}}\n'
        ).encode()

    def _spool_line(self, record: Recorded, head: str) -> bytes:
        """Exact, or without personal data; b"" for what cannot be read and so cannot be redacted."""
        config = self.config
        if config.spool_personal:
            redaction = Redaction(personal=config.spool_personal)
            request = redaction.request(record.request, record.content_type.decode("latin-1"))
            answer = join_stream(record.response) if is_stream(record.response) else record.response
            response = redaction.response(answer, record.status) or ""
            if request is None:
                self.counts.bodies_withheld += 1
                return b""
            record = replace(record, request=request.encode(), response=response.encode())
        return spool_line(record, head, config.spool_seal)

    def _measures_line(self, record: Recorded) -> bytes:
        usage = read_usage(record.tail or record.response, record.usage)
        usage = replace(usage, broken=usage.broken and record.status == 200)
        known = measure(record.request, usage, record.pace, self.config.per_token)
        head = {"request_id": record.request_id.decode("latin-1"), "service_ms": round(record.service_ms, 3)}
        return json.dumps(head | asdict(known), separators=(",", ":")).encode() + b"\n"


def record_head(record: Recorded) -> str:
    """What both sinks write of a record; most of their cost, hence made once."""
    return (
        f'{{"time":{record.time:.6f},"request_id":{_quoted(record.request_id)}'
        f',"version":{_quoted_often(record.version)},"path":{_path(record.path)}'
        f',"content_type":{_quoted_often(record.content_type)},"status":{record.status}'
    )


def spool_line(record: Recorded, head: str, seal: Seal | None = None) -> bytes:
    """One line of the spool: exact bytes, in base64, sealed where there is a seal. `head` is the record's."""
    truncated = ',"truncated":true' if record.truncated else ""
    start = f'{head},"service_ms":{record.service_ms:.3f}{truncated},'
    if seal is not None:
        sealed = seal.close(record.request, record.response, record.request_id)
        return b"".join((start.encode(), b'"sealed":"', sealed, b'"}\n'))
    request = b2a_base64(record.request, newline=False)
    response = b2a_base64(record.response, newline=False)
    return b"".join((start.encode(), b'"request":"', request, b'","response":"', response, b'"}\n'))


def _is_for_the_shadow(record: Recorded) -> bool:
    """Live requests that came through the gateway (it sets the id) and that the model was asked."""
    return bool(record.request_id) and not record.replay and record.status not in (0, 503)


def _quoted(header: bytes) -> str:
    return quote(header.decode("latin-1"))


_quoted_often = lru_cache(maxsize=1024)(_quoted)
_path = lru_cache(maxsize=64)(quote)
