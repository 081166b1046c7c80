"""The compose project as an object: up, asked, disturbed, down.

with Stack(Path("model_store")) as stack:
    stack.up()
    stack.predict("mednist", png)

Start and stop are `docker compose` over the very files that a user has; what compose cannot do
(exit codes, health, commands inside, signals) goes through the Docker SDK.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from docker.models.containers import Container

from medserve import __version__
from medserve.errors import ServerFailedError
from medserve.wire import inference_pb2, inference_pb2_grpc
from scripts import images

__all__ = ["Stack", "free_port"]

_MESSAGE_BYTES = 64 * 2**20
_CALL_TIMEOUT_S = 120.0
_PROJECT = "com.docker.compose.project"
_SERVICE = "com.docker.compose.service"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Stack:
    """One compose project on free ports of loopback, gone when the block is left.

    Args:
        store: Folder of the archives.
        project: Its name; two projects never meet.
        overrides: Compose files beside compose.yaml.
        environment: Variables that the compose files read.
    """

    def __init__(
        self,
        store: Path,
        project: str = "medserve-smoke",
        overrides: Sequence[Path | str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.grpc_port, self.http_port = free_port(), free_port()
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.page_url = f"http://127.0.0.1:{self.http_port}/"
        self._client = images.engine()
        self._project = project
        self._command = ["docker", "compose", "--project-name", project]
        for file in ("compose.yaml", *overrides):
            self._command += ["--file", str(file)]
        self._environment = {
            **os.environ,
            "MEDSERVE_VERSION": __version__,
            "MEDSERVE_STORE": str(store.resolve()),
            "MEDSERVE_HTTP_PORT": str(self.http_port),
            "MEDSERVE_GRPC_PORT": str(self.grpc_port),
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()
        self._client.close()

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `docker compose` for this project."""
        return subprocess.run(
            [*self._command, *arguments],
            cwd=images.ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def up(self, *services: str, wait: bool = True, timeout_s: int = 300) -> None:
        """Start from images that exist; with `wait`, until all are healthy.

        Raises:
            ServerFailedError: compose says no; the message is its own and what the containers said.
        """
        waiting = ["--wait", "--wait-timeout", str(timeout_s)] if wait else []
        run = self.compose("up", "--detach", "--no-build", *waiting, *services)
        if run.returncode:
            raise ServerFailedError(f"{run.stderr.strip()}\n{self.logs()}")

    def down(self) -> None:
        """Stop and remove containers, network and volumes."""
        self.compose("down", "--volumes", "--timeout", "10")

    def logs(self, *services: str) -> str:
        """What the containers have printed."""
        return self.compose("logs", "--no-color", "--no-log-prefix", *services).stdout

    def container(self, service: str) -> Container:
        """The container of a service, running or not."""
        labels = [f"{_PROJECT}={self._project}", f"{_SERVICE}={service}"]
        found = self._client.containers.list(all=True, filters={"label": labels})
        if not found:
            raise ServerFailedError(f"there is no container of the service {service}")
        return found[0]

    def state(self, service: str) -> Mapping[str, Any]:
        """Docker's state of a container: Status, ExitCode, Health and more."""
        content: Mapping[str, Any] = self.container(service).attrs["State"]
        return content

    def health(self, service: str) -> str:
        """starting, healthy or unhealthy; "none" for a container that does not run."""
        state = self.state(service)
        return str(state["Health"]["Status"]) if state["Running"] else "none"

    def run_inside(self, service: str, *command: str) -> tuple[int, str]:
        """Exit code and output of a command inside a container."""
        result = self.container(service).exec_run(list(command))
        assert result.exit_code is not None  # it is for commands that run in the background
        assert isinstance(result.output, bytes)
        return result.exit_code, result.output.decode(errors="replace")

    @property
    def network(self) -> str:
        """Name of the network on which the containers know each other."""
        return f"{self._project}_default"

    def channel(
        self, certificate: bytes | None = None, options: Sequence[tuple[str, Any]] = ()
    ) -> grpc.Channel:
        """A connection to the published gRPC port."""
        options = [
            *options,
            ("grpc.max_send_message_length", _MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
        ]
        if certificate is None:
            return grpc.insecure_channel(self.grpc_address, options)
        credentials = grpc.ssl_channel_credentials(certificate)
        return grpc.secure_channel(self.grpc_address, credentials, options)

    def predict(
        self,
        model: str,
        *items: bytes,
        token: str = "",
        certificate: bytes | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> bytes:
        """Answer of one Predictions call with one file, or with many as one packed call."""
        one = len(items) == 1
        named = {"data": items[0]} if one else {f"data.{i}": each for i, each in enumerate(items)}
        return self.ask(model, named, token=token, certificate=certificate, options=options)

    def ask(
        self,
        model: str,
        inputs: Mapping[str, bytes],
        *,
        token: str = "",
        certificate: bytes | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> bytes:
        """Answer of one Predictions call with these inputs, by their names."""
        request = inference_pb2.PredictionsRequest(model_name=model, input=inputs)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        with self.channel(certificate, options) as channel:
            stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
            answer = stub.Predictions(request, metadata=metadata, timeout=_CALL_TIMEOUT_S)
        return bytes(answer.prediction)

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 180.0) -> None:
        """Wait until the condition holds; ServerFailedError with the logs if it never does."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise ServerFailedError(f"not within {timeout_s:g} s: {what}\n{self.logs()}")
            time.sleep(0.5)
