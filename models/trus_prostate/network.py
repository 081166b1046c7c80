"""The networks of this room: FPN and U-Net with any encoder, and SegFormer.

    network = build(NetworkName.FPN)                             # what the room ships
    network = build(NetworkName.FPN, encoder="resnet152", size=NetworkSize.PUBLISHED)
    network = build(NetworkName.SEGFORMER, encoder="mit_b2")

All take frames float32 (N, C, H, W) whose sides divide by 32 and answer with logits (N, classes -
1, H, W): a pixel belongs to the structure or not, so the background has no channel of its own.
Weights start at random; `models.encoders.load_encoder` takes over what another training learned.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from medserve.errors import ConfigError

__all__ = [
    "NETWORKS",
    "SIDES_DIVIDE_BY",
    "NetworkName",
    "NetworkSize",
    "SegFormer",
    "build",
]

SIDES_DIVIDE_BY = 32  # every encoder here halves five times


class NetworkName(enum.StrEnum):
    """Which network."""

    FPN = "fpn"  # Kirillov et al., CVPR 2019, arXiv:1901.02446
    UNET = "unet"  # Ronneberger et al., MICCAI 2015, arXiv:1505.04597
    SEGFORMER = "segformer"  # Xie et al., NeurIPS 2021, arXiv:2105.15203


class NetworkSize(enum.StrEnum):
    """How wide the decoder is; the encoder has its own size."""

    COMPACT = "compact"
    LIGHT = "light"
    PUBLISHED = "published"


ENCODERS = {
    # Light, and fast on a CPU; `resnet152` with the published size is what was asked for first.
    NetworkName.FPN: "mobilenet_v2",
    NetworkName.UNET: "resnet18",
    NetworkName.SEGFORMER: "mit_b0",
}
_FPN_WIDTHS = {
    NetworkSize.COMPACT: (64, 32),
    NetworkSize.LIGHT: (64, 64),
    NetworkSize.PUBLISHED: (256, 128),
}
_UNET_WIDTHS = {
    NetworkSize.COMPACT: (96, 48, 32, 24, 16),
    NetworkSize.LIGHT: (128, 64, 48, 32, 16),
    NetworkSize.PUBLISHED: (256, 128, 64, 32, 16),
}
_SEGFORMER_WIDTHS = {
    NetworkSize.COMPACT: 64,
    NetworkSize.LIGHT: 128,
    NetworkSize.PUBLISHED: None,
}
# Table 6 of the SegFormer paper: channels and layers of the four stages, channels of the decoder.
_MIX_TRANSFORMERS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "mit_b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "mit_b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "mit_b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "mit_b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "mit_b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}


class SegFormer(nn.Module):
    """transformers' SegFormer with logits at the size of the frame.

    The published network answers at a quarter of the sides; here these logits are interpolated,
    so that it can take the place of any other network.

    Args:
        model: A `SegformerForSemanticSegmentation`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, H, W) -> logits (N, K, H, W)."""
        coarse: Tensor = self.model(pixel_values=image, return_dict=False)[0]  # (N, K, H/4, W/4)
        return F.interpolate(coarse, size=image.shape[2:], mode="bilinear", align_corners=False)

    @property
    def encoder(self) -> nn.Module:
        """What `load_encoder` fills."""
        encoder: nn.Module = self.model.segformer  # type: ignore[assignment]
        return encoder


def build(
    name: NetworkName = NetworkName.FPN,
    in_channels: int = 1,
    classes: int = 2,
    encoder: str = "",
    size: NetworkSize | str = NetworkSize.LIGHT,
    dropout: float = 0.2,
) -> nn.Module:
    """One network with random weights.

    Args:
        name: Which.
        in_channels: 1 for grey frames.
        classes: Labels, the background included.
        encoder: A name of segmentation-models-pytorch ("resnet152", "mobilenet_v2", "tu-..." for
            any of timm's), or mit_b0 to mit_b5 for SegFormer; empty: the network's light one.
        size: Width of the decoder.
        dropout: In the decoder; the U-Net has none.

    Raises:
        ConfigError: no such encoder or size.
    """
    if size not in list(NetworkSize):
        raise ConfigError(f"expected a size of {', '.join(NetworkSize)}, got {size!r}")
    size = NetworkSize(size)
    encoder = encoder or ENCODERS[name]
    if name is NetworkName.SEGFORMER:
        return _segformer(in_channels, classes - 1, encoder, size, dropout)
    import segmentation_models_pytorch as smp  # takes seconds

    common: dict[str, Any] = {
        "encoder_name": encoder,
        "encoder_weights": None,
        "in_channels": in_channels,
        "classes": classes - 1,
    }
    try:
        if name is NetworkName.UNET:
            unet: nn.Module = smp.Unet(decoder_channels=_UNET_WIDTHS[size], **common)
            return unet
        pyramid, segmentation = _FPN_WIDTHS[size]
        fpn: nn.Module = smp.FPN(
            decoder_pyramid_channels=pyramid,
            decoder_segmentation_channels=segmentation,
            decoder_dropout=dropout,
            **common,
        )
        return fpn
    except (KeyError, RuntimeError) as error:
        raise ConfigError(
            f"expected an encoder of segmentation-models-pytorch such as {ENCODERS[name]} or "
            f"resnet152, or of timm with tu- before its name, got {encoder!r}"
        ) from error


def _segformer(
    in_channels: int, channels: int, encoder: str, size: NetworkSize, dropout: float
) -> SegFormer:
    from transformers import (  # takes seconds
        SegformerConfig,
        SegformerForSemanticSegmentation,
    )

    if encoder not in _MIX_TRANSFORMERS:
        raise ConfigError(
            f"expected an encoder of SegFormer, one of {', '.join(_MIX_TRANSFORMERS)}, got "
            f"{encoder!r}"
        )
    widths, depths, published = _MIX_TRANSFORMERS[encoder]
    config = SegformerConfig(
        num_channels=in_channels,
        hidden_sizes=list(widths),
        depths=list(depths),
        decoder_hidden_size=_SEGFORMER_WIDTHS[size] or published,
        classifier_dropout_prob=dropout,
    )
    config.num_labels = channels
    return SegFormer(SegformerForSemanticSegmentation(config))


NETWORKS = {name.value: partial(build, name) for name in NetworkName}
