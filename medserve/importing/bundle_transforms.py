"""The transforms of a MONAI bundle before and after its network, as rules of a description.

Each transform is one of the lists below with arguments that are listed there, too: an argument
that is not known could change the answer. The rules are those of MONAI 1.6.1.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medserve.errors import ConfigError
from medserve.importing.bundle_config import Component

__all__ = ["Postprocessing", "Preprocessing"]

_INFINITY = float("inf")
_STORED = "ijk"
_KEEPS = ("keys", "allow_missing_keys", "meta_keys", "meta_key_postfix")  # no answer hangs on them
_PLAIN_TYPES = ("float32", None)
_READERS = (None, "NibabelReader", "ITKReader", "nibabelreader", "itkreader")
_Step = Mapping[str, Any]


@dataclass
class Preprocessing:
    """What happens to an image before the network sees it."""

    key: str
    orientation: str | None = None
    spacing_mm: list[float] | None = None
    order: int = 1
    steps: list[Callable[[int], list[_Step]]] = field(default_factory=list)
    is_normalised_first: bool = False
    is_cropped: bool = False

    @classmethod
    def read(cls, chain: Component, transforms: Sequence[Component]) -> Preprocessing:
        """Read the transforms of a chain in their order.

        Raises:
            ConfigError: one of them, an argument or their order cannot be served alike.
        """
        if not transforms or transforms[0].target != "LoadImaged":
            raise ConfigError(
                f"{chain.name}: expected LoadImaged as its first transform, got "
                f"{transforms[0].target if transforms else 'none'}"
            )
        found = cls(key=_key(transforms[0]))
        for each in transforms:
            if each.target not in _BEFORE:
                raise _unknown(each)
            if _key(each) != found.key:
                raise each.refused("keys", repr(found.key), each.get("keys"))
            each.must("lazy", False)
            _BEFORE[each.target](found, each)
        return found

    @property
    def is_spatial(self) -> bool:
        """Whether the network sees another grid than the file's."""
        return bool(self.orientation or self.spacing_mm or self.is_cropped)

    def normalisation(self, channels: int) -> list[list[_Step]]:
        """Return the steps of each channel."""
        of_each = [
            [step for make in self.steps for step in make(channel)] for channel in range(channels)
        ]
        return [steps or [{"kind": "none"}] for steps in of_each]

    def volume(self, across: int | None) -> dict[str, Any]:
        """Return keys of the section `volume`; planes lie across an axis that then is the first."""
        axes = [0, 1, 2]
        if across is not None:
            axes.insert(0, axes.pop(across))
        codes, spacing_mm = self.orientation or _STORED, self.spacing_mm or [0.0] * 3
        resampling: dict[str, Any] = {"normalise_first": self.is_normalised_first}
        if self.spacing_mm:
            resampling |= {"kind": "centres", "order": self.order, "inverse_order": self.order}
        return {
            "spacing_mm": [spacing_mm[axis] for axis in axes],
            "orientation": "".join(codes[axis] for axis in axes),
            "resampling": resampling,
            **({"roi": {"kind": "foreground"}} if self.is_cropped else {}),
        }

    def refuse_after_crop(self, each: Component) -> None:
        """Refuse what would see the cropped image: here the crop comes last."""
        if self.is_cropped:
            raise ConfigError(
                f"{each.name}: expected no transform of intensities or grids after "
                f"CropForegroundd, got this one; a bundle with it cannot be imported"
            )


