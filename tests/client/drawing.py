"""The answers of a model that draws; a seed is the grey of its image."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from medserve.spec import Task
from tests.client.fake_gateway import DIGEST, FakeGateway, served_model

__all__ = ["painting", "picture", "progress", "sample_answer"]


def painting(*others: str) -> FakeGateway:
    """A gateway with `painter` and other models that draw; the answers are given beforehand."""
    drawing: dict[str, Any] = {"task": Task.GENERATION, "labels": ("left",)}
    return FakeGateway(
        (
            served_model("painter", **drawing),
            served_model("painter", "2.0", default=False, **drawing),
            *(served_model(name, **drawing) for name in others),
        )
    )


def picture(grey: int) -> bytes:
    """PNG, 16 x 16, all of one grey: what a seed draws here."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16), grey, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def sample_answer(seeds: Sequence[int], form: str = "png") -> bytes:
    """The last part of an answer; a further format is the bytes of its own name."""
    file = _base64(form.encode())
    images = [
        {
            "png": _base64(picture(seed)),
            "synthetic": True,
            "seed": seed,
            "class": "left",
            "steps": 2,
            "sampler": "ddim",
            "guidance": 1.0,
            "size": 16,
            **({"dicom": file} if form == "dicom" else {}),
        }
        for seed in seeds
    ]
    content: dict[str, Any] = {"model": "painter", "version": "1.0", "archive_digest": DIGEST}
    content |= {"status": "ok", "images": images, "withheld": 1}
    return json.dumps(content | ({form: file} if form in ("npz", "nifti") else {})).encode()


def progress(image: int, step: int, preview: bytes | None = None) -> bytes:
    """A part of an answer: one step of two."""
    event: dict[str, Any] = {"event": "progress", "image": image, "step": step, "of": 2}
    return json.dumps(event | ({"preview_png": _base64(preview)} if preview else {})).encode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
