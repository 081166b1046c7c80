"""Class folders of drawn cells: a disc of its own colour and size for each label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import models
from training.classification.data import LabelledImages

__all__ = ["LABELS", "cell", "cell_folders", "labelled"]

LABELS = models.spec("blood_cell").labels
_PREFIXES = {"immature_granulocyte": ("MMY", "MY", "PMY", "IG"), "neutrophil": ("BNE", "SNE")}
_FOLDERS = {"immature_granulocyte": "ig"}  # as the archive names it
_GROUND = (235, 214, 190)


def cell(label_id: int, generator: np.random.Generator, side: int = 128) -> npt.NDArray[np.uint8]:
    """Colour (side, side, 3): a disc in the middle, its red, green and radius by the label."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    middle = 0.5 + generator.normal(0.0, 0.01, 2)
    inside = np.hypot(rows - middle[0], columns - middle[1]) < 0.08 + 0.02 * label_id
    colour = (30 + 28 * label_id, 200 - 24 * label_id, 140)
    picture = np.where(inside[..., None], colour, _GROUND)
    return np.clip(picture + generator.normal(0.0, 6.0, picture.shape), 0, 255).astype(np.uint8)


def cell_folders(root: Path, count: int, seed: int = 0, side: int = 128) -> Path:
    """Write `count` PNG for each label below `root`, named as the archive names its files."""
    generator = np.random.default_rng(seed)
    for label_id, label in enumerate(LABELS):
        folder = root / _FOLDERS.get(label, label)
        folder.mkdir(parents=True)
        prefixes = _PREFIXES.get(label, (label.upper(),))
        for number in range(count):
            name = f"{prefixes[number % len(prefixes)]}_{number:04d}.png"
            Image.fromarray(cell(label_id, generator, side)).save(folder / name)
    return root


def labelled(count: int, side: int = 128) -> LabelledImages:
    """`count` drawn cells of each label, without files."""
    generator = np.random.default_rng(0)
    label_ids = np.repeat(np.arange(len(LABELS)), count)
    images = np.stack([cell(int(label_id), generator, side) for label_id in label_ids])
    paths = tuple(f"{LABELS[each]}/{i}.png" for i, each in enumerate(label_ids))
    return LabelledImages(images, label_ids, paths, LABELS)
