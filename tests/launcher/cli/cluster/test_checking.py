"""`krea2 cluster config --check`: what is said of a config that people have edited."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.launcher.conftest import Krea2

pytest.importorskip("ray.serve.schema")

pytestmark = pytest.mark.cluster  # since only there is Ray sure to be


@pytest.fixture
def written(krea2: Krea2) -> str:
    options = ("demo", "--tp", "2", "--replicas", "1:50", "--lora", "demo-outlined", "--limit", "max_side=2048")
    code, stdout, _ = krea2("cluster", "config", *options)
    assert code == 0
    return stdout


def test_what_is_written_is_right_by_our_checks_and_by_rays_schema(krea2: Krea2, written: str, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    file = tmp_path / "krea2.yaml"
    file.write_text(written)
    assert krea2("cluster", "config", "--check", str(file)) == (0, "", f"{file} is right\n")
    import yaml

    schema = ServeDeploySchema.model_validate(yaml.safe_load(written))
    assert [each.import_path for each in schema.applications] == ["launcher.ray:build_app"]


def test_what_each_node_is_to_download_is_told_and_not_downloaded(
    krea2: Krea2, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    file = tmp_path / "krea2.yaml"
    file.write_text(written.replace('- "demo-outlined"', "- someone/ink@v1:0.5"))
    code, stdout, stderr = krea2("cluster", "config", "--check", str(file))
    assert (code, stdout) == (0, "")
    assert stderr.endswith(f"{file} is right\n")
    assert "someone/ink@v1, which is nothing here, is taken for a Hugging Face repository's: each node" in stderr


@pytest.mark.parametrize(
    ("there", "edited", "message"),
    [
        ("tp: 2", "tp: 3", "application krea2: tp must be one of 1, 2, 4, got 3"),
        ("tp: 2", "tpp: 2", "application krea2: unknown parameter 'tpp': did you mean tp?"),
        ("tp: 2", "api_key: x", "applications[0].args has api_key, which has no place there"),
        ("tp: 2", "key_limits: x", "application krea2: key_limits would be counted by each replica for itself"),
        ("max_side: 2048", "max_sde: 2048", "application krea2: limit must be one of min_side"),
        ("max_replicas: 50", "max_replicas: 0", "application krea2: max_replicas must be"),
        ('model: "demo"', "model: demo-trubo", "application krea2: demo-trubo: there is no such folder or file"),
        ('- "demo-outlined"', "- demo-outlind", "application krea2: the path of a LoRA must be an absolute path"),
        ("name: engine", "name: engines", "application krea2: the name of a deployment must be engine or ingress"),
        ('host: "127.0.0.1"', "host: 0.0.0.0", "application krea2: host is 127.0.0.1, and http_options.host 0.0.0.0"),
        ("import_path: launcher.ray:build_app", "import_path: launcher.ray:build", "applications has none whose"),
        ("proxy_location: EveryNode", "proxy_location: Everywhere", "proxy_location: "),
        ("port: 30000", "port: many", "http_options.port: "),
        ("applications:", "application:", "applications: Field required, as Ray's schema says"),
        ("  args:", "args", "{file} is no YAML: "),
    ],
)
def test_what_is_wrong_is_told_with_where_it_is(
    krea2: Krea2, written: str, tmp_path: Path, there: str, edited: str, message: str
) -> None:
    assert there in written
    file = tmp_path / "krea2.yaml"
    file.write_text(written.replace(there, edited, 1))
    code, stdout, stderr = krea2("cluster", "config", "--check", str(file))
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message.format(file=file)}")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{file} must be a map with applications"),
        ("- 1\n", "{file} must be a map"),
    ],
)
def test_what_is_no_config_is_refused(krea2: Krea2, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "krea2.yaml"
    file.write_text(text)
    code, _, stderr = krea2("cluster", "config", "--check", str(file))
    assert code == 2
    assert stderr.startswith(f"error: {message.format(file=file)}")
    assert krea2("cluster", "config", "--check", str(tmp_path / "none"))[2].endswith(
        "none: No such file or directory\n"
    )


def test_without_ray_it_says_what_to_install(krea2: Krea2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("launcher.cli.cluster.needs.find_spec", lambda _: None)
    for command in (["config", "--check", "krea2.yaml"], ["run"]):
        code, stdout, stderr = krea2("cluster", *command)
        assert (code, stdout) == (2, "")
        assert stderr.startswith(f"error: krea2 cluster {command[0]}")
        assert stderr.endswith("needs Ray: pip install 'krea2-engine[ray]'\n")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in krea2("cluster", "run")[2]
