"""Folders that nnU-Net v2 trained: what is read of them, and what is refused by name."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import ConfigError
from medserve.imaging.codecs import nifti
from medserve.importing.nnunet import read_folder
from medserve.importing.source import Source
from medserve.inference.components import largest_union
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec import ModelSpec
from tests.importing.nnunet_folders import CASES, write_case, write_folder

_FILE = "checkpoint_final.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("nnunet") / "model", CASES["isotropic"])


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_plans_become_a_description(folder: Path) -> None:
    source = read_folder(folder, "liver")
    volume = ModelSpec.from_mapping(source.config("1.0", "openvino")).volume
    assert volume is not None
    assert source.labels == ("background", "liver", "tumour")
    assert (volume.orientation, volume.spacing_mm) == ("kji", (1.5, 1.5, 1.5))
    assert (volume.flips, volume.flip_axes) == (True, (0, 1, 2))
    assert volume.resampling.normalise_first
    assert "Dataset007_Tiny" in source.origin


def test_regions_keep_the_order_of_the_file(tmp_path: Path) -> None:
    source = read_folder(write_folder(tmp_path / "model", CASES["regions"]), "tumour")
    assert source.labels == ("background", "whole", "core", "enhancing")
    assert list(source.volume["regions"].items()) == [("whole", 0), ("core", 1), ("enhancing", 2)]


def test_numbered_folds_are_preferred_to_all_of_the_data(copy: Path) -> None:
    shutil.copytree(copy / "fold_0", copy / "fold_all")
    assert "folds 0" in read_folder(copy, "liver").origin
    assert "folds all" in read_folder(copy, "liver", ["all"]).origin


def test_plans_of_before_their_description_of_networks_are_read(copy: Path) -> None:
    def older(plans: dict[str, Any]) -> None:
        configuration = plans["configurations"]["3d_fullres"]
        arguments = configuration.pop("architecture")["arch_kwargs"]
        configuration |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 6,
            "unet_max_num_features": 16,
            "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
        }

    image = torch.rand(1, 1, 24, 24, 24)
    with torch.inference_mode():
        expected = _network_of(read_folder(copy, "liver"))(image)
        _edit(copy / "plans.json", older)
        torch.testing.assert_close(_network_of(read_folder(copy, "liver"))(image), expected)


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _configured(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        _edit(
            folder / "plans.json",
            lambda plans: plans["configurations"]["3d_fullres"].update(values),
        )

    return change


def _planned(**values: object) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "plans.json", lambda plans: plans.update(values))


def _described(**values: object) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "dataset.json", lambda data: data.update(values))


def _network(**values: object) -> Callable[[Path], None]:
    def change(plans: dict[str, Any]) -> None:
        architecture = plans["configurations"]["3d_fullres"]["architecture"]
        architecture["arch_kwargs"].update(values)

    return lambda folder: _edit(folder / "plans.json", change)


def _saved(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "fold_0" / _FILE
        torch.save(torch.load(path, weights_only=False) | values, path)

    return change


def _cut(folder: Path) -> None:
    path = folder / "fold_0" / _FILE
    path.write_bytes(path.read_bytes()[:5000])


_REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no plans": (lambda folder: (folder / "plans.json").unlink(), "expected plans.json"),
    "no JSON": (lambda folder: (folder / "plans.json").write_text("{"), "expected JSON"),
    "plans of version 1": (
        lambda folder: (folder / "plans.json").write_text("{}"), "nnU-Net v1 cannot be imported",
    ),
    "no fold": (lambda folder: shutil.rmtree(folder / "fold_0"), r"expected fold_\*"),
    "a checkpoint cut short": (_cut, "cut short or damaged"),
    "a cascade": (_configured(previous_stage="3d_lowres"), "second stage of a cascade"),
    "another preprocessor": (_configured(preprocessor_name="Mine"), "preprocessor_name.*'Mine'"),
    "another resampling": (
        _configured(resampling_fn_data="resample_torch_fornnunet"),
        "resampling_fn_data.*'resample_torch_fornnunet'",
    ),
    "another normalisation": (
        _configured(normalization_schemes=["MyNormalization"]), "got 'MyNormalization'",
    ),
    "another reader": (_planned(image_reader_writer="Tiff3DIO"), "image_reader_writer.*Tiff3DIO"),
    "another network": (
        lambda folder: _edit(
            folder / "plans.json",
            lambda plans: plans["configurations"]["3d_fullres"]["architecture"].update(
                network_class_name="os.system"
            ),
        ),
        "got 'os.system'",
    ),
    "an unknown parameter": (_network(attention=True), "got 'attention'"),
    "an unknown class": (_network(nonlin="torch.nn.modules.activation.Softplus"), "nonlin"),
    "a class of elsewhere": (_network(conv_op="subprocess.Conv3d"), "conv_op"),
    "labels with gaps": (
        _described(labels={"background": 0, "liver": 1, "tumour": 3}), "without a gap",
    ),
    "labels without a background": (_described(labels={"liver": 1}), "background 0"),
    "another number of channels": (
        _described(channel_names={"0": "T1", "1": "T2"}), "as many channels",
    ),
    "another number of labels": (
        _described(labels={"background": 0, "liver": 1}), "the trainer may have changed it",
    ),
    "regions without an order": (
        _described(labels={"background": 0, "all": [1, 2], "core": 2}), "regions_class_order",
    ),
    "labels as a list": (_described(labels=["background", "liver"]), "expected labels such as"),
    "labels of version 1": (
        _described(labels={"0": "background", "1": "liver"}), "expected labels such as",
    ),
    "labels as texts": (
        _described(labels={"background": 0, "liver": "1", "tumour": "2"}), "a whole number",
    ),
    "channels as a list": (_described(channel_names=["CT"]), "expected channel_names such as"),
    "channels from 1 on": (_described(channel_names={"1": "CT"}), "from 0 on"),
    "another encoding": (
        lambda folder: (folder / "plans.json").write_text("{}", encoding="utf-16"), "expected JSON",
    ),
    "no network": (_configured(architecture=None), "architecture: expected an object"),
    "a network beyond memory": (_network(features_per_stage=[10**7] * 3), "numbers from 1 to 4096"),
    "kernels beyond memory": (_network(kernel_sizes=[[999] * 3] * 3), "at most 1073741824 param"),
    "endless stages": (_network(n_conv_per_stage=[10**7] * 3), "numbers from 1 to 64"),
    "a patch beyond memory": (_configured(patch_size=[4096] * 3), "patch_size of at most"),
    "a patch of two sides": (_configured(patch_size=[24, 24]), "a spacing for each of its sides"),
    "a boundless spacing": (_configured(spacing=[float("inf"), 1, 1]), "spacing: expected"),
    "an order as a text": (_configured(resampling_fn_data_kwargs={"order": "3"}), "order_z"),
    "an inheritance of many": (_configured(inherits_from=["2d"]), "expected a configuration"),
    "mirrored elsewhere": (
        _saved(inference_allowed_mirroring_axes=(7,)), "expected axes out of 0, 1, 2",
    ),
    "no weights": (_saved(network_weights=[1]), "expected 'network_weights'"),
    "the batch norm of another trainer": (
        _saved(network_weights={"encoder.stages.0.0.norm.running_mean": torch.ones(6)}),
        "the trainer may have changed it",
    ),
    "the best checkpoint alone": (
        lambda folder: (folder / "fold_0" / _FILE).rename(folder / "fold_0/checkpoint_best.pth"),
        "by --checkpoint: checkpoint_best.pth",
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", _REFUSED)
def test_what_cannot_be_served_alike_is_refused_by_name(copy: Path, problem: str) -> None:
    change, told = _REFUSED[problem]
    change(copy)
    with pytest.raises(ConfigError, match=told):
        read_folder(copy, "liver")


def _marked(folder: Path) -> None:
    for name in ("plans.json", "dataset.json"):
        lines = json.dumps(json.loads((folder / name).read_text()), indent=1).splitlines()
        (folder / name).write_bytes("\r\n".join(lines).encode("utf-8-sig"))


_READ: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "written on Windows": (_marked, ("liver", "tumour")),
    "an ignored label": (
        _described(labels={"background": 0, "liver": 1, "tumour": 2, "ignore": 3}),
        ("liver", "tumour"),
    ),
    "a list of one": (
        _described(labels={"background": [0], "tumour": [2], "liver": [1]}), ("liver", "tumour"),
    ),
    "equal and empty names": (
        _described(labels={"background": 0, "Leber / große": 1, "": 2}),
        ("Leber / große", "label 2"),
    ),
    "long names": (
        _described(labels={"background": 0, "x" * 200: 1, "x" * 201: 2}),
        ("x" * 60, "x" * 60 + " 2"),
    ),
    "other files": (_described(file_ending=".mha"), ("liver", "tumour")),
    "no mirror images": (_saved(inference_allowed_mirroring_axes=None), ("liver", "tumour")),
}  # fmt: skip


@pytest.mark.parametrize("form", _READ)
def test_odd_forms_of_the_files_are_read(copy: Path, form: str) -> None:
    change, labels = _READ[form]
    change(copy)
    source = read_folder(copy, "liver")
    assert source.labels[1:] == labels
    ModelSpec.from_mapping(source.config("1.0", "openvino"))


def test_another_checkpoint_is_taken_by_its_name(copy: Path) -> None:
    _saved(trainer_name="nnUNetTrainer_250epochs")(copy)
    (copy / "fold_0" / _FILE).rename(copy / "fold_0/checkpoint_best.pth")
    source = read_folder(copy, "liver", checkpoint="checkpoint_best.pth")
    assert "trainer nnUNetTrainer_250epochs, folds 0" in source.origin
    with pytest.raises(ConfigError, match="the name of a checkpoint"):
        read_folder(copy, "liver", checkpoint="../fold_0/checkpoint_best.pth")
    with pytest.raises(ConfigError, match="each fold once"):
        read_folder(copy, "liver", ["0", "0"], checkpoint="checkpoint_best.pth")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"0": "T1", "1": "T1"}, ["T1", "T1 1"]),
        ({"0": "1", "1": "0"}, ["image 1", "image 0"]),  # numbers say the place of a file
        ({"0": "T1/post.gd *", "1": ""}, ["T1/post.gd *", "channel 1"]),
    ],
)
def test_names_of_channels_are_all_different(
    tmp_path: Path, given: dict[str, str], names: list[str]
) -> None:
    folder = write_folder(tmp_path / "model", CASES["two channels, cropped"])
    _described(channel_names=given)(folder)
    assert list(read_folder(folder, "tumour").volume["channels"]) == names


_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["0", "order", "background", "mean", "arch_kwargs"]), inner, max_size=3
    ),
    max_leaves=5,
)  # fmt: skip
_PLACES: list[tuple[str, ...]] = [
    *(("dataset.json", key) for key in ("labels", "channel_names", "regions_class_order")),
    *(("plans.json", key)
      for key in ("configurations", "image_reader_writer", "transpose_forward")),
    *(("plans.json", "configurations", "3d_fullres", key) for key in (
        "patch_size", "spacing", "architecture", "normalization_schemes", "use_mask_for_norm",
        "resampling_fn_data_kwargs", "median_image_size_in_voxels", "inherits_from",
    )),
    *(("plans.json", "configurations", "3d_fullres", "architecture", "arch_kwargs", key)
      for key in ("n_stages", "features_per_stage", "strides", "conv_op", "norm_op_kwargs")),
]  # fmt: skip


@pytest.mark.cpu
@settings(deadline=None, max_examples=40)
@given(place=st.sampled_from(_PLACES), value=_plain)
def test_whatever_stands_in_a_file_it_is_read_or_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, place: tuple[str, ...], value: object
) -> None:
    changed = tmp_path_factory.mktemp("any") / "model"
    shutil.copytree(folder, changed)
    name, *keys, last = place

    def change(content: dict[str, Any]) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    _edit(changed / name, change)
    with contextlib.suppress(ConfigError):
        ModelSpec.from_mapping(read_folder(changed, "liver").config("1.0", "openvino"))
    shutil.rmtree(changed)


def _found(tmp_path: Path, *values: object, **changes: object) -> Path:
    """Write a file as nnUNetv2_find_best_configuration does."""
    content: dict[str, object] = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"] * len(values),
        "postprocessing_kwargs": [{"labels_or_regions": each} for each in values],
    }
    path = tmp_path / "postprocessing.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_the_postprocessing_that_was_found_is_applied(folder: Path, tmp_path: Path) -> None:
    path = _found(tmp_path, [1, 2], 2)
    source = read_folder(folder, "liver", postprocessing=path)
    spec = ModelSpec.from_mapping(source.config("1.0", "openvino"))
    assert spec.volume is not None
    assert spec.volume.largest_component
    assert spec.volume.largest_of == (("liver", "tumour"), ("tumour",))
    nothing = read_folder(folder, "liver", postprocessing=_found(tmp_path))
    assert "largest_component" not in nothing.volume


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: _found(path, 3), "labels from 1 to 2"),
        (lambda path: _found(path, []), "labels from 1 to 2"),
        (lambda path: _found(path, "1"), "labels from 1 to 2"),
        (lambda path: _found(path, 1, postprocessing_fns=["os.system"]), "os.system"),
        (lambda path: _found(path, 1, postprocessing_kwargs=[]), "lists of one length"),
        (lambda path: _found(path).rename(path / "postprocessing.pkl"), "would run code"),
    ],
)
def test_postprocessing_that_cannot_be_applied_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], Path], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        read_folder(folder, "liver", postprocessing=change(tmp_path))


@pytest.mark.cpu
def test_the_largest_piece_is_that_of_nnunets_own_function() -> None:
    reason = "nnunetv2 is not installed; .ci/run installs it"
    theirs = pytest.importorskip(
        "nnunetv2.postprocessing.remove_connected_components", reason=reason
    )
    random = np.random.default_rng(4)
    mask = random.choice(4, (20, 18, 16), p=(0.9, 0.04, 0.03, 0.03)).astype(np.uint8)
    mask[2:5, 3:6, 4:7], mask[10:14, 9:12, 8:11], mask[14:16, 9:12, 8:11] = 1, 2, 3
    expected = mask
    for group in ([1, 2, 3], [2, 3], 1):
        expected = theirs.remove_all_but_largest_component_from_segmentation(expected, group)
    found = largest_union(mask, [(1, 2, 3), (2, 3), (1,)])
    np.testing.assert_array_equal(found, expected)
    assert 0 < (found > 0).sum() < (mask > 0).sum()


def test_a_missing_fold_and_another_configuration_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected fold_3/.*folds that are there: 0"):
        read_folder(folder, "liver", ["0", "3"])
    with pytest.raises(ConfigError, match="got a checkpoint of '3d_fullres'"):
        read_folder(folder, "liver", configuration="2d")


class _Hostile:
    """Pickled, it creates a file when it is read."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._witness,))


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(
    copy: Path, tmp_path: Path, as_zip: bool
) -> None:
    witness, path = tmp_path / "was-here", copy / "fold_0" / _FILE
    content = {"network_weights": {}, "init_args": _Hostile(witness)}
    if as_zip:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ConfigError, match=r"would run code|cut short or damaged"):
        read_folder(copy, "liver")
    assert not witness.exists()


