"""A network of several labels: imported by the command, served, asked through every face."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from medserve.client import Client
from medserve.gateway.server import GatewayServer
from medserve.importing.golden import as_png
from medserve.settings import EngineKind
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc
from tests.backends import running_backend
from tests.cli.conftest import Medserve
from tests.cli.conftest import medserve as medserve
from tests.gateway.running import running_gateway
from tests.importing.picture_networks import LABELS, own_shares, write_labels

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore")]  # of torch's exporters

pytest.importorskip("onnxscript", reason="needs the import extra")

# Values of red, green and blue; a value is the logit over one half, by the gain of the network.
COLOURS = {
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.1, 0.1),
    "magenta": (1.0, 0.0, 1.0),
    "white": (1.0, 1.0, 1.0),
    "dim": (0.0, 0.52, 0.0),  # green, of which the model is not sure
}
PRESENT = {
    "black": (), "red": ("Red",), "magenta": ("Red", "Blue"), "white": LABELS, "dim": ("Green",),
}  # fmt: skip


def picture(name: str) -> bytes:
    pixels = np.broadcast_to(np.array(COLOURS[name]), (60, 50, 3))
    return as_png(np.rint(255 * pixels))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayServer]:
    from medserve.cli.importing import import_

    folder = tmp_path_factory.mktemp("labels")
    arguments = write_labels(folder, review_below=0.8)
    run = CliRunner().invoke(
        import_, ["onnx", *map(str, arguments), "--store", str(folder / "store")]
    )
    assert run.exit_code == 0, run.output
    with (
        running_backend(EngineKind.DIRECT, folder / "store") as engine,
        running_gateway(*engine.before(page=True, canary_timeout_s=60.0)) as gateway,
    ):
        yield gateway


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in COLOURS:
        (folder / f"{name}.png").write_bytes(picture(name))
    return folder


def test_grpc_tells_each_label_on_its_own(served: GatewayServer) -> None:
    with Client(served.addresses.grpc, timeout_s=120) as client:
        found = [each.unwrap() for each in client.classify("colours", [*map(picture, COLOURS)])]
    for name, each in zip(COLOURS, found, strict=True):
        assert each.present == PRESENT[name]
        assert each.probabilities == pytest.approx(own_shares(picture(name)), abs=0.02)
        assert each.review == (name == "dim")
        assert each.label == ""
    assert sum(found[3].probabilities) > 2  # they do not sum to 1

    requests = [pb.ClassifyRequest(settings=pb.ClassifySettings(model_name="colours", top_k=1))]
    requests += [pb.ClassifyRequest(image=pb.ImageFile(id=name, content=picture(name)))
                 for name in COLOURS]  # fmt: skip
    with grpc.insecure_channel(served.addresses.grpc) as channel:
        responses = list(pb_grpc.ImagingServiceStub(channel).Classify(iter(requests), timeout=120))
    typed = {each.id: each.classification for each in responses}
    assert {name: tuple(each.present) for name, each in typed.items()} == PRESENT
    assert all(each.independent and each.label_id == -1 for each in typed.values())
    assert [each.label for each in typed["red"].top] == ["Red"]


def test_rest_and_the_open_protocol_tell_what_is_present_and_no_class(
    served: GatewayServer,
) -> None:
    page = served.addresses.page_url
    files = [("files", (f"{name}.png", picture(name))) for name in COLOURS]
    answered = httpx.post(f"{page}v1/models/colours/classify", files=files, timeout=120).json()
    for name, item in zip(COLOURS, answered["items"], strict=True):
        assert tuple(item["present"]) == PRESENT[name]
        assert "label" not in item
        assert "probability" not in item
    data = [base64.b64encode(picture(name)).decode() for name in COLOURS]
    tensor = {"name": "data", "datatype": "BYTES", "shape": [len(data)], "data": data,
              "parameters": {"content_type": "base64"}}  # fmt: skip
    url = f"{page}v2/models/colours/infer"
    outputs = {
        each["name"]: each
        for each in httpx.post(url, json={"inputs": [tensor]}, timeout=120).json()["outputs"]
    }
    assert outputs["present"]["shape"] == [len(COLOURS), len(LABELS)]
    assert outputs["present"]["data"] == [
        label in PRESENT[name] for name in COLOURS for label in LABELS
    ]
    assert set(outputs["label"]["data"]) == {""}
    assert set(outputs["class_id"]["data"]) == {-1}
    assert set(outputs["probability"]["data"]) == {None}  # NaN has no place in JSON
    described = httpx.get(f"{page}v2/models/colours").json()["outputs"]
    assert {"name": "present", "datatype": "BOOL", "shape": [-1, 3]} in described


def test_sort_puts_each_image_into_one_folder_and_review_takes_several_labels(
    served: GatewayServer, images: Path, tmp_path: Path, medserve: Medserve
) -> None:
    out, address = tmp_path / "out", ("--address", served.addresses.grpc)
    run = medserve("sort", images, "--out", out, "--model", "colours", *address)
    assert run.code == 0, run.err
    found = {path.name: path.parent.name for path in out.glob("*/*.png")}
    assert found == {
        "black.png": "_none", "red.png": "Red", "magenta.png": "_several",
        "white.png": "_several", "dim.png": "_review",
    }  # fmt: skip
    assert {path.name for path in out.iterdir() if path.is_dir()} == {
        *LABELS, "_none", "_several", "_review",
    }  # fmt: skip
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["source"]: row for row in csv.DictReader(file)}
    magenta = rows["magenta.png"]
    assert (magenta["class"], magenta["class_id"]) == ("Red; Blue", "0; 2")
    assert len(magenta["probability"].split("; ")) == 2
    assert (rows["black.png"]["class"], rows["black.png"]["probability"]) == ("none", "")
    run = medserve(*("sort", images, "--out", tmp_path / "all", "--model", "colours"),
                   *("--review-below", 0, *address))  # fmt: skip
    assert (tmp_path / "all/Green/dim.png").is_file()

    refused = medserve("review", out, "--class", "_several", "_review/dim.png")
    assert (refused.code, "Known are Blue, Green, Red" in refused.err) == (2, True)
    assert medserve("review", out, "--class", "Green;Red", "_review/dim.png").code == 0
    assert medserve("review", out, "--class", "none", "Red/red.png").code == 0
    with (out / "corrections.csv").open(newline="", encoding="utf-8") as file:
        corrected = [(row["class"], row["predicted_class"]) for row in csv.DictReader(file)]
    assert corrected in ([("Green; Red", "Green"), ("none", "Red")],)


def test_predict_prints_and_writes_every_label(
    served: GatewayServer, images: Path, tmp_path: Path, medserve: Medserve
) -> None:
    server = ("--address", served.addresses.grpc)
    run = medserve("predict", "colours", images, "--json", "--out", tmp_path / "out", *server)
    assert run.code == 0, run.err
    records = {Path(each["path"]).stem: each for each in map(json.loads, run.out.splitlines())}
    assert {name: tuple(each["present"]) for name, each in records.items()} == PRESENT
    assert {each["label"] for each in records.values()} == {None}
    with (tmp_path / "out/results.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["path"]).stem: row for row in csv.DictReader(file)}
    assert rows["magenta"]["present"] == "Red; Blue"
    assert float(rows["magenta"]["p_Green"]) < 0.01
    shown = medserve("predict", "colours", images / "black.png", *server)
    assert "none" in shown.out


def test_a_batch_counts_every_label(
    served: GatewayServer, images: Path, tmp_path: Path, medserve: Medserve
) -> None:
    out = tmp_path / "out"
    run = medserve("batch", images, "--server", served.addresses.grpc, "--model", "colours",
                   "--out", out, "--progress", "none")  # fmt: skip
    assert run.code == 0, run.err
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        found = {row["id"]: row["present"] for row in csv.DictReader(file)}
    assert sorted(found.values()) == sorted(
        "; ".join(labels) or "none" for labels in PRESENT.values()
    )
    assert '<td>Red</td><td class="n">3</td>' in (out / "report.html").read_text()


def test_the_metrics_count_every_label(served: GatewayServer) -> None:
    httpx.post(f"{served.addresses.page_url}v1/models/colours/classify",
               files=[("files", ("a.png", picture("magenta")))], timeout=120)  # fmt: skip
    told: Any = httpx.get(served.addresses.metrics_url).text
    for label in ("Red", "Blue"):
        assert f'medserve_gateway_labels_total{{label="{label}",model="colours"' in told
