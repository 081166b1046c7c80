"""Archives as the contenders need them: built, unpacked, and in a variant for single requests."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from medserve.archive.build import build_archive
from medserve.archive.read import MANIFEST

__all__ = ["build_or_take", "unpack", "with_batch_size", "with_setting", "with_version"]

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
    return _changed(archive, target, {_CONFIG: (rb"(?m)^%b:.*$" % key.encode(), f"{key}: {value}")})


def with_version(archive: Path, store: Path, version: str) -> Path:
    """A copy in `store` as another version of its model."""
    name = archive.name.rsplit("-", 1)[0]
    stated = rb"""(version"?: )["'][^"']+["']"""
    changes = {
        _CONFIG: (stated, rf'\1"{version}"'),
        MANIFEST: (stated, rf'\1"{version}"'),
        "MAR-INF/MANIFEST.json": (rb'(modelVersion": )"[^"]+"', rf'\1"{version}"'),
    }
    return _changed(archive, store / f"{name}-{version}.mar", changes)


def _changed(archive: Path, target: Path, changes: Mapping[str, tuple[bytes, str]]) -> Path:
    """A copy where the first match of a pattern in some members is replaced."""
    with zipfile.ZipFile(archive) as content:
        members = {name: content.read(name) for name in content.namelist()}
    for name, (pattern, replacement) in changes.items():
        members[name], found = re.subn(pattern, replacement.encode(), members[name], count=1)
        if not found:
            raise SystemExit(f"expected {pattern.decode()} in the {name} of {archive.name}")
    manifest = json.loads(members[MANIFEST])
    manifest["members"][_CONFIG] = hashlib.sha256(members[_CONFIG]).hexdigest()
    members[MANIFEST] = json.dumps(manifest, indent=2).encode()
    with zipfile.ZipFile(target, "w") as copy:
        for name, data in members.items():
            copy.writestr(name, data)
    return target
