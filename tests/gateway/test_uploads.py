"""A file that is too large for a message reaches the engine by its name."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path

import pytest

from medserve.client import AsyncClient, Limits, SegmentedFile, VolumeFormat, VolumeOptions
from medserve.errors import (
    InvalidImageError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
)
from medserve.gateway.core.gateway import Gateway, Guards
from medserve.gateway.core.gateway import Limits as GatewayLimits
from medserve.gateway.core.uploads import Uploads
from medserve.spec import Task
from tests.gateway.faces import LABELS, segmented, served
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model

MESSAGE, LARGEST = 2**20, 5 * 2**20
FITS = MESSAGE - 2**17  # beside the settings


class Engine:
    """Keeps what it was asked about, and how many files there were meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: list[bytes] = []
        self.modes: list[int] = []
        self.error: MedserveError | None = None

    def __call__(self, request: Request) -> bytes:
        """Read the file as a worker does."""
        if "data_file" in request.inputs:
            assert "data" not in request.inputs
            path = self._folder / request.inputs["data_file"].decode()
            self.modes.append(path.stat().st_mode & 0o777)
            self.files.append(path.read_bytes())
        else:
            self.files.append(request.inputs["data"])
        if self.error is not None:
            raise self.error
        return segmented(request)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def gateway(engine: Engine, folder: Path | None, *, reads_uploads: bool = True) -> Gateway:
    described = dataclasses.replace(
        model("hippocampus", Task.VOLUMES, labels=LABELS), reads_uploads=reads_uploads
    )
    guards = Guards(limits=GatewayLimits(message_bytes=MESSAGE), uploads=Uploads(folder, LARGEST))
    return fake_gateway(FakeEngine(engine, known=("hippocampus",)), described, guards=guards)


def ask(to: Gateway, path: Path, options: VolumeOptions | None = None) -> SegmentedFile:
    async def run() -> SegmentedFile:
        async with served(to) as address, AsyncClient(address, limits=Limits(attempts=1)) as client:
            return await client.segment_file("hippocampus", path, options=options)

    return asyncio.run(run())


def file(folder: Path, size: int) -> Path:
    path = folder / "volume.bin"
    path.write_bytes(os.urandom(size))
    return path


def left(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir() if each.name != "volume.bin"]


@pytest.mark.loopback
@pytest.mark.parametrize("size", [1, FITS, FITS + 1, MESSAGE, LARGEST])
def test_a_file_of_any_size_arrives_whole_and_is_deleted(
    engine: Engine, tmp_path: Path, size: int
) -> None:
    path = file(tmp_path, size)
    options = VolumeOptions(format=VolumeFormat.DICOM_SEG, flips=False)
    found = ask(gateway(engine, tmp_path), path, options)
    assert engine.files == [path.read_bytes()]
    assert found.mask == b"dicom" * 2**20
    assert [each.label for each in found.measures] == list(LABELS[1:])
    assert engine.modes == ([0o600] if size > FITS else [])  # on the disk only if it must
    assert left(tmp_path) == []


@pytest.mark.loopback
def test_a_file_that_the_model_refuses_is_deleted_too(engine: Engine, tmp_path: Path) -> None:
    engine.error = InvalidImageError("expected a series without a gap, got one with a gap")
    with pytest.raises(InvalidImageError, match="gap"):
        ask(gateway(engine, tmp_path), file(tmp_path, MESSAGE + 1))
    assert left(tmp_path) == []


@pytest.mark.loopback
def test_a_file_over_the_limit_is_refused_before_it_is_sent(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLargeError, match=str(LARGEST)):
        ask(gateway(engine, tmp_path), file(tmp_path, LARGEST + 1))
    assert engine.files == []
    assert left(tmp_path) == []


@pytest.mark.loopback
@pytest.mark.parametrize("lacking", ["folder", "archive"])
def test_without_a_folder_or_with_an_older_archive_a_file_has_to_fit_into_a_message(
    engine: Engine, tmp_path: Path, lacking: str
) -> None:
    without = gateway(
        engine,
        None if lacking == "folder" else tmp_path,
        reads_uploads=lacking != "archive",
    )
    with pytest.raises(PayloadTooLargeError, match=str(MESSAGE)):
        ask(without, file(tmp_path, MESSAGE + 1))
    ask(without, file(tmp_path, FITS))


@pytest.mark.loopback
def test_what_is_no_mask_or_no_file_is_refused(engine: Engine, tmp_path: Path) -> None:
    to = gateway(engine, tmp_path)
    with pytest.raises(InvalidRequestError, match="format"):
        ask(to, file(tmp_path, 9), VolumeOptions(format=VolumeFormat.JSON))
    with pytest.raises(InvalidRequestError, match="read"):
        ask(to, tmp_path / "none")


def test_what_an_earlier_gateway_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("0" * 32, "notes.txt"):
        (tmp_path / name).touch()
    Uploads(tmp_path, LARGEST)
    assert left(tmp_path) == ["notes.txt"]


def test_a_full_disk_is_busy_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def upload() -> None:
        async with Uploads(tmp_path, LARGEST).receive(3, "owner", None) as coming:
            monkeypatch.setattr("os.write", full)
            await coming.take(b"abc")

    with pytest.raises(ServerBusyError, match="No space left"):
        asyncio.run(upload())
    assert left(tmp_path) == []


def test_more_than_was_announced_is_refused(tmp_path: Path) -> None:
    async def upload() -> None:
        async with Uploads(tmp_path, LARGEST).receive(3, "owner", None) as coming:
            await coming.take(b"abc")
            await coming.take(b"d")

    with pytest.raises(PayloadTooLargeError):
        asyncio.run(upload())
    assert left(tmp_path) == []
