"""The networks of the room behind one function: any side in, logits of the same sides out.

| name | paper | sides divide by | light width |
|---|---|---|---|
| `unet` | residual 3D U-Net, arXiv:1606.06650 with arXiv:1512.03385's blocks | 8 | 24 |
| `vnet` | V-Net, arXiv:1606.04797 | 16 | 8 |
| `cenet` | CE-Net, arXiv:1903.02740, slice by slice | 8 (32 as published) | 24 |
| `cenet3d` | the same in 3D | 8 | 16 |
| `segresnet` | SegResNet, arXiv:1810.11654, MONAI's | 8 | 16 |
| `dynunet` | nnU-Net's U-Net, arXiv:1904.08128, MONAI's | 8 | 24 |

Light ones have at most 5 M parameters, for volumes of about 40 x 56 x 40 on a CPU.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medserve.errors import ConfigError
from models.segmentation_3d.cenet import CENet, CENetShape, SliceWise
from models.segmentation_3d.norm import InstanceNorm3d
from models.segmentation_3d.unet import Unet3d
from models.segmentation_3d.vnet import VNet

__all__ = ["NETWORKS", "NetworkName", "NetworkSize", "VolumeNetwork", "build"]


class NetworkName(enum.StrEnum):
    """What can be built."""

    UNET = "unet"
    VNET = "vnet"
    CENET = "cenet"
    CENET3D = "cenet3d"
    SEGRESNET = "segresnet"
    DYNUNET = "dynunet"


class NetworkSize(enum.StrEnum):
    """Which width and depth."""

    LIGHT = "light"  # for small volumes on a CPU
    PUBLISHED = "published"  # as its paper has it


@dataclass(frozen=True)
class _Shape:
    """What a network is built from.

    Attributes:
        in_channels: Channels of the image.
        classes: Labels, the background included.
        width: Channels at full resolution.
        dropout: Share of channels that training drops.
        published: As in the paper where the light one differs by more than the width.
    """

    in_channels: int
    classes: int
    width: int
    dropout: float
    published: bool


@dataclass(frozen=True)
class _Recipe:
    """How one network is made.

    Attributes:
        body: Makes it.
        head: Where in it the last layer is, the one that knows the classes.
        light: Width of the light one.
        published: Width of the paper's.
        multiple: What the sides must divide by.
        flat: Whether the last axis may have any length.
    """

    body: Callable[[_Shape], nn.Module]
    head: str
    light: int
    published: int
    multiple: int = 8
    published_multiple: int = 8
    flat: bool = False


class VolumeNetwork(nn.Module):
    """A network and the zeros that it needs around volumes whose sides do not divide.

    Zeros are put behind the last voxel of each axis and cut off from the answer. With sides that
    divide nothing is put or cut: export with such a window, and the artifact has no trace of it.

    Attributes:
        head_path: Name of the last layer, for a new head over a trained body.
        multiples: What the sides are filled up to a multiple of.
    """

    def __init__(self, body: nn.Module, head: str, multiples: tuple[int, int, int]) -> None:
        super().__init__()
        self.body = body
        self.head_path = f"body.{head}"
        self.multiples = multiples

    def to(self, *arguments: Any, **named: Any) -> Self:
        """As torch's; a network of planes takes the memory format of volumes for its own."""
        wants_volumes = named.get("memory_format") is torch.channels_last_3d
        if wants_volumes and isinstance(self.body, SliceWise):
            named["memory_format"] = torch.channels_last
        return super().to(*arguments, **named)

    @property
    def head(self) -> nn.Module:
        """The layer that knows the classes."""
        return self.get_submodule(self.head_path)

    @property
    def smallest(self) -> tuple[int, int, int]:
        """Sides that smaller volumes are filled up to: the coarsest map is then 3 voxels wide.

        No norm can train on a single voxel; and where a map is narrower than its 3x3x3 kernel,
        torch 2.13's gradient of a bf16 convolution on the CPU reads memory that nobody wrote.
        """
        i, j, k = (1 if multiple == 1 else 3 * multiple for multiple in self.multiples)
        return i, j, k

    def forward(self, image: Tensor) -> Tensor:
        """Image float32 (N, C, I, J, K) -> logits (N, classes, I, J, K)."""
        sides = [int(side) for side in image.shape[2:]]
        missing = [
            max(least, -(-side // multiple) * multiple) - side
            for side, multiple, least in zip(sides, self.multiples, self.smallest, strict=True)
        ]
        if not any(missing):
            return self.body(image)
        padded = F.pad(image, (0, missing[2], 0, missing[1], 0, missing[0]))
        return self.body(padded)[:, :, : sides[0], : sides[1], : sides[2]]


def build(
    name: NetworkName | str,
    *,
    in_channels: int,
    classes: int,
    dropout: float = 0.0,
    width: int | None = None,
    size: NetworkSize | str = NetworkSize.LIGHT,
) -> VolumeNetwork:
    """Make a network with random weights (torch's global generator: seed it before).

    Args:
        name: Which network.
        in_channels: Channels of the image.
        classes: Labels, the background included.
        dropout: Share of whole channels that training drops, from 0 to below 1.
        width: Channels at full resolution; by default that of `size`.
        size: Light, or as its paper has it.

    Raises:
        ConfigError: no such network, or a width or dropout that cannot work.
    """
    if name not in list(NetworkName):
        raise ConfigError(f"expected a network of {', '.join(NetworkName)}, got {name!r}")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"expected a dropout from 0 to below 1, got {dropout:g}")
    if size not in list(NetworkSize):
        raise ConfigError(f"expected a size of {', '.join(NetworkSize)}, got {size!r}")
    recipe = _RECIPES[NetworkName(name)]
    published = size == NetworkSize.PUBLISHED
    chosen = width or (recipe.published if published else recipe.light)
    if chosen < 1 or (name == NetworkName.SEGRESNET and chosen % 8):
        wanted = "a multiple of 8 (its group norm)" if name == NetworkName.SEGRESNET else ">= 1"
        raise ConfigError(f"{name}: expected a width {wanted}, got {chosen}")
    body = recipe.body(_Shape(in_channels, classes, chosen, dropout, published))
    multiple = recipe.published_multiple if published else recipe.multiple
    return VolumeNetwork(body, recipe.head, (multiple, multiple, 1 if recipe.flat else multiple))


def _unet(shape: _Shape) -> nn.Module:
    return Unet3d(shape.in_channels, shape.classes, shape.width, dropout=shape.dropout)


def _vnet(shape: _Shape) -> nn.Module:
    kernel_size = 5 if shape.published else 3  # 5x5x5 costs 4.6 times as much
    return VNet(shape.in_channels, shape.classes, shape.width, kernel_size, shape.dropout)


def _cenet(shape: _Shape) -> nn.Module:
    planes = CENetShape(shape.width, shrinking_stem=shape.published)
    return SliceWise(CENet(shape.in_channels, shape.classes, planes, shape.dropout))


def _cenet3d(shape: _Shape) -> nn.Module:
    blocks = (3, 4, 6, 3) if shape.published else (2, 2, 2, 2)
    volumes = CENetShape(shape.width, blocks, dimensions=3, shrinking_stem=shape.published)
    return CENet(shape.in_channels, shape.classes, volumes, shape.dropout)


def _segresnet(shape: _Shape) -> nn.Module:
    from monai.networks.nets.segresnet import SegResNet  # slow, and wanted here only

    return SegResNet(
        spatial_dims=3,
        init_filters=shape.width,
        in_channels=shape.in_channels,
        out_channels=shape.classes,
        dropout_prob=shape.dropout or None,
        # Interpolation inside a graph is where engines differ; a transposed convolution is not.
        upsample_mode="deconv",
    )


def _dynunet(shape: _Shape) -> nn.Module:
    from monai.networks.nets.dynunet import DynUNet

    network = DynUNet(
        spatial_dims=3,
        in_channels=shape.in_channels,
        out_channels=shape.classes,
        kernel_size=(3, 3, 3, 3),
        strides=(1, 2, 2, 2),
        upsample_kernel_size=(2, 2, 2),
        filters=[shape.width * 2**level for level in range(4)],
        dropout=shape.dropout or None,
    )
    for name, module in list(network.named_modules()):
        if type(module) is nn.InstanceNorm3d:  # ours computes the same, faster
            network.set_submodule(name, InstanceNorm3d(module.num_features))
    return network


_RECIPES: dict[NetworkName, _Recipe] = {
    NetworkName.UNET: _Recipe(_unet, "head", light=24, published=32),
    NetworkName.VNET: _Recipe(
        _vnet, "head", light=8, published=16, multiple=16, published_multiple=16
    ),
    NetworkName.CENET: _Recipe(
        _cenet, "network.head", light=24, published=64, published_multiple=32, flat=True
    ),
    NetworkName.CENET3D: _Recipe(_cenet3d, "head", light=16, published=64, published_multiple=32),
    NetworkName.SEGRESNET: _Recipe(_segresnet, "conv_final.2", light=16, published=32),
    NetworkName.DYNUNET: _Recipe(_dynunet, "output_block.conv", light=24, published=32),
}

NETWORKS = {name.value: partial(build, name) for name in NetworkName}
