"""Who may call, what, and how much, against the real HAProxy."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from serving.errors import Refused
from serving.gateway.access_log import AccessLog
from serving.gateway.identity import user_hmac, user_key
from serving.gateway.keys import Keys
from serving.gateway.places import access_log_path, tls_certificate_path
from tests.doubles.certificate import write_certificate
from tests.serving.gateway.lab import Answer, Lab, eventually, free_port, lab_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def served(lab: Lab) -> None:
    lab.serve("flights", access={"rate_per_s": 1_000_000, "max_body_bytes": 1000})
    lab.serve("open", access={"public": True, "rate_per_s": 5})
    lab.serve("metered", access={"rate_per_s": 10})


def access_log(lab: Lab) -> AccessLog:
    return AccessLog(access_log_path(lab.settings), "flights")


def error_of(answer: Answer) -> str:
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["status"] == answer.status
    return answer.json["error"]


def test_a_key_admits_and_names_the_tenant(lab: Lab) -> None:
    by_header = lab.ask()
    assert by_header.status == 200
    assert by_header.json["headers"]["x-interlock-tenant"] == "acme"
    by_bearer = lab.ask(headers={"x-api-key": "", "authorization": f"Bearer {lab.key}"})
    assert by_bearer.status == 200
    assert by_bearer.json["headers"]["x-interlock-tenant"] == "acme"


NO_CREDENTIALS = (
    {},
    {"x-api-key": "wrong"},
    {"authorization": "Bearer nonsense"},
    {"authorization": "Basic eA=="},
)


@pytest.mark.parametrize("headers", NO_CREDENTIALS)
def test_without_a_valid_credential_nothing_is_served(lab: Lab, headers: dict[str, str]) -> None:
    answer = lab.ask(headers={"x-api-key": "", **headers})
    assert (answer.status, error_of(answer)) == (401, "unauthorized")
    assert "x-interlock-version" not in answer.headers


def test_keys_are_hashed_at_rest_and_die_at_once(lab: Lab) -> None:
    keys = Keys(lab.settings)
    key = keys.create("globex")
    assert lab.ask(headers={"x-api-key": key}).json["headers"]["x-interlock-tenant"] == "globex"
    kept = b"".join(path.read_bytes() for path in lab.settings.gateway_dir.rglob("*") if path.is_file())
    assert key.encode() not in kept
    assert [each.tenant for each in keys.every("globex")] == ["globex"]
    keys.revoke("globex")
    assert lab.ask(headers={"x-api-key": key}).status == 401
    with pytest.raises(Refused, match="globex"):
        keys.revoke("globex")
    assert lab.ask().status == 200


def test_a_token_admits_and_names_tenant_and_user(lab: Lab) -> None:
    answer = lab.ask(headers={"x-api-key": "", "authorization": f"Bearer {lab.token()}", "x-user-id": "eve"})
    assert answer.status == 200
    seen = answer.json["headers"]
    assert seen["x-interlock-tenant"] == "jwt-tenant"
    assert seen["x-interlock-user"] == user_hmac(user_key(lab.settings), "jwt-tenant", "ann")
    assert "authorization" not in seen


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        ({"exp": None}, "token_expired"),
        ({"exp": int(time.time()) - 5}, "token_expired"),
        ({"exp": "never"}, "token_expired"),
        ({"exp": -1}, "token_expired"),
        ({"nbf": int(time.time()) + 1_000_000}, "token_not_yet_valid"),
        ({"tenant": None}, "bad_token"),
        ({"tenant": "a:b"}, "bad_token"),
        ({"tenant": ""}, "bad_token"),
        ({"tenant": "x" * 65}, "bad_token"),
        ({"tenant": {"a": 1}}, "bad_token"),
        ({"iss": None}, "bad_token"),
        ({"iss": "https://id.example.com.evil.com"}, "bad_token"),
        ({"aud": "another-service"}, "bad_token"),
        ({"aud": ["another-service", "interlock test"]}, "bad_token"),
    ],
)
def test_a_token_must_be_complete_and_timely(lab: Lab, claims: dict[str, Any], error: str) -> None:
    answer = lab.ask(headers={"x-api-key": "", "authorization": f"Bearer {lab.token(**claims)}"})
    assert (answer.status, error_of(answer)) == (401, error)


def forged_tokens(lab: Lab) -> dict[str, str]:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head, payload, signature = lab.token().split(".")
    rich = part({"tenant": "acme", "sub": "x", "exp": int(time.time()) + 60})
    return {
        "other payload": f"{head}.{rich}.{signature}",
        "alg none": f"{part({'alg': 'none', 'typ': 'JWT'})}.{rich}.",
        "alg none with signature": f"{part({'alg': 'none'})}.{rich}.{signature}",
        "hmac with a secret": lab.token(algorithm="HS256"),
        "other alg, same signature": f"{part({'alg': 'RS512'})}.{payload}.{signature}",
        "no signature": f"{head}.{payload}.",
        "two parts": f"{head}.{payload}",
        "dots": "...",
        "not base64": "a.b.c",
        "truncated": f"{head}.{payload}.{signature[:-8]}",
    }


def test_forged_tokens_are_refused(lab: Lab) -> None:
    for what, token in forged_tokens(lab).items():
        answer = lab.ask(headers={"x-api-key": "", "authorization": f"Bearer {token}"})
        assert answer.status == 401, what
        assert error_of(answer) in {"bad_token", "unauthorized"}, what


def test_a_public_endpoint_needs_no_credential_but_has_its_limit(lab: Lab) -> None:
    statuses: list[int] = []
    begun = time.monotonic()
    while 429 not in statuses and time.monotonic() - begun < 60:
        statuses.append(lab.ask(path="/open/invocations", headers={"x-api-key": ""}).status)
    assert statuses[0] == 200
    assert statuses[-1] == 429
    eventually(lambda: lab.ask(path="/open/invocations", headers={"x-api-key": ""}).status == 200)
    wrong = lab.ask(path="/open/invocations", headers={"x-api-key": "wrong"})
    assert wrong.status == 401


def test_a_tenant_over_its_rate_is_slowed_but_not_starved(lab: Lab) -> None:
    """Ten a second, and the counter's window slides: a burst of ten, then ten a second."""
    begun = time.monotonic()
    answers = []
    refused = []
    while time.monotonic() - begun < 3 or (len(refused) < 20 and time.monotonic() - begun < 60):
        answers.append(lab.ask(path="/metered/invocations"))
        refused = [answer for answer in answers if answer.status == 429]
        time.sleep(0.01)
    seconds = time.monotonic() - begun
    admitted = len(answers) - len(refused)
    assert {answer.status for answer in answers} == {200, 429}
    assert 20 <= admitted <= 10 * (seconds + 1.5)
    assert error_of(refused[0]) == "rate_limited"
    assert refused[0].headers["retry-after"] == "1"
    assert lab.ask(path="/flights/invocations").status == 200, "limits are per endpoint"
    other = Keys(lab.settings).create("other")
    assert lab.ask(path="/metered/invocations", headers={"x-api-key": other}).status == 200, "and per tenant"


