"""The contract of every room of `models/` and of its variants; a new one is found by its folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

import models
from medserve.archive.read import verify_archive
from medserve.imaging.codecs import frame_file, volume_file
from medserve.imaging.frames import FrameLimits
from medserve.inference.engines import Engine, load_engine
from medserve.inference.fingerprints import FINGERPRINTS_FILE, FingerprintIndex
from medserve.inference.frame_pipeline import FramePipeline
from medserve.inference.generation import DiffusionPipeline, SampleSettings, to_pixels
from medserve.inference.volume_pipeline import VolumePipeline, VolumeSettings
from medserve.spec import EngineName, ModelSpec, Precision, Task
from scripts.card_files import with_table
from tests.archives import packaged

_REPOSITORY = Path(__file__).parent.parent
_MAX_WEIGHTS_BYTES = 20_000_000
_AGREEMENT = 1e-4  # absolute and relative, between the artifact's two forms
# Absolute, where single precision sums hundreds of kernels with large weights or, as the instance
# norm of ONNX Runtime does, the 147,456 voxels of a window one after another.
_SUMMED = {"svm": 0.02, "vnet": 0.003}
_SAME_VOXELS = 0.9999  # of a mask, between engines
_SAME_GREY = 2  # levels of 255: after 20 calls, where the engines' last bits have added up
_VERSIONS = [(name, variant) for name in models.names() for variant in ("", *models.variants(name))]
_FILES = (
    "README.md",
    "model-config.yaml",
    "weights/golden_output.npz",
    "weights/metrics.json",
    "weights/model.onnx",
    "weights/model.pt",
)
_HEADINGS = (
    "## Intended use",
    "## Input and output",
    "## Training data",
    "## Training",
    "## Metrics",
    "## Limits",
    "## Files",
)
_LISTED = re.compile(r"([\w.-]+\.\w+)\b.*?\b([0-9a-f]{64})\b")  # a file and its SHA-256, one line

# What TorchServe's worker does, without TorchServe's Java: run in the unpacked archive, with
# nothing of the checkout in reach, load the handler by TorchServe's own rules, ask it once.
WORKER = """
import json, sys
from pathlib import Path

checkout, name, handler, params = sys.argv[1:]
here = str(Path.cwd())
sys.path[:] = [here] + [each for each in sys.path if Path(each).resolve() != Path(checkout)]
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in repr(each).lower()]

import yaml
from ts.context import RequestProcessor
from ts.model_loader import ModelLoaderFactory

service = ModelLoaderFactory.get_model_loader().load(name, str(Path.cwd()), handler, None, 1)
context = service.context
context.request_ids = {0: "0a1b2c3d"}
context.request_processor = [RequestProcessor({})]
golden = next(Path.cwd().glob("golden_input.*")).read_bytes()
request = {"data": bytearray(golden), "params": bytearray(params.encode())}
if params == "golden":  # a model that makes images
    request = {"params": bytearray(golden)}
answer = service._entry_point([request], context)[0]

import handlers, medserve
for package in (handlers, medserve):
    assert Path(package.__file__).is_relative_to(Path.cwd()), package.__file__
for stranger in ("models", "training", "medserve.client"):
    assert stranger not in sys.modules, stranger
print(bytes(answer).decode())
"""


@pytest.fixture(scope="module", params=_VERSIONS, ids=lambda pair: "-".join(filter(None, pair)))
def version(request: pytest.FixtureRequest) -> tuple[str, str]:
    name, variant = request.param
    return name, variant


@pytest.fixture(scope="module")
def room(version: tuple[str, str]) -> Path:
    return models.room(*version)


@pytest.fixture(scope="module")
def spec(version: tuple[str, str]) -> ModelSpec:
    return models.spec(*version)


@pytest.fixture(scope="module")
def archive(version: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("model_archiver", reason="needs the serve extra")
    name, variant = version
    return packaged(name, tmp_path_factory.mktemp("store"), variant=variant)


def network_of(spec: ModelSpec) -> nn.Module:
    """A fresh network of the room: the first that it names."""
    shape = {"in_channels": spec.input.channels, "classes": len(spec.labels)}
    if spec.generation is not None:
        return models.build(spec.name, "", width=16, image_size=spec.generation.sizes[0], **shape)
    return models.build(spec.name, "", **shape)


def noise(spec: ModelSpec, items: int) -> npt.NDArray[np.float32]:
    """Uniform noise as large as the network's input: (N, C, H, W) or (N, C, I, J, K)."""
    shape = (items, spec.input.channels, *spec.input.size)
    return np.random.default_rng(seed=1).random(shape, dtype=np.float32)


