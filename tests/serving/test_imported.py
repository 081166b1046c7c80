"""A model of another tool: imported by the command, served by the real TorchServe, asked."""

from __future__ import annotations

import base64
import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as pillow
from pydicom import dcmread

from medserve.client import Client, SegmentedFile
from medserve.dicom.ask import Gateway
from medserve.dicom.objects import make_objects
from medserve.dicom.rules import Conditions, Rule, RuleTask
from medserve.dicom.spool import Task
from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.gateway.server import GatewayServer
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.importing.golden import as_png
from medserve.importing.nnunet import read_folder
from medserve.settings import EngineKind
from medserve.tasks.frames import FrameOptions, MeasuredFrame
from tests.backends import running_backend
from tests.cli.conftest import medserve as medserve
from tests.dicom.series import write
from tests.gateway.running import running_gateway
from tests.importing.nnunet_folders import CASES, write_case, write_folder
from tests.importing.picture_networks import (
    a_coloured_frame,
    a_picture,
    own_probabilities,
    write_classifier,
    write_frames,
    write_structures,
)
from tests.importing.test_nnunet import own_mask
from tests.volume_phantoms import as_bytes, dicom_slices

_ONE, _TWO = "isotropic", "two channels, cropped"
_AGREEMENT = 0.9999


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("trained")
    return {name: write_folder(root / name / "model", CASES[name]) for name in (_ONE, _TWO)}


@pytest.fixture(scope="module")
def imported(
    trained: dict[str, Path], engine_kind: EngineKind, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayServer]:
    """A gateway before an engine that serves two imported models."""
    from typer.testing import CliRunner

    from medserve.cli.importing import import_

    pytest.importorskip("onnxscript", reason="needs the import extra")
    store = tmp_path_factory.mktemp("imported") / "store"
    for name, model in ((_ONE, "liver"), (_TWO, "tumour")):
        arguments = ["nnunet", str(trained[name]), "--name", model, "--store", str(store)]
        run = CliRunner().invoke(import_, arguments)
        assert run.exit_code == 0, run.output
        assert f"medserve predict {model}" in run.output
        assert (store / f"{model}-1.0.report.html").is_file()
    networks = (write_classifier, write_frames, write_structures)
    for network in networks:
        described = network(store.parent)
        run = CliRunner().invoke(import_, ["onnx", *map(str, described), "--store", str(store)])
        assert run.exit_code == 0, run.output
    with (
        running_backend(engine_kind, store) as engine,
        running_gateway(*engine.before(page=True, canary_timeout_s=30.0)) as gateway,
    ):
        yield gateway


@pytest.fixture(scope="module")
def address(imported: GatewayServer) -> str:
    return imported.addresses.grpc


def test_an_imported_model_answers_the_command_as_its_own_tool_would(
    address: str, trained: dict[str, Path], tmp_path: Path, medserve: Any
) -> None:
    [file] = write_case(tmp_path / "case", CASES[_ONE])
    out = tmp_path / "out"
    run = medserve("predict", "liver", file, "--out", out, "--address", address)
    assert run.code == 0, run.err
    [mask] = out.glob("*_mask.nii.gz")
    expected = own_mask(read_folder(trained[_ONE], "liver"), [file])
    found = nifti.decode(mask.read_bytes())
    assert np.mean(found.array == expected) >= _AGREEMENT
    np.testing.assert_array_equal(
        found.geometry.affine, nifti.decode(file.read_bytes()).geometry.affine
    )


def test_an_imported_classifier_answers_and_says_nothing_of_its_training(
    imported: GatewayServer,
) -> None:
    pictures = [a_picture(seed) for seed in range(20)]
    wanted = [own_probabilities(each) for each in pictures]
    with Client(imported.addresses.grpc, timeout_s=120) as client:
        found = [each.unwrap() for each in client.classify("skin", pictures)]
    for each, own in zip(found, wanted, strict=True):
        assert each.probabilities == pytest.approx(own, abs=5e-3)  # its tool rounds to 8 bits
        assert (each.novelty, each.unlike_training) == (None, False)
    assert len({each.label for each in found}) > 1
    page = imported.addresses.page_url
    sent = [("files", ("a.png", pictures[0]))]
    [answer] = httpx.post(f"{page}v1/models/skin/classify", files=sent).json()["items"]
    assert "novelty" not in answer
    tensor = {"name": "data", "datatype": "BYTES", "shape": [1],
              "data": [base64.b64encode(pictures[0]).decode()],
              "parameters": {"content_type": "base64"}}  # fmt: skip
    outputs = httpx.post(f"{page}v2/models/skin/infer", json={"inputs": [tensor]}).json()["outputs"]
    tensors = {each["name"]: each["data"] for each in outputs}
    assert tensors["status"] == ["ok"]
    assert tensors["novelty"] == [None]  # NaN has no place in JSON


