"""Networks in files of ONNX and TorchScript with a description, and real third-party weights."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import typer
import yaml

from medserve.cli.main import app
from medserve.errors import ConfigError
from medserve.imaging.codecs import nifti
from tests.cli.conftest import medserve as medserve
from tests.tiny_volume_room import VOLUME_CONFIG, known_mask, phantom, write_volume_artifact

onnx = pytest.importorskip("onnx", reason="needs the import extra")
_PAGE = Path(__file__).parents[2] / "docs/build"
_Image: Any = nibabel.Nifti1Image


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume_artifact(tmp_path_factory.mktemp("network"))


@pytest.fixture
def description(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(dict(VOLUME_CONFIG)))
    return path


def parsed(line: str) -> str | None:
    """Return the command that a printed line calls; raises where it would refuse its options."""
    _, name, *arguments = shlex.split(line)
    group: Any = typer.main.get_command(app)
    command = group.get_command(None, name)
    return str(command.make_context(name, arguments).info_name)


@pytest.mark.archive
@pytest.mark.parametrize(("kind", "file"), [("onnx", "model.onnx"), ("torchscript", "model.pt")])
def test_a_described_network_becomes_an_archive_that_answers(
    network: Path, description: Path, tmp_path: Path, medserve: Any, kind: str, file: str
) -> None:
    run = medserve(
        *("import", kind, network / file, "--spec", description, "--store", tmp_path / "store")
    )
    assert run.code == 0, run.err
    assert [parsed(line) for line in re.findall("`(medserve .*?)`", run.out)] == [
        "serve",
        "predict",
    ]
    volume = phantom()
    (tmp_path / "case.nii.gz").write_bytes(nifti.encode(volume))
    archive = tmp_path / "store/tiny_volume-1.0.mar"
    run = medserve("try", archive, tmp_path / "case.nii.gz", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    mask = nifti.decode((tmp_path / "out/mask.nii.gz").read_bytes())
    np.testing.assert_array_equal(mask.array, known_mask(volume))
    assert (tmp_path / "out/overlay.png").is_file()
    assert medserve("inspect", archive).code == 0


@pytest.mark.process
def test_the_memory_of_a_network_is_told_from_a_large_process_too(network: Path) -> None:
    from medserve.importing.measure import network_bytes
    from medserve.spec import EngineName

    held = np.ones(400 * 2**20, dtype=np.uint8)  # more than the small process ever takes
    found = network_bytes(network, EngineName.ONNXRUNTIME, (1, 1, 128, 128, 128))
    assert found >= 3 * 128**3 * 4  # three labels in float32
    del held


def test_the_description_that_init_prints_is_a_good_one(tmp_path: Path, medserve: Any) -> None:
    (tmp_path / "spec.yaml").write_text(medserve("init", "--task", "volumes").out)
    run = medserve("spec", "check", tmp_path / "spec.yaml")
    assert (run.code, run.err) == (0, "")
    assert "my_model 1.0, volumes: background, structure" in run.out


def _changed(model: Any, change: Callable[[Any], None]) -> bytes:
    change(model)
    return bytes(model.SerializeToString())


def _with_branch(model: Any) -> None:
    model.graph.node[0].op_type = "If"


def _with_half(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _with_channels(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3


def _with_channels_last(model: Any) -> None:
    for place, side in enumerate((16, 16, 16, 1), start=1):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = side


def _with_rows(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7


def _with_files(model: Any) -> None:
    """Name a file of the machine, in a constant."""
    [name, *_] = [each.name for each in model.graph.initializer]
    [first, *rest] = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(rest)
    first.ClearField("raw_data")
    first.data_location = onnx.TensorProto.EXTERNAL
    first.external_data.add(key="location", value="/etc/passwd")
    node = onnx.helper.make_node("Constant", [], [name], value=first)
    model.graph.node.insert(0, node)


def _with_two_inputs(model: Any) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "second"


def _with_a_list(model: Any) -> None:
    scores = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("SequenceConstruct", [scores], ["many"]))
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    many = onnx.helper.make_value_info("many", onnx.helper.make_sequence_type_proto(kind))
    del model.graph.output[:]
    model.graph.output.append(many)


def _with_later_version(model: Any) -> None:
    model.ir_version = 99


def _with_foreign(model: Any) -> None:
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_with_branch, r"ONNX file|without branches"),
        (_with_foreign, r"com\.microsoft\.Conv"),
        (_with_half, r"float32|ONNX file"),
        (_with_channels, r"expected an input of \(N, 1, 16, 16, 16\)|ONNX file"),
        (_with_channels_last, r"channels before the sides|ONNX file"),
        (_with_rows, r"set volume\.window_batch"),
        (_with_files, r"one file with its weights"),
        (_with_two_inputs, r"got 2 inputs"),
        (_with_a_list, r"got no tensor"),
        (_with_later_version, r"ir_version 99"),
    ],
)
def test_a_file_that_contradicts_its_description_is_refused(
    network: Path, description: Path, tmp_path: Path, change: Callable[[Any], None], told: str
) -> None:
    from medserve.importing.described import read_onnx

    path = tmp_path / "changed.onnx"
    path.write_bytes(_changed(onnx.load(str(network / "model.onnx")), change))
    with pytest.raises(ConfigError, match=told):
        read_onnx(path, description, tmp_path)


def _described(description: Path, **volume: object) -> None:
    content = yaml.safe_load(description.read_text())
    content["medserve"]["volume"] |= volume
    description.write_text(yaml.safe_dump(content))


def _ending(kind: str, sides: tuple[str | int, ...] = (16, 16, 16)) -> Any:
    """Return a network of one convolution that ends in that operator."""
    make, arrays = onnx.helper, onnx.numpy_helper
    weights = (
        np.random.default_rng(0)
        .normal(size=(2 if kind == "Sigmoid" else 3, 1, 1, 1, 1))
        .astype(np.float32)
    )
    before = {"Transpose": [make.make_node("Transpose", ["x"], ["t"], perm=[0, 4, 1, 2, 3])]}
    graph = make.make_graph(
        [
            *before.get(kind, []),
            make.make_node("Conv", ["t" if kind in before else "x", "w"], ["s"]),
            make.make_node(kind, ["s"], ["y"], **({"axis": 1} if kind == "Softmax" else {})),
        ],
        "network",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", "C", *sides])],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", "D", *sides])],
        [arrays.from_array(weights, "w")],
    )  # fmt: skip
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)])
    model.ir_version = 8
    return model


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("kind", "volume", "told"),
    [
        ("Softmax", {}, "expected logits, as volume.scores says, got scores from 0 to 1"),
        ("Sigmoid", {"regions": {"dim": 0, "bright": 1}, "snomed": {}},
         "set volume.scores and volume.restored to probabilities"),
        ("Identity", {"scores": "probabilities", "restored": "probabilities"},
         "set volume.scores to logits"),
        ("Transpose", {}, "the description contradicts the network"),
    ],
)  # fmt: skip
def test_scores_of_another_kind_or_order_than_described_are_refused_and_nothing_is_left(
    description: Path, tmp_path: Path, medserve: Any, kind: str, volume: dict[str, Any], told: str
) -> None:
    _described(description, **volume)
    file = tmp_path / "network.onnx"
    sides: tuple[str | int, ...] = ("a", "b", "c") if kind == "Transpose" else (16, 16, 16)
    file.write_bytes(_ending(kind, sides).SerializeToString())
    run = medserve("import", "onnx", file, "--spec", description, "--store", tmp_path / "store")
    assert run.code != 0
    assert told in run.err
    assert str(Path(tempfile.gettempdir()) / "medserve-import") not in run.err
    assert not list((tmp_path / "store").glob("*"))


class _Answering(torch.nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.layer = form, torch.nn.Conv3d(1, 3, 1)

    def forward(self, image: torch.Tensor) -> Any:
        scores = self.layer(image)
        return {"dict": {"scores": scores}, "tuple": (scores, image)}[self.form]


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_a_script_that_answers_more_than_scores_is_refused(
    description: Path, tmp_path: Path, medserve: Any, form: str
) -> None:
    image = torch.rand(1, 1, 16, 16, 16)
    network: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
        _Answering(form), image, strict=False
    )
    network.save(str(tmp_path / "network.pt"))
    arguments = ("--spec", description, "--store", tmp_path / "store")
    run = medserve("import", "torchscript", tmp_path / "network.pt", *arguments)
    assert f"one tensor of scores, got {form}" in run.err
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x09"])
def test_what_is_no_network_is_refused_in_one_sentence(
    description: Path, tmp_path: Path, content: bytes
) -> None:
    from medserve.importing.described import read_onnx, read_torchscript

    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConfigError, match=r"ONNX file|one input"):
        read_onnx(tmp_path / "x", description, tmp_path)
    with pytest.raises(ConfigError, match=r"torch\.jit\.save"):
        read_torchscript(tmp_path / "x", description)


@pytest.mark.archive
@pytest.mark.filterwarnings("ignore")  # of nilearn
def test_real_weights_of_a_third_party_are_served_by_a_description_alone(
    tmp_path: Path, medserve: Any
) -> None:
    reason = "deepbet and nilearn are not installed; .ci/run installs them"
    data = pytest.importorskip("nilearn.datasets", reason=reason)
    try:
        files = importlib.metadata.files("deepbet") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(reason)
    [weights] = [Path(str(each.locate())) for each in files if each.name == "bbox_model.pt"]
    spec = _PAGE / "specs/deepbet_first_stage.yaml"
    run = medserve(
        *("import", "torchscript", weights, "--spec", spec, "--store", tmp_path / "store")
    )
    assert run.code == 0, run.err
    template = data.load_mni152_template(resolution=1)
    reference = np.asarray(data.load_mni152_brain_mask(resolution=1).dataobj) > 0
    _Image(np.asarray(template.dataobj, np.float32), template.affine).to_filename(
        tmp_path / "mni.nii.gz"
    )
    archive = tmp_path / "store/brain-1.0.mar"
    run = medserve("try", archive, tmp_path / "mni.nii.gz", "--out", tmp_path / "out")
    assert run.code == 0, run.err
    mask = nifti.decode((tmp_path / "out/mask.nii.gz").read_bytes()).array > 0
    dice = 2 * np.sum(mask & reference) / (mask.sum() + reference.sum())
    assert dice >= 0.98
