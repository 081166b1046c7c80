"""The registry of rooms: every folder beside this file that has a `model-config.yaml`."""

from __future__ import annotations

from pathlib import Path

from medserve.errors import UnknownModelError
from medserve.spec import ModelSpec

__all__ = ["names", "room", "spec"]

_ROOT = Path(__file__).parent


def names() -> list[str]:
    """Names of all rooms, sorted."""
    return sorted(path.parent.name for path in _ROOT.glob("*/model-config.yaml"))


def room(name: str) -> Path:
    """Folder of one room; UnknownModelError lists the rooms there are."""
    if name not in names():
        raise UnknownModelError(f"expected one of {', '.join(names())}, got {name!r}")
    return _ROOT / name


def spec(name: str) -> ModelSpec:
    """The parsed `model-config.yaml` of one room."""
    return ModelSpec.from_file(room(name) / "model-config.yaml")
