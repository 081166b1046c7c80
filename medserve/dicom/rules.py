"""The rules of a node: which images go to which model, and where its results go.

One TOML file with a `[[rule]]` for each. It is checked as a whole when the node starts, and by
`medserve dicom check`, without a model server.
"""

from __future__ import annotations

import enum
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from medserve.dicom.headers import Facts
from medserve.dicom.peers import Destination, read_destination
from medserve.errors import ConfigError, MedserveError
from medserve.tasks.classification import ClassificationOptions
from medserve.tasks.frames import FrameOptions
from medserve.tasks.regression import RegressionOptions
from medserve.tasks.volumes import VolumeOptions

__all__ = ["Conditions", "Kind", "Rule", "RuleTask", "Rules"]

_OPTIONS = {
    "volumes": VolumeOptions,
    "frames": FrameOptions,
    "classification": ClassificationOptions,
    "regression": RegressionOptions,
}
_OWN_OPTIONS = ("output", "format", "overlay", "uncertainty", "explain", "top_k")


class RuleTask(enum.StrEnum):
    """The task of a rule's model, which decides on the unit that it is asked about."""

    VOLUMES = "volumes"  # a series as one volume
    FRAMES = "frames"  # each object of a series
    CLASSIFICATION = "classification"  # each image of a series
    REGRESSION = "regression"  # each image of a series


class Kind(enum.StrEnum):
    """One kind of object that a result may consist of."""

    SEG = "seg"  # Segmentation, one bit a voxel and segment
    LABELMAP = "labelmap"  # Label Map Segmentation: smaller, known to few archives
    SR = "sr"  # Comprehensive SR with the measurements
    SC = "sc"  # a picture of ultrasound frames with the contour


_ALLOWED = {
    RuleTask.VOLUMES: {Kind.SEG, Kind.LABELMAP, Kind.SR},
    RuleTask.FRAMES: {Kind.SEG, Kind.SR, Kind.SC},
    RuleTask.CLASSIFICATION: {Kind.SR},
    RuleTask.REGRESSION: {Kind.SR},
}
_DEFAULT = {
    RuleTask.VOLUMES: (Kind.SEG, Kind.SR),
    RuleTask.FRAMES: (Kind.SEG, Kind.SR, Kind.SC),
    RuleTask.CLASSIFICATION: (Kind.SR,),
    RuleTask.REGRESSION: (Kind.SR,),
}
_Patterns = tuple[str, ...]
_Hours = Annotated[float, Meta(gt=0, le=24 * 365)]


