"""The folders and tables that sorted images are taken home in, alike for page and command line.

A file lies in one folder: that of its class or, of labels that are independent, that of the label
where exactly one is present, `_none` where none is, and `_several` where several are.

`manifest.csv` tells for each file what the model said, several labels separated by semicolons.
`corrections.csv` beside it tells what a person said, by the digests of files and without their
names; of several rows of one file the last one counts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError, ServerFailedError
from medserve.tasks.classification import Classification, as_finding

__all__ = [
    "CORRECTIONS",
    "ERRORS",
    "MANIFEST",
    "NONE",
    "REVIEW",
    "SEVERAL",
    "STDIN",
    "Correction",
    "correction_rows",
    "csv_cell",
    "csv_path",
    "doubt_first",
    "folder_name",
    "folder_of_labels",
    "found_cells",
    "read_corrections",
    "read_manifest",
]

REVIEW = "_review"
ERRORS = "_errors"
NONE, SEVERAL = "_none", "_several"  # of labels that are independent
MANIFEST = "manifest.csv"
CORRECTIONS = "corrections.csv"
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


def folder_of_labels(present: Sequence[str]) -> str:
    """Return the folder of a file with these of several independent labels; errors as above."""
    if len(present) == 1:
        return folder_name(present[0])
    return SEVERAL if present else NONE


def found_cells(answer: Classification) -> dict[str, str]:
    """Return class, number and probability as a manifest has them; of several labels, several."""
    ids = [str(answer.labels.index(label)) for label, _ in answer.found]
    shares = [f"{share:.6f}" for _, share in answer.found]
    return {"class": answer.finding, "class_id": "; ".join(ids), "probability": "; ".join(shares)}


def csv_path(path: str) -> str:
    """Return the same path, written so that a spreadsheet never takes it for a formula."""
    return f"./{path}" if path.startswith(_FORMULA) and path != STDIN else path


def csv_cell(value: Any) -> Any:
    """Make a foreign text harmless for spreadsheets; other values stay as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


@dataclass(frozen=True)
class Correction:
    """The class that a person gave a file, and what the model had said of it.

    Attributes:
        sha256: Digest of the file; it stands for the file, whose name is not kept.
        label: The class that the person chose.
        predicted: The class that the model gave; empty where it gave none.
        probability: Of the predicted class, as text; empty where there is none.
        by: Name of the person's token or account; empty where nobody has to say.
        at: Time in UTC, as in 2026-01-31T12:00:00Z.
        model: Name of the model that had answered.
        version: Of the model.
        archive_digest: Of the archive that had answered.
        source: Name of the file, only where it was asked for.
    """

    sha256: str
    label: str
    predicted: str
    probability: str
    by: str
    at: str
    model: str
    version: str
    archive_digest: str
    source: str = ""


_COLUMNS = ("sha256", "class", "predicted_class", "probability", "corrected_by", "corrected_at",
            "model", "version", "archive_digest", "source")  # fmt: skip
_MANIFEST_COLUMNS = frozenset(["stored", "sha256", "class", "probability", "status"])
_DOUBT = {"unlike": 0, "review": 1}  # the others follow by their probability alone


def correction_rows(corrections: Iterable[Correction], names: bool = False) -> list[list[str]]:
    """Return the rows of `corrections.csv`, its heading first; with `names`, also of files."""
    columns = len(_COLUMNS) if names else len(_COLUMNS) - 1
    rows = [[str(csv_cell(cell)) for cell in astuple(each)[:columns]] for each in corrections]
    return [list(_COLUMNS[:columns]), *rows]


def read_corrections(folder: Path) -> dict[str, Correction]:
    """Return the last correction of each file of a sorted folder, by the file's digest.

    Raises:
        ConfigError: `corrections.csv` is something else.
    """
    found = {}
    for row in _read(folder / CORRECTIONS, frozenset(_COLUMNS[:-1])):
        cells = [row.get(column) or "" for column in _COLUMNS]
        values = {each.name: cell for each, cell in zip(fields(Correction), cells, strict=True)}
        found[values["sha256"]] = Correction(**values)
    return found


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a sorted folder's manifest; none where it has no manifest.

    Raises:
        ConfigError: `manifest.csv` is something else.
    """
    return _read(folder / MANIFEST, _MANIFEST_COLUMNS)


def _read(path: Path, columns: frozenset[str]) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            if not columns <= set(rows.fieldnames or ()):
                raise ConfigError(
                    f"{path}: expected the columns {', '.join(sorted(columns))}; give the folder "
                    "that `medserve sort` or the page's zip made"
                )
            return [row for row in rows if None not in row and None not in row.values()]
    except (OSError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from error


def doubt_first(row: Mapping[str, str]) -> tuple[int, float]:
    """Return the key that orders rows of a manifest: what most likely is wrong comes first.

    What is unlike the training data comes first, then what the model leaves to a person, then the
    rest; each by the probability of its class, of several labels by the least one, and last a file
    where no label is present.
    """
    shares = [float(each) for each in row["probability"].split(";") if each]
    least = min(shares, default=float(row.get("class") == as_finding(())))
    return _DOUBT.get(row["status"], len(_DOUBT)), least
