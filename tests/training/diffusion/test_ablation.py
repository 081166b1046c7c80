from __future__ import annotations

import json
from pathlib import Path

import pytest

from medserve.errors import ConfigError
from medserve.inference.samplers import Prediction
from medserve.inference.schedules import ScheduleKind
from tests.training.diffusion.test_run import SIDE, drawn_folder
from training.core.config import TrainPrecision
from training.core.ini import parse_with_file
from training.diffusion.ablation import VARIANTS, AblationConfig, main
from training.diffusion.settings import INI_KEYS, DiffusionConfig, implied

_EXAMPLE = Path(__file__).parents[3] / "training" / "diffusion" / "config.ini"


@pytest.mark.training
def test_every_variant_becomes_a_row_with_its_distance(tmp_path: Path) -> None:
    data_dir = drawn_folder(tmp_path / "data", count=40)
    main(
        AblationConfig(
            data_dir=data_dir, out=tmp_path / "out", image_size=SIDE, width=8, steps=2, images=16,
            seeds=1, threads=1,
        )
    )  # fmt: skip
    rows = json.loads((tmp_path / "out" / "ablation.json").read_text(encoding="utf-8"))
    assert [row["variant"] for row in rows] == list(VARIANTS)
    assert all(row["frechet"] > 0 and row["loss"] > 0 for row in rows)
    assert len({row["frechet"] for row in rows}) == len(rows)
    by_name = {row["variant"]: row["parameters"] for row in rows}
    plain = by_name["default: GELU, strided convolution, group norm, no attention"]
    assert by_name["attention"] > plain == by_name["SiLU"]
    assert by_name["max-pool down"] < plain < by_name["LayerNorm over (C, H, W)"]
    assert (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8").count("\n") == 9


def test_a_variant_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SiLU.*got 'mish'"):
        main(AblationConfig(data_dir=tmp_path, only="mish"))


def test_the_example_file_holds_every_asked_key_and_the_defaults() -> None:
    text = _EXAMPLE.read_text(encoding="utf-8")
    asked = {*INI_KEYS, "model", "batch_size", "min_beta", "max_beta", "debug"}
    assert {key for key in asked if f"\n{key} =" not in text} == set()
    config = parse_with_file(DiffusionConfig, ["--config", str(_EXAMPLE)], INI_KEYS, implied)
    usual = DiffusionConfig(
        epochs=85, schedule=ScheduleKind.LINEAR, prediction=Prediction.NOISE, snr_limit=0.0
    )
    assert config == usual
    assert config.precision is TrainPrecision.BF16
