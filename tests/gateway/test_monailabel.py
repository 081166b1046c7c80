"""MONAI Label's API: asked by its own client, unchanged, and by hand."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI

from medserve.dicom.web.server import WebServer
from medserve.errors import InvalidImageError
from medserve.gateway.core.gateway import Caller, Gateway, Guards, Limits
from medserve.gateway.faces.monailabel import app as monailabel
from medserve.gateway.faces.monailabel.sessions import ImageSessions
from medserve.gateway.faces.rest.body import RestLimits
from medserve.gateway.settings import GatewaySettings
from medserve.imaging.codecs import nifti
from medserve.settings import Address
from medserve.spec import Task
from tests.gateway.faces import LABELS, SEGMENTATION, segmented, two_images
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model
from tests.tiny_volume_room import known_mask, phantom

_MODELS = (model("hippocampus", Task.VOLUMES, labels=LABELS), model("kinds", labels=LABELS))


class Tokens:
    """Two people with a token each."""

    def caller(self, token: str) -> Caller | None:
        """Whose it is."""
        return Caller(token, frozenset({"hippocampus"})) if token in ("anna", "ben") else None


class Face:
    """The face before a fake engine."""

    def __init__(self, folder: Path, **guards: Any) -> None:
        self.engine = FakeEngine(segmented, known=tuple(each.name for each in _MODELS))
        self.gateway: Gateway = fake_gateway(self.engine, *_MODELS, guards=Guards(**guards))
        self.sessions = ImageSessions()
        self.sessions.folder = folder
        self.app = FastAPI()
        self.app.include_router(monailabel.router(self.gateway, self.sessions, RestLimits()))

    def ask(self, method: str, path: str, token: str = "", **request: Any) -> httpx.Response:
        """Send one request."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                return await client.request(
                    method, f"/monailabel{path}", headers=headers, timeout=30, **request
                )

        return asyncio.run(run())

    def keep(self, content: bytes = b"image", token: str = "") -> str:
        """Open a session."""
        answer = self.ask("PUT", "/session/", token, files={"files": ("a.nii.gz", content)})
        return str(answer.json()["session_id"])

    def asked(self) -> tuple[bytes, dict[str, Any]]:
        """Return file and params of the last call."""
        last = self.engine.requests[-1]
        return last.inputs["data"], json.loads(last.inputs.get("params", b"{}"))


@pytest.fixture
def face(tmp_path: Path) -> Face:
    return Face(tmp_path)


def infer(face: Face, query: str = "", path: str = "hippocampus", **request: Any) -> httpx.Response:
    form: dict[str, Any] = {
        "data": {"params": "{}"},
        "files": {"file": ("/home/x/a.nii.gz", b"volume")},
    }
    return face.ask("POST", f"/infer/{path}?image={query}", **(form | request))


def test_models_of_volumes_are_described(face: Face) -> None:
    info = face.ask("GET", "/info/").json()
    assert list(info["models"]) == ["hippocampus"]
    described = info["models"]["hippocampus"]
    assert (described["type"], described["dimension"]) == ("segmentation", 3)
    assert described["labels"] == {"bright": 1}
    assert {"name", "labels", "trainers", "strategies", "scoring", "datastore"} <= set(info)


def test_a_model_of_several_images_takes_one_file_and_says_how(tmp_path: Path) -> None:
    face = Face(tmp_path)
    face.gateway = fake_gateway(face.engine, two_images())
    face.app = FastAPI()
    face.app.include_router(monailabel.router(face.gateway, face.sessions, RestLimits()))
    [described] = face.ask("GET", "/info/").json()["models"].values()
    assert "one NIfTI file with t1, flair along its fourth axis" in described["description"]
    both = [("file", ("a_0000.nii", b"t1")), ("file", ("a_0001.nii", b"flair"))]
    answer = face.ask("POST", "/infer/tumour?image=", data={"params": "{}"}, files=both)
    assert answer.status_code == 400
    assert "got several" in answer.json()["error"]["message"]
    assert face.engine.requests == []
    assert infer(face, path="tumour").status_code == 200
    assert face.asked()[0] == b"volume"


