"""SIGHUP has files of keys read again in a server that has some."""

from __future__ import annotations

import os
import signal
from typing import Any

import httpx

from launcher.messages.keys import make_keys
from tests.launcher.processes import PATIENCE_S, Marked, read_log, wait_until


def test_keys_come_and_go_without_a_restart_and_a_damaged_file_leaves_what_was(marked: Marked) -> None:
    marked.use_hollow_ranks()
    keys, log = marked.folder / "keys", marked.folder / "log"
    folder, limits = marked.folder / "rpc-keys", marked.folder / "limits.toml"
    make_keys(folder, "laptop")
    limited = ("alice", "api-key-1", "laptop", "server", "bob", "alicia")
    limits.write_text("".join(f"[keys.{name}]\n" for name in limited))
    keys.write_text("alice first-key\n")
    with log.open("w") as stderr:
        server = marked.start_krea2(
            "serve", "--device", "cpu", "--port", "0", "--api-key-file", str(keys), "--api-key", "another",
            "--key-limits", str(limits), "--rpc", "tcp://127.0.0.1:0", "--rpc-keys", str(folder), stderr=stderr,
        )  # fmt: skip
    assert server.stdout is not None
    url = server.stdout.readline().strip().removeprefix("http: ")
    assert server.stdout.readline()

    def logged(event: str) -> list[dict[str, Any]]:
        return [entry for entry in read_log(log) if entry["event"] == event]

    def read_again() -> list[object]:
        return [entry["keys"] for entry in logged("keys read again") if entry["file"] == str(keys)]

    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:

        def status(key: str) -> int:
            return client.get("/v1/settings", headers={"Authorization": f"Bearer {key}"}).status_code

        wait_until(lambda: client.get("/health").status_code == 200, "an answer")
        assert (status("first-key"), status("second-key")) == (200, 401)
        keys.write_text("alice first-key\nalice second-key\nbob bob-key\n")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: status("second-key") == 200, "the second key")
        assert status("first-key") == 200
        wait_until(lambda: len(logged("limits of no key")) == 3, "another warning")
        warnings = [(entry["key"], entry.get("near")) for entry in logged("limits of no key")]
        assert warnings == [("bob", None), ("alicia", "alice"), ("alicia", "alice")]
        keys.unlink()
        os.mkfifo(keys)  # stands for a disk that hangs just then
        (http,) = marked.alive("_http")
        http.send_signal(signal.SIGHUP)
        with keys.open("w") as pipe:  # which waits for a reader, as that does for us
            assert (status("second-key"), status("third-key")) == (200, 401)
            pipe.write("alice first-key\nalice second-key\nbob third-key\n")
        wait_until(lambda: status("third-key") == 200, "the third key")
        assert marked.alive("_http") == [http]
        keys.unlink()
        keys.write_text("alice\tsecond-key one too many\n")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: bool(logged("keys not read again")), "the complaint")
        assert status("second-key") == 200
        keys.write_text("alice second-key\n")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: status("first-key") == 401, "the end of the first key")
        wait_until(lambda: read_again() == [3, 1], "word of it, which comes after it")
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert read_again() == [3, 1]
    (complaint,) = logged("keys not read again")
    assert "line 1 must be NAME KEY or KEY" in str(complaint["message"])
    assert "second-key" not in log.read_text()
    assert {
        entry.get("key") for entry in logged("http") if entry.get("status") == 200 and entry["path"] != "/health"
    } == {"alice", "bob"}
    marked.expect_nothing_left()
