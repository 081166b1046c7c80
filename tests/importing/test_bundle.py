"""MONAI bundles: what is read of them, what is refused by name, and equality with MONAI itself."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from medserve.cli.importing import import_
from medserve.errors import ConfigError, InvalidImageError
from medserve.imaging.codecs import nifti
from medserve.importing.bundle import read_bundle
from medserve.importing.source import Source
from medserve.importing.trying import ask_archive
from medserve.inference.sliding_window import Predict
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec import ModelSpec
from scripts.bundle_table import main
from tests.importing.bundle_folders import CASES, monai_mask, write_bundle, write_case
from tests.importing.test_nnunet import own_mask

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI's own
_CONFIG, _METADATA = "configs/inference.json", "configs/metadata.json"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "model", CASES["spleen"])


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "model"))


def _spec(folder: Path) -> ModelSpec:
    source = read_bundle(folder, "spleen", with_weights=False)
    return ModelSpec.from_mapping(source.config("1.0", "openvino"))


@pytest.mark.cpu
def test_a_workflow_becomes_a_description(bundle: Path) -> None:
    source = read_bundle(bundle, "spleen")
    volume = _spec(bundle).volume
    assert volume is not None
    assert source.labels == ("background", "spleen")
    assert source.modalities == ["CT"]
    assert source.licence == "Apache License, Version 2.0, January 2004"
    assert (volume.orientation, volume.spacing_mm) == ("RAS", (1.5, 1.5, 2.0))
    assert (volume.restored, volume.blending.weights) == ("probabilities", "uniform")
    assert not list(bundle.rglob("*.pyc"))


@pytest.mark.cpu
def test_rules_of_labels_are_written_in_the_reverse_of_their_tests(tmp_path: Path) -> None:
    source = read_bundle(write_bundle(tmp_path / "model", CASES["tumour"]), "tumour")
    assert source.labels == (
        "background", "Tumor core", "Whole tumor", "unused 3", "Enhancing tumor",
    )  # fmt: skip
    assert list(source.volume["regions"].items()) == [
        ("Whole tumor", 1), ("Tumor core", 0), ("Enhancing tumor", 2),
    ]  # fmt: skip
    assert list(source.volume["channels"]) == ["T1c", "T1", "T2", "FLAIR"]


@pytest.mark.cpu
def test_a_network_of_the_whole_volume_refuses_another_size(tmp_path: Path) -> None:
    source = read_bundle(write_bundle(tmp_path / "model", CASES["whole"]), "whole")
    [file] = write_case(tmp_path / "case", CASES["cropped"])
    pipeline = VolumePipeline(ModelSpec.from_mapping(source.config("1.0", "openvino")))
    with pytest.raises(InvalidImageError, match=r"expected a volume of 32 x 32 x 16 voxels"):
        pipeline.prepare(nifti.decode(file.read_bytes()))


_Change = Callable[[Path], object]


def _edited(change: Callable[[dict[str, Any]], object], name: str = _CONFIG) -> _Change:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def _set(key: str, value: object) -> _Change:
    return _edited(lambda config: config.update({key: value}))


def _added(name: str, chain: str = "preprocessing", **arguments: object) -> _Change:
    """Add a transform before the last one."""
    key = "@image_key" if chain == "preprocessing" else "pred"
    transform = {"_target_": name, "keys": key, **arguments}
    return _edited(lambda config: config[chain]["transforms"].insert(-1, transform))


def _network(**arguments: object) -> _Change:
    return _edited(lambda config: config["network_def"].update(arguments))


def _nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


_REFUSED: dict[str, tuple[_Change, str]] = {
    # nothing that a bundle can ask for is run
    "a command as a transform": (_added("os.system", command="touch was-here"), "got os.system"),
    "a command as the network": (
        _set("network_def", {"_target_": "os.system", "command": "touch was-here"}),
        r"network_def: os\.system: expected in_channels|expected a network",
    ),
    "a command as the inferer": (
        _set("inferer", {"_target_": "subprocess.run", "args": ["touch", "was-here"]}),
        r"got subprocess\.run",
    ),
    "code in an argument": (
        _set("image_key", "$__import__('os').system('touch was-here')"),
        "expected a plain value, got code, which an import does not run",
    ),
    "code that looks like a value": (
        _set("image_key", "$().__class__.__base__.__subclasses__()"), "got code",
    ),
    "a method of an argument": (_set("image_key", "$'image'.upper()"), "got code"),
    "a path that climbs": (_set("image_key", "%../../secret.json#key"), "inside the bundle"),
    "an absolute path": (_set("image_key", "%/etc/passwd.json#key"), "inside the bundle"),
    "weights elsewhere": (
        _edited(lambda config: config["checkpointloader"].update(load_path="/etc/shadow")),
        "inside the bundle",
    ),
    "a circle": (
        lambda folder: (_set("image_key", "@a")(folder), _set("a", "@b")(folder),
                        _set("b", "$@a + ''")(folder)),
        "without a circle",
    ),
    "a reference to nothing": (_set("image_key", "@nobody#0"), "expected 'nobody#0'"),
    "texts that double": (
        lambda folder: [_set("image_key", "@t40")(folder), _set("t0", "0123456789")(folder)]
        + [_set(f"t{n + 1}", f"$@t{n} + @t{n}")(folder) for n in range(40)],
        "got code|endless",
    ),
    "lists that double": (
        lambda folder: [_set("image_key", "@t30")(folder), _set("t0", [1])(folder)]
        + [_set(f"t{n + 1}", [f"@t{n}", f"@t{n}"])(folder) for n in range(30)],
        "endless",
    ),
    "a deep JSON": (
        lambda folder: (folder / _CONFIG).write_text(_nested(200_000)), "expected JSON",
    ),
    "a huge JSON": (
        lambda folder: os.truncate(folder / _CONFIG, 2**27), "expected at most",
    ),
    "no JSON": (lambda folder: (folder / _CONFIG).write_text("["), "expected JSON"),
    "a list": (lambda folder: (folder / _CONFIG).write_text("[]"), "expected an object"),
    # what is missing
    "no configuration": (lambda folder: (folder / _CONFIG).unlink(), "expected configs/inference"),
    "no metadata": (lambda folder: (folder / _METADATA).unlink(), "expected metadata.json"),
    "no evaluator": (_edited(lambda config: config.pop("evaluator")), "expected 'evaluator'"),
    "no inferer": (_edited(lambda config: config.pop("inferer")), "expected 'inferer'"),
    "no transforms": (_edited(lambda config: config.pop("preprocessing")), "'preprocessing'"),
    "no weights": (lambda folder: (folder / "models/model.pt").unlink(), "there is neither"),
    "no inversion": (
        _edited(lambda config: config["postprocessing"]["transforms"].pop(1)), "expected Invertd",
    ),
    # what cannot be served alike
    "another transform": (_added("HistogramNormalized"), "got HistogramNormalized"),
    "another argument": (
        _edited(lambda config: config["preprocessing"]["transforms"][3].update(diagonal=True)),
        r"transforms\[3\]: Spacingd: diagonal: expected False, got True",
    ),
    "an unknown argument": (
        _edited(lambda config: config["preprocessing"]["transforms"][3].update(new=1)),
        "no argument 'new'",
    ),
    "a later orientation": (_added("Orientationd", axcodes="LPS"), "before Spacingd"),
    "intensities after the crop": (
        lambda folder: [
            _added("CropForegroundd", source_key="@image_key")(folder),
            _added("ScaleIntensityd")(folder),
        ],
        "after CropForegroundd",
    ),
    "other components": (
        _added("KeepLargestConnectedComponentd", "postprocessing", applied_labels=[2]),
        "applied_labels: expected all of 1 to 1",
    ),
    "another function": (_added("Lambdad", "postprocessing", func="$lambda x: x + 1"), "func"),
    "another inferer": (_set("inferer", {"_target_": "SaliencyInferer"}), "got SaliencyInferer"),
    "another padding": (
        _edited(lambda config: config["inferer"].update(padding_mode="reflect")), "padding_mode",
    ),
    "pictures": (
        _edited(
            lambda data: data["network_data_format"]["inputs"]["image"].update(
                spatial_shape=[96, 96]
            ),
            _METADATA,
        ),
        "got one for pictures of two sides",
    ),
    # what contradicts itself
    "another network": (_network(channels=[4, 8, 8]), "weights are those of another network"),
    "other scores": (_network(out_channels=3), r"channels 0 to 2"),
    "an endless network": (_network(num_res_units=10**9), "numbers up to"),
    "a network beyond memory": (_network(channels=[8000] * 3), "parameters"),
    "arguments that MONAI refuses": (_network(strides="no"), "arguments that MONAI takes"),
    "an object as an argument": (_network(act={"_target_": "os.getcwd"}), "act: expected numbers"),
}  # fmt: skip


@pytest.mark.cpu
@pytest.mark.parametrize("problem", _REFUSED)
def test_what_cannot_be_served_alike_is_refused_by_name_and_nothing_runs(
    copy: Path, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)
    change, told = _REFUSED[problem]
    change(copy)
    before = sorted(copy.rglob("*"))
    with pytest.raises(ConfigError, match=told) as caught:
        read_bundle(copy, "spleen")
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)
    assert sorted(copy.rglob("*")) == before


class _Hostile:
    """Pickled, it creates a file when it is read."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._witness,))