def inputs_of(spec: ModelSpec, items: int) -> dict[str, npt.NDArray[Any]]:
    """Noise, and what else the network is told: for a denoiser the step and the class."""
    inputs: dict[str, npt.NDArray[Any]] = {"image": noise(spec, items)}
    if spec.generation is not None:
        draws = np.random.default_rng(seed=2)
        inputs["step"] = draws.integers(spec.generation.steps, size=items)
        inputs["label"] = draws.integers(len(spec.labels) + 1, size=items)
    return inputs


def test_a_room_is_complete(room: Path) -> None:
    missing = [name for name in _FILES if not (room / name).is_file()]
    missing += [] if len(list(room.glob("weights/golden_input.*"))) == 1 else ["golden_input.*"]
    assert missing == []


@pytest.mark.parametrize("name", models.names())
def test_a_room_has_a_network_and_an_example_to_try(name: str) -> None:
    room = models.room(name)
    assert (room / "__init__.py").is_file()
    assert (room / "network.py").is_file()
    assert list(room.glob("examples/*"))


def test_the_configuration_names_the_room_and_the_variant(
    version: tuple[str, str], spec: ModelSpec
) -> None:
    name, variant = version
    assert spec.name == name
    assert spec.version.partition("-")[2] == variant
    assert spec.title


def test_the_card_has_its_headings_in_order(room: Path) -> None:
    lines = (room / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line.strip() for line in lines if line.strip() in _HEADINGS] == list(_HEADINGS)


def test_the_card_says_that_it_is_for_research(room: Path) -> None:
    card = (room / "README.md").read_text(encoding="utf-8").lower()
    assert "research" in card
    assert "not a medical device" in card


def test_the_digests_in_the_card_are_those_of_the_files(room: Path) -> None:
    card = (room / "README.md").read_text(encoding="utf-8").partition("## Files")[2]
    stated = dict(_LISTED.findall(card))
    actual = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (room / "weights").iterdir()
    }
    assert stated == actual


def test_the_table_of_files_in_the_card_is_what_the_command_writes(room: Path) -> None:
    card = (room / "README.md").read_text(encoding="utf-8")
    assert with_table(card, room / "weights") == card  # names, bytes and digests


def test_the_onnx_file_is_complete_in_itself(room: Path) -> None:
    model = onnx.load(room / "weights/model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    golden = np.load(room / "weights/golden_output.npz", allow_pickle=False)
    names = [each.name for each in model.graph.output]
    assert names == [name for name in golden.files if name in names]
    if ModelSpec.from_file(room / "model-config.yaml").task is Task.CLASSIFICATION:
        assert names == ["logits", "novelty"]


def test_the_weights_stay_small(room: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in (room / "weights").iterdir()}
    assert {name: size for name, size in sizes.items() if size > _MAX_WEIGHTS_BYTES} == {}


def test_the_metrics_are_figures_of_an_evaluation_of_this_artifact(room: Path) -> None:
    metrics = json.loads((room / "weights/metrics.json").read_text(encoding="utf-8"))
    assert metrics["n"] > 0
    digest = hashlib.sha256((room / "weights/model.onnx").read_bytes()).hexdigest()
    assert digest in json.dumps(metrics["artifact_sha256"])


@pytest.mark.cpu
@pytest.mark.parametrize("name", models.names())
def test_a_gradient_reaches_every_parameter_of_the_network(name: str) -> None:
    spec = models.spec(name)
    network = network_of(spec)
    outputs = network(*(torch.from_numpy(each) for each in inputs_of(spec, items=2).values()))
    outputs.square().mean().backward()
    assert outputs.shape[:1] == (2,)
    without = [  # a gradient may be 0 at the start: some layers begin as the identity
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.isfinite().all())
    ]
    assert without == []


@pytest.mark.parametrize("name", models.names())
def test_a_classifier_has_one_logit_for_each_label(name: str) -> None:
    spec = models.spec(name)
    if spec.task is not Task.CLASSIFICATION:
        pytest.skip("labels are channels here")
    with torch.no_grad():
        logits = network_of(spec).eval()(torch.from_numpy(noise(spec, items=1)))
    assert logits.shape == (1, len(spec.labels))


@pytest.mark.cpu
def test_both_forms_of_the_artifact_agree_on_noise(
    version: tuple[str, str], room: Path, spec: ModelSpec
) -> None:
    inputs = inputs_of(spec, items=3)
    given = inputs["image"] if len(inputs) == 1 else inputs
    outputs = [
        load_engine(name, room / "weights", precision=Precision.F32, threads=1).run(given)
        for name in (EngineName.ONNXRUNTIME, EngineName.TORCHSCRIPT)
    ]
    assert list(outputs[0]) == list(outputs[1])
    absolute = _SUMMED.get(version[1], _AGREEMENT)
    for name, expected in outputs[1].items():
        assert len(expected) == 3
        np.testing.assert_allclose(
            outputs[0][name], expected, rtol=_AGREEMENT, atol=absolute, err_msg=name
        )


