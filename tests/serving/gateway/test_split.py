"""Which version answers: buckets, leases, generations and fences, in the real HAProxy."""

from __future__ import annotations

import dataclasses
import pickle
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.buckets import bucket_of
from serving.endpoint import Route, Slot
from serving.errors import Fenced, LeaseExpired, NotApplied, Refused
from serving.gateway.maps import GRANT_MAP, ROUTE_MAP, format_route, read_map
from serving.gateway.plane import RoutePlane
from serving.local import LocalEndpoint
from tests.serving.gateway.lab import Lab, eventually
from tests.serving.gateway.load import Load

pytestmark = pytest.mark.slow

USERS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=40
)
SALTS = st.text(st.sampled_from("abcXYZ019._-"), min_size=1, max_size=64)


@pytest.fixture(scope="module")
def flights(lab: Lab) -> LocalEndpoint:
    return lab.serve("flights", candidate="2")


def begin(
    lab: Lab, endpoint: LocalEndpoint, *, share_bp: int = 0, lease_s: float = 60, salt: str = "salt"
) -> Route:
    route = lab.route(endpoint.name, candidate="2", share_bp=share_bp, lease_s=lease_s)
    route = dataclasses.replace(route, salt=salt)
    endpoint.apply(route)
    return route


def with_share(route: Route, share_bp: int, lease_s: float = 60) -> Route:
    return dataclasses.replace(route, share_bp=share_bp, until=time.time() + lease_s if share_bp else 0.0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    salt=SALTS,
    users=st.lists(USERS, min_size=1, max_size=8, unique=True),
    shares=st.lists(st.integers(1, 10_000), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_users_keep_their_version_while_the_share_only_grows(
    lab: Lab, flights: LocalEndpoint, salt: str, users: list[str], shares: list[int]
) -> None:
    """And every bucket is the one that Python's xxhash says."""
    route = begin(lab, flights, salt=salt)
    moved: set[str] = set()
    for share_bp in shares:
        flights.apply(with_share(route, share_bp))
        for user in users:
            answer = lab.ask(headers={"x-user-id": user.encode()})
            expected = bucket_of(salt, "acme", user) < share_bp
            assert answer.version == ("2" if expected else "1")
            assert not (user in moved and answer.version == "1"), "a user went back to the old version"
            if answer.version == "2":
                moved.add(user)


def test_the_log_holds_the_bucket_and_the_share_that_were_applied(lab: Lab, flights: LocalEndpoint) -> None:
    route = begin(lab, flights, share_bp=2500, salt="s1")
    for user in ("ann", "bob", "cid", "dan"):
        answer = lab.ask(headers={"x-user-id": user})
        line = lab.log_of(answer.headers["x-request-id"])
        assert int(line["bucket"]) == bucket_of("s1", "acme", user)
        assert (line["share"], line["generation"]) == ("2500", str(route.generation))
        assert line["version"] == answer.version
        assert (line["slot"], line["served"]) == ("green" if answer.version == "2" else "blue", "-")


def test_without_a_user_the_bucket_is_a_new_one_for_each_request(lab: Lab, flights: LocalEndpoint) -> None:
    begin(lab, flights, share_bp=5000, salt="s2")
    answers = [lab.ask(headers={"x-request-id": "always-the-same"}) for _ in range(60)]
    assert {answer.version for answer in answers} == {"1", "2"}
    for answer in answers[:10]:
        name = answer.headers["x-request-id"]
        assert int(lab.log_of(name)["bucket"]) == bucket_of("s2", "acme", name)


def test_assigning_by_request_ignores_the_user(lab: Lab) -> None:
    endpoint = lab.serve("scattered", candidate="2", assign_by="request")
    begin(lab, endpoint, share_bp=5000)
    path = "/scattered/invocations"
    answers = [lab.ask(path=path, headers={"x-user-id": "ann"}) for _ in range(60)]
    assert {answer.version for answer in answers} == {"1", "2"}
    assert lab.log_of(answers[0].headers["x-request-id"])["user"] != "-", "the user is known all the same"


def test_a_share_holds_about_its_part_of_the_users(lab: Lab, flights: LocalEndpoint) -> None:
    begin(lab, flights, share_bp=2500, salt="parts")
    cursor = flights.observations(None).cursor
    with Load(lab, clients=8, users=100_000, pause_s=0).running() as load:
        eventually(lambda: len(load.samples) > 2000, 60)
    part = sum(sample.version == "2" for sample in load.samples) / len(load.samples)
    assert abs(part - 0.25) < 0.06  # six standard deviations
    eventually(lambda: len(flights.observations(cursor).frame) == len(load.samples))
    frame = flights.observations(cursor).frame
    assert set(frame["share"]) == {0.25}
    assert abs((frame["slot"] == "green").mean() - part) < 1e-9


def test_a_lease_ends_by_itself(lab: Lab, flights: LocalEndpoint) -> None:
    """No process takes part: nothing of ours runs between the grant and its end."""
    route = begin(lab, flights, share_bp=10_000)
    assert lab.ask().version == "2"
    ending = with_share(route, 10_000, lease_s=2)
    flights.apply(ending)
    key, until = f"flights#{route.generation}", int(ending.until)
    granted = lab.runtime.show_map(GRANT_MAP)[key]
    assert granted.startswith(f"10000:{until}:")
    eventually(lambda: time.time() >= until + 0.01)
    answer = lab.ask()
    assert answer.version == "1"
    assert lab.log_of(answer.headers["x-request-id"])["share"] == "0"
    assert lab.runtime.show_map(GRANT_MAP)[key] == granted, "nobody took it back"
    state = flights.describe()
    assert state.route is not None
    assert (state.route.share_bp, state.route.until) == (0, 0.0)


def test_a_lease_that_ran_out_is_never_silently_renewed(lab: Lab, flights: LocalEndpoint) -> None:
    route = begin(lab, flights, share_bp=10_000, lease_s=1.5)
    eventually(lambda: lab.ask().version == "1")
    with pytest.raises(LeaseExpired, match="ran out"):
        flights.apply(with_share(route, 10_000))
    assert lab.ask().version == "1"
    flights.apply(with_share(route, 0))
    flights.apply(with_share(route, 10_000))
    assert lab.ask().version == "2"


def test_a_clock_that_is_set_back_ends_the_lease(lab: Lab, flights: LocalEndpoint) -> None:
    """Granted while the clock was an hour ahead: by the right time, the lease has an hour too much."""
    route = begin(lab, flights)
    ahead = RoutePlane(lab.settings, clock=lambda: time.time() + 3600)
    granted = with_share(route, 10_000, lease_s=3660)
    ahead.apply(granted, before_new=lambda _: None)
    assert lab.runtime.show_map(GRANT_MAP)[f"flights#{route.generation}"].startswith("10000:")
    answer = lab.ask()
    assert answer.version == "1"
    assert lab.log_of(answer.headers["x-request-id"])["share"] == "0"
    assert flights.describe().route == route
    with pytest.raises(LeaseExpired, match="ran out"):
        flights.apply(with_share(route, 10_000))
    flights.apply(route)
    flights.apply(with_share(route, 10_000))
    assert lab.ask().version == "2"


def test_a_stale_release_cannot_undo_a_rollback(lab: Lab, flights: LocalEndpoint) -> None:
    stale = begin(lab, flights, share_bp=10_000)
    assert lab.ask().version == "2"
    rolled_back = begin(lab, flights)
    assert lab.ask().version == "1"
    for share_bp in (10_000, 5_000, 0):
        with pytest.raises(Fenced, match=f"generation {rolled_back.generation} rules"):
            flights.apply(with_share(stale, share_bp))
    assert lab.ask().version == "1"
    grants = lab.runtime.show_map(GRANT_MAP)
    assert not [key for key in grants if key.startswith("flights#")], "the old grant is gone"
    # even a raw command of the old release, past all of our code, has no effect
    lab.runtime.set_map(GRANT_MAP, f"flights#{stale.generation}", f"10000:{int(time.time()) + 60}")
    assert lab.ask().version == "1"
    state = flights.describe()
    assert state.route == rolled_back


def test_one_generation_has_one_content(lab: Lab, flights: LocalEndpoint) -> None:
    route = begin(lab, flights)
    with pytest.raises(Refused, match="new generation"):
        flights.apply(dataclasses.replace(route, salt="other"))
    with pytest.raises(Refused, match="new generation"):
        flights.apply(dataclasses.replace(route, default=Slot.GREEN, default_version="2", other_version="1"))


def test_promotion_moves_the_default_in_one_step(lab: Lab, flights: LocalEndpoint) -> None:
    route = lab.route(candidate="2")
    promoted = dataclasses.replace(route, default=Slot.GREEN, default_version="2", other_version="1")
    flights.apply(promoted)
    answer = lab.ask()
    assert (answer.version, answer.headers["x-interlock-slot"]) == ("2", "green")
    begin(lab, flights)
    assert lab.ask().version == "1"


def test_what_was_written_is_read_back(
    lab: Lab, flights: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = begin(lab, flights)
    monkeypatch.setattr(type(lab.runtime), "set_map", lambda *_: None)  # a command that gets lost
    with pytest.raises(NotApplied, match="reports"):
        flights.apply(with_share(route, 5000))


def test_an_interrupted_rollback_fences_before_it_is_finished(
    lab: Lab, flights: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the map file and the command: the older release is stopped, a repeat completes it."""
    route = begin(lab, flights, share_bp=10_000)
    following = lab.route(candidate="2")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(lab.runtime), "set_map", killed)
        with pytest.raises(KeyboardInterrupt):
            flights.apply(following)
    assert lab.ask().version == "2"
    with pytest.raises(Fenced):
        flights.apply(with_share(route, 5000))
    flights.apply(following)
    assert lab.ask().version == "1"
    assert lab.runtime.get_map(ROUTE_MAP, "flights").popitem()[1].startswith("blue:green:")


def test_state_survives_a_restart_of_the_gateway(lab: Lab, flights: LocalEndpoint) -> None:
    route = begin(lab, flights, share_bp=10_000)
    lab.supervisor.restart("gateway")
    eventually(lab.runtime.is_up)
    eventually(lambda: lab.ask().status == 200)
    assert lab.ask().version == "2"
    assert flights.describe().route == dataclasses.replace(route, until=float(int(route.until)))


STALE = """
import dataclasses, pickle, sys, time
from serving.errors import Fenced
from serving.gateway.plane import RoutePlane
settings, route = pickle.loads(bytes.fromhex(sys.argv[1]))
plane = RoutePlane(settings)
print("running", flush=True)
while True:
    asked = dataclasses.replace(route, share_bp=10_000, until=time.time() + 60)
    try:
        plane.apply(asked, before_new=lambda current: None)
    except Fenced:
        sys.exit(42)
"""


def test_a_release_that_was_stopped_in_the_middle_changes_nothing_when_it_wakes(
    lab: Lab, flights: LocalEndpoint
) -> None:
    """Stopped wherever it happens to be, a rollback by hand, woken: it finds itself fenced."""
    for number in range(8):
        route = begin(lab, flights)
        handed = pickle.dumps((lab.settings, route)).hex()
        with subprocess.Popen([sys.executable, "-c", STALE, handed], stdout=subprocess.PIPE) as stale:
            try:
                assert stale.stdout is not None
                assert stale.stdout.readline() == b"running\n"
                eventually(lambda: lab.ask().version == "2")
                time.sleep(0.003 * number)
                stale.send_signal(signal.SIGSTOP)
                rolled_back = begin(lab, flights)
                stale.send_signal(signal.SIGCONT)
                assert stale.wait(60) == 42
            finally:
                stale.kill()
        assert lab.ask().version == "1"
        assert flights.describe().route == rolled_back
        on_disk = read_map(lab.settings.gateway_dir / ROUTE_MAP)["flights"]
        assert on_disk == format_route(rolled_back), "also after a restart"
