"""The handler of models that make images, in front of a perfect denoiser, without TorchServe."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image

from handlers import torchserve
from handlers.generation import GenerationHandler
from medserve.errors import (
    ArchiveError,
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    MedserveError,
    ModelNotReadyError,
    ServerFailedError,
    error_from_text,
)
from medserve.inference.fingerprints import FINGERPRINTS_FILE, FingerprintIndex
from medserve.results.sample import Sample
from medserve.tasks.generation import SampleImage
from tests.handlers.worker import FakeContext
from tests.tiny_diffusion_room import (
    DIFFUSION_CONFIG,
    LABELS,
    SIDE,
    means,
    write_diffusion_artifact,
)

REQUEST_ID = b"0a1b2c3d-4e5f"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusion_artifact(tmp_path_factory.mktemp("painter"))


@pytest.fixture(scope="module")
def handler(folder: Path) -> GenerationHandler:
    return ready(folder)


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a stream carried before its end."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(
        torchserve, "send_chunk", lambda context, parts: sent.append(json.loads(parts[0]))
    )
    return sent


def changed(**generation: object) -> dict[str, Any]:
    own = DIFFUSION_CONFIG["medserve"]
    return {
        **DIFFUSION_CONFIG,
        "medserve": {**own, "generation": {**own["generation"], **generation}},
    }


def ready(folder: Path, config: Mapping[str, Any] = DIFFUSION_CONFIG) -> GenerationHandler:
    handler = GenerationHandler()
    handler.initialize(FakeContext({"model_dir": str(folder), "gpu_id": None}, config))
    return handler


def ask(
    handler: GenerationHandler, params: Mapping[str, object] | None = None, **inputs: bytes
) -> dict[str, Any]:
    """One call; raises the error that a client would."""
    content: dict[str, Any] = {key: bytearray(value) for key, value in inputs.items()}
    if params is not None:
        content["params"] = bytearray(json.dumps(params).encode())
    try:
        [raw] = handler.handle([content], FakeContext({}))
    except Exception as error:
        raise _as_seen(error) from None
    answer: dict[str, Any] = json.loads(raw)
    assert answer["status"] == "ok"
    return answer


def _as_seen(error: Exception) -> MedserveError:
    seen = error_from_text(str(getattr(error, "message", error)))
    assert seen is not None
    return seen


def pixels(image: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"]))))


# ---- images and where they come from


def test_a_call_without_params_makes_one_image_of_the_models_size(
    handler: GenerationHandler,
) -> None:
    answer = ask(handler)
    [image] = answer["images"]
    assert pixels(image).shape == (SIDE, SIDE)
    assert image["class"] in LABELS
    assert (image["steps"], image["sampler"], image["guidance"]) == (8, "dpm-solver++", 1.0)
    assert answer["withheld"] == 0


@pytest.mark.parametrize("label", LABELS)
def test_an_image_of_a_class_looks_like_that_class(handler: GenerationHandler, label: str) -> None:
    [image] = ask(handler, {"class": label, "seed": 4, "steps": 20})["images"]
    picture = (means()[LABELS.index(label), 0] + 1) * 127.5
    assert np.abs(pixels(image) - picture).mean() < 16
    assert image["class"] == label


def test_the_seeds_of_a_call_count_up_and_each_draws_the_same_image_alone(
    handler: GenerationHandler,
) -> None:
    together = ask(handler, {"n": 4, "seed": 100})["images"]
    assert [image["seed"] for image in together] == [100, 101, 102, 103]
    for image in together:
        alone = ask(handler, {"seed": image["seed"]})["images"][0]
        assert alone == image


def test_a_seed_that_nobody_gave_is_answered_and_draws_the_image_again(
    handler: GenerationHandler,
) -> None:
    first, second = ask(handler)["images"][0], ask(handler)["images"][0]
    assert first["seed"] != second["seed"]
    assert ask(handler, {"seed": first["seed"]})["images"][0]["png"] == first["png"]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver++"])
def test_each_sampler_draws_an_image_of_its_own(handler: GenerationHandler, sampler: str) -> None:
    [image] = ask(handler, {"seed": 3, "sampler": sampler, "class": "left"})["images"]
    others = [
        ask(handler, {"seed": 3, "sampler": other, "class": "left"})["images"][0]["png"]
        for other in {"ddpm", "ddim", "dpm-solver++"} - {sampler}
    ]
    assert image["sampler"] == sampler
    assert image["png"] not in others


def test_an_answer_names_its_archive_and_reads_back_as_the_same_samples(
    handler: GenerationHandler,
) -> None:
    answer = ask(handler, {"n": 2, "seed": 8, "guidance": 2.0})
    assert (answer["model"], answer["version"]) == ("painter", "1.0")
    for image in answer["images"]:
        read = SampleImage.from_json(image)
        sample = Sample.from_image(read, handler.provenance)
        np.testing.assert_array_equal(sample.image, pixels(image))
        assert sample.to_image(read.png).to_json() == image


# ---- files, each marked as synthetic


def test_every_png_says_that_it_is_synthetic_and_how_it_was_made(
    handler: GenerationHandler,
) -> None:
    [image] = ask(handler, {"seed": 5, "class": "middle"})["images"]
    with Image.open(io.BytesIO(base64.b64decode(image["png"]))) as picture:
        texts = dict(picture.text)  # type: ignore[attr-defined]
    assert texts["Synthetic"].startswith("SYNTHETIC")
    assert texts["Source"].startswith("painter 1.0")
    assert texts["Settings"] == (
        "class middle, seed 5, dpm-solver++, 8 steps, guidance 1, 16 x 16 pixels"
    )
    assert image["synthetic"] is True


def test_npz_holds_all_images_with_their_seeds_and_classes(handler: GenerationHandler) -> None:
    answer = ask(handler, {"n": 3, "seed": 5, "format": "npz"})
    with np.load(io.BytesIO(base64.b64decode(answer["npz"])), allow_pickle=False) as content:
        assert content["seeds"].tolist() == [5, 6, 7]
        assert content["labels"].tolist() == [image["class"] for image in answer["images"]]
        assert str(content["synthetic"]).startswith("SYNTHETIC")
        for found, image in zip(content["images"], answer["images"], strict=True):
            np.testing.assert_array_equal(found, pixels(image))


def test_nifti_holds_all_images_as_slices_seen_as_axial_slices_are(
    handler: GenerationHandler,
) -> None:
    answer = ask(handler, {"n": 3, "seed": 5, "class": "left", "format": "nifti"})
    stack = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(answer["nifti"])))
    assert stack.shape == (SIDE, SIDE, 3)
    assert np.sign(np.diag(stack.affine)).tolist() == [-1, -1, 1, 1]  # left, back, up
    assert bytes(stack.header["descrip"].tobytes()).startswith(b"SYNTHETIC painter 1.0")
    assert b"seed 7" in stack.header.extensions[0].get_content()
    for place, image in enumerate(answer["images"]):
        np.testing.assert_array_equal(np.asarray(stack.dataobj)[:, :, place].T, pixels(image))


def test_dicom_files_are_marked_in_every_tag_that_can_say_it(handler: GenerationHandler) -> None:
    answer = ask(handler, {"n": 2, "seed": 5, "format": "dicom"})
    files = [
        pydicom.dcmread(io.BytesIO(base64.b64decode(image["dicom"]))) for image in answer["images"]
    ]
    for file, image in zip(files, answer["images"], strict=True):
        np.testing.assert_array_equal(file.pixel_array, pixels(image))
        assert file.SyntheticData == "YES"
        assert file.ConversionType == "SYN"
        assert "SYNTHETIC" in file.ImageType
        assert str(file.PatientName) == file.PatientID == "SYNTHETIC"
        assert file.SeriesDescription.startswith("SYNTHETIC")
        assert file.ImageComments.startswith("SYNTHETIC")
    assert files[0].SOPInstanceUID != files[1].SOPInstanceUID
    assert files[0].StudyInstanceUID == files[1].StudyInstanceUID


def test_the_same_call_gives_the_same_bytes_in_every_format(handler: GenerationHandler) -> None:
    for form in ("png", "npz", "nifti", "dicom"):
        params = {"n": 2, "seed": 9, "format": form}
        assert ask(handler, params) == ask(handler, params)


# ---- copies of training images


def knowing(folder: Path, target: Path, seeds: range) -> Path:
    """A copy of the archive that was trained on what these seeds of the class left draw."""
    for name in ("model.onnx", "golden_input.json", "golden_output.npz"):
        (target / name).write_bytes((folder / name).read_bytes())
    handler = ready(folder)
    images = ask(handler, {"n": len(seeds), "seed": seeds.start, "class": "left"})["images"]
    known = np.stack([pixels(image) for image in images])[:, None]
    FingerprintIndex.build(known, threshold=0.02).save(target / FINGERPRINTS_FILE)
    return target


def test_a_copy_of_a_training_image_is_withheld_and_replaced_by_a_later_seed(
    folder: Path, tmp_path: Path
) -> None:
    handler = ready(knowing(folder, tmp_path, range(41, 43)))
    answer = ask(handler, {"n": 4, "seed": 40, "class": "left"})
    assert [image["seed"] for image in answer["images"]] == [40, 44, 45, 43]
    assert answer["withheld"] == 2


def test_a_preview_does_not_show_what_is_withheld(
    folder: Path, tmp_path: Path, chunks: list[dict[str, Any]]
) -> None:
    handler = ready(knowing(folder, tmp_path, range(41, 42)))
    ask(handler, {"seed": 41, "class": "left"}, stream=b"1")
    of_copy, of_other = chunks[:8], chunks[8:]
    assert [part["step"] for part in of_copy] == [part["step"] for part in of_other]
    assert "preview_png" in of_copy[0]
    assert "preview_png" not in of_copy[-1]
    assert all("preview_png" in part for part in of_other)


def test_a_model_that_only_copies_gives_up_with_a_clear_error(folder: Path, tmp_path: Path) -> None:
    handler = ready(knowing(folder, tmp_path, range(41, 53)))
    with pytest.raises(ServerFailedError, match="got 5 that were too near"):
        ask(handler, {"seed": 41, "class": "left"})


# ---- streams, and callers who go


def test_a_stream_shows_each_image_while_it_forms_and_ends_with_the_answer(
    handler: GenerationHandler, chunks: list[dict[str, Any]]
) -> None:
    params = {"n": 2, "seed": 6, "steps": 5}
    streamed = ask(handler, params, stream=b"1")
    assert [(part["event"], part["image"], part["step"], part["of"]) for part in chunks] == [
        ("progress", image, step, 5) for image in range(2) for step in range(1, 6)
    ]
    assert chunks[-1]["preview_png"] == streamed["images"][1]["png"]
    assert streamed == ask(handler, params)


def test_long_walks_are_reported_about_twenty_times(
    handler: GenerationHandler, chunks: list[dict[str, Any]]
) -> None:
    ask(handler, {"steps": 150}, stream=b"1")
    assert [part["step"] for part in chunks] == [*range(8, 150, 8), 150]


def test_nothing_is_streamed_to_a_caller_who_did_not_ask(
    handler: GenerationHandler, chunks: list[dict[str, Any]]
) -> None:
    ask(handler, {"steps": 3}, stream=b"0", transport=b"grpc")
    assert chunks == []


def test_a_refused_stream_ends_as_a_refused_call_does(
    handler: GenerationHandler, chunks: list[dict[str, Any]]
) -> None:
    with pytest.raises(InvalidRequestError, match="n: expected a whole number"):
        ask(handler, {"n": 0}, stream=b"1")
    assert chunks == []


class Stopping:
    """The network, which does something at one of its calls."""

    def __init__(self, handler: GenerationHandler, call: int, act: Callable[[], object]) -> None:
        self.calls = 0
        self._run, self._call, self._act = handler.engine.run, call, act

    def __call__(self, inputs: Any) -> Any:
        """Act, then answer."""
        self.calls += 1
        if self.calls == self._call:
            self._act()
        return self._run(inputs)


@pytest.fixture
def stopping(folder: Path) -> Callable[[int, Callable[[], object]], GenerationHandler]:
    def build(call: int, act: Callable[[], object]) -> GenerationHandler:
        handler = ready(folder)
        handler.pipeline._run = Stopping(handler, call, act)
        return handler

    return build


def calls_of(handler: GenerationHandler) -> int:
    network = handler.pipeline._run
    assert isinstance(network, Stopping)
    return network.calls


def test_a_call_that_its_caller_cancels_stops_at_the_next_step(
    stopping: Callable[[int, Callable[[], object]], GenerationHandler],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDSERVE_CANCELLED_DIR", str(tmp_path))
    handler = stopping(3, (tmp_path / REQUEST_ID.decode()).touch)
    with pytest.raises(DeadlineError, match="cancelled"):
        ask(handler, {"steps": 100}, request_id=REQUEST_ID)
    assert calls_of(handler) == 3


def test_a_call_whose_time_is_over_stops_at_the_next_step(
    stopping: Callable[[int, Callable[[], object]], GenerationHandler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    handler = stopping(4, lambda: now.append(now.pop() + 60))
    with pytest.raises(DeadlineError, match="deadline_ms"):
        ask(handler, {"steps": 100}, deadline_ms=b"5000")
    assert calls_of(handler) == 4


def test_a_worker_stops_before_the_server_would_kill_it(
    stopping: Callable[[int, Callable[[], object]], GenerationHandler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    handler = stopping(2, lambda: now.append(now.pop() + 55))  # of responseTimeout 60
    with pytest.raises(DeadlineError, match="within 54 s, which the server allows"):
        ask(handler, {"steps": 100})
    assert calls_of(handler) == 2


# ---- what is refused, before any work


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"class": "upper"}, "class: expected one of left, middle, right"),
        ({"class": 1}, "class: expected one of left, middle, right"),
        ({"n": 0}, "n: expected a whole number from 1 to 12, got less"),
        ({"n": 10_000}, "n: expected a whole number from 1 to 12, got more"),
        ({"n": 2.5}, "n: expected a whole number from 1 to 12, got something else"),
        ({"n": True}, "n: expected a whole number from 1 to 12, got something else"),
        ({"size": 512}, "size: expected 16, which the weights were trained for"),
        ({"steps": 201}, "steps: expected a whole number from 1 to 200, got more"),
        ({"steps": 0}, "steps: expected a whole number from 1 to 200, got less"),
        ({"seed": -1}, "seed: expected a whole number from 0 to 4294967295, got less"),
        ({"seed": "7"}, "seed: expected a whole number"),
        ({"sampler": "euler"}, r"sampler: expected one of ddpm, ddim, dpm-solver\+\+"),
        ({"guidance": -0.5}, "guidance: expected a number from 0 to 8, got less"),
        ({"guidance": 9}, "guidance: expected a number from 0 to 8, got more"),
        ({"guidance": float("nan")}, "guidance: expected a number from 0 to 8"),
        ({"format": "jpeg"}, "format: expected one of png, npz, nifti, dicom"),
        ({"n": 12, "steps": 51}, "at most 600 calls of the network .*, got 612"),
        ({"n": 6, "steps": 51, "guidance": 2}, "at most 600 calls of the network .*, got 612"),
        ({"count": 3}, "known keys: class, format, guidance, n, sampler, seed, size, steps"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_with_what_can(
    handler: GenerationHandler, params: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ask(handler, params)


def test_a_refusal_does_not_repeat_what_came(handler: GenerationHandler) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        ask(handler, {"class": "Jane Doe"})
    assert "Jane" not in refused.value.message


def test_an_image_that_is_sent_along_is_refused(handler: GenerationHandler) -> None:
    with pytest.raises(InvalidRequestError, match="expected no data"):
        ask(handler, {}, data=b"\x89PNG")


def test_a_model_without_classes_takes_neither_class_nor_guidance(tmp_path: Path) -> None:
    own = {**DIFFUSION_CONFIG["medserve"], "labels": []}
    write_diffusion_artifact(tmp_path)
    handler = ready(tmp_path_of_classless(tmp_path), {**DIFFUSION_CONFIG, "medserve": own})
    assert ask(handler, {"seed": 1})["images"][0]["class"] == ""
    with pytest.raises(InvalidRequestError, match="trained without classes"):
        ask(handler, {"class": "left"})
    with pytest.raises(InvalidRequestError, match="trained without classes"):
        ask(handler, {"guidance": 2})


def tmp_path_of_classless(folder: Path) -> Path:
    """The archive with golden params that name no class: its first picture is its only one."""
    (folder / "golden_input.json").write_text('{"n": 1, "seed": 7, "steps": 4}')
    return folder


# ---- ready means proven


def test_a_worker_without_fingerprints_does_not_start(tmp_path: Path) -> None:
    write_diffusion_artifact(tmp_path)
    (tmp_path / FINGERPRINTS_FILE).unlink()
    with pytest.raises(ArchiveError, match=r"fingerprints of the training images"):
        ready(tmp_path)


def test_a_worker_with_another_process_than_its_archive_does_not_start(folder: Path) -> None:
    with pytest.raises(ModelNotReadyError, match="golden output"):
        ready(folder, changed(schedule="linear"))


def test_a_worker_with_another_size_than_its_artifact_does_not_start(folder: Path) -> None:
    config = changed(sizes=[32])
    config["medserve"]["input"] = {"kinds": [], "size": [32, 32]}
    with pytest.raises(ModelNotReadyError, match=r"image float32 .* 32, 32"):
        ready(folder, config)


@pytest.mark.parametrize("golden", [b"\xff\x00", b"[1]", b'{"n": 1}'])
def test_golden_params_without_a_seed_prove_nothing(tmp_path: Path, golden: bytes) -> None:
    write_diffusion_artifact(tmp_path)
    (tmp_path / "golden_input.json").write_bytes(golden)
    with pytest.raises(ModelNotReadyError, match="golden params with a seed"):
        ready(tmp_path)


def test_a_model_without_the_section_generation_does_not_start(folder: Path) -> None:
    own = {key: value for key, value in DIFFUSION_CONFIG["medserve"].items() if key != "generation"}
    with pytest.raises(ConfigError, match="expected the section 'generation'"):
        ready(folder, {**DIFFUSION_CONFIG, "medserve": own})
