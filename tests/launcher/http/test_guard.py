"""What every HTTP request passes: hosts, origins, keys, ids, and errors of one shape."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http.http_requests import NOWHERE, error_of
from tests.launcher.http_servers import PATH, PROMPT, events_of, http_server, http_server_without_engine


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("[", 403),
        ("evil@localhost", 403),
        ("localhost#.evil", 403),
        ("localhost?.evil", 403),
        ("localhost/.evil", 403),
        ("localhost\\.evil", 403),
        ("localhost:1:2", 403),
        ("localhost:\u0661".encode(), 403),
        ("localhost:x", 403),
        ("local host", 403),
        ("[::1", 403),
        ("::1", 403),
        ("[127.0.0.1]", 403),
        ("", 403),
    ],
)
def test_a_loopback_server_answers_no_other_host_name(host: str | bytes, status: int) -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            answer = await client.get("/v1/models", headers={"Host": host})  # type: ignore[arg-type]
            assert answer.status_code == status
            if status == 403:
                assert error_of(answer)["code"] == "host_not_allowed"

    run(test())


def test_a_server_for_other_machines_answers_any_host_name() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE, host="0.0.0.0") as client:
            for host in ("images.example", "IMAGES.example:1", "[2001:db8::1]:80", "x_1", ""):
                assert (await client.get("/docs", headers={"Host": host})).status_code == 200
            for host in ("evil@images.example", "images.example#", "images.example/x", "[images.example]"):
                answer = await client.get("/docs", headers={"Host": host})
                assert (answer.status_code, error_of(answer)["code"]) == (403, "host_not_allowed")

    run(test())


def test_a_page_of_somebody_else_cannot_post() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://["):
                answer = await client.post(PATH, json={"prompt": PROMPT}, headers={"Origin": origin})
                assert answer.status_code == 403
                assert error_of(answer)["code"] == "origin_not_allowed"
            own = await client.post(PATH, json={"prompt": PROMPT}, headers={"Origin": str(client.base_url)})
            assert own.status_code == 503

    run(test())


def test_behind_a_proxy_other_names_are_allowed_and_links_begin_with_the_public_url(run_folder: Path) -> None:
    async def test() -> None:
        settings = {"allowed_hosts": ("Images.Example",), "public_url": "https://images.example:443/krea/"}
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, **settings) as client:
            for host, status in (("images.example", 200), ("images.example:8443", 200), ("a.images.example", 403)):
                assert (await client.get("/docs", headers={"Host": host})).status_code == status
            body = {"prompt": PROMPT, "response_format": "url"}
            for origin, status in (
                ("https://images.example", 200),
                ("http://images.example", 403),
                ("https://images.example:1", 403),
            ):
                answer = await client.post(PATH, json=body, headers={"Origin": origin})
                assert answer.status_code == status, origin
                if status == 200:
                    begin, _, path = answer.json()["data"][0]["url"].partition("/krea/")
                    assert begin == "https://images.example:443"
                    assert (await client.get(f"/{path}")).status_code == 200

    run(test())


def test_links_that_begin_with_the_public_url_may_be_followed_through_a_proxy_that_passes_on_its_name() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE, public_url="https://Images.example:8443/krea") as client:
            for host, status in (("images.example:8443", 200), ("images.example", 200), ("evil.example", 403)):
                assert (await client.get("/docs", headers={"Host": host})).status_code == status, host

    run(test())


def test_keys_are_asked_for_where_they_are_needed() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE, api_keys=("first", "zweiter ☺")) as client:
            for path in ("/v1/models", "/v1/settings", "/metrics", "/v1/nothing"):
                for sent in ("", "Bearer", "Bearer wrong", "Basic first", "Bearer first2"):
                    answer = await client.get(path, headers={"Authorization": sent})
                    assert answer.status_code == 401, (path, sent)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert error_of(answer)["code"] == "invalid_api_key"
            for key in ("first", "zweiter ☺"):
                headers = {"Authorization": f"Bearer {key}".encode()}
                assert (await client.get("/v1/models", headers=headers)).status_code == 200  # type: ignore[arg-type]
            for path in ("/health", "/docs", "/openapi.json"):
                assert (await client.get(path, headers={"Authorization": ""})).status_code == 200

    run(test())


def test_without_keys_an_authorization_header_is_ignored() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            answer = await client.get("/v1/settings", headers={"Authorization": "Bearer anything"})
            assert answer.json()["api_key_required"] is False

    run(test())


def test_what_is_not_there_is_answered_in_the_same_shape() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            for method, path, status, code in (
                ("GET", "/nothing", 404, "not_found"),
                ("GET", "/page/nothing", 404, "not_found"),
                ("GET", "/page/../app.py", 404, "not_found"),
                ("GET", "/v1/models/nothing", 404, "model_not_found"),
                ("GET", PATH, 405, "method_not_allowed"),
                ("DELETE", "/health", 405, "method_not_allowed"),
                ("OPTIONS", "/", 405, "method_not_allowed"),
                ("OPTIONS", "/page/index.html", 405, "method_not_allowed"),
                ("POST", "/docs", 405, "method_not_allowed"),
                ("PUT", "/openapi.json", 405, "method_not_allowed"),
            ):
                answer = await client.request(method, path)
                assert (answer.status_code, error_of(answer)["code"]) == (status, code)
            for path, methods in (("/ready", "GET, HEAD, OPTIONS"), ("/page/index.html", "GET, HEAD")):
                assert (await client.put(path)).headers["Allow"] == methods
            form = await client.post(PATH, data={"prompt": PROMPT})
            assert (form.status_code, error_of(form)["code"]) == (415, "unsupported_media_type")

    run(test())


def test_what_a_client_sends_at_length_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            for method, path, headers in (
                ("GET", "/" + "x" * 20_000, {}),
                ("M" * 20_000, "/v1/models", {}),
                ("GET", "/v1/models/" + "x" * 20_000, {}),
                ("GET", "/v1/models", {"Host": "x" * 20_000}),
                ("POST", "/v1/models", {"Origin": "http://" + "x" * 20_000}),
            ):
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code in (400, 403, 404, 405)
                assert len(answer.content) < 1000
            fields = [record.fields for record in caplog.records if record.message == "http"]  # type: ignore[attr-defined]
            assert len(fields) == 5
            assert max(len(str(each)) for each in fields) < 1000

    caplog.set_level("INFO", "krea2")
    run(test())


def test_a_mistake_of_ours_is_told_as_every_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            monkeypatch.setattr("launcher.http.apis.server_state.OUTPUT_FORMATS", object())  # which no JSON holds
            answer = await client.get("/v1/settings")
            assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
            assert (await client.get("/health")).status_code == 200

    run(test())


def test_head_is_answered_as_get_without_the_body(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            made = await client.post(PATH, json={"prompt": PROMPT, "response_format": "url"})
            for path in ("/", "/favicon.ico", "/health", "/ready", "/page/index.html", made.json()["data"][0]["url"]):
                head, get = await client.head(path), await client.get(path)
                assert (head.status_code, head.content) == (200, b""), path
                for name in ("content-length", "content-type"):
                    assert head.headers[name] == get.headers[name]

    run(test())


def test_without_an_engine_it_is_alive_but_not_ready() -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            assert (await client.get("/health")).status_code == 200
            for answer in (await client.get("/ready"), await client.post(PATH, json={"prompt": PROMPT})):
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                assert error_of(answer)["code"] == "server_unavailable"
            assert b"krea2_http_requests_total" in (await client.get("/metrics")).content

    run(test())


def test_a_clients_request_id_goes_all_the_way_unless_it_is_not_one(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            answer = await client.post(PATH, json={"prompt": PROMPT}, headers={"X-Request-ID": "mine-1"})
            assert (answer.headers["x-request-id"], answer.json()["request_id"]) == ("mine-1", "mine-1")
            for bad in ("x" * 65, "two words", "new\tline"):
                answer = await client.get("/health", headers={"X-Request-ID": bad})
                assert answer.headers["x-request-id"] not in ("", bad)
            both = await asyncio.gather(
                *(client.post(PATH, json={"prompt": PROMPT}, headers={"X-Request-ID": "same"}) for _ in range(2))
            )
            assert [answer.status_code for answer in both] == [200, 200]
            assert [answer.json()["request_id"] for answer in both] == ["same", "same"]
            longest = "x" * 64
            answer = await client.post(PATH, json={"prompt": PROMPT}, headers={"X-Request-ID": longest})
            assert (answer.status_code, answer.json()["request_id"]) == (200, longest)

    run(test())


def test_progress_is_sent_to_those_who_ask(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            body = {"prompt": PROMPT, "steps": 2, "stream": True, "progress": True}
            answer = await client.post(PATH, json=body, headers={"X-Request-ID": "mine"})
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = events_of(answer.text)
            names = [name for name, _ in events]
            assert names[0] == "image_generation.accepted"
            assert names[-1] == "image_generation.completed"
            assert set(names[1:-1]) == {"image_generation.progress"}
            assert all(data["type"] == name and data["request_id"] == "mine" for name, data in events)
            accepted, progress = events[0][1], events[-2][1]
            assert set(accepted) == {"type", "request_id", "position", "estimated_s", "attempt", "warnings"}
            assert set(progress) == {"type", "request_id", "step", "steps", "estimated_s", "attempt"}
            assert (progress["step"], progress["steps"]) == (2, 2)
            quiet = await client.post(PATH, json={"prompt": PROMPT, "steps": 2, "stream": True})
            assert [name for name, _ in events_of(quiet.text)] == ["image_generation.completed"]

    run(test())


def test_requests_are_counted_by_route(run_folder: Path) -> None:
    async def test() -> None:
        async with fake_engine(run_folder) as fakes, http_server(fakes.address) as client:
            for path in ("/v1/models/a", "/v1/models/b", "/somewhere", "/elsewhere"):
                await client.get(path)
            await client.request("GIBBERISH", "/health")
            answer = await client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=")
            lines = answer.text.splitlines()
            assert 'krea2_http_requests_total{method="GET",route="/v1/models/{name:path}",status="404"} 2.0' in lines
            assert 'krea2_http_requests_total{method="GET",route="other",status="404"} 2.0' in lines
            assert 'krea2_http_requests_total{method="other",route="/health",status="405"} 1.0' in lines
            assert any(line.startswith("krea2_http_request_seconds_bucket") for line in lines)

    run(test())
