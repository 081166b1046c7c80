"""Start TorchServe over a model store, prove its models, and stop it without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from medserve.archive.decisions import Decisions
from medserve.archive.read import ArchiveInfo
from medserve.archive.store import default_versions, name_the_damaged, select_archives
from medserve.archive.unpack import place_archive
from medserve.cores import available_cores
from medserve.engine.environment import CANCELLED, UPLOADS
from medserve.engine.torchserve.calls import (
    EngineAccess,
    TorchServeEngine,
    archive_file_name,
)
from medserve.engine.torchserve.config import (
    EngineSettings,
    engine_environment,
    java_command,
    write_run_dir,
)
from medserve.engine.torchserve.java import Java, find_java
from medserve.engine.torchserve.keys import certificate_name
from medserve.engine.torchserve.log import EngineLog
from medserve.engine.torchserve.ports import (
    Ports,
    choose_ports,
    is_loopback,
    reachable_host,
    resolve,
)
from medserve.engine.torchserve.readiness import Proving, ReadyModel, Target
from medserve.engine.torchserve.supervision import Supervisor
from medserve.errors import (
    ConfigError,
    MedserveError,
    ModelNotReadyError,
    ServerFailedError,
)
from medserve.interrupts import signals_held_back
from medserve.run_folder import RunFolder
from medserve.settings import Address

__all__ = ["Server", "ServerConfig"]

logger = logging.getLogger(__name__)

# Java gets SIGTERM when the process that started it dies, whatever killed that one. Done by a
# first program that then becomes Java: code between fork and exec is unsafe beside threads.
_DIES_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class ServerConfig:
    """What to serve, where, and with how much of the machine."""

    store: Path = Path("model_store")
    models: tuple[str, ...] = ()  # () serves every model of the store
    defaults: Mapping[str, str] = field(default_factory=dict)  # model -> version; else highest
    host: str = "127.0.0.1"  # of the inference API
    metrics_host: str = "127.0.0.1"  # everything else stays on loopback
    ports: Ports = field(default_factory=Ports)  # 0: a free one
    workers: int | None = None  # per model; None: what its archive asks for
    engine_threads: int | None = None  # per worker; None: cores / workers
    token_auth: bool | None = None  # None: off on loopback, on elsewhere
    certificate: Path | None = None  # PEM; with `private_key` turns TLS on
    private_key: Path | None = None
    max_message_bytes: int = 64 * 2**20  # one request or answer; a packed call carries many files
    start_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0  # how long running requests may take after SIGTERM
    log_level: str = "warn"  # of TorchServe itself
    allow_loading: bool = False  # of archives beside those that it is started with
    decided: Decisions = field(default_factory=Decisions)  # while it served before
    watched: bool = False  # damaged and new archives are left to who watches the store

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers: expected at least 1, got {self.workers}")
        if self.engine_threads is not None and self.engine_threads < 1:
            raise ConfigError(f"engine_threads: expected at least 1, got {self.engine_threads}")
        if not 2**20 <= self.max_message_bytes < 2**31:
            raise ConfigError(
                f"max_message_bytes: expected 1 MiB to 2 GiB, got {self.max_message_bytes}"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("TLS needs both a certificate and its private key, got one of them")
        for path in (self.certificate, self.private_key):
            if path is not None and not path.is_file():
                raise ConfigError(f"TLS: expected an existing file, got {path}")


class Server:
    """One TorchServe with its private folder; a context manager that yields it proven ready.

    Start it on the main thread: then, on Linux, it ends even when this process is killed.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.ready: tuple[ReadyModel, ...] = ()
        self.host = resolve(config.host)
        self.archives: list[ArchiveInfo] = select_archives(
            config.store,
            config.models,
            config.decided,
            config.watched,
            name_the_damaged if config.watched else None,
        )
        self.defaults = default_versions(self.archives, config.defaults, config.decided)
        self._ports = config.ports
        self._folder: RunFolder | None = None
        self._process: subprocess.Popen[str] | None = None
        self._log: EngineLog | None = None
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def inference_address(self) -> str:
        """`host:port` of the gRPC inference API, for a client on this machine."""
        return str(Address(reachable_host(self.host), self._ports.grpc))

    @property
    def management_address(self) -> str:
        """`host:port` of the gRPC management API, on loopback."""
        return str(Address("127.0.0.1", self._ports.management))

    @property
    def metrics_url(self) -> str:
        """Where Prometheus reads."""
        return f"http://127.0.0.1:{self._ports.metrics}/metrics"

    @property
    def token_auth(self) -> bool:
        """Whether requests need a key: decided by the address unless the configuration says."""
        if self.config.token_auth is None:
            return not is_loopback(self.host)
        return self.config.token_auth

    @property
    def key_file(self) -> Path | None:
        """The file with the keys, None without token authorization."""
        if not self.token_auth or self._folder is None:
            return None
        return self._folder.path / "key_file.json"

    @property
    def access(self) -> EngineAccess:
        """The way to a server that runs, with keys and certificate as configured."""
        certificate, management = self.config.certificate, self._ports.management
        return EngineAccess(
            Address.parse(self.inference_address),
            Address.parse(self.management_address),
            key_file=self.key_file,
            ca_file=certificate,
            server_name=(
                certificate_name("127.0.0.1", management, certificate) if certificate else None
            ),
            message_bytes=self.config.max_message_bytes,
            store=self._folder.path / "store"
            if self._folder and self.config.allow_loading
            else None,
            why_not_ready=self._why_not_ready,
        )

    @property
    def pid(self) -> int | None:
        """Process id of Java while it runs."""
        return self._process.pid if self._process else None

    @property
    def run_dir(self) -> Path | None:
        """The private folder while the server runs."""
        return self._folder.path if self._folder else None

    @property
    def cancelled_dir(self) -> Path | None:
        """Where a gateway beside the server marks cancelled calls for the workers."""
        return self._folder.path / CANCELLED if self._folder else None

    @property
    def upload_dir(self) -> Path | None:
        """Where a gateway beside the server leaves files that are too large for a message."""
        return self._folder.path / UPLOADS if self._folder else None

    @property
    def engine_threads(self) -> int:
        """Threads of each worker: workers x threads never exceed the cores."""
        if self.config.engine_threads is not None:
            return self.config.engine_threads
        return max(1, available_cores() // max(self._workers(info) for info in self.archives))

    def start(self) -> None:
        """Start Java; returns at once, long before a model is ready.

        Raises:
            ConfigError: no usable Java, TorchServe missing, or a port is taken.
        """
        if self._process is not None:
            raise ServerFailedError("the server runs already")
        java = find_java()
        self._ports = choose_ports(self.host, self.config.ports)
        with signals_held_back():  # a process, thread or folder that nobody knows would stay
            self._folder = RunFolder.create()
            try:
                self._process = self._launch(java, self._folder)
            except BaseException:
                self.stop()
                raise
            assert self._process.stdout is not None
            self._log = EngineLog(self._process.stdout)
            self._log.start()

    def wait_ready(self) -> tuple[ReadyModel, ...]:
        """Wait until every model has answered its golden input.

        Raises:
            ModelNotReadyError: a model cannot be proven; the message gives the worker's reason.
            MedserveError: TorchServe itself ended.
        """
        if self._log is None:
            raise ServerFailedError("the server was not started")
        targets = [
            Target(info, self._workers(info), self.defaults[info.name] == info.version)
            for info in self.archives
        ]
        deadline = time.monotonic() + self.config.start_timeout_s
        self._await_port(deadline)
        self.ready = asyncio.run(self._prove(targets, deadline))
        workers = {(each.archive.name, each.archive.version): each.workers for each in targets}
        assert self.pid is not None  # it answered a moment ago
        self._supervisor = Supervisor(self.access, workers, self.pid)
        self._supervisor.start()
        return self.ready

    def serve_forever(self) -> None:
        """Wait until TorchServe ends, which it never does by itself; then say why it did."""
        if self._process is not None:
            self._process.wait()
            self._check_alive()

    def stop(self) -> None:
        """Let running requests finish, end every process and remove the private folder."""
        if self._supervisor is not None:
            self._supervisor.stop()
        process, self._process = self._process, None
        try:
            if process is not None and process.poll() is None:
                process.terminate()  # Java refuses new requests and drains
                process.wait(self.config.drain_timeout_s)
        except subprocess.TimeoutExpired:
            logger.warning(
                "requests did not end within %g s and are cut off", self.config.drain_timeout_s
            )
        finally:  # also when a second Ctrl-C cuts the wait short
            with signals_held_back():
                self._remove_traces(process)

    def _remove_traces(self, process: subprocess.Popen[str] | None) -> None:
        """End what still runs and remove the private folder."""
        if process is not None:
            _kill_group(process)
        if self._log is not None:
            self._log.join(timeout_s=2.0)
        if self._folder is not None:
            self._folder.remove()
        self._folder, self.ready = None, ()

    def _launch(self, java: Java, run: RunFolder) -> subprocess.Popen[str]:
        """Fill the folder and start Java in it."""
        folder = run.path
        write_run_dir(folder, self._engine_settings())
        for info in self.archives:
            place_archive(info, folder / "store" / archive_file_name(info.name, info.version))
        command = java_command(java, folder, self.config.max_message_bytes)
        environment = engine_environment(
            os.environ, folder, self.engine_threads, self.config.max_message_bytes
        )
        return _launch(command, folder, environment, run.lock_fd)

    async def _prove(self, targets: Sequence[Target], deadline: float) -> tuple[ReadyModel, ...]:
        assert self._log is not None
        engine = TorchServeEngine(self.access)
        try:
            return await Proving(engine, self._log, self._check_alive, deadline).prove(targets)
        finally:
            await engine.drain()

    def _workers(self, info: ArchiveInfo) -> int:
        return self.config.workers or info.spec.serving.min_workers

    def _engine_settings(self) -> EngineSettings:
        return EngineSettings(
            host=self.host,
            ports=self._ports,
            archives=[archive_file_name(info.name, info.version) for info in self.archives],
            max_message_bytes=self.config.max_message_bytes,
            token_auth=self.token_auth,
            certificate=self.config.certificate,
            private_key=self.config.private_key,
            log_level=self.config.log_level,
            metrics_host=resolve(self.config.metrics_host),
            allow_loading=self.config.allow_loading,
        )

    def _await_port(self, deadline: float) -> None:
        """Wait for the last port that TorchServe opens; the keys are written before it."""
        while True:
            self._check_alive()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._ports.management), timeout=1).close()
                return
            if time.monotonic() > deadline:
                raise ModelNotReadyError("TorchServe did not open its ports in time")
            time.sleep(0.1)

    def _why_not_ready(self, name: str, version: str) -> str:
        death = self._log.death(name, version) if self._log else None
        return death.reason if death else ""

    def _check_alive(self) -> None:
        """Raise the reason if Java has ended."""
        if self._process is None or self._process.poll() is None:
            return
        raise self._why_it_ended(self._process.returncode)

    def _why_it_ended(self, code: int) -> MedserveError:
        assert self._log is not None
        self._log.join(timeout_s=2.0)
        if self._log.tail(r"Address already in use|Failed to bind"):
            try:
                choose_ports(self.host, self._ports)
            except ConfigError as error:  # names the port
                return error
        reason = self._log.tail(r"Exception|Error|[Ii]nvalid|error") or self._log.tail()
        return ServerFailedError(f"TorchServe ended by itself (exit code {code}): {reason}")


def _launch(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], lock_fd: int
) -> subprocess.Popen[str]:
    """Start Java in its folder, in a session of its own, with its output in a pipe.

    Of its own, because Ctrl-C must not reach the workers: they have requests to finish.
    """
    # The kernel watches the thread that starts Java, so only one that lasts will do.
    if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        guard = [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid())]
        command = [*guard, *command]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        pass_fds=(lock_fd,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End what is left of Java and its workers; they share one process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()
