"""The training of a network that finds structures: what volumes and frames have in common."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import lightning
import torch
from torch.utils.data import DataLoader

from training.core.config import FitConfig, Setting, write
from training.core.evaluation import Named
from training.core.fit import (
    AveragedNetwork,
    Fitted,
    Score,
    as_it_comes,
    checkpoints_of,
    epoch_of,
    fit_best,
    is_fitted,
    load_fitted,
    seen_in_order,
)
from training.core.split import Split, write_split

__all__ = [
    "Material",
    "SegmentationConfig",
    "SegmentationModule",
    "fit_segmentation",
    "read_material",
    "train_member",
]

_log = logging.getLogger(__name__)

Case = TypeVar("Case", bound=Named)
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class SegmentationConfig(FitConfig):
    """Settings of one network's training; labels and input are the room's."""

    room: Annotated[str, Setting("room whose networks are trained, by its model-config.yaml")] = ""
    variant: Annotated[str, Setting("of the room that --install writes; empty: the room")] = ""
    network: Annotated[str, Setting("which of the room's networks; empty: its first")] = ""
    size: Annotated[str, Setting("such as light or published; empty: the network's own choice")] = (
        ""
    )
    minutes: Annotated[
        float, Setting("end after so many minutes, schedule included; 0: after epochs", minimum=0.0)
    ] = 0.0
    last: Annotated[
        bool, Setting("keep the last weights, so that the fold which validates can also judge")
    ] = False
    dice_weight: Annotated[float, Setting("of 1 - Dice in the loss", minimum=0.0)] = 1.0
    init_from: Annotated[
        Path | None,
        Setting("checkpoint or model.pt to fine-tune; its head too where labels are as many"),
    ] = None
    fold: Annotated[int, Setting("the one that validates", minimum=0)] = 0
    members: Annotated[
        int, Setting("networks, each validated on its fold, that are averaged", minimum=1)
    ] = 1
    fp16_weights: Annotated[
        bool, Setting("store kernels in 16 bits, for half the file; arithmetic keeps 32")
    ] = False
    install: Annotated[bool, Setting("copy the artifact into the room when done")] = False
    folds: Annotated[int, Setting("parts of which one validates", minimum=2)] = 5
    test_share: Annotated[
        float, Setting("share of the subjects that no training sees", minimum=0.0, maximum=0.9)
    ] = 0.2
    dropout: Annotated[
        float, Setting("share of channels that a step drops", minimum=0.0, maximum=0.9)
    ] = 0.0

    # Of a finished member, what its network was built from; it may differ from what is asked now.
    built_from: ClassVar[tuple[str, ...]] = ("network", "size")


Config = TypeVar("Config", bound=SegmentationConfig)


class SegmentationModule(AveragedNetwork):
    """A network that segments, in training; a training by minutes ends its schedule with them."""

    config: SegmentationConfig
    score: ClassVar[Score]
    collate: Callable[[Any], Any] = staticmethod(as_it_comes)  # loaded cases -> a batch
    _started = 0.0

    @property
    def validate_every(self) -> int:
        """Epochs between two validations."""
        return 1

    def on_train_start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def progress(self, share_of_steps: float) -> float:
        """Return the share that is done, by steps or by the clock, whichever is further."""
        if not self.config.minutes:
            return share_of_steps
        spent = (time.monotonic() - self._started) / (60.0 * self.config.minutes)
        return min(1.0, max(share_of_steps, spent))


@dataclass(frozen=True, eq=False)
class Material(Generic[Case, Loaded]):
    """The cases of a training: those that are trained on or validate are in memory."""

    cases: Sequence[Case]
    split: Split
    loaded: Mapping[str, Loaded]

    def part(self, fold: int, name: str) -> list[Loaded]:
        """Return the cases of a part, train or validation, where `fold` is left out."""
        return [self.loaded[each] for each in self.split.parts(fold)[name]]

    def named(self, names: Sequence[str]) -> list[Case]:
        """Return the cases of these names, such as those of the test part."""
        return [case for case in self.cases if case.name in set(names)]


def read_material(
    config: Any,
    cases: Sequence[Case],
    split: Split,
    load: Callable[[Sequence[Case]], Sequence[Loaded]],
) -> Material[Case, Loaded]:
    """Load what is not tested, and write what the training will say of itself.

    Args:
        config: Has `out_dir`, which receives `config.json` and `split.csv`.
        cases: Of the data set.
        split: Of the cases.
        load: Reads and prepares cases.
    """
    write(config, config.out_dir / "config.json")
    write_split(config.out_dir / "split.csv", split)
    used = [case for case in cases if case.name not in split.test]
    names = [case.name for case in used]
    return Material(cases, split, dict(zip(names, load(used), strict=True)))


def train_member(
    config: Config,
    member: int,
    material: Material[Any, Any],
    make: Callable[[Config], SegmentationModule],
) -> Fitted:
    """Train one network, on all folds but its own; a finished one is read instead.

    Members differ in fold, first weights, order and augmentation. A finished one keeps the
    settings that it was trained with: it may be another network or have another width.

    Args:
        config: Of the whole training.
        member: Counted from 0.
        material: What is trained on.
        make: Builds a network with its losses; torch is seeded before.
    """
    folder = config.out_dir / f"member_{member}"
    last = checkpoints_of(folder) / "last.ckpt"
    config = dataclasses.replace(
        config, fold=(config.fold + member) % config.folds, seed=config.seed + member,
        out_dir=folder, resume=config.resume and last.is_file(),
    )  # fmt: skip
    if config.resume and is_fitted(folder):
        epochs = epoch_of(torch.load(last, weights_only=True))
        if config.minutes or epochs >= config.epochs:
            built = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            given: dict[str, Any] = {name: built[name] for name in config.built_from}
            module = make(dataclasses.replace(config, **given))
            return load_fitted(module, folder, module.score)
    write(config, folder / "config.json")
    lightning.seed_everything(config.seed, verbose=False)
    train, validation = (material.part(config.fold, name) for name in ("train", "validation"))
    return fit_segmentation(make(config), train, validation, folder)


def fit_segmentation(
    module: SegmentationModule, train: Sequence[Any], validation: Sequence[Any], out_dir: Path
) -> Fitted:
    """Train on loaded cases, and return the averaged weights of the epoch that validated best."""
    config = module.config
    loaders: list[DataLoader[Any]] = [
        DataLoader(
            list(train), config.batch_size, shuffle=True, generator=seen_in_order(config.seed),  # type: ignore[arg-type]
            collate_fn=module.collate, drop_last=len(train) > config.batch_size,
        ),
        DataLoader(list(validation), config.batch_size, collate_fn=module.collate),  # type: ignore[arg-type]
    ]  # fmt: skip
    return fit_best(
        module, loaders, module.score, out_dir, minutes=config.minutes, last=config.last,
        gradient_clip_val=5.0, check_val_every_n_epoch=module.validate_every,
    )  # fmt: skip
