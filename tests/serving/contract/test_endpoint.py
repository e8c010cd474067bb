"""What every `Endpoint` promises, whatever the platform. One suite for all of them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator

import pytest

from serving.endpoint import OBSERVATION_COLUMNS, Endpoint, Observations, Route, Slot
from serving.errors import Fenced, LeaseExpired, NotHealthy, Refused
from tests.serving.contract.platforms import Platform
from tests.serving.gateway.lab import eventually


def uri(version: str) -> str:
    return f"models:/model/{version}"


def first(endpoint: Endpoint, generation: int = 1) -> Route:
    return Route(endpoint.name, generation, Slot.BLUE, "1", salt="salt")


@pytest.fixture
def fresh(platform: Platform) -> Iterator[Endpoint]:
    """It has never served."""
    endpoint = platform.endpoint()
    yield endpoint
    platform.dispose(endpoint)


@pytest.fixture
def serving(fresh: Endpoint) -> Endpoint:
    """Version 1 serves from blue, generation 1."""
    fresh.deploy(Slot.BLUE, "1", uri=uri("1"))
    fresh.apply(first(fresh))
    return fresh


@pytest.fixture
def canary(serving: Endpoint) -> tuple[Endpoint, Route]:
    """And version 2 waits in green, under generation 2, without a share."""
    serving.deploy(Slot.GREEN, "2", uri=uri("2"))
    route = dataclasses.replace(first(serving, 2), other_version="2")
    serving.apply(route)
    return serving, route


def share(route: Route, share_bp: int, lease_s: float = 60) -> Route:
    return dataclasses.replace(route, share_bp=share_bp, until=time.time() + lease_s if share_bp else 0.0)


def versions_seen(platform: Platform, endpoint: Endpoint, count: int = 30) -> set[str]:
    return {platform.send(endpoint, user=f"user-{number}")[1] for number in range(count)}


def settled(endpoint: Endpoint, cursor: str, rows: int) -> Observations:
    """Observations since the cursor, once there are as many as were sent."""
    eventually(lambda: len(endpoint.observations(cursor).frame) >= rows)
    return endpoint.observations(cursor)


class TestDeploy:
    def test_an_unknown_endpoint_has_no_route_and_empty_slots(self, fresh: Endpoint) -> None:
        state = fresh.describe()
        assert state.name == fresh.name
        assert state.route is None
        assert state.versions == {Slot.BLUE: "", Slot.GREEN: ""}
        assert state.replicas == {Slot.BLUE: (), Slot.GREEN: ()}

    def test_a_deployed_version_is_healthy_and_gets_no_traffic(
        self, platform: Platform, serving: Endpoint
    ) -> None:
        serving.deploy(Slot.GREEN, "2", uri=uri("2"))
        state = serving.describe()
        assert state.versions == {Slot.BLUE: "1", Slot.GREEN: "2"}
        assert all(replica.healthy for replicas in state.replicas.values() for replica in replicas)
        assert all(state.replicas.values())
        assert versions_seen(platform, serving) == {"1"}

    def test_deploying_again_changes_nothing(self, serving: Endpoint) -> None:
        before = serving.describe()
        serving.deploy(Slot.BLUE, "1", uri=uri("1"))
        assert serving.describe() == before

    def test_another_version_replaces_the_one_in_the_free_slot(self, serving: Endpoint) -> None:
        serving.deploy(Slot.GREEN, "2", uri=uri("2"))
        serving.deploy(Slot.GREEN, "3", uri=uri("3"))
        assert serving.describe().versions == {Slot.BLUE: "1", Slot.GREEN: "3"}

    def test_the_default_slot_takes_no_other_version(self, platform: Platform, serving: Endpoint) -> None:
        with pytest.raises(Refused, match="default slot"):
            serving.deploy(Slot.BLUE, "2", uri=uri("2"))
        assert serving.describe().versions[Slot.BLUE] == "1"
        assert platform.send(serving) == (200, "1")

    def test_a_slot_with_a_share_takes_no_other_version(self, canary: tuple[Endpoint, Route]) -> None:
        endpoint, route = canary
        endpoint.apply(share(route, 500))
        with pytest.raises(Refused, match="500 bp"):
            endpoint.deploy(Slot.GREEN, "3", uri=uri("3"))
        assert endpoint.describe().versions[Slot.GREEN] == "2"

    def test_a_version_that_does_not_start_leaves_the_slot_empty(
        self, platform: Platform, serving: Endpoint
    ) -> None:
        with pytest.raises(NotHealthy, match="broken"):
            serving.deploy(Slot.GREEN, "broken", uri=uri("broken"))
        assert serving.describe().versions == {Slot.BLUE: "1", Slot.GREEN: ""}
        assert platform.send(serving) == (200, "1")

    def test_a_first_champion_may_be_replaced_before_it_serves(self, fresh: Endpoint) -> None:
        fresh.deploy(Slot.BLUE, "1", uri=uri("1"))
        fresh.deploy(Slot.BLUE, "2", uri=uri("2"))
        assert fresh.describe().versions[Slot.BLUE] == "2"


class TestApply:
    def test_what_was_applied_is_described(self, platform: Platform, canary: tuple[Endpoint, Route]) -> None:
        endpoint, route = canary
        asked = share(route, 2500)
        endpoint.apply(asked)
        found = platform.same(endpoint).describe().route
        assert found is not None
        assert dataclasses.replace(found, until=0.0) == dataclasses.replace(asked, until=0.0)
        assert asked.until - 1 < found.until <= asked.until, "a lease never lasts longer than asked"

    def test_applying_again_changes_nothing(self, canary: tuple[Endpoint, Route]) -> None:
        endpoint, route = canary
        asked = share(route, 2500)
        endpoint.apply(asked)
        before = endpoint.describe()
        endpoint.apply(asked)
        assert endpoint.describe() == before

    @pytest.mark.parametrize(("share_bp", "expected"), [(0, {"1"}), (10_000, {"2"}), (5000, {"1", "2"})])
    def test_shares_are_what_traffic_follows(
        self, platform: Platform, canary: tuple[Endpoint, Route], share_bp: int, expected: set[str]
    ) -> None:
        endpoint, route = canary
        endpoint.apply(share(route, share_bp))
        assert versions_seen(platform, endpoint) == expected

    def test_a_user_stays_while_the_share_grows(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        moved: set[str] = set()
        for share_bp in (500, 2500, 5000, 9500):
            endpoint.apply(share(route, share_bp))
            now = {f"user-{n}" for n in range(40) if platform.send(endpoint, user=f"user-{n}")[1] == "2"}
            assert moved <= now
            moved = now
        assert moved

    def test_the_share_returns_to_zero_at_once(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        endpoint.apply(share(route, 10_000))
        endpoint.apply(share(route, 0))
        assert versions_seen(platform, endpoint, 10) == {"1"}

    def test_a_new_generation_voids_older_grants(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        endpoint.apply(share(route, 10_000))
        endpoint.apply(dataclasses.replace(route, generation=3))
        assert versions_seen(platform, endpoint, 10) == {"1"}

    def test_an_older_generation_is_fenced_and_changes_nothing(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        endpoint.apply(dataclasses.replace(route, generation=3))
        before = endpoint.describe()
        for stale in (share(route, 10_000), share(route, 0), first(endpoint)):
            with pytest.raises(Fenced):
                platform.same(endpoint).apply(stale)
        assert endpoint.describe() == before
        assert versions_seen(platform, endpoint, 10) == {"1"}

    def test_a_promotion_and_its_way_back(self, platform: Platform, canary: tuple[Endpoint, Route]) -> None:
        endpoint, route = canary
        promoted = dataclasses.replace(
            route, generation=3, default=Slot.GREEN, default_version="2", other_version="1"
        )
        endpoint.apply(promoted)
        assert versions_seen(platform, endpoint, 10) == {"2"}
        endpoint.apply(dataclasses.replace(route, generation=4))
        assert versions_seen(platform, endpoint, 10) == {"1"}

    @pytest.mark.parametrize(
        "changes",
        [
            {"salt": "other"},
            {"other_version": "3"},
            {"default": Slot.GREEN, "default_version": "2", "other_version": "1"},
        ],
    )
    def test_one_generation_has_one_content(
        self, canary: tuple[Endpoint, Route], changes: dict[str, object]
    ) -> None:
        endpoint, route = canary
        with pytest.raises(Refused, match="generation 2"):
            endpoint.apply(dataclasses.replace(route, **changes))
        assert endpoint.describe().route == route

    @pytest.mark.parametrize(
        "changes",
        [
            {"default_version": "3"},
            {"other_version": "3"},
            {"default_version": ""},
            {"share_bp": -1},
            {"share_bp": 10_001, "until": 9e9},
            {"endpoint": "somebody-else"},
        ],
    )
    def test_a_route_to_what_is_not_there_is_refused(
        self, platform: Platform, canary: tuple[Endpoint, Route], changes: dict[str, object]
    ) -> None:
        endpoint, route = canary
        with pytest.raises(Refused):
            endpoint.apply(dataclasses.replace(route, **{"generation": 3, **changes}))
        assert endpoint.describe().route == route
        assert platform.send(endpoint) == (200, "1")

    def test_an_empty_slot_gets_no_share(self, serving: Endpoint) -> None:
        with pytest.raises(Refused, match="empty slot"):
            serving.apply(share(first(serving, 2), 500))


class TestLease:
    def test_it_ends_by_itself_and_is_not_renewed(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        cursor = endpoint.observations(None).cursor
        endpoint.apply(share(route, 10_000, lease_s=1.2))
        eventually(lambda: platform.send(endpoint)[1] == "1", 5)
        state = endpoint.describe()
        assert state.route == route, "its share is what a request would meet now"
        sent = settled(endpoint, cursor, 1).frame
        assert sent["share"].iloc[-1] == 0
        with pytest.raises(LeaseExpired):
            endpoint.apply(share(route, 10_000))
        assert versions_seen(platform, endpoint, 5) == {"1"}
        endpoint.apply(share(route, 0))
        endpoint.apply(share(route, 10_000))
        assert versions_seen(platform, endpoint, 5) == {"2"}

    def test_one_in_the_past_is_refused(self, platform: Platform, canary: tuple[Endpoint, Route]) -> None:
        endpoint, route = canary
        with pytest.raises(LeaseExpired):
            endpoint.apply(dataclasses.replace(route, share_bp=500, until=time.time() - 1))
        assert endpoint.describe().route == route

    def test_it_can_be_renewed_while_it_runs(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        endpoint.apply(share(route, 10_000, lease_s=30))
        endpoint.apply(share(route, 10_000, lease_s=60))
        found = endpoint.describe().route
        assert found is not None
        assert found.until > time.time() + 40


class TestObservations:
    def test_nothing_is_seen_before_now(self, platform: Platform, serving: Endpoint) -> None:
        platform.send(serving)
        seen = serving.observations(None)
        assert len(seen.frame) == 0
        assert list(seen.frame.columns) == list(OBSERVATION_COLUMNS)

    def test_each_request_is_one_row_by_its_assigned_version(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        endpoint.apply(share(route, 5000))
        cursor = endpoint.observations(None).cursor
        begun = time.time()
        sent = [platform.send(endpoint, user=f"user-{number}") for number in range(20)]
        seen = settled(endpoint, cursor, 20)
        frame = seen.frame
        assert list(frame.columns) == list(OBSERVATION_COLUMNS)
        for name, kind in OBSERVATION_COLUMNS.items():
            kind = kind.split(":")[0]
            assert str(frame[name].dtype) == {"str": "object"}.get(kind, kind), name
        assert list(frame["version"]) == [version for _, version in sent]
        assert set(frame["slot"]) == {"blue", "green"}
        assert ((frame["slot"] == "green") == (frame["version"] == "2")).all()
        assert (frame["generation"] == route.generation).all()
        assert (frame["share"] == 0.5).all()
        assert (frame["status"] == 200).all()
        assert not frame["failed"].any()
        assert frame["request_id"].is_unique
        assert frame["user"].nunique() == 20
        assert not frame["user"].str.contains("user-1$").any() or "hmac" in frame["user"].iloc[0]
        assert frame["time"].between(begun - 1, time.time() + 1).all()
        assert (frame["total_ms"] >= frame["service_ms"]).all()
        assert set(seen.in_flight) == {Slot.BLUE, Slot.GREEN}

    def test_failures_and_refusals_of_the_version_are_marked(
        self, platform: Platform, serving: Endpoint
    ) -> None:
        cursor = serving.observations(None).cursor
        statuses = [200, 404, 400, 415, 422, 500, 503]
        for status in statuses:
            assert platform.send(serving, {"status": status})[0] == status
        frame = settled(serving, cursor, len(statuses)).frame
        assert list(frame["status"]) == statuses
        assert list(frame["failed"]) == [False, False, True, True, True, True, True]

    def test_cursors_can_be_read_again_and_joined(self, platform: Platform, serving: Endpoint) -> None:
        start = serving.observations(None).cursor
        for number in range(3):
            platform.send(serving, user=str(number))
        one = settled(serving, start, 3)
        for number in range(2):
            platform.send(serving, user=str(number))
        two = settled(serving, one.cursor, 2)
        assert len(two.frame) == 2
        whole = platform.same(serving).observations(start)
        assert list(whole.frame["request_id"]) == [*one.frame["request_id"], *two.frame["request_id"]]
        assert whole.cursor == two.cursor
        again = serving.observations(two.cursor)
        assert (len(again.frame), again.cursor) == (0, two.cursor)

    def test_a_bounded_read_loses_nothing(self, platform: Platform, serving: Endpoint) -> None:
        cursor = serving.observations(None).cursor
        for number in range(5):
            platform.send(serving, user=str(number))
        whole = settled(serving, cursor, 5)
        found: list[str] = []
        for _ in range(5):
            part = serving.observations(cursor, limit=2)
            found += list(part.frame["request_id"])
            cursor = part.cursor
        assert found == list(whole.frame["request_id"])
        assert cursor == whole.cursor

    def test_endpoints_do_not_see_each_other(self, platform: Platform, serving: Endpoint) -> None:
        other = platform.endpoint()
        try:
            other.deploy(Slot.BLUE, "1", uri=uri("1"))
            other.apply(first(other))
            cursor = serving.observations(None).cursor
            platform.send(other)
            platform.send(serving)
            assert len(settled(serving, cursor, 1).frame) == 1
        finally:
            platform.dispose(other)

    def test_a_foreign_cursor_is_refused(self, serving: Endpoint) -> None:
        with pytest.raises(Refused, match="cursor"):
            serving.observations("yesterday")


class TestInvoke:
    def test_each_slot_can_be_asked_past_the_split(self, canary: tuple[Endpoint, Route]) -> None:
        endpoint, _ = canary
        cursor = endpoint.observations(None).cursor
        for slot in Slot:
            reply = endpoint.invoke(slot, "/invocations", b"{}", content_type="application/json", timeout_s=5)
            assert reply.status == 200
            assert reply.elapsed_ms > 0
        assert len(endpoint.observations(cursor).frame) == 0, "it is no live request"

    def test_faults_are_replies(self, canary: tuple[Endpoint, Route]) -> None:
        endpoint, _ = canary
        for command, expected in (({"status": 500}, 500), ({"status": 400}, 400), ({"sleep_s": 2}, 0)):
            reply = endpoint.invoke(
                Slot.GREEN,
                "/invocations",
                json.dumps(command).encode(),
                content_type="application/json",
                timeout_s=0.5,
            )
            assert reply.status == expected
            if expected == 0:
                assert 450 <= reply.elapsed_ms < 1500

    def test_an_empty_slot_cannot_be_asked(self, serving: Endpoint) -> None:
        with pytest.raises(Refused, match="holds no version"):
            serving.invoke(Slot.GREEN, "/invocations", b"{}", content_type="application/json", timeout_s=1)


class TestExchanges:
    def test_the_champions_exchanges_are_exact_and_in_order(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        observed = endpoint.observations(None).cursor
        nothing, cursor = endpoint.exchanges(None, limit=10)
        assert nothing == []
        for number in range(5):
            platform.send(endpoint, {"number": number})
        endpoint.invoke(
            Slot.BLUE, "/invocations", b'{"number": 99}', content_type="application/json", timeout_s=5
        )
        endpoint.apply(share(route, 10_000))
        platform.send(endpoint, {"number": 98})
        found = []
        deadline = time.monotonic() + 10
        while len(found) < 5 and time.monotonic() < deadline:
            more, cursor = endpoint.exchanges(cursor, limit=2)
            assert len(more) <= 2
            found += more
            time.sleep(0 if more else 0.05)
        assert [json.loads(each.request)["number"] for each in found] == [0, 1, 2, 3, 4]
        assert {each.version for each in found} == {"1"}
        assert {each.path for each in found} == {"/invocations"}
        assert {each.status for each in found} == {200}
        frame = settled(endpoint, observed, 6).frame
        assert [each.request_id for each in found] == list(frame["request_id"][:5]), "they can be joined"
        later, _ = endpoint.exchanges(cursor, limit=10)
        assert later == [], "neither direct calls nor the candidate's answers are among them"


class TestRetire:
    def test_an_empty_slot_is_a_no_op(self, serving: Endpoint) -> None:
        serving.retire(Slot.GREEN)
        assert serving.describe().versions[Slot.GREEN] == ""

    def test_it_empties_the_free_slot_and_can_be_repeated(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, _ = canary
        for _ in range(2):
            endpoint.retire(Slot.GREEN)
            assert endpoint.describe().versions == {Slot.BLUE: "1", Slot.GREEN: ""}
            assert endpoint.describe().replicas[Slot.GREEN] == ()
        assert platform.send(endpoint) == (200, "1")

    def test_the_default_is_refused(self, platform: Platform, serving: Endpoint) -> None:
        with pytest.raises(Refused, match="default slot"):
            serving.retire(Slot.BLUE)
        assert platform.send(serving) == (200, "1")

    def test_a_slot_with_a_share_is_refused(self, platform: Platform, canary: tuple[Endpoint, Route]) -> None:
        endpoint, route = canary
        endpoint.apply(share(route, 10_000))
        with pytest.raises(Refused, match="10000 bp"):
            endpoint.retire(Slot.GREEN)
        assert platform.send(endpoint) == (200, "2")
