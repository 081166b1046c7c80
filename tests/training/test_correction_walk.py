"""docs/run/releases.md, from corrections to a better version: a real server, real trainings."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.pages import blocks
from tests.training.drawn import class_folders
from tests.walking import Walk, skip_if_taken

PAGE = Path(__file__).resolve().parents[2] / "docs/run/releases.md"
TRAIN = "python -m training.mednist"
SMALL = "--width 8 --batch-size 16 --precision 32-true"
BASE = f"{TRAIN} --data-dir drawn --out-dir runs/mednist --install --epochs 4 {SMALL}"

pytestmark = pytest.mark.walk


def _unsorted(source: Path, folder: Path) -> dict[str, str]:
    """Put all images into one folder; digest -> class."""
    folder.mkdir()
    truth = {}
    for path in sorted(source.rglob("*.png")):
        truth[hashlib.sha256(path.read_bytes()).hexdigest()] = path.parent.name
        shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    return truth


def _wrong(folder: Path, truth: dict[str, str]) -> dict[str, list[str]]:
    """Files of a sorted folder that do not lie in the folder of their class, by that class."""
    found: dict[str, list[str]] = {}
    for path in folder.rglob("*.png"):
        label = truth[hashlib.sha256(path.read_bytes()).hexdigest()]
        if path.parent.name != label:
            found.setdefault(label, []).append(path.relative_to(folder).as_posix())
    return found


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The page's commands up to the last, with a person's judgement in between."""
    skip_if_taken()
    walk = Walk(tmp_path_factory.mktemp("corrections"), ("scripts",))
    folder = walk.folder
    class_folders(folder / "drawn", 16, seed=1)
    class_folders(folder / "locked", 10, seed=2)
    truth = _unsorted(class_folders(folder / "days", 24, seed=3), folder / "incoming")
    _unsorted(class_folders(folder / "weeks", 24, seed=4), folder / "later")
    walk.run(f"{BASE}\nmedserve package mednist")
    [look, learn, release] = blocks(PAGE, "bash")
    learn = re.sub(rf"^({TRAIN} .*)$", rf"\1 --epochs 8 {SMALL}", learn, flags=re.MULTILINE)
    with walk.serving("medserve serve"):
        walk.run(look)
        for label, files in _wrong(folder / "sorted", truth).items():
            (folder / "sorted" / label).mkdir(exist_ok=True)  # to the version in use it may be new
            walk.run(f"medserve review sorted {shlex.join(files)} --class {label} --by Ada")
        walk.run(learn)
        walk.run(release.replace("--allowed 0.05", "--allowed 0.999"))
        (folder / "listed.json").write_text(walk.run("medserve models list --json"))
    return walk


def test_what_learned_from_corrections_answers_in_the_end(walk: Walk) -> None:
    listed = json.loads((walk.folder / "listed.json").read_text())
    assert {each["version"]: each["default"] for each in listed} == {"1.0": False, "1.0-ward": True}
    assert "1.0-ward" in (walk.folder / "promoted.html").read_text()


def test_it_is_better_on_images_that_no_training_saw(walk: Walk) -> None:
    accuracy = {}
    for version in ("mednist", "ward"):
        found = json.loads((walk.folder / "runs" / version / "locked/metrics.json").read_text())
        assert found["n"] == 60
        accuracy[version] = found["accuracy"]
    assert accuracy["ward"] > accuracy["mednist"]


def test_a_correction_says_who_made_it_and_names_no_file(walk: Walk) -> None:
    text = (walk.folder / "sorted/corrections.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert rows
    assert {row["corrected_by"] for row in rows} == {"Ada"}
    assert ".png" not in text
