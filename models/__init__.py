"""The registry of rooms: every folder beside this file that has a `model-config.yaml`.

A room may hold variants: other classifiers or networks for the same task, in
`<room>/variants/<variant>/` with a configuration, a card and weights of their own. A variant is a
version of the same served model. Its networks are those that `models/<room>/network.py` names in
`NETWORKS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medserve.errors import ConfigError, UnknownModelError
from medserve.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "names", "networks", "room", "spec", "variants"]

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


def networks(name: str) -> Mapping[str, Callable[..., nn.Module]]:
    """Return what makes each network of a room, the one that is taken unless told first.

    Each is called with the keywords `in_channels` and `classes` (labels, the background included),
    and with those settings of a training that differ from their defaults.
    """
    room(name)
    found: Mapping[str, Callable[..., nn.Module]]
    found = importlib.import_module(f"models.{name}.network").NETWORKS
    return found


def build(name: str, network: str = "", **settings: object) -> nn.Module:
    """Make one network of a room with random weights (seed torch before).

    Raises:
        ConfigError: the room has no such network, or the network has no such setting.
    """
    known = networks(name)
    chosen = network or next(iter(known))
    if chosen not in known:
        raise ConfigError(
            f"the room {name} has the networks {', '.join(known)}, but no {chosen!r}; choose one, "
            f"or add it to NETWORKS in models/{name}/network.py"
        )
    try:
        return known[chosen](**settings)
    except TypeError as error:
        raise ConfigError(f"the network {chosen} of models/{name}/network.py: {error}") from error