def test_an_imported_model_of_frames_finds_what_its_network_finds(address: str) -> None:
    frame = np.zeros((60, 90), np.uint8)
    frame[10:30, 20:70] = 220
    with Client(address, timeout_s=120) as client:
        [found] = client.segment_frames("glow", [as_png(frame)])
    [measured] = found.unwrap().frames
    assert isinstance(measured, MeasuredFrame)
    assert measured.pixels == pytest.approx(1000, rel=0.1)


def test_each_of_several_structures_is_measured_through_every_face(
    imported: GatewayServer, tmp_path: Path, medserve: Any
) -> None:
    content, ids = a_coloured_frame()
    address, labels = imported.addresses.grpc, ("red", "green", "blue")
    wanted = {label: int((ids == number).sum()) for number, label in enumerate(labels, start=1)}
    with Client(address, timeout_s=120) as client:
        [outcome] = client.segment_frames("colours", [content], options=FrameOptions(overlay=True))
    found = outcome.unwrap()
    mask = np.asarray(pillow.open(io.BytesIO(found.mask_png or b"")))
    assert (mask != ids).mean() < 0.05
    own = {each.label: each.frames[0].pixels for each in found.structures if each.frames[0]}
    assert own == pytest.approx(wanted, rel=0.15)
    assert own == {label: int((mask == n).sum()) for n, label in enumerate(labels, start=1)}
    [whole] = found.frames
    assert isinstance(whole, MeasuredFrame)
    assert (whole.pixels, whole.unlike_ultrasound) == (sum(own.values()), False)
    drawn = np.asarray(pillow.open(io.BytesIO(found.overlay_png or b"")))
    assert drawn.shape == (80, 64, 3)
    assert np.abs(drawn[2, 2].astype(int) - 25).max() <= 1  # beside the masks in its own colour
    (tmp_path / "frame.png").write_bytes(content)
    out = tmp_path / "out"
    run = medserve("predict", "colours", tmp_path / "frame.png", "--out", out,
                   "--address", address)  # fmt: skip
    assert run.code == 0, run.err
    with (out / "frames.csv").open(newline="") as file:
        assert {row["label"]: int(row["pixels"]) for row in csv.DictReader(file)} == own
    url = f"{imported.addresses.page_url}v1/models/colours/segment?output=json"
    sent = httpx.post(url, content=content, timeout=120).json()
    assert {each["label"]: each["frames"][0]["pixels"] for each in sent["structures"]} == own


