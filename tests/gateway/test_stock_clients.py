"""Each face over a real TorchServe: a stock tritonclient, the typed calls, and plain HTTP.

Of the shared models they call `tiny`, `tiny_volume`, `sketcher`, and `mednist` where its trained
weights are in the checkout.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from medserve.gateway.server import GatewayServer
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.results.segmentation import Segmentation
from medserve.tasks.volumes import VolumeResult
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc
from tests.gateway.sketcher_room import STEPS, square
from tests.tiny_room import LABELS, REPOSITORY, bright_tile
from tests.tiny_volume_room import known_mask, phantom

_ROOMS = ("tiny_volume", "sketcher")
_NO_IMAGE = b"this is no image"
_BUF = Path(sys.executable).with_name("buf")
_PAGES = REPOSITORY / "docs"


@pytest.fixture
def stub(served: GatewayServer) -> Iterator[pb_grpc.ImagingServiceStub]:
    """The typed calls over an open channel, with gRPC's own limits."""
    with grpc.insecure_channel(served.addresses.grpc) as channel:
        yield pb_grpc.ImagingServiceStub(channel)


@pytest.fixture
def web(served: GatewayServer) -> Iterator[httpx.Client]:
    """An HTTP client at the page's address."""
    assert served.addresses.page_url is not None
    with httpx.Client(base_url=served.addresses.page_url, timeout=120, trust_env=False) as client:
        yield client


