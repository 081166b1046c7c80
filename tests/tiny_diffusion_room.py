"""A room that makes images, whose network is the perfect denoiser of data known in closed form.

Each of three classes has one picture (a bright bar at the left, in the middle, at the right); its
data are that picture with a little normal noise on each pixel. For such data the mean of the clean
image given a noisy one is a formula, so no network has to be trained: `tests.inference` checks the
samplers by the same one. What is drawn must look like the picture of its class.
"""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from medserve.inference.engines import Outputs
from medserve.inference.fingerprints import FINGERPRINTS_FILE, FingerprintIndex
from medserve.inference.generation import DiffusionPipeline, SampleSettings
from medserve.inference.schedules import NoiseSchedule, ScheduleKind
from medserve.spec import ModelSpec
from medserve.spec.generation import SamplerKind
from tests.tiny_room import Room, lay_out

__all__ = [
    "DEVIATION",
    "DIFFUSION_CONFIG",
    "GOLDEN",
    "LABELS",
    "SIDE",
    "make_diffusion_checkout",
    "means",
    "run",
    "write_diffusion_artifact",
]

LABELS = ("left", "middle", "right")
SIDE = 16
DEVIATION = 0.1  # of each pixel, in [-1, 1]
GOLDEN = {"n": 1, "class": "left", "seed": 7, "steps": 4}
_THRESHOLD = 0.02  # so near that no two draws of a class meet it

DIFFUSION_CONFIG: dict[str, Any] = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 1,
    "responseTimeout": 60,
    "startupTimeout": 60,
    "medserve": {
        "name": "painter",
        "version": "1.0",
        "title": "Bars with a little noise",
        "task": "generation",
        "labels": list(LABELS),
        "input": {"kinds": [], "size": [SIDE, SIDE], "channels": 1},
        "engine": {"name": "onnxruntime", "precision": "f32", "threads": 1},
        "generation": {
            "schedule": "cosine",
            "prediction": "v",
            "sizes": [SIDE],
            "steps": 200,
            "default_steps": 8,
            "max_images": 12,
            "max_work": 600,
            "max_replacements": 4,
        },
    },
}
_HANDLER = '''"""Paints bars."""

from handlers.generation import GenerationHandler


class PainterHandler(GenerationHandler):
    """Nothing of its own."""
'''


def means() -> npt.NDArray[np.float32]:
    """The picture of each class, and their mean for "no class": (4, 1, SIDE, SIDE) in [-1, 1]."""
    pictures = np.full((len(LABELS) + 1, 1, SIDE, SIDE), -0.6, dtype=np.float32)
    for place in range(len(LABELS)):
        pictures[place, :, 2:14, 1 + 5 * place : 5 + 5 * place] = 0.6
    pictures[-1] = pictures[:-1].mean(axis=0)
    return pictures


@cache
def _tables() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The velocity of the perfect denoiser is a[t] * noisy + b[t] * mean."""
    steps = DIFFUSION_CONFIG["medserve"]["generation"]["steps"]
    schedule = NoiseSchedule(ScheduleKind.COSINE, steps)
    signal, noise = np.sqrt(schedule.alpha_bar), np.sqrt(1 - schedule.alpha_bar)
    weight = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + noise**2)
    a, b = (signal - weight) / noise, -(1 - weight * signal) / noise
    return a.astype(np.float32), b.astype(np.float32)


def run(inputs: Any) -> Outputs:
    """The network in NumPy."""
    a, b = (table[inputs["step"]][:, None, None, None] for table in _tables())
    return {"output": a * inputs["image"] + b * means()[inputs["label"]]}


def write_diffusion_artifact(folder: Path) -> Path:
    """Write model.onnx, model.pt, the golden pair and the fingerprints; the folder."""
    _write_onnx(folder / "model.onnx")
    _write_torchscript(folder / "model.pt")
    (folder / "golden_input.json").write_text(json.dumps(GOLDEN), encoding="utf-8")
    golden: dict[str, Any] = {**_golden(), "tolerance": np.float32(1e-3)}
    np.savez(folder / "golden_output.npz", **golden)
    write_fingerprints(folder)
    return folder


def write_fingerprints(folder: Path) -> None:
    """Fingerprints of the three pictures; what is drawn is never quite one of them."""
    pictures = np.rint((means()[:-1] + 1) * 127.5).astype(np.uint8)
    FingerprintIndex.build(pictures, _THRESHOLD).save(folder / FINGERPRINTS_FILE)


def make_diffusion_checkout(root: Path) -> Path:
    """Lay out `root` like the repository, with the room `painter` alone in `models/`."""
    room = Room(
        handler=_HANDLER,
        config=yaml.safe_dump(DIFFUSION_CONFIG, sort_keys=False),
        card="# painter\n\nPaints bars.\n",
        golden_name="golden_input.json",
        golden_input=json.dumps(GOLDEN).encode(),
        golden_outputs=_golden(),
        write_onnx=_write_onnx,
        write_torchscript=_write_torchscript,
    )
    lay_out(root, "painter", room)
    write_fingerprints(root / "models" / "painter" / "weights")
    return root


def _golden() -> Outputs:
    spec = ModelSpec.from_mapping(DIFFUSION_CONFIG)
    settings = SampleSettings(4, SamplerKind.DPM_SOLVER, 1.0, SIDE)
    return DiffusionPipeline(spec, run).golden(7, 0, settings)


def _write_onnx(path: Path) -> None:
    import onnx  # heavy, as torch below: only who builds a room pays
    from onnx import TensorProto, helper, numpy_helper

    a, b = _tables()
    shape: list[str | int | None] = ["N", 1, SIDE, SIDE]
    column = (len(a), 1, 1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["a", "step"], ["a_t"]),
            helper.make_node("Gather", ["b", "step"], ["b_t"]),
            helper.make_node("Gather", ["means", "label"], ["mean"]),
            helper.make_node("Mul", ["a_t", "image"], ["of_image"]),
            helper.make_node("Mul", ["b_t", "mean"], ["of_mean"]),
            helper.make_node("Add", ["of_image", "of_mean"], ["output"]),
        ],
        "painter",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("step", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(a.reshape(column), "a"),
            numpy_helper.from_array(b.reshape(column), "b"),
            numpy_helper.from_array(means(), "means"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _write_torchscript(path: Path) -> None:
    import torch

    class Painter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, array in zip(("a", "b", "means"), (*_tables(), means()), strict=True):
                self.register_buffer(name, torch.from_numpy(array))

        def forward(
            self, image: torch.Tensor, step: torch.Tensor, label: torch.Tensor
        ) -> torch.Tensor:
            a, b = (self.get_buffer(name)[step][:, None, None, None] for name in ("a", "b"))
            return a * image + b * self.get_buffer("means")[label]

    example = (torch.zeros(2, 1, SIDE, SIDE), torch.tensor([1, 2]), torch.tensor([0, 3]))
    with warnings.catch_warnings():  # torch calls its own export of TorchScript deprecated
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Painter(), example)  # type: ignore[no-untyped-call]
        names = torch._C.ListType(torch._C.StringType.get())
        traced._c._register_attribute("outputs", names, ["output"])
        traced.save(str(path))
