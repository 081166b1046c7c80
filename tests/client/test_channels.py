"""Several images of one case, as the client and the command send them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medserve.client import Client
from medserve.client.connection import Limits
from medserve.client.inputs import read_case
from medserve.errors import InvalidImageError, InvalidRequestError, PayloadTooLargeError
from tests.cli.conftest import Medserve
from tests.cli.conftest import medserve as medserve
from tests.client.fake_gateway import FakeGateway, served_model, serving
from tests.gateway.faces import LABELS, paired, two_images
from tests.gateway.fake_engine import Request
from tests.phantoms import dicom_bytes, disc


class TwoImages(FakeGateway):
    """A gateway whose model sees `t1` and `flair`."""

    def _whole(self, request: Request) -> bytes:
        return paired(request)


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    single = served_model("organs", task=two_images().task, labels=LABELS)
    with serving(TwoImages((two_images(), single))) as server:
        yield server


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A folder with the two images of one case."""
    folder = tmp_path / "brain"
    folder.mkdir()
    (folder / "a_0000.nii.gz").write_bytes(b"first")
    (folder / "a_0001.nii.gz").write_bytes(b"second")
    return folder


def sent(fake: FakeGateway) -> list[dict[str, bytes]]:
    return [
        {key: content for key, content in each.inputs.items() if key.startswith("data")}
        for each in fake.requests
    ]


@pytest.mark.loopback
def test_a_case_is_a_mapping_a_list_a_folder_or_one_file(fake: FakeGateway, case: Path) -> None:
    by_number = {"data.0": b"first", "data.1": b"second"}
    files = sorted(case.iterdir(), reverse=True)
    with Client(fake.address) as client:
        client.segment("tumour", {"flair": b"second", "t1": case / "a_0000.nii.gz"})
        client.segment("tumour", files)
        client.segment("tumour", case)
        client.segment("tumour", files[0])
        results = list(client.segment_each("tumour", [files, {"t1": b"x"}, case]))
    assert sent(fake) == [
        {"data.t1": b"first", "data.flair": b"second"},
        by_number,
        by_number,
        {"data": b"second"},
        by_number,
        {"data.t1": b"x"},
        by_number,
    ]
    assert [each.error is None for each in results] == [True, False, True]
    assert "got no data.flair" in str(results[1].error)


@pytest.mark.loopback
def test_the_list_of_models_names_the_images(fake: FakeGateway) -> None:
    with Client(fake.address) as client:
        found = {each.name: each.channels for each in client.models()}
    assert found == {"tumour": ("t1", "flair"), "organs": ()}


def test_arrays_travel_by_name_and_all_files_count_against_the_limit() -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    found = read_case({"t1": voxels, "flair": voxels}, Limits())
    assert list(found) == ["data.t1", "data.flair"]
    assert found["data.t1"][:6] == b"\x93NUMPY"
    with pytest.raises(InvalidRequestError, match="spacing_mm"):
        read_case({"t1": voxels}, Limits(), has_spacing=False)
    with pytest.raises(PayloadTooLargeError):
        read_case({"t1": bytes(9000), "flair": bytes(9000)}, Limits(message_bytes=16384 + 10_000))
    with pytest.raises(InvalidImageError, match="mapping from the names"):
        read_case([voxels, voxels], Limits())  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.nii.gz", "b.nii.gz"], "got other names"),
        (["a_0000.nii.gz", "b_0001.nii.gz"], "got other names"),
        (["a_0001.nii.gz", "a_0002.nii.gz"], "got no _0000"),
        (["a_0000.nii.gz", "a_0000.nii"], "got no _0001"),
    ],
)
def test_files_that_are_no_case_are_refused(tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InvalidImageError, match=told):
        read_case([tmp_path / name for name in names], Limits())


def test_numbered_slices_of_a_series_stay_one_series(tmp_path: Path) -> None:
    for number in range(3):
        content = dicom_bytes(disc())
        (tmp_path / f"slice_{number:04d}").write_bytes(content)
        (tmp_path / f"other_{number:04d}.dcm").write_bytes(content)
    assert [*read_case(tmp_path, Limits())] == ["data"]


# ---- the command


@pytest.mark.loopback
def test_the_command_takes_the_files_of_a_case_together(
    fake: FakeGateway, case: Path, tmp_path: Path, medserve: Medserve
) -> None:
    (case / "b_0000.nii.gz").write_bytes(b"third")
    (case / "b_0001.nii.gz").write_bytes(b"fourth")
    out = tmp_path / "out"
    files = sorted(case.iterdir())
    for paths in (files, [case]):
        run = medserve(
            *("predict", "tumour", *paths, "--out", out, "--overwrite", "--address", fake.address)
        )
        assert run.code == 0, run.err
        assert {"a_mask.nii.gz", "b_mask.nii.gz"} <= {path.name for path in out.iterdir()}
    pairs = [
        {"data.0": b"first", "data.1": b"second"}, {"data.0": b"third", "data.1": b"fourth"},
    ]  # fmt: skip
    assert sent(fake) == 2 * pairs


@pytest.mark.loopback
def test_the_command_takes_a_file_by_the_name_of_its_image(
    fake: FakeGateway, case: Path, medserve: Medserve
) -> None:
    given = ("--input", f"flair={case}/a_0001.nii.gz", "--input", f"t1={case}/a_0000.nii.gz")
    run = medserve("predict", "tumour", *given, "--address", fake.address)
    assert run.code == 0, run.err
    assert sent(fake) == [{"data.t1": b"first", "data.flair": b"second"}]


@pytest.mark.loopback
def test_an_incomplete_case_costs_no_other(
    fake: FakeGateway, case: Path, medserve: Medserve
) -> None:
    for number in range(3):
        (case / f"0_{number:04d}.nii.gz").write_bytes(b"x")
    (case / "0_0001.nii.gz").unlink()
    run = medserve("predict", "tumour", case, "--json", "--address", fake.address)
    assert run.code == 1
    lines = run.out.splitlines()
    assert "got no _0001" in lines[0]
    assert '"status": "ok"' in lines[1]


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tumour", "--input", "t1=CASE"], "t1=FILE flair=FILE, each once, got t1"),
        (["tumour", "--input", "t1=CASE", "--input", "t2=CASE"], "each once, got t1 t2"),
        (["tumour", "--input", "t1=no", "--input", "flair=no"], "expected an existing file"),
        (["organs", "--input", "t1=CASE"], "sees a single image"),
        (["tumour", "CASE", "--input", "t1=CASE"], "PATH or --input, got both"),
        (["tumour"], "or an --input a channel"),
    ],
)
def test_inputs_that_are_no_case_are_wrong_usage(
    fake: FakeGateway, case: Path, medserve: Medserve, arguments: list[str], told: str
) -> None:
    file: Any = case / "a_0000.nii.gz"
    given = [each.replace("CASE", str(file)) for each in arguments]
    run = medserve("predict", *given, "--address", fake.address)
    assert run.code == 2
    assert told in " ".join(run.err.split())
    assert not fake.requests


@pytest.mark.loopback
def test_a_model_of_one_image_answers_each_file(
    fake: FakeGateway, case: Path, medserve: Medserve
) -> None:
    run = medserve("predict", "organs", case, "--address", fake.address)
    assert run.code == 0, run.err
    assert sent(fake) == [{"data": b"first"}, {"data": b"second"}]