def _network_of(source: Source) -> torch.nn.Module:
    assert isinstance(source.network, torch.nn.Module)
    return source.network


def own_mask(source: Source, files: list[Path]) -> npt.NDArray[np.uint8]:
    pipeline = VolumePipeline(ModelSpec.from_mapping(source.config("1.0", "onnxruntime")))

    def predict(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            scores: npt.NDArray[np.float32] = _network_of(source)(
                torch.from_numpy(np.ascontiguousarray(windows))
            ).numpy()
        return scores

    volumes = [nifti.decode(path.read_bytes()) for path in files]
    return pipeline.segment(pipeline.prepare(volumes), predict).segmentation.mask


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore")  # the other tool's own
@pytest.mark.parametrize("name", CASES)
def test_masks_are_those_of_nnunets_own_predictor(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    reason = "nnunetv2 is not installed; .ci/run installs it"
    inference = pytest.importorskip("nnunetv2.inference.predict_from_raw_data", reason=reason)
    readers = pytest.importorskip("nnunetv2.imageio.simpleitk_reader_writer", reason=reason)
    case = CASES[name]
    folder, files = write_folder(tmp_path / "model", case), write_case(tmp_path / "case", case)
    predictor = inference.nnUNetPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), case.folds)
    image, properties = readers.SimpleITKIO().read_images([str(path) for path in files])
    theirs = predictor.predict_single_npy_array(image, properties, None, None, False)
    ours = own_mask(read_folder(folder, "tiny", list(case.folds)), files)
    assert len(np.unique(theirs)) > 1
    assert np.mean(ours == theirs.transpose(2, 1, 0)) >= 0.9999
