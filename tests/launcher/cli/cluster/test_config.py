"""`krea2 cluster config`: what it writes, refuses and says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from launcher.ray.args import ClusterArgs
from tests.launcher.conftest import Krea2

CONFIG = ("cluster", "config")
NOWHERE = "/nowhere/Krea-2-Turbo"


def test_its_arguments_are_those_that_were_given_and_what_people_change_first(krea2: Krea2) -> None:
    given = ("--tp", "4", "--replicas", "1:50", "--limit", "max_side=2048", "--backlog-target-s", "2.5")
    code, stdout, _ = krea2(*CONFIG, NOWHERE, *given, "--any-model", "--warm-up", "512x512")
    assert code == 0
    config = yaml.safe_load(stdout)
    (application,) = config.pop("applications")
    assert config == {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": 30000},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
    }
    assert application == {
        "name": "krea2",
        "route_prefix": "/",
        "import_path": "launcher.ray:build_app",
        "args": {
            "model": NOWHERE,
            "tp": 4,
            "limits": {"max_side": 2048},
            "any_model": True,
            "min_replicas": 1,
            "max_replicas": 50,
            "backlog_target_s": 2.5,
            "down_delay_s": 300.0,
            "drain_s": 600.0,
            "max_surge_percent": 0,
            "warm_up_sizes": ["512x512"],
        },
    }
    assert ClusterArgs.of(application["args"]).max_replicas == 50


def test_loras_are_declared_where_a_change_restarts_nothing_and_merged_ones_where_it_must(krea2: Krea2) -> None:
    texts = ["ink=/nowhere/ink.safetensors:0.5", "demo-outlined", "pen=someone/pen@v1:1"]
    loras = [part for text in (*texts[:2], "someone/pen@v1") for part in ("--lora", text)]
    (declared,) = yaml.safe_load(krea2(*CONFIG, *loras)[1])["applications"]
    own = {"loras": texts}
    assert declared["deployments"] == [{"name": "engine", "user_config": own}]
    assert "loras" not in declared["args"]
    (merged,) = yaml.safe_load(krea2(*CONFIG, "--lora", "demo-outlined", "--merge-lora")[1])["applications"]
    assert merged["args"]["loras"] == ["demo-outlined"]
    assert "deployments" not in merged


def test_paths_that_are_here_are_whole_in_the_file(
    krea2: Krea2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "turbo – ✎ \U0001f98a").symlink_to(DEMO_CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = krea2(*CONFIG, "turbo – ✎ \U0001f98a", "--audit-log", "audit")
    assert code == 0
    (application,) = yaml.safe_load(stdout)["applications"]
    assert application["args"]["model"] == str(tmp_path / "turbo – ✎ \U0001f98a")
    assert application["args"]["audit_log"] == str(tmp_path / "audit")


def test_filters_are_in_the_file_with_whole_paths_and_weights_without_one_are_warned_of(
    krea2: Krea2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    filters = ["words:list.txt,block=0.5", "words:/nowhere/own.txt", "python:a:B"]
    code, stdout, stderr = krea2(*CONFIG, NOWHERE, *(part for text in filters for part in ("--filter", text)))
    (application,) = yaml.safe_load(stdout)["applications"]
    assert (code, application["args"]["filters"]) == (0, [f"words:{tmp_path}/list.txt,block=0.5", *filters[1:]])
    assert f"not looked into: {NOWHERE}, /nowhere/own.txt" in stderr
    assert "warning" not in stderr
    assert krea2(*CONFIG, NOWHERE)[2].startswith("warning: Krea 2 is served without a content filter")
    assert krea2(*CONFIG, NOWHERE, "--filter", "word")[2].startswith("error: --filter must be NAME")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--key-limits", "x"], "--key-limits would be counted by each replica for itself"),
        (["--rpc", "tcp://127.0.0.1:5"], "--rpc: a cluster is reached over HTTP alone"),
        (["--no-http"], "--no-http: a cluster is reached over HTTP alone"),
        (
            ["--parallel", "auto"],
            "--parallel is for one machine, whose GPUs are known: choose --tp, --sp and --cfg-parallel",
        ),
        (["--share-gpu"], "--share-gpu is for trials on one machine"),
        (["--http-workers", "2"], "--http-workers are --ingress-replicas of a config here: by default one"),
        (["--lora-dir", "/x"], "--lora-dir: a cluster's LoRAs are declared for all engines, each file with --lora"),
        (["--log-format", "text"], "--log-format: the processes of a cluster log JSON"),
        (["--gpu-memory-utilization", "0.9"], "there is no --gpu-memory-utilization here: write --memory-budget 16GB"),
        (["--dp-size", "2"], "there is no --dp-size here: krea2 cluster run --replicas 2 starts an engine for each"),
        (["--api-key", "secret"], "a key must not be among the arguments"),
        (["--replicas", "0"], "--replicas must be at least 1 and at most 10000, and MAX no less than MIN, got '0'"),
        (["--replicas", "5:3"], "--replicas must be at least 1 and at most 10000, and MAX no less than MIN, got '5:3'"),
        (["--replicas", "many"], "--replicas must be a number, as 4, or MIN:MAX, as 1:50, got 'many'"),
        (["--tp", "3"], "--tp must be one of 1, 2, 4, got 3"),
        (["--port", "0"], "--port must be between 1 and 65535, got 0"),
        (["--drain-s", "-1"], "--drain-s must be between 0 and 604800, got -1"),
        (["--limit", "max_sde=3"], "--limit must be one of min_side"),
        (["--warm-up", "3x3"], "--warm-up 3x3: width must be between 64 and 4096, got 3"),
        (["demo-trubo"], "demo-trubo: there is no such folder or file; did you mean demo-turbo?"),
        (["--tp", "2", "--device", "tpu"], "--device must be"),
        (["--replica", "2"], "No such option '--replica'. (Did you mean one of: '--ingress-replicas', '--replicas'?)"),
        (["--check", "x", "--tp", "2"], "with --check there is no use for --tp: the file says it"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_that_was_typed(krea2: Krea2, arguments: list[str], message: str) -> None:
    code, stdout, stderr = krea2(*CONFIG, *arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


def test_a_key_of_the_environment_is_not_written(krea2: Krea2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KREA2_API_KEY", "secret")
    code, stdout, stderr = krea2(*CONFIG)
    assert code == 0
    assert "secret" not in stdout + stderr


def test_it_says_what_nobody_has_looked_at_who_can_reach_it_and_what_comes_next(krea2: Krea2) -> None:
    code, _, stderr = krea2(*CONFIG, NOWHERE, "--host", "0.0.0.0")
    assert code == 0
    assert f"note: not on this machine, and so not looked into: {NOWHERE}\n" in stderr
    assert "note: other machines reach 0.0.0.0: no ingress starts on a node whose Ray has no KREA2_API_KEY\n" in stderr
    assert all(f"  serve {word}" in stderr for word in ("deploy", "status", "shutdown"))
    assert "note" not in krea2(*CONFIG, "demo")[2]
