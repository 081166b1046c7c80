"""A network that tells numbers: imported by the command, served, asked through every face."""

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
from medserve.errors import ServerFailedError
from medserve.gateway.server import GatewayServer
from medserve.importing.golden import as_png
from medserve.settings import EngineKind
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc
from tests.backends import running_backend
from tests.cli.conftest import Medserve
from tests.cli.conftest import medserve as medserve
from tests.gateway.running import running_gateway
from tests.importing.picture_networks import own_numbers, write_numbers

pytestmark = [pytest.mark.process, pytest.mark.filterwarnings("ignore")]  # of torch's exporters

pytest.importorskip("onnxscript", reason="needs the import extra")

# Red, green, blue; of the last two the second number lies outside of 5 to 90 percent.
COLOURS = {"young": (0.0, 0.5, 0.0), "old": (1.0, 0.2, 1.0), "none": (0.5, 0.0, 0.0),
           "all": (0.2, 1.0, 0.3)}  # fmt: skip
DOUBTFUL = ("none", "all")
NAMES = ("bone age", "ossified")


def picture(name: str) -> bytes:
    return as_png(np.rint(255 * np.broadcast_to(np.array(COLOURS[name]), (60, 50, 3))))


def own(name: str) -> Any:
    return pytest.approx(own_numbers(picture(name)), abs=1e-3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medserve.cli.importing import import_

    folder = tmp_path_factory.mktemp("values")
    run = CliRunner().invoke(
        import_, ["onnx", *map(str, write_numbers(folder)), "--store", str(folder / "store")]
    )
    assert run.exit_code == 0, run.output
    assert "own answer for 100.0000% of the values" in run.output
    return folder / "store"


@pytest.fixture(scope="module")
def served(store: Path) -> Iterator[GatewayServer]:
    with (
        running_backend(EngineKind.DIRECT, store) as engine,
        running_gateway(*engine.before(page=True, canary_timeout_s=60.0)) as gateway,
    ):
        yield gateway


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in COLOURS:
        (folder / f"{name}.png").write_bytes(picture(name))
    (folder / "broken.png").write_bytes(picture("old")[:60])
    return folder


def test_the_client_tells_each_number_with_its_unit(served: GatewayServer) -> None:
    with Client(served.addresses.grpc, timeout_s=120) as client:
        [status] = client.models()
        results = client.estimate("hand", [*map(picture, COLOURS), b"no picture"])
        one = client.estimate_one("hand", picture("old"))
        with pytest.raises(ServerFailedError, match="expected a classification"):
            client.classify_one("hand", picture("old"))
    assert status.values == (("bone age", "mo"), ("ossified", "%"))
    for name, each in zip(COLOURS, results, strict=False):
        found = each.unwrap()
        assert tuple(value.value for value in found.values) == own(name)
        assert [value.unit for value in found.values] == ["mo", "%"]
        assert found.review == (name in DOUBTFUL)
        assert each.provenance.model == "hand"
    assert results[-1].error is not None
    assert one == results[1].unwrap()
    assert "100 percent, outside of the plausible range from 5 to 90 percent" in (
        results[3].unwrap().values[1].doubt
    )


def test_the_typed_call_tells_them_too_and_refuses_other_tasks(served: GatewayServer) -> None:
    settings = pb.EstimateSettings(model_name="hand")
    requests = [pb.EstimateRequest(settings=settings)]
    requests += [pb.EstimateRequest(image=pb.ImageFile(id=name, content=picture(name)))
                 for name in COLOURS]  # fmt: skip
    requests.append(pb.EstimateRequest(image=pb.ImageFile(id="text", content=b"no picture")))
    classify = [pb.ClassifyRequest(settings=pb.ClassifySettings(model_name="hand"))]
    with grpc.insecure_channel(served.addresses.grpc) as channel:
        stub = pb_grpc.ImagingServiceStub(channel)
        found = {each.id: each for each in stub.Estimate(iter(requests), timeout=120)}
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Classify(iter(classify), timeout=120))
        [model] = stub.ListModels(pb.ListModelsRequest(), timeout=120).models
    for name in COLOURS:
        regression = found[name].regression
        assert tuple(each.value for each in regression.values) == own(name)
        assert tuple(each.name for each in regression.values) == NAMES
        assert regression.review == (name in DOUBTFUL)
    assert found["text"].HasField("error")
    assert "use estimate for it" in (refused.value.details() or "")
    assert model.task == pb.TASK_REGRESSION
    assert [(each.unit, each.HasField("least")) for each in model.values] == [
        ("mo", False), ("%", True),
    ]  # fmt: skip


