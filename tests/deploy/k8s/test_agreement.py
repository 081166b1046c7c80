"""The manifests say what the images, the programs and the monitoring of compose say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from medserve.cli.dicom import dicom
from medserve.dicom.rules import Rules
from medserve.engine.torchserve import container, probe
from medserve.gateway.settings import GatewaySettings
from medserve.settings import Address, Settings
from tests.deploy.k8s.rendering import K8S, Manifest, find, kustomize, only, pods, render_base

ROOT = K8S.parent
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def _container(manifests: list[Manifest], name: str) -> Manifest:
    containers = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return next(each for each in containers if each["name"] == name)


def _environment(manifests: list[Manifest], name: str) -> dict[str, str]:
    """The variables of a container, in the order in which Kubernetes lays them over each other."""
    container = _container(manifests, name)
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= only(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    given = container.get("env", [])
    return values | {each["name"]: each["value"] for each in given if "value" in each}


def _stage(name: str) -> str:
    """The instructions of one stage of the Dockerfile."""
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    assert found is not None, name
    return found[1]


@pytest.mark.process
@pytest.mark.parametrize(
    ("container", "stage"), [("gateway", "gateway"), ("torchserve", "torchserve")]
)
def test_the_ports_are_those_of_the_image(base: list[Manifest], container: str, stage: str) -> None:
    exposed = re.search(r"^EXPOSE ([\d ]+)$", _stage(stage), re.M)
    assert exposed is not None
    ports = {port["containerPort"] for port in _container(base, container)["ports"]}
    assert ports <= set(map(int, exposed[1].split()))


def test_the_user_is_that_of_the_images(variant: list[Manifest]) -> None:
    user, group = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M)[0]
    for _, _, pod in pods(variant):
        context = pod["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))


def test_readiness_of_the_engine_asks_what_the_image_asks(
    base: list[Manifest], tmp_path: Path
) -> None:
    health = re.search(r"HEALTHCHECK.*?CMD (\[.*?\])", DOCKERFILE, re.S)
    assert health is not None
    command = _container(base, "torchserve")["readinessProbe"]["exec"]["command"]
    asked = yaml.safe_load(health[1])
    assert command[: len(asked)] == asked
    # On this machine no server has left a proof: the probe understands its flags, and says no.
    flags = [*command[len(asked) :], f"--proof-file={tmp_path / 'none'}"]
    assert probe.main(flags) == 1


@pytest.mark.parametrize("name", ["base", "local", "production", "all"])
def test_the_gateway_understands_its_environment(
    rendered: dict[str, list[Manifest]], name: str
) -> None:
    environment = _environment(rendered[name], "gateway")
    settings = GatewaySettings.read(environment=environment)
    ports = {
        each["name"]: each["containerPort"]
        for each in _container(rendered[name], "gateway")["ports"]
    }
    assert (settings.grpc_port, settings.http_port, settings.metrics_port) == (
        ports["grpc"],
        ports["http"],
        ports["metrics"],
    )
    assert not settings.on_loopback  # the kubelet and the services come from outside
    mounts = {each["mountPath"] for each in _container(rendered[name], "gateway")["volumeMounts"]}
    assert str(settings.store) in mounts
    for path in (settings.tokens_file, settings.tls_cert, settings.tls_key, settings.audit_log):
        assert path is None or str(path.parent) in mounts


def test_production_asks_for_tokens_and_speaks_tls(rendered: dict[str, list[Manifest]]) -> None:
    settings = GatewaySettings.read(environment=_environment(rendered["production"], "gateway"))
    assert settings.tokens_file is not None
    assert settings.tls_cert is not None
    assert settings.audit_log is not None


def test_the_audit_log_of_a_pod_outlives_it_and_is_no_other_pods(
    rendered: dict[str, list[Manifest]],
) -> None:
    container = _container(rendered["production"], "gateway")
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "audit"]
    names = {each["name"]: each.get("valueFrom") for each in container["env"]}
    variable = mount["subPathExpr"].removeprefix("$(").removesuffix(")")
    assert names[variable]["fieldRef"]["fieldPath"] == "metadata.name"
    pod = only(rendered["production"], "Deployment")["spec"]["template"]["spec"]
    [volume] = [each for each in pod["volumes"] if each["name"] == "audit"]
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert only(rendered["production"], "PersistentVolumeClaim", claim)


@pytest.mark.process
def test_keda_is_refused_where_kserve_makes_what_it_scales(tmp_path: Path) -> None:
    if kustomize() is None:
        pytest.skip("needs kubectl or kustomize")
    with pytest.raises(AssertionError, match="HorizontalPodAutoscaler"):
        render_base(tmp_path, ("monitoring", "keda", "kserve"))
    page = (K8S.parent / "docs/run/kubernetes.md").read_text(encoding="utf-8")
    assert "Not with `keda`" in page


def test_the_node_understands_its_arguments(rendered: dict[str, list[Manifest]]) -> None:
    pod = only(rendered["dicom"], "StatefulSet")["spec"]["template"]["spec"]
    [node] = pod["containers"]
    rules = K8S / "components/dicom" / Path(node["args"][0]).name
    group = typer.main.get_command(dicom)
    assert isinstance(group, typer.core.TyperGroup)
    told = group.commands["serve"].make_context("serve", [str(rules), *node["args"][1:]]).params
    ports = {each["name"]: each["containerPort"] for each in node["ports"]}
    assert (told["port"], told["metrics"]) == (ports["dicom"], f"0.0.0.0:{ports['metrics']}")
    assert told["state"].parent == Path(node["volumeMounts"][1]["mountPath"])
    service = only(rendered["dicom"], "Service", told["address"].partition(":")[0])
    assert int(told["address"].partition(":")[2]) in {
        each["port"] for each in service["spec"]["ports"]
    }
    Rules.read(rules)


def test_every_part_that_writes_spans_is_told_of_the_same_collector(
    rendered: dict[str, list[Manifest]],
) -> None:
    traced = rendered["traces of a node"]
    pods = [
        only(traced, kind)["spec"]["template"]["spec"] for kind in ("Deployment", "StatefulSet")
    ]
    told = {
        each["name"]: {one["name"]: one["value"] for one in each.get("env", []) if "value" in one}
        for pod in pods
        for each in pod["containers"]
    }
    assert set(told) == {"torchserve", "gateway", "dicom"}
    assert told["torchserve"] == told["gateway"] == told["dicom"]
    assert told["dicom"]["OTEL_EXPORTER_OTLP_ENDPOINT"].endswith(":4318")
    [alone] = only(rendered["dicom"], "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert "env" not in alone


def test_gateway_and_engine_meet_on_loopback(base: list[Manifest]) -> None:
    engine = container.parse(_container(base, "torchserve")["args"])
    gateway = GatewaySettings.read(environment=_environment(base, "gateway"))
    assert Address(engine.host, engine.port) == Address.parse(gateway.engine)
    assert Address("127.0.0.1", engine.management_port) == Address.parse(gateway.engine_management)
    assert engine.host == "127.0.0.1"
    ports = {
        each["name"]: each["containerPort"] for each in _container(base, "torchserve")["ports"]
    }
    assert ports == {"engine-metrics": engine.metrics_port}
    assert engine.metrics_host != "127.0.0.1"  # Prometheus comes from outside the pod
    store = Settings.from_environment(_environment(base, "torchserve")).store
    assert store == gateway.store


def test_the_engine_outlives_the_gateways_drain(base: list[Manifest]) -> None:
    gateway = GatewaySettings.read(environment=_environment(base, "gateway"))
    sleeps = {
        name: _container(base, name)["lifecycle"]["preStop"]["sleep"]["seconds"]
        for name in ("gateway", "torchserve")
    }
    drained = sleeps["gateway"] + gateway.drain_delay_s + gateway.drain_timeout_s
    assert sleeps["torchserve"] > drained
    engine = container.parse(_container(base, "torchserve")["args"])
    grace = only(base, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= sleeps["torchserve"] + engine.drain_timeout_s


def test_memory_for_requests_leaves_room_in_the_container(
    rendered: dict[str, list[Manifest]],
) -> None:
    for name in ("base", "local", "production"):
        settings = GatewaySettings.read(environment=_environment(rendered[name], "gateway"))
        limit = _container(rendered[name], "gateway")["resources"]["limits"]["memory"]
        mib = int(limit[:-2]) * {"Mi": 1, "Gi": 1024}[limit[-2:]]
        assert 2 * settings.memory_mb <= mib


def test_routes_name_services_that_the_protos_declare(rendered: dict[str, list[Manifest]]) -> None:
    declared = {"grpc.health.v1.Health"}
    for path in (ROOT / "protos").rglob("*.proto"):
        text = path.read_text(encoding="utf-8")
        package = re.search(r"^package ([\w.]+);", text, re.M)
        assert package is not None
        declared |= {f"{package[1]}.{name}" for name in re.findall(r"^service (\w+)", text, re.M)}
    rules = only(rendered["gateway-api"], "GRPCRoute")["spec"]["rules"]
    routed = {match["method"]["service"] for rule in rules for match in rule["matches"]}
    assert routed <= declared
    assert not any("management" in name.lower() for name in routed)


def test_prometheus_gets_the_same_rules_as_in_compose(rendered: dict[str, list[Manifest]]) -> None:
    path = ROOT / "docker" / "monitoring" / "alerts.yml"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert only(rendered["monitoring"], "PrometheusRule")["spec"] == written


def test_the_dashboard_is_the_one_of_compose(rendered: dict[str, list[Manifest]]) -> None:
    path = ROOT / "docker" / "monitoring" / "dashboards" / "medserve.json"
    shipped = only(rendered["monitoring"], "ConfigMap", "medserve-dashboard")["data"]
    assert shipped == {path.name: path.read_text(encoding="utf-8")}


def test_a_changed_setting_rolls_the_pods(base: list[Manifest]) -> None:
    for each in find(base, "ConfigMap"):
        assert re.fullmatch(r"medserve-(engine|gateway)-[0-9a-z]{10}", each["metadata"]["name"])
