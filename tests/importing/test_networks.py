"""Each network of MONAI that a bundle may name leaves as ONNX and answers as it does in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medserve.importing.artifacts import write_onnx
from medserve.importing.bundle_config import BundleConfig
from medserve.importing.bundle_networks import NETWORKS, build
from medserve.importing.package import Named

_ONE_TO_TWO = {"in_channels": 1, "out_channels": 2}
_OF_VOLUMES = {"spatial_dims": 3, **_ONE_TO_TWO}
SMALL: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "AttentionUnet": ({**_OF_VOLUMES, "channels": [4, 8], "strides": [2]}, (16, 16, 8)),
    "BasicUNet": ({**_OF_VOLUMES, "features": [4, 4, 4, 4, 4, 4]}, (32, 32, 16)),
    "DynUNet": (
        {
            **_OF_VOLUMES, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2], "filters": [4, 8, 8],
        },
        (16, 16, 8),
    ),
    "SegResNet": ({**_ONE_TO_TWO, "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
                  (16, 16, 8)),
    "SwinUNETR": (
        {**_ONE_TO_TWO, "feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
        (64, 32, 32),
    ),
    "UNETR": (
        {
            **_ONE_TO_TWO, "img_size": [16, 16, 16], "feature_size": 4, "hidden_size": 24,
            "mlp_dim": 48, "num_heads": 4,
        },
        (16, 16, 16),
    ),
    "UNet": ({**_OF_VOLUMES, "channels": [4, 8], "strides": [2]}, (16, 16, 8)),
    "VNet": (_OF_VOLUMES, (32, 16, 16)),
}  # fmt: skip


def test_every_network_that_a_bundle_may_name_is_tried() -> None:
    assert sorted(SMALL) == sorted(NETWORKS)


@pytest.mark.training
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_monai_answers_alike_as_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the import extra")
    runtime = pytest.importorskip("onnxruntime", reason="needs the serve extra")
    arguments, size = SMALL[name]
    torch.manual_seed(3)
    file = tmp_path / "inference.json"
    file.write_text(json.dumps({"network_def": {"_target_": name, **arguments}}))
    description = BundleConfig(tmp_path, file).component("network_def")
    shapes = build(description, None).state_dict()
    weights = {
        key: torch.randn(each.shape) / 8
        if each.is_floating_point()
        else torch.zeros(each.shape, dtype=each.dtype)
        for key, each in shapes.items()
    }
    for key in weights:
        if key.endswith("running_var"):
            weights[key] = torch.ones_like(weights[key])
    network = build(description, weights)
    windows = torch.randn(2, 1, *size)
    write_onnx(Named(network).eval(), tmp_path / "model.onnx", {"image": windows}, ["logits"])
    with torch.inference_mode():
        expected = network(windows[:1]).numpy()
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    [found] = session.run(None, {"image": windows[:1].numpy()})  # of another number of windows
    np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))
