"""The networks of nnU-Net v2, from the description in its plans.

The names of modules are those of dynamic-network-architectures 0.4.4 (Apache-2.0), so that a
checkpoint fits strictly; several names for one tensor are part of that. Classes are chosen from
the closed lists below and never imported by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medserve.errors import ConfigError

__all__ = ["Ensemble", "build_network"]

_UNETS = "dynamic_network_architectures.architectures."
_NETWORKS = {
    f"{_UNETS}unet.PlainConvUNet": "plain",
    f"{_UNETS}unet.ResidualEncoderUNet": "residual",
    f"{_UNETS}residual_unet.ResidualEncoderUNet": "residual",
}
_CONVOLUTIONS = {"Conv2d": (nn.Conv2d, 2), "Conv3d": (nn.Conv3d, 3)}
_NORMS: dict[str, type[nn.Module]] = {
    each.__name__: each
    for each in (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d)
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {each.__name__: each for each in (nn.LeakyReLU, nn.ReLU)}
_DROPOUTS: dict[str, type[nn.Module]] = {
    each.__name__: each for each in (nn.Dropout2d, nn.Dropout3d)
}
_KNOWN = {
    "plain": {"n_conv_per_stage", "nonlin_first"},
    "residual": {"n_blocks_per_stage", "stem_channels", "block", "bottleneck_channels"},
    "both": {
        "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides",
        "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op",
        "dropout_op_kwargs", "nonlin", "nonlin_kwargs", "deep_supervision",
    },
}  # fmt: skip
_SIMPLE = (int, float, bool, type(None))
_MAX_NUMBER = 4096  # features, layers of a stage, sides of a kernel
_MAX_LAYERS = 64  # of a stage
_MAX_PARAMETERS = 2**30


class Ensemble(nn.Module):
    """Several networks of one shape as one: their scores stand one after the other."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, ...) -> scores (N, networks * classes, ...)."""
        return torch.cat([network(image) for network in self.networks], dim=1)


def build_network(architecture: Mapping[str, Any], channels: int, classes: int) -> nn.Module:
    """Build the network that a configuration of the plans describes, its weights at random.

    Args:
        architecture: The value of `architecture` in the plans: `network_class_name`, `arch_kwargs`.
        channels: Images that the network sees.
        classes: Scores that it gives for a voxel.

    Raises:
        ConfigError: another network than the known ones, or a parameter that they do not have.
    """
    if not isinstance(architecture, Mapping):
        raise ConfigError("plans.json: architecture: expected an object, got something else")
    name = architecture.get("network_class_name")
    if not isinstance(name, str) or name not in _NETWORKS:
        known = " or ".join(sorted({each.rpartition(".")[2] for each in _NETWORKS}))
        raise ConfigError(
            f"plans.json: architecture: expected the network {known}, got {name!r}; networks of "
            f"custom trainers cannot be imported, export yours to ONNX and use `medserve import "
            f"onnx`"
        )
    arguments = architecture.get("arch_kwargs")
    if not isinstance(arguments, Mapping):
        raise ConfigError("plans.json: architecture: expected an object arch_kwargs, got none")
    kind = _NETWORKS[name]
    parameters = _KNOWN["both"] | _KNOWN[kind]
    if unknown := sorted(set(arguments) - parameters):
        listed = ", ".join(sorted(parameters))
        raise ConfigError(
            f"plans.json: arch_kwargs: expected parameters out of {listed}, got {unknown[0]!r}"
        )
    if arguments.get("block") is not None or arguments.get("bottleneck_channels") is not None:
        raise ConfigError("plans.json: arch_kwargs: expected no block but BasicBlockD, got another")
    plan = _Plan.of(arguments, kind)
    try:
        with torch.device("meta"):  # without memory: plans of strangers may ask for any
            count = sum(each.numel() for each in _UNet(plan, channels, classes).parameters())
        if count <= _MAX_PARAMETERS:
            return _UNet(plan, channels, classes)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(
            f"plans.json: arch_kwargs: expected parameters that torch takes, got others ({told})"
        ) from error
    raise ConfigError(
        f"plans.json: arch_kwargs: expected a network of at most {_MAX_PARAMETERS} parameters, got "
        f"{count}"
    )


