"""`docker compose up` for real: images built here, calls through the published port."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
import yaml

import docker
from medserve.archive.read import inspect_archive
from medserve.client import Client
from scripts import images, smoke
from scripts.stack import Stack
from tests.tiny_room import LABELS, bright_tile

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

# Kills, inside a container, every process with an argument of that ending.
_KILL = """
import os, pathlib, signal
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    arguments = (entry / "cmdline").read_bytes().split(b"\\0")
    if any(each.endswith(b"{ending}") for each in arguments):
        os.kill(int(entry.name), signal.SIGKILL)
"""
_WORKERS = _KILL.format(ending="/model_service_worker.py")
_JAVA = _KILL.format(ending="org.pytorch.serve.ModelServer")


@pytest.mark.parametrize(("target", "most_mb"), [("cpu", 1030), ("gateway", 400)])
def test_image_is_small_and_runs_as_nobody(
    built: docker.DockerClient, target: str, most_mb: int
) -> None:
    fact = images.facts(built, images.tag(target))
    assert fact.size_mb <= most_mb
    assert fact.user == "10001:10001"
    assert fact.labels["org.opencontainers.image.version"] in fact.tag
    assert fact.labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_every_model_answers_through_the_published_port(stack: Stack, store: Path) -> None:
    said: list[str] = []
    archives = [inspect_archive(path) for path in sorted(store.glob("*.mar"))]
    smoke.predict_all(stack, archives, said.append)
    assert {line.split(":")[0] for line in said} == {archive.name for archive in archives}


def test_an_answer_is_the_right_one(stack: Stack) -> None:
    with Client(stack.grpc_address) as client:
        answers = [client.classify_one("tiny", bright_tile(tile)).label for tile in range(6)]
    assert answers == list(LABELS)


def test_the_page_answers_on_its_published_port(stack: Stack) -> None:
    with urllib.request.urlopen(stack.page_url, timeout=30) as answer:
        page = answer.read().decode()
    assert "medserve" in page


def test_only_page_and_grpc_are_published_and_only_on_loopback(stack: Stack) -> None:
    published: dict[str, list[dict[str, str]]] = {}
    for service in ("pod", "torchserve", "gateway"):
        published |= stack.container(service).attrs["HostConfig"]["PortBindings"] or {}
    assert set(published) == {"8000/tcp", "8001/tcp"}
    assert {each["HostIp"] for pairs in published.values() for each in pairs} == {"127.0.0.1"}


def test_prometheus_finds_both_servers_under_the_names_that_it_is_told(
    stack: Stack, built: docker.DockerClient
) -> None:
    told = yaml.safe_load((images.ROOT / "docker/monitoring/prometheus.yml").read_text("utf-8"))
    for job in told["scrape_configs"]:
        [target] = job["static_configs"][0]["targets"]
        script = (
            "import urllib.request as r; "
            f"print(r.urlopen('http://{target}/metrics', timeout=20).read().decode())"
        )
        page = built.containers.run(
            images.tag("gateway"),
            ["-c", script],
            entrypoint="python",
            network=stack.network,
            remove=True,
        ).decode()
        assert ("medserve_gateway_model_ready" in page) == (job["job_name"] == "medserve-gateway")
        assert ("WorkerLoadTime" in page) == (job["job_name"] == "medserve-engine")


@pytest.mark.parametrize("service", ["torchserve", "gateway"])
@pytest.mark.parametrize("path", ["/file", "/opt/venv/file", "/models/file", "/usr/bin/file"])
def test_nothing_but_tmp_can_be_written(stack: Stack, service: str, path: str) -> None:
    code, said = stack.run_inside(service, "touch", path)
    assert code != 0
    assert "Read-only file system" in said
    assert stack.run_inside(service, "touch", "/tmp/file")[0] == 0


@pytest.mark.parametrize("service", ["pod", "torchserve", "gateway"])
def test_no_process_has_a_right(stack: Stack, service: str) -> None:
    _, status = stack.run_inside(service, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert fields["CapEff"] == fields["CapBnd"] == "0" * 16
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"  # the engine's filter


def test_the_gateway_carries_neither_torch_nor_java(stack: Stack) -> None:
    code, said = stack.run_inside(
        "gateway", "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))"
    )
    assert (code, said.strip()) == (0, "None")
    assert stack.run_inside("gateway", "sh", "-c", "command -v java")[0] != 0


def test_every_log_line_is_an_event(stack: Stack) -> None:
    lines = stack.container("torchserve").logs().decode().splitlines()
    assert any("serving gRPC on" in line for line in lines)
    assert [
        line for line in lines if not re.match(r"\d{4}-\d\d-\d\dT\S+Z [A-Z]+ medserve", line)
    ] == []


def test_a_killed_worker_comes_back(stack: Stack) -> None:
    code, said = stack.run_inside("torchserve", "python", "-c", _WORKERS)
    assert code == 0, said
    probe = ("python", "-m", "medserve.engine.torchserve.probe", "--canary", "all")
    stack.wait("the models answer again", lambda: stack.run_inside("torchserve", *probe)[0] == 0)
    stack.wait("the gateway serves again", lambda: _serves(stack))
    assert json.loads(stack.predict("tiny", bright_tile(2)))["label"] == LABELS[2]


def test_the_probe_sees_that_every_worker_is_gone(stack: Stack) -> None:
    script = (
        f"{_WORKERS}\nfrom medserve.engine.torchserve.probe import main\nraise SystemExit(main([]))"
    )
    code, said = stack.run_inside("torchserve", "python", "-c", script)
    assert (code, said.split(":")[0]) == (1, "not ready")
    stack.wait("the gateway serves again", lambda: _serves(stack))


def test_the_published_port_survives_a_crash_of_the_engine(stack: Stack) -> None:
    before = stack.state("torchserve")["StartedAt"]
    stack.run_inside("torchserve", "python", "-c", _JAVA)
    stack.wait("it was started again", lambda: stack.state("torchserve")["StartedAt"] != before)
    stack.wait("it is proven again", lambda: stack.health("torchserve") == "healthy")
    stack.wait("the gateway serves again", lambda: _serves(stack))
    assert json.loads(stack.predict("tiny", bright_tile(5)))["label"] == LABELS[5]


@pytest.mark.parametrize("service", ["gateway", "torchserve"])
def test_running_calls_are_answered_after_sigterm(stack: Stack, store: Path, service: str) -> None:
    said: list[str] = []
    archive = inspect_archive(next(store.glob("sluggish-*.mar")))
    smoke.drain(stack, service, archive, said.append)
    assert said[0].endswith("exit code 0")


def _serves(stack: Stack) -> bool:
    return stack.run_inside("gateway", "python", "-m", "medserve.gateway.probe")[0] == 0
