from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from medserve.errors import ConfigError
from tests.training.frames.drawn import write_frames
from tests.training.guide import guided
from training.core.config import parse
from training.frames.compare import CompareConfig, compare

_LIGHTEST = "tu-mobilenetv3_small_050"


@pytest.fixture
def config(tmp_path: Path) -> CompareConfig:
    data = write_frames(tmp_path / "data", patients=6, frames=2)
    content = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "medserve": {
            "name": "trus_prostate", "version": "1.0", "title": "Ellipses", "task": "frames",
            "labels": ["background", "prostate"], "input": {"kinds": ["raster"], "size": [32, 64]},
            "frame": {},
        },
    }  # fmt: skip
    path = tmp_path / "model-config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    _, *flags = guided(
        "training.trus_prostate compare", "--data-dir", data, "--out-dir", tmp_path / "out",
        "--model-config", path, "--epochs", 1, "--batch-size", 4,
        "--networks", f"fpn:{_LIGHTEST},unet:{_LIGHTEST}", "--threads", 1, "--folds", 2,
        "--test-share", 0.34,
    )  # fmt: skip
    return parse(CompareConfig, flags)


def test_an_unknown_network_is_refused_before_anything_is_read(config: CompareConfig) -> None:
    with pytest.raises(ConfigError, match=r"out of fpn, unet, segformer, .* got 'vnet:x'"):
        compare(dataclasses.replace(config, networks="fpn,vnet:x"))
    assert not config.out_dir.exists()


def test_a_comparison_without_unseen_patients_is_refused(config: CompareConfig) -> None:
    with pytest.raises(ConfigError, match="--test-share above 0"):
        compare(dataclasses.replace(config, test_share=0.0))


@pytest.mark.training
def test_networks_are_trained_scored_and_timed_and_none_twice(config: CompareConfig) -> None:
    compare(config)
    rows = json.loads((config.out_dir / "comparison.json").read_text(encoding="utf-8"))
    assert sorted(row["network"] for row in rows) == ["fpn", "unet"]
    assert [row["iou"] for row in rows] == sorted((row["iou"] for row in rows), reverse=True)
    for row in rows:
        assert row["encoder"] == _LIGHTEST
        assert row["n"] == 4  # two test patients with two frames each, none of them empty
        assert min(row["ms_torch"], row["ms_onnxruntime"], row["ms_openvino"]) > 0
    with (config.out_dir / "comparison.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 2
    done = config.out_dir / f"fpn_{_LIGHTEST}" / "result.json"
    known = json.loads(done.read_text(encoding="utf-8")) | {"iou": 2.0}
    done.write_text(json.dumps(known), encoding="utf-8")
    compare(config)
    again = json.loads((config.out_dir / "comparison.json").read_text(encoding="utf-8"))
    assert again[0]["iou"] == 2.0  # read, not made again
    assert "| `fpn` | `tu-mobilenetv3_small_050` |" in (
        (config.out_dir / "comparison.md").read_text(encoding="utf-8")
    )