@dataclass(frozen=True)
class _Plan:
    """The parameters of a U-Net, checked."""

    is_residual: bool
    convolution: Any
    dimensions: int
    features: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    encoder_depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    bias: bool
    norm: tuple[type[nn.Module], Mapping[str, Any]] | None
    dropout: tuple[type[nn.Module], Mapping[str, Any]] | None
    activation: tuple[type[nn.Module], Mapping[str, Any]] | None
    activation_first: bool = False
    stem: int | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any], kind: str) -> _Plan:
        """Read `arch_kwargs`; ConfigError names the parameter that cannot be used."""
        stages = arguments.get("n_stages")
        if not isinstance(stages, int) or not 2 <= stages <= 12:
            raise ConfigError(f"plans.json: n_stages: expected a number from 2 to 12, got {stages}")
        convolution, dimensions = _CONVOLUTIONS[_class(arguments, "conv_op", _CONVOLUTIONS)]
        depth = "n_conv_per_stage" if kind == "plain" else "n_blocks_per_stage"
        stem = arguments.get("stem_channels")
        return cls(
            is_residual=kind == "residual",
            convolution=convolution,
            dimensions=dimensions,
            features=_numbers(arguments, "features_per_stage", stages),
            kernels=_sides(arguments, "kernel_sizes", stages, dimensions),
            strides=_sides(arguments, "strides", stages, dimensions),
            encoder_depths=_numbers(arguments, depth, stages, _MAX_LAYERS),
            decoder_depths=_numbers(arguments, "n_conv_per_stage_decoder", stages - 1, _MAX_LAYERS),
            bias=bool(arguments.get("conv_bias", False)),
            norm=_module(arguments, "norm_op", _NORMS),
            dropout=_module(arguments, "dropout_op", _DROPOUTS),
            activation=_module(arguments, "nonlin", _ACTIVATIONS),
            activation_first=bool(arguments.get("nonlin_first", False)),
            stem=None if stem is None else _numbers(arguments, "stem_channels", 1)[0],
        )


