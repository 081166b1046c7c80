"""Alerts, scrape configuration and dashboard: consistent, tested, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric

import models
from medserve.engine.torchserve.config import EngineSettings, write_run_dir
from medserve.engine.torchserve.ports import Ports
from medserve.gateway.core.metrics import GatewayMetrics
from tests.deploy.promql import asked

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "monitoring"
DOCKERFILE = (FOLDER.parent / "Dockerfile").read_text(encoding="utf-8")
PROMTOOL = shutil.which("promtool")
# Made by Prometheus itself, and by the kubelet or cAdvisor; the dashboard says so.
OF_OTHERS = {"up", "container_memory_working_set_bytes"}
LABELS_OF_OTHERS = {"job", "instance", "pod", "container", "namespace", "le"}


def _yaml(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def _rules() -> list[dict[str, Any]]:
    return [rule for group in _yaml("alerts.yml")["groups"] for rule in group["rules"]]


def _dashboard() -> Any:
    return json.loads((FOLDER / "dashboards" / "medserve.json").read_text(encoding="utf-8"))


def expressions() -> Iterator[tuple[str, str]]:
    """Who asks, and what."""
    for rule in _rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in _dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def recorded() -> set[str]:
    """The series that the rules compute."""
    return {rule["record"] for rule in _rules() if "record" in rule}


def _exported(folder: Path) -> dict[str, set[str]]:
    """Names of all metrics that gateway and engine declare, with their labels."""
    names: dict[str, set[str]] = {}
    for family in GatewayMetrics().registry.collect():
        for name in _series(family):
            names[name] = set()
    metrics = GatewayMetrics()
    for declared in metrics.registry._collector_to_names:
        labels = getattr(declared, "_labelnames", getattr(declared, "_labels", None))
        if labels is not None:
            for family in declared.collect():
                for name in _series(family):
                    names[name] = set(labels)
    names["medserve_gateway_info"] = {"version"}
    write_run_dir(folder, EngineSettings("127.0.0.1", Ports(), (), 2**20, token_auth=False))
    written = yaml.safe_load((folder / "metrics.yaml").read_text(encoding="utf-8"))
    for kinds in written.values():
        for kind, declared_metrics in kinds.items():
            for each in declared_metrics:
                parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
                for part in parts:
                    names[each["name"] + part] = set(each["dimensions"])
    return names


def _series(family: Metric) -> list[str]:
    parts = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return [family.name + part for part in parts.get(family.type, ("",))]


def test_every_metric_that_is_asked_for_is_exported(tmp_path: Path) -> None:
    exported = _exported(tmp_path)
    for title, expression in expressions():
        wanted = asked(expression)
        assert wanted.metrics, title
        assert wanted.metrics - exported.keys() - recorded() - OF_OTHERS == set(), title
        known = set().union(*(exported.get(name, set()) for name in wanted.metrics))
        if not wanted.metrics & (recorded() | OF_OTHERS):
            assert wanted.labels - known - LABELS_OF_OTHERS == set(), title


def test_a_metric_of_another_name_would_be_noticed(tmp_path: Path) -> None:
    wanted = asked('sum by (model, le) (rate(medserve_gateway_latency_bucket{face="x"}[5m]))')
    assert wanted.metrics == {"medserve_gateway_latency_bucket"}
    assert wanted.labels == {"model", "le", "face"}
    assert not wanted.metrics & _exported(tmp_path).keys()


def test_every_alert_says_what_happened_and_is_shown_to_fire() -> None:
    shown = {
        case["alertname"]
        for test in _yaml("alerts.test.yml")["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    alerts = [rule for rule in _rules() if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == shown
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= set(rule["annotations"])


def test_every_alert_stays_quiet_at_a_quiet_server() -> None:
    quiet = _yaml("alerts.test.yml")["tests"][0]["alert_rule_test"]
    assert {case["alertname"] for case in quiet} == {
        rule["alert"] for rule in _rules() if "alert" in rule
    }
    assert not any(case.get("exp_alerts") for case in quiet)


@pytest.mark.process
@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian: apt-get install prometheus)")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_prometheus_accepts_the_files(arguments: tuple[str, ...]) -> None:
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_scrape_configuration_asks_the_ports_of_the_images() -> None:
    jobs = _yaml("prometheus.yml")["scrape_configs"]
    exposed = set(re.findall(r"\d+", " ".join(re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.M))))
    for job in jobs:
        for target in job["static_configs"][0]["targets"]:
            assert target.rpartition(":")[2] in exposed
    names = {job["job_name"] for job in jobs}
    assert names == {"medserve-gateway", "medserve-engine"}
    for title, expression in expressions():
        for quoted in re.findall(r'job=~?"([^"]+)"', expression):
            assert any(re.fullmatch(quoted, name) for name in names), title


def test_the_panels_of_the_dashboard_neither_overlap_nor_share_a_number() -> None:
    panels = _dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in own) < 24, panel["title"]
        assert not own & cells, panel["title"]
        cells |= own


def test_the_dashboard_shows_what_an_operator_asks_first() -> None:
    titles = " ".join(panel["title"].lower() for panel in _dashboard()["panels"])
    for word in ("requests", "latency", "queue", "failures", "worker restarts", "memory"):
        assert word in titles or word in json.dumps(_dashboard()).lower(), word


def test_grafana_finds_data_source_and_folder() -> None:
    source = _yaml("grafana/datasource.yml")["datasources"][0]
    variable = _dashboard()["templating"]["list"][0]
    assert variable["query"] == source["type"]
    assert variable["current"]["value"] == source["uid"]
    assert _yaml("grafana/dashboards.yml")["providers"][0]["type"] == "file"


def test_no_rule_and_no_panel_knows_the_models_by_name() -> None:
    named = [(who, room) for who, what in expressions() for room in models.names() if room in what]
    assert named == []
