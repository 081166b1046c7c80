"""An archive names every third-party library that its own code can import, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

import models
from medserve.archive.requirements import required_distributions
from medserve.spec import Task

REPOSITORY = Path(__file__).parents[2]
SOURCES = {
    path.relative_to(REPOSITORY).as_posix(): path
    for package in ("handlers", "medserve")
    for path in (REPOSITORY / package).rglob("*.py")
}
OF_ALL = {"msgspec", "numpy", "onnxruntime", "openvino", "pillow", "pydicom", "pyyaml"}
OF_IMAGES = OF_ALL | {"simplejpeg", "tifffile"}
OF_MASKS = OF_IMAGES | {"highdicom", "nibabel", "scipy"}


@pytest.mark.parametrize("name", models.names())
def test_a_room_requires_what_its_task_imports(name: str) -> None:
    expected = {
        Task.CLASSIFICATION: OF_IMAGES,
        Task.VOLUMES: OF_MASKS,
        Task.FRAMES: OF_MASKS,
        Task.GENERATION: OF_ALL | {"nibabel"},  # NIfTI is one of its formats
    }[models.spec(name).task]
    assert set(required_distributions(f"handlers/{name}.py", SOURCES)) == expected


def test_an_import_inside_a_function_counts_under_its_name_on_pypi(tmp_path: Path) -> None:
    handler = tmp_path / "own.py"
    handler.write_text(
        "from handlers.classification import ClassificationHandler\n\n\n"
        "def outline(mask):\n    from skimage.measure import find_contours\n\n"
        "    return find_contours(mask)\n"
    )
    required = required_distributions("own.py", SOURCES | {"own.py": handler})
    assert set(required) == OF_IMAGES | {"scikit-image"}


def test_what_types_alone_name_is_not_required(tmp_path: Path) -> None:
    handler = tmp_path / "own.py"
    handler.write_text(
        "from typing import TYPE_CHECKING\n\nimport numpy\n\n"
        "if TYPE_CHECKING:\n    from skimage.measure import CircleModel\n"
        "else:\n    import scipy\n"
    )
    assert set(required_distributions("own.py", {"own.py": handler})) == {"numpy", "scipy"}
