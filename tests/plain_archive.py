"""An archive that is intact and holds no model, for tests of all that reads archives.

No engine can load it; it is written in a millisecond, where building a real one takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from medserve.archive.read import CARD, MANIFEST, TORCHSERVE_MANIFEST
from tests.tiny_room import _config, bright_tile

__all__ = ["write_archive"]


def write_archive(folder: Path, name: str, version: str) -> Path:
    """Write the archive `name`-`version`.mar into a folder, which is made where it is missing."""
    members = {
        "model-config.yaml": _config(name, version).encode(),
        CARD: f"# {name}\n".encode(),
        f"{name}.py": b"class Tiny: pass\n",
        "golden_input.png": bright_tile(4),
    }
    manifest = {
        "format": 1,
        "name": name,
        "version": version,
        "medserve_version": "0",
        "git_commit": "0" * 40,
        "versions": {},
        "metrics": {},
        "labels": [],
        "members": {path: hashlib.sha256(content).hexdigest() for path, content in members.items()},
    }
    model = {
        "modelName": name,
        "modelVersion": version,
        "handler": f"{name}.py",
        "serializedFile": "model.onnx",
        "configFile": "model-config.yaml",
        "requirementsFile": "requirements.txt",
    }
    members[TORCHSERVE_MANIFEST] = json.dumps({"runtime": "python", "model": model}).encode()
    members[MANIFEST] = json.dumps(manifest).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path
