"""The routes that draw nothing: the page, the description, health, readiness, status, metrics and lists."""

from __future__ import annotations

import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import engine
from tests.launcher.http_servers import PATH
from tests.launcher.processes import PATIENCE_S
from tests.launcher.ray.both.sent import BODY, refused
from tests.launcher.ray.servers import KEY, Served

pytestmark = pytest.mark.cluster
# For anybody:
OPEN = ("/", "/health", "/ready", "/docs", "/openapi.json", "/favicon.ico", "/internal/ping", "/version", "/license")


def without_key(server: Served, method: str, path: str, **headers: str) -> httpx.Response:
    return server.ask(method, path, headers={"Authorization": "", **headers})


def test_every_route_of_the_description_that_only_reads_is_there(server: Served) -> None:
    described = server.ask("GET", "/openapi.json").json()
    assert described["info"]["version"] == engine.__version__
    paths = {path for path, methods in described["paths"].items() if "get" in methods and "{" not in path}
    assert {"/v1/models", "/v1/status", "/v1/loras", "/metrics", "/sdapi/v1/progress"} <= paths
    assert {PATH, "/v1/images/edits", "/v1/chat/completions", "/sdapi/v1/img2img"} <= {*described["paths"]}
    for path in sorted(paths):
        answer = server.ask("GET", path)
        assert answer.status_code == 200, (path, answer.text)
        assert len(answer.headers.get_list("x-request-id")) == 1, path


def test_head_is_get_without_its_body_and_options_are_for_probes(server: Served) -> None:
    for path in (*OPEN, "/page/index.html", "/v1/models", "/v1/settings"):
        head, get = server.ask("HEAD", path), server.ask("GET", path)
        assert (head.status_code, head.content) == (get.status_code, b"") == (200, b""), path
        if path != "/ready":  # whose numbers may be others
            assert head.headers["content-length"] == get.headers["content-length"], path
        assert head.headers["content-type"] == get.headers["content-type"]
    for path in ("/health", "/ready"):
        assert server.ask("OPTIONS", path).status_code == 200
    refusal = server.ask("OPTIONS", PATH)
    assert (refusal.status_code, refusal.headers["allow"]) == (405, "POST")


def test_the_page_and_its_files_are_for_anybody(server: Served) -> None:
    page = without_key(server, "GET", "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    files = {*re.findall('(?:href|src)="([a-z][^"]+)"', page.text)} - {"docs", "license", "openapi.json"}
    assert files
    for path in files:
        file = without_key(server, "GET", f"/{path}")
        assert (file.status_code, file.headers.get("cache-control")) == (200, "no-cache"), path
    assert without_key(server, "GET", "/", **{"If-None-Match": page.headers["etag"]}).status_code == 304
    assert without_key(server, "GET", f"{server.url}//page//index.html").status_code == 200
    for path in OPEN:
        assert without_key(server, "GET", path).status_code == 200, path


def test_its_state_is_told(server: Served) -> None:
    assert server.ask("GET", "/health").json() == {"status": "ok"}
    ready = server.ask("GET", "/ready").json()
    assert ready.items() >= {"status": "ready", "waiting": 0, "running": 0}.items()
    assert ready["backlog_s"] == 0
    status = server.ask("GET", "/v1/status").json()
    expected = {"model": "krea", "version": engine.__version__, "device": "cpu", "ready": True, "not_ready": None}
    assert status.items() >= (expected | {"tp": 1, "sp": 1, "restarts": 0}).items()
    assert [model["id"] for model in server.ask("GET", "/v1/models").json()["data"]] == ["krea", "krea-2-turbo"]
    assert server.ask("GET", "/v1/models/krea").json()["id"] == "krea"
    settings = server.ask("GET", "/v1/settings").json()
    assert settings.items() >= {"model": "krea", "is_demo": True, "api_key_required": True}.items()
    loras = server.ask("GET", "/v1/loras").json()
    assert [lora["name"] for lora in loras["data"]] == ["ink"]
    assert not loras["loadable"]


def test_loras_cannot_be_loaded_or_unloaded_where_none_may_be(server: Served) -> None:
    for answer in (server.post("/v1/loras", {"name": "oil"}), server.ask("DELETE", "/v1/loras/ink")):
        assert 400 <= answer.status_code < 500, answer.text
        assert refused(answer)["error"]["message"]
    assert [lora["name"] for lora in server.ask("GET", "/v1/loras").json()["data"]] == ["ink"]


def test_metrics_are_of_http_and_of_the_engine(server: Served) -> None:
    assert server.post(PATH, BODY).status_code == 200
    answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    drawn = [sample for sample in families["krea2_http_requests"].samples if sample.labels.get("route") == PATH]
    assert sum(sample.value for sample in drawn if sample.labels["status"] == "200") >= 1
    for name in ("krea2_requests_waiting", "krea2_requests_running", "krea2_backlog_seconds"):
        assert name in families, sorted(families)
    assert without_key(server, "GET", "/metrics").status_code == 401


def test_a_clients_request_id_comes_back_once_and_another_is_made_where_it_is_none(server: Served) -> None:
    for path, sent in (("/health", None), ("/nothing", None), (PATH, BODY)):
        method = "GET" if sent is None else "POST"
        answer = server.ask(method, path, headers={"X-Request-ID": "mine-1"}, json=sent)
        assert answer.headers.get_list("x-request-id") == ["mine-1"], path
        if sent is not None:
            assert answer.json()["request_id"] == "mine-1"
        for bad in ("x" * 65, "two words"):
            (made,) = server.ask(method, path, headers={"X-Request-ID": bad}, json=sent).headers.get_list(
                "x-request-id"
            )
            assert made not in ("", bad)


def test_keys_are_bearers_or_passwords_of_a1111(server: Served) -> None:
    password = httpx.BasicAuth("anybody", KEY)
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        assert client.get("/sdapi/v1/options", auth=password).status_code == 200
        assert client.get("/v1/models", auth=password).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
