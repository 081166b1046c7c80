"""Synthetic images over real gRPC, through a gateway before TorchServe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from medserve.client import (
    Client,
    GenerationOptions,
    GenerationResult,
    Sample,
    SampleFormat,
    SampleProgress,
)
from medserve.errors import DeadlineError, InvalidRequestError
from medserve.inference.generation import DiffusionPipeline, SampleSettings
from medserve.spec import ModelSpec
from medserve.spec.generation import SamplerKind
from medserve.wire.v1 import imaging_pb2, imaging_pb2_grpc
from tests.backends import Backend
from tests.painter_room import SLOW
from tests.tiny_diffusion_room import DIFFUSION_CONFIG, LABELS, SIDE, run

# 300 s of work: who gets an answer while it would go on knows that it was stopped.
_ENDLESS = GenerationOptions(count=1, steps=200, guidance=SLOW)


def expected(seed: int, label: str, steps: int) -> npt.NDArray[np.uint8]:
    """What the same archive draws in this process."""
    pipeline = DiffusionPipeline(ModelSpec.from_mapping(DIFFUSION_CONFIG), run)
    settings = SampleSettings(steps, SamplerKind.DPM_SOLVER, 1.0, SIDE)
    return pipeline.draw(seed, LABELS.index(label), settings)[0]


def test_images_form_step_by_step_and_are_those_of_the_same_code_here(client: Client) -> None:
    wishes = GenerationOptions(count=2, label="middle", seed=30, steps=6)
    *progress, last = client.sample("painter", wishes)
    assert isinstance(last, GenerationResult)
    events = [part for part in progress if isinstance(part, SampleProgress)]
    assert [(each.image, each.step, each.steps) for each in events] == [
        (image, step, 6) for image in range(2) for step in range(1, 7)
    ]
    assert events[-1].preview_png == last.images[-1].png
    for image in last.images:
        sample = Sample.from_image(image, last.provenance)
        np.testing.assert_array_equal(sample.image, expected(sample.seed, "middle", 6))
        assert sample.provenance.archive_digest.startswith("sha256:")
    assert [image.seed for image in last.images] == [30, 31]


def test_a_unary_call_and_a_stream_give_the_same_bytes(client: Client) -> None:
    wishes = GenerationOptions(count=3, seed=40, format=SampleFormat.NIFTI)
    *_, streamed = client.sample("painter", wishes)
    assert isinstance(streamed, GenerationResult)
    whole = client.sample_all("painter", wishes)
    assert [each.png for each in whole.images] == [each.png for each in streamed.images]
    assert whole.nifti == streamed.nifti is not None


def test_several_callers_at_once_get_what_each_would_get_alone(client: Client) -> None:
    def draw(seed: int) -> bytes:
        return client.sample_all("painter", GenerationOptions(seed=seed)).images[0].png

    alone = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(draw, range(8))) == alone


def test_a_refused_stream_says_why_and_leaves_the_worker_well(client: Client) -> None:
    for wishes in (GenerationOptions(count=0), GenerationOptions(label="Jane Doe")):
        with pytest.raises(InvalidRequestError, match="expected"):
            list(client.sample("painter", wishes))
    assert client.sample_all("painter").images


def test_work_ends_when_the_callers_time_is_over(address: str, client: Client) -> None:
    with Client(address, timeout_s=4) as hasty, pytest.raises(DeadlineError):
        list(hasty.sample("painter", _ENDLESS))
    assert client.sample_all("painter").images  # well before the 300 s of that work


def test_work_ends_when_its_caller_goes(address: str, backend: Backend) -> None:
    assert backend.cancelled_dir is not None
    with Client(address, timeout_s=250) as client:
        drawing = client.sample("painter", _ENDLESS)
        assert isinstance(next(drawing), SampleProgress)
        drawing.close()
        with Client(address, timeout_s=100) as other:
            assert other.sample_all("painter").images
    while list(backend.cancelled_dir.iterdir()):  # the mark goes with the work
        time.sleep(0.05)


def test_the_typed_contract_draws_the_same_images(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = imaging_pb2_grpc.ImagingServiceStub(channel)
        request = imaging_pb2.SampleRequest(
            model_name="painter", image_count=2, class_name="left", seed=50, steps=4
        )
        parts = list(stub.Sample(request, timeout=120))
    images = [part.image for part in parts if part.WhichOneof("part") == "image"]
    assert [image.seed for image in images] == [50, 51]
    assert images[0].details["class"] == "left"
    assert len(parts) == 2 * 4 + 2


def test_the_command_draws_a_contact_sheet(address: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEDSERVE_")}
    command = [sys.executable, "-m", "medserve.cli.main", "sample", "5", "--model", "painter"]
    command += ["--seed", "60", "--class", "right", "--out", str(tmp_path / "out"), "--json"]
    command += ["--address", address]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    records = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [each["seed"] for each in records] == [60, 61, 62, 63, 64]
    assert {each["class"] for each in records} == {"right"}
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    assert len(list((tmp_path / "out").glob("sample_*.png"))) == 5
