"""A checkout with one tiny room for frames, whose right answer is known without a network.

The model `tiny_frame` calls `bright` what is above the middle of the range: on a frame of the
network's own size, pixel by pixel.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from tests.frame_phantoms import scan
from tests.phantoms import raster_bytes
from tests.tiny_room import Room, lay_out

__all__ = ["FRAME_CONFIG", "LABELS", "SIZE", "make_frame_checkout", "write_frame_artifact"]

LABELS = ("background", "bright")
SIZE = (48, 64)
_GAIN = np.float32(96.0)

_HANDLER = '''"""What is bright."""

from handlers.frames import FrameHandler


class TinyFrameHandler(FrameHandler):
    """Nothing but its name."""
'''

FRAME_CONFIG: Mapping[str, Any] = {
    "minWorkers": 1,
    "maxWorkers": 4,
    "batchSize": 1,
    "maxBatchDelay": 1,
    "responseTimeout": 60,
    "startupTimeout": 60,
    "jobQueueSize": 64,
    "deviceType": "cpu",
    "medserve": {
        "name": "tiny_frame",
        "version": "1.0",
        "title": "What is bright",
        "task": "frames",
        "labels": list(LABELS),
        "input": {
            "kinds": ["raster", "dicom", "nifti"],
            "size": list(SIZE),
            "max_payload_bytes": 4 * 2**20,
            "max_pixels": 200_000,
            "min_side": 16,
            "max_items": 40,
        },
        "engine": {"name": "onnxruntime", "precision": "f32"},
        "frame": {
            "batch": 3,
            "max_frames": 40,
            "modalities": ["US"],
            "snomed": {"bright": {"kind": {"value": "41216001", "meaning": "Prostate"}}},
        },
    },
}


def make_frame_checkout(root: Path, name: str = "tiny_frame", version: str = "1.0") -> Path:
    """Lay out `root` like the repository, with the room `name` alone in `models/`."""
    own = {**FRAME_CONFIG["medserve"], "name": name, "version": version}
    room = Room(
        handler=_HANDLER,
        config=yaml.safe_dump({**FRAME_CONFIG, "medserve": own}, sort_keys=False),
        card="# tiny_frame\n\nTells bright from dark.\n",
        golden_name="golden_input.png",
        golden_input=raster_bytes(scan()),
        golden_outputs={"logits": golden_logits()},
        write_onnx=_write_onnx,
        write_torchscript=_write_torchscript,
    )
    return lay_out(root, name, room)


def write_frame_artifact(folder: Path) -> Path:
    """Write model.onnx, model.pt and the golden pair alone; the folder."""
    (folder / "golden_input.png").write_bytes(raster_bytes(scan()))
    np.savez(folder / "golden_output.npz", logits=golden_logits(), tolerance=np.float32(1e-3))
    _write_onnx(folder / "model.onnx")
    _write_torchscript(folder / "model.pt")
    return folder


def golden_logits() -> npt.NDArray[np.float32]:
    """Logits (1, 1, H, W) of the golden frame, without engine or pipeline."""
    image = scan().astype(np.float32) / np.float32(255)
    return (_GAIN * (image - np.float32(0.5)))[np.newaxis, np.newaxis]


def _write_onnx(path: Path) -> None:
    import onnx  # heavy, as torch below: only who builds a room pays
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], kernel_shape=[1, 1])
    graph = helper.make_graph(
        [node],
        "tiny_frame",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, *SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1, *SIZE])],
        [
            numpy_helper.from_array(np.full((1, 1, 1, 1), _GAIN), "weight"),
            numpy_helper.from_array(np.full(1, -_GAIN / 2), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _write_torchscript(path: Path) -> None:
    import torch

    network = torch.nn.Conv2d(1, 1, kernel_size=1)
    with torch.no_grad():
        network.weight.fill_(float(_GAIN))
        network.bias.fill_(-float(_GAIN) / 2)  # type: ignore[union-attr]
    with warnings.catch_warnings():  # torch calls its own export of TorchScript deprecated
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network.eval(), torch.rand(2, 1, *SIZE)
        )
        traced.save(str(path))
