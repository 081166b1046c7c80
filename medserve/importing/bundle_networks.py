"""The network of a MONAI bundle: one of MONAI's own by its arguments, or a file of TorchScript."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from medserve.errors import ConfigError
from medserve.importing.bundle_config import Component
from medserve.importing.described import load_script
from medserve.importing.untrusted import read_checkpoint

__all__ = ["NETWORKS", "SCRIPT", "build", "filled", "scripted"]

NETWORKS = (
    "AttentionUnet", "BasicUNet", "DynUNet", "SegResNet", "SwinUNETR", "UNETR", "UNet", "VNet",
)  # fmt: skip
SCRIPT = "models/model.ts"
_UNUSED = {
    "SwinUNETR": {"img_size", "use_checkpoint"}
}  # of older releases; no weight hangs on them
_SIMPLE = (str, int, float, bool, type(None))
_MAX_NUMBER = 8192  # channels, layers, sides
_MAX_PARAMETERS = 2**29


def build(description: Component, weights: Mapping[str, Any] | None) -> nn.Module:
    """Build a network of MONAI by its arguments, which must be plain values.

    Args:
        description: Of one of `NETWORKS`.
        weights: What it is filled with; None builds it without memory for its weights.

    Raises:
        ConfigError: it cannot be built, or the weights are those of another network.
    """
    arguments = {
        key: _plain(description, key, description.get(key))
        for key in description.arguments
        if key not in _UNUSED.get(description.target, ())
    }
    with torch.device("meta"), _FiguresOnCpu():
        planned = _built(description, arguments)
    count = sum(each.numel() for each in planned.parameters())
    if count > _MAX_PARAMETERS:
        raise ConfigError(
            f"{description.name}: expected at most {_MAX_PARAMETERS} parameters, got {count}"
        )
    if weights is None:
        return planned.eval()
    shapes = {key: tuple(each.shape) for key, each in planned.state_dict().items()}
    for key in sorted(shapes.keys() | weights.keys()):
        found = weights.get(key)
        got = tuple(found.shape) if isinstance(found, torch.Tensor) else None
        if got != shapes.get(key):
            raise ConfigError(
                f"{description.name}: expected {key!r} of shape {shapes.get(key)}, got {got}; the "
                f"weights are those of another network"
            )
    network = _built(description, arguments)
    network.load_state_dict(dict(weights))
    return network.eval()


def filled(description: Component, checkpoint: Path, key: str) -> nn.Module:
    """Build a network of MONAI and fill it from a checkpoint, whose weights may stand at `key`."""
    content = read_checkpoint(checkpoint)
    weights = content.get(key, content)
    if not isinstance(weights, Mapping) or not weights:
        raise ConfigError(f"{checkpoint}: expected weights by name, got something else")
    return build(description, weights)


def scripted(folder: Path, description: Component) -> nn.Module:
    """Load the network of a bundle from its file of TorchScript.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    if (folder / SCRIPT).is_file():
        return load_script(folder / SCRIPT)
    is_known = description.target in NETWORKS
    wanted = "its weights" if is_known else f"a network out of {', '.join(NETWORKS)}"
    raise ConfigError(
        f"{description.name}: expected {wanted} or the file {SCRIPT}, there is neither; download "
        f"it, or write it with `python -m monai.bundle ckpt_export`"
    )


class _FiguresOnCpu(TorchFunctionMode):
    """Let a network that is built without memory read the shares of what it will drop."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(kwargs or {}), **where)


def _built(description: Component, arguments: Mapping[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks import nets

        try:
            network: nn.Module = getattr(nets, description.target)(**arguments)
        except Exception as error:  # whatever a class of MONAI makes of arguments of strangers
            told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ConfigError(
                f"{description.name}: expected arguments that MONAI takes, got others ({told})"
            ) from error
    return network


def _plain(description: Component, key: str, value: Any) -> Any:
    """Return an argument that is made of numbers and texts alone."""
    is_large = isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER
    if isinstance(value, list | tuple) and len(value) <= _MAX_NUMBER:
        return [_plain(description, key, each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(description, key, each) for name, each in value.items()}
    if not isinstance(value, _SIMPLE) or is_large:
        wanted = f"numbers up to {_MAX_NUMBER} and texts"
        raise description.refused(key, wanted, value)
    return value
