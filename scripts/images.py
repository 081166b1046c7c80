"""Build the images of `docker/Dockerfile`, and say what came out: size, user, labels."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from docker.errors import DockerException, ImageNotFound

import docker
from medserve import __version__
from medserve.errors import ConfigError

__all__ = ["TARGETS", "ImageFacts", "build", "engine", "facts", "tag"]

ROOT = Path(__file__).resolve().parents[1]
_NAMES = {
    "cpu": "medserve/torchserve-cpu",
    "gpu": "medserve/torchserve-gpu",
    "gateway": "medserve/gateway",
    "cpu-direct": "medserve/direct-cpu",
    "dicom": "medserve/dicom",
}
TARGETS = tuple(_NAMES)
_DEFAULT_HOST = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class ImageFacts:
    """What the engine knows of an image."""

    tag: str
    size_mb: float  # decimal, all layers, as `docker images` shows it
    user: str
    labels: Mapping[str, str]


def tag(target: str) -> str:
    """Name and version of the image of one target."""
    return f"{_NAMES[target]}:{__version__}"


def engine() -> docker.DockerClient:
    """The engine that DOCKER_HOST or the default socket leads to; ConfigError where none runs."""
    _refuse_dead_socket(os.environ.get("DOCKER_HOST") or _DEFAULT_HOST)
    try:
        return docker.from_env(timeout=120)
    except DockerException as error:
        raise ConfigError(f"expected a running Docker engine: {error}") from error


def _refuse_dead_socket(host: str) -> None:
    """Where nobody listens, the engine's own client would leave its socket open."""
    scheme, _, path = host.partition("://")
    if scheme != "unix":
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            raise ConfigError(
                f"expected a running Docker engine, found none at {path} ({error.strerror}); "
                "start it"
            ) from None


def build(target: str, arguments: Mapping[str, str] | None = None, network: str = "") -> None:
    """Build one target with BuildKit and tag it with the version of medserve.

    The engine's own API knows only the old builder, which has no cache mounts: so by command.

    Raises:
        ConfigError: the build failed; what it printed says where.
    """
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    given = {"VERSION": __version__, "REVISION": revision or "unknown", **(arguments or {})}
    command = ["docker", "build", "--file", "docker/Dockerfile", "--target", target]
    command += ["--tag", tag(target)]
    for name, value in given.items():
        command += ["--build-arg", f"{name}={value}"]
    if network:
        command += ["--network", network]
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    run = subprocess.run([*command, "."], cwd=ROOT, env=environment, check=False)
    if run.returncode:
        raise ConfigError(f"{tag(target)} could not be built (exit code {run.returncode})")


def facts(client: docker.DockerClient, name: str) -> ImageFacts:
    """Size, user and labels of an image; ConfigError if there is none of that name."""
    try:
        image = client.images.get(name)
    except ImageNotFound:
        raise ConfigError(f"no image {name}; build it: python scripts/build_images.py") from None
    config = image.attrs["Config"]
    size_mb = image.attrs["Size"] / 10**6
    return ImageFacts(name, size_mb, config["User"], config["Labels"] or {})
