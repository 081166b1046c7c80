"""The one way from a seed to an image, with a perfect denoiser in the place of a network."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medserve.errors import ConfigError, InvalidRequestError, ServerFailedError
from medserve.inference.engines import Outputs, load_engine
from medserve.inference.generation import DiffusionPipeline, SampleSettings, to_pixels
from medserve.spec import EngineName, ModelSpec
from medserve.spec.generation import SamplerKind
from tests.tiny_diffusion_room import (
    DEVIATION,
    DIFFUSION_CONFIG,
    LABELS,
    SIDE,
    means,
    run,
    write_diffusion_artifact,
)

SPEC = ModelSpec.from_mapping(DIFFUSION_CONFIG)
SETTINGS = SampleSettings(steps=12, sampler=SamplerKind.DPM_SOLVER, guidance=1.0, size=SIDE)


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    return DiffusionPipeline(SPEC, run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusion_artifact(tmp_path_factory.mktemp("painter"))


class Counting:
    """The network, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, inputs: Any) -> Outputs:
        """As `run` does."""
        self.asked.append(dict(inputs))
        return run(inputs)


@pytest.mark.parametrize("sampler", list(SamplerKind))
@pytest.mark.parametrize("label_id", range(len(LABELS)))
def test_an_image_of_a_class_looks_like_that_class(
    pipeline: DiffusionPipeline, label_id: int, sampler: SamplerKind
) -> None:
    settings = replace(SETTINGS, sampler=sampler, steps=40)
    *_, last = pipeline.walk(seed=3, label_id=label_id, settings=settings)
    assert np.abs(last.noisy - means()[label_id]).mean() < 1.2 * DEVIATION


def test_an_image_depends_on_its_seed_alone(pipeline: DiffusionPipeline) -> None:
    first = pipeline.draw(11, 0, SETTINGS)
    pipeline.draw(12, 2, SETTINGS)  # what was drawn before does not matter
    np.testing.assert_array_equal(pipeline.draw(11, 0, SETTINGS), first)
    assert np.abs(pipeline.draw(12, 0, SETTINGS).astype(int) - first).max() > 20


def test_seeds_draw_every_class_about_equally_often_and_always_the_same(
    pipeline: DiffusionPipeline,
) -> None:
    drawn = [pipeline.label_id(seed) for seed in range(300)]
    assert drawn == [pipeline.label_id(seed) for seed in range(300)]
    assert set(drawn) == set(range(len(LABELS)))
    assert min(Counter(drawn).values()) > 60


def test_the_class_alone_costs_one_call_a_step_and_guidance_two_images(
    pipeline: DiffusionPipeline,
) -> None:
    for guidance, labels in ((1.0, [1]), (0.0, [len(LABELS)]), (2.5, [1, len(LABELS)])):
        network = Counting()
        settings = replace(SETTINGS, guidance=guidance)
        DiffusionPipeline(SPEC, network).draw(5, 1, settings)
        assert len(network.asked) == SETTINGS.steps
        assert {tuple(each["label"].tolist()) for each in network.asked} == {tuple(labels)}
        assert sum(len(each["label"]) for each in network.asked) == settings.calls


def test_guidance_moves_an_image_away_from_what_all_classes_share(
    pipeline: DiffusionPipeline,
) -> None:
    def bar(guidance: float) -> float:
        settings = replace(SETTINGS, guidance=guidance)
        *_, last = pipeline.walk(5, 1, settings)
        return float((last.noisy * (means()[1] - means()[-1])).mean())

    assert bar(0.0) < bar(1.0) < bar(3.0)


def test_the_network_is_called_with_the_types_that_its_artifact_states() -> None:
    network = Counting()
    DiffusionPipeline(SPEC, network).draw(5, 1, SETTINGS)
    types = {name: array.dtype for name, array in network.asked[0].items()}
    assert types == {"image": np.float32, "step": np.int64, "label": np.int64}
    assert network.asked[0]["step"].tolist() == [199]


@pytest.mark.parametrize("name", list(EngineName))
def test_every_engine_draws_the_same_image(
    name: EngineName, folder: Path, pipeline: DiffusionPipeline
) -> None:
    engine = load_engine(name, folder)
    drawn = DiffusionPipeline(SPEC, engine.run).draw(21, 2, SETTINGS)
    np.testing.assert_array_equal(drawn, pipeline.draw(21, 2, SETTINGS))


@pytest.mark.parametrize("name", list(EngineName))
def test_every_engine_takes_several_inputs(name: EngineName, folder: Path) -> None:
    inputs = {
        "image": np.random.default_rng(0).standard_normal((5, 1, SIDE, SIDE), dtype=np.float32),
        "step": np.array([0, 7, 50, 150, 199]),
        "label": np.array([0, 3, 1, 2, 0]),
    }
    outputs = load_engine(name, folder).run(inputs)
    assert list(outputs) == ["output"]
    np.testing.assert_allclose(outputs["output"], run(inputs)["output"], atol=1e-5)


def test_the_golden_answer_holds_a_single_call_and_a_finished_image(
    pipeline: DiffusionPipeline,
) -> None:
    golden = pipeline.golden(7, 0, SETTINGS)
    shape = (1, 1, SIDE, SIDE)
    assert {name: array.shape for name, array in golden.items()} == {
        "output": shape,
        "image": shape,
    }
    np.testing.assert_array_equal(to_pixels(golden["image"][0]), pipeline.draw(7, 0, SETTINGS))


def test_a_network_that_loses_its_numbers_is_reported() -> None:
    def broken(inputs: Any) -> Outputs:
        return {"output": np.full_like(inputs["image"], np.nan)}

    with pytest.raises(ServerFailedError, match="not finite"):
        DiffusionPipeline(SPEC, broken).draw(5, 1, SETTINGS)


def test_more_steps_than_the_process_has_are_refused(pipeline: DiffusionPipeline) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 200, got 201"):
        pipeline.draw(5, 1, replace(SETTINGS, steps=201))


def test_grey_levels_reach_from_black_to_white() -> None:
    levels = to_pixels(np.array([-1.3, -1.0, 0.0, 1.0, 1.2], dtype=np.float32))
    assert levels.tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": []}, "sizes from 8 to 1024"),
        ({"sizes": [32]}, "its first size"),
        ({"default_steps": 500}, "default_steps <= steps"),
        ({"default_guidance": 20.0}, "default_guidance <= max_guidance"),
        ({"max_images": 0}, "max_images >= 1"),
        ({"max_work": 2}, "max_work for one image of 8 steps"),
        ({"schedule": "quadratic"}, "expected one of linear, cosine"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_a_description_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    own = DIFFUSION_CONFIG["medserve"]
    config = {
        **DIFFUSION_CONFIG,
        "medserve": {**own, "generation": {**own["generation"], **changes}},
    }
    with pytest.raises(ConfigError, match=message):
        ModelSpec.from_mapping(config)


def test_a_model_of_another_task_makes_no_images() -> None:
    own = {key: value for key, value in DIFFUSION_CONFIG["medserve"].items() if key != "generation"}
    with pytest.raises(ConfigError, match="painter: expected the section 'generation'"):
        ModelSpec.from_mapping({**DIFFUSION_CONFIG, "medserve": own})