class _ConvBlock(nn.Module):
    """Convolution, dropout, norm, activation; the last two also the other way round."""

    def __init__(
        self,
        plan: _Plan,
        channels: tuple[int, int],
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        is_linear: bool = False,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.conv = plan.convolution(
            *channels, list(kernel), list(stride),
            padding=[(side - 1) // 2 for side in kernel],
            bias=plan.bias if bias is None else bias,
        )  # fmt: skip
        modules: list[nn.Module] = [self.conv]
        if plan.dropout and not is_linear:
            self.dropout = plan.dropout[0](**plan.dropout[1])
            modules.append(self.dropout)
        if plan.norm:
            self.norm = plan.norm[0](channels[1], **plan.norm[1])
            modules.append(self.norm)
        if plan.activation and not is_linear:
            self.nonlin = plan.activation[0](**plan.activation[1])
            modules.append(self.nonlin)
        if plan.activation_first and plan.norm and plan.activation and not is_linear:
            modules[-1], modules[-2] = modules[-2], modules[-1]
        self.all_modules = nn.Sequential(*modules)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.all_modules(image)
        return result


class _ConvBlocks(nn.Module):
    """Blocks one after the other; the first may shrink the image."""

    def __init__(
        self,
        plan: _Plan,
        channels: tuple[int, int],
        kernel: Sequence[int],
        stride: Sequence[int],
        count: int,
    ) -> None:
        super().__init__()
        ones = [1] * plan.dimensions
        self.convs = nn.Sequential(
            _ConvBlock(plan, channels, kernel, stride),
            *(_ConvBlock(plan, (channels[1], channels[1]), kernel, ones) for _ in range(1, count)),
        )

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.convs(image)
        return result


class _ResidualBlock(nn.Module):
    """Two convolutions beside a short cut, averaged where the image shrinks (ResNet-D)."""

    def __init__(
        self,
        plan: _Plan,
        channels: tuple[int, int],
        kernel: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        super().__init__()
        ones = [1] * plan.dimensions
        self.conv1 = _ConvBlock(plan, channels, kernel, stride)
        self.conv2 = _ConvBlock(plan, (channels[1], channels[1]), kernel, ones, is_linear=True)
        self.nonlin2 = plan.activation[0](**plan.activation[1]) if plan.activation else None
        short: list[nn.Module] = []
        if any(step != 1 for step in stride):
            pool = nn.AvgPool2d if plan.dimensions == 2 else nn.AvgPool3d
            short.append(pool(tuple(stride), tuple(stride)))  # type: ignore[arg-type]
        if channels[0] != channels[1]:
            short.append(_ConvBlock(plan, channels, ones, ones, is_linear=True, bias=False))
        self.skip = nn.Sequential(*short) if short else None

    def forward(self, image: Tensor) -> Tensor:
        short = image if self.skip is None else self.skip(image)
        result: Tensor = self.conv2(self.conv1(image)) + short
        return result if self.nonlin2 is None else self.nonlin2(result)


class _ResidualBlocks(nn.Module):
    """Residual blocks one after the other; the first may shrink the image."""

    def __init__(
        self,
        plan: _Plan,
        channels: tuple[int, int],
        kernel: Sequence[int],
        stride: Sequence[int],
        count: int,
    ) -> None:
        super().__init__()
        ones = [1] * plan.dimensions
        self.blocks = nn.Sequential(
            _ResidualBlock(plan, channels, kernel, stride),
            *(
                _ResidualBlock(plan, (channels[1], channels[1]), kernel, ones)
                for _ in range(1, count)
            ),
        )

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.blocks(image)
        return result


class _Encoder(nn.Module):
    """The way down; every stage's maps are kept for the way up."""

    def __init__(self, plan: _Plan, channels: int) -> None:
        super().__init__()
        before = channels
        if plan.is_residual:
            before = plan.stem or plan.features[0]
            ones = [1] * plan.dimensions
            self.stem = _ConvBlocks(plan, (channels, before), plan.kernels[0], ones, 1)
        stages: list[nn.Module] = []
        for width, kernel, stride, depth in zip(
            plan.features, plan.kernels, plan.strides, plan.encoder_depths, strict=True
        ):
            blocks = _ResidualBlocks if plan.is_residual else _ConvBlocks
            stage = blocks(plan, (before, width), kernel, stride, depth)
            stages.append(stage if plan.is_residual else nn.Sequential(stage))
            before = width
        self.stages = nn.Sequential(*stages)
        self.is_residual = plan.is_residual

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.stem(image) if self.is_residual else image
        kept = []
        for stage in self.stages:
            maps = stage(maps)
            kept.append(maps)
        return kept


class _Decoder(nn.Module):
    """The way up; only the finest stage's scores are given, the others served training."""

    def __init__(self, plan: _Plan, encoder: _Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder  # the checkpoint names its tensors here once more
        transposed = nn.ConvTranspose2d if plan.dimensions == 2 else nn.ConvTranspose3d
        ones = [1] * plan.dimensions
        stages, upward, heads = [], [], []
        for level, depth in enumerate(plan.decoder_depths, start=1):
            below, beside = plan.features[-level], plan.features[-level - 1]
            stride: Any = plan.strides[-level]
            upward.append(transposed(below, beside, stride, stride, bias=plan.bias))
            stages.append(
                _ConvBlocks(plan, (2 * beside, beside), plan.kernels[-level - 1], ones, depth)
            )
            heads.append(plan.convolution(beside, classes, 1, 1, 0, bias=True))
        self.stages = nn.ModuleList(stages)
        self.transpconvs = nn.ModuleList(upward)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, kept: list[Tensor]) -> Tensor:
        maps = kept[-1]
        for level, (upward, stage) in enumerate(
            zip(self.transpconvs, self.stages, strict=True), start=2
        ):
            maps = stage(torch.cat((upward(maps), kept[-level]), dim=1))
        scores: Tensor = self.seg_layers[-1](maps)
        return scores


class _UNet(nn.Module):
    """A U-Net of nnU-Net, plain or with a residual encoder."""

    def __init__(self, plan: _Plan, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = _Encoder(plan, channels)
        self.decoder = _Decoder(plan, self.encoder, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, ...) -> scores (N, classes, ...)."""
        result: Tensor = self.decoder(self.encoder(image))
        return result


def _class(arguments: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> str:
    """Return the name of a class of torch.nn, out of those that are known."""
    name = arguments.get(key)
    short = name.rpartition(".")[2] if isinstance(name, str) and name.startswith("torch.nn") else ""
    if short not in known:
        raise ConfigError(
            f"plans.json: {key}: expected one of {', '.join(known)} of torch.nn, got {name!r}"
        )
    return short


def _module(
    arguments: Mapping[str, Any], key: str, known: Mapping[str, type[nn.Module]]
) -> tuple[type[nn.Module], Mapping[str, Any]] | None:
    """Return a class of torch.nn and its parameters, or None where there is none."""
    if arguments.get(key) is None:
        return None
    parameters = arguments.get(f"{key}_kwargs") or {}
    if not isinstance(parameters, Mapping) or not all(
        isinstance(value, _SIMPLE) for value in parameters.values()
    ):
        raise ConfigError(f"plans.json: {key}_kwargs: expected numbers, got something else")
    # In place would write over maps that a short cut still needs; the result is the same.
    kept = {name: value for name, value in parameters.items() if name != "inplace"}
    return known[_class(arguments, key, known)], kept


def _numbers(
    arguments: Mapping[str, Any], key: str, count: int, most: int = _MAX_NUMBER
) -> tuple[int, ...]:
    value = arguments.get(key)
    numbers = [value] * count if isinstance(value, int) else value
    if (
        not isinstance(numbers, list)
        or len(numbers) != count
        or not all(isinstance(each, int) and 0 < each <= most for each in numbers)
    ):
        raise ConfigError(
            f"plans.json: {key}: expected {count} whole numbers from 1 to {most}, got "
            f"{str(value)[:100]!r}"
        )
    return tuple(numbers)


def _sides(
    arguments: Mapping[str, Any], key: str, count: int, dimensions: int
) -> tuple[tuple[int, ...], ...]:
    value = arguments.get(key)
    stages = [value] * count if isinstance(value, int) else value
    if not isinstance(stages, list) or len(stages) != count:
        raise ConfigError(f"plans.json: {key}: expected {count} entries, got {str(value)[:100]!r}")
    return tuple(_numbers({key: stage}, key, dimensions) for stage in stages)
