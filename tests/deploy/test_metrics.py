"""What the dashboard shows, alerts watch and autoscalers go by: metrics that there are, with labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from engine.scheduling.cost import Work
from engine.scheduling.step_work import DoneWork
from engine.step import Picture, Step, StepTimes
from launcher.frontend.delivery import metrics as frontend_metrics
from launcher.frontend.delivery.metrics import Metrics
from launcher.http.workers.metrics import HttpMetrics
from launcher.messages.rank_messages import DoneStep
from launcher.ray.replaying.counts import Counts
from launcher.requests.timings import STAGES
from tests.deploy.conftest import CHART, ROOT, Render

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "krea2.json").read_text())
ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
ADAPTER = yaml.safe_load((ROOT / "deploy" / "helm" / "prometheus-adapter.yaml").read_text())
# What Prometheus adds to each sample, and krea2's ingress of Ray Serve to those of its engines.
ADDED = {"namespace", "pod", "instance", "job", "replica"}


def samples() -> dict[str, set[str]]:
    """The labels of every sample that /metrics has, here and behind Ray Serve."""
    front_end, http, ingress = Metrics(), HttpMetrics(), Counts()
    front_end.count_outcome("done", "anonymous")
    front_end.count_stages(dict.fromkeys(STAGES, 1.0))
    step = Step(number=0, encode=(Picture(0, 64, 64),))
    times, did = StepTimes(encode_s=1.0, denoise_s=1.0, encoded_tokens=1), DoneWork(Work.of([1]), 1, blocks=4, saved=2)
    front_end.count_step(DoneStep(step, times, Work.of([1]), sent=0.0, behind=False, by_rank={}, did=did))
    front_end.gpu_errors.labels(0, 79).inc()
    front_end.quarantined.labels(0).set(1)
    front_end.held_previews.labels("blocked").inc()
    front_end.filters.judged("words", "prompt", "block")
    front_end.filters.took("words", "prompt", 1.0)
    front_end.filters.failed("words", "late")
    http.count("/v1/images/generations", "POST", 200, 1.0)
    ingress.replayed("replica_lost")
    ingress.moved("stopped")
    ingress.failed("timeout")
    gauges = {name: 1.0 for name, _, *labels in frontend_metrics._GAUGES if not labels}
    found: dict[str, set[str]] = {}
    for text in (front_end.render([{"weights": 1}], **gauges), http.render(), ingress.render()):
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


def expressions() -> dict[str, str]:
    """Every expression by where it stands, with durations in place of Grafana's variables."""
    found = {f"panel {title} {target['refId']}": target["expr"] for title, target in panels()}
    found |= {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}
    found |= {f"the adapter's {rule['name']['as']}": rule["seriesQuery"] for rule in ADAPTER["rules"]["custom"]}
    return {where: text.replace("$__rate_interval", "5m") for where, text in found.items()}


def selectors(node: Any) -> Iterator[Any]:
    """The vector selectors of a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    parts = ("expr", "lhs", "rhs", "vector_selector", "param")
    for part in [getattr(node, name, None) for name in parts] + list(getattr(node, "args", None) or ()):
        if part is not None:
            yield from selectors(part)


def test_every_expression_asks_for_what_there_is() -> None:
    known, asked = samples(), set()
    for where, text in expressions().items():
        found = list(selectors(promql_parser.parse(text)))
        assert found, where
        for selector in found:
            assert selector.name in known, f"{where}: there is no {selector.name}"
            asked.add(selector.name)
            labels = {matcher.name for matcher in selector.matchers.matchers} - ADDED
            assert labels <= known[selector.name] | {"le"}, f"{where}: {labels} of {selector.name}"
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    everything = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    assert everything - families == set(), "what nothing shows"


def test_what_is_summed_by_has_such_labels() -> None:
    known = set().union(*samples().values()) | ADDED | {"le"}
    for where, text in expressions().items():
        for labels in re.findall(r"\bby \(([^)]*)\)", text):
            assert {each.strip() for each in labels.split(",")} <= known, where


def test_legends_name_labels_that_are_left() -> None:
    for title, target in panels():
        kept = {
            name.strip() for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for name in labels.split(",")
        }
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, title


def test_the_dashboard_asks_the_data_source_that_is_chosen() -> None:
    (source,) = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource"]
    sources = [panel["datasource"] for panel in DASHBOARD["panels"] if "datasource" in panel]
    sources += [target["datasource"] for _, target in panels()]
    assert all(each == {"type": "prometheus", "uid": f"${{{source['name']}}}"} for each in sources)
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for _, target in panels()))) - {"__rate_interval"}
    assert used <= names


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_autoscalers_go_by_the_backlog(render: Render, kind: str) -> None:
    manifests = render(auth__insecure=True, autoscaling__enabled=True, autoscaling__kind=kind)
    (scaler,) = [each for each in manifests if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    (deployment,) = [each for each in manifests if each["kind"] == "Deployment"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    if kind == "hpa":
        (metric,) = scaler["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] in {rule["name"]["as"] for rule in ADAPTER["rules"]["custom"]}
    else:
        (trigger,) = scaler["spec"]["triggers"]
        (selector,) = selectors(promql_parser.parse(trigger["metadata"]["query"]))
        assert selector.name in samples()
