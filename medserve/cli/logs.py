"""Where a long-running command writes what happens: standard error, one line an event."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.logging import RichHandler

from medserve.errors import ConfigError
from medserve.log_line import LogLine

__all__ = ["configure_logging"]


def configure_logging(level: str) -> None:
    """Log from `level` (debug, info, warning, error) upwards."""
    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level: expected debug, info, warning or error, got {level!r}")
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False)
    else:  # a file or a collector: Rich would fold or pad the line to its idea of a width
        handler = logging.StreamHandler()
        handler.setFormatter(LogLine())
    logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[handler])
