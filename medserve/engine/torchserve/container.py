"""The process of a TorchServe container: `medserve serve` for machines, one line per event.

python -m medserve.engine.torchserve.container --store /models

It starts the same `Server` from the same configuration as `medserve serve`, leaves a proof for
`medserve.engine.torchserve.probe`, and on SIGTERM lets running requests finish. A model that
cannot be proven ends it with one line that says why: whoever runs the container starts it again, or
looks.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from medserve.engine.golden import GoldenInput
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.engine.torchserve.ports import Ports
from medserve.engine.torchserve.probe import PROOF_FILE, ProofFile
from medserve.errors import ConfigError, MedserveError
from medserve.log_line import LogLine
from medserve.settings import Settings

__all__ = ["main", "parse"]

_MIB = 2**20

logger = logging.getLogger("medserve.container")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; names and meanings are those of `medserve serve`."""
    parser = argparse.ArgumentParser(
        prog="medserve.engine.torchserve.container", description=__doc__
    )
    add = parser.add_argument
    add("--store", type=Path, help="folder of the archives; MEDSERVE_STORE if not given")
    add("--models", default="", help="comma-separated names; all of the store if not given")
    add("--default", action="append", default=[], metavar="NAME=VERSION")
    add(
        "--host", default="127.0.0.1", help="of the inference API; beyond loopback it asks for keys"
    )
    add("--metrics-host", default="127.0.0.1")
    add("--port", type=int, default=7070)
    add("--management-port", type=int, default=7071, help="on loopback")
    add("--metrics-port", type=int, default=8082)
    add("--workers", type=int, help="processes per model; as its archive says if not given")
    add("--token", action=argparse.BooleanOptionalAction, help="ask for a key")
    add("--tls-cert", type=Path, help="certificate (PEM)")
    add("--tls-key", type=Path, help="its private key (PEM, PKCS #8)")
    add("--max-message-mb", type=int, default=64)
    add("--start-timeout-s", type=float, default=300.0)
    add("--drain-timeout-s", type=float, default=60.0)
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    add("--log-format", choices=("plain", "json"), default="plain")
    add("--proof-file", type=Path, default=PROOF_FILE)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; the exit code."""
    options = parse(arguments)
    _configure_logging(options.log_level, options.log_format)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.proof_file.unlink(missing_ok=True)  # of a container that was killed
    try:
        _serve(options)
    except MedserveError as error:
        logger.error("%s", error.message)
        return 2
    except KeyboardInterrupt:
        logger.info("stopped")
    return 0


def _serve(options: argparse.Namespace) -> None:
    server = Server(_config(options))
    names = ", ".join(f"{info.name} {info.version}" for info in server.archives)
    logger.info("starting TorchServe and proving %s", names)
    started = time.monotonic()
    try:
        with server:
            _proof(server).write(options.proof_file)
            for model in server.ready:
                logger.info(
                    "ready: %s %s, %d workers, its golden input took %.0f ms",
                    *(model.name, model.version, model.workers, model.canary_ms),
                )
            took_s = time.monotonic() - started
            logger.info("serving gRPC on %s after %.1f s", server.inference_address, took_s)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                options.proof_file.unlink(missing_ok=True)  # no new requests from here on
                logger.info("stopping: running requests may finish")
    finally:
        options.proof_file.unlink(missing_ok=True)


def _config(options: argparse.Namespace) -> ServerConfig:
    """The configuration that the command line asks for."""
    defaults = dict(each.partition("=")[::2] for each in options.default)
    if not all(name and version for name, version in defaults.items()):
        raise ConfigError(f"--default: expected NAME=VERSION, got {options.default}")
    return ServerConfig(
        store=options.store or Settings.from_environment().store,
        models=tuple(name.strip() for name in options.models.split(",") if name.strip()),
        defaults=defaults,
        host=options.host,
        metrics_host=options.metrics_host,
        ports=Ports(options.port, options.management_port, options.metrics_port),
        workers=options.workers,
        token_auth=options.token,
        certificate=options.tls_cert,
        private_key=options.tls_key,
        max_message_bytes=options.max_message_mb * _MIB,
        start_timeout_s=options.start_timeout_s,
        drain_timeout_s=options.drain_timeout_s,
    )


def _proof(server: Server) -> ProofFile:
    """Return what the probe needs to ask this server again."""
    return ProofFile(
        inference_address=server.inference_address,
        management_address=server.management_address,
        max_message_bytes=server.config.max_message_bytes,
        models=tuple(
            dataclasses.replace(GoldenInput.of(info), archive=info.path.resolve())
            for info in server.archives
        ),
        key_file=str(server.key_file) if server.key_file else None,
        certificate=str(server.config.certificate) if server.config.certificate else None,
    )


def _configure_logging(level: str, kind: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LogLine(as_json=kind == "json"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level == "info":  # TorchServe's own lines are for who asks for them
        logging.getLogger("medserve.engine").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