@pytest.mark.cpu
@pytest.mark.parametrize("as_zip", [True, False])
def test_weights_that_would_run_code_are_refused_and_run_none(copy: Path, as_zip: bool) -> None:
    witness, path = copy / "was-here", copy / "models" / "model.pt"
    if as_zip:
        torch.save({"model": _Hostile(witness)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": _Hostile(witness)}))
    with pytest.raises(ConfigError, match=r"would run code|cut short or damaged"):
        read_bundle(copy, "spleen")
    assert not witness.exists()


@pytest.mark.cpu
def test_a_link_out_of_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": "image"}')
    (copy / "configs" / "more.json").symlink_to(secret)
    _set("image_key", "%configs/more.json#key")(copy)
    with pytest.raises(ConfigError, match="inside the bundle"):
        read_bundle(copy, "spleen")


@pytest.mark.cpu
def test_files_of_the_bundle_are_included(copy: Path) -> None:
    (copy / "configs" / "more.json").write_text('{"names": {"key": "image"}}')
    _set("image_key", "%configs/more.json#names#key")(copy)
    assert _spec(copy).volume is not None


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["@image_key", "$@image_key", "%image_key", "$1/0", "$[@x]", "@", "$", "%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["_target_", "keys", "transforms", "x"]), inner, max_size=3
    ),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.cpu
@settings(deadline=None, max_examples=60)
@given(
    place=st.sampled_from(
        [("network_def",), ("inferer",), ("preprocessing", "transforms"), ("dataset", "transform"),
         ("postprocessing", "transforms", 0, "keys"), ("evaluator", "network"), ("image_key",),
         ("network_def", "channels"), ("inferer", "roi_size"), ("checkpointloader", "load_path"),
         ("preprocessing", "transforms", 3, "pixdim")]
    ),
    value=_plain,
)  # fmt: skip
def test_whatever_stands_in_a_file_it_is_read_or_refused(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    shutil.copytree(bundle / "configs", folder / "configs")
    config = json.loads((folder / _CONFIG).read_text())
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / _CONFIG).write_text(json.dumps(config))
    with contextlib.suppress(ConfigError):
        _spec(folder)


@pytest.mark.cpu
@pytest.mark.parametrize("name", CASES)
def test_masks_are_those_of_monais_own_workflow(tmp_path: Path, name: str) -> None:
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed; .ci/run installs it")
    case = CASES[name]
    folder, files = write_bundle(tmp_path / "model", case), write_case(tmp_path / "case", case)
    theirs = monai_mask(folder, files, tmp_path / "out")
    if case.as_script:
        (folder / "models" / "model.pt").unlink()
    ours = own_mask(read_bundle(folder, "tiny"), files)
    assert len(np.unique(theirs)) > 1
    # labels that MONAI interpolates are not whole: here the nearest label is served
    assert np.mean(ours == np.rint(theirs)) >= 0.9999


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["cropped", "nearest labels back, edges repeated"])
def test_probabilities_of_each_voxel_sum_to_one(tmp_path: Path, name: str) -> None:
    source = read_bundle(write_bundle(tmp_path / "model", CASES[name]), "tiny")
    pipeline = VolumePipeline(ModelSpec.from_mapping(source.config("1.0", "onnxruntime")))
    [file] = write_case(tmp_path / "case", CASES[name])
    plain = pipeline.defaults()
    prepared = pipeline.prepare(nifti.decode(file.read_bytes()))
    segmented = pipeline.segment(prepared, _predict(source), plain)
    asked = pipeline.segment(prepared, _predict(source), replace(plain, probabilities=True))
    np.testing.assert_array_equal(segmented.segmentation.mask, asked.segmentation.mask)
    assert asked.probabilities is not None
    np.testing.assert_allclose(asked.probabilities.sum(axis=0), 1.0, atol=1e-5)


def _predict(source: Source) -> Predict:
    def predict(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        assert isinstance(source.network, torch.nn.Module)
        with torch.inference_mode():
            scores: npt.NDArray[np.float32] = source.network(torch.from_numpy(windows)).numpy()
        return scores

    return predict


@pytest.mark.cpu
def test_the_archive_of_the_command_answers_as_the_bundle(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the import extra")
    case, store = CASES["tumour"], tmp_path / "store"
    folder, files = write_bundle(tmp_path / "model", case), write_case(tmp_path / "case", case)
    arguments = ["bundle", str(folder), "--name", "tumour", "--store", str(store)]
    plan = CliRunner().invoke(import_, [*arguments, "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert "T1c, T1, T2, FLAIR" in plan.output
    assert not store.exists()
    run = CliRunner().invoke(import_, arguments)
    assert run.exit_code == 0, run.output
    found = ask_archive(store / "tumour-1.0.mar", files).segmentation.mask
    assert np.mean(found == own_mask(read_bundle(folder, "tumour"), files)) >= 0.9999


@pytest.mark.cpu
def test_a_script_of_another_shape_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "model", CASES["straight and sheared"])
    (folder / "models" / "model.pt").unlink()
    _edited(lambda config: config["inferer"].update(roi_size=[10, 10, 10]))(folder)
    arguments = ["bundle", str(folder), "--name", "tilted", "--store", str(tmp_path / "store")]
    run = CliRunner().invoke(import_, arguments)
    assert isinstance(run.exception, ConfigError)
    assert "the description contradicts the network" in str(run.exception)
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.cpu
def test_the_table_says_of_each_bundle_whether_it_can_be_imported(tmp_path: Path) -> None:
    zoo, page = tmp_path / "zoo", tmp_path / "page.md"
    write_bundle(zoo / "a", CASES["spleen"])
    write_bundle(zoo / "b", CASES["labels back"])
    _set("inferer", {"_target_": "SaliencyInferer"})(write_bundle(zoo / "c", CASES["spleen"]))
    page.write_text("before\n<!-- bundles: start -->\nold\n<!-- bundles: end -->\nafter\n")
    main([str(zoo), "--source", "a zoo at commit 1", "--page", str(page)])
    text = page.read_text()
    assert text.startswith("before\n<!-- bundles: start -->\n2 of 3 bundles of a zoo at commit 1")
    assert text.endswith("<!-- bundles: end -->\nafter\n")
    assert "old" not in text
    assert "| `a` | yes | 16 x 16 x 16 windows |" in text
    assert "here the nearest one" in text
    assert "| `c` | no | inference.json: inferer: expected a SlidingWindowInferer" in text
