"""An FPN on ResNet152 that was trained elsewhere, served by the page's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image as pillow

from medserve.imaging.codecs import frame_file
from medserve.imaging.frames import FrameLimits
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import ModelSpec
from simulation.simulate import SimulationConfig, simulate_frame
from tests.cli.conftest import medserve as medserve
from tests.pages import blocks
from tests.training.guide import ROOT

pytest.importorskip("onnxscript", reason="needs the import extra")
pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]  # of torch's exporters

_PAGE = ROOT / "docs" / "build" / "frames-training.md"
_SPEC = ROOT / "docs" / "build" / "specs" / "fpn_resnet152.yaml"


def test_weights_of_ones_own_are_served_as_their_network_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medserve: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = smp.FPN("resnet152", encoder_weights=None, in_channels=1, classes=1).eval()
    torch.save(network.state_dict(), "fpn-resnet152.pth")
    [script] = [each for each in blocks(_PAGE, "python") if "smp.FPN" in each]
    exec(compile(script, "page", "exec"), {})
    frame = simulate_frame(7, SimulationConfig(height=192, width=256)).image
    pillow.fromarray(frame).save("frame.png")

    run = medserve("import", "torchscript", "fpn-resnet152.pt", "--spec", _SPEC, "--example",
                   "frame.png", "--store", "store")  # fmt: skip
    assert run.code == 0, run.err
    archive = Path("store/trus_prostate-1.0-fpn-resnet152.mar")
    run = medserve("try", archive, "frame.png", "--out", "tried")
    assert run.code == 0, run.err

    spec = ModelSpec.from_file(_SPEC)
    pipeline = FramePipeline(spec)
    stack = frame_file.decode(Path("frame.png").read_bytes(), FrameLimits(spec.input, 1, ("US",)))
    with torch.no_grad():
        [own] = pipeline.segment(
            [stack.read(0)], lambda rows: network(torch.from_numpy(rows)).numpy()
        )
    served = np.asarray(pillow.open("tried/frame_mask.png")) > 0
    assert served.shape == frame.shape
    assert own.mask.any()
    assert np.mean(served == (own.mask > 0)) > 0.999
