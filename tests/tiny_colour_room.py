"""A checkout with one tiny room for colour images, whose right answer is known without a network.

The model `tiny_colour` tells which of red, green and blue is the strongest.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from tests.tiny_room import Room, lay_out

__all__ = ["COLOUR_LABELS", "make_colour_checkout", "tinted"]

COLOUR_LABELS = ("red", "green", "blue")
_SIDE = 32
_GAIN = 20.0  # logit of a channel that is white all over

_HANDLER = '''"""Which of red, green and blue is the strongest."""

from handlers.classification import ClassificationHandler


class TinyColourHandler(ClassificationHandler):
    """Nothing but a name."""
'''

_CONFIG: Mapping[str, Any] = {
    "minWorkers": 1,
    "maxWorkers": 4,
    "batchSize": 8,
    "maxBatchDelay": 1,
    "responseTimeout": 30,
    "startupTimeout": 60,
    "jobQueueSize": 64,
    "deviceType": "cpu",
    "medserve": {
        "name": "tiny_colour",
        "version": "1.0",
        "title": "The strongest of three colours",
        "task": "classification",
        "labels": list(COLOUR_LABELS),
        "input": {"kinds": ["raster"], "size": [_SIDE, _SIDE], "channels": 3, "fit": "colour"},
        "output": {"review_below": 0.5, "top_k": 2},
        "engine": {"name": "onnxruntime", "precision": "f32"},
    },
}


def tinted(colour: int, *, height: int = 36, width: int = 30) -> bytes:
    """PNG, RGB: grey, with a spot of that colour above the middle."""
    image = np.full((height, width, 3), 90, dtype=np.uint8)
    image[height // 8 : height // 2, width // 4 : width // 2, colour] = 250
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def make_colour_checkout(root: Path, name: str = "tiny_colour") -> Path:
    """Lay out `root` like the repository, with the room `name` alone in `models/`."""
    golden = tinted(2, height=_SIDE, width=_SIDE)
    pixels = np.asarray(Image.open(io.BytesIO(golden)), dtype=np.float32) / np.float32(255)
    means: npt.NDArray[np.float32] = pixels.mean(axis=(0, 1))[np.newaxis]
    own = {**_CONFIG["medserve"], "name": name}
    room = Room(
        handler=_HANDLER,
        config=yaml.safe_dump({**_CONFIG, "medserve": own}, sort_keys=False),
        card="# tiny_colour\n\nTells colours apart.\n",
        golden_name="golden_input.png",
        golden_input=golden,
        golden_outputs={"logits": means * np.float32(_GAIN), "novelty": means.mean(axis=1)},
        write_onnx=_write_onnx,
        write_torchscript=_write_torchscript,
    )
    return lay_out(root, name, room)


def _write_onnx(path: Path) -> None:
    import onnx  # heavy, as torch below: only who builds a room pays
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["means", "gain"], ["logits"]),
        helper.make_node("ReduceMean", ["means"], ["novelty"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_colour",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, _SIDE, _SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(np.array(_GAIN, np.float32), "gain")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _write_torchscript(path: Path) -> None:
    import torch

    class TinyColour(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            means = image.mean(dim=(2, 3))
            return means * _GAIN, means.mean(dim=1)

    with warnings.catch_warnings():  # torch calls its own export of TorchScript deprecated
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            TinyColour(), torch.rand(2, 3, _SIDE, _SIDE)
        )
        traced.save(str(path))
