"""The folders and tables that sorted images are taken home in, alike for page and command line."""

from __future__ import annotations

import re
from typing import Any

from medserve.errors import ServerFailedError

__all__ = ["ERRORS", "REVIEW", "STDIN", "csv_cell", "csv_path", "folder_name"]

REVIEW = "_review"
ERRORS = "_errors"
STDIN = "-"  # how the command line names standard input
# A class becomes a folder: one plain name, nothing that means something to a file system.
_FOLDER_NAME = re.compile(r"[^\W_][\w .()+-]{0,79}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def folder_name(label: str) -> str:
    """Return the label as a folder; ServerFailedError where a server gives one that is none."""
    fits = _FOLDER_NAME.fullmatch(label) and not _RESERVED.fullmatch(label)
    if not fits or label.endswith((" ", ".")):
        raise ServerFailedError(f"expected a class that can name a folder, got {label[:80]!r}")
    return label


def csv_path(path: str) -> str:
    """Return the same path, written so that a spreadsheet never takes it for a formula."""
    return f"./{path}" if path.startswith(_FORMULA) and path != STDIN else path


def csv_cell(value: Any) -> Any:
    """Make a foreign text harmless for spreadsheets; other values stay as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
