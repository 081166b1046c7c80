"""Networks that learned from photographs, with a new last layer, to learn cells.

Two phases are the usual way: first the new layer alone on a frozen backbone, then the last
convolutional part too, at a lower rate. Batch norms of what is frozen keep their statistics.
`EncoderNet` is what a version of this room ships; `TransferNet` is compared with the room's own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import torch
import torchvision.models as zoo
from torch import Tensor, nn

from medserve.errors import ConfigError
from models.blood_cell.network import CellNet
from models.blood_cell.units import UNITS

__all__ = ["Backbone", "Encoder", "EncoderNet", "Freezable", "TransferNet", "Weights"]


class Backbone(enum.StrEnum):
    """The networks that can be transferred."""

    RESNET18 = "resnet18"
    RESNET50 = "resnet50"
    ALEXNET = "alexnet"
    VGG16 = "vgg16"
    MOBILENET = "mobilenet_v3_small"


class Weights(enum.StrEnum):
    """Where the first weights come from, beside a local folder."""

    NONE = "none"  # at random
    IMAGENET = "imagenet"  # downloaded by torchvision


@dataclass(frozen=True)
class _Plan:
    """How one network is made and where its parts are."""

    make: Callable[..., nn.Module]
    head: str  # name of the last layer
    last: tuple[str, ...]  # names of the last convolutional part


_PLANS = {
    Backbone.RESNET18: _Plan(zoo.resnet18, "fc", ("layer4",)),
    Backbone.RESNET50: _Plan(zoo.resnet50, "fc", ("layer4",)),
    # From the last convolution to the end of the features.
    Backbone.ALEXNET: _Plan(zoo.alexnet, "classifier.6", ("features.10",)),
    Backbone.VGG16: _Plan(zoo.vgg16, "classifier.6", ("features.24", "features.26", "features.28")),
    Backbone.MOBILENET: _Plan(
        zoo.mobilenet_v3_small, "classifier.3", ("features.11", "features.12")
    ),
}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision trained with
_HALF = (0.5, 0.5, 0.5)  # what EfficientNet-Lite was trained with, from -1 to 1


class Freezable(nn.Module):
    """A network parts of which can be kept as they are while the rest learns."""

    _frozen: Sequence[nn.Module] = ()

    @property
    def last_convolutions(self) -> list[nn.Module]:
        """The part that the second phase unfreezes."""
        raise NotImplementedError

    def freeze(self, *, but: list[nn.Module]) -> None:
        """Let only the modules in `but` learn; all others keep weights and statistics."""
        free = {id(inner) for each in but for inner in each.modules()}
        learning = {id(parameter) for each in but for parameter in each.parameters()}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        self._frozen = [each for each in self.modules() if id(each) not in free]
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but frozen batch norms stay in evaluation and move no statistic."""
        super().train(mode)
        for each in self._frozen:
            if isinstance(each, nn.BatchNorm2d):
                each.eval()
        return self


class TransferNet(Freezable):
    """A backbone of torchvision and a new last layer.

    Args:
        backbone: Which network.
        classes: Number of labels.
        weights: `Weights`, or a folder with `<backbone>.pth` as torchvision publishes it.

    Raises:
        ConfigError: the weights cannot be had or belong to another network.
    """

    def __init__(
        self, backbone: Backbone, classes: int = 8, weights: Weights | Path = Weights.NONE
    ) -> None:
        super().__init__()
        self.plan = _PLANS[backbone]
        self.network = _load(backbone, weights)
        self.is_pretrained = weights is not Weights.NONE
        outer, _, name = self.plan.head.rpartition(".")
        parent = self.network.get_submodule(outer)
        inputs = cast(nn.Linear, parent.get_submodule(name)).in_features
        setattr(parent, name, nn.Linear(inputs, classes))
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, 3, H, W) in [0, 1] -> logits (N, classes)."""
        return self.network((image - self.mean) / self.deviation)

    @property
    def head(self) -> nn.Module:
        """The new last layer."""
        return self.network.get_submodule(self.plan.head)

    @property
    def last_convolutions(self) -> list[nn.Module]:
        """The part that the second phase unfreezes."""
        return [self.network.get_submodule(name) for name in self.plan.last]


class Encoder(enum.StrEnum):
    """The public encoders, by their names in segmentation-models-pytorch."""

    EFFICIENTNET_LITE0 = "tu-tf_efficientnet_lite0"  # of timm
    RESNET18 = "resnet18"


@dataclass(frozen=True)
class _Public:
    """How one encoder learned from photographs, and what its last convolutional part is."""

    last: tuple[str, ...]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


_ENCODERS = {
    Encoder.EFFICIENTNET_LITE0: _Public(("model.blocks.5", "model.blocks.6"), _HALF, _HALF),
    Encoder.RESNET18: _Public(("layer4",), _MEAN, _DEVIATION),
}


class EncoderNet(CellNet, Freezable):
    """A public encoder, mean over the plane, a new linear head.

    Its weights start at random; `models.encoders.load_encoder` takes them from a file.

    Args:
        encoder: Which one.
        units: As of `CellNet`.
        window: As of `CellNet`.
        side: As of `CellNet`.
        views: As of `CellNet`.
    """

    def __init__(
        self,
        encoder: Encoder = Encoder.EFFICIENTNET_LITE0,
        units: Sequence[Sequence[str]] = UNITS,
        window: int = 84,
        side: int = 112,
        views: int = 1,
    ) -> None:
        super().__init__(units, window, side, views)
        from segmentation_models_pytorch.encoders import get_encoder  # takes seconds

        public = _ENCODERS[encoder]
        self.encoder: nn.Module = get_encoder(encoder.value, weights=None)
        self.head = nn.Linear(self.encoder.out_channels[-1], sum(map(len, units)))
        self._last = public.last
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(public.mean).view(3, 1, 1), persistent=False)
        self.register_buffer(
            "deviation", torch.tensor(public.deviation).view(3, 1, 1), persistent=False
        )

    def encode(self, square: Tensor) -> list[Tensor]:
        """Squares (N, 3, S, S) in [0, 1] -> the last two maps, at a 16th and a 32nd of the side.

        The encoder's blocks may end without a ReLU, which `describe` of the novelty needs.
        """
        maps = self.encoder((square - self.mean) / self.deviation)
        return [torch.relu(each) for each in maps[-2:]]

    @property
    def last_convolutions(self) -> list[nn.Module]:
        """The part that the second phase unfreezes."""
        return [self.encoder.get_submodule(name) for name in self._last]


def _load(backbone: Backbone, weights: Weights | Path) -> nn.Module:
    make = _PLANS[backbone].make
    if weights is Weights.NONE:
        return make(weights=None)
    if weights is Weights.IMAGENET:
        try:
            return make(weights="DEFAULT")
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"expected to download the weights of {backbone}, got {type(error).__name__}; "
                f"put {backbone}.pth into a folder and name it, or start from none"
            ) from error
    return _from_file(make(weights=None), Path(weights) / f"{backbone}.pth", backbone)


def _from_file(network: nn.Module, path: Path, backbone: Backbone) -> nn.Module:
    if not path.is_file():
        raise ConfigError(f"expected weights of {backbone} at {path}, found none")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # of a file that anyone may have written
        raise ConfigError(
            f"{path}: expected the state of torchvision's {backbone}, got something else"
        ) from error
    return network
