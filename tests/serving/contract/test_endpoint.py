"""What every `Endpoint` promises of versions and traffic, whatever the platform."""

from __future__ import annotations

import dataclasses
import time

import pytest

from serving.endpoint import Endpoint, Route, Slot
from serving.errors import Fenced, LeaseExpired, NotHealthy, Refused
from tests.serving.contract.platforms import Platform
from tests.serving.contract.routes import as_sent, first, needs, settled, share, uri, versions_seen
from tests.serving.gateway.lab import eventually


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
        needs(endpoint, sticky_users=True)
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
        needs(endpoint, has_lease=True)
        cursor = endpoint.observations(None).cursor
        endpoint.apply(share(route, 10_000, lease_s=1.2))
        answered: list[str] = []

        def has_ended() -> bool:
            answered.append(platform.send(endpoint)[1])
            return answered[-1] == "1"

        eventually(has_ended)
        state = endpoint.describe()
        assert state.route == route, "its share is what a request would meet now"
        sent = as_sent(settled(endpoint, cursor, len(answered)).frame)
        assert sent["share"].iloc[-1] == 0
        with pytest.raises(LeaseExpired):
            endpoint.apply(share(route, 10_000))
        assert versions_seen(platform, endpoint, 5) == {"1"}
        endpoint.apply(share(route, 0))
        endpoint.apply(share(route, 10_000))
        assert versions_seen(platform, endpoint, 5) == {"2"}

    def test_without_one_the_share_stays_until_it_is_taken_back_and_is_never_silently_renewed(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        needs(endpoint, has_lease=False)
        asked = share(route, 10_000, lease_s=2)
        endpoint.apply(asked)
        eventually(lambda: time.time() > asked.until)
        found = endpoint.describe().route
        assert found is not None
        assert found.share_bp == 10_000, "nobody took it back, and the platform says so"
        assert versions_seen(platform, endpoint, 5) == {"2"}
        with pytest.raises(LeaseExpired):
            endpoint.apply(share(route, 10_000))
        endpoint.apply(share(route, 0))
        assert versions_seen(platform, endpoint, 5) == {"1"}
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