def test_a_stock_tritonclient_infers_with_every_model(
    served: GatewayServer, served_store: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("tritonclient is not installed; pip install -e '.[dev]'")
    volume = phantom()
    (tmp_path / "volume.nii").write_bytes(nifti.encode(volume))
    put(tmp_path / "tiny", [bright_tile(n % 6) for n in range(20)])
    examples = sorted((REPOSITORY / "models" / "mednist" / "examples").glob("*.png"))
    trained = any(path.name.startswith("mednist") for path in served_store.iterdir())
    if trained:
        put(tmp_path / "mednist", [path.read_bytes() for path in examples])
    command = [sys.executable, "-m", "tests.gateway.triton_client"]
    run = subprocess.run(
        [*command, served.addresses.grpc, http_address(served), str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert (report["live"], report["ready"], report["model_ready"]) == (True, True, True)
    assert report["server"]["name"] == "medserve"
    assert {each["name"] for each in report["index"]["models"]} >= {"tiny", *_ROOMS}
    assert report["metadata"]["inputs"] == [{"name": "data", "datatype": "BYTES", "shape": ["-1"]}]
    expect_classes(report["classes"], [LABELS[n % 6] for n in range(20)], len(LABELS))
    if trained:
        expect_classes(report["mednist"], [path.stem for path in examples], 6)
    assert (np.array(report["mask"]["mask"]) == known_mask(volume)).all()
    assert report["mask"]["type"] == "uint8"
    np.testing.assert_allclose(report["mask"]["affine"], volume.geometry.affine)
    assert report["mask"]["names"] == ["mask", "affine", "volumes_ml"]
    assert len(report["drawn"]["previews"]) == STEPS
    assert report["drawn"]["images"] == [square(5).hex(), square(6).hex()]
    assert report["drawn"]["seeds"] == [5, 6]
    assert report["refused"] == "StatusCode.NOT_FOUND"
    assert report["config"]["config"]["input"] == [
        {"name": "data", "data_type": "TYPE_STRING", "dims": ["-1"]}
    ]
    [counts] = report["statistics"]["model_stats"]
    assert int(counts["inference_stats"]["success"]["count"]) >= 1
    assert int(counts["inference_stats"]["compute_infer"]["ns"]) > 0
    expect_the_same_over_http(report["http"], report)


def http_address(served: GatewayServer) -> str:
    """Return where HTTP is served, as clients of Triton take it: without a scheme."""
    return str(served.addresses.page_url).removeprefix("http://").rstrip("/")


def expect_the_same_over_http(found: dict[str, Any], over_grpc: dict[str, Any]) -> None:
    """Over HTTP a stock client gets the answers that it gets over gRPC, and prints errors."""
    assert (found["live"], found["ready"], found["id"]) == (True, True, "42")
    assert found["server"]["extensions"] == over_grpc["server"]["extensions"]
    assert found["metadata"]["inputs"] == [{"name": "data", "datatype": "BYTES", "shape": [-1]}]
    assert found["config"]["input"] == [{"name": "data", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert {each["name"] for each in found["index"]} >= {"tiny", *_ROOMS}
    assert found["statistics"]["model_stats"][0]["inference_stats"]["success"]["count"] >= 1
    assert found["labels"] == found["labels_in_json"] == over_grpc["classes"]["labels"]
    assert found["ids_in_json"] == over_grpc["classes"]["ids"]
    assert found["shape"] == over_grpc["classes"]["shape"]
    assert found["printed"].startswith("[404] UNKNOWN_MODEL: ")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_perf_analyzer_of_triton_measures_a_model(
    served: GatewayServer, tmp_path: Path, protocol: str
) -> None:
    # tritonclient brings one, too, which needs libb64 and the CUDA runtime
    program = shutil.which("perf_analyzer") or str(Path(sys.executable).with_name("perf_analyzer"))
    if (
        not Path(program).is_file()
        or subprocess.run([program, "--version"], check=False).returncode
    ):
        pytest.skip("Triton's perf_analyzer does not start on this machine")
    tile = bright_tile(1)
    element = base64.b64encode(struct.pack("<I", len(tile)) + tile).decode()
    content = {"data": [{"data": {"content": {"b64": element}, "shape": [1]}}]}
    (tmp_path / "input.json").write_text(json.dumps(content), encoding="utf-8")
    address = served.addresses.grpc if protocol == "grpc" else http_address(served)
    command = [program, "-m", "tiny", "-u", address, "-i", protocol]
    command += ["--input-data", str(tmp_path / "input.json"), "--concurrency-range", "2"]
    command += ["--measurement-mode", "count_windows", "--measurement-request-count", "20"]
    printed = run([*command, "--stability-percentage", "999"])
    assert re.search(r"Throughput: [1-9]", printed), printed
    assert re.search(r"Inference count: [1-9]", printed), printed


def put(folder: Path, contents: list[bytes]) -> None:
    """Number the files, so that their order is known; one more among them is broken."""
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number:03}.png").write_bytes(content)
    (folder / "000b.png").write_bytes(_NO_IMAGE)  # the second


def expect_classes(found: dict[str, Any], labels: list[str], classes: int) -> None:
    """One row per file, the second of which is broken."""
    assert found["labels"] == [labels[0], "", *labels[1:]]
    assert found["status"] == ["ok", "INVALID_IMAGE", *["ok"] * (len(labels) - 1)]
    assert found["ids"][1] == -1
    assert found["shape"] == [len(labels) + 1, classes]
    assert found["sums"] == [1, 0, *[1] * (len(labels) - 1)]
    assert found["id"] == "42"


def test_three_hundred_images_stream_through_and_broken_ones_cost_no_other(
    stub: pb_grpc.ImagingServiceStub,
) -> None:
    contents = [_NO_IMAGE if n % 50 == 7 else bright_tile(n % 6) for n in range(300)]

    def requests() -> Iterator[pb.ClassifyRequest]:
        yield pb.ClassifyRequest(settings=pb.ClassifySettings(model_name="tiny"))
        for n, content in enumerate(contents):
            yield pb.ClassifyRequest(image=pb.ImageFile(id=str(n), content=content))

    found = {int(each.id): each for each in stub.Classify(requests(), timeout=120)}
    assert sorted(found) == list(range(300))
    for n, response in found.items():
        assert response.index == n
        if n % 50 == 7:
            assert response.error.message.startswith("INVALID_IMAGE: ")
        else:
            assert response.classification.label == LABELS[n % 6]
            assert response.provenance.archive_digest.startswith("sha256:")


def large_phantom() -> Volume:
    """More than 4 MiB as a file; its grid is oblique and no side equals another."""
    small = phantom()
    array = np.tile(np.asarray(small.array), (5, 6, 9))[:120, :125, :145]
    return Volume(np.ascontiguousarray(array), Geometry(array.shape, small.geometry.affine))


def test_a_volume_of_more_than_four_megabytes_is_segmented_in_chunks(
    stub: pb_grpc.ImagingServiceStub,
) -> None:
    volume = large_phantom()
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=0) as file:  # as large as it is
        file.write(gzip.decompress(nifti.encode(volume)))
    content = buffer.getvalue()
    assert len(content) > 4 * 2**20

    def requests() -> Iterator[pb.SegmentRequest]:
        settings = pb.SegmentSettings(
            model_name="tiny_volume", content_bytes=len(content), overlay=True, uncertainty=True
        )
        yield pb.SegmentRequest(settings=settings)
        for start in range(0, len(content), 2**18):
            yield pb.SegmentRequest(chunk=content[start : start + 2**18])

    responses = list(stub.Segment(requests(), timeout=240))
    [result] = [each.result for each in responses if each.WhichOneof("part") == "result"]
    files: dict[int, bytes] = {}
    for each in responses:
        if each.WhichOneof("part") == "chunk":
            files[each.chunk.role] = files.get(each.chunk.role, b"") + each.chunk.content
    assert {each.role: each.size_bytes for each in result.files} == {
        role: len(file) for role, file in files.items()
    }
    mask = nifti.decode(files[pb.FILE_ROLE_MASK])
    assert mask.geometry.shape == volume.geometry.shape
    # the tiles' seams are sharp, and a window blurs nothing: every voxel is known
    assert (mask.array == known_mask(volume)).mean() > 0.99
    np.testing.assert_allclose(result.affine, volume.geometry.affine.ravel(), rtol=1e-6)
    assert [measure.label for measure in result.measures] == ["dim", "bright"]
    assert files[pb.FILE_ROLE_OVERLAY].startswith(b"\x89PNG")
    assert nifti.decode(files[pb.FILE_ROLE_ENTROPY]).geometry.shape == volume.geometry.shape


def test_pictures_appear_while_they_form(stub: pb_grpc.ImagingServiceStub) -> None:
    responses = list(
        stub.Sample(pb.SampleRequest(model_name="sketcher", image_count=2, seed=9), timeout=60)
    )
    shown = [each.progress for each in responses if each.WhichOneof("part") == "progress"]
    assert [(each.step, each.steps, each.preview_png) for each in shown] == [
        (step, STEPS, square(step)) for step in range(1, STEPS + 1)
    ]
    assert [each.image.png for each in responses[STEPS:]] == [square(9), square(10)]
    assert responses[-1].image.details["steps"] == STEPS


def test_a_sampler_that_refuses_says_why(stub: pb_grpc.ImagingServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Sample(pb.SampleRequest(model_name="sketcher", image_count=99), timeout=60))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "n: expected a whole number from 1 to" in error.details()


def test_models_are_listed_as_their_archives_describe_them(
    stub: pb_grpc.ImagingServiceStub,
) -> None:
    models = {each.name: each for each in stub.ListModels(pb.ListModelsRequest()).models}
    assert set(models) >= {"tiny", *_ROOMS}
    assert all(each.ready and each.default_version for each in models.values())
    assert models["tiny"].card_markdown.startswith("# tiny")
    assert models["sketcher"].task == pb.TASK_GENERATION
    assert list(models["tiny_volume"].labels) == ["background", "dim", "bright"]


def test_every_task_answers_over_http(web: httpx.Client) -> None:
    contents = [bright_tile(n % 6) for n in range(40)]
    contents[3] = _NO_IMAGE
    files = [("files", (f"{n}.png", content)) for n, content in enumerate(contents)]
    items = web.post("/v1/models/tiny/classify", files=files).json()["items"]
    expected = [None if n == 3 else LABELS[n % 6] for n in range(40)]
    assert [item.get("label") for item in items] == expected
    assert [item["name"] for item in items] == [f"{n}.png" for n in range(40)]

    octets = {"content-type": "application/octet-stream"}
    one = web.post("/v1/models/tiny/classify?top_k=1", content=contents[5], headers=octets)
    assert (one.json()["label"], len(one.json()["top"])) == (LABELS[5], 1)
    broken = web.post("/v1/models/tiny/classify", content=_NO_IMAGE, headers=octets)
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "INVALID_IMAGE")

    volume = phantom()
    segment = "/v1/models/tiny_volume/segment"
    mask = web.post(segment, content=nifti.encode(volume), headers=octets)
    assert mask.headers["content-type"] == "application/gzip"
    assert (nifti.decode(mask.content).array == known_mask(volume)).all()
    measured = web.post(f"{segment}?output=json", files={"file": nifti.encode(volume)}).json()
    assert (
        Segmentation.from_result(VolumeResult.from_json(measured)).mask == known_mask(volume)
    ).all()
    refused = web.post(f"{segment}?format=dicom-seg", content=nifti.encode(volume), headers=octets)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "INVALID_REQUEST")

    with web.stream(
        "POST", "/v1/models/sketcher/sample", json={"n": 2, "seed": 9},
        headers={"accept": "text/event-stream"},
    ) as response:  # fmt: skip
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    assert [event.get("step") for event in events] == [1, 2, 3, None]
    assert len(events[-1]["images"]) == 2


def test_hundreds_of_files_are_answered_while_they_are_sent(web: httpx.Client) -> None:
    files = [("files", (f"{n}.png", bright_tile(n % 6))) for n in range(300)]
    headers = {"accept": "application/x-ndjson"}
    with web.stream("POST", "/v1/models/tiny/classify", files=files, headers=headers) as response:
        items = [json.loads(line) for line in response.iter_lines()]
    assert {item["index"]: item["label"] for item in items} == {
        n: LABELS[n % 6] for n in range(300)
    }


def test_metadata_of_the_protocol_is_the_same_over_http(web: httpx.Client) -> None:
    assert web.get("/v2/health/ready").status_code == 200
    described = web.get("/v2/models/tiny_volume").json()
    assert {"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]} in described["outputs"]
    assert web.get("/readyz").json() == {"ready": True}
    assert "/v1/models/{model}/classify" in web.get("/openapi.json").json()["paths"]


# ---- the examples of the documentation, word for word but for addresses and the large models


@pytest.fixture
def as_documented(
    served: GatewayServer, served_store: Path, tmp_path: Path
) -> Callable[[str], str]:
    """An example for the servers of these tests: two models stand for larger ones."""
    if not any(path.name.startswith("mednist") for path in served_store.iterdir()):
        pytest.skip("models/mednist/weights is not complete; python -m training.mednist")
    volume = tmp_path / "volume.nii.gz"
    volume.write_bytes(nifti.encode(phantom()))
    places = {
        "127.0.0.1:8001": served.addresses.grpc,
        "http://127.0.0.1:8000": str(served.addresses.page_url).rstrip("/"),
        "127.0.0.1:8000": http_address(served),
        "models/segmentation_3d/examples/average.nii.gz": str(volume),
        "segmentation_3d": "tiny_volume",
        "diffusion_sampler": "sketcher",
        "outputs": str(tmp_path),
    }

    def adapted(example: str) -> str:
        for written, here in places.items():
            example = example.replace(written, here)
        return example

    return adapted


def examples(page: str, heading: str, language: str) -> list[str]:
    """Code blocks under a heading."""
    text = (_PAGES / page).read_text(encoding="utf-8")
    section = re.split(r"^## ", text.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def run(command: list[str], **environment: str) -> str:
    """What an example prints in the checkout."""
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_example_of_the_typed_calls_works(
    as_documented: Callable[[str], str], tmp_path: Path
) -> None:
    [example] = examples("call/grpc.md", "Typed calls", "python")
    printed = run([sys.executable, "-c", as_documented(example)])
    assert "Hand Hand" in printed
    assert "bright: " in printed
    mask = nifti.decode((tmp_path / "mask.nii.gz").read_bytes())
    assert (mask.array == known_mask(phantom())).all()


def test_the_python_example_of_the_open_inference_protocol_works(
    as_documented: Callable[[str], str],
) -> None:
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("tritonclient is not installed; pip install -e '.[dev]'")
    [example] = examples("call/grpc.md", "Open Inference Protocol", "python")
    printed = run([sys.executable, "-c", as_documented(example)])
    assert "Hand.png Hand" in printed
    assert "(6, 6)" in printed


def test_the_python_example_of_the_protocol_over_http_works(
    as_documented: Callable[[str], str],
) -> None:
    if importlib.util.find_spec("tritonclient") is None:
        pytest.skip("tritonclient is not installed; pip install -e '.[dev]'")
    [example] = examples("call/http.md", "Open Inference Protocol", "python")
    assert run([sys.executable, "-c", as_documented(example)]).startswith("Hand ")


@pytest.mark.skipif(
    not (shutil.which("grpcurl") or _BUF.is_file()), reason="needs grpcurl or buf (the dev extra)"
)
def test_the_shell_example_of_the_typed_calls_works(
    as_documented: Callable[[str], str], tmp_path: Path
) -> None:
    path = os.environ["PATH"]
    if shutil.which("grpcurl") is None:
        program = tmp_path / "bin" / "grpcurl"
        program.parent.mkdir()
        stand_in = REPOSITORY / "tests/deploy/grpcurl/stand_in.py"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        path = f"{program.parent}:{path}"
    [example] = examples("call/grpc.md", "Typed calls", "bash")
    script = "set -euo pipefail\n" + as_documented(example)
    printed = run(["bash", "-c", script], PATH=path, BUF=str(_BUF)).replace(" ", "")
    assert printed.count('"classification"') == 6
    assert '"role":"FILE_ROLE_OVERLAY"' in printed
    assert printed.count('"png":') == 2
    assert "TASK_VOLUMES" in printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_curl_command_of_the_documentation_works(
    as_documented: Callable[[str], str], tmp_path: Path
) -> None:
    headings = ("Classify", "Segment", "Sample", "Open Inference Protocol", "Models and health")
    blocks = [block for heading in headings for block in examples("call/http.md", heading, "bash")]
    assert len(blocks) == 6
    script = "set -euo pipefail\n" + as_documented("".join(blocks))
    printed = run(["bash", "-c", script], NO_PROXY="127.0.0.1")
    assert printed.count('"label":"Hand"') >= 3
    assert '"code":"INVALID_IMAGE"' in printed
    assert '"event": "progress"' in printed
    assert '"name":"label","datatype":"BYTES","shape":[1],"data":["Hand"]' in printed
    assert (nifti.decode((tmp_path / "mask.nii.gz").read_bytes()).array > 0).any()
    measured = json.loads((tmp_path / "mask.json").read_text())
    assert {"measures", "mask_nifti", "overlay_png"} <= set(measured)
    assert len(json.loads((tmp_path / "drawn.json").read_text())["images"]) == 2
