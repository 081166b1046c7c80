"""Small networks for pictures, their descriptions, and what they say without a server."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from PIL import Image as pillow
from torch import nn

from medserve.importing.artifacts import write_onnx
from medserve.importing.package import Named

__all__ = [
    "DESCRIPTION",
    "LABELS",
    "THRESHOLDS",
    "VALUES",
    "a_coloured_frame",
    "a_picture",
    "label_network",
    "own_numbers",
    "own_probabilities",
    "own_shares",
    "the_network",
    "write_classifier",
    "write_frames",
    "write_labels",
    "write_numbers",
    "write_structures",
]

_SIZE, _LABELS = (40, 32), ("a", "b", "c")
LABELS, THRESHOLDS = ("Red", "Green", "Blue"), (0.5, 0.4, 0.6)
# Targets of the first were standardised by a mean of 127 and a deviation of 41 months.
VALUES: tuple[dict[str, Any], ...] = (
    {"name": "bone age", "unit": "mo", "unit_name": "months", "offset": 127.0, "scale": 41.0},
    {"name": "ossified", "unit": "%", "unit_name": "percent", "range": [5, 90]},
)
_GAIN = 20.0  # of a logit, by the mean of a colour in [0, 1] over one half
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DESCRIPTION: dict[str, Any] = {
    "minWorkers": 1,
    "maxWorkers": 2,
    "batchSize": 4,
    "medserve": {
        "name": "skin",
        "version": "1.0",
        "title": "The brightest of three colours",
        "task": "classification",
        "labels": list(_LABELS),
        "input": {
            "kinds": ["raster", "dicom"],
            "size": list(_SIZE),
            "channels": 3,
            "fit": "colour",
            "proportions": "stretched",
            "mean": list(_MEAN),
            "deviation": list(_DEVIATION),
        },
        "output": {"scores": "logits"},
    },
}


def the_network(*layers: nn.Module) -> nn.Module:
    """Return a network that tells which colour is the brightest, and further layers at its end."""
    last = nn.Linear(3, len(_LABELS))
    with torch.no_grad():
        last.weight.copy_(2 * torch.eye(3) * torch.tensor(_DEVIATION))
        last.bias.copy_(2 * torch.tensor(_MEAN) - 1)  # logits lie on both sides of 0
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last, *layers).eval()


def label_network(*layers: nn.Module) -> nn.Module:
    """Return a network that tells which colours are bright: none, one or several of them."""
    last = nn.Linear(3, len(LABELS))
    with torch.no_grad():
        last.weight.copy_(_GAIN * torch.eye(3) * torch.tensor(_DEVIATION))
        last.bias.copy_(_GAIN * (torch.tensor(_MEAN) - 0.5))
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last, *layers).eval()


def write_labels(
    folder: Path, *layers: nn.Module, name: str = "colours", **output: object
) -> list[Any]:
    """Write that network as ONNX, of independent classes; return the arguments of its import."""
    own = {
        "name": name,
        "labels": list(LABELS),
        "output": {"classes": "independent", "threshold": list(THRESHOLDS), **output},
    }
    return write_classifier(folder, label_network(*layers), **own)


def write_classifier(folder: Path, network: nn.Module | None = None, **own: object) -> list[Any]:
    """Write a network as ONNX, described with own keys; return the arguments of its import."""
    named = Named(network or the_network()).eval()
    write_onnx(named, folder / "skin.onnx", {"image": torch.rand(2, 3, *_SIZE)}, ("scores",))
    description = DESCRIPTION | {"medserve": DESCRIPTION["medserve"] | own}
    (folder / "skin.yaml").write_text(yaml.safe_dump(description))
    return [folder / "skin.onnx", "--spec", folder / "skin.yaml"]


def write_numbers(folder: Path, *layers: nn.Module, **own: object) -> list[Any]:
    """Write a network that tells two numbers of a picture, as ONNX; return its import's arguments.

    The first is how far the mean of red is above one half; the second the mean of green, times 100.
    """
    last = nn.Linear(3, 2)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[_DEVIATION[0], 0.0, 0.0], [0.0, 100 * _DEVIATION[1], 0]]))
        last.bias.copy_(torch.tensor([_MEAN[0] - 0.5, 100 * _MEAN[1]]))
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last, *layers).eval()
    write_onnx(Named(network).eval(), folder / "hand.onnx",
               {"image": torch.rand(2, 3, *_SIZE)}, ("age",))  # fmt: skip
    described = {
        key: each
        for key, each in DESCRIPTION["medserve"].items()
        if key not in ("labels", "output")
    }
    described |= {"name": "hand", "title": "How old a hand is", "task": "regression"}
    described |= {"values": [dict(each) for each in VALUES]} | own
    (folder / "hand.yaml").write_text(yaml.safe_dump(DESCRIPTION | {"medserve": described}))
    return [folder / "hand.onnx", "--spec", folder / "hand.yaml"]


def own_numbers(content: bytes) -> tuple[float, float]:
    """Return what those two numbers are of a picture of one colour, in their units."""
    red, green, _ = np.asarray(pillow.open(io.BytesIO(content)), np.float64).mean(axis=(0, 1)) / 255
    return float(127 + 41 * (red - 0.5)), float(100 * green)


def _write_of_frames(folder: Path, network: nn.Module, own: dict[str, Any]) -> list[Any]:
    """Write a network of frames with its description; return the arguments of its import."""
    file, described = folder / f"{own['name']}.onnx", folder / f"{own['name']}.yaml"
    example = torch.rand(2, own["input"]["channels"], *_SIZE)
    write_onnx(Named(network).eval(), file, {"image": example}, ("scores",))
    description = {"minWorkers": 1, "maxWorkers": 2, "batchSize": 1, "medserve": own}
    described.write_text(yaml.safe_dump(description))
    return [file, "--spec", described]


def write_frames(folder: Path, *layers: nn.Module) -> list[Any]:
    """Write a network that finds what is bright, as ONNX; return the arguments of its import."""
    finds = nn.Conv2d(1, 1, 1)
    finds.load_state_dict(
        {"weight": torch.full((1, 1, 1, 1), 20.0), "bias": torch.full((1,), -10.0)}
    )
    own = {
        "name": "glow",
        "version": "1.0",
        "title": "What is bright",
        "task": "frames",
        "labels": ["background", "glow"],
        "input": {"kinds": ["raster", "dicom"], "size": list(_SIZE), "channels": 1},
        "frame": {"normalisation": {"kind": "window", "low": 0, "high": 1}},
    }
    return _write_of_frames(folder, nn.Sequential(finds, *layers), own)


def write_structures(folder: Path, **frame: Any) -> list[Any]:
    """Write a network that finds what is red, green and blue; return the arguments of its import.

    Its output is what `frame` says: a channel for each, or one for the background before them.
    """
    is_softmax = frame.get("activation") == "softmax"
    finds = nn.Conv2d(3, 3 + is_softmax, 1)
    weight = 20 * torch.eye(3) * torch.tensor(_DEVIATION)
    bias = 20 * torch.tensor(_MEAN) - 10
    if is_softmax:
        weight = torch.cat([torch.zeros(1, 3), weight])
        bias = torch.cat([torch.zeros(1), bias])
    finds.load_state_dict({"weight": weight[..., None, None], "bias": bias})
    ends = {"sigmoid": nn.Sigmoid(), "softmax": nn.Softmax(1)}
    layers = [ends[frame.get("activation", "sigmoid")]] if "scores" in frame else []
    own = {
        "name": "colours",
        "version": "1.0",
        "title": "What is red, green and blue",
        "task": "frames",
        "labels": ["background", "red", "green", "blue"],
        "input": {
            "kinds": ["raster", "dicom", "nifti"],
            "size": list(_SIZE),
            "channels": 3,
            "proportions": "stretched",
            "mean": list(_MEAN),
            "deviation": list(_DEVIATION),
        },
        "frame": {"normalisation": {"kind": "window", "low": 0, "high": 1}, "ultrasound": False}
        | frame,
    }
    return _write_of_frames(folder, nn.Sequential(finds, *layers), own)


def a_coloured_frame() -> tuple[bytes, npt.NDArray[np.uint8]]:
    """Return a PNG with a patch of each colour, of twice the network's sides, and its label ids."""
    array = np.full((80, 64, 3), 25, np.uint8)
    ids = np.zeros((80, 64), np.uint8)
    for place in range(3):
        box = slice(4 + 24 * place, 24 + 24 * place), slice(10, 30 + 10 * place)
        array[box] = [230 if channel == place else 25 for channel in range(3)]
        ids[box] = place + 1
    target = io.BytesIO()
    pillow.fromarray(array).save(target, "PNG")
    return target.getvalue(), ids


def a_picture(seed: int) -> bytes:
    """Return a PNG in colour, of other sides than the network's input."""
    random = np.random.default_rng(seed)
    array = random.integers(0, 256, (70 + seed, 50, 3)) * random.uniform(0.2, 1, 3)
    target = io.BytesIO()
    pillow.fromarray(array.astype(np.uint8)).save(target, "PNG")
    return target.getvalue()


def own_probabilities(picture: bytes) -> list[float]:
    """Return what the network says where it was trained: stretched, normalised, softmax."""
    found: list[float] = _own_scores(picture, the_network()).softmax(dim=1)[0].tolist()
    return found


def own_shares(picture: bytes) -> list[float]:
    """Return what the network of several labels says where it was trained."""
    found: list[float] = _own_scores(picture, label_network()).sigmoid()[0].tolist()
    return found


def _own_scores(picture: bytes, network: nn.Module) -> torch.Tensor:
    image = pillow.open(io.BytesIO(picture)).resize(_SIZE[::-1], pillow.Resampling.BILINEAR)
    planes = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (_MEAN, _DEVIATION))
    with torch.inference_mode():
        scores: torch.Tensor = network(((planes - mean) / deviation)[None])
    return scores
