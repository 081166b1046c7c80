"""How a command ends that cannot do its work: one line, an exit code, and a retry that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medserve.cli import models
from medserve.cli.main import _COMMANDS
from medserve.errors import ConfigError, ServerUnreachableError
from tests.cli.conftest import Medserve
from tests.client.drawing import painting, sample_answer
from tests.client.fake_gateway import FakeGateway, passing, refusing, serving
from tests.client.framing import by_frame_size, frames_model
from tests.client.segmenting import by_size, volumes_model

FULL = Path("/dev/full")  # a device that takes nothing


def of_every_task() -> dict[str, FakeGateway]:
    return {
        "classification": FakeGateway(),
        "volumes": FakeGateway(volumes_model(), answer=by_size),
        "frames": FakeGateway(frames_model(), answer=by_frame_size),
    }


@pytest.fixture
def volumes() -> Iterator[FakeGateway]:
    with serving(of_every_task()["volumes"]) as fake:
        yield fake


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.nii").write_bytes(b"x" * 20)
    return folder


@pytest.mark.loopback
@pytest.mark.parametrize("task", list(of_every_task()))
@pytest.mark.parametrize("command", ["predict", "sort"])
def test_nothing_to_do_is_no_failure(
    command: str, task: str, medserve: Medserve, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    model = ("mednist",) if command == "predict" else ("--model", "mednist")
    with serving(of_every_task()[task]) as fake:
        run = medserve(
            *(command, *model, tmp_path / "in"),
            *("--out", tmp_path / "out", "--address", fake.address),
        )
    assert run.code == 0
    assert not fake.requests


@pytest.mark.loopback
def test_masks_of_a_run_that_broke_off_do_not_block_the_next_one(
    medserve: Medserve, volumes: FakeGateway, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", "mednist", cases, "--out", out, "--address", volumes.address)
    volumes.hooks = [passing, refusing(ServerUnreachableError("the engine does not answer"))]
    broken = medserve(*command)
    assert broken.code == 2
    assert (out / "a_mask.nii.gz").exists()
    volumes.hooks = [passing]
    assert medserve(*command).code == 0
    assert len(list(out.glob("*_mask.nii.gz"))) == 6
    finished = medserve(*command)
    assert finished.code == 2
    assert "--overwrite" in finished.err


@pytest.mark.loopback
def test_a_file_that_no_run_wrote_is_kept_also_after_one_that_broke_off(
    medserve: Medserve, volumes: FakeGateway, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", "mednist", cases, "--out", out, "--address", volumes.address)
    volumes.hooks = [passing, refusing(ServerUnreachableError("the engine does not answer"))]
    medserve(*command)
    (out / "b_mask.nii.gz").write_bytes(b"mine")
    volumes.hooks = [passing]
    run = medserve(*command)
    assert run.code == 2
    assert "b_mask.nii.gz exists" in run.err
    assert (out / "b_mask.nii.gz").read_bytes() == b"mine"


@pytest.mark.loopback
def test_samples_of_a_run_that_broke_off_do_not_block_the_next_one(
    medserve: Medserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(images: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    fake = painting("diffusion_sampler")
    fake.streams = [[sample_answer([7])], [sample_answer([7])]]
    with serving(fake):
        command = ("sample", "--out", tmp_path / "out", "--address", fake.address)
        with monkeypatch.context() as patch:
            patch.setattr("medserve.cli.sample.contact_sheet", no_room)
            full = medserve(*command)
        assert full.code == 2
        assert full.err.strip().endswith("No space left on device")
        assert medserve(*command).code == 0


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            ConfigError("pip install 'medserve[gateway]' in [red]"),
            2,
            "'medserve[gateway]' in [red]",
        ),
        (KeyboardInterrupt(), 130, "run the same command again"),
        (OSError(28, "No space left on device"), 2, "the output: No space left on device; mend"),
        (PermissionError(13, "Permission denied", "/a/[b]"), 2, "/a/[b]: Permission denied; mend"),
    ],
)
def test_every_expected_end_is_one_line(
    error: BaseException,
    code: int,
    message: str,
    medserve: Medserve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(models, "connect", fails)
    monkeypatch.setattr("medserve.cli.main._leave_standard_output", lambda: None)
    run = medserve("ping")
    assert run.code == code
    assert message in run.err
    assert len(run.err.strip().splitlines()) == 1


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["models"], ["predict", "mednist", "{image}", "--json"]])
def test_a_closed_pipe_and_a_full_disk_are_one_line(
    arguments: list[str], fake: FakeGateway, tmp_path: Path
) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"Hand")
    command = [sys.executable, "-m", "medserve"]
    command += [each.format(image=image) for each in arguments] + ["--address", fake.address]
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads
    closed = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert closed.returncode == 2
    assert closed.stderr.splitlines() == [
        "error: whoever read the output has closed it; the rest was not written"
    ]
    if not FULL.exists():
        pytest.skip("no /dev/full on this system")
    with FULL.open("w") as full:
        run = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "error: the output: No space left on device; mend that and run the same command again"
    ]


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_help_fits_80_columns(
    command: str, medserve: Medserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = medserve(command, "--help")
    assert run.code == 0
    assert max(map(len, run.out.splitlines())) <= 80
    if command in ("predict", "sample", "sort"):
        assert f" medserve {command} " in run.out.partition("Example")[2]
