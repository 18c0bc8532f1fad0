"""One key floods and the others are served, keys change while a server runs, nothing is made twice: at two HTTP
processes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from subprocess import Popen

import httpx
import psutil
import pytest

from tests.launcher.http.http_requests import error_of
from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.processes import PATIENCE_S, Marked, read_log, wait_until

IMAGE = {"prompt": PROMPT, "size": "128x128", "steps": 8}
MOST_MEANWHILE = 30  # images of a flood of 48 at once, while another's is made: some 45 if that were one of them
LIMITS = """
[default]
concurrency = 16
[keys.flood]
concurrency = 4
queue_share = 0.02
priority_max = 0
"""
# A repetition may come late.
PATIENT = f"""
import sys
if "serve" in sys.orig_argv:
    from launcher.frontend import live_requests
    live_requests._LINGER_S = {PATIENCE_S}
"""


def by(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-key"}


class Served:
    """A server of the demo checkpoint with keys, two HTTP processes, and a log."""

    def __init__(self, marked: Marked, folder: Path) -> None:
        self.keys, self.limits, self.log = folder / "keys", folder / "limits.toml", folder / "log"
        self.keys.write_text("flood flood-key\ncalm calm-key\nprobe probe-key\n")
        self.keys.chmod(0o600)
        self.limits.write_text(LIMITS)
        files = ("--api-key-file", str(self.keys), "--key-limits", str(self.limits))
        with self.log.open("w") as log:
            self.process: Popen[str] = marked.start_krea2(
                "serve", "--device", "cpu", "--port", "0", "--http-workers", "2", *files, stderr=log
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip().removeprefix("http: ")
        assert self.process.stdout.readline()
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S) as client:
            wait_until(lambda: client.get("/ready").status_code == 200, "readiness")

    def logged(self, event: str) -> list[dict[str, object]]:
        return [entry for entry in read_log(self.log) if entry["event"] == event]

    def hang_up(self, files: int) -> None:
        """Have the files read again, and wait until the front-end has read so many more of them, well or not."""
        events = ("keys read again", "keys not read again")
        before = sum(len(self.logged(event)) for event in events)
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: sum(len(self.logged(event)) for event in events) >= before + files, "reading again")


@pytest.mark.slow
def test_one_key_floods_and_the_others_are_served(marked: Marked, run_folder: Path) -> None:
    served = Served(marked, run_folder)

    async def flood(client: httpx.AsyncClient, until: asyncio.Event, answers: list[httpx.Response]) -> None:
        while not until.is_set():
            answers.append(await client.post(PATH, json=IMAGE, headers=by("flood")))
            await asyncio.sleep(0.05)  # so that it is the engine that is flooded, not these cores

    async def flooded(client: httpx.AsyncClient) -> float:
        """How many images the flood has had."""
        text = (await client.get("/metrics", headers=by("probe"))).text
        (done,) = re.findall(r'^krea2_key_requests_total\{key="flood",outcome="done"\} (\S+)', text, re.MULTILINE)
        return float(done)

    async def ask(client: httpx.AsyncClient) -> float:
        """Have an image made. Returns how many the flood had meanwhile."""
        before = await flooded(client)
        answer = await client.post(PATH, json=IMAGE, headers=by("calm"))
        assert answer.status_code == 200, answer.text
        return await flooded(client) - before

    async def test() -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S) as client:
            answers: list[httpx.Response] = []
            enough = asyncio.Event()
            flooding = [asyncio.create_task(flood(client, enough, answers)) for _ in range(48)]
            while sum(answer.status_code == 429 for answer in answers) < 200:
                await asyncio.sleep(0.05)
            meanwhile = [await ask(client) for _ in range(10)]
            greedy = await client.post(PATH, json=IMAGE | {"priority": 1}, headers=by("flood"))
            hopeless = await client.post(PATH, json=IMAGE | {"steps": 200, "timeout_s": 0.01}, headers=by("calm"))
            enough.set()
            await asyncio.gather(*flooding)
            print(f"{len(answers)} answers to the flood, images of it while one of another's was made: {meanwhile}")
            assert (greedy.status_code, error_of(greedy)["param"]) in ((400, "priority"), (429, None))
            assert (hopeless.status_code, error_of(hopeless)["code"]) == (429, "queue_full")
            assert int(hopeless.headers["retry-after"]) >= 1
            codes = {error_of(answer)["code"] for answer in answers if answer.status_code != 200}
            assert codes == {"rate_limited"}
            assert sum(answer.status_code == 200 for answer in answers) > 4
            # Four images of the flood are under way at most; each may be followed by one that takes as long as ours.
            assert max(meanwhile) <= MOST_MEANWHILE, meanwhile
            text = (await client.get("/metrics", headers=by("probe"))).text
            assert 'krea2_key_requests_total{key="flood",outcome="rate_limited"}' in text
            assert 'krea2_key_requests_total{key="calm",outcome="done"} 10.0' in text

    asyncio.run(test())


@pytest.mark.slow
def test_keys_and_limits_change_while_requests_run(marked: Marked, run_folder: Path) -> None:
    served = Served(marked, run_folder)

    async def statuses(client: httpx.AsyncClient, name: str) -> set[int]:
        """Of connections enough to meet both processes."""
        asked = [client.get("/v1/settings", headers={**by(name), "Connection": "close"}) for _ in range(24)]
        return {answer.status_code for answer in await asyncio.gather(*asked)}

    async def until(client: httpx.AsyncClient, name: str, expected: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await statuses(client, name) != {expected}:
                await asyncio.sleep(0.05)

    async def test() -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S) as client:
            long = IMAGE | {"steps": 200, "size": "256x256"}
            running = asyncio.create_task(client.post(PATH, json=long, headers=by("calm")))
            while "krea2_requests_running 1.0" not in (await client.get("/metrics", headers=by("probe"))).text:
                await asyncio.sleep(0.02)
            (rank,) = marked.alive("_rank")
            rank.send_signal(signal.SIGSTOP)  # it is not done before the keys have changed
            served.keys.write_text("flood flood-key\nprobe probe-key\nadded added-key\n")
            served.limits.write_text("[default]\nrequests_per_minute = 0.01")
            await asyncio.to_thread(served.hang_up, 2)
            await until(client, "calm", 401)
            await until(client, "added", 200)
            assert not running.done()
            rank.send_signal(signal.SIGCONT)
            assert (await running).status_code == 200
            answers = [await client.post(PATH, json=IMAGE, headers=by("added")) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 429]
            assert "requests_per_minute" in error_of(answers[1])["message"]
            assert int(answers[1].headers["retry-after"]) > 30

            served.keys.write_text("# nothing\n")
            served.limits.write_text("[default]\nconcurrency = 0")
            await asyncio.to_thread(served.hang_up, 2)
            assert await statuses(client, "added") == {200}
            assert (await client.post(PATH, json=IMAGE, headers=by("added"))).status_code == 429
            (killed, _) = marked.wait_for("_http", 2)  # the next one has the keys that were last good
            killed.kill()
            wait_until(lambda: killed.pid not in {one.pid for one in marked.alive("_http")}, "its end")
            marked.wait_for("_http", 2)
            await until(client, "added", 200)
            await until(client, "calm", 401)

    asyncio.run(test())
    assert len(served.logged("keys read again")) == 2
    assert len(served.logged("keys not read again")) == 2
    assert "-key" not in "".join(json.dumps(entry) for entry in served.logged("http"))
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    marked.expect_nothing_left()


@pytest.mark.slow
def test_a_repetition_is_not_made_again_whatever_became_of_the_first(marked: Marked, run_folder: Path) -> None:
    marked.run_first(PATIENT)
    served = Served(marked, run_folder)
    body = IMAGE | {"steps": 100, "size": "256x256"}
    address = "127.0.0.2"  # by which the process is known that serves it
    elsewhere = httpx.AsyncHTTPTransport(local_address=address)

    def serves_other(http: psutil.Process) -> bool:
        return address in {one.raddr.ip for one in http.net_connections("tcp") if one.raddr}

    async def test() -> None:
        async with (
            httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S) as client,
            httpx.AsyncClient(base_url=served.url, timeout=PATIENCE_S, transport=elsewhere) as other,
        ):

            async def metrics(line: str) -> None:
                async with asyncio.timeout(PATIENCE_S):
                    while f"\n{line}\n" not in (await client.get("/metrics", headers=by("probe"))).text:
                        await asyncio.sleep(0.02)

            def ask(key: str, client: httpx.AsyncClient = client) -> asyncio.Task[httpx.Response]:
                headers = {**by("calm"), "Idempotency-Key": key}
                return asyncio.create_task(client.post(PATH, json=body, headers=headers))

            hung_up = ask("hang-up")
            await metrics("krea2_requests_running 1.0")
            hung_up.cancel()
            repeated = ask("hang-up")
            await metrics("krea2_repeated_requests_total 1.0")
            first, again = await repeated, await ask("hang-up")
            assert first.status_code == again.status_code == 200
            assert again.headers["idempotent-replayed"] == "true"
            assert first.json()["data"] == again.json()["data"]

            lost = ask("lost process", other)
            await metrics("krea2_requests_running 1.0")
            (rank,) = marked.alive("_rank")
            rank.send_signal(signal.SIGSTOP)  # it is not done before the process is lost
            (serving,) = filter(serves_other, marked.wait_for("_http", 2))
            serving.kill()
            with pytest.raises(httpx.TransportError):
                await lost
            rank.send_signal(signal.SIGCONT)
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        answer = await ask("lost process")
                    except httpx.TransportError:
                        continue
                    if answer.status_code != 503:
                        break
                    await asyncio.sleep(0.1)
            assert answer.status_code == 200
            await metrics('krea2_requests_total{outcome="done"} 2.0')

    asyncio.run(test())
    assert not served.logged("request failed")