def test_rest_and_the_open_protocol_tell_numbers(served: GatewayServer) -> None:
    page = served.addresses.page_url
    files = [("files", (f"{name}.png", picture(name))) for name in COLOURS]
    files.append(("files", ("text.png", b"no picture")))
    answered = httpx.post(f"{page}v1/models/hand/estimate", files=files, timeout=120).json()
    *good, bad = answered["items"]
    for name, item in zip(COLOURS, good, strict=True):
        assert tuple(each["value"] for each in item["values"]) == own(name)
        assert item["review"] == (name in DOUBTFUL)
    assert bad["status"] == "error"
    assert bad["error"]["code"] == "INVALID_IMAGE"
    alone = httpx.post(f"{page}v1/models/hand/estimate", content=picture("old"), timeout=120)
    assert tuple(each["value"] for each in alone.json()["values"]) == own("old")
    other = httpx.post(f"{page}v1/models/hand/classify", content=picture("old"), timeout=120)
    assert other.status_code == 400
    assert "use estimate for it" in other.json()["error"]["message"]
    told = httpx.get(f"{page}v1/models/hand").json()
    assert [each["name"] for each in told["values"]] == [*NAMES]
    assert told["values"][1]["range"] == [5, 90]

    data = [base64.b64encode(picture(name)).decode() for name in COLOURS]
    data.append(base64.b64encode(b"no picture").decode())
    tensor = {"name": "data", "datatype": "BYTES", "shape": [len(data)], "data": data,
              "parameters": {"content_type": "base64"}}  # fmt: skip
    url = f"{page}v2/models/hand/infer"
    outputs = {
        each["name"]: each
        for each in httpx.post(url, json={"inputs": [tensor]}, timeout=120).json()["outputs"]
    }
    assert outputs["values"]["shape"] == [len(data), 2]
    rows = [outputs["values"]["data"][place : place + 2] for place in range(0, 2 * len(data), 2)]
    assert [tuple(row) for row in rows[:-1]] == [own(name) for name in COLOURS]
    assert rows[-1] == [None, None]  # NaN has no place in JSON
    assert outputs["units"]["data"] == ["mo", "%"]
    assert outputs["status"]["data"] == [*["ok"] * len(COLOURS), "INVALID_IMAGE"]


def test_predict_writes_a_table_with_units_and_doubts(
    served: GatewayServer, images: Path, tmp_path: Path, medserve: Medserve
) -> None:
    out, address = tmp_path / "out", ("--address", served.addresses.grpc)
    run = medserve("predict", "hand", images, "--out", out, *address)
    assert run.code == 1, run.err  # one file is broken
    assert "outside of the plausible range" in " ".join(run.out.split())
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["path"]).stem: row for row in csv.DictReader(file)}
    for name in COLOURS:
        assert (float(rows[name]["bone age (mo)"]), float(rows[name]["ossified (%)"])) == own(name)
        assert bool(rows[name]["doubts"]) == (name in DOUBTFUL)
    assert rows["broken"]["status"] == "error"
    lines = medserve("predict", "hand", images / "old.png", "--json", *address).out.splitlines()
    assert tuple(each["value"] for each in json.loads(lines[0])["values"]) == own("old")
    refused = medserve("predict", "hand", images, "--top-k", 2, *address)
    assert refused.code == 2
    assert "--top-k" in refused.err
    sort = medserve("sort", images, "--out", tmp_path / "s", "--model", "hand", *address)
    assert sort.code == 2
    assert "whose task is regression; `medserve predict` asks it" in sort.err
    assert not (tmp_path / "s" / "_errors").exists()


def test_an_archive_is_tried_and_batched_without_a_server(
    store: Path, images: Path, tmp_path: Path, medserve: Medserve
) -> None:
    archive = store / "hand-1.0.mar"
    run = medserve("try", archive, *(images / f"{name}.png" for name in COLOURS))
    assert run.code == 0, run.err
    assert "bone age 147.5 mo; ossified 20 %" in run.out
    assert run.out.count("look: ossified is") == len(DOUBTFUL)
    run = medserve(
        "batch", "run", images, "--archive", archive, "--out", tmp_path / "batch", "--workers", 1
    )
    assert run.code == 1, run.err
    with (tmp_path / "batch/results.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["source"]).stem: row for row in csv.DictReader(file)}
    for name in COLOURS:
        assert (float(rows[name]["bone age (mo)"]), float(rows[name]["ossified (%)"])) == own(name)
        assert (rows[name]["review"] == "True") == (name in DOUBTFUL)
        assert bool(rows[name]["doubts"]) == (name in DOUBTFUL)
    assert rows["broken"]["status"] == "error"
    assert "outside of the plausible range" in (tmp_path / "batch/report.html").read_text()