def test_several_images_of_one_case_travel_by_name_by_number_or_in_one_file(
    address: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    files = write_case(tmp_path / "case", CASES[_TWO])
    expected = own_mask(read_folder(trained[_TWO], "tumour"), files)
    first, second = (path.read_bytes() for path in files)
    volumes = [nifti.decode(first), nifti.decode(second)]
    together = np.stack([each.array.astype(np.float32) for each in volumes])
    whole = nifti.encode_maps(together, ["T1", "T2"], volumes[0])
    for data in (
        {"data.T1": first, "data.T2": second},
        {"data.0": first, "data.1": second},
        {"data": whole},
    ):
        mask = nifti.decode(_asked(address, data)).array
        assert np.mean(mask == expected) >= _AGREEMENT


def test_several_images_travel_through_client_command_and_rest(
    imported: GatewayServer, trained: dict[str, Path], tmp_path: Path, medserve: Any
) -> None:
    files = write_case(tmp_path / "case", CASES[_TWO])
    expected = own_mask(read_folder(trained[_TWO], "tumour"), files)
    address, out = imported.addresses.grpc, tmp_path / "out"
    run = medserve("predict", "tumour", tmp_path / "case", "--out", out, "--address", address)
    assert run.code == 0, run.err
    found = [(out / "case_mask.nii.gz").read_bytes()]
    with Client(address, timeout_s=120) as client:
        [names] = {each.channels for each in client.models() if each.name == "tumour"}
        assert names == ("T1", "T2")
        found.append(client.segment("tumour", {"T2": files[1], "T1": files[0]}).mask_nifti)
    url = f"{imported.addresses.page_url}v1/models/tumour/segment"
    form = [("files", (path.name, path.read_bytes())) for path in reversed(files)]
    found.append(httpx.post(url, files=form, timeout=120).content)
    for mask in found:
        assert np.mean(nifti.decode(mask).array == expected) >= _AGREEMENT
    lacking = httpx.post(url, files=[("data.T1", ("a", files[0].read_bytes()))], timeout=120)
    assert lacking.status_code == 400
    assert "got no data.T2" in lacking.json()["error"]["message"]


def test_series_of_a_study_are_the_images_of_one_case(
    address: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    files = write_case(tmp_path / "case", CASES[_TWO])
    images, names = [], []
    for name, file in zip(("T1", "T2"), files, strict=True):
        volume = nifti.decode(file.read_bytes())
        whole = Volume(np.rint(volume.array).astype(np.int16), volume.geometry)
        file.write_bytes(nifti.encode(whole))
        slices = dicom_slices(whole, series=name)
        for number, each in enumerate(slices):
            each.StudyInstanceUID, each.SeriesInstanceUID = "2.25.1", f"2.25.{name[1]}"
            each.FrameOfReferenceUID = "2.25.9"
            each.SOPInstanceUID = f"2.25.{name[1]}.{number}"
            each.file_meta.MediaStorageSOPInstanceUID = each.SOPInstanceUID
        images += [as_bytes(each) for each in slices]
        names += [name] * len(slices)
    expected = own_mask(read_folder(trained[_TWO], "tumour"), files)
    rule = Rule(
        name="r", model="tumour", task=RuleTask.VOLUMES,
        inputs={name: Conditions(series_description=(f"{name}*",)) for name in ("T2", "T1")},
    )  # fmt: skip
    gateway = Gateway(address, timeout_s=120.0)
    paths = write(tmp_path / "dicom", images)
    answer = gateway.ask(rule, paths, names)
    gateway.close()
    seg, report = make_objects(Task(1, 1, "r", "", (), "waiting", "", 0, 1e9), rule, answer, paths,
                               tmp_path)  # fmt: skip
    [source] = dcmread(seg.file).ReferencedSeriesSequence
    assert source.SeriesInstanceUID == "2.25.1"
    [evidence] = dcmread(report.file).CurrentRequestedProcedureEvidenceSequence
    series = {each.SeriesInstanceUID for each in evidence.ReferencedSeriesSequence}
    assert {"2.25.1", "2.25.2"} < series
    [found] = answer.found
    assert isinstance(found, SegmentedFile)
    voxels = [int(np.sum(expected == each.label_id)) for each in found.measures]
    assert sum(voxels) > 0
    assert [each.voxels for each in found.measures] == pytest.approx(voxels, rel=1e-3)


def test_a_batch_answers_cases_of_several_images(
    imported: GatewayServer, trained: dict[str, Path], tmp_path: Path, medserve: Any
) -> None:
    files = write_case(tmp_path / "cases", CASES[_TWO])
    expected = own_mask(read_folder(trained[_TWO], "tumour"), files)
    manifest = tmp_path / "studies.csv"
    manifest.write_text("id,T1,T2\none,{},{}\n".format(*files), encoding="utf-8")
    server = ("--server", imported.addresses.grpc, "--model", "tumour")
    assert imported.settings.store is not None
    archive = ("--archive", imported.settings.store / "tumour-1.0.mar", "--workers", "1")
    for place, (source, flags) in enumerate([(tmp_path / "cases", server), (manifest, archive)]):
        out = tmp_path / f"out-{place}"
        run = medserve("batch", source, *flags, "--out", out, "--progress", "none")
        assert run.code == 0, run.err
        [mask] = (out / "answers").rglob("mask.nii.gz")
        assert np.mean(nifti.decode(mask.read_bytes()).array == expected) >= _AGREEMENT


def test_pictures_are_sorted_reviewed_and_corrected_by_an_imported_classifier(
    address: str, tmp_path: Path, medserve: Any
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "sorted"
    pictures.mkdir()
    for seed in range(6):
        (pictures / f"{seed}.png").write_bytes(a_picture(seed))
    wanted = {
        f"{'abc'[int(np.argmax(own_probabilities(a_picture(seed))))]}/{seed}.png"
        for seed in range(6)
    }
    run = medserve("sort", pictures, "--model", "skin", "--out", out, "--address", address)
    assert run.code == 0, run.err
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == wanted
    run = medserve("review", out)
    assert run.code == 0, run.err
    listed = [line.split()[0] for line in run.out.splitlines() if ".png" in line]
    assert set(listed) == wanted
    first = listed[0]
    assert medserve("review", out, "--class", "b" if first[0] == "a" else "a", first).code == 0
    left = medserve("review", out).out
    assert first not in left
    assert "5 files, 1 judged by a person" in left


def test_images_of_other_grids_or_missing_ones_are_refused(address: str, tmp_path: Path) -> None:
    first, second = (path.read_bytes() for path in write_case(tmp_path / "case", CASES[_TWO]))
    volume = nifti.decode(second)
    moved = volume.geometry.affine.copy()
    moved[0, 3] += 5.0
    aside = nifti.encode(Volume(volume.array, Geometry(volume.geometry.shape, moved)))
    with pytest.raises(InvalidImageError, match="T2 on the grid of T1"):
        _asked(address, {"data.T1": first, "data.T2": aside})
    with pytest.raises(InvalidRequestError, match=r"got no data\.T2"):
        _asked(address, {"data.T1": first})
    with pytest.raises(InvalidImageError, match=r"expected 2 images \(T1, T2\), got 1"):
        _asked(address, {"data": gzip.compress(gzip.decompress(first))})


def _asked(address: str, data: dict[str, bytes]) -> bytes:
    """Ask over TorchServe's own contract, which carries any key."""
    import grpc

    from medserve.client.connection import call_error
    from medserve.wire import inference_pb2, inference_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        request = inference_pb2.PredictionsRequest(model_name="tumour", input=data)
        try:
            return bytes(stub.Predictions(request, timeout=120).prediction)
        except grpc.RpcError as error:
            raise call_error(error, address) from None
