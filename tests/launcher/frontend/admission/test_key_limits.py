"""How much each key may have."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ArgumentError, RateLimitedError
from launcher.client.async_client import AsyncClient
from launcher.frontend.admission.key_limits import Allowances, InFlight, KeyLimit, KeyLimits
from launcher.frontend.delivery.metrics import Metrics
from launcher.messages.api_keys import ApiKey
from launcher.messages.client_messages import Accepted, Generate
from launcher.messages.keys import make_keys
from launcher.messages.limits import Limits
from launcher.messages.own_clients import OwnClients
from tests.launcher.fake_ranks import fake_engine, run
from tests.launcher.http.http_requests import error_of
from tests.launcher.http_servers import PATH, PROMPT, http_server

NOTHING = InFlight(0, 0, None)


def limits(tmp_path: Path, text: str) -> str:
    file = tmp_path / "limits.toml"
    file.write_text(text)
    return str(file)


# ---- the file


def test_a_file_has_what_all_may_have_and_what_is_different_for_some(tmp_path: Path) -> None:
    text = """
        [default]
        concurrency = 8
        requests_per_minute = 0.5
        [keys.alice]
        concurrency = 32
        queue_share = 1
        [keys.anonymous]
        priority_max = -1
        [keys."bob.smith"]
    """
    read = KeyLimits.read(limits(tmp_path, text))
    assert read.of("alice") == KeyLimit(concurrency=32, requests_per_minute=0.5, queue_share=1)
    assert read.of("anonymous") == KeyLimit(concurrency=8, requests_per_minute=0.5, priority_max=-1)
    assert read.of("bob.smith") == read.of("nobody") == KeyLimit(concurrency=8, requests_per_minute=0.5)
    assert KeyLimits.read(limits(tmp_path, "")).of("alice") == KeyLimit()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[default", "it is not TOML: "),
        ("x = 1", "unknown x, allowed are default, keys"),
        ("[key.alice]", r"unknown key: did you mean keys\?"),
        ("[default]\nconcurency = 1", r"unknown default.concurency: did you mean concurrency\?"),
        ("[keys.alice]\nrps = 1", "unknown keys.alice.rps, allowed are concurrency, requests_per_minute, queue_share"),
        ("[default]\nconcurrency = 0", "default.concurrency must be a whole number between 1 and 1000000, got 0"),
        ("[default]\nconcurrency = 1.5", "default.concurrency must be a whole number .* got 1.5"),
        ("[default]\nconcurrency = true", "default.concurrency must be a whole number .* got True"),
        ('[keys.a]\nconcurrency = "2"', "keys.a.concurrency must be a whole number .* got 2"),
        ("[default]\nrequests_per_minute = nan", "requests_per_minute must be a number between 0.001 and .* got nan"),
        ("[default]\nrequests_per_minute = inf", "requests_per_minute must be a number .* got inf"),
        ("[default]\nqueue_share = 0", "queue_share must be a number above 0 and at most 1, got 0"),
        ("[default]\nqueue_share = 1.1", "queue_share must be a number above 0 and at most 1, got 1.1"),
        ("[default]\npriority_max = 101", "priority_max must be a whole number between -100 and 100, got 101"),
        ("default = 3", "default must be a table, got 3"),
        ("[keys]\nalice = 3", "keys.alice must be a table, got 3"),
        ('[keys."al/ice"]', "keys.'al/ice': a name must be 1 to 64 letters"),
        ("x = " + "[" * 5000, "it is not TOML|unknown x"),
        ("[default]\nconcurrency = " + "9" * 5000, "it is not TOML: .*4300 digits"),
        ("[default]\nconcurrency = 0x" + "f" * 5000, "concurrency must be a whole number .* too long to be shown"),
        ("default = [0x" + "f" * 5000 + "]", "default must be a table, got a number that is too long"),
    ],
)
def test_a_damaged_file_is_told_with_table_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    file = limits(tmp_path, text)
    with pytest.raises(ArgumentError, match=message) as damaged:
        KeyLimits.read(file)
    assert damaged.value.message.startswith(f"key_limits {file}: ")
    assert damaged.value.parameter == "key_limits"


# ---- what a key has had


def take(allowances: Allowances, caller: str, now: float) -> None:
    allowances.check(caller, 0, NOTHING, now)
    allowances.count(caller, now)


def test_the_rate_is_a_minute_s_requests_at_once_and_then_one_by_one(tmp_path: Path) -> None:
    allowances = Allowances(
        256, limits(tmp_path, "[default]\nrequests_per_minute = 3\n[keys.slow]\nrequests_per_minute = 0.5")
    )
    for _ in range(3):
        take(allowances, "alice", now=100.0)
    told = r"the key alice may send 3 requests a minute \(requests_per_minute\): try again in about 20 s"
    with pytest.raises(RateLimitedError, match=told) as refused:
        take(allowances, "alice", now=100.0)
    assert refused.value.retry_after_s == pytest.approx(20)
    take(allowances, "bob", now=100.0)
    with pytest.raises(RateLimitedError):
        take(allowances, "alice", now=119.9)
    take(allowances, "alice", now=120.1)
    for _ in range(3):
        take(allowances, "alice", now=1000.0)
    with pytest.raises(RateLimitedError):
        take(allowances, "alice", now=1000.0)
    take(allowances, "slow", now=0.0)
    with pytest.raises(RateLimitedError, match="about 120 s"):
        take(allowances, "slow", now=0.0)


def test_what_runs_and_what_waits_is_bounded_and_a_refusal_costs_nothing(tmp_path: Path) -> None:
    text = "[default]\nconcurrency = 4\nqueue_share = 0.01\nrequests_per_minute = 1\npriority_max = 2"
    allowances = Allowances(256, limits(tmp_path, text))
    told = r"the key alice has 4 requests that have not ended, and may have 4 \(concurrency\): try again in about 8 s"
    with pytest.raises(RateLimitedError, match=told) as refused:
        allowances.check("alice", 0, InFlight(4, 0, 7.5), now=0.0)
    assert refused.value.retry_after_s == 7.5
    with pytest.raises(RateLimitedError, match=r"has 2 requests that wait, and may have 2 \(queue_share\).* about 1 s"):
        allowances.check("alice", 0, InFlight(3, 2, None), now=0.0)
    with pytest.raises(ArgumentError, match="priority must be at most 2 with the key alice, got 3"):
        allowances.check("alice", 3, NOTHING, now=0.0)
    for _ in range(2):  # the first was not taken, for another reason
        allowances.check("alice", 2, InFlight(3, 1, None), now=0.0)


def test_a_share_of_the_queue_is_one_request_at_least(tmp_path: Path) -> None:
    allowances = Allowances(10, limits(tmp_path, "[default]\nqueue_share = 0.001"))
    allowances.check("alice", 0, NOTHING, now=0.0)


def test_metrics_have_as_many_names_as_a_bound() -> None:
    metrics = Metrics()
    for number in range(3000):
        metrics.count_outcome("done", f"key-{number}")
    metrics.count_outcome("done", "key-7")
    lines = [line for line in metrics.render(()).decode().splitlines() if line.startswith("krea2_key_requests_total{")]
    assert len(lines) == 1001
    assert 'krea2_key_requests_total{key="other",outcome="done"} 2000.0' in lines
    assert 'krea2_key_requests_total{key="key-7",outcome="done"} 2.0' in lines


# ---- over HTTP and RPC


KEYS = tuple(ApiKey(name=name, key=f"{name}-key") for name in ("alice", "bob"))


def by(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-key"}


def test_a_key_that_floods_leaves_the_others_their_place(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Over two HTTP processes, whose limits are one."""
    file = limits(tmp_path, "[keys.alice]\nconcurrency = 3")

    async def test() -> None:
        own = OwnClients()
        servers = [{"client_name": own.add(), "file_keys": KEYS, "api_key_file": "keys"} for _ in range(2)]
        async with (
            fake_engine(run_folder, own_clients=own, key_limits=file, limits=Limits(max_queue=4)) as fakes,
            http_server(fakes.address, **servers[0]) as first,
            http_server(fakes.address, **servers[1]) as second,
        ):
            fakes.ranks[0].hold = True
            body = {"prompt": PROMPT, "steps": 2}
            flood = [
                asyncio.create_task(server.post(PATH, json=body, headers=by("alice")))
                for server in (first, second)
                for _ in range(10)
            ]
            done = []
            while len(done) < 17:
                done = [call.result() for call in flood if call.done()]
                await asyncio.sleep(0.01)
            assert {(answer.status_code, error_of(answer)["code"]) for answer in done} == {(429, "rate_limited")}
            assert all("concurrency" in error_of(answer)["message"] for answer in done)
            assert all(error_of(answer)["type"] == "rate_limit_error" for answer in done)
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in done)
            served = asyncio.create_task(second.post(PATH, json=body, headers=by("bob")))
            async with AsyncClient(fakes.address) as rpc:
                while (await rpc.status()).running + (await rpc.status()).waiting < 4:
                    await asyncio.sleep(0.01)
            fakes.ranks[0].resume()
            assert (await served).status_code == 200
            assert [answer.status_code for answer in await asyncio.gather(*flood)].count(200) == 3
            text = (await first.get("/metrics", headers=by("bob"))).text
            for key, outcome, count in (("alice", "done", 3), ("alice", "rate_limited", 17), ("bob", "done", 1)):
                assert f'krea2_key_requests_total{{key="{key}",outcome="{outcome}"}} {count}.0' in text

    with caplog.at_level(logging.INFO, logger="krea2"):
        run(test())
    logged = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert {entry.get("key") for entry in logged if entry.get("path") == PATH} == {"alice", "bob"}
    assert "alice-key" not in json.dumps(logged, default=str)


