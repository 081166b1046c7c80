"""What an operator gets wrong: one clear line, and never a container that calls itself healthy."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import docker
from medserve.errors import ServerFailedError
from medserve.gateway.core.tokens import add_token, new_token
from scripts import images
from scripts.stack import Stack
from tests.client.certificates import HAVE_OPENSSL, self_signed
from tests.tiny_room import bright_tile

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

Project = Callable[..., Stack]


@pytest.fixture
def project(built: docker.DockerClient) -> Iterator[Project]:
    """Makes compose projects, and takes them down."""
    made: list[Stack] = []

    def make(store: Path, *overrides: str, **environment: str) -> Stack:
        name = f"medserve-bad-{os.getpid()}"
        made.append(Stack(store, name, overrides, environment))
        return made[-1]

    yield make
    for each in made:
        each.down()


@pytest.fixture
def tiny_store(store: Path, tmp_path: Path) -> Path:
    """A store with one small model."""
    folder = tmp_path / "store"
    folder.mkdir(mode=0o755)
    for path in store.glob("tiny-*.mar"):
        shutil.copy2(path, folder)
    return folder


def _lines(stack: Stack, service: str, text: str) -> list[str]:
    """The lines with that text, once there is one."""
    stack.wait(f"{service} says: {text}", lambda: text in stack.logs(service), timeout_s=120)
    return [line for line in stack.logs(service).splitlines() if text in line]


def _never_healthy(stack: Stack, service: str) -> bool:
    return stack.health(service) in ("none", "starting", "unhealthy")


def test_a_store_that_is_not_there_is_named(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ServerFailedError, match=r"does not exist: .*/nowhere"):
        project(tmp_path / "nowhere").up("torchserve")


def test_a_store_without_archives_is_never_healthy(project: Project, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o755)
    stack = project(tmp_path / "store")
    stack.up(wait=False)
    for service in ("torchserve", "gateway"):
        assert _lines(stack, service, "expected model archives (*.mar) in /models")
        assert _never_healthy(stack, service)
    assert "Traceback" not in stack.logs()


def test_a_corrupt_archive_is_named_and_never_healthy(project: Project, tiny_store: Path) -> None:
    [archive] = tiny_store.glob("*.mar")
    content = bytearray(archive.read_bytes())
    content[content.index(b"from __future__ import annotations")] ^= 1  # within a member
    archive.write_bytes(content)
    stack = project(tiny_store)
    stack.up(wait=False)
    for service in ("torchserve", "gateway"):
        assert archive.name in _lines(stack, service, "was altered after packaging")[0]
        assert _never_healthy(stack, service)


def test_a_port_that_is_taken_is_named(project: Project, tiny_store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ServerFailedError, match=f"{port}.*(in use|already allocated)"):
            project(tiny_store, MEDSERVE_HTTP_PORT=port).up("pod")


def test_a_machine_without_gpu_says_so(
    project: Project, tiny_store: Path, built: docker.DockerClient
) -> None:
    if "nvidia" in built.info().get("Runtimes", {}):
        pytest.skip("this engine has NVIDIA's runtime")
    name, _, version = images.tag("gpu").partition(":")
    stack = project(tiny_store, "compose.gpu.yaml")
    had = built.images.list(name=images.tag("gpu"))
    if not had:  # any image will do: the device is asked for before anything starts
        built.images.get(images.tag("gateway")).tag(name, version)
    try:
        with pytest.raises(ServerFailedError, match="could not select device driver"):
            stack.up("torchserve")
    finally:
        if not had:
            stack.down()
            built.images.remove(images.tag("gpu"))


def test_tokens_and_certificate_are_asked_for_and_missing_ones_named(
    project: Project, tiny_store: Path, tmp_path: Path
) -> None:
    if not HAVE_OPENSSL:
        pytest.skip("openssl is not installed")
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o755)
    stack = project(
        tiny_store,
        "compose.tokens.yaml",
        "compose.tls.yaml",
        MEDSERVE_SECRETS=str(secrets),
    )
    stack.up(wait=False)
    assert "tokens.json" in _lines(stack, "gateway", "/run/medserve/")[0]
    assert _never_healthy(stack, "gateway")

    text, entry = new_token("ward-7", ("tiny",))
    add_token(secrets / "tokens.json", entry)
    (secrets / "tokens.json").chmod(0o644)
    assert "tls.crt" in _lines(stack, "gateway", "/run/medserve/tls")[0]
    assert _never_healthy(stack, "gateway")

    chain, key = self_signed(tmp_path, "gateway")
    for source, name in ((chain, "tls.crt"), (key, "tls.key")):
        shutil.copyfile(source, secrets / name)
        (secrets / name).chmod(0o644)
    stack.wait("the gateway is healthy", lambda: stack.health("gateway") == "healthy")
    trusted = chain.read_bytes()
    assert _predict(stack, trusted, text) == grpc.StatusCode.OK
    for wrong in ("", "nonsense", f"{text}x"):
        assert _predict(stack, trusted, wrong) == grpc.StatusCode.UNAUTHENTICATED


def _predict(stack: Stack, certificate: bytes, token: str) -> grpc.StatusCode:
    """The status of one call over TLS."""
    options = (("grpc.ssl_target_name_override", "localhost"),)
    try:
        stack.predict("tiny", bright_tile(0), token=token, certificate=certificate, options=options)
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call):
            return error.code()
        raise
    return grpc.StatusCode.OK
