"""Every YAML of deploy/, and the example of a RayService: what Serve gets is what `build_app` takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from launcher.cli.cluster.checking import check_file
from launcher.ray.args import ClusterArgs
from tests.deploy.conftest import ROOT
from tests.launcher.processes import PATIENCE_S

RULES = {
    "extends": "default",
    "rules": {"document-start": "disable", "line-length": {"max": 120}, "comments": {"min-spaces-from-content": 1}},
}


def ray_manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "ray" / "rayservice.yaml").read_text()))


def test_yamllint_finds_nothing() -> None:
    files = [file for file in (ROOT / "deploy").rglob("*.yaml") if "templates" not in file.parts]
    assert len(files) >= 6
    lint = [
        str(Path(sys.executable).parent / "yamllint"),
        "--strict",
        "--config-data",
        json.dumps(RULES),
        *map(str, files),
    ]
    done = subprocess.run(lint, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout


def test_serve_gets_arguments_that_build_app_takes() -> None:
    service = ray_manifests()[0]["spec"]
    config = yaml.safe_load(service["serveConfigV2"])
    (application,) = config["applications"]
    assert application["import_path"] == "launcher.ray:build_app"
    args = ClusterArgs.of(application["args"])
    assert args.max_replicas > args.cluster.min_replicas
    assert args.http.host == config["http_options"]["host"]
    for group in (service["rayClusterConfig"]["headGroupSpec"], *service["rayClusterConfig"]["workerGroupSpecs"]):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > args.cluster.drain_s
    (workers,) = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus % args.engine["tp"] == 0
    assert args.max_replicas <= workers["maxReplicas"] * gpus // args.engine["tp"]


@pytest.mark.cluster
def test_krea2_cluster_config_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "krea2.yaml"
    file.write_text(ray_manifests()[0]["spec"]["serveConfigV2"])
    checked = check_file(file)
    assert not checked.warnings
    assert [note for note in checked.notes if "/models/Krea-2-Turbo" in note]


def test_ray_is_the_pinned_one_and_asks_for_a_token() -> None:
    cluster = ray_manifests()[0]["spec"]["rayClusterConfig"]
    pins = re.findall(r"^ray==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert [cluster["rayVersion"]] == pins
    assert cluster["authOptions"] == {"mode": "token"}


def test_only_the_port_with_keys_is_open_to_others() -> None:
    service, policy = ray_manifests()
    kubernetes_validate.validate(policy, "1.37", strict=True)
    selects = policy["spec"]["podSelector"]["matchLabels"]
    assert selects["ray.io/originated-from-cr-name"] == service["metadata"]["name"]
    own, namespace, operator = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": selects}}]}
    assert [each["port"] for each in namespace["ports"]] == [8000]
    assert [set(each) for each in operator["from"]] == [{"namespaceSelector", "podSelector"}]
    for group in _groups(service):
        (container,) = group["template"]["spec"]["containers"]
        assert "KREA2_API_KEY" in {each["name"] for each in container["env"]}
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_workers_probe_is_python() -> None:
    (worker,) = _groups(ray_manifests()[0])[1:]
    python, option, text = worker["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    assert (python, option) == ("python", "-c")
    compile(text, "the probe", "exec")


def _groups(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
