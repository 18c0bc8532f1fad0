"""The Helm chart: linted, rendered with values that people have, held to Kubernetes' schemas and to `krea2 serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from launcher.messages.api_keys import read_keys
from tests.deploy.conftest import CHART, Helm, Render, sets
from tests.deploy.served import OPEN_ROUTES, served

KEYS = {"auth__keys": {"alice": "secret-of-alice", "bob": "secret-of-bob"}}
FOUR_GPUS = {
    "parallel__tp": 2,
    "parallel__cfgParallel": True,
    "gpu__products": ["NVIDIA-H100-80GB-HBM3"],
    "gpu__resource": "nvidia.com/gpu",
    "model__volume": {"persistentVolumeClaim": {"claimName": "models"}},
    "monitoring__enabled": True,
    "monitoring__labels": {"release": "prometheus"},
    "autoscaling__enabled": True,
    "server__args": ["--quantization=fp8", "--warm-up=1344x768"],
    "server__env": [{"name": "NCCL_P2P_DISABLE", "value": "1"}],
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
}
FILTERS = {
    "filters__use": ["words:/filters/own.txt,block=0.5", "moderation:http://guard:8000/v1"],
    "filters__failOpen": True,
    "filters__volume": {"configMap": {"name": "words"}},
    "filters__egress": [{"to": [{"podSelector": {"matchLabels": {"app": "guard"}}}], "ports": [{"port": 8000}]}],
}
AUDIT = {
    "audit__enabled": True,
    "audit__content": True,
    "audit__volume": {"persistentVolumeClaim": {"claimName": "audit"}},
}
# Values, and the kinds that are there for them beside those that always are.
USES: list[tuple[dict[str, Any], set[str]]] = [
    (KEYS, {"Secret", "NetworkPolicy"}),
    (KEYS | FOUR_GPUS, {"Secret", "NetworkPolicy", "HorizontalPodAutoscaler", "PodMonitor", "PrometheusRule"}),
    (KEYS | FOUR_GPUS | {"autoscaling__kind": "keda"},
     {"Secret", "NetworkPolicy", "ScaledObject", "PodMonitor", "PrometheusRule"}),
    ({"auth__existingSecret": "keys", "monitoring__enabled": True}, {"NetworkPolicy", "PodMonitor", "PrometheusRule"}),
    ({"auth__insecure": True, "gpu__enabled": False, "model__name": "demo", "networkPolicy__enabled": False,
      "parallel__tp": 2}, set()),
    (KEYS | {"model__huggingFace": {"enabled": True, "tokenSecret": "hub"}, "model__name": "krea/Krea-2-Turbo"},
     {"Secret", "NetworkPolicy"}),
    (KEYS | FILTERS | AUDIT, {"Secret", "NetworkPolicy"}),
]  # fmt: skip
ALWAYS = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"}
OLDEST, NEWEST = "1.27", "1.37"
OTHERS = {"PodMonitor", "PrometheusRule", "ScaledObject"}  # whose schemas are not Kubernetes' own


def the(kind: str, manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [each for each in manifests if each["kind"] == kind]
    return found


def test_helm_finds_nothing_to_say(helm: Helm) -> None:
    done = helm("lint", "--strict", str(CHART), *sets(KEYS | FOUR_GPUS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


@pytest.mark.parametrize(("values", "kinds"), USES)
def test_what_it_renders_is_what_kubernetes_takes(render: Render, values: dict[str, Any], kinds: set[str]) -> None:
    manifests = render(**values)
    assert sorted(each["kind"] for each in manifests) == sorted(ALWAYS | kinds)
    for manifest in manifests:
        assert manifest["metadata"]["name"] == "here-krea2"
        if manifest["kind"] not in OTHERS:
            for version in (OLDEST, NEWEST):
                kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(("values", "kinds"), USES)
def test_the_server_takes_the_arguments_and_ends_in_its_time(
    render: Render, values: dict[str, Any], kinds: set[str]
) -> None:
    pod = the("Deployment", render(**values))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = served(container["args"])
    assert options["host"] == "0.0.0.0"
    assert options["port"] == container["ports"][0]["containerPort"]
    assert (options["api_key_file"] is None) == options["insecure"] == values.get("auth__insecure", False)
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + options["drain_s"] + 10
    gpus = container["resources"].get("limits", {}).get("nvidia.com/gpu", 0)
    ranks = options["tp"] * options["sp"] * (2 if options["cfg_parallel"] else 1)
    assert gpus == (0 if options["device"] == "cpu" else ranks)
    assert (gpus > 1) == any(mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_probes_ask_what_is_answered_without_a_key(render: Render) -> None:
    (container,) = the("Deployment", render(**KEYS))["spec"]["template"]["spec"]["containers"]
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    assert set(asked.values()) <= OPEN_ROUTES


def test_a_pod_may_nothing_that_it_does_not_need(render: Render) -> None:
    pod = the("Deployment", render(**KEYS))["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    policy = the("NetworkPolicy", render(**KEYS))["spec"]
    assert policy["egress"] == []
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": "http", "protocol": "TCP"}]]


def test_filters_are_options_of_the_server_and_reach_what_they_ask(render: Render) -> None:
    def of(**values: Any) -> tuple[dict[str, Any], Any, dict[str, str]]:
        manifests = render(**KEYS, **values)
        container = container_of(manifests)
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        return served(container["args"]), the("NetworkPolicy", manifests)["spec"]["egress"], mounts

    options, egress, mounts = of()
    assert (options["filters"], options["filter_fail_open"], egress) == (("words",), False, [])
    assert "filters" not in mounts
    options, (names, asked), mounts = of(**FILTERS)
    assert options["filters"] == tuple(FILTERS["filters__use"])
    assert options["filter_fail_open"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert [asked] == FILTERS["filters__egress"]
    assert mounts["filters"] == "/filters"
    assert of(filters__use=[])[0]["filters"] == ()


def test_each_pod_has_an_audit_log_of_its_own_if_there_is_to_be_one(render: Render) -> None:
    assert served(container_of(render(**KEYS))["args"])["audit_log"] is None
    container = container_of(render(**KEYS, **AUDIT))
    options = served(container["args"])
    assert options["audit_content"]
    (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == options["audit_log"]]
    (name,) = [each["name"] for each in container["env"] if mount["subPathExpr"] == f"$({each['name']})"]
    assert name == "POD_NAME"


def container_of(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = the("Deployment", manifests)["spec"]["template"]["spec"]["containers"]
    return container


def test_selectors_meet_the_pods(render: Render) -> None:
    manifests = render(**KEYS, **FOUR_GPUS)
    deployment = the("Deployment", manifests)["spec"]
    labels, port = (
        deployment["template"]["metadata"]["labels"],
        deployment["template"]["spec"]["containers"][0]["ports"],
    )
    selectors = [the("Service", manifests)["spec"]["selector"], the("NetworkPolicy", manifests)["spec"]["podSelector"]]
    selectors += [the(kind, manifests)["spec"]["selector"] for kind in ("PodMonitor", "PodDisruptionBudget")]
    for selector in [*selectors, deployment["selector"]]:
        assert selector.get("matchLabels", selector).items() <= labels.items()
    assert the("Service", manifests)["spec"]["ports"][0]["targetPort"] == port[0]["name"]
    assert the("PodMonitor", manifests)["spec"]["podMetricsEndpoints"][0]["port"] == port[0]["name"]
    assert "replicas" not in deployment  # which the autoscaler says


def test_the_server_reads_the_keys_of_the_secret_and_prometheus_has_one(render: Render, tmp_path: Path) -> None:
    manifests = render(**KEYS, monitoring__enabled=True)
    secret = the("Secret", manifests)
    file = tmp_path / "keys"
    file.write_text(secret["stringData"]["keys"])
    keys = {each.name: each for each in read_keys(file)}
    assert set(keys) == {"alice", "bob", "prometheus"}
    asked = the("PodMonitor", manifests)["spec"]["podMetricsEndpoints"][0]["authorization"]["credentials"]
    assert asked["name"] == secret["metadata"]["name"]
    assert f"prometheus {secret['stringData'][asked['key']]}\n" in file.read_text()
    mounted = the("Deployment", manifests)["spec"]["template"]["spec"]["volumes"]
    assert [each["secret"]["secretName"] for each in mounted if "secret" in each] == [secret["metadata"]["name"]]


def test_other_keys_make_other_pods(render: Render) -> None:
    def annotations(**values: Any) -> dict[str, str]:
        found: dict[str, str] = the("Deployment", render(**values))["spec"]["template"]["metadata"]["annotations"]
        return found

    assert annotations(**KEYS) == annotations(**KEYS)
    assert annotations(**KEYS) != annotations(auth__keys={"alice": "another"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "auth: name an existingSecret, or keys, or say insecure: true"),
        (KEYS | {"parallel__tp": 3}, "value must be one of 1, 2, 4"),
        (KEYS | {"paralel": {}}, "additional properties 'paralel' not allowed"),
        ({"auth__keys": {"alice": "two words"}}, "does not match pattern"),
    ],
)
def test_values_that_cannot_be_are_refused(helm: Helm, values: dict[str, Any], said: str) -> None:
    done = helm("template", "here", str(CHART), *sets(values))
    assert done.returncode != 0
    assert said in done.stderr


def test_every_value_is_in_the_schema_and_in_the_defaults() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == {*values, "global"}
    for name, value in values.items():
        if "properties" in schema["properties"][name]:
            assert set(schema["properties"][name]["properties"]) == set(value), name
