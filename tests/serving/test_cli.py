"""The command line against real servers, in processes of its own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.archives import packaged_fixture
from tests.tiny_room import LABELS, bright_tile, make_checkout


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for place in range(300):
        content = bright_tile(place % 6)
        broken = place in (5, 100, 250)
        (folder / f"{place:03}.png").write_bytes(content[:50] if broken else content)
    return folder


def medserve(
    *arguments: object, address: str = "", folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would; the server is found through the environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDSERVE_")}
    if address:
        environment["MEDSERVE_ADDRESS"] = address
    return subprocess.run(
        [sys.executable, "-m", "medserve.cli.main", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_300_images_are_classified_by_one_call(address: str, images: Path) -> None:
    run = medserve("predict", "tiny", images, "--json", address=address)
    assert run.returncode == 1, run.stderr  # three are broken
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [Path(each["path"]).name for each in answers] == [f"{n:03}.png" for n in range(300)]
    for place, answer in enumerate(answers):
        if place in (5, 100, 250):
            assert answer["error"]["code"] == "INVALID_IMAGE"
        else:
            assert answer["label"] == LABELS[place % 6]
            assert answer["archive_digest"].startswith("sha256:")


def test_images_are_sorted_into_folders(address: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("sort", images, "--out", out, "--model", "tiny")
    run = medserve(*arguments, address=address)
    assert run.returncode == 1, run.stderr
    assert len(list((out / "_errors").iterdir())) == 3
    assert sum(len(list((out / label).iterdir())) for label in LABELS) == 297
    with (out / "manifest.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 300
    again = medserve(*arguments, address=address)
    assert "sorted before" in again.stdout
    assert len(list(out.rglob("*.png"))) == 300


def test_models_and_ping_tell_what_is_ready(address: str, models: tuple[str, ...]) -> None:
    listed = medserve("models", "--json", address=address)
    assert sorted(each["name"] for each in json.loads(listed.stdout)) == list(models)
    ping = medserve("ping", address=address)
    assert ping.returncode == 0
    assert ping.stdout.splitlines()[-1] == "ready"


@pytest.mark.parametrize("command", [("ping",), ("models",), ("predict", "tiny", ".")])
def test_dead_server_is_one_line_and_exit_code_2(command: tuple[str, ...], images: Path) -> None:
    run = medserve(*command, "--address", "127.0.0.1:9", folder=images)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stdout == ""


@dataclass(frozen=True)
class Demo:
    """What `medserve demo` left of three rooms and a model of the store."""

    out: Path
    checkout: Path
    stdout: str

    def answers(self, room: str) -> list[dict[str, Any]]:
        """The records of one room."""
        records: list[dict[str, Any]] = json.loads((self.out / "demo.json").read_text())
        return [each for each in records if each["model"] == room]


@pytest.fixture(scope="module")
def demo(torchserve_alone: None, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """One run: `tiny` with examples, `bare` without, `slices` for DICOM; `tiny_frame` is stored."""
    folder = tmp_path_factory.mktemp("demo")
    checkout = folder / "checkout"
    for name in ("tiny", "bare", "slices"):
        make_checkout(checkout, name=name)
    examples = checkout / "models" / "tiny" / "examples"
    examples.mkdir()
    for place, label in enumerate(LABELS):
        (examples / f"{label}.png").write_bytes(bright_tile(place))
    config = checkout / "models" / "slices" / "model-config.yaml"
    config.write_text(config.read_text().replace("- raster", "- raster\n    - dicom"))
    packaged_fixture("tiny_frame", checkout / "model_store")
    run = medserve("demo", "--out", folder / "outputs", folder=checkout)
    assert run.returncode == 0, run.stderr
    return Demo(folder / "outputs", checkout, run.stdout)


def test_demo_shows_answers_and_pictures_for_every_room(demo: Demo) -> None:
    assert "INVALID_IMAGE" in demo.stdout  # the damaged one, as it should
    assert [each.get("label") for each in demo.answers("tiny")] == [*sorted(LABELS), None]
    for picture in ("tiny.png", "tiny_explained.png", "bare.png", "slices.png"):
        assert (demo.out / picture).read_bytes().startswith(b"\x89PNG")
    for room in ("tiny", "bare", "slices"):
        assert (demo.checkout / "model_store" / f"{room}-1.0.mar").exists()


@pytest.mark.usefixtures("torchserve_alone")
def test_demo_ends_with_1_where_an_example_gets_no_answer(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    examples = checkout / "models" / "tiny" / "examples"
    examples.mkdir()
    (examples / "a.png").write_bytes(bright_tile(0))
    (examples / "b.png").write_bytes(b"no picture")
    run = medserve("demo", "--out", tmp_path / "outputs", folder=checkout)
    assert run.returncode == 1, run.stderr
    answers = json.loads((tmp_path / "outputs" / "demo.json").read_text())
    assert [each["status"] for each in answers] == ["ok", "error", "error"]


@pytest.mark.usefixtures("torchserve_alone")
def test_demo_of_a_room_that_is_none_is_told(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    run = medserve("demo", "nosuch", folder=checkout)
    assert run.returncode == 2
    assert "expected one of tiny" in run.stderr


def test_demo_of_a_room_without_examples_sends_its_golden_input(demo: Demo) -> None:
    assert [(each["input"], each["status"]) for each in demo.answers("bare")] == [
        ("golden input", "ok"),
        ("half a file", "error"),
    ]


def test_demo_asks_a_model_that_lies_in_the_store_its_golden_input(demo: Demo) -> None:
    assert [(each["input"], each["status"]) for each in demo.answers("tiny_frame")] == [
        ("golden input", "ok"),
        ("half a file", "error"),
    ]
    assert (demo.out / "tiny_frame.png").read_bytes().startswith(b"\x89PNG")


def test_demo_sends_real_dicom_slices_to_a_room_that_reads_them(demo: Demo) -> None:
    assert {each["input"] for each in demo.answers("slices") if each["status"] == "ok"} == {
        *("golden input", "CT_small.dcm", "MR_small.dcm")
    }
