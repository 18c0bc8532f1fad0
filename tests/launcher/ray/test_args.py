"""What the arguments of a cluster may be, and the sentences for what they may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.errors import ArgumentError, CheckpointError, LoraError
from launcher.ray.args import ClusterArgs, known_options
from launcher.ray.settled import settle
from tests.launcher.lora_stand_in import fake_adapters, write_adapter

__all__ = ["fake_adapters"]
PYTHON = "python:tests.nothing:Filter"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"tpp": 2}, "unknown parameter 'tpp': did you mean tp?"),
        ({"min_replica": 2}, "unknown parameter 'min_replica': did you mean min_replicas?"),
        ({"nothing_like_it": 1}, "unknown parameter 'nothing_like_it'"),
        ({"tp": 3}, "tp must be one of 1, 2, 4, got 3"),
        ({"tp": "many"}, "tp must be one of 1, 2, 4, got 'many'"),
        ({"min_replicas": 0}, "min_replicas must be a whole number between 1 and 10000, got 0"),
        ({"min_replicas": True}, "min_replicas must be a whole number between 1 and 10000, got True"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas must be at least min_replicas, 3, got 2"),
        ({"backlog_target_s": "soon"}, "backlog_target_s must be between 0.1 and 86400, got 'soon'"),
        ({"backlog_target_s": float("nan")}, "backlog_target_s must be between 0.1 and 86400, got nan"),
        ({"down_delay_s": 0}, "down_delay_s must be between 0.1 and 3600, got 0"),
        ({"any_model": "perhaps"}, "any_model must be True or False, got 'perhaps'"),
        ({"allow_origin": [7]}, "allow_origin must be a list of texts, got [7]"),
        ({"images_folder": ""}, "images_folder must be a path, got ''"),
        (["tp", 2], "args must be a mapping of options to values, got ['tp', 2]"),
    ],
)
def test_what_is_wrong_is_said_with_name_and_value(args: Any, sentence: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        settle(args)
    assert raised.value.message == sentence


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("api_key", "KREA2_API_KEY"),
        ("api_keys", "KREA2_API_KEY"),
        ("parallel", "choose tp, sp and cfg_parallel"),
        ("share_gpu", "a GPU of its own"),
        ("key_limits", "each replica"),
        ("http_workers", "ingress_replicas"),
        ("port", "http_options.port"),
        ("rpc", "HTTP alone"),
        ("num_replicas", "min_replicas"),
    ],
)
def test_what_a_cluster_has_not_is_refused_with_what_there_is_instead(name: str, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        ClusterArgs.of({name: "secret"})
    assert name not in known_options()


def test_a_filter_may_have_commas_and_several_are_a_list() -> None:
    one = "words:/lists/own.txt,block=violence:0.5,only=prompts"
    assert ClusterArgs.of({"filters": one}).engine["filters"] == (one,)
    assert ClusterArgs.of({"filters": [one, "words"]}).given()["filters"] == [one, "words"]


@pytest.mark.parametrize(
    ("model", "filters", "warned"), [(None, [], 0), (DEMO_CHECKPOINT, [], 1), (DEMO_CHECKPOINT, [PYTHON], 0)]
)
def test_weights_of_krea_without_a_filter_are_warned_of(model: Path | None, filters: list[str], warned: int) -> None:
    told = settle({"model": model, "filters": filters}).warnings
    assert [("content filter" in warning and "--filter" in warning) for warning in told] == [True] * warned


def test_a_key_among_the_arguments_is_not_repeated_in_the_error() -> None:
    with pytest.raises(ArgumentError) as raised:
        ClusterArgs.of({"api_key": "sk-123"})
    assert "sk-123" not in raised.value.message


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"model": "demo", "device": "cuda:1"}, "device cuda:1: which GPUs are used is chosen"),
        ({"model": "demo", "limits": {"max_side": 0}}, "limit max_side must be a positive whole number, got 0"),
        ({"model": "demo", "tp": 4, "sp": 2}, "sp must be at most 1 with tp 4, got 2"),
        ({"model": "demo", "warm_up_sizes": ["7x7"]}, "warm_up_sizes"),
        ({"model": "demo", "lora_dir": "/no/such/folder"}, "lora_dir must be a folder, got '/no/such/folder'"),
        ({"model": "demo", "loras": ["ink.safetensors"]}, "the path of a LoRA must be an absolute path"),
        ({"model": "demo", "loras": ["a=demo-outlined", "a=demo-outlined"]}, "two LoRAs are called 'a'"),
        ({"model": "demo", "public_url": "images.example"}, "public_url must be http:// or https://, a host"),
        ({"model": "demo", "allow_origin": ["https://a/b"]}, "allow_origin must be"),
        ({"model": "demo-tubro"}, "did you mean demo-turbo?"),
    ],
)
def test_what_the_engine_or_http_would_refuse_is_refused_before_anything_starts(
    args: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((ArgumentError, CheckpointError)) as raised:
        settle(args)
    assert sentence in raised.value.message


def test_files_are_looked_into_before_anything_starts(tmp_path: Path) -> None:
    damaged = tmp_path / "ink.safetensors"
    damaged.write_bytes(b"no tensors")
    with pytest.raises(LoraError, match=r"ink\.safetensors"):
        settle({"model": "demo", "loras": [str(damaged)]})
    with pytest.raises(LoraError, match=r"ink\.safetensors"):
        settle({"model": "demo", "lora_dir": str(tmp_path), "loras": ["ink=ink.safetensors:0.5"]})
    with pytest.raises(CheckpointError):
        settle({"model": str(tmp_path)})


def test_texts_stand_for_numbers_switches_and_lists_as_serves_command_line_gives_them() -> None:
    read = ClusterArgs.of(
        {
            "tp": "2",
            "cfg_parallel": "true",
            "min_replicas": "2",
            "backlog_target_s": "2.5",
            "offload": "vae,text-encoder",
            "allowed_host": "a.example, b.example",
            "memory_budget": "16GB",
        }
    )
    assert (read.engine["tp"], read.engine["cfg_parallel"]) == (2, True)
    assert (read.cluster.min_replicas, read.cluster.backlog_target_s) == (2, 2.5)
    assert read.engine["offload"] == ("vae", "text-encoder")
    assert read.http.allowed_host == ("a.example", "b.example")


def test_what_was_given_reads_again_as_the_same_and_is_plain() -> None:
    args = {"model": "demo", "tp": 2, "max_replicas": 4, "served_model_name": ["a", "b"], "limits": {"max_queue": 8}}
    read = ClusterArgs.of(args)
    assert read.given() == args
    assert ClusterArgs.of(read.given()) == read
    assert ClusterArgs.of({"tp": None, "model": "demo"}).given() == {"model": "demo"}


def test_there_are_more_ingresses_for_many_engines() -> None:
    assert ClusterArgs.of({}).ingress_replicas == 1
    assert ClusterArgs.of({"max_replicas": 50}).ingress_replicas == 7
    assert ClusterArgs.of({"max_replicas": 50, "ingress_replicas": 3}).ingress_replicas == 3


def test_the_model_is_called_as_its_folder_or_as_is_said(tmp_path: Path) -> None:
    assert ClusterArgs.of({}).model_names() == ("demo",)
    assert ClusterArgs.of({"model": str(tmp_path)}).model_names() == (tmp_path.name,)
    assert ClusterArgs.of({"model": "krea/Krea-2-Turbo@refs/pr/1"}).model_names() == ("Krea-2-Turbo",)
    assert ClusterArgs.of({"served_model_name": "krea, krea-2"}).model_names() == ("krea", "krea-2")


def test_engines_let_no_client_load_loras_and_hash_their_files() -> None:
    frontend = settle({"model": "demo", "loras": ["demo-outlined"], "warm_up_sizes": ["128x64"]}).frontend
    assert frontend.loras == ()  # which `user_config` declares
    assert frontend.lora_dir is None
    assert frontend.parent_loads_loras
    assert frontend.hash_files
    assert frontend.warm_up_sizes == ((128, 64),)
    merged = settle({"model": "demo", "loras": ["demo-outlined"], "merge_lora": True}).frontend
    assert len(merged.engine.merge_loras) == 1


@pytest.mark.usefixtures("fake_adapters")
@pytest.mark.parametrize("merge", [False, True])
def test_who_checks_a_cluster_hears_what_is_left_out_of_its_loras(tmp_path: Path, merge: bool) -> None:
    file = write_adapter(tmp_path / "ink.safetensors", skipped=["k"])
    args = {"model": "demo", "device": "cpu", "loras": [str(file)], "lora_lenient": True, "merge_lora": merge}
    assert settle(args).warnings == (f"{file}: lora_lenient leaves out k",)
