"""Frames on the page: the picture that the model drew, and no millilitres that nobody knows."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from medserve.gateway.core.gateway import Gateway, ModelInfo
from medserve.spec import InputKind, Task
from tests.client.framing import LABELS, LOOP, by_frame_size
from tests.frame_phantoms import as_nifti, cine, saved, scan, ultrasound
from tests.gateway.faces import DIGEST
from tests.gateway.fake_engine import FakeEngine, Request, model
from tests.phantoms import dicom_dataset, raster_bytes
from tests.volume_phantoms import as_bytes
from tests.web.visiting import PACK, Visitor, begin, gateway, pack, visit

_PIXELS = 40  # that the fake model marks


def frame_answer(request: Request, payload: bytes = b"x" * _PIXELS) -> bytes:
    """As a model of frames answers; see `by_frame_size` for the payload."""
    params = json.loads(request.inputs["params"])
    if params.get("output") == "mask":
        return b"the mask as dicom-seg"
    head = {"model": request.model, "version": "1.0", "archive_digest": DIGEST}
    return json.dumps({**head, **by_frame_size(payload)}).encode()


def frame_model() -> ModelInfo:
    info = model("gland", Task.FRAMES, labels=LABELS)
    kinds = (InputKind.RASTER, InputKind.DICOM, InputKind.NIFTI)
    spec = structs.replace(info.spec, input=structs.replace(info.spec.input, kinds=kinds))
    return replace(info, spec=spec)


def frames() -> Gateway:
    return gateway(FakeEngine(frame_answer), models=[frame_model()])


def loops() -> Gateway:
    """Of three frames each, the last one damaged."""
    engine = FakeEngine(lambda request: frame_answer(request, b"loop".ljust(_PIXELS, b"x")))
    return gateway(engine, models=[frame_model()])


async def segmented(client: Visitor, name: str, content: bytes) -> tuple[str, dict[str, Any]]:
    job = await begin(client, "segment", "gland")
    await client.post(f"{job}/volume", content=pack({name: content}), headers=PACK)
    answer = await client.post(f"{job}/segmentation", json={})
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return job, shown


@visit(frames)
async def test_a_picture_is_shown_as_the_model_drew_it(client: Visitor) -> None:
    job, answer = await segmented(client, "frame.png", raster_bytes(scan()))
    assert answer["flat"] is True
    assert answer["parts"] == ["mask.png", "mask.nii.gz", "overlay.png", "mask.dcm"]
    mask = await client.get(f"{job}/mask.png?download")
    assert mask.content.startswith(b"\x89PNG")
    assert 'filename="frame-mask.png"' in mask.headers["content-disposition"]
    assert (await client.get(f"{job}/overlay.png")).content == b"PNG"
    assert answer["frames"][0]["pixels"] == _PIXELS
    assert answer["stack"]["volume_ml"] is None
    assert answer["measures"] == []


@visit(frames)
async def test_the_frame_below_the_mask_is_that_of_the_file(client: Visitor) -> None:
    pixels = scan()
    for name, content in (
        ("a.png", raster_bytes(pixels)),
        ("a.dcm", as_bytes(dicom_dataset(pixels))),
    ):
        job, _ = await segmented(client, name, content)
        picture = (await client.get(f"{job}/layers")).json()["picture_png"]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        assert shown.shape == pixels.shape
        assert np.corrcoef(shown.ravel(), pixels.ravel())[0, 1] > 0.999
    empty = await begin(client, "segment", "gland")
    assert (await client.get(f"{empty}/layers")).status_code == 400


@visit(frames)
async def test_a_nifti_stack_goes_to_the_viewer(client: Visitor) -> None:
    stack = as_nifti(cine(3).transpose(2, 1, 0))
    job, answer = await segmented(client, "stack.nii", stack)
    assert answer["flat"] is False
    assert (await client.get(f"{job}/volume")).content == stack


@visit(loops)
async def test_a_loop_is_a_sheet_of_its_frames_with_the_labels_of_each_pixel(
    client: Visitor,
) -> None:
    loop = np.full((LOOP.count, *LOOP.size), 90, dtype=np.uint8)
    job, answer = await segmented(client, "loop.dcm", saved(ultrasound(loop)))
    assert answer["flat"] is True
    layers = (await client.get(f"{job}/layers")).json()
    picture, labels = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(layers[name]))).convert("L"))
        for name in ("picture_png", "labels_png")
    )
    assert picture.shape == labels.shape
    assert set(np.unique(labels)) == {0, 1}
    share = _PIXELS / (LOOP.size[0] * LOOP.size[1])  # of the two frames that show the structure
    assert (labels == 1).sum() / (labels.size - (picture == 0).sum()) == pytest.approx(share, 0.2)
