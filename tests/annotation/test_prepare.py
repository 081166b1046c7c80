"""From raw files to pictures for annotation: nothing personal left, nothing half-written."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont
from pydicom import dcmread

from annotation.manifest import read_grey, read_manifest
from annotation.prepare import UNDECIDED, WRITTEN, PrepareConfig, Prepared, prepare
from medserve.errors import ConfigError
from simulation.simulate import SimulatedFrame, SimulationConfig, simulate_cine
from simulation.simulated_set import cine_dicom
from tests import phantoms

CONFIG = SimulationConfig(height=160, width=208)
LARGE = SimulationConfig(height=320, width=416)
SEEDS = (2, 4)


@pytest.fixture(scope="module")
def cines() -> dict[int, list[SimulatedFrame]]:
    return {seed: simulate_cine(seed, 3, CONFIG) for seed in SEEDS}


@pytest.fixture(scope="module")
def raw(cines: dict[int, list[SimulatedFrame]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two loops, a patient's folder of PNG, and what does not belong there."""
    folder = tmp_path_factory.mktemp("raw")
    for seed, cine in cines.items():
        (folder / f"Doe^Jane {seed}.dcm").write_bytes(cine_dicom(cine))
    (folder / "Roe").mkdir()
    for number, frame in enumerate(simulate_cine(7, 2, CONFIG)):
        picture = pillow.fromarray(frame.image).convert("RGB")
        picture.save(folder / "Roe" / f"{number}.png")
    whole = (folder / f"Doe^Jane {SEEDS[0]}.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    (folder / "copy.dcm").write_bytes(whole)
    (folder / "notes.txt").write_text("Jane Doe, born 1961")
    (folder / "black.png").write_bytes(phantoms.raster_bytes(np.zeros((90, 90), np.uint8)))
    (folder / ".hidden").write_text("left alone")
    return folder


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, prepare(PrepareConfig(raw, out))


def test_every_usable_frame_is_written_and_the_rest_counted(
    prepared: tuple[Path, Prepared],
) -> None:
    out, result = prepared
    assert len(result.entries) == len(read_manifest(out)) == 2 * 3 + 2
    assert {path.name for path in (out / "images").iterdir()} == {e.name for e in result.entries}
    # Three frames of the copy, the cut file, the text and the black picture.
    assert result.left_out == 3 + 1 + 1 + 1
    with out.with_name("out.notes.csv").open(newline="") as stream:
        notes = list(csv.DictReader(stream))
    assert {note["file"] for note in notes} >= {"cut.dcm", "notes.txt", "black.png"}
    assert sum("exact copy of one of the same patient" in note["note"] for note in notes) == 3


def test_frames_of_one_patient_go_together(prepared: tuple[Path, Prepared]) -> None:
    patients = [entry.patient for entry in prepared[1].entries]
    assert sorted(patients.count(each) for each in set(patients)) == [2, 3, 3]


def test_nothing_in_the_folder_names_a_patient(
    prepared: tuple[Path, Prepared], cines: dict[int, list[SimulatedFrame]]
) -> None:
    out, _ = prepared
    secrets = {"Doe", "Roe", "SIMULATED", *(cine[0].name.split(" ")[-1] for cine in cines.values())}
    for path in out.rglob("*"):
        assert not any(secret in path.name for secret in secrets)
    for path in out.rglob("*.png"):
        with pillow.open(path) as picture:
            assert picture.info == {}
    text = (out / "manifest.csv").read_text()
    assert not any(re.search(rf"\b{secret}\b", text) for secret in secrets)


def test_writing_around_the_fan_is_black_and_tissue_as_it_was(
    prepared: tuple[Path, Prepared], cines: dict[int, list[SimulatedFrame]]
) -> None:
    out, result = prepared
    frames = [frame for cine in cines.values() for frame in cine]
    found = 0
    for entry in result.entries:
        whole = entry.to_source(read_grey(out / "images" / entry.name))
        for frame in frames:
            kept = whole == frame.image
            if not kept[frame.gland].all() or not frame.gland.any():
                continue
            found += 1
            assert (kept | (whole == 0)).all()
            lit = frame.image > 0
            assert (kept & lit & frame.fan).sum() > 0.97 * (lit & frame.fan).sum()
            assert (kept & lit & ~frame.fan).sum() < 0.02 * (lit & ~frame.fan).sum()
    assert found == sum(bool(frame.gland.any()) for frame in frames) == 2


@pytest.mark.cpu
@pytest.mark.parametrize("grey", [255, 200])
def test_letters_on_the_tissue_of_single_frames_are_counted(grey: int, tmp_path: Path) -> None:
    frames = [frame for seed in range(3) for frame in simulate_cine(seed, 4, LARGE)]
    _write_pictures(tmp_path / "raw", frames, grey)
    result = prepare(PrepareConfig(tmp_path / "raw", tmp_path / "out"))
    assert len(result.entries) == 12
    assert all(entry.overlay_pixels >= 24 for entry in result.entries)
    assert result.counts() == {WRITTEN: 12}
    assert "seen in 12 frames; not decided for 0 frames" in result.writing()


@pytest.mark.cpu
def test_single_frames_without_letters_are_not_decided_and_listed(tmp_path: Path) -> None:
    frames = simulate_cine(3, 4, LARGE)
    _write_pictures(tmp_path / "raw", frames, grey=None)
    result = prepare(PrepareConfig(tmp_path / "raw", tmp_path / "out"))
    assert [entry.overlay_pixels for entry in result.entries] == [0] * 4
    with (tmp_path / "out.notes.csv").open(newline="") as stream:
        notes = list(csv.DictReader(stream))
    assert {(note["file"], note["note"]) for note in notes} == {
        (f"Doe/{number}.png", UNDECIDED) for number in range(4)
    }
    assert "not decided for 4 frames of 4 files" in result.writing()


def _write_pictures(folder: Path, frames: list[SimulatedFrame], grey: int | None) -> None:
    """Write each frame as a PNG, with a name across its middle where a grey is given."""
    (folder / "Doe").mkdir(parents=True)
    for number, frame in enumerate(frames):
        picture = pillow.fromarray(frame.image)
        if grey is not None:
            rows, columns = np.nonzero(frame.fan)
            place = (float(np.median(columns)) - 60, float(np.median(rows)))
            font = ImageFont.load_default(18)
            ImageDraw.Draw(picture).text(place, "J DOE 1961", fill=grey, font=font)
        picture.save(folder / "Doe" / f"{number}.png")


def test_a_loop_that_moves_is_decided(prepared: tuple[Path, Prepared]) -> None:
    _, result = prepared
    assert {file for file, _, why in result.notes if why == UNDECIDED} == {"Roe/0.png", "Roe/1.png"}
    noted = {(file, frame) for file, frame, why in result.notes if why == WRITTEN}
    assert len(noted) == sum(entry.overlay_pixels > 0 for entry in result.entries)


def test_spacing_is_that_of_the_file(
    prepared: tuple[Path, Prepared], cines: dict[int, list[SimulatedFrame]]
) -> None:
    stated = {entry.spacing_mm for entry in prepared[1].entries}
    known = {round(float(cine[0].spacing_mm), 9) for cine in cines.values()}
    assert {round(each[0], 9) for each in stated if each is not None} == known
    assert None in stated  # PNG states none


def test_hashes_are_the_same_for_one_salt_and_differ_for_another(
    raw: Path, prepared: tuple[Path, Prepared], tmp_path: Path
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.dcm").write_bytes((raw / f"Doe^Jane {SEEDS[1]}.dcm").read_bytes())
    salt = prepared[0].with_name("out.salt")
    same = prepare(PrepareConfig(folder, tmp_path / "same", salt_file=salt))
    other = prepare(PrepareConfig(folder, tmp_path / "other"))
    before = {entry.patient for entry in prepared[1].entries}
    assert {entry.patient for entry in same.entries} < before
    assert not {entry.patient for entry in other.entries} & before


def test_frames_can_be_thinned_and_kept_at_full_size(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.dcm").write_bytes((raw / f"Doe^Jane {SEEDS[0]}.dcm").read_bytes())
    config = PrepareConfig(folder, tmp_path / "out", every=2, crop=False)
    result = prepare(config)
    assert [entry.frame for entry in result.entries] == [0, 2]
    shapes = {read_grey(tmp_path / "out" / "images" / e.name).shape for e in result.entries}
    assert shapes == {(160, 208)}


@pytest.mark.cpu
def test_patient_of_a_picture_is_read_by_the_given_pattern(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(2):
        (folder / f"case7_view{number}.png").write_bytes(
            (raw / "Roe" / f"{number}.png").read_bytes()
        )
    apart = prepare(PrepareConfig(folder, tmp_path / "apart"))
    assert len({entry.patient for entry in apart.entries}) == 2
    together = PrepareConfig(folder, tmp_path / "together", patient_pattern=r"(case\d+)_")
    assert len({entry.patient for entry in prepare(together).entries}) == 1
    nobody = dataclasses.replace(together, out_dir=tmp_path / "nobody", patient_pattern=r"(P\d+)_")
    with pytest.raises(ConfigError, match="2 x expected a patient by --patient-pattern"):
        prepare(nobody)
    broken = dataclasses.replace(together, out_dir=tmp_path / "broken", patient_pattern="(")
    with pytest.raises(ConfigError, match="no regular expression"):
        prepare(broken)
    assert not (tmp_path / "nobody").exists()
    assert not (tmp_path / "broken").exists()


def test_nothing_is_written_when_every_file_must_fit_and_one_does_not(
    raw: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.png").write_bytes((raw / "Roe" / "0.png").read_bytes())
    (folder / "b.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ConfigError, match=r"left out 1: .*nothing was written"):
        prepare(PrepareConfig(folder, tmp_path / "out", strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.notes.csv", "out.salt", "raw"]


@pytest.mark.parametrize(("content", "expected"), [
    (None, "found no file"), (b"not a picture", "got none of 1 files"),
])  # fmt: skip
def test_folder_without_usable_frames_is_refused(
    content: bytes | None, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    if content is not None:
        (tmp_path / "raw" / "a.png").write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        prepare(PrepareConfig(tmp_path / "raw", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_simulated_loop_is_a_valid_ultrasound_object(
    cines: dict[int, list[SimulatedFrame]],
) -> None:
    dataset = dcmread(io.BytesIO(cine_dicom(cines[SEEDS[0]])))
    assert dataset.SOPClassUID.name == "Ultrasound Multi-frame Image Storage"
    assert dataset.NumberOfFrames == 3
    np.testing.assert_array_equal(dataset.pixel_array[1], cines[SEEDS[0]][1].image)