def test_bodies_have_a_limit_and_a_length(lab: Lab) -> None:
    assert lab.ask(body=b'{"pad": 1}'.ljust(1000)).status == 200
    large = lab.ask(body=b" " * 1001)
    assert (large.status, error_of(large)) == (413, "body_too_large")
    head = f"POST /flights/invocations HTTP/1.1\r\nhost: x\r\nx-api-key: {lab.key}\r\n"
    chunked = lab.raw(f"{head}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode())
    assert chunked.startswith(b"HTTP/1.1 411 ")
    assert b'"error":"length_required"' in chunked
    both = lab.raw(
        f"{head}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode()
    )
    assert both.startswith((b"HTTP/1.1 411 ", b"HTTP/1.1 400 "))


PATH_TRICKS = [
    "/flights",
    "/flights/",
    "/flights-admin/invocations",
    "/flights/invocations/",
    "/flights/invocationsx",
    "//flights/invocations",
    "/flights//invocations",
    "/flights/../flights/invocations",
    "/flights/./invocations",
    "/flights/invocations/../ping",
    "/%66lights/invocations",
    "/flights%2finvocations",
    "/flights/invocations%00",
    "/flights/invocations;x",
    "/flights/ping",
    "/flights/health",
    "/flights/metrics",
    "/FLIGHTS/invocations",
    "/nobody/invocations",
    "/gw",
    "/",
    "/health",
]


@pytest.mark.parametrize("path", PATH_TRICKS)
def test_nothing_but_whole_inference_paths_is_reached(lab: Lab, path: str) -> None:
    answer = lab.ask(path=path)
    assert (answer.status, error_of(answer)) == (404, "not_found")


def test_the_query_and_the_authority_do_not_matter(lab: Lab) -> None:
    assert lab.ask(path="/flights/invocations?x=/../admin").json["path"] == "/invocations"
    absolute = lab.ask(path="http://elsewhere/flights/invocations")
    assert (absolute.status, absolute.json["path"]) == (200, "/invocations")


def test_only_post_reaches_a_model(lab: Lab) -> None:
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE", "HEAD", "BREW"):
        answer = lab.ask(method=method)
        assert answer.status == 405, method
        assert answer.headers["allow"] == "POST"


def test_what_the_client_claims_to_be_is_dropped(lab: Lab) -> None:
    answer = lab.ask(
        headers={
            "x-interlock-version": "99",
            "x-interlock-user": "root",
            "x-interlock-tenant": "other",
            "X-Interlock-Replay": "1",
            "x-interlock-anything": "1",
            "x-request-id": "mine",
            "x-user-id": "bob",
        }
    )
    seen = answer.json["headers"]
    assert seen["x-interlock-version"] == "1"
    assert seen["x-interlock-tenant"] == "acme"
    assert seen["x-interlock-user"] == user_hmac(user_key(lab.settings), "acme", "bob")
    assert {name for name in seen if name.startswith("x-interlock-")} == {
        "x-interlock-version",
        "x-interlock-tenant",
        "x-interlock-user",
    }
    assert not {"x-api-key", "x-user-id", "authorization"} & set(seen)
    assert seen["x-request-id"] == answer.headers["x-request-id"] != "mine"
    assert answer.headers["x-interlock-version"] == "1", "the replica said 'forged'"
    assert answer.headers["x-interlock-slot"] == "blue"
    line = lab.log_of(answer.headers["x-request-id"])
    assert line["client_id"] == "mine"


def test_the_log_holds_no_secret_and_survives_hostile_headers(lab: Lab) -> None:
    hostile = 'a","status":"200","x":"\\" \x7f' + "é" * 100
    answer = lab.ask(
        path="/flights/invocations?password=hunter2",
        headers={"x-request-id": hostile.encode(), "x-user-id": "secret-user@example.com"},
    )
    assert answer.status == 200
    line = lab.log_of(answer.headers["x-request-id"])
    assert line["status"] == "200"
    text = json.dumps(lab.log_lines())
    for secret in ("hunter2", "secret-user", lab.key, "invocations"):
        assert secret not in text
    part = access_log(lab).read("0:0")
    assert part.malformed == 0
    assert answer.headers["x-request-id"] in set(part.frame["request_id"])


def test_the_service_and_total_times_are_logged_in_microseconds(lab: Lab) -> None:
    begun = time.monotonic()
    answer = lab.ask({"sleep_s": 0.25})
    waited_ms = (time.monotonic() - begun) * 1000
    lab.log_of(answer.headers["x-request-id"])
    frame = access_log(lab).read("0:0").frame.set_index("request_id")
    row = frame.loc[answer.headers["x-request-id"]]
    assert 250 <= row["service_ms"] <= row["total_ms"] < 2 * waited_ms
    assert row["service_ms"] % 1 != 0
    assert abs(row["time"] - time.time()) < 60


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET\r\n\r\n",
    b"POST /flights/invocations HTTP/9.9\r\n\r\n",
    b"POST /flights/invocations HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /flights/invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    b"POST /flights/invocations HTTP/1.1\r\nhost: x\r\n bad header\r\n\r\n",
    b"POST /flights/invocations HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
    b"\x00" * 1000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /flights/invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n",
]


