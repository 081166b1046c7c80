"""The pod of the overlay `local`, really run: by podman, which reads manifests as a kubelet would.

Podman 4 has no probes worth the name and no init container that fits a mounted store, so the copy
leaves those out: the readiness command is run by hand, and the archives come from a folder.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

import docker
from medserve.client import Client
from tests.deploy.images.podman import Podman, running_podman
from tests.deploy.k8s.rendering import K8S, Manifest, find, kustomize, only, render
from tests.tiny_room import LABELS, bright_tile

pytestmark = pytest.mark.docker


@dataclass(frozen=True)
class RunningPod:
    """Where the pod's two public ports are, and what it was made from."""

    podman: Podman
    ports: dict[str, int]
    manifest: Manifest

    def container(self, name: str) -> str:
        """Podman's name of a container: that of the pod before its own."""
        names = self.podman.run("ps", "--all", "--format", "{{.Names}}").stdout.split()
        return next(each for each in names if each.endswith(f"-{name}"))

    def specification(self, name: str) -> Manifest:
        """The container in the manifest."""
        containers = self.manifest["spec"]["template"]["spec"]["containers"]
        return next(each for each in containers if each["name"] == name)

    def inspect(self, name: str) -> Any:
        """What podman has made of it."""
        return json.loads(self.podman.run("inspect", self.container(name)).stdout)[0]


def free_ports(*names: str) -> dict[str, int]:
    """A free port of loopback for each name."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def playable(manifests: list[Manifest], store: Path, ports: dict[str, int]) -> list[Manifest]:
    """The ConfigMaps and the Deployment, with what podman cannot do left out."""
    deployment = only(manifests, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    pod.pop("initContainers")
    for volume in pod["volumes"]:
        if volume["name"] == "models":
            volume.pop("emptyDir")
            volume["hostPath"] = {"path": str(store), "type": "Directory"}
    for container in pod["containers"]:
        for left_out in ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle"):
            container.pop(left_out)
        # A port without hostPort would be published on every address of this machine.
        container["ports"] = [
            port | {"hostIP": "127.0.0.1", "hostPort": ports[port["name"]]}
            for port in container["ports"]
            if port["name"] in ports
        ]
    return [*find(manifests, "ConfigMap"), deployment]


@pytest.fixture(scope="module")
def pod(
    built: docker.DockerClient, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningPod]:
    """The pod of the overlay, started; the engine may still load its models."""
    if kustomize() is None:
        pytest.skip("needs kubectl or kustomize")
    manifests = render(K8S / "overlays" / "local")
    original = json.loads(json.dumps(only(manifests, "Deployment")))
    ports = free_ports("grpc", "http", "engine-metrics")
    path = tmp_path_factory.mktemp("play") / "pod.yaml"
    path.write_text(yaml.safe_dump_all(playable(manifests, store, ports)), encoding="utf-8")
    with running_podman() as podman:
        for container in original["spec"]["template"]["spec"]["containers"]:
            podman.load(container["image"])
        podman.run("play", "kube", str(path))
        yield RunningPod(podman, ports, original)


def await_serving(pod: RunningPod, within_s: float = 300.0) -> None:
    """Wait for what the kubelet's readiness probe waits for."""
    end = time.monotonic() + within_s
    state = None
    with grpc.insecure_channel(f"127.0.0.1:{pod.ports['grpc']}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while state != health_pb2.HealthCheckResponse.SERVING:
            if time.monotonic() > end:
                lines = [
                    pod.podman.run("logs", "--tail", "5", pod.container(name), check=False)
                    for name in ("torchserve", "gateway")
                ]
                raise AssertionError("\n".join(each.stdout + each.stderr for each in lines))
            time.sleep(0.5)
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
                state = answer.status
            except grpc.RpcError:
                state = None


def test_the_pod_becomes_ready_and_answers_through_its_published_port(pod: RunningPod) -> None:
    await_serving(pod)
    with Client(f"127.0.0.1:{pod.ports['grpc']}") as client:
        [item] = client.classify("tiny", [bright_tile(0)])
        assert item.unwrap().label == LABELS[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{pod.ports['http']}/readyz") as answer:
        assert json.load(answer) == {"ready": True}


def test_the_engines_readiness_command_says_that_it_is_ready(pod: RunningPod) -> None:
    await_serving(pod)
    for kind in ("readinessProbe", "livenessProbe"):
        command = pod.specification("torchserve")[kind]["exec"]["command"]
        done = pod.podman.run("exec", pod.container("torchserve"), *command, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_would_reach_the_metrics_of_the_engine(pod: RunningPod) -> None:
    await_serving(pod)
    address = f"http://127.0.0.1:{pod.ports['engine-metrics']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert b"ts_inference_requests_total" in answer.read()


@pytest.mark.parametrize("name", ["torchserve", "gateway"])
def test_the_containers_run_locked_up_as_the_manifest_says(pod: RunningPod, name: str) -> None:
    running = pod.inspect(name)
    assert running["State"]["Status"] == "running"
    assert running["HostConfig"]["ReadonlyRootfs"]
    assert not running["EffectiveCaps"]
    limit = pod.specification(name)["resources"]["limits"]["memory"]
    mib = int(limit[:-2]) * {"Mi": 1, "Gi": 1024}[limit[-2:]]
    assert running["HostConfig"]["Memory"] == mib * 2**20
    status = pod.podman.run("exec", pod.container(name), "cat", "/proc/self/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(facts["Uid"].split()) == {"10001"}
    assert facts["NoNewPrivs"] == "1"
    for path in ("/written", "/models/written"):
        command = ["sh", "-c", f": > {path}"]
        assert pod.podman.run("exec", pod.container(name), *command, check=False).returncode
