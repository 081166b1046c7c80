from __future__ import annotations

import pytest

from medserve.errors import ConfigError
from medserve.inference.engines import EngineChoice, choice, choose
from medserve.spec import EngineName, ModelSpec, Precision


def spec(threads: int = 0, workers: int = 1, precision: str = "f32") -> ModelSpec:
    return ModelSpec.from_mapping(
        {
            "minWorkers": workers,
            "maxWorkers": workers,
            "medserve": {
                "name": "any",
                "version": "1.0",
                "title": "Any",
                "task": "classification",
                "labels": ["a", "b"],
                "input": {"kinds": ["raster"], "size": [64, 64]},
                "engine": {"name": "openvino", "precision": precision, "threads": threads},
            },
        }
    )


def test_the_model_s_own_engine_is_the_default() -> None:
    chosen = choose(spec(threads=3), environment={})
    assert chosen == EngineChoice(EngineName.OPENVINO, Precision.F32, threads=3, device="cpu")


def test_the_environment_overrides_engine_and_threads() -> None:
    environment = {"MEDSERVE_ENGINE": "onnxruntime", "MEDSERVE_ENGINE_THREADS": "5"}
    chosen = choose(spec(threads=3), environment=environment)
    assert (chosen.name, chosen.threads) == (EngineName.ONNXRUNTIME, 5)


def test_cores_are_shared_among_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "available_cores", lambda: 8)
    assert choose(spec(workers=3), environment={}).threads == 2
    assert choose(spec(workers=16), environment={}).threads == 1


def test_a_gpu_moves_openvino_models_to_torchscript_in_f32() -> None:
    chosen = choose(spec(precision="bf16"), gpu=1, environment={})
    assert (chosen.name, chosen.device) == (EngineName.TORCHSCRIPT, "cuda:1")
    assert chosen.precision is Precision.F32


@pytest.mark.parametrize(("there", "device"), [(True, "cuda:0"), (False, "cpu")])
def test_a_gpu_that_is_wanted_is_taken_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, there: bool, device: str
) -> None:
    monkeypatch.setattr(choice, "_finds_cuda", lambda: there)
    chosen = choose(spec(), environment={"MEDSERVE_DEVICE": "cuda"})
    assert chosen.device == device
    assert chosen.name is (EngineName.TORCHSCRIPT if there else EngineName.OPENVINO)


def test_openvino_asked_for_by_name_stays_on_the_cpu() -> None:
    chosen = choose(spec(), gpu=0, environment={"MEDSERVE_ENGINE": "openvino"})
    assert (chosen.name, chosen.device) == (EngineName.OPENVINO, "cpu")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MEDSERVE_ENGINE": "tensorrt"}, "expected one of openvino, onnxruntime, torchscript"),
        ({"MEDSERVE_ENGINE_THREADS": "two"}, "expected a number >= 1, got 'two'"),
        ({"MEDSERVE_ENGINE_THREADS": "0"}, "expected a number >= 1, got '0'"),
    ],
)
def test_an_override_that_cannot_work_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(spec(), environment=environment)