def test_garbage_is_refused_or_closed_and_never_spoils_the_log(lab: Lab) -> None:
    """Bytes that are no HTTP get HAProxy's built-in 400 (no file or rule can change it)."""
    for data in GARBAGE:
        said = lab.raw(data)
        if said.startswith(b"HTTP/"):
            assert said.split()[1] in {b"400", b"401", b"404"}, (data[:50], said[:200])
    answer = lab.ask()
    assert answer.status == 200
    lab.log_of(answer.headers["x-request-id"])
    assert access_log(lab).read("0:0").malformed == 0


def test_the_gateway_says_that_it_is_well_and_measures_itself(lab: Lab) -> None:
    assert lab.ask(path="/gw/health", method="GET", headers={"x-api-key": ""}).json == {"status": "ok"}
    import urllib.request

    url = f"http://127.0.0.1:{lab.settings.gateway_metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert b'haproxy_backend_http_responses_total{proxy="flights.blue",code="2xx"}' in answer.read()


def test_tls_serves_the_same_over_http_1_and_the_key_matters(tmp_path: Path) -> None:
    settings = lab_settings(tmp_path, gateway_tls_port=free_port())
    certificate = write_certificate(tls_certificate_path(settings))
    lab = Lab(settings)
    try:
        lab.up()
        lab.serve("flights")
        trusted = ssl.create_default_context(cadata=certificate)
        for headers, expected in (({"x-api-key": lab.key}, 200), ({}, 401)):
            connection = http.client.HTTPSConnection(
                "localhost", settings.gateway_tls_port, context=trusted, timeout=10
            )
            connection.request("POST", "/flights/invocations", b"{}", headers)
            assert connection.getresponse().status == expected
            connection.close()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", settings.gateway_tls_port or 0), timeout=5) as plug,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            old.wrap_socket(plug)
    finally:
        lab.down()
