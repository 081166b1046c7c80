"""The files for AWS ECS: accepted by the API's own description, and the same as elsewhere."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from medserve import __version__
from medserve.engine.torchserve import container as engine_container
from medserve.gateway.settings import GatewaySettings
from medserve.settings import Address

session = pytest.importorskip("botocore.session", reason="needs botocore (the dev extra)")
from botocore.validate import ParamValidator  # type: ignore[import-untyped]  # noqa: E402

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "ecs"
OPERATIONS = {
    "task-definition.json": ("ecs", "RegisterTaskDefinition"),
    "service.json": ("ecs", "CreateService"),
    "target-group.json": ("elbv2", "CreateTargetGroup"),
}
# Of Fargate: the memory (MiB) that a task of so much processor may have.
FARGATE = {1024: (2048, 8192), 2048: (4096, 16384), 4096: (8192, 30720), 8192: (16384, 61440)}


def load(name: str) -> Any:
    """One of the files."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def mistakes(name: str, content: Any) -> str:
    """What the API's description does not know or want."""
    service, operation = OPERATIONS[name]
    model = session.get_session().get_service_model(service).operation_model(operation)
    report = ParamValidator().validate(content, model.input_shape)
    return str(report.generate_report())


@pytest.fixture
def containers() -> dict[str, Any]:
    """The containers of the task by name."""
    return {each["name"]: each for each in load("task-definition.json")["containerDefinitions"]}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_api_knows_every_field(name: str) -> None:
    assert mistakes(name, load(name)) == ""


@pytest.mark.parametrize(
    ("field", "value"), [("memoryReservedd", 1), ("portMappings", "8001"), ("name", None)]
)
def test_a_mistake_would_be_noticed(field: str, value: object) -> None:
    spoilt = copy.deepcopy(load("task-definition.json"))
    spoilt["containerDefinitions"][0][field] = value
    assert field in mistakes("task-definition.json", spoilt)


def test_the_containers_fit_into_a_size_that_fargate_has(containers: dict[str, Any]) -> None:
    task = load("task-definition.json")
    least, most = FARGATE[int(task["cpu"])]
    assert least <= int(task["memory"]) <= most
    assert sum(each["memory"] for each in containers.values()) <= int(task["memory"])
    assert sum(each["cpu"] for each in containers.values()) <= int(task["cpu"])


def test_nothing_serves_as_root_or_writes_where_it_should_not(containers: dict[str, Any]) -> None:
    volumes = {each["name"] for each in load("task-definition.json")["volumes"]}
    for name, each in containers.items():
        assert each["readonlyRootFilesystem"]
        assert each["linuxParameters"] == {"capabilities": {"drop": ["ALL"]}}
        assert each["image"].endswith(f":{__version__}")
        assert {mount["sourceVolume"] for mount in each["mountPoints"]} <= volumes
        if each["essential"]:
            assert each["user"] == "10001:10001", name
            writable = {m["containerPath"] for m in each["mountPoints"] if not m.get("readOnly")}
            assert writable == {"/tmp"}, name
    assert not any(each.get("secrets") for each in containers.values() if each["essential"])


def test_gateway_and_engine_find_each_other(containers: dict[str, Any]) -> None:
    variables = {each["name"]: each["value"] for each in containers["gateway"]["environment"]}
    gateway = GatewaySettings.read(environment=variables)
    engine = engine_container.parse(containers["torchserve"]["command"])
    assert Address.parse(gateway.engine) == Address(engine.host, engine.port)
    assert Address.parse(gateway.engine_management).port == engine.management_port
    ports = [port["containerPort"] for port in containers["gateway"]["portMappings"]]
    assert ports == [gateway.grpc_port, gateway.http_port, gateway.metrics_port]
    assert containers["torchserve"]["portMappings"][0]["containerPort"] == engine.metrics_port
    balanced = load("service.json")["loadBalancers"][0]
    assert (balanced["containerName"], balanced["containerPort"]) == ("gateway", gateway.grpc_port)
    assert load("target-group.json")["HealthCheckPort"] == str(gateway.http_port)
    drain_s = gateway.drain_delay_s + gateway.drain_timeout_s
    assert drain_s < containers["gateway"]["stopTimeout"] < containers["torchserve"]["stopTimeout"]


@pytest.mark.process
def test_the_first_container_lays_out_what_the_others_read(
    containers: dict[str, Any], tmp_path: Path
) -> None:
    prepare = containers["prepare"]
    script = prepare["command"][0]
    for name in ("store", "secrets", "engine-tmp", "gateway-tmp", "models"):
        (tmp_path / name).mkdir(mode=0o755)
        script = script.replace(f"/{name}", str(tmp_path / name))
    (tmp_path / "models" / "mednist-1.0.mar").write_bytes(b"archive")
    secrets = {each["name"]: f'{{"of": "{each["name"]}"}}' for each in prepare["secrets"]}
    subprocess.run([*prepare["entryPoint"], script], env=os.environ | secrets, check=True)
    variables = {each["name"]: each["value"] for each in containers["gateway"]["environment"]}
    settings = GatewaySettings.read(environment=variables)
    for path in (settings.tokens_file, settings.tls_cert, settings.tls_key):
        assert path is not None
        written = tmp_path / str(path).lstrip("/")
        assert written.read_text(encoding="utf-8") in secrets.values()
        assert written.stat().st_mode & 0o777 == 0o444  # read by the one container that mounts it
    assert (tmp_path / "store" / "mednist-1.0.mar").read_bytes() == b"archive"
    for name in ("engine-tmp", "gateway-tmp"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == 0o1777


def test_nothing_starts_before_the_first_container_has_ended_well(
    containers: dict[str, Any],
) -> None:
    for name in ("torchserve", "gateway"):
        wanted = {
            each["containerName"]: each["condition"] for each in containers[name]["dependsOn"]
        }
        assert wanted["prepare"] == "SUCCESS"
