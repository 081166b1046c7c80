"""A checkout with one tiny room for volumes, whose right answer is known without a network.

The model `tiny_volume` calls `dim` what lies between a third and two thirds of the range from 0 to
1000, and `bright` what lies above: on a grid of 1 mm, voxel by voxel.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from tests.tiny_room import Room, lay_out
from tests.volume_phantoms import ball, oblique

__all__ = [
    "LABELS",
    "VOLUME_CONFIG",
    "known_mask",
    "make_volume_checkout",
    "phantom",
    "write_volume_artifact",
]

LABELS = ("background", "dim", "bright")
LARGEST = 1000.0
_WINDOW = (16, 16, 16)
_GAIN = 48.0
_WEIGHT = np.array([0.0, 1.0, 2.0], dtype=np.float32) * np.float32(_GAIN)
_BIAS = np.array([0.0, -1 / 3, -1.0], dtype=np.float32) * np.float32(_GAIN)  # even at 1/3 and 2/3

_HANDLER = '''"""What is dim and what is bright."""

from handlers.volumes import VolumeHandler


class TinyVolumeHandler(VolumeHandler):
    """Nothing but its name."""
'''

VOLUME_CONFIG: Mapping[str, Any] = {
    "minWorkers": 1,
    "maxWorkers": 4,
    "batchSize": 1,
    "maxBatchDelay": 1,
    "responseTimeout": 60,
    "startupTimeout": 60,
    "jobQueueSize": 64,
    "deviceType": "cpu",
    "medserve": {
        "name": "tiny_volume",
        "version": "1.0",
        "title": "Dim and bright",
        "task": "volumes",
        "labels": list(LABELS),
        "input": {
            "kinds": ["nifti", "dicom", "npy"],
            "size": list(_WINDOW),
            "max_payload_bytes": 8 * 2**20,
            "min_side": 4,
        },
        "engine": {"name": "onnxruntime", "precision": "f32"},
        "volume": {
            "spacing_mm": [1.0, 1.0, 1.0],
            "normalisation": {"kind": "window", "low": 0.0, "high": LARGEST},
            "modalities": ["MR"],
            "max_memory_bytes": 256 * 2**20,
            "network_bytes": 2**20,
            "snomed": {
                "dim": {"kind": {"value": "5366008", "meaning": "Hippocampus"}},
                "bright": {"kind": {"value": "5366008", "meaning": "Hippocampus"}},
            },
        },
    },
}


def phantom(geometry: Geometry | None = None, dtype: npt.DTypeLike = np.int16) -> Volume:
    """A bright ball within a dim one, off the middle of the grid."""
    geometry = geometry or oblique((26, 22, 18), (1.0, 1.0, 1.0))
    extent = np.array(geometry.shape) * geometry.spacing_mm
    centre = geometry.to_world((np.array(geometry.shape) - 1) * (0.45, 0.55, 0.5))
    radius = 0.4 * float(extent.min())
    array = 500 * ball(geometry, centre, radius).array
    array += 500 * ball(geometry, centre, radius / 2).array
    return Volume(array.round().astype(dtype), geometry)


def known_mask(volume: Volume) -> npt.NDArray[np.uint8]:
    """The right answer where the spacing is the network's own."""
    share = np.asarray(volume.array, dtype=np.float64) / LARGEST
    return np.asarray((share > 1 / 3).astype(np.uint8) + (share > 2 / 3).astype(np.uint8))


def make_volume_checkout(root: Path, name: str = "tiny_volume", version: str = "1.0") -> Path:
    """Lay out `root` like the repository, with the room `name` alone in `models/`."""
    own = {**VOLUME_CONFIG["medserve"], "name": name, "version": version}
    room = Room(
        handler=_HANDLER,
        config=yaml.safe_dump({**VOLUME_CONFIG, "medserve": own}, sort_keys=False),
        card="# tiny_volume\n\nTells dim from bright.\n",
        golden_name="golden_input.nii.gz",
        golden_input=nifti.encode(phantom()),
        golden_outputs={"logits": golden_logits()},
        write_onnx=_write_onnx,
        write_torchscript=_write_torchscript,
    )
    return lay_out(root, name, room)


def write_volume_artifact(folder: Path) -> Path:
    """Write model.onnx, model.pt and the golden pair alone; the folder."""
    (folder / "golden_input.nii.gz").write_bytes(nifti.encode(phantom()))
    logits = golden_logits()
    np.savez(folder / "golden_output.npz", logits=logits, tolerance=np.float32(1e-3))
    _write_onnx(folder / "model.onnx")
    _write_torchscript(folder / "model.pt")
    return folder


def golden_logits() -> npt.NDArray[np.float32]:
    """Logits (1, 3, i, j, k) of the middle window of the phantom, without engine or pipeline."""
    upright = phantom().reoriented("RAS")[0]
    cut = tuple(
        slice((side - length) // 2, (side - length) // 2 + length)
        for side, length in zip(upright.geometry.shape, _WINDOW, strict=True)
    )
    image = np.asarray(upright.array[cut], dtype=np.float32) / np.float32(LARGEST)
    return (_WEIGHT[:, None, None, None] * image + _BIAS[:, None, None, None])[np.newaxis]


def _write_onnx(path: Path) -> None:
    import onnx  # heavy, as torch below: only who builds a room pays
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], kernel_shape=[1, 1, 1])
    shape = ["i", "j", "k"]
    graph = helper.make_graph(
        [node],
        "tiny_volume",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, *shape])],
        [
            numpy_helper.from_array(_WEIGHT.reshape(3, 1, 1, 1, 1), "weight"),
            numpy_helper.from_array(_BIAS, "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _write_torchscript(path: Path) -> None:
    import torch

    network = torch.nn.Conv3d(1, 3, kernel_size=1)
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(_WEIGHT.reshape(3, 1, 1, 1, 1)))
        network.bias.copy_(torch.from_numpy(_BIAS))  # type: ignore[union-attr]
    with warnings.catch_warnings():  # torch calls its own export of TorchScript deprecated
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network.eval(), torch.rand(2, 1, *_WINDOW)
        )
        traced.save(str(path))