@pytest.fixture(scope="module")
def pipeline(spec: ModelSpec) -> VolumePipeline:
    if spec.volume is None:
        pytest.skip("answers no volumes")
    return VolumePipeline(spec)


def test_a_model_of_volumes_has_a_coded_structure_for_each_label(pipeline: VolumePipeline) -> None:
    assert pipeline.spec.labels[0] == "background"
    assert set(pipeline.volume.snomed) == set(pipeline.spec.labels[1:])


@pytest.mark.cpu
def test_every_engine_finds_the_same_mask_in_the_golden_volume(
    room: Path, pipeline: VolumePipeline
) -> None:
    golden = next(room.glob("weights/golden_input.*")).read_bytes()
    volume = volume_file.decode(golden, pipeline.spec.input.kinds)
    prepared = pipeline.prepare(volume)
    options = VolumeSettings()  # without mirror images, for time; they are the same network
    masks = []
    for name in EngineName:
        engine = load_engine(name, room / "weights", precision=Precision.F32, threads=2)
        found = pipeline.segment(prepared, partial(_logits, engine), options)
        assert found.segmentation.geometry == volume.geometry
        masks.append(found.segmentation.mask)
    assert set(np.unique(masks[0])) == set(range(len(pipeline.spec.labels)))
    for mask in masks[1:]:
        assert np.mean(mask == masks[0]) >= _SAME_VOXELS


@pytest.mark.cpu
def test_every_engine_finds_the_same_mask_in_the_golden_frame(room: Path, spec: ModelSpec) -> None:
    if spec.frame is None:
        pytest.skip("answers no frames")
    assert set(spec.frame.snomed) == set(spec.labels[1:])
    [golden] = room.glob("weights/golden_input.*")
    limits = FrameLimits(spec.input, spec.frame.max_frames)
    image = frame_file.decode(golden.read_bytes(), limits).read(0)
    masks = []
    for name in EngineName:
        engine = load_engine(name, room / "weights", precision=Precision.F32, threads=2)
        [found] = FramePipeline(spec).segment([image], partial(_logits, engine))
        masks.append(found.mask)
    assert masks[0].any()
    for mask in masks[1:]:
        assert np.mean(mask == masks[0]) >= _SAME_VOXELS


@pytest.mark.cpu
def test_every_engine_draws_the_same_image(room: Path, spec: ModelSpec) -> None:
    if spec.generation is None:
        pytest.skip("makes no images")
    settings = replace(SampleSettings.default(spec.generation), guidance=1.0)
    drawn = []
    for name in EngineName:
        engine = load_engine(name, room / "weights", precision=Precision.F32, threads=2)
        drawn.append(DiffusionPipeline(spec, engine.run).draw(3, 0, settings).astype(int))
    assert drawn[0].std() > 10
    for image in drawn[1:]:
        assert np.abs(image - drawn[0]).max() <= _SAME_GREY


def test_a_model_of_images_knows_its_training_images_and_withholds_none_of_its_golden(
    room: Path, spec: ModelSpec
) -> None:
    if spec.generation is None:
        pytest.skip("makes no images")
    index = FingerprintIndex.load(room / "weights" / FINGERPRINTS_FILE)
    assert len(index.codes) >= 16
    with np.load(room / "weights" / "golden_output.npz") as golden:
        assert not index.is_copy(to_pixels(golden["image"])).any()


def _logits(engine: Engine, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return engine.run(windows)["logits"]


def test_a_room_becomes_an_archive_that_verifies(archive: Path, spec: ModelSpec) -> None:
    info = verify_archive(archive)
    assert (info.name, info.version, info.spec) == (spec.name, spec.version, spec)


def test_the_archive_alone_reproduces_its_golden_answer(
    room: Path, spec: ModelSpec, archive: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ts", reason="needs the serve extra")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    params = json.dumps({"output": "json"} if spec.volume or spec.frame else {})
    if spec.generation is not None:
        params = "golden"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    worker = subprocess.run(
        [sys.executable, "-c", WORKER, str(_REPOSITORY), spec.name, f"{spec.name}.py", params],
        cwd=tmp_path,
        env=environment | {"MEDSERVE_ENGINE_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert worker.returncode == 0, worker.stderr
    answer = json.loads(worker.stdout.splitlines()[-1])
    assert answer["status"] == "ok"  # `initialize` raises unless it reproduces the golden output
    assert answer["archive_digest"] == verify_archive(archive).digest
