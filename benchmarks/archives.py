"""Archives as the contenders need them: built, unpacked, and in a variant for single requests."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path

from medserve.archive.build import build_archive
from medserve.archive.read import MANIFEST

__all__ = ["build_or_take", "unpack", "with_batch_size", "with_setting"]

_CONFIG = "model-config.yaml"


def build_or_take(archive: Path | None, model: str, scratch: Path) -> Path:
    """The given archive, or one built from the room of the checkout."""
    return archive or build_archive(model, scratch / "store")


def unpack(archive: Path, folder: Path) -> Path:
    """Everything in the archive, as a worker sees it (our own archives: the names are trusted)."""
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder


def with_batch_size(archive: Path, target: Path, batch_size: int) -> Path:
    """A copy with another batchSize in its configuration, and a manifest that says so."""
    return with_setting(archive, target, "batchSize", batch_size)


def with_setting(archive: Path, target: Path, key: str, value: int) -> Path:
    """A copy with another value for one of TorchServe's keys, and a manifest that says so."""
    with zipfile.ZipFile(archive) as content:
        members = {name: content.read(name) for name in content.namelist()}
    line = f"{key}: {value}".encode()
    config, found = re.subn(rb"(?m)^%b:.*$" % key.encode(), line, members[_CONFIG])
    if not found:
        raise SystemExit(f"expected {key} in the {_CONFIG} of {archive.name}")
    manifest = json.loads(members[MANIFEST])
    manifest["members"][_CONFIG] = hashlib.sha256(config).hexdigest()
    members |= {_CONFIG: config, MANIFEST: json.dumps(manifest, indent=2).encode()}
    with zipfile.ZipFile(target, "w") as copy:
        for name, data in members.items():
            copy.writestr(name, data)
    return target
