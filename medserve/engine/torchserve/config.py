"""Everything that TorchServe reads when it starts: its folder, three files and a command line.

TorchServe runs in a private folder that is removed with it: configuration, unpacked archives,
sockets and keys. Each value below that is not TorchServe's default says why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from medserve.engine.environment import CANCELLED, UPLOADS, worker_environment
from medserve.engine.torchserve.java import Java
from medserve.engine.torchserve.ports import Ports, is_loopback
from medserve.errors import ConfigError

__all__ = [
    "WORKER_START",
    "EngineSettings",
    "engine_environment",
    "java_command",
    "write_run_dir",
]

# Stands before an archive's own code, so it holds the one module that a worker's Python runs first.
WORKER_START = Path(__file__).parent / "worker_start"
_SOCKET_PATH_BYTES = 107  # of a Unix socket on Linux (sockaddr_un), but for the last zero
_LONGEST_SOCKET = ".ts.sock.65535"  # of a worker, in the folder for temporary files
_MIB = 2**20

# Only what TorchServe fills for gRPC calls, and what handlers add: `handlers/torchserve.py`
# records the request time in seconds (the buckets are fixed, 5 ms to 10 s).
_METRICS = """\
ts_metrics:
  counter:
    - name: ts_inference_requests_total
      unit: Count
      dimensions: [model_name, model_version, hostname]
  gauge:
    - name: QueueTime
      unit: Milliseconds
      dimensions: [Level, Hostname]
    - name: WorkerThreadTime
      unit: Milliseconds
      dimensions: [Level, Hostname]
    - name: WorkerLoadTime
      unit: Milliseconds
      dimensions: [WorkerName, Level, Hostname]
model_metrics:
  counter:
    - name: MedserveItems
      unit: Count
      dimensions: [Status, ModelName, Level]
  histogram:
    - name: MedserveRequestSeconds
      unit: seconds
      dimensions: [ModelName, Level]
"""

# Level, logger and thread stand first, so that `engine_log` can tell a worker's lines apart.
_LOG4J = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error">
  <Appenders>
    <Console name="stdout" target="SYSTEM_OUT">
      <PatternLayout pattern="%p|%c{{1}}|%t|%m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Logger name="MODEL_LOG" level="info"/>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="io.netty.bootstrap.ServerBootstrap" level="error"/>
    <Root level="{level}"><AppenderRef ref="stdout"/></Root>
  </Loggers>
</Configuration>
"""


_NATIVE_SOCKETS = Path("/usr/lib/jni")  # where our images keep the libraries of TorchServe's jar


@dataclass(frozen=True)
class EngineSettings:
    """What `medserve.engine.torchserve` has decided about one TorchServe."""

    host: str
    ports: Ports
    archives: Sequence[str]  # file names in `<run folder>/store`
    max_message_bytes: int
    token_auth: bool
    certificate: Path | None = None
    private_key: Path | None = None
    log_level: str = "warn"
    metrics_host: str = "127.0.0.1"
    allow_loading: bool = False


def write_run_dir(folder: Path, settings: EngineSettings) -> None:
    """Write `config.properties`, `log4j2.xml` and `metrics.yaml` into the private folder.

    Raises:
        ConfigError: Java could not load its libraries from there, or no worker could open its
            socket; neither would say why.
    """
    _refuse_long_path(folder)
    unpacks = not any(_NATIVE_SOCKETS.glob("lib*epoll*.so"))  # Java does, where there are none
    if unpacks and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise ConfigError(
            f"expected a folder from which programs may be run, got {folder.parent}, which is "
            "mounted noexec; set TMPDIR to another one"
        )
    for name in ("store", "workflows", "tmp", CANCELLED, UPLOADS):
        (folder / name).mkdir(exist_ok=True)
    (folder / "log4j2.xml").write_text(_LOG4J.format(level=settings.log_level), encoding="utf-8")
    (folder / "metrics.yaml").write_text(_METRICS, encoding="utf-8")
    lines = [f"{key}={_escaped(value)}\n" for key, value in _properties(folder, settings).items()]
    (folder / "config.properties").write_text("".join(lines), encoding="ascii")


def _refuse_long_path(folder: Path) -> None:
    """Raise ConfigError where the path of a worker's socket would be longer than Unix allows."""
    added = len(os.fsencode(folder / "tmp" / _LONGEST_SOCKET)) - len(os.fsencode(folder.parent))
    longest = _SOCKET_PATH_BYTES - added
    if (found := len(os.fsencode(folder.parent))) > longest:
        raise ConfigError(
            f"expected a folder for sockets whose path has at most {longest} bytes, got {found}: "
            f"{folder.parent}; set TMPDIR to a shorter one"
        )


