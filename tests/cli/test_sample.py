"""`medserve sample`: what is written, what is shown, what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medserve.errors import InvalidRequestError
from tests.cli.conftest import Medserve
from tests.client.drawing import painting, picture, progress, sample_answer
from tests.client.fake_gateway import FakeGateway, serving

pytestmark = pytest.mark.loopback


@pytest.fixture
def server() -> Iterator[FakeGateway]:
    with serving(painting("diffusion_sampler")) as running:
        running.streams = [[progress(0, 1), progress(0, 2), sample_answer([7, 8])]]
        yield running


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_images_a_contact_sheet_and_records_are_written(
    medserve: Medserve, server: FakeGateway, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    run = medserve("sample", 2, "--seed", 7, "--out", out, "--address", server.address)
    assert run.code == 0, run.err
    assert names(out) == [
        "contact_sheet.png", "sample_0000000007.png", "sample_0000000008.png", "samples.json",
    ]  # fmt: skip
    assert (out / "sample_0000000008.png").read_bytes() == picture(8)
    records = json.loads((out / "samples.json").read_text())
    assert [each["seed"] for each in records["images"]] == [7, 8]
    assert records["images"][0]["archive_digest"].startswith("sha256:")
    assert records["withheld"] == 1
    assert "1 more came too near to a training image" in run.out
    assert "wrote 4 files" in run.out


def test_the_contact_sheet_shows_every_image_and_says_what_it_is(
    medserve: Medserve, server: FakeGateway, tmp_path: Path
) -> None:
    server.streams = [[sample_answer([60, 200])]]
    medserve("sample", 2, "--out", tmp_path, "--address", server.address)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
        assert "SYNTHETIC" in sheet.info["Synthetic"]
    assert (pixels == 60).sum() > 10_000
    assert (pixels == 200).sum() > 10_000


def test_every_wish_reaches_the_model(medserve: Medserve, server: FakeGateway) -> None:
    run = medserve(
        *("sample", 3, "--model", "painter", "--class", "left", "--seed", 0, "--steps", 9),
        *("--sampler", "ddim", "--size", 16, "--guidance", 1.5, "--version", "2.0"),
        *("--address", server.address),
    )
    assert run.code == 0, run.err
    [request] = server.requests
    assert (request.model, request.version) == ("painter", "2.0")
    assert json.loads(request.inputs["params"]) == {
        "n": 3, "class": "left", "seed": 0, "steps": 9, "sampler": "ddim", "size": 16,
        "guidance": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("npz", ["samples.npz"]),
        ("nifti", ["samples.nii.gz"]),
        ("dicom", ["sample_0000000007.dcm"]),
    ],
)
def test_a_further_format_is_written_beside_the_pngs(
    medserve: Medserve, server: FakeGateway, tmp_path: Path, form: str, written: list[str]
) -> None:
    server.streams = [[sample_answer([7], form)]]
    run = medserve("sample", "--format", form, "--out", tmp_path, "--address", server.address)
    assert run.code == 0, run.err
    assert set(written) | {"sample_0000000007.png"} < set(names(tmp_path))
    assert (tmp_path / written[0]).read_bytes() == form.encode()


def test_json_lines_hold_what_draws_each_image_again(
    medserve: Medserve, server: FakeGateway
) -> None:
    run = medserve("sample", 2, "--json", "--address", server.address)
    first, second = (json.loads(line) for line in run.out.splitlines())
    assert (first["seed"], second["seed"]) == (7, 8)
    assert (first["class"], first["sampler"], first["steps"]) == ("left", "ddim", 2)
    assert "png" not in first


def test_a_folder_with_samples_is_left_alone_unless_told(
    medserve: Medserve, server: FakeGateway, tmp_path: Path
) -> None:
    (tmp_path / "sample_0000000007.png").write_bytes(b"mine")
    run = medserve("sample", "--out", tmp_path, "--address", server.address)
    assert run.code == 2
    assert "--overwrite" in run.err
    assert server.requests == []  # before any work
    assert (
        medserve("sample", "--out", tmp_path, "--overwrite", "--address", server.address).code == 0
    )
    assert (tmp_path / "sample_0000000007.png").read_bytes() == picture(7)


def test_a_format_without_a_folder_is_refused(medserve: Medserve, server: FakeGateway) -> None:
    run = medserve("sample", "--format", "npz", "--address", server.address)
    assert run.code == 2
    assert "expected --out DIR" in run.err
    assert server.requests == []


def test_what_the_model_refuses_is_one_line(medserve: Medserve, server: FakeGateway) -> None:
    text = "params: n: expected a whole number from 1 to 64, got more"
    server.streams = [[InvalidRequestError(text)]]
    run = medserve("sample", 10_000, "--address", server.address)
    assert run.code == 2
    assert run.err.strip() == "error: params: n: expected a whole number from 1 to 64, got more"


def test_an_unknown_sampler_is_refused_with_those_there_are(medserve: Medserve) -> None:
    run = medserve("sample", "--sampler", "euler")
    assert run.code == 2
    assert "dpm-solver++" in run.err


def test_a_folder_that_cannot_be_written_is_named(
    medserve: Medserve, server: FakeGateway, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    run = medserve("sample", "--out", tmp_path / "file" / "below", "--address", server.address)
    assert run.code == 2
    assert "Not a directory" in run.err
    assert len(io.StringIO(run.err.strip()).readlines()) == 1