class Conditions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image has to be; every condition that is given counts.

    Attributes:
        modality: Accepted values of Modality (0008,0060).
        series_description: Patterns (`*`, `?`) of SeriesDescription, in any case.
        protocol: Patterns of ProtocolName.
        image_type: Words that ImageType must hold.
    """

    modality: tuple[str, ...] = ()
    series_description: _Patterns = ()
    protocol: _Patterns = ()
    image_type: tuple[str, ...] = ()

    def describe(self, image: Facts) -> bool:
        """Tell whether the image is such a one."""
        return (
            _among(image.modality, self.modality)
            and _like(image.series_description, self.series_description)
            and _like(image.protocol, self.protocol)
            and set(self.image_type) <= set(image.image_type)
        )


class Rule(Conditions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule; an image has to fit every condition that is given.

    Attributes:
        name: Of the rule; part of the identifiers of its results.
        model: The model to ask.
        task: The task of that model.
        version: Of the model; the default of the server if left out.
        options: What to ask for, as in `params` of any call.
        inputs: Of a model that sees several images of a study: by the name of each, which series
            it is. An image counts for the first one whose conditions it fits.
        sop_class: Accepted SOP class UIDs.
        body_part: Accepted values of BodyPartExamined, in any case.
        calling: Accepted calling AE titles.
        images: Fewest and most images of a series.
        max_mb: Megabytes of all images of a series.
        quiet_s: Seconds without a new image after which a series is looked at.
        query: Archive (`AE@host:port`) that is asked how many images the series has.
        give_up_h: Hours after which a series that is not complete, or cannot be answered, is held.
        results: The objects that are made.
        destination: Where they go; the node's own if left out.
        deidentify: Send de-identified copies of the images, and results that refer to them.
        burned_in: De-identify also images whose pixels may show text.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,32}$")]
    model: Annotated[str, Meta(min_length=1)]
    task: RuleTask
    version: str | None = None
    options: dict[str, Any] = {}
    inputs: dict[str, Conditions] = {}
    sop_class: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    calling: tuple[str, ...] = ()
    images: tuple[int, int] = (1, 10_000)
    max_mb: Annotated[float, Meta(gt=0)] = 1000.0
    quiet_s: Annotated[float, Meta(ge=0, le=24 * 3600)] = 60.0
    query: str | None = None
    give_up_h: _Hours = 24.0
    results: tuple[Kind, ...] = ()
    destination: tuple[str, ...] = ()
    deidentify: bool = False
    burned_in: bool = False

    def __post_init__(self) -> None:
        where = f"rule {self.name}"
        kinds = self.kinds
        if wrong := [each for each in kinds if each not in _ALLOWED[self.task]]:
            allowed = ", ".join(sorted(_ALLOWED[self.task]))
            raise ConfigError(
                f"{where}: results: expected {allowed} of {self.task}, got {', '.join(wrong)}"
            )
        if {Kind.SEG, Kind.LABELMAP} <= set(kinds):
            raise ConfigError(f"{where}: results: expected seg or labelmap, got both")
        if (
            self.task in (RuleTask.VOLUMES, RuleTask.FRAMES)
            and Kind.SR in kinds
            and not ({Kind.SEG, Kind.LABELMAP} & set(kinds))
        ):
            raise ConfigError(
                f"{where}: results: a report of {self.task} refers to a segmentation; add seg"
            )
        if not 1 <= self.images[0] <= self.images[1]:
            raise ConfigError(
                f"{where}: images: expected the fewest and the most, such as [20, 400], got "
                f"{list(self.images)}"
            )
        if self.inputs:
            self._check_inputs(where)
        if own := sorted(set(self.options) & set(_OWN_OPTIONS)):
            raise ConfigError(
                f"{where}: options: {', '.join(own)} follow from results; leave them out"
            )
        try:
            msgspec.convert(self.options, _OPTIONS[self.task], strict=True)
        except (msgspec.ValidationError, MedserveError) as error:
            raise ConfigError(f"{where}: options: {error}") from error
        if unknown := sorted(set(self.options) - set(_OPTIONS[self.task].__struct_fields__)):
            raise ConfigError(f"{where}: options: {', '.join(unknown)} is not known to this task")
        if self.deidentify and not self.destinations():
            raise ConfigError(
                f"{where}: deidentify: expected a destination of the rule's own, got none; "
                "de-identified copies go nowhere else"
            )
        if self.burned_in and not self.deidentify:
            raise ConfigError(f"{where}: burned_in: expected it with deidentify alone")
        self.destinations()
        if self.query is not None and not read_destination(self.query).ae_title:
            raise ConfigError(f"{where}: query: expected AE@host:port, got {self.query!r}")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The objects that are made."""
        return self.results or _DEFAULT[self.task]

    def destinations(self) -> tuple[Destination, ...]:
        """Return where the results go; empty for the node's own destinations."""
        return tuple(read_destination(each) for each in self.destination)

    def fits(self, image: Facts, calling: str) -> bool:
        """Tell whether the image, sent under that AE title, is one that this rule is for."""
        return (
            self.describe(image)
            and _among(image.sop_class, self.sop_class)
            and _among(image.body_part.upper(), tuple(each.upper() for each in self.body_part))
            and _among(calling, self.calling)
            and (not self.inputs or self.input_of(image) is not None)
        )

    def input_of(self, image: Facts) -> str | None:
        """Return the input that the image is for; None where it fits none of them."""
        return next((name for name, each in self.inputs.items() if each.describe(image)), None)

    def _check_inputs(self, where: str) -> None:
        if self.task is not RuleTask.VOLUMES or len(self.inputs) < 2:
            raise ConfigError(
                f"{where}: inputs: expected two or more, of the task volumes; leave them out for a "
                f"model of one image"
            )
        for name, each in self.inputs.items():
            if each == Conditions():
                raise ConfigError(
                    f"{where}: inputs.{name}: expected modality, series_description, protocol or "
                    f"image_type, got no condition"
                )


class _File(msgspec.Struct, forbid_unknown_fields=True):
    rule: Annotated[tuple[Rule, ...], Meta(min_length=1)]


class Rules:
    """All rules of a node, by name, in the order of the file."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.by_name = {rule.name: rule for rule in rules}
        if len(self.by_name) != len(rules):
            raise ConfigError("rules: expected a name of its own for each rule, got one twice")

    @classmethod
    def read(cls, path: Path) -> Rules:
        """Read the file; ConfigError names what is wrong and where."""
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(msgspec.convert(content, _File).rule)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"{path}: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def __iter__(self) -> Any:
        return iter(self.by_name.values())


def _among(value: str, accepted: tuple[str, ...]) -> bool:
    return not accepted or value in accepted


def _like(value: str, patterns: _Patterns) -> bool:
    lowered = value.lower()
    return not patterns or any(fnmatchcase(lowered, each.lower()) for each in patterns)
