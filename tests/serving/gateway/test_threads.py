"""The gateway's threads: each must write the access log by a descriptor of its own.

Two that share one drop lines once in some ten thousand requests on a busy machine, which no short load
shows; that they share none is seen in the configuration itself.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.gateway.places import LOG_DESCRIPTORS, config_path
from serving.gateway.process import gateway_program
from serving.gateway.render import refresh_gateway
from tests.serving.gateway.lab import Lab, eventually, lab_settings
from tests.serving.gateway.load import Load


@pytest.mark.parametrize("threads", [1, 3, len(LOG_DESCRIPTORS)])
def test_no_two_threads_write_to_one_descriptor(tmp_path: Path, threads: int) -> None:
    settings = lab_settings(tmp_path, gateway_threads=threads)
    refresh_gateway(settings)
    text = config_path(settings).read_text()
    assert re.findall(r"nbthread (\d+)", text) == [str(threads)]
    sections = [part for part in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if "\n  log fd@" in part]
    writers = [(re.findall(r" thread (\S+)", part), re.findall(r"log fd@(\d+)", part)) for part in sections]
    assert [bound for bound, _ in writers] == [[str(number + 1)] for number in range(threads)]
    descriptors = [descriptor for _, (descriptor,) in writers]
    assert len(set(descriptors)) == threads
    assert "log stdout" not in text
    started = gateway_program(settings).command[-1]
    assert all(descriptor == "1" or f" {descriptor}>&1" in started for descriptor in descriptors)


@pytest.mark.slow
def test_every_thread_answers_and_every_answer_is_in_the_log(tmp_path: Path) -> None:
    lab = Lab(lab_settings(tmp_path, gateway_threads=3))
    try:
        lab.up()
        lab.serve("flights", candidate="2").apply(lab.route(candidate="2", share_bp=5_000))
        with Load(lab, clients=24, pause_s=0).running() as load:
            for _ in range(3):
                load.until_asked_since(load.samples[-1].done, count=500)
                lab.runtime.reload()
        assert load.failed() == []
        asked = sorted(sample.request_id for sample in load.samples)
        eventually(lambda: len(lab.log_lines()) >= len(asked))  # a line is written after its answer
        assert sorted(line["id"] for line in lab.log_lines()) == asked
    finally:
        lab.down()
