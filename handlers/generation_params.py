"""What a caller may ask of a model that makes images: the input `params`, checked.

    n         images, 1 as a rule
    class     name of a class; by default each image draws its own from its seed
    seed      whole number; image i has the seed + i; by default an arbitrary one, which is answered
    steps     calls of the network an image
    sampler   ddpm, ddim, dpm-solver++
    size      side of the images in pixels
    guidance  weight of the class: 1 the class alone, above it more of the class and less variety
    format    png (default); npz, nifti or dicom: such files beside the PNGs

Errors never quote what came: a caller may have put anything there.
"""

from __future__ import annotations

import enum
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from handlers.params import one_of, refuse_unknown
from medserve.errors import InvalidRequestError
from medserve.inference.generation import SampleSettings
from medserve.spec import ModelSpec
from medserve.spec.generation import GenerationSpec, SamplerKind

__all__ = ["GenerationParams", "SampleFormat"]

_MAX_SEED = 2**32 - 1  # a browser's numbers are exact far beyond it
_KNOWN = ("class", "format", "guidance", "n", "sampler", "seed", "size", "steps")

Kind = TypeVar("Kind", bound=enum.StrEnum)


class SampleFormat(enum.StrEnum):
    """What an answer holds beside one PNG an image."""

    PNG = "png"  # nothing
    NPZ = "npz"  # all images as one NumPy archive
    NIFTI = "nifti"  # all images as the slices of one stack
    DICOM = "dicom"  # one file an image


@dataclass(frozen=True)
class GenerationParams:
    """One call's wishes.

    Attributes:
        count: Images.
        seed: Of the first image; the next ones count up.
        label_id: The class; None draws one from each image's seed.
        settings: How each image is drawn.
        form: What comes beside the PNGs.
    """

    count: int
    seed: int
    label_id: int | None
    settings: SampleSettings
    form: SampleFormat

    @classmethod
    def parse(cls, params: Mapping[str, object], spec: ModelSpec) -> GenerationParams:
        """Check and parse.

        Raises:
            InvalidRequestError: names the known keys, or what the key takes.
        """
        refuse_unknown(params, _KNOWN)
        generation = spec.generation
        assert generation is not None  # the handler has refused to start without
        count = _whole(params, "n", 1, generation.max_images, 1)
        settings = SampleSettings(
            steps=_whole(params, "steps", 1, generation.steps, generation.default_steps),
            sampler=_word(params, "sampler", SamplerKind, generation.default_sampler),
            guidance=_guidance(params, spec, generation),
            size=_size(params, generation),
        )
        _refuse_too_much(count, settings, generation)
        arbitrary = secrets.randbelow(_MAX_SEED - generation.max_images)
        return cls(
            count=count,
            seed=_whole(params, "seed", 0, _MAX_SEED, arbitrary),
            label_id=_label_id(params, spec),
            settings=settings,
            form=_word(params, "format", SampleFormat, SampleFormat.PNG),
        )


def _whole(params: Mapping[str, object], key: str, low: int, high: int, default: int) -> int:
    value = params.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequestError(
            f"params: {key}: expected a whole number from {low} to {high}, got something else"
        )
    if not low <= value <= high:
        came = "less" if value < low else "more"
        raise InvalidRequestError(
            f"params: {key}: expected a whole number from {low} to {high}, got {came}"
        )
    return value


def _word(params: Mapping[str, object], key: str, kind: type[Kind], default: Kind) -> Kind:
    word = one_of(params, key, tuple(kind))
    return default if word is None else kind(word)


def _label_id(params: Mapping[str, object], spec: ModelSpec) -> int | None:
    if "class" not in params:
        return None
    if not spec.labels:
        raise InvalidRequestError(
            "params: class: expected none, for this model was trained without classes; got one"
        )
    value = params["class"]
    if not isinstance(value, str) or value not in spec.labels:
        raise InvalidRequestError(
            f"params: class: expected one of {', '.join(spec.labels)}, got another one; leave it "
            "out for a class by chance"
        )
    return spec.labels.index(value)


def _size(params: Mapping[str, object], generation: GenerationSpec) -> int:
    value = params.get("size", generation.sizes[0])
    if not isinstance(value, int) or isinstance(value, bool) or value not in generation.sizes:
        sizes = " or ".join(map(str, generation.sizes))
        raise InvalidRequestError(
            f"params: size: expected {sizes}, which the weights were trained for, got something "
            "else; enlarge the images afterwards"
        )
    return value


def _guidance(params: Mapping[str, object], spec: ModelSpec, generation: GenerationSpec) -> float:
    value = params.get("guidance", generation.default_guidance)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidRequestError(
            f"params: guidance: expected a number from 0 to {generation.max_guidance:g}, got "
            "something else"
        )
    if not 0 <= value <= generation.max_guidance:
        came = "less" if value < 0 else "more"
        raise InvalidRequestError(
            f"params: guidance: expected a number from 0 to {generation.max_guidance:g}, got {came}"
        )
    if value != 1 and not spec.labels:
        raise InvalidRequestError(
            "params: guidance: expected 1, for this model was trained without classes; got another"
        )
    return float(value)


def _refuse_too_much(count: int, settings: SampleSettings, generation: GenerationSpec) -> None:
    """Keep one call within what a worker does before its time is over."""
    area = (settings.size / generation.sizes[0]) ** 2
    work = math.ceil(count * settings.calls * area)
    if work > generation.max_work:
        raise InvalidRequestError(
            f"params: expected at most {generation.max_work} calls of the network (n * steps, "
            f"more with guidance or a larger size), got {work}; ask for fewer images or steps "
            "in one call"
        )
