"""A new model in the words of CONTRIBUTING.md: its commands, run in a copy of the checkout."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medserve.errors import ConfigError
from medserve.imaging.codecs import nifti
from medserve.imaging.volume import Volume
from scripts.room import main, room_files, variant_files
from tests.pages import blocks
from tests.test_rooms import WORKER
from tests.training.volumes.drawn import case

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
_COPIED = ("annotation", "handlers", "medserve", "models", "scripts", "simulation", "training")
_QUICK = {  # the smallest trainings that ship something
    "training.skin": "--width 4 --epochs 1 --batch-size 16 --precision 32-true --threads 2",
    "training.liver": "--epochs 30 --learning-rate 0.01 --folds 3 --validate-every 10 "
    "--precision 32-true --threads 2",
}


class Checkout:
    """A copy of what a model is made of; commands run in it as on the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in _COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("vendor"))
        (folder / "tests/models").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(sys.prefix)
        self.environment = os.environ | {"PYTHONPATH": str(folder)}
        self.before = self.digests()

    def run(self, block: str) -> None:
        """Run a block of the page; trainings are made short, nothing is installed by pip."""
        for name, flags in _QUICK.items():
            block = block.replace(f"-m {name} ", f"-m {name} {flags} ")
        block = block.replace("make ", "make -o .venv/dev -o .venv/serve ")
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def digests(self) -> dict[str, str]:
        """The digest of every file, by its path."""
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for name in _COPIED
            for path in (self.folder / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    def changed_outside(self, name: str) -> list[str]:
        """Files that changed or came and are not of the room of that name."""
        own = (f"models/{name}/", f"training/{name}.py", f"handlers/{name}.py")
        after = self.digests()
        changed = {path for path in {*self.before, *after}
                   if self.before.get(path) != after.get(path)}  # fmt: skip
        return sorted(path for path in changed if not path.startswith(own))

    def answer(self, name: str, params: str) -> dict[str, object]:
        """What a worker answers that has the archive and nothing of the checkout."""
        unpacked = self.folder / "unpacked" / name
        with zipfile.ZipFile(self.folder / f"model_store/{name}-1.0.mar") as packed:
            packed.extractall(unpacked)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        worker = subprocess.run(
            [sys.executable, "-c", WORKER, str(ROOT), name, f"{name}.py", params], cwd=unpacked,
            env=environment | {"MEDSERVE_ENGINE_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert worker.returncode == 0, worker.stderr
        answer: dict[str, object] = json.loads(worker.stdout.splitlines()[-1])
        return answer


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    pytest.importorskip("ts", reason="needs the serve extra")
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    _draw_lesions(made.folder / "data/skin")
    _draw_livers(made.folder / "data/liver")
    return made


def _draw_lesions(root: Path, count: int = 30) -> None:
    """Write colour pictures of one disc each, of another colour for each label, on noise."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:80, 0:100]
    for channel, label in enumerate(("melanoma", "naevus", "keratosis")):
        (root / label).mkdir(parents=True)
        for number in range(count):
            centre = generator.uniform(30, 50, 2)
            inside = np.hypot(rows - centre[0], columns - centre[1] - 10) < 18
            picture = generator.normal(120.0, 18.0, (80, 100, 3))
            picture[..., channel] += 110.0 * inside
            pixels = picture.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number:02d}.png")


def _draw_livers(root: Path, count: int = 20) -> None:
    for role in ("images", "masks"):
        (root / role).mkdir(parents=True)
    for number in range(count):
        volume, mask = case(number)
        one = Volume((mask > 0).astype(np.uint8), volume.geometry)
        for role, each in (("images", volume), ("masks", one)):
            (root / role / f"case_{number:02d}.nii.gz").write_bytes(nifti.encode(each))


@pytest.mark.training
def test_a_classifier_is_made_trained_and_served_by_the_commands_of_the_page(
    checkout: Checkout,
) -> None:
    checkout.run(blocks(PAGE, "bash")[0])
    answer = checkout.answer("skin", "{}")
    assert answer["status"] == "ok"
    assert answer["label"] in ("melanoma", "naevus", "keratosis")
    config = (checkout.folder / "models/skin/model-config.yaml").read_text(encoding="utf-8")
    assert "fit: colour" in config
    assert "| `weights/model.onnx` |" in (checkout.folder / "models/skin/README.md").read_text()
    assert checkout.changed_outside("skin") == []


@pytest.mark.training
def test_a_variant_is_made_trained_and_installed_by_the_commands_of_the_page(
    checkout: Checkout,
) -> None:
    if not (checkout.folder / "models/skin/weights").is_dir():
        checkout.run(blocks(PAGE, "bash")[0])
    checkout.before = checkout.digests()
    checkout.run(blocks(PAGE, "bash")[3].replace("--width 24", "--width 6"))
    folder = checkout.folder / "models/skin/variants/wide"
    assert "1.0-wide" in (folder / "model-config.yaml").read_text(encoding="utf-8")
    assert (folder / "weights/model.onnx").is_file()
    assert checkout.changed_outside("skin/variants/wide") == []


@pytest.mark.training
def test_volumes_with_a_network_of_its_own_come_to_an_answer_by_the_commands_of_the_page(
    checkout: Checkout,
) -> None:
    checkout.before = checkout.digests()
    make, train = blocks(PAGE, "bash")[1:3]
    checkout.run(make)
    [network] = blocks(PAGE, "python")
    (checkout.folder / "models/liver/network.py").write_text(network, encoding="utf-8")
    checkout.run(train)
    answer = checkout.answer("liver", '{"output": "json"}')
    assert answer["status"] == "ok"
    assert checkout.changed_outside("liver") == []


@pytest.mark.process
def test_what_is_written_is_in_the_style_of_the_house(tmp_path: Path) -> None:
    files = room_files("a_new_one", "segmentation_3d", ("background", "liver"), (16, 24, 16), 1)
    files |= room_files("another", "mednist", ("a", "b"), (32, 32), 3)
    files |= variant_files("mednist", "wide")
    sources = [path for path in files if path.suffix == ".py"]
    for path in sources:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(files[path], encoding="utf-8")
    for command in (("check", "--ignore", "D103"), ("format", "--check")):
        ruff = [str(Path(sys.executable).parent / "ruff"), *command]
        done = subprocess.run([*ruff, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Skin", "3d", "class", "a-b", ""])
def test_a_name_that_is_no_module_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a room is named by a-z"):
        room_files(name, "mednist")


def test_a_training_for_one_network_alone_is_no_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cells", "blood_cell"]) == 2
    assert "take mednist for images" in capsys.readouterr().err


def test_a_room_that_is_there_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mednist", "mednist"]) == 2
    assert "already there" in capsys.readouterr().err