def test_idempotency_keys_of_one_api_key_mean_nothing_to_another(run_folder: Path) -> None:
    async def test() -> None:
        own = OwnClients()
        async with (
            fake_engine(run_folder, own_clients=own) as fakes,
            http_server(fakes.address, client_name=own.add(), file_keys=KEYS) as client,
        ):
            answers = [
                await client.post(PATH, json={"prompt": PROMPT}, headers={**by(name), "Idempotency-Key": "1"})
                for name in ("alice", "bob", "alice")
            ]
            seeds = [answer.json()["seed"] for answer in answers]
            assert seeds[0] == seeds[2] != seeds[1]

    run(test())


def test_an_rpc_client_is_known_by_its_own_key_and_nothing_else(run_folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    alice, bob = make_keys(keys, "alice"), make_keys(keys, "bob")
    file = limits(tmp_path, "[keys.alice]\nrequests_per_minute = 2")

    async def test() -> None:
        config: dict[str, Any] = {"rpc": "tcp://127.0.0.1:0", "rpc_keys": str(keys), "key_limits": file}
        async with (
            fake_engine(run_folder, **config) as fakes,
            AsyncClient(fakes.address, key=alice) as mine,
            AsyncClient(fakes.address, key=bob) as theirs,
        ):
            for _ in range(2):
                assert (await mine.generate(PROMPT, steps=1)).seeds
            with pytest.raises(RateLimitedError, match="the key alice may send 2 requests a minute"):
                await mine.generate(PROMPT, steps=1)
            for _ in range(4):
                assert (await theirs.generate(PROMPT, steps=1)).seeds
            with pytest.raises(ArgumentError, match="caller must be left out"):
                await anext(mine.follow(Generate(request_id="another's", prompt=PROMPT, caller="bob")))
            text = (await mine.metrics()).decode()
            assert 'krea2_key_requests_total{key="alice",outcome="done"} 2.0' in text
            assert 'krea2_key_requests_total{key="bob",outcome="done"} 4.0' in text

    run(test())


def test_a_client_whose_key_is_taken_away_gets_what_it_has_asked_for_and_no_more(
    run_folder: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    alice, bob = make_keys(keys, "alice"), make_keys(keys, "bob")

    async def test() -> None:
        async with (
            fake_engine(run_folder, rpc="tcp://127.0.0.1:0", rpc_keys=str(keys)) as fakes,
            AsyncClient(fakes.address, key=alice) as mine,
            AsyncClient(fakes.address, key=bob) as theirs,
        ):
            fakes.ranks[0].hold = True
            events = mine.stream(PROMPT, steps=3)
            assert isinstance(await anext(events), Accepted)
            (keys / "clients" / "alice.key").unlink()
            carol = make_keys(keys, "carol")
            (read,) = fakes.frontend.key_files.values()
            assert read() == 2
            for refused in (mine.generate(PROMPT), mine.status(), mine.loras()):
                with pytest.raises(Exception, match="the client's key is no longer among those that are let in"):
                    await refused
            fakes.ranks[0].resume()
            assert [event async for event in events]
            async with AsyncClient(fakes.address, key=carol) as added:
                assert (await added.generate(PROMPT, steps=1)).seeds
            assert (await theirs.generate(PROMPT, steps=1)).seeds
            (keys / "clients" / "bob.key").write_text("damaged")
            with pytest.raises(ArgumentError, match="rpc_keys must be a folder"):
                read()
            assert (await theirs.generate(PROMPT, steps=1)).seeds

    run(test())
