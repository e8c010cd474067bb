"""The maps' values, the turns of writers, slots, keys and the fences: no server needed."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.endpoint import Route, Slot
from serving.errors import Fenced, LeaseExpired, NotApplied, Refused, SetupError
from serving.fence import check_change, check_deploy, check_retire, effective
from serving.gateway.binary import haproxy_binary
from serving.gateway.keys import Keys
from serving.gateway.maps import (
    Grant,
    HeldUp,
    Turn,
    format_grant,
    format_route,
    map_turn,
    parse_grant,
    parse_route,
    read_map,
    write_map,
)
from serving.gateway.render import refresh_gateway
from serving.slots import SlotFiles
from tests.serving.gateway.lab import lab_policy, lab_settings

WORDS = st.text(st.sampled_from("abz019._+-"), max_size=20)
ROUTES = st.builds(
    Route,
    endpoint=st.just("flights"),
    generation=st.integers(0, 10**9),
    default=st.sampled_from(Slot),
    default_version=WORDS,
    other_version=WORDS,
    salt=WORDS,
    share_bp=st.integers(0, 10_000),
    until=st.floats(0, 4e9),
)
ROUTE = Route("flights", 5, Slot.BLUE, "1", other_version="2", salt="s")


@given(ROUTES)
def test_routes_and_grants_survive_their_text(route: Route) -> None:
    assert parse_route("flights", format_route(route)) == dataclasses.replace(route, share_bp=0, until=0.0)
    until = int(route.until) if route.share_bp else 0
    assert parse_grant(format_grant(route, 123.9)) == Grant(route.share_bp, until, 123)


def test_a_grant_from_the_future_has_ended() -> None:
    """Its clock was set back: it would last as much longer."""
    grant = Grant(2500, 1_030, 1_000)
    assert [grant.ends(now) for now in (1_000, 1_029, 1_031, 999)] == [1_030] * 4
    assert grant.ends(998.5) == 998.5
    assert grant.ends(-2_600) == -2_600


def test_a_grant_without_its_time_is_read_and_a_foreign_one_is_not() -> None:
    assert parse_grant("2500:1030") == Grant(2500, 1_030)
    for value in ("", "2500", "2500:x", "1:2:3:4"):
        with pytest.raises(NotApplied):
            parse_grant(value)


@pytest.mark.parametrize("field", ["salt", "default_version", "other_version"])
@pytest.mark.parametrize("text", ["a:b", "a b", "a\nb", "é", "x" * 65, "a#b", "a;b"])
def test_what_would_break_a_map_is_refused(field: str, text: str) -> None:
    with pytest.raises(Refused, match=field.replace("_", " ")):
        format_route(dataclasses.replace(ROUTE, **{field: text}))


@pytest.mark.parametrize(
    "value", ["", "blue", "blue:blue:1:s:1:2", "red:green:1:s:1:2", "blue:green:x:s:1:2"]
)
def test_a_foreign_route_is_not_taken_for_ours(value: str) -> None:
    with pytest.raises(NotApplied):
        parse_route("flights", value)


def test_map_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "maps" / "route.map"
    assert read_map(path) == {}
    write_map(path, {"b": "2", "a": "1"})
    assert path.read_text() == "a 1\nb 2\n"
    assert read_map(path) == {"a": "1", "b": "2"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_was_held_up_gives_up() -> None:
    now = [0.0]
    turn = Turn(clock=lambda: now[0])
    turn.check()
    now[0] = 0.6
    with pytest.raises(HeldUp):
        turn.check()


def test_a_stopped_holder_does_not_block_a_rollback(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from serving.gateway.maps import map_turn\n"
        "with map_turn(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            holder.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            with map_turn(tmp_path) as turn:
                turn.check()
                waited_s = time.monotonic() - begun
        finally:
            holder.kill()
    assert 0.9 < waited_s < 30, "it waited in vain, but not for the holder's end"


def test_writers_take_turns(tmp_path: Path) -> None:
    with map_turn(tmp_path):
        descriptor = os.open(tmp_path / "maps.lock", os.O_RDWR)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


class TestFences:
    def test_the_first_route_is_free(self) -> None:
        check_change(None, ROUTE, now=100)

    def test_generations_only_rise(self) -> None:
        with pytest.raises(Fenced, match="generation 5 rules"):
            check_change(ROUTE, dataclasses.replace(ROUTE, generation=4), now=100)
        check_change(ROUTE, dataclasses.replace(ROUTE, generation=6, default=Slot.GREEN), now=100)

    @given(ROUTES, ROUTES, st.floats(0, 4e9))
    def test_a_lower_generation_never_passes(self, current: Route, asked: Route, now: float) -> None:
        if asked.generation < current.generation:
            with pytest.raises((Fenced, Refused, LeaseExpired)):
                check_change(current, asked, now)

    def test_a_lease_is_renewed_only_while_it_runs(self) -> None:
        held = dataclasses.replace(ROUTE, share_bp=500, until=130.0)
        asked = dataclasses.replace(ROUTE, share_bp=2500, until=160.0)
        check_change(held, asked, now=129.9)
        with pytest.raises(LeaseExpired, match="ran out"):
            check_change(held, asked, now=130.0)
        check_change(held, ROUTE, now=140)
        check_change(ROUTE, asked, now=140)

    def test_the_effective_share_ends_with_the_lease(self) -> None:
        held = dataclasses.replace(ROUTE, share_bp=500, until=130.0)
        assert effective(held, 129.0) == held
        assert effective(held, 130.0) == ROUTE

    def test_slots_with_traffic_are_left_alone(self) -> None:
        held = dataclasses.replace(ROUTE, share_bp=500, until=130.0)
        for check in (
            lambda: check_deploy(ROUTE, Slot.BLUE, "3", "1", 100),
            lambda: check_deploy(held, Slot.GREEN, "3", "2", 100),
            lambda: check_retire(ROUTE, Slot.BLUE, 100),
            lambda: check_retire(held, Slot.GREEN, 100),
        ):
            with pytest.raises(Refused):
                check()
        check_deploy(held, Slot.GREEN, "3", "2", 131)
        check_retire(held, Slot.GREEN, 131)
        check_deploy(ROUTE, Slot.BLUE, "1", "1", 100)
        check_retire(None, Slot.BLUE, 100)


class TestSlots:
    def test_a_version_keeps_its_ports_and_another_gets_new_ones(self, tmp_path: Path) -> None:
        files = SlotFiles(lab_settings(tmp_path))
        one = files.reserve("flights", Slot.BLUE, "1", "models:/m/1", 2)
        assert (
            files.reserve("flights", Slot.BLUE, "1", "models:/m/1", 2)
            == one
            == files.read("flights", Slot.BLUE)
        )
        two = files.reserve("flights", Slot.GREEN, "2", "models:/m/2", 1)
        ports = [replica.port for record in (one, two) for replica in record.replicas]
        assert len(set(ports)) == 3
        more = files.reserve("flights", Slot.BLUE, "1", "models:/m/1", 3)
        assert more.replicas[:2] == one.replicas
        fewer = files.reserve("flights", Slot.BLUE, "1", "models:/m/1", 1)
        assert fewer.replicas == one.replicas[:1]
        assert {record.slot for record in files.every()} == set(Slot)
        files.delete("flights", Slot.BLUE)
        assert files.read("flights", Slot.BLUE) is None

    def test_too_few_ports_are_said(self, tmp_path: Path) -> None:
        files = SlotFiles(lab_settings(tmp_path, replica_port_low=29_990, replica_port_high=29_991))
        with pytest.raises(SetupError, match="INTERLOCK_REPLICA_PORT"):
            files.reserve("flights", Slot.BLUE, "1", "models:/m/1", 3)

    def test_a_broken_file_is_said(self, tmp_path: Path) -> None:
        files = SlotFiles(lab_settings(tmp_path))
        files.reserve("flights", Slot.BLUE, "1", "models:/m/1", 1)
        (tmp_path / "state" / "slots" / "flights" / "blue.json").write_text("{")
        with pytest.raises(SetupError, match="deploy again"):
            files.read("flights", Slot.BLUE)


class TestSetup:
    def test_keys_can_be_made_before_the_gateway_runs(self, tmp_path: Path) -> None:
        settings = lab_settings(tmp_path)
        keys = Keys(settings, clock=lambda: 5.0)
        keys.create("acme")
        key = keys.create("acme")
        assert key.startswith("ilk_")
        assert [each.created for each in keys.every()] == [5.0, 5.0]
        first, second = keys.every()
        assert keys.revoke("acme", first.id) == [first]
        assert read_map(settings.gateway_dir / "maps" / "keys.map") == {second.sha256: "acme"}
        for tenant in ("", "a:b", "a b", "x" * 65, ".hidden"):
            with pytest.raises(Refused):
                keys.create(tenant)

    def test_a_configuration_without_endpoints_is_valid(self, tmp_path: Path) -> None:
        settings = lab_settings(tmp_path)
        assert refresh_gateway(settings)
        assert not refresh_gateway(settings), "nothing changed"
        config = settings.gateway_dir / "haproxy.cfg"
        assert config.stat().st_mode & 0o777 == 0o600

    def test_a_folder_with_strange_characters_works(self, tmp_path: Path) -> None:
        folder = tmp_path / "a b'c\"d#e$f"
        assert refresh_gateway(lab_settings(folder), [lab_policy("flights")])

    def test_tls_needs_its_certificate(self, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match=r"gateway\.pem"):
            refresh_gateway(lab_settings(tmp_path, gateway_tls_port=1))

    def test_the_binary_that_was_asked_for_is_used_or_missed(self, tmp_path: Path) -> None:
        with pytest.raises(SetupError, match="INTERLOCK_HAPROXY"):
            haproxy_binary(lab_settings(tmp_path, haproxy=tmp_path / "nothing"))
        own = tmp_path / "haproxy"
        own.write_text("#!/bin/sh\n")
        own.chmod(0o755)
        assert haproxy_binary(lab_settings(tmp_path, haproxy=own)) == own
        assert haproxy_binary(lab_settings(tmp_path)).exists()
