"""A checkout with one tiny room, for tests of packaging and serving that need no trained weights.

The model `tiny` answers which of six tiles of a 64 × 64 image is the brightest, so the right
answer to any input is known without running a network.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

__all__ = ["LABELS", "Room", "bright_tile", "endless_picture", "lay_out", "make_checkout"]

REPOSITORY = Path(__file__).parent.parent
LABELS = ("top-left", "top-middle", "top-right", "bottom-left", "bottom-middle", "bottom-right")
_SIDE = 64
_GAIN = 8.0  # logit of a tile that is white all over

_HANDLER = '''"""Which of six tiles is the brightest."""

from handlers.classification import ClassificationHandler
from medserve.inference.fit import fit_grey


class TinyHandler(ClassificationHandler):
    """Nothing but the size of the plane."""

    def to_network(self, source):
        return fit_grey(source, (64, 64))
'''


def bright_tile(tile: int) -> bytes:
    """PNG, 64 × 64, 8-bit grey, dark but for one of the six tiles."""
    image = np.full((_SIDE, _SIDE), 32, dtype=np.uint8)
    image[_tile_mask(tile)] = 224
    return _png(image)


def endless_picture() -> bytes:
    """PNG, 6000 × 6000, 8-bit grey: reading it takes many times as long as a hasty caller waits."""
    return _png(np.full((6000, 6000), 32, dtype=np.uint8))


@dataclass(frozen=True)
class Room:
    """What a room holds, computed.

    Attributes:
        handler: Source of `handlers/<name>.py`.
        config: Content of `model-config.yaml`.
        card: Content of `README.md`.
        golden_name: File name of the golden input.
        golden_input: Its bytes.
        golden_outputs: Output name -> array of one row.
        write_onnx: Writes the artifact to a path.
        write_torchscript: Writes its twin to a path.
    """

    handler: str
    config: str
    card: str
    golden_name: str
    golden_input: bytes
    golden_outputs: Mapping[str, npt.NDArray[np.float32]]
    write_onnx: Callable[[Path], None]
    write_torchscript: Callable[[Path], None]


def make_checkout(root: Path, name: str = "tiny", version: str = "1.0") -> Path:
    """Lay out `root` like the repository, with the room `name` in `models/`."""
    golden = bright_tile(4)
    pixels = np.asarray(Image.open(io.BytesIO(golden)), dtype=np.float32)
    logits, novelty = _forward(pixels[np.newaxis, np.newaxis] / np.float32(255))
    room = Room(
        handler=_HANDLER,
        config=_config(name, version),
        card="# tiny\n\nFinds the brightest tile.\n",
        golden_name="golden_input.png",
        golden_input=golden,
        golden_outputs={"logits": logits, "novelty": novelty},
        write_onnx=_write_onnx,
        write_torchscript=_write_torchscript,
    )
    return lay_out(root, name, room)


def lay_out(root: Path, name: str, room: Room) -> Path:
    """A checkout at `root` with that room in it, beside those that are there already."""
    for package in ("handlers", "medserve"):
        if not (root / package).exists():
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / package, root / package, ignore=without)
    (root / "handlers" / f"{name}.py").write_text(room.handler, encoding="utf-8")
    folder = root / "models" / name
    weights = folder / "weights"
    weights.mkdir(parents=True)
    (folder / "model-config.yaml").write_text(room.config, encoding="utf-8")
    (folder / "README.md").write_text(room.card, encoding="utf-8")
    (weights / room.golden_name).write_bytes(room.golden_input)
    outputs: dict[str, Any] = {**room.golden_outputs, "tolerance": np.float32(1e-3)}
    np.savez(weights / "golden_output.npz", **outputs)
    metrics = {"accuracy": 1.0, "n": 6, "confusion_matrix": np.eye(6, dtype=int).tolist()}
    (weights / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    room.write_onnx(weights / "model.onnx")
    room.write_torchscript(weights / "model.pt")
    return root


def _tile_mask(tile: int) -> npt.NDArray[np.bool_]:
    rows, columns = np.indices((_SIDE, _SIDE))
    return (rows // 32 * 3 + np.minimum(columns // 21, 2)) == tile


def _weight() -> npt.NDArray[np.float32]:
    """Mean over each tile, times the gain: (4096, 6)."""
    masks = np.stack([_tile_mask(tile) for tile in range(6)]).reshape(6, -1).astype(np.float32)
    return np.ascontiguousarray((_GAIN * masks / masks.sum(axis=1, keepdims=True)).T)


def _forward(
    image: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    flat = image.reshape(len(image), -1)
    return flat @ _weight(), flat.mean(axis=1)


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _config(name: str, version: str) -> str:
    return yaml.safe_dump(
        {
            "minWorkers": 1,
            "maxWorkers": 4,
            "batchSize": 8,
            "maxBatchDelay": 1,
            "responseTimeout": 30,
            "startupTimeout": 60,
            "jobQueueSize": 64,
            "deviceType": "cpu",
            "medserve": {
                "name": name,
                "version": version,
                "title": "The brightest of six tiles",
                "task": "classification",
                "labels": list(LABELS),
                "input": {"kinds": ["raster"], "size": [_SIDE, _SIDE], "channels": 1},
                "output": {"review_below": 0.5, "top_k": 2},
                "engine": {"name": "onnxruntime", "precision": "f32"},
            },
        },
        sort_keys=False,
    )


def _write_onnx(path: Path) -> None:
    import onnx  # heavy, as torch below: only who builds a room pays
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("ReduceMean", ["flat"], ["novelty"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, _SIDE, _SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 6]),
            helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(_weight(), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _write_torchscript(path: Path) -> None:
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.from_numpy(_weight()))

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            flat = image.flatten(1)
            return flat @ self.get_buffer("weight"), flat.mean(dim=1)

    with warnings.catch_warnings():  # torch calls its own export of TorchScript deprecated
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            Tiny(), torch.rand(2, 1, _SIDE, _SIDE)
        )
        traced.save(str(path))
