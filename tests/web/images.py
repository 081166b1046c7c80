"""Three hundred images to sort."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiny_room import REPOSITORY

__all__ = ["EACH", "KINDS", "from_archive", "from_examples"]

KINDS = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
EACH = 50
_EXAMPLES = REPOSITORY / "models" / "mednist" / "examples"


def from_archive(archive: Path, folder: Path) -> list[Path]:
    """The first 50 of each kind in the public set, with its names: they repeat between kinds."""
    taken: Counter[str] = Counter()
    with tarfile.open(archive) as files:
        for member in files:
            kind = Path(member.name).parent.name
            content = files.extractfile(member) if kind in KINDS and taken[kind] < EACH else None
            if content is not None:
                taken[kind] += 1
                _write(folder / kind / Path(member.name).name, content.read())
            if sum(taken.values()) == EACH * len(KINDS):
                break
    return sorted(folder.rglob("*.jpeg"))


def from_examples(folder: Path) -> list[Path]:
    """Averages of the set, each in 50 exposures."""
    for kind in KINDS:
        image = np.asarray(Image.open(_EXAMPLES / f"{kind}.png").convert("L"), dtype=np.float32)
        for number, gain in enumerate(np.linspace(0.9, 1.05, EACH)):
            path = folder / kind / f"{number:06d}.jpeg"
            path.parent.mkdir(exist_ok=True)
            exposed = np.clip(image * gain, 0, 255).astype(np.uint8)
            Image.fromarray(exposed).save(path, quality=95)
    return sorted(folder.rglob("*.jpeg"))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
