"""Weights of a public encoder, from a file of any library that trained the same one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from medserve.errors import ConfigError

__all__ = ["load_encoder"]


def load_encoder(network: nn.Module, weights: Path) -> int:
    """Fill the `encoder` of a network from a file of tensors; returns how many fit.

    Colour weights fit a grey network: the channels of the first convolution are summed, which is
    what a grey picture shown three times would meet. Keys may carry the prefix `encoder.`, as a
    checkpoint of a whole network has them, or that of a training's weight average. Where another
    library named the layers of the same encoder, they are matched by their order.

    Raises:
        ConfigError: no such file, no tensors in it, or less than half of the encoder.
    """
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds, with a page of text
        raise ConfigError(
            f"{weights}: cannot be read as weights ({type(error).__name__}); expected a file that "
            "torch.save wrote from a state_dict"
        ) from error
    given: Mapping[str, Tensor] = content.get("state_dict", content)
    encoder: nn.Module = network.encoder  # type: ignore[assignment]
    own = encoder.state_dict()
    fitting = _by_name(given, own)
    if 2 * len(fitting) < len(own):
        fitting = _by_order(given, own) or fitting
    if 2 * len(fitting) < len(own):
        raise ConfigError(
            f"{weights}: expected the weights of the same encoder, but only {len(fitting)} of its "
            f"{len(own)} tensors fit; give the --encoder that they were trained with"
        )
    encoder.load_state_dict(fitting, strict=False)
    return len(fitting)


def _by_name(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    fitting = {}
    for key, value in given.items():
        name = _bare(key)
        if name in own and (fitted := _in_shape(value, own[name].shape)) is not None:
            fitting[name] = fitted
    return fitting


def _by_order(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor after the other, all or none; what a file has behind them is a classifier's."""
    fitting = {}
    for (name, wanted), value in zip(own.items(), given.values(), strict=False):
        fitted = _in_shape(value, wanted.shape)
        if fitted is None:
            return {}
        fitting[name] = fitted
    return fitting


def _in_shape(value: Tensor, wanted: torch.Size) -> Tensor | None:
    if value.ndim == 4 and value.shape != wanted and wanted[1] == 1:
        value = value.sum(dim=1, keepdim=True)
    return value if value.shape == wanted else None


def _bare(key: str) -> str:
    for prefix in ("average.module.", "network.", "module.", "model.segformer.", "segformer.",
                   "encoder."):  # fmt: skip
        # SegFormer's own encoder is called `encoder` too: its prefix goes only once.
        if key.startswith(prefix):
            key = key.removeprefix(prefix)
            if prefix in ("model.segformer.", "segformer.", "encoder."):
                break
    return key
