"""What the Dockerfile and the compose files promise, read without an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from medserve import __version__
from medserve.cli.dicom import dicom
from medserve.dicom.rules import Rules
from medserve.engine.torchserve import container
from medserve.gateway.faces import page
from medserve.gateway.settings import GatewaySettings
from medserve.settings import EngineKind
from scripts.images import ROOT

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
OVERRIDES = tuple(f"compose.{name}.yaml" for name in ("gpu", "tokens", "tls", "traces", "trust"))


class _Loader(yaml.SafeLoader):
    """YAML with the tags of compose."""


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return list(loader.construct_sequence(node))


_Loader.add_constructor("!override", _sequence)


def _compose(name: str = "compose.yaml") -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((ROOT / name).read_text(encoding="utf-8"), _Loader)
    return content


SERVICES = _compose()["services"]


def _stage(name: str) -> str:
    found = re.search(rf"^FROM \S+ AS {name}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    assert found is not None, name
    return found[1]


def test_where_callers_have_names_the_audit_log_is_on_a_volume_that_stays() -> None:
    override = _compose("compose.tokens.yaml")
    gateway = override["services"]["gateway"]
    log = Path(gateway["environment"]["MEDSERVE_GATEWAY_AUDIT_LOG"])
    mounts = [each.split(":") for each in gateway["volumes"] if isinstance(each, str)]
    [name] = [volume for volume, place in mounts if Path(place) == log.parent]
    assert name in override["volumes"]
    assert not (override["volumes"][name] or {}).get("driver_opts")  # no tmpfs
    # A new volume takes mode and owner of the image's folder: the gateway's user is not root.
    assert re.search(rf"install --directory --mode 1777[^&\n]* {log.parent}\b", _stage("runtime"))


@pytest.mark.process
def test_the_linter_of_dockerfiles_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    run = subprocess.run(
        [program, "docker/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.stdout + run.stderr == ""


def test_an_engine_without_newer_frontends_can_build_it() -> None:
    assert not re.search(r"^# *syntax=", DOCKERFILE, re.M)
    assert "--link" not in DOCKERFILE
    assert "<<" not in DOCKERFILE


@pytest.mark.parametrize("target", ["cpu", "gpu", "gateway", "cpu-direct", "dicom"])
def test_a_target_ends_as_a_user_without_rights(target: str) -> None:
    assert re.findall(r"^USER (.*)$", _stage(target), re.M) == ["10001:10001"]


def test_every_stage_begins_at_the_pinned_base_or_at_another_stage() -> None:
    begins = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.M)
    stages = {name for _, name in begins} | {"models-${MODELS}"}
    assert {source for source, _ in begins} - stages == {"${BASE_IMAGE}"}
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11-slim-bookworm$", DOCKERFILE, re.M)


def test_what_is_copied_from_the_checkout_gets_past_dockerignore() -> None:
    allowed = re.findall(
        r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE
    )
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M):
        for source in line.split()[:-1]:
            assert any(source == name or source.startswith(f"{name}/") for name in allowed), source


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_locked_down(service: str) -> None:
    content = SERVICES[service]
    assert content["read_only"] is True
    assert content["cap_drop"] == ["ALL"]
    assert content["security_opt"] == ["no-new-privileges:true"]
    assert {"memory", "pids"} <= set(content["deploy"]["resources"]["limits"])
    assert not content["user"].startswith(("0", "root"))
    assert re.search(r":[^:]*\d+\.\d+", content["image"])  # a version, never latest


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_published_on_loopback_alone(service: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service].get("ports", ()))


def test_our_images_carry_the_version_of_the_package() -> None:
    text = "".join((ROOT / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml"))
    versions = set(re.findall(r"\$\{MEDSERVE_VERSION:-([^}]*)\}", text))
    assert versions == {__version__}


def test_the_containers_understand_what_compose_tells_them() -> None:
    options = container.parse(SERVICES["torchserve"]["command"])
    assert options.host == "127.0.0.1"
    told: dict[str, str] = {}
    for content in (_compose(), *map(_compose, OVERRIDES)):
        told |= content["services"].get("gateway", {}).get("environment", {})
    settings = GatewaySettings.read(environment=told | {"MEDSERVE_GATEWAY_HOSTS": ""})
    assert settings.engine == f"{options.host}:{options.port}"
    assert settings.engine_management == f"{options.host}:{options.management_port}"


@pytest.mark.parametrize("target", ["gateway", "cpu-direct"])
def test_the_viewer_lies_where_the_page_looks_for_it(target: str) -> None:
    [place] = re.findall(
        r"^COPY --from=page /vendor \S+/site-packages/(\S+)$", _stage(target), re.M
    )
    static = Path(page.__file__).parent / "static" / "vendor"
    assert place == static.relative_to(ROOT).as_posix()


def test_the_direct_container_understands_what_compose_tells_it() -> None:
    image = dict(re.findall(r"(MEDSERVE_\w+)=(\S+)", _stage("cpu-direct")))
    settings = GatewaySettings.read(environment=image | SERVICES["direct"]["environment"])
    assert settings.engine_kind == EngineKind.DIRECT
    assert str(settings.upload_dir) in [each["target"] for each in SERVICES["direct"]["volumes"]]


def test_the_node_understands_what_compose_tells_it() -> None:
    arguments = SERVICES["dicom"]["command"]
    group = typer.main.get_command(dicom)
    assert isinstance(group, typer.core.TyperGroup)
    told = (
        group.commands["serve"]
        .make_context("serve", [str(ROOT / "docker/dicom/rules.toml"), *arguments[1:]])
        .params
    )
    assert [each.model for each in Rules.read(told["rules"])] == [
        "segmentation_3d",
        "trus_prostate",
    ]
    archive = json.loads((ROOT / "docker/dicom/orthanc.json").read_text(encoding="utf-8"))
    assert told["destination"] == [f"{archive['DicomAet']}@pacs:{archive['DicomPort']}"]
    assert archive["DicomModalities"]["medserve"] == [told["ae_title"], "dicom", told["port"]]


def test_requests_under_way_get_less_time_than_the_container() -> None:
    def seconds(service: str) -> float:
        return float(SERVICES[service]["stop_grace_period"].removesuffix("s"))

    assert seconds("torchserve") > container.parse([]).drain_timeout_s
    assert seconds("gateway") > GatewaySettings().drain_timeout_s


def test_what_compose_mounts_exists() -> None:
    for content in SERVICES.values():
        for volume in content.get("volumes", ()):
            if isinstance(volume, str) and volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).exists()


def test_whoever_asks_another_service_stops_before_it() -> None:
    asks = {"dicom": "gateway", "gateway": "torchserve", "torchserve": "pod"}
    for service, asked in asks.items():  # compose stops in the reverse order of depends_on
        assert asked in SERVICES[service]["depends_on"]
