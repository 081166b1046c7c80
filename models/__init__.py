"""The registry of rooms: every folder beside this file that has a `model-config.yaml`.

A room may hold variants: other classifiers or networks for the same task, in
`<room>/variants/<variant>/` with a configuration, a card and weights of their own. A variant is a
version of the same served model.
"""

from __future__ import annotations

from pathlib import Path

from medserve.errors import UnknownModelError
from medserve.spec import ModelSpec

__all__ = ["names", "room", "spec", "variants"]

_ROOT = Path(__file__).parent
_CONFIG = "model-config.yaml"


def names() -> list[str]:
    """Names of all rooms, sorted."""
    return sorted(path.parent.name for path in _ROOT.glob(f"*/{_CONFIG}"))


def variants(name: str) -> list[str]:
    """Variants of one room, sorted; what a request gets by its version."""
    return sorted(path.parent.name for path in room(name).glob(f"variants/*/{_CONFIG}"))


def room(name: str, variant: str = "") -> Path:
    """Folder of one room, or of a variant in it; UnknownModelError lists those there are."""
    if name not in names():
        raise UnknownModelError(f"expected one of {', '.join(names())}, got {name!r}")
    if not variant:
        return _ROOT / name
    if variant not in (known := variants(name)):
        there = ", ".join(known) or "none"
        raise UnknownModelError(f"expected a variant of {name} out of {there}, got {variant!r}")
    return _ROOT / name / "variants" / variant


def spec(name: str, variant: str = "") -> ModelSpec:
    """The parsed `model-config.yaml` of one room, or of a variant in it."""
    return ModelSpec.from_file(room(name, variant) / _CONFIG)