def test_the_answer_is_a_form_with_the_mask_and_what_is_known_of_it(face: Face) -> None:
    answer = infer(face)
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    _, params, image, end = answer.content.split(b"--" + boundary)
    assert json.loads(params.partition(b"\r\n\r\n")[2])["label_names"] == {"bright": 1}
    head, _, mask = image.partition(b"\r\n\r\n")
    assert b'filename="mask.nii.gz"' in head
    assert (nifti.decode(mask[:-2]).array == SEGMENTATION.mask).all()
    assert end == b"--\r\n"
    assert face.asked()[0] == b"volume"


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("image", "application/gzip"),
        ("json", "application/json"),
        ("dicom_seg", "application/dicom"),
        ("all", "multipart/form-data"),
    ],
)
def test_other_forms_of_the_answer(face: Face, output: str, kind: str) -> None:
    assert infer(face, f"&output={output}").headers["content-type"].startswith(kind)


def test_options_of_the_model_count_and_those_of_other_models_are_passed_over(face: Face) -> None:
    params = {"flips": False, "largest_cc": True, "device": "cuda:0", "client_id": None}
    infer(face, data={"params": json.dumps(params)})
    assert face.asked()[1] == {"flips": False, "output": "json"}
    answer = infer(face, data={"params": json.dumps({"flips": "yes"})})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"files": {"other": ("a", b"x")}}, 400),
        ({"data": {"params": "[]"}}, 400),
        ({"data": {"params": "{" + "x" * 70_000}}, 413),
        ({"data": {"params": "{}"}, "files": None}, 400),
        ({"files": {"file": ("a", bytes(3 * 2**20))}}, 413),
    ],
    ids=["field", "list", "long", "no image", "large"],
)
def test_what_cannot_be_answered_is_refused(
    tmp_path: Path, request_: dict[str, Any], status: int
) -> None:
    face = Face(tmp_path, limits=Limits(message_bytes=2 * 2**20))
    assert infer(face, **request_).status_code == status
    assert face.engine.requests == []
    assert face.gateway.budget.reserved == 0


def test_what_the_model_refuses_is_told(face: Face) -> None:
    def refuse(request: Request) -> bytes:
        raise InvalidImageError("expected a volume, got a picture")

    face.engine.answers = refuse
    answer = infer(face)
    assert answer.status_code == 400
    assert "got a picture" in answer.text


