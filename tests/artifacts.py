"""A tiny classifier with computed weights, exported like a real one: it sorts by brightness."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.phantoms import raster_bytes, wedge

__all__ = [
    "BRIGHTNESS_CONFIG",
    "LABELS",
    "BrightnessClassifier",
    "brightness_plane",
    "write_artifact",
]

LABELS = ("dark", "middle", "bright")
CENTRES = (0.1, 0.5, 0.9)  # mean intensity that each label stands for

BRIGHTNESS_CONFIG = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 16,
    "medserve": {
        "name": "brightness",
        "version": "2.1",
        "title": "How bright a picture is",
        "task": "classification",
        "labels": list(LABELS),
        "input": {
            "kinds": ["raster", "dicom"],
            "size": [64, 64],
            "max_payload_bytes": 200_000,
            "max_items": 300,
        },
        "output": {"review_below": 0.9, "top_k": 2},
        "engine": {"name": "openvino", "precision": "f32", "threads": 1},
    },
}


class BrightnessClassifier(nn.Module):
    """Logits (N, 3) fall with the distance of the mean from each centre; novelty is contrast."""

    def __init__(self) -> None:
        super().__init__()
        # Uneven weights: a flipped or transposed input gives another answer.
        self.blur = nn.Conv2d(1, 4, kernel_size=3, padding=1, bias=False)
        with torch.no_grad():
            self.blur.weight.copy_(torch.linspace(0.0, 0.2, 36).reshape(4, 1, 3, 3))
        self.register_buffer("centres", torch.tensor(CENTRES))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (N, 1, H, W) -> logits (N, 3), novelty (N,)."""
        mean = image.mean(dim=(1, 2, 3))[:, None]  # (N, 1)
        texture = torch.relu(self.blur(image)).mean(dim=(1, 2, 3))  # (N,)
        logits = -20.0 * (mean - self.get_buffer("centres")).abs() + 0.1 * texture[:, None]
        return logits, 2.0 * texture


def brightness_plane(mean: float, size: int = 64) -> np.ndarray:
    """An uneven grey plane uint8 (size, size) of about that mean intensity."""
    pattern = wedge(size, size).astype(np.float64)
    pattern = (pattern - pattern.mean()) / 255 * 0.15
    return (np.clip(mean + pattern, 0, 1) * 255).round().astype(np.uint8)


def write_artifact(folder: Path) -> Path:
    """Write model.onnx, model.pt and the golden pair of the brightness classifier; the folder."""
    network = BrightnessClassifier().eval()
    example = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters are deprecated, and small
        traced = torch.jit.trace(network, example)  # type: ignore[no-untyped-call]
        traced.save(str(folder / "model.pt"))
        rows = {name: {0: "n"} for name in ("image", "logits", "novelty")}
        torch.onnx.export(
            network,
            (example,),
            str(folder / "model.onnx"),
            input_names=["image"],
            output_names=["logits", "novelty"],
            dynamic_axes=rows,
            opset_version=17,
            dynamo=False,
        )
    golden = brightness_plane(0.45)
    (folder / "golden_input.png").write_bytes(raster_bytes(golden))
    with torch.inference_mode():
        logits, novelty = network(torch.from_numpy(golden / np.float32(255))[None, None])
    np.savez(
        folder / "golden_output.npz",
        logits=logits.numpy(),
        novelty=novelty.numpy(),
        tolerance=np.float32(1e-4),
    )
    return folder
