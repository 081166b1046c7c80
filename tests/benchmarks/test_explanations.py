"""What the benchmark of explanations calls true, on a model whose answer is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.archives import unpack
from benchmarks.explanations import Truth, chosen, cost, halves, squares, truth
from benchmarks.work import load_handler
from handlers.classification import ClassificationHandler
from medserve.inference.engines import Outputs
from medserve.inference.fit import Box
from tests.archives import packaged_fixture
from tests.tiny_room import bright_tile

IMAGES = [bright_tile(tile) for tile in range(6)]


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> ClassificationHandler:
    folder = tmp_path_factory.mktemp("explanations")
    archive = packaged_fixture("tiny", folder / "store")
    return load_handler(unpack(archive, folder / "unpacked"))


class Corner:
    """Stands for a handler: white corners in the upper left are class 1."""

    def decode(self, content: bytes) -> Any:
        """Any bytes are an image."""
        return SimpleNamespace(height=32, width=32)

    def to_network(self, image: Any) -> npt.NDArray[np.float32]:
        """Black but for the corner."""
        row = np.zeros((1, 32, 32), np.float32)
        row[:, :16, :16] = 1.0
        return row

    def place(self, image: Any) -> Box:
        """All of the plane."""
        return Box(0, 0, image.height, image.width)

    def infer(self, rows: npt.NDArray[np.float32]) -> Outputs:
        """The class changes where the corner has lost half of its light."""
        odds = 4 * rows[:, 0, :16, :16].mean(axis=(1, 2)) - 2
        return {"logits": np.stack([np.zeros_like(odds), odds], axis=1)}


def test_a_true_map_loses_the_class_with_its_warmest_quarter_alone() -> None:
    corner: Any = Corner()
    found = truth(corner, [b""], halves)
    assert found == Truth(warmest=1.0, coolest=0.0, turned=0.0, in_order=1.0, images=1)


def test_a_map_that_lies_is_told_from_a_true_one() -> None:
    corner: Any = Corner()
    found = truth(corner, [b""], lambda row, box, run: -halves(row, box, run))
    assert (found.warmest, found.coolest, found.in_order) == (0.0, 1.0, 0.0)


@pytest.mark.archive
def test_one_square_at_a_time_finds_what_stands_alone(handler: ClassificationHandler) -> None:
    row = handler.to_network(handler.decode(IMAGES[4]))
    values = squares(row, Box(0, 0, 64, 64), handler.infer)
    assert values.shape == (64, 64)
    assert values[40:60, 25:38].mean() > values[:24].mean()
    assert truth(handler, IMAGES, squares).in_order == 1.0


@pytest.mark.archive
def test_an_explained_image_costs_more_than_a_plain_one(handler: ClassificationHandler) -> None:
    found = cost(handler, IMAGES, rounds=3)
    assert found.rows == 131
    assert min(found.plain_ms, found.batched_ms, found.explained_ms) >= 0


def test_images_are_taken_evenly_from_every_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            (tmp_path / name / f"{number}").write_bytes(f"{name}{number}".encode())
    assert chosen(tmp_path, 3) == [b"a0", b"a4", b"a9", b"b0", b"b4", b"b9"]
    with pytest.raises(SystemExit, match="expected images"):
        chosen(tmp_path / "a" / "nowhere", 3)


def test_squares_reach_every_pixel_of_a_narrow_image() -> None:
    def run(rows: npt.NDArray[np.float32]) -> Outputs:
        return {"logits": np.zeros((len(rows), 2), np.float32)}

    row = np.ones((1, 32, 32), np.float32)
    assert np.isfinite(squares(row, Box(8, 0, 5, 32), run)).all()