@pytest.mark.parametrize(
    "path",
    ["/train/", "/train/hippocampus", "/activelearning/random", "/datastore/label?image=a",
     "/scoring/dice", "/batch/infer/x", "/infer/wsi/hippocampus", "/logs/", "/model/hippocampus"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_no_inference_is_not_offered(face: Face, path: str, method: str) -> None:
    assert face.ask(method, path).status_code == 501


def test_a_session_belongs_to_its_owner_and_ends(tmp_path: Path) -> None:
    face = Face(tmp_path, tokens=Tokens())
    name = face.keep(token="anna")
    for token, status in (("anna", 200), ("ben", 404), ("", 401)):
        assert face.ask("GET", f"/session/{name}", token).status_code == status
        query = f"/infer/hippocampus?session_id={name}"
        assert face.ask("POST", query, token, files={"params": (None, "{}")}).status_code == status
    assert face.ask("DELETE", f"/session/{name}", "ben").status_code == 404
    assert face.ask("DELETE", f"/session/{name}", "anna").status_code == 200
    assert list(tmp_path.iterdir()) == []
    assert face.ask("GET", f"/session/{name}", "anna").status_code == 404


def test_sessions_are_bounded_and_those_not_used_are_deleted(
    face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [face.keep() for _ in range(6)]
    alive = [face.ask("GET", f"/session/{name}").status_code for name in names]
    assert alive == [404] * 2 + [200] * 4
    monkeypatch.setattr("medserve.gateway.faces.monailabel.sessions._LIFE_S", -1.0)
    face.sessions.sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_the_password(tmp_path: Path) -> None:
    face = Face(tmp_path, tokens=Tokens())
    assert face.ask("GET", "/auth/").json() == {"enabled": True}
    answer = face.ask("POST", "/auth/token", content="username=x&password=anna&grant_type=password")
    assert answer.json() == {"access_token": "anna", "token_type": "bearer"}
    assert face.ask("POST", "/auth/token", content="username=x&password=no").status_code == 401
    assert face.ask("GET", "/auth/token/valid", "anna").status_code == 200
    assert face.ask("GET", "/info/").status_code == 401


def test_a_large_login_is_not_read(tmp_path: Path) -> None:
    face = Face(tmp_path, tokens=Tokens())
    content = "username=x&password=anna&grant_type=" + 4096 * "x"
    assert face.ask("POST", "/auth/token", content=content).status_code == 413


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        (GatewaySettings(), 200),
        (GatewaySettings(host="0.0.0.0"), 404),
        (GatewaySettings(host="0.0.0.0", monailabel=True), 200),
    ],
    ids=["loopback", "beyond", "switched on"],
)
def test_beyond_loopback_it_is_off_unless_switched_on(
    face: Face, settings: GatewaySettings, status: int
) -> None:
    from medserve.gateway.faces.page import create_app

    app: Any = create_app(face.gateway, settings)
    face.app = app

    async def run() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/monailabel/info/")).status_code

    assert asyncio.run(run()) == status


# The stock client


@pytest.fixture(scope="module")
def stock() -> Any:
    """The module of MONAI Label's client, without its package, which wants a server's."""
    found = importlib.util.find_spec("monailabel")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs monailabel; pip install --no-deps -r tests/gateway/requirements.txt")
    file = Path(found.submodule_search_locations[0], "client", "client.py")
    spec = importlib.util.spec_from_file_location("monailabel_client", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # cgi, of the standard library
        spec.loader.exec_module(module)
    return module


def read(path: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return voxels and affine of a file, by nibabel."""
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj), np.asarray(image.affine)


@pytest.fixture
def address(face: Face) -> Iterator[str]:
    server = WebServer(face.app, Address("127.0.0.1", 0))
    server.start()
    yield f"http://{server.address}/monailabel"
    server.stop()


@pytest.mark.loopback
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the client leaves its files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_stock_client_runs_unchanged(
    stock: Any, face: Face, address: str, tmp_path: Path
) -> None:
    image, out = tmp_path / "image.nii.gz", tmp_path / "out"
    image.write_bytes(nifti.encode(phantom()))
    client = stock.MONAILabelClient(address, tmpdir=str(out))
    assert client.auth_enabled() is False
    assert list(client.info()["models"]) == ["hippocampus"]
    session = client.create_session(str(image))["session_id"]
    assert re.fullmatch(r"[0-9a-f-]{36}", client.get_session(session)["name"])
    for way in ({"session_id": session}, {"file": str(image)}):
        mask, params = client.infer("hippocampus", "", {}, **way)
        assert Path(mask).parent == out
        assert params["label_names"] == {"bright": 1}
        np.testing.assert_array_equal(read(mask)[0], SEGMENTATION.mask)
        assert face.asked()[0] == image.read_bytes()
    client.remove_session(session)
    with pytest.raises(stock.MONAILabelClientException):
        client.get_session(session)
    with pytest.raises(stock.MONAILabelClientException):
        client.train_start("hippocampus", {})
    assert client.train_status(check_if_running=True) is False


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_stock_client_gets_the_mask_of_a_real_model(
    stock: Any, served: Any, tmp_path: Path
) -> None:
    volume, image = phantom(), tmp_path / "image.nii.gz"
    image.write_bytes(nifti.encode(volume))
    client = stock.MONAILabelClient(f"{served.addresses.page_url}monailabel", tmpdir=str(tmp_path))
    assert "tiny_volume" in client.info()["models"]
    mask, params = client.infer("tiny_volume", "", {"largest_cc": True}, file=str(image))
    array, affine = read(mask)
    np.testing.assert_array_equal(array, known_mask(volume))
    np.testing.assert_allclose(affine, volume.geometry.affine, atol=1e-4)
    assert set(params["volumes_ml"]) == {"dim", "bright"}
