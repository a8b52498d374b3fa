"""The key, the Host header, sizes, headers, and errors that tell nothing."""

import logging
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.server.security import client_name, host_name
from tests.server.running import Running, StillEngine, running, until

KEY = "a-key-of-some-length"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def guarded(nano: DiffusionGemmaModel) -> Iterator[Running]:
    with running(nano, StillEngine(), api_key=KEY, max_body_bytes=2000) as started:
        yield started


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", KEY, "Bearer \xff"])
def test_without_the_key_there_is_nothing(guarded: Running, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/nowhere")):
        answer = guarded.http.request(method, path, headers=headers, json=BODY if method == "POST" else None)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("/", "/health", "/openapi.json", "/docs"):
        assert guarded.http.get(path, headers=headers).status_code == 200


def test_the_description_knows_of_the_key(guarded: Running, server: Running) -> None:
    assert guarded.http.get("/openapi.json").json()["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "security" not in server.http.get("/openapi.json").json()


def test_with_the_key(guarded: Running) -> None:
    for scheme in ("Bearer", "bearer"):
        assert guarded.http.get("/v1/models", headers={"Authorization": f"{scheme} {KEY}"}).status_code == 200


def test_a_body_that_is_too_large(guarded: Running) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    whole = guarded.http.post("/v1/chat/completions", content=b" " * 2001, headers=headers)
    pieces = guarded.http.post("/v1/chat/completions", content=(b" " * 100 for _ in range(21)), headers=headers)
    for answer in (whole, pieces):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_large"
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:  # a length that is a lie, or no length at all
        raw.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {10**30}\r\n\r\n".encode()
        )
        assert raw.recv(1000).split(b"\r\n")[0].split()[1] in (b"400", b"413")


def test_a_body_that_never_comes(nano: DiffusionGemmaModel) -> None:
    with running(nano, StillEngine(), body_seconds=0.2) as started:
        host, port = started.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
            )
            assert raw.recv(1000).split(b"\r\n")[0].split()[1] == b"408"
        until(lambda: started.state.active == 0)


def test_a_name_that_is_not_local_is_refused(nano: DiffusionGemmaModel) -> None:
    with running(nano, StillEngine(), hosts=frozenset({"localhost", "127.0.0.1"})) as started:
        assert started.http.get("/v1/models").status_code == 200
        assert started.http.get("/v1/models", headers={"Host": "LOCALHOST:80"}).status_code == 200
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost:evil.example", "localhost:"):
            answer = started.http.get("/v1/models", headers={"Host": host})
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "bad_host"


def test_host_names() -> None:
    assert [host_name(name) for name in ("a.b:80", "a.b", "[::1]:80", "[::1]", "")] == ["a.b", "a.b", "::1", "::1", ""]
    for wrong in (
        "localhost:evil.com", "localhost:", "localhost:80:80", "localhost:99999", "localhost:-1", "localhost ", "localhost/",
        "[::1", "[::1]x", "::1", "evil.com#localhost", "a@localhost", "localhost\x00", "localhost:８０",
    ):  # fmt: skip
        assert host_name(wrong) == "", wrong


def test_a_client_is_an_address_or_a_subscribers_network() -> None:
    scopes = [{"client": (host, 5)} for host in ("192.0.2.7", "2001:db8:1:2:3::4", "2001:db8:1:2:9::9", "::ffff:192.0.2.7", "unix")]
    names = [client_name(scope) for scope in [*scopes, {"client": None}, {}]]
    assert names == ["192.0.2.7", "2001:db8:1:2::/64", "2001:db8:1:2::/64", "192.0.2.7", "unix", "", ""]


def test_every_answer_has_the_headers_and_none_shares(guarded: Running) -> None:
    origin = {"Origin": "https://evil.example"}
    for answer in (
        guarded.http.get("/", headers=origin),
        guarded.http.get("/health", headers=origin),
        guarded.http.get("/nowhere", headers=origin),
        guarded.http.options("/health", headers=origin | {"Access-Control-Request-Method": "POST"}),
    ):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/page/../settings.py", "/page/%2e%2e/settings.py", "/page/..%2fsettings.py", "/page//etc/passwd", "/page/"]
)
def test_the_page_has_only_its_parts(server: Running, path: str) -> None:
    answer = httpx.get(server.url + path, verify=False)
    assert answer.status_code == 404
    assert "Settings" not in answer.text


def test_an_error_of_ours_tells_a_number_and_nothing_else(nano: DiffusionGemmaModel, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(StillEngine):
        def submit(self, *args: object) -> None:
            raise RuntimeError("a secret at /some/path")

    with running(nano, Broken()) as started, caplog.at_level(logging.ERROR):
        answer = started.http.post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert "secret" not in answer.text
    assert "path" not in answer.text
    assert error["code"] == "internal_error"
    (entry,) = (record for record in caplog.records if record.exc_info)
    assert error["message"].endswith(entry.args[0])
    assert "a secret" in str(entry.exc_info[1])


def test_pages_of_named_origins_may_use_it(nano: DiffusionGemmaModel) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with running(nano, api_key=KEY, origins=("https://a.example",)) as server:
        for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
            before = server.http.options("/v1/chat/completions", headers={"Origin": origin, **asks})
            assert before.headers.get("access-control-allow-origin") == allowed
            answer = server.http.get("/v1/models", headers={"Origin": origin, "Authorization": f"Bearer {KEY}"})
            assert answer.status_code == 200 and answer.headers.get("access-control-allow-origin") == allowed
        assert server.http.get("/v1/models", headers={"Origin": "https://a.example"}).status_code == 401
    with running(nano) as server:
        assert "access-control-allow-origin" not in server.http.get("/v1/models", headers={"Origin": "https://a.example"}).headers


def test_anthropics_way_to_send_the_key(guarded: Running) -> None:
    assert guarded.http.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
    assert guarded.http.get("/v1/models", headers={"x-api-key": "wrong"}).status_code == 401


def test_a_log_of_requests(nano: DiffusionGemmaModel, caplog: pytest.LogCaptureFixture) -> None:
    with running(nano, log_requests=True) as server, caplog.at_level("INFO", "diffusiongemma.server.requests"):
        server.http.get("/v1/models")
        until(lambda: bool(caplog.messages))
    assert re.fullmatch(r"127.0.0.1 GET /v1/models 200 0\.\d{3} s", caplog.messages[0])