@dataclass
class Postprocessing:
    """What happens to the scores of the network."""

    name: str
    activation: str | None = None
    inverted: Component | None = None
    is_nearest: bool = False
    restored: str = "logits"
    is_decided: bool = False
    is_thresholded: bool = False
    written: list[tuple[int, int]] = field(default_factory=list)
    largest: tuple[int, ...] | None = None
    is_tidied_before: bool = False

    @classmethod
    def read(
        cls, chain: Component, transforms: Sequence[Component], preprocessing: str
    ) -> Postprocessing:
        """Read the transforms of a chain in their order.

        Args:
            chain: What stands around them.
            transforms: Of the key `pred`.
            preprocessing: Where the chain stands that is inverted.

        Raises:
            ConfigError: one of them, an argument or their order cannot be served alike.
        """
        found = cls(chain.name)
        for each in transforms:
            if each.target not in _AFTER:
                raise _unknown(each)
            if _key(each) != "pred":
                raise each.refused("keys", "'pred'", each.get("keys"))
            if each.target == "Invertd":
                _invert(found, each, preprocessing)
            else:
                _AFTER[each.target](found, each)
        if not found.is_decided:
            raise ConfigError(
                f"{chain.name}: expected AsDiscreted, which turns scores into labels, there is "
                "none; a bundle that answers scores cannot be imported"
            )
        return found

    def labels(
        self, before: Preprocessing, outputs: Sequence[str]
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return the names by label, and keys of the section `volume`.

        Raises:
            ConfigError: the workflow gives no mask of labels on the grid of the file.
        """
        if before.is_spatial and self.inverted is None:
            raise ConfigError(
                f"{self.name}: expected Invertd, for the network sees another grid than the "
                "file's, there is none; a bundle without it cannot be imported"
            )
        labels, regions = tuple(outputs), dict[str, int]()
        if self.is_thresholded:
            labels, regions = self._regions(outputs)
        elif len(outputs) < 2:
            raise ConfigError(
                f"{self.name}: expected a threshold for a network of one channel, got argmax"
            )
        if self.largest is not None and self.largest != tuple(range(1, len(labels))):
            raise ConfigError(
                f"{self.name}: KeepLargestConnectedComponentd: applied_labels: expected all of "
                f"1 to {len(labels) - 1}, got {self.largest}; a bundle with it cannot be imported"
            )
        is_other_grid = before.is_spatial and self.restored == "labels"
        if self.largest is not None and is_other_grid and not self.is_tidied_before:
            raise ConfigError(
                f"{self.name}: KeepLargestConnectedComponentd: expected it on the grid on which "
                "labels are decided, got it after Invertd; a bundle with it cannot be imported"
            )
        if self.is_tidied_before and before.is_spatial and self.restored != "labels":
            raise ConfigError(
                f"{self.name}: expected KeepLargestConnectedComponentd and Invertd both once "
                f"labels are decided, got them apart; a bundle with it cannot be imported"
            )
        resampling = dict(before.volume(None)["resampling"])
        if self.is_nearest and before.spacing_mm:
            resampling["inverse_order"] = 0
        restored = self.restored if before.is_spatial else "logits"
        return labels, {
            "resampling": resampling,
            "restored": restored,
            **({"regions": regions} if regions else {}),
            **({"largest_component": True} if self.largest is not None else {}),
        }

    def _regions(self, outputs: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
        """Return the names by label, and the channel that writes each, in the order of writing."""
        written = self.written or [(1, 0)]
        if sorted(channel for _, channel in written) != list(range(len(outputs))):
            raise ConfigError(
                f"{self.name}: expected one label for each of {len(outputs)} channels above "
                f"the threshold, got {len(written)}; a bundle that writes a mask for each channel "
                f"cannot be imported"
            )
        named = {label: outputs[channel] for label, channel in written}
        labels = [named.get(label, f"unused {label}") for label in range(1, max(named) + 1)]
        return ("background", *labels), {named[label]: channel for label, channel in written}


def _key(each: Component) -> str:
    key = each.single("keys")
    if not isinstance(key, str):
        raise each.refused("keys", "one key", key)
    return key


def _unknown(each: Component) -> ConfigError:
    return ConfigError(
        f"{each.config.path}: {each.where}: expected a transform that an archive can repeat, got "
        f"{each.target}; a bundle with it cannot be imported"
    )


# ---- before the network


def _load(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "reader", "image_only", "ensure_channel_first", "dtype", "overwriting",
              "simple_keys", "prune_meta_pattern", "prune_meta_sep")  # fmt: skip
    each.must("reader", *_READERS)
    each.must("dtype", *_PLAIN_TYPES)


def _channel_first(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "channel_dim", "strict_check")
    each.must("channel_dim", None, "no_channel")


def _typed(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "data_type", "dtype", "device", "wrap_sequence", "track_meta")
    each.must("dtype", *_PLAIN_TYPES)
    each.must("track_meta", None, True)


def _orientation(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "axcodes", "as_closest_canonical", "labels", "lazy")
    if found.spacing_mm or found.orientation or found.is_cropped:
        raise ConfigError(f"{each.name}: expected it once and before Spacingd, got it later")
    codes = "RAS" if each.flag("as_closest_canonical") else each.get("axcodes")
    pairs = [set("RL"), set("AP"), set("SI")]
    if (
        not isinstance(codes, str)
        or len(codes) != 3
        or sorted(next((n for n, pair in enumerate(pairs) if code in pair), 3) for code in codes)
        != [0, 1, 2]
    ):
        raise each.refused("axcodes", "axes such as RAS", codes)
    found.orientation = codes


def _spacing(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "pixdim", "mode", "padding_mode", "diagonal", "align_corners", "dtype",
              "scale_extent", "recompute_affine", "min_pixdim", "max_pixdim",
              "ensure_same_shape", "lazy")  # fmt: skip
    found.refuse_after_crop(each)
    if found.spacing_mm:
        raise ConfigError(f"{each.name}: expected it once, got it twice")
    each.must("mode", "bilinear", "nearest")
    each.must("padding_mode", "border")
    for key in ("diagonal", "scale_extent", "recompute_affine"):
        each.must(key, False)
    each.must("align_corners", False, None)
    each.must("dtype", "float64", *_PLAIN_TYPES)
    for key in ("min_pixdim", "max_pixdim"):
        each.must(key, None)
    pixdim = each.get("pixdim")
    sides = pixdim if isinstance(pixdim, list) else [pixdim] * 3
    if len(sides) != 3 or not all(
        isinstance(side, int | float) and not isinstance(side, bool) and side < _INFINITY
        for side in sides
    ):
        raise each.refused("pixdim", "3 spacings", pixdim)
    found.spacing_mm = [max(0.0, float(side)) for side in sides]
    found.order = 0 if each.single("mode", "bilinear") == "nearest" else 1
    found.is_normalised_first = bool(found.steps)


def _scale_range(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "a_min", "a_max", "b_min", "b_max", "clip", "dtype")
    each.must("dtype", *_PLAIN_TYPES)
    low, high = each.number("a_min"), each.number("a_max")
    new_low, new_high = each.number("b_min"), each.number("b_max")
    if not low < high or not new_low < new_high:
        raise each.refused("a_max", "a_min < a_max and b_min < b_max", each.get("a_max"))
    is_clipped = each.flag("clip")
    if is_clipped and (new_low, new_high) == (0.0, 1.0):
        _add(found, each, {"kind": "window", "low": low, "high": high})
        return
    deviation = (high - low) / (new_high - new_low)
    limits = (low, high) if is_clipped else (-_INFINITY, _INFINITY)
    mean = low - new_low * deviation
    _add(found, each, _standard(mean, deviation, *limits))


def _scale(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "minv", "maxv", "factor", "channel_wise", "dtype")
    each.must("dtype", *_PLAIN_TYPES)
    each.must("factor", None)
    low, high = each.number("minv", 0.0), each.number("maxv", 1.0)
    if not low < high:
        raise each.refused("maxv", "minv < maxv", high)
    steps: list[_Step] = [{"kind": "min_max"}]
    if (low, high) != (0.0, 1.0):
        deviation = 1 / (high - low)
        steps.append(_standard(-low * deviation, deviation))
    _add(found, each, *steps, of_each_channel=each.flag("channel_wise"))


def _normalise(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "subtrahend", "divisor", "nonzero", "channel_wise", "dtype")
    each.must("dtype", *_PLAIN_TYPES)
    is_nonzero, by_channel = each.flag("nonzero"), each.flag("channel_wise")
    subtrahend, divisor = each.single("subtrahend"), each.single("divisor")
    if subtrahend is None and divisor is None:
        kind = "z_score_nonzero" if is_nonzero else "z_score"
        _add(found, each, {"kind": kind}, of_each_channel=by_channel)
        return
    if is_nonzero or by_channel:
        raise each.refused("subtrahend", "none with nonzero or channel_wise", subtrahend)
    if each.number("divisor") <= 0:
        raise each.refused("divisor", "a number above 0", divisor)
    _add(found, each, _standard(each.number("subtrahend"), each.number("divisor")))


def _crop(found: Preprocessing, each: Component) -> None:
    each.only(*_KEEPS, "source_key", "select_fn", "channel_indices", "margin", "allow_smaller",
              "k_divisible", "mode", "start_coord_key", "end_coord_key", "lazy")  # fmt: skip
    if each.get("source_key") != found.key:
        raise each.refused("source_key", repr(found.key), each.get("source_key"))
    if "select_fn" in each.arguments:
        raise each.refused("select_fn", "none", each.arguments["select_fn"])
    each.must("channel_indices", None)
    each.must("margin", 0)
    each.must("k_divisible", 1)
    found.refuse_after_crop(each)
    found.is_cropped = True


def _standard(
    mean: float, deviation: float, low: float = -_INFINITY, high: float = _INFINITY
) -> _Step:
    return {"kind": "standard", "low": low, "high": high, "mean": mean, "deviation": deviation}


def _add(
    found: Preprocessing, each: Component, *steps: _Step, of_each_channel: bool = True
) -> None:
    """Add steps; figures that several channels share cannot be described."""
    found.refuse_after_crop(each)
    if found.spacing_mm and found.is_normalised_first:
        raise ConfigError(
            f"{each.name}: expected all transforms of intensities on one side of Spacingd, got "
            f"them on both; a bundle with it cannot be imported"
        )

    def make(channel: int) -> list[_Step]:
        if channel and not of_each_channel:
            raise each.refused("channel_wise", "true for an image of several channels", False)
        return [dict(step) for step in steps]  # YAML would name one that is shared

    found.steps.append(make)


# ---- after the network


def _activation(found: Postprocessing, each: Component) -> None:
    each.only(*_KEEPS, "sigmoid", "softmax", "other")
    each.must("other", None)
    is_sigmoid, is_softmax = each.flag("sigmoid"), each.flag("softmax")
    if is_sigmoid is is_softmax or found.activation or found.is_decided:
        raise ConfigError(
            f"{each.name}: expected one of softmax and sigmoid, once and before AsDiscreted"
        )
    found.activation = "sigmoid" if is_sigmoid else "softmax"


def _invert(found: Postprocessing, each: Component, preprocessing: str) -> None:
    each.only(*_KEEPS, "transform", "orig_keys", "orig_meta_keys", "nearest_interp", "to_tensor",
              "device", "post_func")  # fmt: skip
    each.must("post_func", None)
    chain = each.get("transform")
    if not isinstance(chain, Component) or chain.where != preprocessing or found.inverted:
        raise ConfigError(f"{each.name}: expected the inverse of preprocessing, once")
    found.inverted = each
    found.is_nearest = each.flag("nearest_interp", default=True)
    found.restored = "probabilities" if found.activation else "logits"
    if found.is_decided:
        if found.is_thresholded and not found.written:
            raise ConfigError(f"{each.name}: expected it before the threshold, got it after it")
        found.restored = "labels"


def _discrete(found: Postprocessing, each: Component) -> None:
    each.only(*_KEEPS, "argmax", "to_onehot", "threshold", "rounding")
    each.must("to_onehot", None)
    each.must("rounding", None)
    threshold = each.single("threshold")
    if found.is_decided or each.flag("argmax") is not (threshold is None):
        raise ConfigError(f"{each.name}: expected one of argmax and threshold, once")
    if threshold is not None:
        if found.activation != "sigmoid":
            raise each.refused("threshold", "one of probabilities after a sigmoid", threshold)
        each.must("threshold", 0.5)
    elif found.activation == "sigmoid":
        raise each.refused("argmax", "a threshold after a sigmoid", True)
    found.is_thresholded, found.is_decided = threshold is not None, True


def _largest(found: Postprocessing, each: Component) -> None:
    each.only(*_KEEPS, "applied_labels", "is_onehot", "independent", "connectivity",
              "num_components")  # fmt: skip
    if not found.is_decided or (found.is_thresholded and not found.written):
        raise ConfigError(f"{each.name}: expected it once labels are decided, got it before")
    each.must("is_onehot", None, False)
    each.must("independent", True)
    each.must("connectivity", None, 3)
    each.must("num_components", 1)
    labels = each.get("applied_labels")
    labels = [labels] if isinstance(labels, int) else labels
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise each.refused("applied_labels", "labels", labels)
    found.largest, found.is_tidied_before = tuple(sorted(labels)), found.inverted is None


def _rules(found: Postprocessing, each: Component) -> None:
    """Read nested `torch.where` that give each voxel the label of the first region it is in."""
    each.only(*_KEEPS, "func", "inv_func", "track_meta", "overwrite")
    text = each.arguments.get("func")
    written = _where(text) if isinstance(text, str) and len(text) < 2000 else None
    if written is None or not found.is_thresholded or found.written:
        raise each.refused(
            "func", "rules such as `lambda x: torch.where(x[[0]] > 0, 1, 0)` after a threshold",
            str(text),
        )  # fmt: skip
    found.written = written[::-1]  # the first test wins: it is written last


def _where(text: str) -> list[tuple[int, int]] | None:
    """Return label and channel of each test, in their order; None for any other function."""
    try:
        tree = ast.parse(text.removeprefix("$").strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(tree, ast.Lambda) or len(tree.args.args) != 1:
        return None
    name, rest = tree.args.args[0].arg, tree.body
    found: list[tuple[int, int]] = []
    while True:
        match rest:
            case ast.Constant(value=0) if found and len({label for label, _ in found}) == len(
                found
            ):
                return found
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="torch"), attr="where"),
                args=[
                    ast.Compare(
                        left=ast.Subscript(
                            value=ast.Name(id=argument),
                            slice=ast.List(elts=[ast.Constant(value=int(channel))]),
                        ),
                        ops=[ast.Gt()],
                        comparators=[ast.Constant(value=0)],
                    ),
                    ast.Constant(value=int(label)),
                    following,
                ],
                keywords=[],
            ) if argument == name and 1 <= label <= 255:
                found.append((label, channel))
                rest = following
            case _:
                return None


def _typed_scores(found: Postprocessing, each: Component) -> None:
    each.only(*_KEEPS, "data_type", "dtype", "device", "wrap_sequence", "track_meta")
    each.must("dtype", *_PLAIN_TYPES)
    each.must("track_meta", None, True)


def _save(found: Postprocessing, each: Component) -> None:
    """Accept any file: the mask lies on the grid of the image, and is asked for by the caller."""


_BEFORE: Mapping[str, Callable[[Preprocessing, Component], None]] = {
    "LoadImaged": _load,
    "EnsureChannelFirstd": _channel_first,
    "EnsureTyped": _typed,
    "CastToTyped": _typed,
    "ToTensord": _typed,
    "Orientationd": _orientation,
    "Spacingd": _spacing,
    "ScaleIntensityRanged": _scale_range,
    "ScaleIntensityd": _scale,
    "NormalizeIntensityd": _normalise,
    "CropForegroundd": _crop,
}
_AFTER: Mapping[str, Callable[[Postprocessing, Component], None]] = {
    "EnsureTyped": _typed_scores,
    "ToTensord": _typed_scores,
    "Activationsd": _activation,
    "Invertd": lambda found, each: None,  # `read` knows what is inverted
    "AsDiscreted": _discrete,
    "KeepLargestConnectedComponentd": _largest,
    "Lambdad": _rules,
    "SaveImaged": _save,
}
