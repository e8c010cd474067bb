"""What every `Endpoint` promises of requests: observed, counted, asked directly, captured."""

from __future__ import annotations

import json
import time

import pytest

from serving.endpoint import OBSERVATION_COLUMNS, Endpoint, Route, Slot
from serving.errors import Refused
from tests.serving.contract.platforms import Platform
from tests.serving.contract.routes import as_sent, first, needs, settled, share, uri


class TestObservations:
    @pytest.fixture(autouse=True)
    def known(self, serving: Endpoint) -> None:
        needs(serving, per_request_observations=True)

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
        frame = as_sent(seen.frame)
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
        frame = as_sent(settled(serving, cursor, len(statuses)).frame)
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


class TestPeriods:
    def test_a_platform_has_either_requests_or_counts(self, serving: Endpoint) -> None:
        if serving.capabilities.per_request_observations:
            with pytest.raises(Refused, match="observations"):
                serving.periods(0.0, 60.0, edges_ms=(1.0,))
        else:
            with pytest.raises(Refused, match="periods"):
                serving.observations(None)
            assert serving.capabilities.observation_period_s > 0

    def test_incomplete_periods_are_not_shown(self, platform: Platform, serving: Endpoint) -> None:
        needs(serving, per_request_observations=False)
        minute, found = -1.0, None
        while time.time() // 60 != minute:  # a minute that ended meanwhile is shown, rightly
            minute = time.time() // 60
            platform.send(serving)
            found = serving.periods(minute * 60, minute * 60 + 660, edges_ms=(5.0,))
        assert found == []


class TestInvoke:
    def test_each_slot_can_be_asked_past_the_split(self, canary: tuple[Endpoint, Route]) -> None:
        endpoint, _ = canary
        by_request = endpoint.capabilities.per_request_observations
        cursor = endpoint.observations(None).cursor if by_request else ""
        for slot in Slot:
            reply = endpoint.invoke(slot, "/invocations", b"{}", content_type="application/json", timeout_s=5)
            assert reply.status == 200
            assert reply.elapsed_ms > 0
        if by_request:
            assert len(endpoint.observations(cursor).frame) == 0, "it is no live request"

    def test_faults_are_replies(self, canary: tuple[Endpoint, Route]) -> None:
        endpoint, _ = canary
        for command, timeout_s, expected in (
            ({"status": 500}, 30, 500),
            ({"status": 400}, 30, 400),
            ({"sleep_s": 2}, 0.5, 0),
        ):
            reply = endpoint.invoke(
                Slot.GREEN,
                "/invocations",
                json.dumps(command).encode(),
                content_type="application/json",
                timeout_s=timeout_s,
            )
            assert reply.status == expected
            if expected == 0:
                assert 450 <= reply.elapsed_ms < 2000, "it did not wait for the answer"

    def test_an_empty_slot_cannot_be_asked(self, serving: Endpoint) -> None:
        with pytest.raises(Refused, match="holds no version"):
            serving.invoke(Slot.GREEN, "/invocations", b"{}", content_type="application/json", timeout_s=1)


class TestExchanges:
    def test_the_champions_exchanges_are_exact_and_in_order(
        self, platform: Platform, canary: tuple[Endpoint, Route]
    ) -> None:
        endpoint, route = canary
        by_request = endpoint.capabilities.per_request_observations
        observed = endpoint.observations(None).cursor if by_request else ""
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
        deadline = time.monotonic() + 60
        while len(found) < 5 and time.monotonic() < deadline:
            more, cursor = endpoint.exchanges(cursor, limit=2)
            assert len(more) <= 2
            found += more
            time.sleep(0 if more else 0.05)
        assert [json.loads(each.request)["number"] for each in found] == [0, 1, 2, 3, 4]
        assert {each.version for each in found} == {"1"}
        assert {each.path for each in found} == {"/invocations"}
        assert {each.status for each in found} == {200}
        if by_request:
            frame = as_sent(settled(endpoint, observed, 6).frame)
            assert [each.request_id for each in found] == list(frame["request_id"][:5]), "they can be joined"
        later, _ = endpoint.exchanges(cursor, limit=10)
        assert later == [], "neither direct calls nor the candidate's answers are among them"