def java_command(java: Java, folder: Path, max_message_bytes: int) -> list[str]:
    """The command that runs TorchServe in the foreground, without its Python launcher.

    The launcher leaves Java behind when it gets SIGTERM; Java itself drains.
    """
    ts = util.find_spec("ts")
    if ts is None or ts.origin is None:
        raise ConfigError("TorchServe is not installed; run: pip install 'medserve[serve]'")
    home = Path(ts.origin).resolve().parent.parent
    # A request is copied four to five times on its way. The gateway lets one caller have half of
    # its memory here, by default two of the largest messages, and all callers together four.
    heap_mib = max(512, 20 * max_message_bytes // _MIB)
    command = [str(java.path), f"-Xmx{heap_mib}m", "-Xms32m"]
    command += ["-XX:+UseSerialGC"]  # smallest; the threads are the workers', not Java's
    # The optimising compiler would take the workers' core for the first half minute and gain
    # nothing after it; docs/run/performance.md has the figures.
    command += ["-XX:TieredStopAtLevel=1"]
    command += ["-XX:+ExitOnOutOfMemoryError"]  # half-dead is worse than restarted
    command += ["-XX:-UsePerfData"]  # no file in /tmp that other users can read
    if java.version >= 22:
        command += ["--enable-native-access=ALL-UNNAMED"]  # netty; Java warns without
    command += [f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={folder / 'tmp'}"]
    command += [f"-Dlog4j.configurationFile={(folder / 'log4j2.xml').as_uri()}"]
    command += ["-Dlog4j2.formatMsgNoLookups=true"]
    command += ["-cp", f"{home}/ts/frontend/*", "org.pytorch.serve.ModelServer"]
    # -ncs first: an option with many values would swallow it. Without it TorchServe would start
    # from the snapshot of an earlier run instead of this configuration.
    command += ["-ncs", "--python", sys.executable, "-f", str(folder / "config.properties")]
    return command


def engine_environment(
    given: Mapping[str, str], folder: Path, threads: int, max_message_bytes: int
) -> dict[str, str]:
    """Environment of Java, and through it of the workers."""
    environment = worker_environment(given, folder, threads, max_message_bytes)
    for name in ("TS_CONFIG_FILE", "JAVA_TOOL_OPTIONS"):
        environment.pop(name, None)
    # A gateway in another container names folders that both of them see.
    shared = ("MEDSERVE_CANCELLED_DIR", "MEDSERVE_UPLOAD_DIR")
    return (
        environment
        | {name: given[name] for name in shared if given.get(name)}
        | {
            "PYTHONPATH": str(WORKER_START),
            "TEMP": str(folder / "tmp"),
            "LOG_LOCATION": str(folder),
            "METRICS_LOCATION": str(folder),
        }
    )


def _properties(folder: Path, settings: EngineSettings) -> dict[str, str]:
    """TorchServe's keys and values."""
    ports = settings.ports
    properties = {
        # Only inference and metrics are reachable from outside, and only if their host says so.
        "grpc_inference_address": settings.host,
        "grpc_inference_port": str(ports.grpc),
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": str(ports.management),
        # No page in a browser reaches a socket file: TorchServe answers to any Host and Origin.
        "inference_address": f"unix:{folder / 'tmp' / 'i.sock'}",
        "metrics_address": f"http://{settings.metrics_host}:{ports.metrics}",
        # The HTTP management API can load workflows, that is code, whatever enable_model_api says.
        "management_address": f"unix:{folder / 'tmp' / 'm.sock'}",
        "model_store": str(folder / "store"),
        "workflow_store": str(folder / "workflows"),
        "load_models": ",".join(settings.archives),
        "allowed_urls": "nothing",  # a pattern that no URL matches; the default is any URL
        "enable_model_api": str(settings.allow_loading).lower(),
        "enable_envvars_config": "false",
        "disable_token_authorization": str(not settings.token_auth).lower(),
        "token_expiration_min": str(10 * 365 * 24 * 60),  # keys live as long as this server
        "blacklist_env_vars": ".*(TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE).*",
        "max_request_size": str(settings.max_message_bytes),
        "max_response_size": str(settings.max_message_bytes),
        "prefer_direct_buffer": "true",
        "number_of_netty_threads": "2",  # REST only; gRPC has its own
        "netty_client_threads": "1",
        "metrics_mode": "prometheus",
        "metrics_config": str(folder / "metrics.yaml"),
        "disable_system_metrics": "true",  # else a Python process every minute
    }
    if not is_loopback(settings.host):
        # Long-lived clients come back to the load balancer every five minutes, and calls that run
        # then have as long as any model may take. On loopback nobody balances.
        properties["grpc_inference_max_connection_age_ms"] = "300000"
        properties["grpc_inference_max_connection_age_grace_ms"] = "3600000"
    if settings.certificate and settings.private_key:
        properties["enable_grpc_ssl"] = "true"
        properties["certificate_file"] = str(settings.certificate.resolve())
        properties["private_key_file"] = str(settings.private_key.resolve())
    return properties


def _escaped(value: str) -> str:
    """A value as Java's properties format wants it: Latin-1 at most, backslashes doubled."""
    if "\n" in value or "\r" in value:
        raise ConfigError(f"expected a value without line breaks, got {value!r}")
    units = value.replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
    return "".join(chr(code) if 32 <= code < 127 else f"\\u{code:04x}" for code in codes)
